//! Tests of the batches: answers that do not match the request.
use super::*;
use crate::abi::{GRANTED, KEY_UPDATED, REVOKED, TRANSFER};
use proptest::prelude::*;

fn read(text: &str, asks: &[Call]) -> Result<Vec<Option<Answer>>, BadAnswer> {
    decode(text.as_bytes(), asks)
}

fn run() -> Call {
    Call::Run { code: vec![0], at: At::Latest }
}

#[test]
fn batch_is_valid_json_and_small() {
    let asks = [
        Call::Run { code: vec![0; 30], at: At::Latest },
        Call::Logs { contract: Address::ZERO, from: 30_000_000, to: None },
        Call::Header(At::Hash(B256::ZERO)),
        Call::Run { code: vec![], at: At::Hash(B256::ZERO) },
        Call::ChainId,
        Call::ClientVersion,
        Call::Header(At::Number(7)),
        Call::Send { from: Address::ZERO, to: Address::repeat_byte(0xab), data: vec![1], dry: true },
    ];
    let whole: serde_json::Value = serde_json::from_slice(&encode(&asks)).unwrap();
    assert_eq!(whole.as_array().unwrap().len(), asks.len());
    assert_eq!(whole[1]["params"][0]["fromBlock"], "0x1c9c380");
    assert_eq!(whole[7]["params"][0]["to"], format!("0x{}", "ab".repeat(20)));
    assert!(encode(&asks[..2]).len() < 320, "a metered line is billed by the byte");
}

#[test]
fn answers_may_be_reordered_and_incomplete() {
    let asks = [Call::ChainId, run(), Call::ChainId];
    let got = read(r#"[{"id":3,"result":"0x7a69"},{"result":"0x00ff","jsonrpc":"2.0","id":2}]"#, &asks).unwrap();
    assert_eq!(got, [None, Some(Answer::Bytes(vec![0, 255])), Some(Answer::Number(31337))]);
    assert_eq!(read("[]", &asks).unwrap(), [None, None, None]);
}

#[test]
fn answers_that_do_not_match_are_refused() {
    let asks = [Call::ChainId];
    for bad in [
        r#"[{"id":2,"result":"0x1"}]"#,
        r#"[{"id":0,"result":"0x1"}]"#,
        r#"[{"id":null,"result":"0x1"}]"#,
        r#"[{"result":"0x1"}]"#,
        r#"[{"id":1,"result":"0x1"},{"id":1,"result":"0x2"}]"#,
        r#"[{"id":1.5,"result":"0x1"}]"#,
        r#"[{"id":"1","result":"0x1"}]"#,
        r#"[{"id":18446744073709551616,"result":"0x1"}]"#,
        r#"[{"id":1,"result":1}]"#,
        r#"[{"id":1,"result":NaN}]"#,
        r#"[{"id":1,"result":1e999}]"#,
        r#"[{"id":1,"result":"0x"}]"#,
        r#"[{"id":1,"result":"0x+1"}]"#,
        r#"[{"id":1,"result":"0xfffffffffffffffff"}]"#,
        r#"[{"id":1,"result":null}]"#,
        r#"[{"id":1,"result":[]}]"#,
        r#"[{"id":1,"result":{}}]"#,
        r#"[{"id":1}]"#,
        r#"[{"id":1,"result":"0x1","result":"0x2"}]"#,
        r#"[{"id":1,"result":"0x1","error":{"code":1,"message":"x"}}]"#,
        r#"{"id":2,"result":"0x1"}"#,
        r#"{"error":{"code":-32600,"message":"batches are not allowed"}}"#,
        r#"[{"id":1,"result":"0x1"}] tail"#,
        r#"[{"id":1,"result":"0x1"}"#,
        "",
        "<html>",
        "null",
    ] {
        assert!(read(bad, &asks).is_err(), "{bad}");
    }
    assert!(decode(&b"[{\"id\":1,\"result\":\"\xff\xfe\"}]"[..], &asks).is_err(), "not UTF-8");
    let deep = format!("[{{\"id\":1,\"x\":{}", "[".repeat(100_000));
    assert!(read(&deep, &asks).is_err(), "nested too deeply");
}

#[test]
fn single_call_is_no_array() {
    assert!(encode(&[run()]).starts_with(b"{\"jsonrpc\""));
    let got = read(r#"{"jsonrpc":"2.0","id":1,"result":"0x0102"}"#, &[run()]).unwrap();
    assert_eq!(got, [Some(Answer::Bytes(vec![1, 2]))]);
    // Some providers keep the array.
    let got = read(r#"[{"jsonrpc":"2.0","id":1,"result":"0x0102"}]"#, &[run()]).unwrap();
    assert_eq!(got, [Some(Answer::Bytes(vec![1, 2]))]);
    let refused = read(r#"{"id":1,"error":{"code":-32000,"message":"header not found"}}"#, &[run()]).unwrap();
    assert!(matches!(&refused[0], Some(Answer::Refused(r)) if r.unknown_block()), "{refused:?}");
}

#[test]
fn null_is_an_empty_list_of_events() {
    let logs = [Call::Logs { contract: Address::repeat_byte(1), from: 1, to: None }];
    assert_eq!(read(r#"[{"id":1,"result":null}]"#, &logs).unwrap(), [Some(Answer::Events(Vec::new()))]);
}

#[test]
fn events_that_change_no_grant_are_dropped() {
    let logs = [Call::Logs { contract: Address::repeat_byte(1), from: 1, to: None }];
    for topic in crate::abi::HARMLESS {
        let got = read(&event(&[format!("{topic:#x}")], "0x"), &logs).unwrap();
        assert_eq!(got, [Some(Answer::Events(Vec::new()))], "{topic}");
    }
}

#[test]
fn only_range_refusals_make_the_range_smaller() {
    let of = |code, text: &str| Refusal { code, message: text.into() };
    for (code, text) in [
        (-32600, "you can make eth_getLogs requests with up to a 5 block range"),
        (-32000, "block range exceeds 500"),
        (-32005, "block range too large"),
        (-32005, "query returned more than 10000 results"),
        (-32602, "eth_getLogs is limited to a 10,000 range"),
        (-32000, "query timeout exceeded"),
        (-32008, "Response is too big"),
        (-32614, "eth_getLogs is limited to 1024 block range. Please check the parameter requirements"),
    ] {
        assert!(of(code, text).too_much(), "{text}");
    }
    for (code, text) in [
        (-32602, "block range extends beyond current head block"),
        (-32602, "invalid block range params"),
        (-32005, "project ID request rate exceeded"),
        (-32007, "50/second request limit reached - reduce calls per second"),
        (-32000, "exceeded the RPS limit"),
        (429, "Your app has exceeded its compute units per second capacity"),
        (-32000, "header not found"),
    ] {
        assert!(!of(code, text).too_much(), "{text}");
    }
    for (code, text) in [
        (-32005, "project ID request rate exceeded"),
        (-32000, "exceeded the RPS limit"),
        (-32005, "daily request count exceeded, request rate limited"),
    ] {
        assert!(of(code, text).rate(), "{text}");
    }
    assert!(of(-32602, "block range extends beyond current head block").beyond_head());
}

#[test]
fn refusals_are_classified_by_code_and_text() {
    let got =
        read(r#"[{"id":1,"error":{"code":-32000,"message":"exceed maximum block range: 5000"}}]"#, &[run()]).unwrap();
    let Some(Answer::Refused(refusal)) = &got[0] else { panic!("{got:?}") };
    assert!(refusal.too_much() && !refusal.rate());
    let refused = |code, message: &str| Refusal { code, message: message.into() };
    let rate = refused(-32005, "rate limit reached");
    assert!(rate.rate() && !rate.too_much());
    assert!(refused(-32005, "query returned more than 10000 results").too_much());
    for (code, text) in [(-32000, "header not found"), (-32001, ""), (-32000, "hash 0x12 is not currently canonical")] {
        assert!(refused(code, text).unknown_block(), "{text}");
    }
    for (code, text) in [(-32601, "not found"), (-32600, "method not found"), (-32000, "execution reverted")] {
        assert!(!refused(code, text).unknown_block(), "{text}");
    }
}

#[test]
fn header_becomes_its_rlp_and_a_proof_its_nodes() {
    let hash: B256 = "d4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3".parse().unwrap();
    let slots = vec![B256::repeat_byte(4), B256::repeat_byte(5)];
    let asks = [Call::FullHeader(hash), Call::Proof { contract: Address::repeat_byte(3), slots, block: hash }];
    let sent: serde_json::Value = serde_json::from_slice(&encode(&asks)).unwrap();
    assert_eq!(sent[0]["params"], serde_json::json!([hash, false]));
    assert_eq!(sent[1]["method"], "eth_getProof");
    let at = serde_json::json!({"blockHash": hash, "requireCanonical": true});
    let slots = [B256::repeat_byte(4), B256::repeat_byte(5)];
    assert_eq!(sent[1]["params"], serde_json::json!([format!("{:#x}", Address::repeat_byte(3)), slots, at]));

    // The first block of Ethereum, with fields of today that are no part of a header.
    let zeros = |n: usize| format!("0x{}", "00".repeat(n));
    let empty = "0x56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421";
    let mut answer = serde_json::json!([{"jsonrpc": "2.0", "id": 1, "result": {
        "number": "0x0", "hash": hash, "parentHash": zeros(32), "miner": zeros(20), "nonce": "0x0000000000000042",
        "sha3Uncles": "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347", "transactions": [], "size": "0x21c",
        "stateRoot": "0xd7f8974fb5ac78d9ac099b9ad5018bedc2ce0a72dad1827a1709da30580f0544", "transactionsRoot": empty,
        "receiptsRoot": empty, "logsBloom": zeros(256), "difficulty": "0x400000000", "totalDifficulty": "0x400000000",
        "gasLimit": "0x1388", "gasUsed": "0x0", "timestamp": "0x0", "uncles": [], "mixHash": zeros(32),
        "extraData": "0x11bbe8db4e347b4e8c937c1c8370e4b5ed33adb3db69cbdb7a38e1e50b1b82fa"
    }}, {"jsonrpc": "2.0", "id": 2, "result": {
        "address": Address::repeat_byte(3), "accountProof": ["0x0102", "0x03"], "balance": "0x0", "nonce": "0x1",
        "storageProof": [{"key": "0x4", "value": "0x0", "proof": ["0x04"]}, {"key": "0x5", "value": "0x1", "proof": []}]
    }}]);
    let got = read(&answer.to_string(), &asks).unwrap();
    let Some(Answer::FullHeader(rlp)) = &got[0] else { panic!("{got:?}") };
    assert_eq!(crate::trie::header(rlp, hash).unwrap().number, 0);
    assert_eq!(got[1], Some(Answer::Nodes(vec![vec![1, 2], vec![3], vec![4]])));
    // Any field of another value, or none, is another hash.
    for field in ["stateRoot", "number", "gasLimit", "logsBloom", "extraData", "nonce"] {
        let before = answer[0]["result"][field].clone();
        for changed in [serde_json::Value::Null, "0x0100000000000000".into()] {
            answer[0]["result"][field] = changed;
            let got = read(&answer.to_string(), &asks).unwrap();
            let Some(Answer::FullHeader(rlp)) = &got[0] else { panic!("{got:?}") };
            assert!(crate::trie::header(rlp, hash).is_err(), "{field}");
        }
        answer[0]["result"][field] = before;
    }
    answer[0]["result"] = serde_json::Value::Null;
    assert_eq!(read(&answer.to_string(), &asks).unwrap()[0], Some(Answer::Nothing));
}

fn event(topics: &[String], data: &str) -> String {
    format!(
        r#"[{{"jsonrpc":"2.0","id":1,"result":[{{"address":"{:#x}","topics":[{}],"data":"{data}","blockNumber":"0x10","blockHash":"{:#x}","transactionHash":"0x00","logIndex":"0x0","removed":false}}]}}]"#,
        Address::repeat_byte(1),
        topics.iter().map(|t| format!("\"{t}\"")).collect::<Vec<_>>().join(","),
        B256::repeat_byte(2),
    )
}

fn subject(topics: &[String], data: &str) -> Result<Subject, BadAnswer> {
    let asks = [Call::Logs { contract: Address::repeat_byte(1), from: 1, to: None }];
    let got = read(&event(topics, data), &asks)?;
    let Some(Some(Answer::Events(c))) = got.into_iter().next() else { panic!("no changes") };
    assert_eq!(c[0].block, BlockRef { number: 16, hash: B256::repeat_byte(2) });
    Ok(c[0].subject.clone())
}

#[test]
fn events_name_the_grants_to_verify() {
    let topic = |t: B256| format!("{t:#x}");
    let seven = topic(B256::from(U256::from(7)));
    let name = format!("0x{:064x}{:064x}{:0<64}", 32, 6, hex::encode("edge-1"));
    assert_eq!(
        subject(&[topic(REVOKED), seven.clone()], &name).unwrap(),
        Subject::Node { node: "edge-1".parse().unwrap(), token_id: U256::from(7) }
    );
    // Without a readable node id the token remains.
    assert_eq!(subject(&[topic(REVOKED), seven.clone()], "0x").unwrap(), Subject::Token(U256::from(7)));
    assert_eq!(subject(&[topic(REVOKED), seven.clone()], &"0x".repeat(5000)).unwrap(), Subject::Token(U256::from(7)));
    assert_eq!(
        subject(&[topic(TRANSFER), seven.clone(), seven.clone(), seven.clone()], "0x").unwrap(),
        Subject::Token(U256::from(7))
    );
    assert_eq!(
        subject(&[topic(KEY_UPDATED), seven.clone()], "0x").unwrap(),
        Subject::Owner(Address::left_padding_from(&[7]))
    );
    assert_eq!(subject(&[topic(REVOKED)], "0x").unwrap(), Subject::Anyone);
    assert_eq!(subject(&[], "0x").unwrap(), Subject::Anyone);
    assert!(subject(&["0x12".into()], "0x").is_err(), "a topic of the wrong length");
    assert!(subject(&vec![seven; 5], "0x").is_err(), "more than four topics");
}

#[test]
fn events_of_another_contract_are_refused() {
    let asks = [Call::Logs { contract: Address::repeat_byte(9), from: 1, to: None }];
    assert!(read(&event(&[], "0x"), &asks).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(bytes.as_slice(), &[Call::ChainId, run()]);
    }

    /// A valid answer with one changed byte is read or refused, and never gains an answer.
    #[test]
    fn changed_byte_never_panics(at in 0usize..400, to in any::<u8>()) {
        let mut bytes = event(&[format!("{GRANTED:#x}")], "0x00").into_bytes();
        if let Some(b) = bytes.get_mut(at) { *b = to; }
        let asks = [Call::Logs { contract: Address::repeat_byte(1), from: 1, to: None }];
        if let Ok(got) = decode(bytes.as_slice(), &asks) {
            prop_assert_eq!(got.len(), 1);
        }
    }

    #[test]
    fn quantities_read_back(n in any::<u64>()) {
        prop_assert_eq!(quantity(&format!("{n:#x}")), Some(n));
    }
}

//! Fault 12.15: grants that rest on proofs, on a real chain with endpoints that change what they send.
use crate::anvil::{Anvil, Contract, post};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use spoke_chain::reader::ChainReader;
use spoke_config::grants::Grants;
use spoke_grants::exchange::Traffic;
use spoke_grants::jsonrpc::At;
use spoke_grants::policy::Pair;
use spoke_grants::verify::Verified;
use spoke_sys::clock::SystemClock;
use spoke_sys::rpc::Http;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PROOF: &str = "finality = \"latest\"\nquorum = 2\nverify = \"proof\"";

fn key(n: u16) -> String {
    pair(n).1.to_string()
}

fn replies(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    answer.as_array_mut().into_iter().flatten()
}

/// The results that have a field, for a change of it.
fn change(answer: &mut Value, field: &str, change: impl Fn(&mut Value)) {
    replies(answer).map(|r| &mut r["result"]).filter(|r| r.is_object() && !r[field].is_null()).for_each(|r| {
        change(&mut r[field]);
    });
}

fn items(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

/// Changes the last hexadecimal digit.
fn flip(text: &mut Value) {
    let digits = text.as_str().unwrap_or("0x0");
    let (front, last) = digits.split_at(digits.len() - 1);
    *text = format!("{front}{}", if last == "0" { "1" } else { "0" }).into();
}

type Lie = fn(&mut Value);

/// What a liar does to its answers, and whether that is found out: a node of a trie that is not needed proves nothing, and
/// the values beside the proofs are not read.
const LIES: [(&str, bool, Lie); 8] = [
    ("changes every node of storage", true, |a| {
        change(a, "storageProof", |slots| items(slots).for_each(|s| items(&mut s["proof"]).for_each(flip)));
    }),
    ("changes every node of accounts", true, |a| change(a, "accountProof", |nodes| items(nodes).for_each(flip))),
    ("leaves the storage out", true, |a| change(a, "storageProof", |slots| *slots = json!([]))),
    ("leaves the account out", true, |a| change(a, "accountProof", |nodes| *nodes = json!([]))),
    ("changes the header's root", true, |a| change(a, "stateRoot", flip)),
    ("changes the header's number", true, |a| change(a, "number", flip)),
    ("changes the values", false, |a| {
        change(a, "storageProof", |slots| items(slots).for_each(|s| flip(&mut s["value"])))
    }),
    ("refuses proofs", false, |a| {
        for reply in replies(a).filter(|r| r["result"].is_object() && !r["result"]["accountProof"].is_null()) {
            let error = json!({"code": -32601, "message": "the method eth_getProof is not available"});
            *reply = json!({"jsonrpc": "2.0", "id": reply["id"], "error": error});
        }
    }),
];

fn three(chain: &Anvil) -> ([Proxy; 3], Vec<String>) {
    let proxies = [0; 3].map(|_| Proxy::new(chain.port()));
    // The liar is the fastest, so it is asked first.
    for honest in &proxies[1..] {
        honest.rule(|_| ProxyAction::Late(Duration::from_millis(40)));
    }
    let urls = proxies.iter().map(Proxy::url).collect();
    (proxies, urls)
}

/// Grants and revokes the first node; the second stays granted and the third has no token.
fn grant_and_revoke(node: &mut Node, contract: &Contract<'_>, what: &str) {
    let wrong = node.watch_for(2);
    let removed = node.report().counts.revoked;
    let token = contract.mint(contract.chain.account(1), "node-0", &key(0));
    contract.chain.mine(1);
    node.until_admits(0, true);
    contract.revoke(token);
    contract.chain.mine(1);
    node.until_admits(0, false);
    let report = node.until("the other two as before", |r| {
        let codes: Vec<&str> = r.rows.iter().map(|row| &*row.code).collect();
        codes == ["NODE_INACTIVE", "ACCESS_GRANTED", "NODE_NOT_FOUND"]
    });
    assert!(node.admits(1) && !wrong.seen() && report.counts.revoked == removed + 1, "{what}: {report:#?}");
}

#[test]
fn liar_about_proofs_moves_no_peer() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    contract.mint(chain.account(2), "node-1", &key(1));
    chain.mine(3);
    let settings = |urls: &[String]| config(contract.address, urls, PROOF);
    for (what, found_out, lie) in LIES {
        let (proxies, urls) = three(&chain);
        let mut node = Node::start(settings(&urls), None, 3);
        node.until_admits(1, true);
        proxies[0].rule(move |_| ProxyAction::Edit(Box::new(lie)));
        // Every pair is verified again, so that the liar is asked for a proof.
        node.refresh();
        grant_and_revoke(&mut node, &contract, what);
        let report = node.report();
        assert_eq!(report.endpoints[0].refuted.is_some(), found_out, "{what}: {report:#?}");
        assert!(report.endpoints[1..].iter().all(|e| e.refuted.is_none()), "{what}: {report:#?}");
    }
}

#[test]
fn proof_of_an_earlier_state_moves_no_peer() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    contract.mint(chain.account(2), "node-1", &key(1));
    let gone = contract.mint(chain.account(3), "node-2", &key(2));
    chain.mine(1);
    let before = chain.ask("eth_getBlockByNumber", json!(["latest", false]))["hash"].clone();
    contract.burn(chain.account(3), gone);
    chain.mine(3);
    let (proxies, urls) = three(&chain);
    for method in ["eth_getProof", "eth_getBlockByHash"] {
        let mut node = Node::start(config(contract.address, &urls, PROOF), None, 3);
        node.until_admits(1, true);
        let (port, before) = (chain.port(), before.clone());
        proxies[0].rule(move |request| {
            let mut request = request.clone();
            let mut asked = false;
            // A header of that time comes with a proof of it.
            for call in items(&mut request).filter(|q| q["method"] == "eth_getProof" || q["method"] == method) {
                asked |= call["method"] == "eth_getProof";
                let at = if call["method"] == "eth_getProof" { 2 } else { 0 };
                call["params"][at] = before.clone();
                if at == 2 {
                    call["params"][at] = json!({"blockHash": before});
                }
            }
            if !asked {
                return ProxyAction::Pass;
            }
            let body = match request.as_array().map(Vec::as_slice) {
                Some([only]) => only.to_string(),
                _ => request.to_string(),
            };
            ProxyAction::Say(200, String::new(), post(port, &body).unwrap_or_default().into_bytes())
        });
        node.refresh();
        grant_and_revoke(&mut node, &contract, method);
        let report = node.report();
        assert!(report.endpoints[0].refuted.is_some(), "{method}: {report:#?}");
    }
}

#[test]
fn one_endpoint_with_proofs_is_enough() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    contract.mint(chain.account(2), "node-1", &key(1));
    chain.mine(6);
    let (proxies, urls) = three(&chain);
    for proxy in &proxies[..2] {
        proxy.rule(|request| {
            let proofs = request.as_array().into_iter().flatten().any(|q| q["method"] == "eth_getProof");
            if proofs { ProxyAction::Hang } else { ProxyAction::Pass }
        });
    }
    // With the default finality: the storage is proved at an older block, too.
    let settings = config(contract.address, &urls, "quorum = 3\nverify = \"proof\"");
    let mut node = Node::start(settings, None, 3);
    node.until_admits(1, true);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(6);
    node.until_admits(0, true);
    contract.revoke(token);
    chain.mine(1);
    node.until_admits(0, false);
    assert!(node.admits(1), "{:#?}", node.report());
}

#[test]
fn other_layout_removes_no_peer() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let dir = tempfile::tempdir().unwrap();
    let start = |more: &str| {
        let more = format!("finality = \"latest\"\nstale = \"1h\"\n{more}");
        Node::start(config(contract.address, &[chain.url()], &more), Some(dir.path()), 2)
    };
    let mut node = start("");
    node.until_admits(0, true);
    node.until("the grant is stored", |r| r.counts.writes > 0);
    drop(node);
    for slot in ["tokens", "accesses", "owners", "keys"] {
        let mut node = start(&format!("verify = \"proof\"\n[grants.layout]\n{slot} = \"0x1234\"\n"));
        node.refresh();
        let report = node.until(slot, |r| r.unreachable.as_ref().is_some_and(|u| u.contract));
        assert!(report.unreachable.as_ref().unwrap().reason.contains("grants.layout"), "{report:#?}");
        assert!(node.admits(0) && report.counts.revoked == 0, "{slot}: {report:#?}");
    }
    let mut node = start("verify = \"proof\"\n[grants.layout]\ntokens = 9\n");
    node.refresh();
    node.until("verified by proof", |r| r.counts.verifications > 0 && r.last_quorum.is_some());
    assert!(node.admits(0));
}

/// Verifies at the newest block by one reader; returns what it sent and how long it took.
fn read(settings: &Arc<Grants>, pairs: &[Pair]) -> (Verified, Traffic, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut reader = ChainReader::new(Http::new(settings).unwrap(), SystemClock, settings.clone());
    let pin = runtime.block_on(reader.find_block(At::Latest)).unwrap().unwrap();
    let verified = runtime.block_on(reader.verify(pin, pairs)).unwrap();
    // Once more, with the connection open and the layout compared.
    let (before, started) = (reader.traffic(), Instant::now());
    let again = runtime.block_on(reader.verify(pin, pairs)).unwrap();
    assert_eq!(verified, again);
    let after = reader.traffic();
    let traffic = Traffic { requests: after.requests - before.requests, bytes: after.bytes - before.bytes, ..after };
    (verified, traffic, started.elapsed())
}

#[test]
fn proofs_decide_as_the_contract_does() {
    for clears in [false, true] {
        let chain = Anvil::start();
        let contract = Contract::deploy(&chain, clears, true);
        let long = "n".repeat(100);
        let account = |i| chain.account(i);
        contract.mint(account(1), "node-0", &key(0));
        contract.mint(account(1), "node-1", &key(1));
        let revoked = contract.mint(account(2), "node-2", &key(2));
        let moved = contract.mint(account(3), "node-3", &key(3));
        let burnt = contract.mint(account(4), "node-4", &key(4));
        contract.revoke(revoked);
        contract.transfer(account(3), account(2), moved);
        contract.burn(account(4), burnt);
        contract.mint(account(4), &long, &key(6));
        contract.mint(account(3), "node-7", &"A".repeat(100));
        contract.mint(account(2), "node-8", "");
        chain.mine(1);
        let mut pairs: Vec<Pair> = (0..9).map(pair).collect();
        pairs.push((long.parse().unwrap(), pair(6).1));
        pairs.push((pair(0).0, pair(1).1));
        let by = |verify: &str| {
            let more = format!("finality = \"latest\"\nverify = \"{verify}\"");
            read(&config(contract.address, &[chain.url()], &more), &pairs).0
        };
        let (calls, proof) = (by("calls"), by("proof"));
        assert_eq!(calls, proof, "clears: {clears}");
        let granted = proof.decisions[0].iter().filter(|d| d.is_some_and(|d| d.reason.grants())).count();
        assert!(granted >= 2 && proof.unreadable.is_none(), "{proof:#?}");
    }
}

/// What docs/access-by-nft.md says about the cost.
#[test]
fn cost_of_proofs_is_bounded() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    let holder = |n: u16| alloy_primitives::Address::left_padding_from(&(0x1000 + u32::from(n)).to_be_bytes());
    contract.mint_many((0..1000).map(|n| (holder(n), pair(n).0.to_string(), key(n))));
    for count in [1, 10, 100] {
        let pairs: Vec<Pair> = (0..count).map(pair).collect();
        let by = |verify: &str| {
            let more = format!("finality = \"latest\"\nverify = \"{verify}\"\ntimeout = \"60s\"");
            read(&config(contract.address, &[chain.url()], &more), &pairs)
        };
        let (calls, by_calls, calls_took) = by("calls");
        let (proof, by_proof, proof_took) = by("proof");
        assert_eq!(calls, proof);
        eprintln!(
            "{count} peers: calls {} bytes in {} requests, {calls_took:?}; proofs {} bytes in {} requests, {proof_took:?}",
            by_calls.bytes, by_calls.requests, by_proof.bytes, by_proof.requests
        );
        assert!(by_proof.bytes < 40_000 + 60_000 * u64::from(count), "{count}: {by_proof:?}");
        assert!(by_proof.requests <= 1 + 3 * u64::from(count).div_ceil(32), "{count}: {by_proof:?}");
    }
}

//! How a node reacts to mints, revocations, transfers, reorganisations and outages.
use crate::anvil::{Anvil, Arg, Contract, encode};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use alloy_primitives::{hex, keccak256};
use serde_json::{Value, json};
use spoke_grants::ladder::Phase;
use std::sync::{Arc, Mutex};

fn key(n: u16) -> String {
    pair(n).1.to_string()
}

#[test]
fn contract_has_the_published_interface() {
    let abi: Vec<Value> = serde_json::from_str(include_str!("../../contracts/NodeAccess.abi.json")).unwrap();
    let signature = |name: &str, kind: &str| {
        let entry = abi.iter().find(|e| e["type"] == kind && e["name"] == name).unwrap_or_else(|| panic!("no {name}"));
        let types: Vec<_> = entry["inputs"].as_array().unwrap().iter().map(|i| i["type"].as_str().unwrap()).collect();
        (keccak256(format!("{name}({})", types.join(","))), entry.clone())
    };
    for (selector, name, outputs) in [
        ("eb27f948", "mintNodeAccess", vec!["uint256"]),
        ("be1ba406", "revokeNodeAccess", vec![]),
        ("6a572da6", "getNodeAccess", vec!["string", "string", "uint256", "bool"]),
        ("54698191", "hasNodeAccess", vec!["bool"]),
        ("b9244a9f", "getTokenIdByNodeId", vec!["uint256"]),
        ("9da9ca5e", "verifyAccess", vec!["bool"]),
        ("e02129d3", "getPublicKeyByOwner", vec!["string"]),
        ("9a89a18c", "getPublicKeyByTokenId", vec!["string"]),
        ("6352211e", "ownerOf", vec!["address"]),
        ("c87b56dd", "tokenURI", vec!["string"]),
        ("a843c51f", "transferContractOwnership", vec![]),
    ] {
        let (hash, entry) = signature(name, "function");
        assert_eq!(hex::encode(&hash[..4]), selector, "{name}");
        let got: Vec<_> = entry["outputs"].as_array().unwrap().iter().map(|o| o["type"].as_str().unwrap()).collect();
        assert_eq!(got, outputs, "{name}");
    }
    for (topic, name, indexed) in [
        ("9a71852b5ff3e6dcfff28eaeb177387d7be860dcf63f02bc0c74d796d373a22c", "NodeAccessGranted", vec![0, 2]),
        ("f77547477629bf8d4b78aaa6babeeb3306e56da1ca9b54caceabf24cbc922020", "NodeAccessRevoked", vec![0]),
        ("692842951e9a8bdcf099c908e8dd428dedcb5c44056d3b636cd82870c5fd12b2", "NodeAccessTransferred", vec![0, 1, 2]),
        ("a850082d2fb101274de37494dc864e9277de33c04415c7ad9db57592c60511a5", "PublicKeyUpdated", vec![0]),
        ("b150023a879fd806e3599b6ca8ee3b60f0e360ab3846d128d67ebce1a391639a", "OwnershipTransferInitiated", vec![0, 1]),
        ("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef", "Transfer", vec![0, 1, 2]),
    ] {
        let (hash, entry) = signature(name, "event");
        assert_eq!(hex::encode(hash), topic, "{name}");
        let inputs = entry["inputs"].as_array().unwrap();
        let got: Vec<_> = (0..inputs.len()).filter(|i| inputs[*i]["indexed"] == true).collect();
        assert_eq!(got, indexed, "{name}");
    }
}

#[test]
fn contract_behaves_as_published() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let (alice, bob) = (chain.account(1), chain.account(2));
    assert_eq!(contract.mint(alice, "node-0", &key(0)), 1, "token ids start at 1");
    let words = |call: &str, arguments: &[Arg<'_>]| contract.read(alice, call, arguments).unwrap();
    let one = |n: u64| format!("{n:064x}");
    let text = |s: &str| format!("{:064x}{:0<width$}", s.len(), hex::encode(s), width = s.len().div_ceil(32) * 64);
    assert_eq!(words("getTokenIdByNodeId(string)", &[Arg::Text("node-0")]), one(1));
    assert_eq!(words("getTokenIdByNodeId(string)", &[Arg::Text("node-9")]), one(0));
    assert_eq!(words("verifyAccess(address,string)", &[Arg::Address(alice), Arg::Text("node-0")]), one(1));
    assert_eq!(words("hasNodeAccess(address,string)", &[Arg::Address(bob), Arg::Text("node-0")]), one(0));
    for call in ["getPublicKeyByTokenId(uint256)", "tokenURI(uint256)"] {
        let kept = if call.starts_with('t') { String::new() } else { key(0) };
        assert_eq!(words(call, &[Arg::Number(1)]), one(32) + &text(&kept), "{call}");
    }
    assert_eq!(words("getPublicKeyByOwner(address)", &[Arg::Address(alice)]), one(32) + &text(&key(0)));
    // Node, key, time of minting and whether it is active: in this order, which is not that of the storage.
    let access = words("getNodeAccess(uint256)", &[Arg::Number(1)]);
    let block = chain.ask("eth_getBlockByNumber", json!(["latest", false]));
    let born = u64::from_str_radix(&access[128..192], 16).unwrap();
    let now = u64::from_str_radix(block["timestamp"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    assert!(born <= now && now - born < 600, "seconds: {born} at {now}");
    assert_eq!(access[192..256], one(1));
    assert_eq!(access[256..], text("node-0") + &text(&key(0)));
    // Unauthorised callers and unknown tokens are refused with OpenZeppelin's errors.
    let refused = |call: &str, arguments: &[Arg<'_>]| contract.read(alice, call, arguments).unwrap_err();
    let mint = [Arg::Address(alice), Arg::Text("x"), Arg::Text("x"), Arg::Text("")];
    assert!(refused("mintNodeAccess(address,string,string,string)", &mint).contains("0x118cdaa7"));
    assert!(refused("revokeNodeAccess(uint256)", &[Arg::Number(1)]).contains("0x118cdaa7"));
    assert!(refused("ownerOf(uint256)", &[Arg::Number(7)]).contains("0x7e273289"));
    assert!(refused("getNodeAccess(uint256)", &[Arg::Number(7)]).contains("0x7e273289"));
}

#[test]
fn contract_forgets_a_burnt_token() {
    for clears_key in [false, true] {
        let chain = Anvil::start();
        let contract = Contract::deploy(&chain, clears_key, false);
        let (alice, bob) = (chain.account(1), chain.account(2));
        let token = contract.mint(alice, "node-0", &key(0));
        chain.mine(2);
        let mut node = Node::start(config(contract.address, &[chain.url()], "finality = \"latest\""), None, 1);
        node.until_admits(0, true);
        assert!(contract.read(bob, "burn(uint256)", &[Arg::Number(token)]).is_err(), "only the holder may");
        chain.send(alice, Some(contract.address), &encode("burn(uint256)", &[Arg::Number(token)]));
        node.until_admits(0, false);
        assert_eq!(node.code(0), "NODE_NOT_FOUND");
        let empty = format!("{:064x}{:064x}", 32, 0);
        assert_eq!(contract.read(alice, "getPublicKeyByOwner(address)", &[Arg::Address(alice)]).unwrap(), empty);
        contract.mint(bob, "node-0", &key(0));
        node.until_admits(0, true);
    }
}

#[test]
fn minted_node_is_admitted_until_revoked() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let mut node = Node::start(config(contract.address, &[chain.url()], "finality = \"latest\""), None, 2);
    node.until("two denials", |r| r.rows.len() == 2 && r.rows.iter().all(|r| r.code == "NODE_NOT_FOUND"));
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    node.until_admits(0, true);
    assert!(!node.admits(1));
    contract.revoke(token);
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    let counts = node.report().counts;
    assert_eq!((counts.granted, counts.revoked), (1, 1));
}

#[test]
fn grant_waits_for_the_safe_block_revocation_does_not() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "4"]);
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(10);
    let mut node = Node::start(config(contract.address, &[chain.url()], ""), None, 1);
    node.until("a denial", |r| r.rows.iter().all(|r| r.code == "NODE_NOT_FOUND"));
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    let minted = chain.height();
    node.until("the grant is held", |r| r.rows[0].held_until == Some(minted));
    // Safe is four blocks behind; one more, because the hash is known of the block below.
    chain.mine(4);
    node.looks(3);
    assert!(!node.admits(0) && node.code(0) == "NODE_NOT_FOUND");
    chain.mine(1);
    node.until_admits(0, true);
    contract.revoke(token);
    node.until_admits(0, false);
    assert_eq!(chain.height(), minted + 6, "not at the block of the revocation");
}

#[test]
fn transfer_switches_to_the_new_holders_key() {
    for clears_key in [false, true] {
        let chain = Anvil::start();
        let contract = Contract::deploy(&chain, clears_key, false);
        let (alice, bob) = (chain.account(1), chain.account(2));
        let token = contract.mint(alice, "node-0", &key(0));
        contract.mint(bob, "node-1", &key(1));
        chain.mine(2);
        let mut node = Node::start(config(contract.address, &[chain.url()], "finality = \"latest\""), None, 2);
        node.until_admits(0, true);
        node.until_admits(1, true);
        contract.transfer(alice, bob, token);
        node.until_admits(0, false);
        assert_eq!(node.code(0), "PUBLIC_KEY_MISMATCH", "clears_key {clears_key}");
        assert!(node.admits(1), "the new holder's own node keeps its access");
        // For a holder without a key of its own, the token's key applies unless it was cleared.
        let carol = chain.account(3);
        contract.transfer(bob, carol, token);
        node.until_admits(0, !clears_key);
        node.looks(2);
        assert_eq!(node.admits(0), !clears_key, "{}", node.code(0));
    }
}

#[test]
fn revoked_node_is_readmitted_only_after_remint() {
    for remints in [false, true] {
        let chain = Anvil::start();
        let contract = Contract::deploy(&chain, false, remints);
        let token = contract.mint(chain.account(1), "node-0", &key(0));
        chain.mine(2);
        let mut node = Node::start(config(contract.address, &[chain.url()], "finality = \"latest\""), None, 1);
        node.until_admits(0, true);
        contract.revoke(token);
        node.until_admits(0, false);
        if remints {
            contract.mint(chain.account(2), "node-0", &key(0));
            node.until_admits(0, true);
        } else {
            node.looks(3);
            assert_eq!(node.code(0), "NODE_INACTIVE");
        }
    }
}

#[test]
fn reorganisation_reverts_grants_and_revocations() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let kept = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(5);
    let mut node = Node::start(config(contract.address, &[chain.url()], "finality = \"latest\""), None, 2);
    node.until_admits(0, true);
    // A grant and a revocation, both in blocks that the reorganisation drops.
    contract.mint(chain.account(2), "node-1", &key(1));
    node.until_admits(1, true);
    contract.revoke(kept);
    node.until_admits(0, false);
    chain.mine(1);
    node.looks(2);
    chain.reorganise(3);
    chain.mine(1);
    node.until_admits(1, false);
    assert_eq!(node.code(1), "NODE_NOT_FOUND");
    node.until_admits(0, true);
    assert!(node.report().counts.reorganisations >= 1);
}

#[test]
fn outage_phases_continue_across_restart() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    contract.mint(chain.account(2), "node-1", &key(1));
    chain.mine(3);
    let dir = tempfile::tempdir().unwrap();
    let settings = config(contract.address, &[chain.url()], "timeout = \"300ms\"\nstale = \"2s\"\ngrace = \"4s\"");
    let mut node = Node::start(settings.clone(), Some(dir.path()), 1);
    node.until_admits(0, true);
    chain.halt();
    node.until("unreachable", |r| r.unreachable.is_some());
    assert!(node.admits(0));
    node.until("stale", |r| r.phase == Phase::Stale);
    assert!(node.admits(0));
    node.until("grace", |r| r.phase == Phase::Grace);
    assert!(node.admits(0), "the peer was removed in grace");
    drop(node);
    let mut node = Node::start(settings, Some(dir.path()), 2);
    assert!(node.report().phase >= Phase::Grace, "the restart extended the grace: {:?}", node.report().phase);
    node.until("expired", |r| r.phase == Phase::Expired);
    node.until_admits(0, false);
    assert!(!node.admits(1));
    assert_eq!(node.code(0), "VERIFICATION_ERROR", "reported as revoked");
    chain.go_on();
    node.until_admits(0, true);
    node.until_admits(1, true);
}

#[test]
fn restart_serves_cached_grants_without_the_chain() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let dir = tempfile::tempdir().unwrap();
    let settings = config(contract.address, &[chain.url()], "timeout = \"300ms\"\nstale = \"1h\"");
    let mut node = Node::start(settings.clone(), Some(dir.path()), 1);
    node.until_admits(0, true);
    node.until("written to disk", |r| r.counts.writes > 0);
    drop(node);
    chain.halt();
    let mut node = Node::start(settings.clone(), Some(dir.path()), 1);
    node.until_admits(0, true);
    drop(node);
    // A file truncated by a power cut: the node starts, from the previous copy or with no grants.
    let file = dir.path().join("state/grants.json");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let mut node = Node::start(settings, Some(dir.path()), 1);
    node.until("running", |r| r.rows.len() == 1);
    chain.go_on();
}

#[test]
fn two_of_three_endpoints_outvote_a_false_one() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    // The first endpoint hides every event, reports a grant as denied, and a revocation as the state before it.
    let faulty = Proxy::new(chain.port());
    let first = Arc::new(Mutex::new(None::<String>));
    faulty.rule(move |_| {
        let first = first.clone();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in answer.as_array_mut().into_iter().flatten() {
                if reply["result"].is_array() {
                    reply["result"] = json!([]);
                } else if let Some(truth) = reply["result"].as_str().filter(|s| s.len() > 400) {
                    // The last bit of the last read: whether the contract grants.
                    let granted = truth.ends_with('1');
                    let mut first = first.lock().unwrap();
                    let old = first.get_or_insert_with(|| truth.to_owned());
                    reply["result"] =
                        if granted { format!("{}0", &truth[..truth.len() - 1]) } else { old.clone() }.into();
                }
            }
        }))
    });
    let (a, b) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    let urls = [faulty.url(), a.url(), b.url()];
    let mut node = Node::start(config(contract.address, &urls, "finality = \"latest\"\nquorum = 2"), None, 1);
    node.until_admits(0, true);
    // One against one is no quorum.
    b.rule(|_| ProxyAction::Hang);
    contract.revoke(token);
    node.until("no quorum", |r| r.unreachable.is_some());
    assert!(node.admits(0));
    b.honest();
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    assert!(node.report().endpoints[0].dissents > 0, "{:?}", node.report().endpoints);
}

#[test]
fn failing_endpoint_is_replaced_by_the_next() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let (first, second) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    first.rule(|_| ProxyAction::Say(429, "retry-after: 3600\r\n".into(), b"slow down".to_vec()));
    let urls = [first.url(), second.url()];
    let mut node = Node::start(config(contract.address, &urls, "finality = \"latest\""), None, 1);
    node.until_admits(0, true);
    node.looks(5);
    assert_eq!(first.requests(), 1, "Retry-After was not respected");
    assert!(node.report().unreachable.is_none());
    assert!(second.connections() <= 2, "connections are not reused: {}", second.connections());
}

#[test]
fn endpoint_on_another_chain_is_rejected() {
    let (right, wrong) = (Anvil::start(), Anvil::with(&["--chain-id", "8453"]));
    let contract = Contract::deploy(&right, false, false);
    let other = Contract::deploy(&wrong, false, false);
    assert_eq!(contract.address, other.address, "the contracts' addresses differ");
    other.mint(wrong.account(1), "node-0", &key(0));
    wrong.mine(3);
    let mut node = Node::start(config(contract.address, &[wrong.url()], "finality = \"latest\""), None, 1);
    let report = node.until("a condition", |r| r.condition.is_some() && r.unreachable.is_some());
    assert!(report.condition.as_ref().unwrap().detail.contains("on chain 8453"), "{report:?}");
    assert!(!node.admits(0));
}

#[test]
fn events_are_read_within_the_endpoints_block_limit() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let mut node = Node::start(
        config(contract.address, &[proxy.url()], "finality = \"latest\"\ntimeout = \"300ms\"\nstale = \"1h\""),
        None,
        1,
    );
    node.until_admits(0, true);
    proxy.rule(|_| ProxyAction::Hang);
    node.until("unreachable", |r| r.unreachable.is_some());
    contract.revoke(token);
    chain.mine(3000);
    // Reachable again, with a limit of 500 blocks.
    proxy.rule(|request| {
        let number = |v: &Value| v.as_str().and_then(|s| u64::from_str_radix(s.trim_start_matches("0x"), 16).ok());
        let wide = request.as_array().into_iter().flatten().any(|q| {
            q["method"] == "eth_getLogs"
                && number(&q["params"][0]["toBlock"]).unwrap_or(u64::MAX) - number(&q["params"][0]["fromBlock"]).unwrap_or(0) >= 500
        });
        if !wide {
            return ProxyAction::Pass;
        }
        let refusals: Vec<Value> = request
            .as_array()
            .into_iter()
            .flatten()
            .map(|q| json!({"jsonrpc": "2.0", "id": q["id"], "error": {"code": -32000, "message": "block range exceeds 500"}}))
            .collect();
        ProxyAction::Say(200, String::new(), Value::from(refusals).to_string().into_bytes())
    });
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    let height = chain.height();
    node.until("caught up", |r| r.height.is_some_and(|h| h >= height));
}

#[test]
fn thousand_candidates_take_at_most_six_requests() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-7", &key(7));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\npoll = \"1h\"\nfresh = \"24h\"");
    let mut node = Node::start(settings, None, 1000);
    node.until_admits(7, true);
    let report = node.until("all decided", |r| r.rows.iter().all(|r| r.code != "VERIFICATION_ERROR"));
    assert_eq!(report.admitted, 1);
    assert!(proxy.requests() <= 6, "{} requests", proxy.requests());
}

#[test]
fn revocation_in_the_newest_block_counts_at_the_first_poll() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(20);
    contract.revoke(token);
    let settings = config(contract.address, &[chain.url()], "finality = \"latest\"\npoll = \"1h\"\nfresh = \"24h\"");
    let mut node = Node::start(settings, None, 1);
    let admitted = node.watch_for(0);
    node.until("a decision", |r| r.rows[0].code == "NODE_INACTIVE");
    assert!(!admitted.seen(), "admitted by the block before");
}

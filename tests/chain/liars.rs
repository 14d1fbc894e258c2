//! One of three endpoints lies: it neither admits, removes nor holds back a peer, and is named.
use crate::anvil::{Anvil, Contract, encode};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn key(n: u16) -> String {
    pair(n).1.to_string()
}

fn replies(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    answer.as_array_mut().into_iter().flatten()
}

/// The words of a result, without `0x`.
fn words(reply: &Value, count: usize) -> Option<String> {
    let text = reply["result"].as_str()?.strip_prefix("0x")?;
    (text.len() == count * 64).then(|| text.to_owned())
}

/// A lying proxy and two honest ones, the liar first.
fn three(chain: &Anvil) -> ([Proxy; 3], Vec<String>) {
    let proxies = [0; 3].map(|_| Proxy::new(chain.port()));
    let urls = proxies.iter().map(Proxy::url).collect();
    (proxies, urls)
}

/// Fault 12.1.
#[test]
fn false_height_keeps_no_revoked_peer() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(120);
    let (proxies, urls) = three(&chain);
    let dir = tempfile::tempdir().unwrap();
    let settings = config(contract.address, &urls, "finality = \"latest\"\nquorum = 2");
    let mut node = Node::start(settings.clone(), Some(dir.path()), 1);
    node.until_admits(0, true);
    // True hashes, with a height far above the head, in every head and event.
    proxies[0].rule(|_| {
        ProxyAction::Edit(Box::new(|answer| {
            for reply in replies(answer) {
                if let Some(head) = words(reply, 4) {
                    reply["result"] = format!("0x{:064x}{}", 1u64 << 40, &head[64..]).into();
                }
                for event in reply["result"].as_array_mut().into_iter().flatten() {
                    event["blockNumber"] = format!("{:#x}", 1u64 << 40).into();
                }
            }
        }))
    });
    node.looks(3);
    contract.revoke(token);
    chain.mine(1);
    node.until_admits(0, false);
    let readmitted = node.watch_for(0);
    node.refresh();
    node.looks(5);
    drop(node);
    let mut node = Node::start(settings, Some(dir.path()), 1);
    node.looks(3);
    assert!(!readmitted.seen() && !node.admits(0) && node.code(0) == "NODE_INACTIVE", "{:#?}", node.report());
}

/// Fault 12.3.
#[test]
fn foreign_approvals_delay_no_admission() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "4"]);
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(30);
    let mut node = Node::start(config(contract.address, &[chain.url()], ""), None, 2);
    node.until("denied", |r| r.rows[0].code == "NODE_NOT_FOUND");
    let stranger = chain.account(4);
    let approve = || {
        // setApprovalForAll(operator, approved): everybody may, without a token.
        let data = encode(
            "setApprovalForAll(address,bool)",
            &[crate::anvil::Arg::Address(chain.account(3)), crate::anvil::Arg::Number(1)],
        );
        chain.send(stranger, Some(contract.address), &data);
    };
    contract.mint(chain.account(1), "node-0", &key(0));
    let verified = node.looks(1).counts.verifications;
    for _ in 0..30 {
        approve();
        node.looks(1);
        if node.admits(0) {
            break;
        }
    }
    assert!(node.admits(0), "held back by a foreign account: {:#?}", node.report());
    let cost = node.report().counts.verifications - verified;
    assert!(cost <= 12, "{cost} verifications for events of a foreign account");
}

/// Fault 12.4.
#[test]
fn final_blocks_that_stand_still_delay_no_admission() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(30);
    let (proxies, urls) = three(&chain);
    let mut node = Node::start(config(contract.address, &urls, "quorum = 2"), None, 2);
    node.until("denied", |r| r.rows.iter().all(|r| r.code == "NODE_NOT_FOUND"));
    let first = Arc::new(Mutex::new(None::<String>));
    proxies[0].rule(move |request| {
        let safe = |q: &&Value| q["params"].to_string().contains("\"safe\"");
        let ids: Vec<Value> = request.as_array().into_iter().flatten().filter(safe).map(|q| q["id"].clone()).collect();
        let first = first.clone();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer).filter(|r| ids.contains(&r["id"])) {
                let Some(head) = words(reply, 4) else { continue };
                reply["result"] = format!("0x{}", first.lock().unwrap().get_or_insert(head)).into();
            }
        }))
    });
    node.refresh();
    node.looks(2);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(20);
    node.until_admits(0, true);
}

/// Fault 12.4: an event of no known type in every answer, in the newest block.
#[test]
fn invented_events_delay_no_admission_and_name_the_liar() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(30);
    let (proxies, urls) = three(&chain);
    // The liar is the fastest, so it is asked whenever it is due.
    for honest in &proxies[1..] {
        honest.rule(|_| ProxyAction::Late(Duration::from_millis(50)));
    }
    let mut node = Node::start(config(contract.address, &urls, "quorum = 2"), None, 2);
    node.until("denied", |r| r.rows.iter().all(|r| r.code == "NODE_NOT_FOUND"));
    let address = contract.address;
    proxies[0].rule(move |_| {
        ProxyAction::Edit(Box::new(move |answer| {
            let head = replies(answer).find_map(|r| words(r, 4));
            let height = head.and_then(|h| u64::from_str_radix(&h[48..64], 16).ok()).unwrap_or(1) - 1;
            for reply in replies(answer).filter(|r| r["result"].is_array()) {
                reply["result"] = json!([{"address": address, "topics": [], "data": "0x",
                    "blockNumber": format!("{height:#x}"), "blockHash": format!("0x{:064x}", 7)}]);
            }
        }))
    });
    node.looks(3);
    contract.mint(chain.account(2), "node-1", &key(1));
    chain.mine(20);
    node.until_admits(1, true);
    let report = node.until("the liar is named", |r| r.endpoints[0].refuted.is_some());
    assert!(report.condition.as_ref().is_some_and(|c| c.detail.contains(&urls[0])), "{report:#?}");
    assert!(report.endpoints[1].refuted.is_none() && report.endpoints[2].refuted.is_none(), "{report:#?}");
}

/// Fault 12.5.
#[test]
fn other_chain_under_the_same_url_moves_no_peer() {
    let (chain, other) = (Anvil::start(), Anvil::with(&["--chain-id", "8453", "--slots-in-an-epoch", "1"]));
    let contract = Contract::deploy(&chain, false, false);
    let same = Contract::deploy(&other, false, false);
    assert_eq!(contract.address, same.address);
    contract.mint(chain.account(1), "node-0", &key(0));
    same.mint(other.account(1), "node-1", &key(1));
    chain.mine(3);
    other.mine(30);
    let proxy = Proxy::new(chain.port());
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 2);
    node.until_admits(0, true);
    let wrong = node.watch_for(1);
    // Every request is answered by the other chain.
    let port = other.port();
    proxy.rule(move |request| {
        let body = match request.as_array().map(Vec::as_slice) {
            Some([only]) => only.to_string(),
            _ => request.to_string(),
        };
        let answer = crate::anvil::post(port, &body).unwrap_or_default();
        ProxyAction::Say(200, String::new(), answer.into_bytes())
    });
    node.refresh();
    node.until("unreachable", |r| r.unreachable.is_some());
    node.looks(2);
    assert!(node.admits(0) && !wrong.seen(), "{:#?}", node.report());
    proxy.honest();
    node.refresh();
    node.until("reachable", |r| r.unreachable.is_none());
    assert!(node.admits(0) && !node.admits(1) && !wrong.seen(), "{:#?}", node.report());
}

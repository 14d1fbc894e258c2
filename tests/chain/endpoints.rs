//! Endpoints that are stuck, limited or wrong, together with correct ones.
use crate::anvil::{Anvil, Contract};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use spoke_grants::ladder::Phase;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn key(n: u16) -> String {
    pair(n).1.to_string()
}

/// Whether it is the result of a poll of the head: number, parent hash, one more hash, and the chain id.
fn is_head(reply: &Value) -> bool {
    reply["result"].as_str().is_some_and(|t| t.len() == 2 + 4 * 64)
}

fn replies(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    answer.as_array_mut().into_iter().flatten()
}

fn number(v: &Value) -> Option<u64> {
    v.as_str().and_then(|s| u64::from_str_radix(s.trim_start_matches("0x"), 16).ok())
}

/// Limits `eth_getLogs` to `most` blocks; a wider range gets 400 and a JSON-RPC error.
fn limit_log_range(proxy: &Proxy, chain: &Anvil, most: u64) {
    let port = chain.port();
    proxy.rule(move |request| {
        let wide = request.as_array().into_iter().flatten().find(|q| {
            let range = &q["params"][0];
            // A range without an end ends at the newest block.
            q["method"] == "eth_getLogs"
                && number(&range["toBlock"]).unwrap_or_else(|| crate::anvil::height(port)) + 1
                    > number(&range["fromBlock"]).unwrap_or(0) + most
        });
        match wide {
            None => ProxyAction::Pass,
            Some(q) => {
                let words = format!("you can make eth_getLogs requests with up to a {most} block range");
                let body = json!({"jsonrpc": "2.0", "id": q["id"], "error": {"code": -32600, "message": words}});
                ProxyAction::Say(400, "content-type: application/json\r\n".into(), body.to_string().into_bytes())
            }
        }
    });
}

#[test]
fn five_block_log_limit_is_respected() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    limit_log_range(&proxy, &chain, 5);
    let mut node = Node::start(config(contract.address, &[proxy.url()], "finality = \"latest\""), None, 1);
    node.until_admits(0, true);
    chain.mine(300);
    contract.revoke(token);
    chain.mine(100);
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    let height = chain.height();
    let report = node.until("caught up", |r| r.height.is_some_and(|h| h >= height));
    assert_eq!(report.counts.failed_polls, 0, "the limit counts as a failure: {report:#?}");
    chain.mine(20);
    let refused = node.looks(1).counts.failed_requests;
    chain.mine(20);
    assert_eq!(node.looks(2).counts.failed_requests, refused, "the limit was not remembered");
}

#[test]
fn retry_after_date_is_respected_on_refresh() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let (busy, other) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 09:49:37 GMT\r\n";
    busy.rule(move |_| ProxyAction::Say(503, date.into(), Vec::new()));
    let urls = [busy.url(), other.url()];
    let mut node = Node::start(config(contract.address, &urls, "finality = \"latest\""), None, 1);
    node.until_admits(0, true);
    for _ in 0..3 {
        node.refresh();
        node.looks(1);
    }
    assert_eq!(busy.requests(), 1);
}

/// An endpoint whose chain node has stopped: it returns the same head for ever, and no events.
fn freeze(proxy: &Proxy) {
    let first = Arc::new(Mutex::new(None::<Value>));
    proxy.rule(move |_| {
        let first = first.clone();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer) {
                if is_head(reply) {
                    let mut head = first.lock().unwrap();
                    reply["result"] = head.get_or_insert_with(|| reply["result"].clone()).clone();
                } else if reply["result"].is_array() {
                    reply["result"] = json!([]);
                }
            }
        }))
    });
}

#[test]
fn stuck_endpoint_is_replaced_by_the_next() {
    let chain = Anvil::with(&["--block-time", "1", "--slots-in-an-epoch", "1"]);
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let (first, second) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    let urls = [first.url(), second.url()];
    let settings = config(contract.address, &urls, "finality = \"latest\"\nstall = \"5s\"\nstale = \"1h\"");
    // The fastest endpoint is asked first.
    second.rule(|_| ProxyAction::Late(Duration::from_millis(300)));
    let mut node = Node::start(settings, None, 1);
    node.until_admits(0, true);
    freeze(&first);
    contract.revoke(token);
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    // The revocation does not wait for the verdict.
    node.until("the first endpoint counts as stuck", |r| {
        r.endpoints[0].errors > 0 && r.endpoints[1].height > r.endpoints[0].height
    });
}

#[test]
fn stuck_only_endpoint_counts_as_unreachable() {
    let chain = Anvil::with(&["--block-time", "1", "--slots-in-an-epoch", "1"]);
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\nstall = \"5s\"\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 1);
    node.until_admits(0, true);
    freeze(&proxy);
    let report = node.until("unreachable and stale", |r| r.unreachable.is_some() && r.phase == Phase::Stale);
    assert!(report.unreachable.as_ref().unwrap().reason.contains("it is stuck"), "{report:#?}");
    assert!(node.admits(0), "the peer was removed");
}

#[test]
fn false_events_from_one_of_three_change_nothing() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    // It reports new events on every poll, in blocks that no other endpoint has.
    let faulty = Proxy::new(chain.port());
    let address = contract.address;
    let heights = Arc::new(Mutex::new(1u64 << 40));
    faulty.rule(move |_| {
        let heights = heights.clone();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer).filter(|r| r["result"].is_array()) {
                let invented = (0..20).map(|n| {
                    let height = { let mut h = heights.lock().unwrap(); *h += 1; *h };
                    json!({"address": address, "topics": [], "data": "0x", "blockNumber": format!("{height:#x}"), "blockHash": format!("0x{n:064x}")})
                });
                reply["result"] = invented.collect();
            }
        }))
    });
    let (a, b) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    let urls = [faulty.url(), a.url(), b.url()];
    let settings = config(contract.address, &urls, "finality = \"latest\"\nquorum = 2\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 2);
    node.until_admits(0, true);
    node.looks(5);
    node.until("no decision in doubt", |r| r.rows[0].doubt.is_none());
    let token = contract.mint(chain.account(2), "node-1", &key(1));
    chain.mine(2);
    node.until_admits(1, true);
    contract.revoke(token);
    chain.mine(2);
    node.until_admits(1, false);
    assert!(node.admits(0) && node.report().unreachable.is_none(), "{:#?}", node.report());
}

#[test]
fn one_of_three_cannot_make_a_block_final() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "10"]);
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(30);
    // It reports its newest block as final.
    let hasty = Proxy::new(chain.port());
    hasty.rule(|_| {
        ProxyAction::Edit(Box::new(|answer| {
            let newest = replies(answer).find(|r| is_head(r)).map(|r| r["result"].clone());
            for reply in replies(answer).filter(|r| is_head(r)) {
                reply["result"] = newest.clone().unwrap_or_default();
            }
        }))
    });
    let (a, b) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    // A correct endpoint that fails at every second verification: its reports of final blocks must count all the same.
    let mut turn = 0;
    a.rule(move |request| {
        turn += 1;
        if request.to_string().len() > 3000 && turn % 2 == 0 { ProxyAction::Hang } else { ProxyAction::Pass }
    });
    let urls = [hasty.url(), a.url(), b.url()];
    let mut node = Node::start(config(contract.address, &urls, "quorum = 2"), None, 1);
    node.until("a denial", |r| r.rows[0].code == "NODE_NOT_FOUND");
    contract.mint(chain.account(1), "node-0", &key(0));
    for _ in 0..6 {
        chain.mine(1);
        node.refresh();
        node.looks(1);
        assert!(!node.admits(0), "admitted before the safe block: {:#?}", node.report());
    }
    chain.mine(10);
    node.until_admits(0, true);
}

#[test]
fn decision_reads_are_pinned_to_one_block_hash() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "4"]);
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(20);
    let proxy = Proxy::new(chain.port());
    let (pins, chains) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let (seen, chain_ids) = (pins.clone(), chains.clone());
    proxy.rule(move |request| {
        for q in request.as_array().into_iter().flatten() {
            // A call that reads the contract carries its own code; a poll of the head is much shorter.
            if q["method"] == "eth_call" && q["params"][0]["data"].as_str().is_some_and(|d| d.len() > 1000) {
                seen.lock().unwrap().push(q["params"][1].clone());
            }
            chain_ids.fetch_add(u32::from(q["method"] == "eth_chainId"), Ordering::Relaxed);
        }
        ProxyAction::Pass
    });
    let mut node = Node::start(config(contract.address, &[proxy.url()], ""), None, 3);
    node.until_admits(0, true);
    node.looks(3);
    assert_eq!(chains.load(Ordering::Relaxed), 1, "the chain id is requested once");
    let pins = pins.lock().unwrap();
    assert_eq!(pins.len(), 2, "the newest and the final block, once each for three pairs: {pins:?}");
    for pin in pins.iter() {
        assert!(pin["requireCanonical"] == true && pin["blockHash"].as_str().is_some_and(|h| h.len() == 66), "{pin}");
    }
}

#[test]
fn older_height_is_rejected_after_restart() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let dir = tempfile::tempdir().unwrap();
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\nstale = \"1h\"");
    let mut node = Node::start(settings.clone(), Some(dir.path()), 1);
    node.until_admits(0, true);
    let writes = node.looks(1).counts.writes;
    // Blocks without events.
    chain.mine(40);
    let height = chain.height();
    let report = node.until("caught up", |r| r.height.is_some_and(|h| h >= height));
    node.looks(1);
    assert_eq!(report.counts.writes, writes, "a new height alone was written to flash");
    drop(node);
    // An endpoint that is 20 blocks behind.
    proxy.rule(move |_| {
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer).filter(|r| is_head(r)) {
                let text = reply["result"].as_str().unwrap_or_default().to_owned();
                reply["result"] = format!("0x{:064x}{}", height - 20, &text[66..]).into();
            }
        }))
    });
    let mut node = Node::start(settings, Some(dir.path()), 1);
    let report = node.until("the endpoint is behind", |r| r.unreachable.is_some());
    assert!(report.unreachable.as_ref().unwrap().reason.contains("it is behind"), "{report:#?}");
    assert!(report.height.is_some_and(|h| h >= height) && node.admits(0), "{report:#?}");
    proxy.honest();
    node.until("reachable", |r| r.unreachable.is_none());
}

#[test]
fn revoked_node_is_not_readmitted() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let first = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let dir = tempfile::tempdir().unwrap();
    let settings = config(contract.address, &[chain.url()], "finality = \"latest\"");
    let mut node = Node::start(settings.clone(), Some(dir.path()), 4);
    node.until_admits(0, true);
    contract.revoke(first);
    node.until_admits(0, false);
    let readmitted = node.watch_for(0);
    for n in 1..4 {
        let token = contract.mint(chain.account(2), pair(n).0.as_str(), &key(n));
        node.until_admits(n, true);
        contract.revoke(token);
        node.until_admits(n, false);
    }
    // Neither a reorganisation that keeps the revocation nor a restart readmits it.
    chain.mine(5);
    node.looks(2);
    chain.reorganise(3);
    chain.mine(1);
    node.until("a reorganisation", |r| r.counts.reorganisations > 0);
    node.looks(2);
    assert!(!readmitted.seen(), "admitted in between");
    drop(node);
    let mut node = Node::start(settings, Some(dir.path()), 4);
    node.looks(2);
    assert!(!node.admits(0) && node.code(0) == "NODE_INACTIVE");
}

#[test]
fn reorganisation_is_handled_after_failed_polls() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(5);
    let proxy = Proxy::new(chain.port());
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 1);
    node.until("a denial", |r| r.rows[0].code == "NODE_NOT_FOUND");
    contract.mint(chain.account(1), "node-0", &key(0));
    node.until_admits(0, true);
    // Several known blocks, so that the search for the common ancestor has several steps.
    for _ in 0..3 {
        chain.mine(1);
        let height = chain.height();
        node.until("block observed", |r| r.height.is_some_and(|h| h >= height));
    }
    // The connection breaks when the search requests its first blocks.
    let mut breaks = 2;
    proxy.rule(move |request| {
        let walks = request.to_string().contains("eth_getBlockByNumber");
        breaks -= u32::from(walks && breaks > 0);
        if walks && breaks > 0 { ProxyAction::Hang } else { ProxyAction::Pass }
    });
    chain.reorganise(5);
    chain.mine(1);
    node.until_admits(0, false);
    let report = node.report();
    assert!(report.counts.failed_polls > 0 && report.counts.reorganisations == 1, "{report:#?}");
    assert_eq!(node.code(0), "NODE_NOT_FOUND");
}

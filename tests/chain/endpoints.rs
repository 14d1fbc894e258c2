//! Endpoints that are slow, stuck, stingy or alone with their story, beside honest ones.
use crate::anvil::{Anvil, Contract};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use spoke_grants::ladder::Phase;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

fn key(n: u16) -> String {
    pair(n).1.to_string()
}

/// Whether it is the answer to a look: number, parent and one more hash.
fn is_head(reply: &Value) -> bool {
    reply["result"].as_str().is_some_and(|t| t.len() == 2 + 3 * 64)
}

fn replies(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    answer.as_array_mut().into_iter().flatten()
}

fn number(v: &Value) -> Option<u64> {
    v.as_str().and_then(|s| u64::from_str_radix(s.trim_start_matches("0x"), 16).ok())
}

/// Makes an endpoint give no more than `most` blocks of events at once; it says so with the status of a bad request.
fn stingy(proxy: &Proxy, chain: &Anvil, most: u64) {
    let port = chain.port();
    proxy.rule(move |asked| {
        let wide = asked.as_array().into_iter().flatten().find(|q| {
            let range = &q["params"][0];
            // Without an end it is the newest block.
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
    stingy(&proxy, &chain, 5);
    let mut node = Node::start(config(contract.address, &[proxy.url()], "finality = \"latest\""), None, 1);
    node.until_admits(0, true);
    chain.mine(300);
    contract.revoke(token);
    chain.mine(100);
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    let height = chain.height();
    let report = node.until("it caught up", |r| r.height.is_some_and(|h| h >= height));
    assert_eq!(report.counts.failed_polls, 0, "a limit is no failure: {report:#?}");
    // And goes on without a refusal.
    chain.mine(20);
    let refused = node.looks(1).counts.failed_requests;
    chain.mine(20);
    assert_eq!(node.looks(2).counts.failed_requests, refused, "it has learnt");
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

/// An endpoint whose node has stopped: it tells the block it was at for ever, and no event.
fn stuck(proxy: &Proxy) {
    let first = Arc::new(Mutex::new(None::<Value>));
    proxy.rule(move |_| {
        let first = first.clone();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer) {
                if is_head(reply) {
                    let mut told = first.lock().unwrap();
                    reply["result"] = told.get_or_insert_with(|| reply["result"].clone()).clone();
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
    let mut node = Node::start(settings, None, 1);
    node.until_admits(0, true);
    stuck(&first);
    contract.revoke(token);
    node.until_admits(0, false);
    assert_eq!(node.code(0), "NODE_INACTIVE");
    let report = node.report();
    assert!(report.endpoints[0].errors > 0 && report.endpoints[1].height > report.endpoints[0].height, "{report:#?}");
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
    stuck(&proxy);
    let report = node.until("it is no word of the chain", |r| r.unreachable.is_some() && r.phase == Phase::Stale);
    assert!(report.unreachable.as_ref().unwrap().reason.contains("it is stuck"), "{report:#?}");
    assert!(node.admits(0), "and takes nobody away");
}

#[test]
fn false_events_from_one_of_three_change_nothing() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    // It tells of everything having changed, again and again, in blocks that nobody else has.
    let liar = Proxy::new(chain.port());
    let address = contract.address;
    let heights = Arc::new(Mutex::new(1u64 << 40));
    liar.rule(move |_| {
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
    let urls = [liar.url(), a.url(), b.url()];
    let settings = config(contract.address, &urls, "finality = \"latest\"\nquorum = 2\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 2);
    node.until_admits(0, true);
    node.looks(5);
    node.until("nobody stays in doubt", |r| r.rows[0].doubt.is_none());
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
    // Whatever it has is final, it says, and it has the newest.
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
    // The honest ones fail at what the node verifies, now and then: only what they say of final blocks counts anyway.
    let mut turn = 0;
    a.rule(move |asked| {
        turn += 1;
        if asked.to_string().len() > 3000 && turn % 2 == 0 { ProxyAction::Hang } else { ProxyAction::Pass }
    });
    let urls = [hasty.url(), a.url(), b.url()];
    let mut node = Node::start(config(contract.address, &urls, "quorum = 2"), None, 1);
    node.until("a denial", |r| r.rows[0].code == "NODE_NOT_FOUND");
    contract.mint(chain.account(1), "node-0", &key(0));
    for _ in 0..6 {
        chain.mine(1);
        node.refresh();
        node.looks(1);
        assert!(!node.admits(0), "safe is ten blocks behind: {:#?}", node.report());
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
    let (seen, told) = (pins.clone(), chains.clone());
    proxy.rule(move |asked| {
        for q in asked.as_array().into_iter().flatten() {
            // What reads the contract carries its code along; a look is much shorter.
            if q["method"] == "eth_call" && q["params"][0]["data"].as_str().is_some_and(|d| d.len() > 1000) {
                seen.lock().unwrap().push(q["params"][1].clone());
            }
            told.fetch_add(u32::from(q["method"] == "eth_chainId"), Ordering::Relaxed);
        }
        ProxyAction::Pass
    });
    let mut node = Node::start(config(contract.address, &[proxy.url()], ""), None, 3);
    node.until_admits(0, true);
    node.looks(3);
    assert_eq!(chains.load(Ordering::Relaxed), 1, "its chain is asked for once");
    let pins = pins.lock().unwrap();
    assert_eq!(pins.len(), 2, "the newest and the final one, once each for all three: {pins:?}");
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
    // Nothing happens to anybody, and the chain goes on.
    chain.mine(40);
    let height = chain.height();
    let report = node.until("it followed", |r| r.height.is_some_and(|h| h >= height));
    node.looks(1);
    assert_eq!(report.counts.writes, writes, "which is not worth a write to flash");
    drop(node);
    // The endpoint is now one that has only half of that.
    proxy.rule(move |_| {
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer).filter(|r| is_head(r)) {
                let text = reply["result"].as_str().unwrap_or_default().to_owned();
                reply["result"] = format!("0x{:064x}{}", height - 20, &text[66..]).into();
            }
        }))
    });
    let mut node = Node::start(settings, Some(dir.path()), 1);
    let report = node.until("it is behind", |r| r.unreachable.is_some());
    assert!(report.unreachable.as_ref().unwrap().reason.contains("it is behind"), "{report:#?}");
    assert!(report.height.is_some_and(|h| h >= height) && node.admits(0), "{report:#?}");
    proxy.honest();
    node.until("heard", |r| r.unreachable.is_none());
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
    let back = node.watch_for(0);
    for n in 1..4 {
        let token = contract.mint(chain.account(2), pair(n).0.as_str(), &key(n));
        node.until_admits(n, true);
        contract.revoke(token);
        node.until_admits(n, false);
    }
    // Nor does a reorganisation that leaves the revocation alone, or a restart.
    chain.mine(5);
    node.looks(2);
    chain.reorganise(3);
    chain.mine(1);
    node.until("the other chain", |r| r.counts.reorganisations > 0);
    node.looks(2);
    assert!(!back.seen(), "it was admitted in between");
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
    // More blocks, seen one by one, so that there is something to walk back over.
    for _ in 0..3 {
        chain.mine(1);
        let height = chain.height();
        node.until("it saw the block", |r| r.height.is_some_and(|h| h >= height));
    }
    // The connection breaks when the walk back asks for its first blocks.
    let mut breaks = 2;
    proxy.rule(move |asked| {
        let walks = asked.to_string().contains("eth_getBlockByNumber");
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

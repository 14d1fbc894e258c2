//! Providers with limits and manners of their own: each works, and no limit is learnt from what is none.
use crate::anvil::{Anvil, Contract};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn key(n: u16) -> String {
    pair(n).1.to_string()
}

fn replies(answer: &mut Value) -> impl Iterator<Item = &mut Value> {
    answer.as_array_mut().into_iter().flatten()
}

fn error(id: &Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

#[test]
fn requests_carry_user_agent_and_accept() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let proxy = Proxy::new(chain.port());
    let mut node = Node::start(config(contract.address, &[proxy.url()], "finality = \"latest\""), None, 1);
    node.until("a denial", |r| r.rows[0].code == "NODE_NOT_FOUND");
    let head = proxy.head();
    let agent = format!("user-agent: spoke/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert!(head.contains(&agent) && head.contains("accept: application/json\r\n"), "{head}");
}

/// How a provider refuses a batch with more than its limit.
type Refuses = fn(&Value) -> ProxyAction;

#[test]
fn providers_with_small_batches_are_usable() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(20);
    let object: Refuses = |_| {
        let body = error(&Value::Null, -32600, "batch requests are not supported");
        ProxyAction::Say(200, String::new(), body.to_string().into_bytes())
    };
    let status: Refuses = |_| ProxyAction::Say(400, String::new(), b"<html>Bad Request</html>".to_vec());
    let each: Refuses = |request| {
        let all: Vec<Value> = request
            .as_array()
            .into_iter()
            .flatten()
            .map(|q| error(&q["id"], -32000, "batch size exceeded, max 3"))
            .collect();
        ProxyAction::Say(200, String::new(), Value::from(all).to_string().into_bytes())
    };
    let cut: Refuses = |_| ProxyAction::Edit(Box::new(|answer| answer.as_array_mut().unwrap().truncate(2)));
    for (most, refuses) in [(1, object), (1, status), (2, cut), (3, each)] {
        let proxy = Proxy::new(chain.port());
        let refused = Arc::new(AtomicU64::new(0));
        let count = refused.clone();
        proxy.rule(move |request| {
            if request.as_array().is_some_and(|calls| calls.len() > most) {
                count.fetch_add(1, Ordering::Relaxed);
                return refuses(request);
            }
            ProxyAction::Pass
        });
        let mut node = Node::start(config(contract.address, &[proxy.url()], ""), None, 3);
        node.until_admits(0, true);
        let learnt = refused.load(Ordering::Relaxed);
        assert!((1..=8).contains(&learnt), "{most}: {learnt} refused requests");
        let report = node.looks(5);
        assert_eq!(refused.load(Ordering::Relaxed), learnt, "{most}: the limit is not remembered");
        assert_eq!(report.counts.failed_polls, 0, "{most}: {report:#?}");
    }
    // As configured: no array at all.
    let proxy = Proxy::new(chain.port());
    let arrays = Arc::new(AtomicBool::new(false));
    let seen = arrays.clone();
    proxy.rule(move |request| {
        seen.fetch_or(request.as_array().is_some_and(|calls| calls.len() > 1), Ordering::Relaxed);
        ProxyAction::Pass
    });
    let mut node = Node::start(config(contract.address, &[proxy.url()], "batch = 1"), None, 3);
    node.until_admits(0, true);
    assert!(!arrays.load(Ordering::Relaxed), "an array although batch = 1");
}

#[test]
fn unknown_final_tag_delays_admissions_only() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(20);
    let proxy = Proxy::new(chain.port());
    let mut node = Node::start(config(contract.address, &[proxy.url()], "stale = \"1h\""), None, 2);
    node.until_admits(0, true);
    proxy.rule(|request| {
        let asks = |q: &Value| q["params"].to_string().contains("safe");
        let ids: Vec<Value> =
            request.as_array().into_iter().flatten().filter(|q| asks(q)).map(|q| q["id"].clone()).collect();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in replies(answer).filter(|r| ids.contains(&r["id"])) {
                *reply = error(&reply["id"], -39001, "unknown block");
            }
        }))
    });
    contract.mint(chain.account(2), "node-1", &key(1));
    chain.mine(20);
    let condition =
        node.until("a condition", |r| r.condition.as_ref().is_some_and(|c| c.detail.contains("grants.finality")));
    assert!(condition.unreachable.is_none() && node.admits(0) && !node.admits(1), "{condition:#?}");
    node.looks(10);
    assert!(node.admits(0) && node.report().unreachable.is_none(), "{:#?}", node.report());
    contract.revoke(token);
    node.until_admits(0, false);
    proxy.honest();
    node.until_admits(1, true);
}

#[test]
fn passing_errors_teach_no_limit() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 1);
    node.until_admits(0, true);
    node.looks(2);
    for (code, text) in [
        (-32602, "block range extends beyond current head block"),
        (-32602, "invalid block range params"),
        (-32005, "project ID request rate exceeded"),
        (-32000, "exceeded the RPS limit"),
    ] {
        let failed = node.report().counts.failed_requests;
        let mut left = 2;
        proxy.rule(move |request| {
            let logs = |q: &&Value| q["method"] == "eth_getLogs" && left > 0;
            let id = request.as_array().into_iter().flatten().find(logs).map(|q| q["id"].clone());
            left -= u32::from(id.is_some());
            ProxyAction::Edit(Box::new(move |answer| {
                for reply in replies(answer).filter(|r| Some(&r["id"]) == id.as_ref()) {
                    *reply = error(&reply["id"], code, text);
                }
            }))
        });
        node.until(text, |r| r.counts.failed_requests > failed);
        node.until("polls again", |r| r.unreachable.is_none() && r.counts.failed_requests >= failed + 2);
        // Events come with the position, in one request.
        proxy.honest();
        node.looks(2);
        let before = proxy.requests();
        let polls = node.report().counts.polls;
        let after = node.looks(5).counts.polls;
        assert!(proxy.requests() - before <= 2 * (after - polls), "{text}: more requests than before");
    }
    contract.revoke(token);
    node.until_admits(0, false);
}

#[test]
fn null_for_no_events_is_an_empty_list() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    proxy.rule(|_| {
        ProxyAction::Edit(Box::new(|answer| {
            for reply in replies(answer).filter(|r| r["result"].as_array().is_some_and(Vec::is_empty)) {
                reply["result"] = Value::Null;
            }
        }))
    });
    let mut node = Node::start(config(contract.address, &[proxy.url()], "finality = \"latest\""), None, 1);
    node.until_admits(0, true);
    chain.mine(20);
    assert_eq!(node.looks(3).counts.failed_polls, 0);
}

#[test]
fn restarted_development_chain_is_followed() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &key(0));
    chain.mine(300);
    let (port, address) = (chain.port(), contract.address);
    let settings = config(address, &[chain.url()], "finality = \"latest\"\nstale = \"1h\"\ntimeout = \"1s\"");
    let mut node = Node::start(settings, None, 2);
    node.until_admits(0, true);
    node.looks(3);
    drop(chain);
    node.until("unreachable", |r| r.unreachable.is_some());
    // The same contract on a new chain with fewer blocks, where the other node has the token.
    let chain = Anvil::at(port);
    let contract = Contract::deploy(&chain, false, false);
    assert_eq!(contract.address, address);
    contract.mint(chain.account(1), "node-1", &key(1));
    chain.mine(3);
    node.until_admits(1, true);
    node.until_admits(0, false);
    assert!(node.report().head.is_some_and(|h| h < 100), "{:#?}", node.report());
}

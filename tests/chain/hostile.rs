//! Endpoints with invalid responses: each counts as no response, never as a grant or a revocation, and none panics.
use crate::anvil::{Anvil, Contract};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use spoke_grants::ladder::Phase;
use std::time::Duration;

type Rule = fn(&Value) -> ProxyAction;

fn respond(body: &[u8]) -> ProxyAction {
    ProxyAction::Say(200, "content-type: application/json\r\n".into(), body.to_vec())
}

fn edit(change: fn(&mut Value)) -> ProxyAction {
    ProxyAction::Edit(Box::new(change))
}

/// 64 MiB of spaces, compressed with gzip.
fn gzip_bomb() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &vec![b' '; 64 << 20]).unwrap();
    encoder.finish().unwrap()
}

const RULES: &[(&str, Rule)] = &[
    ("nothing", |_| respond(b"")),
    ("not JSON", |_| respond(b"<html>502</html>")),
    ("not UTF-8", |_| respond(b"[{\"id\":1,\"result\":\"\xff\xfe\"}]")),
    ("an empty batch", |_| respond(b"[]")),
    ("one object", |_| respond(br#"{"jsonrpc":"2.0","id":1,"result":"0x1"}"#)),
    ("an error for all", |_| respond(br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no batches"}}"#)),
    ("a part of the batch", |_| edit(|a| drop(a.as_array_mut().unwrap().pop()))),
    ("every id incremented", |_| {
        edit(|a| a.as_array_mut().unwrap().iter_mut().for_each(|r| r["id"] = json!(r["id"].as_u64().unwrap() + 1)))
    }),
    ("every id the same", |_| edit(|a| a.as_array_mut().unwrap().iter_mut().for_each(|r| r["id"] = json!(2)))),
    ("ids as text", |_| {
        edit(|a| a.as_array_mut().unwrap().iter_mut().for_each(|r| r["id"] = json!(r["id"].to_string())))
    }),
    ("no results", |_| edit(|a| a.as_array_mut().unwrap().iter_mut().for_each(|r| r["result"] = Value::Null))),
    ("numbers for text", |_| edit(|a| a.as_array_mut().unwrap().iter_mut().for_each(|r| r["result"] = json!(1e300)))),
    ("all bits set", |_| {
        edit(|a| {
            a.as_array_mut().unwrap().iter_mut().filter(|r| r["result"].is_string()).for_each(|r| {
                let n = r["result"].as_str().unwrap().len() - 2;
                r["result"] = format!("0x{}", "f".repeat(n)).into();
            })
        })
    }),
    ("half of each result", |_| {
        edit(|a| {
            a.as_array_mut().unwrap().iter_mut().filter(|r| r["result"].is_string()).for_each(|r| {
                let text = r["result"].as_str().unwrap().to_owned();
                r["result"] = text[..2 + (text.len() - 2) / 4 * 2].into();
            })
        })
    }),
    ("a huge text", |_| respond(format!("[{{\"id\":1,\"result\":\"0x{}\"}}]", "0".repeat(4 << 20)).as_bytes())),
    ("a header bomb", |_| ProxyAction::Say(200, format!("x: {}\r\n", "y".repeat(1 << 20)), b"[]".to_vec())),
    ("a million nested arrays", |_| respond("[".repeat(1 << 20).as_bytes())),
    ("a redirect", |_| ProxyAction::Say(307, "location: http://127.0.0.1:1/\r\n".into(), Vec::new())),
    ("500", |_| ProxyAction::Say(500, String::new(), b"[]".to_vec())),
    ("401", |_| ProxyAction::Say(401, String::new(), Vec::new())),
    ("a gzip bomb", |_| ProxyAction::Say(200, "content-encoding: gzip\r\n".into(), gzip_bomb())),
    ("invalid gzip", |_| ProxyAction::Say(200, "content-encoding: gzip\r\n".into(), b"[]".to_vec())),
    ("an error for each call", |_| {
        edit(|a| {
            a.as_array_mut().unwrap().iter_mut().for_each(|r| {
        *r = json!({"id": r["id"], "error": {"code": 3, "message": "execution reverted", "data": "0x08c379a0"}});
    })
        })
    }),
    ("a rate limit in the body", |_| {
        edit(|a| {
            a.as_array_mut().unwrap().iter_mut().for_each(|r| {
                *r = json!({"id": r["id"], "error": {"code": 429, "message": "too many requests"}});
            })
        })
    }),
    ("events of another contract", |_| {
        edit(|a| {
            a.as_array_mut().unwrap().iter_mut().filter(|r| r["result"].is_array()).for_each(|r| {
        r["result"] = json!([{"address": "0x0000000000000000000000000000000000000001", "topics": [], "data": "0x", "blockNumber": "0x1", "blockHash": format!("0x{}", "1".repeat(64))}]);
    })
        })
    }),
    ("an older height", |_| {
        edit(|a| {
            let r = &mut a.as_array_mut().unwrap()[0];
            if let Some(t) = r["result"].as_str().filter(|t| t.len() == 258) {
                r["result"] = format!("0x{:064x}{}", 1, &t[66..]).into();
            }
        })
    }),
    ("too late", |_| ProxyAction::Late(Duration::from_millis(1500))),
    ("a byte at a time", |_| ProxyAction::Trickle),
    ("a closed connection", |_| ProxyAction::Hang),
];

#[test]
fn bad_response_neither_grants_nor_revokes() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &pair(0).1.to_string());
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let settings = config(
        contract.address,
        &[proxy.url()],
        "finality = \"latest\"\ntimeout = \"1s\"\nstale = \"1h\"\npositive_ttl = \"10s\"",
    );
    let mut node = Node::start(settings, None, 2);
    node.until_admits(0, true);
    node.until("the other pair is denied", |r| r.rows[1].code == "NODE_NOT_FOUND");
    for (name, rule) in RULES {
        proxy.honest();
        node.refresh();
        node.until("reachable and decided", |r| {
            r.unreachable.is_none() && r.rows.iter().all(|r| r.doubt.is_none() && r.held_until.is_none())
        });
        let before = node.report();
        eprintln!("{name}");
        proxy.rule(rule);
        // The second refresh verifies everything again after a failure.
        for _ in 0..2 {
            node.refresh();
            node.looks(1);
        }
        let after = node.until(name, |r| r.counts.failed_polls > before.counts.failed_polls);
        assert!(node.admits(0) && !node.admits(1), "{name}: the admitted pairs changed");
        assert_eq!(after.counts.decisions, before.counts.decisions, "{name}");
        assert_eq!(after.rows[1].code, "NODE_NOT_FOUND", "{name}: the denial changed");
    }
}

#[test]
fn redirect_to_another_url_is_not_followed() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &pair(0).1.to_string());
    chain.mine(3);
    let (proxy, target) = (Proxy::new(chain.port()), Proxy::new(chain.port()));
    let url = target.url();
    proxy.rule(move |_| ProxyAction::Say(308, format!("location: {url}\r\n"), Vec::new()));
    let mut node = Node::start(config(contract.address, &[proxy.url()], "finality = \"latest\""), None, 1);
    let report = node.until("unreachable", |r| r.unreachable.is_some());
    assert!(report.unreachable.as_ref().unwrap().reason.contains("it redirects to another URL"), "{report:?}");
    assert!(!node.admits(0) && target.connections() == 0, "the redirect was followed");
}

#[test]
fn wiped_chain_revokes_no_peer() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &pair(0).1.to_string());
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"\nstale = \"1h\"\ntimeout = \"1s\"");
    let mut node = Node::start(settings, None, 1);
    node.until_admits(0, true);
    // The process has ended: no listener on the port.
    let port = chain.port();
    drop(chain);
    let report = node.until("unreachable", |r| r.unreachable.is_some());
    assert!(report.unreachable.as_ref().unwrap().reason.contains("cannot be reached"), "{report:?}");
    // An empty chain on the same port, first with fewer and then with more blocks than before.
    let empty = Anvil::at(port);
    for blocks in [0, 50, 1000] {
        if blocks > 0 {
            empty.mine(blocks);
        }
        node.refresh();
        node.looks(2);
        assert!(node.admits(0) && node.code(0) == "ACCESS_GRANTED", "{blocks}: {:#?}", node.report());
    }
    assert!(node.report().counts.revoked == 0);
}

#[test]
fn unreadable_contract_removes_no_peer() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let token = contract.mint(chain.account(1), "node-0", &pair(0).1.to_string());
    chain.mine(3);
    let good = chain.ask("eth_getCode", json!([contract.address.to_string(), "latest"]));
    let settings = config(contract.address, &[chain.url()], "finality = \"latest\"\nstale = \"1h\"");
    let mut node = Node::start(settings, None, 2);
    node.until_admits(0, true);
    node.until("the other pair is denied", |r| r.rows[1].code == "NODE_NOT_FOUND");
    let removed = node.report().counts.revoked;
    for (what, code, words) in [
        ("gone", "0x", "no contract at this address"),
        ("reverting", "0x60006000fd", "refused the read"),
        ("returning zeros", "0x60206000f3", "no access contract"),
    ] {
        chain.ask("anvil_setCode", json!([contract.address.to_string(), code]));
        chain.mine(2);
        node.refresh();
        let report = node.until(what, |r| r.unreachable.as_ref().is_some_and(|u| u.contract));
        assert!(report.unreachable.as_ref().unwrap().reason.contains(words), "{what}: {report:#?}");
        node.until("the ladder runs", |r| r.phase == Phase::Stale);
        assert!(node.admits(0) && node.report().counts.revoked == removed, "{what}: a peer was removed");
        chain.ask("anvil_setCode", json!([contract.address.to_string(), good]));
        chain.mine(2);
        node.until("readable", |r| r.unreachable.is_none() && r.phase == Phase::Fresh);
    }
    contract.revoke(token);
    chain.mine(1);
    node.until_admits(0, false);
}

#[test]
fn out_of_order_responses_are_accepted() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &pair(0).1.to_string());
    chain.mine(3);
    let proxy = Proxy::new(chain.port());
    proxy.rule(|_| edit(|a| a.as_array_mut().unwrap().reverse()));
    let settings = config(contract.address, &[proxy.url()], "finality = \"latest\"");
    let mut node = Node::start(settings, None, 100);
    node.until_admits(0, true);
}

//! Random events on the chain, at one of three endpoints and at the node: after each, the node's decisions equal those
//! of the contract.
use crate::anvil::{Anvil, Contract};
use crate::node::{Node, config, pair};
use crate::proxy::{Proxy, ProxyAction};
use serde_json::json;
use spoke_chain::reader::ChainReader;
use spoke_grants::jsonrpc::At;
use spoke_grants::policy::Pair;
use spoke_sys::clock::SystemClock;
use spoke_sys::rpc::Http;
use std::time::Duration;

const STEPS: u32 = 40;
const NODES: u16 = 6;

/// A small generator, so that a run can be repeated: `SPOKE_TEST_WALK` is its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // Knuth's MMIX LCG; its low bits have short periods and are dropped.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Makes an endpoint faulty in one of five ways.
fn inject_fault(proxy: &Proxy, how: u64) -> &'static str {
    match how {
        0 => {
            proxy.rule(|_| ProxyAction::Hang);
            "closes connections"
        }
        1 => {
            proxy.rule(|_| ProxyAction::Say(500, String::new(), Vec::new()));
            "returns 500"
        }
        2 => {
            proxy.rule(|_| ProxyAction::Late(Duration::from_millis(400)));
            "is slow"
        }
        3 => {
            proxy.rule(|_| {
                ProxyAction::Edit(Box::new(|answer| {
                    for reply in answer.as_array_mut().into_iter().flatten().filter(|r| r["result"].is_array()) {
                        reply["result"] = json!([]);
                    }
                }))
            });
            "hides events"
        }
        _ => {
            // Inverts the last digit of the reads: whether the contract grants.
            proxy.rule(|_| {
                ProxyAction::Edit(Box::new(|answer| {
                    for reply in answer.as_array_mut().into_iter().flatten() {
                        if let Some(text) = reply["result"].as_str().filter(|t| t.len() > 400) {
                            let inverted = if text.ends_with('1') { '0' } else { '1' };
                            reply["result"] = format!("{}{inverted}", &text[..text.len() - 1]).into();
                        }
                    }
                }))
            });
            "inverts grants"
        }
    }
}

#[test]
fn node_follows_the_contract_through_random_faults() {
    let start = std::env::var("SPOKE_TEST_WALK").ok().and_then(|s| s.parse().ok()).unwrap_or(20_240_229);
    let mut random = Random(start);
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    chain.mine(10);
    let proxies = [(); 3].map(|()| Proxy::new(chain.port()));
    let urls = proxies.each_ref().map(Proxy::url);
    let more = "finality = \"latest\"\nquorum = 2\ntimeout = \"1s\"\nstale = \"1h\"";
    let settings = config(contract.address, &urls, more);
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(settings.clone(), Some(dir.path()), NODES);
    let pairs: Vec<Pair> = (0..NODES).map(pair).collect();

    // The contract's decisions, read from the chain directly.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let direct = config(contract.address, &[chain.url()], "finality = \"latest\"");
    let mut reader = ChainReader::new(Http::new(&direct).unwrap(), SystemClock, direct.clone());
    let mut truth = || -> Vec<String> {
        let pin = runtime.block_on(reader.find_block(At::Latest)).unwrap().unwrap();
        let decided = runtime.block_on(reader.verify(pin, &pairs)).unwrap().decisions.remove(0);
        decided.into_iter().map(|d| d.unwrap().reason.code().to_owned()).collect()
    };

    let mut live: Vec<(u64, u16, usize)> = Vec::new();
    for step in 0..STEPS {
        let n = u16::try_from(random.below(u64::from(NODES))).unwrap();
        let what = match random.below(8) {
            0..=2 if live.iter().all(|(_, m, _)| *m != n) => {
                let to = usize::try_from(1 + random.below(4)).unwrap();
                live.push((contract.mint(chain.account(to), pair(n).0.as_str(), &pair(n).1.to_string()), n, to));
                format!("node-{n} is minted to {to}")
            }
            0..=3 if !live.is_empty() => {
                let (token, n, _) = live.swap_remove(usize::try_from(random.below(live.len() as u64)).unwrap());
                contract.revoke(token);
                format!("node-{n} is revoked")
            }
            4 if !live.is_empty() => {
                let i = usize::try_from(random.below(live.len() as u64)).unwrap();
                let (token, n, from) = live[i];
                live[i].2 = 1 + from % 4;
                contract.transfer(chain.account(from), chain.account(live[i].2), token);
                format!("node-{n} is transferred")
            }
            5 => {
                let (which, how) = (random.below(3), random.below(5));
                proxies.iter().for_each(Proxy::honest);
                format!("endpoint {which} {}", inject_fault(&proxies[usize::try_from(which).unwrap()], how))
            }
            6 => {
                drop(node);
                node = Node::start(settings.clone(), Some(dir.path()), NODES);
                "the node restarts".to_owned()
            }
            _ => {
                let blocks = 1 + random.below(30);
                chain.mine(blocks);
                format!("{blocks} blocks are mined")
            }
        };
        let wanted = truth();
        eprintln!("{step}: {what}: {}", wanted.iter().filter(|c| *c == "ACCESS_GRANTED").count());
        node.until(&format!("seed {start}, step {step}: {what}: {wanted:?}"), |r| {
            let codes: Vec<&str> = r.rows.iter().map(|row| &*row.code).collect();
            codes == wanted && r.rows.iter().all(|row| row.admitted == (row.code == "ACCESS_GRANTED"))
        });
    }
    assert!(node.report().counts.reorganisations == 0, "a reorganisation was detected without one");
}

//! `spoke grants verify` and `spoke doctor` against a local chain.
use crate::anvil::{Anvil, CHAIN_ID, Contract};
use crate::node::pair;
use crate::proxy::{Proxy, ProxyAction};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `spoke` with a `[grants]` section of these endpoints.
fn spoke(contract: &str, urls: &[String], more: &str, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().display(), dir.path().join("spoke.toml"));
    let text = format!(
        "[node]\nstate_dir = \"{path}/state\"\nruntime_dir = \"{path}/run\"\n[grants]\ncontract = \"{contract}\"\nchain_id = {CHAIN_ID}\nendpoints = {urls:?}\n{more}\n[[interface]]\nname = \"wg0\"\n"
    );
    std::fs::write(&file, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_spoke")).arg("--config").arg(&file).args(args).output().unwrap()
}

fn output(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

#[test]
fn verify_reads_the_current_or_a_given_block() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let contract = Contract::deploy(&chain, false, false);
    chain.mine(5);
    let before = chain.height();
    let (node, key) = (pair(0).0.to_string(), pair(0).1.to_string());
    let token = contract.mint(chain.account(1), &node, &key);
    let (address, urls) = (contract.address.to_string(), [chain.url()]);
    let verify = |more: &[&str]| spoke(&address, &urls, "", &[&["grants", "verify", &node, &key], more].concat());
    let o = verify(&[]);
    // Granted in the newest block only: not a grant before the final block has it.
    assert_eq!(o.status.code(), Some(1), "{}", output(&o));
    assert!(output(&o).contains("ACCESS_GRANTED") && output(&o).contains("NODE_NOT_FOUND"), "{}", output(&o));
    chain.mine(5);
    let o = verify(&[]);
    assert_eq!(o.status.code(), Some(0), "{}", output(&o));
    let text = output(&o);
    assert!(text.lines().count() == 3 && text.contains("newest") && text.contains("final"), "{text}");
    assert!(text.contains("by      calls, quorum 1 of 1"), "{text}");
    assert!(text.contains("token 1") && text.contains(&chain.account(1).to_string()), "{text}");
    contract.revoke(token);
    let o = verify(&[]);
    assert!(o.status.code() == Some(1) && output(&o).contains("NODE_INACTIVE"), "{}", output(&o));
    // At blocks of the past.
    let o = verify(&["--block", &before.to_string()]);
    assert!(o.status.code() == Some(1) && output(&o).contains("NODE_NOT_FOUND"), "{}", output(&o));
    let o = verify(&["--block", &(before + 1).to_string()]);
    assert!(o.status.code() == Some(0) && output(&o).contains("ACCESS_GRANTED"), "{}", output(&o));
    let o = verify(&["--block", "1000000"]);
    assert!(o.status.code() == Some(1) && output(&o).contains("no endpoint has block 1000000"), "{}", output(&o));
    // Another key.
    let other = pair(1).1.to_string();
    let o = spoke(&address, &urls, "", &["grants", "verify", &node, &other, "--block", &(before + 1).to_string()]);
    assert!(o.status.code() == Some(1) && output(&o).contains("PUBLIC_KEY_MISMATCH"), "{}", output(&o));
    // No reachable endpoint.
    drop(chain);
    let o = spoke("0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", &urls, "", &["grants", "verify", &node, &key]);
    assert!(o.status.code() == Some(1) && output(&o).contains("VERIFICATION_ERROR"), "{}", output(&o));
}

#[test]
fn proofs_are_named_by_verify_and_probed_by_doctor() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let (node, key) = (pair(0).0.to_string(), pair(0).1.to_string());
    contract.mint(chain.account(1), &node, &key);
    chain.mine(5);
    let proxy = Proxy::new(chain.port());
    let urls = [chain.url(), proxy.url()];
    let run = |urls: &[String], args: &[&str]| spoke(&contract.address.to_string(), urls, "verify = \"proof\"", args);
    let o = run(&urls, &["grants", "verify", &node, &key]);
    let text = output(&o);
    assert!(
        o.status.success() && text.contains("ACCESS_GRANTED") && text.contains("by      proof, quorum 1 of 2"),
        "{text}"
    );
    let no_proof = "gives no proof of the contract's storage";
    let text = output(&run(&urls, &["doctor"]));
    assert!(!text.contains(no_proof), "{text}");
    proxy.rule(|_| {
        ProxyAction::Edit(Box::new(|answer| {
            for reply in answer.as_array_mut().into_iter().flatten() {
                if let Some(nodes) = reply["result"].as_object_mut().and_then(|r| r.get_mut("accountProof")) {
                    *nodes = json!([]);
                }
            }
        }))
    });
    let text = output(&run(&urls, &["doctor"]));
    assert!(text.matches(no_proof).count() == 1 && !text.contains("no endpoint proves"), "{text}");
    let text = output(&run(&urls[1..], &["doctor"]));
    assert!(text.contains("no endpoint proves the contract's storage"), "{text}");
}

/// Runs a line of the shell with the local chain as `cast`'s endpoint and one of its accounts.
fn cast(chain: &Anvil, from: usize, line: &str) -> Output {
    let cast = std::env::var("SPOKE_CAST").expect("SPOKE_CAST is not set: run scripts/test-chain, which installs cast");
    let line = format!("{} --unlocked --from {}", line.replacen("cast", &cast, 1), chain.account(from));
    Command::new("sh").args(["-c", &line]).env("ETH_RPC_URL", chain.url()).output().unwrap()
}

#[test]
fn commands_change_the_contract_from_an_unlocked_account_or_by_cast() {
    let (node, key) = (pair(0).0.to_string(), pair(0).1.to_string());
    for by_cast in [false, true] {
        let chain = Anvil::start();
        let contract = Contract::deploy(&chain, false, false);
        let (address, urls) = (contract.address.to_string(), [chain.url()]);
        let grants = |args: &[&str]| spoke(&address, &urls, "finality = \"latest\"", &[&["grants"], args].concat());
        let change = |from: usize, args: &[&str]| {
            if by_cast {
                let printed = grants(args);
                assert!(printed.status.success(), "{}", output(&printed));
                cast(&chain, from, output(&printed).trim())
            } else {
                grants(&[args, &["--from", &chain.account(from).to_string()]].concat())
            }
        };
        let verify = |words: &str| {
            let o = grants(&["verify", &node, &key]);
            assert!(output(&o).contains(words), "by_cast {by_cast}: {words}: {}", output(&o));
        };
        let done = |o: Output| assert!(o.status.success(), "by_cast {by_cast}: {}", output(&o));
        let (alice, bob) = (chain.account(1).to_string(), chain.account(2).to_string());
        done(change(0, &["mint", &node, &key, &alice]));
        verify("ACCESS_GRANTED");
        // Only its holder may transfer a token, only the contract's owner revoke it.
        assert_eq!(change(2, &["transfer", &node, &bob]).status.code(), Some(1));
        assert_eq!(change(1, &["revoke", &node]).status.code(), Some(1));
        done(change(1, &["transfer", &node, &bob]));
        verify(&bob);
        done(change(0, &["revoke", &node]));
        verify("NODE_INACTIVE");
        done(change(2, &["burn", &node]));
        verify("NODE_NOT_FOUND");
        let o = grants(&["revoke", &node]);
        assert!(o.status.code() == Some(1) && output(&o).contains("no token has the node id node-0"), "{}", output(&o));
    }
}

#[test]
fn refused_transaction_is_reported_with_its_reason() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), "node-0", &pair(0).1.to_string());
    let (address, urls, key) = (contract.address.to_string(), [chain.url()], pair(1).1.to_string());
    let holder = chain.account(2).to_string();
    let mint = |from: &str| spoke(&address, &urls, "", &["grants", "mint", "node-0", &key, &holder, "--from", from]);
    let o = mint(&chain.account(0).to_string());
    assert!(o.status.code() == Some(1) && output(&o).contains("node id is taken"), "{}", output(&o));
    // An account that is not unlocked there.
    let o = mint("0x00000000000000000000000000000000000000aa");
    assert!(o.status.code() == Some(1) && output(&o).contains("without --from"), "{}", output(&o));
}

#[test]
fn contract_is_deployed_with_a_signed_transaction() {
    let chain = Anvil::start();
    // The key of anvil's first account.
    let key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/deploy-contract");
    let o = Command::new(script).args(["--remint", &chain.url(), "--", "--private-key", key]).output().unwrap();
    assert!(o.status.success(), "{}", output(&o));
    let section = String::from_utf8(o.stdout).unwrap();
    let config = spoke_config::Config::from_text(Some(("deploy-contract", &section)), []).unwrap().grants.unwrap();
    assert_eq!(config.chain_id, CHAIN_ID);
    let (address, urls) = (config.contract.to_string(), [chain.url()]);
    let grants = |args: &[&str]| spoke(&address, &urls, "finality = \"latest\"", &[&["grants"], args].concat());
    let (owner, node, wireguard) = (chain.account(0).to_string(), pair(0).0.to_string(), pair(0).1.to_string());
    // As asked for: the node id of a revoked token can be minted again.
    for args in [&["mint", &node, &wireguard, &owner][..], &["revoke", &node], &["mint", &node, &wireguard, &owner]] {
        let o = grants(&[args, &["--from", &owner]].concat());
        assert!(o.status.success(), "{args:?}: {}", output(&o));
    }
    assert!(output(&grants(&["verify", &node, &wireguard])).contains("ACCESS_GRANTED"));
}

fn findings(o: &std::process::Output) -> Vec<Value> {
    let mut all: Value = serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e}: {}", output(o)));
    serde_json::from_value(all["items"].take()).unwrap_or_else(|e| panic!("{e}: {}", output(o)))
}

/// The doctor's findings on the endpoints: level and detail.
fn endpoint_findings(contract: &str, urls: &[String], more: &str) -> Vec<(String, String)> {
    let o = spoke(contract, urls, more, &["doctor", "--json"]);
    let all = findings(&o);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let relevant = |f: &&Value| urls.iter().any(|u| f["what"] == **u) || f["what"] == "grants quorum";
    all.iter().filter(relevant).map(|f| (text(&f["level"]), text(&f["detail"]))).collect()
}

#[test]
fn doctor_checks_each_endpoint() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let address = Contract::deploy(&chain, false, false).address.to_string();
    let endpoint_findings = |urls: &[String], more: &str| endpoint_findings(&address, urls, more);
    chain.mine(30);
    let height = chain.height();
    let found = endpoint_findings(&[chain.url()], "");
    assert_eq!(found.len(), 1, "{found:?}");
    let (level, detail) = &found[0];
    assert_eq!(level, "ok", "{detail}");
    for part in [format!("chain {CHAIN_ID}, block {height}"), "safe 2 behind".into(), " ms".into(), "anvil/".into()] {
        assert!(detail.contains(&part), "{part}: {detail}");
    }

    let wrong = Anvil::with(&["--chain-id", "8453"]);
    let found = endpoint_findings(&[chain.url(), wrong.url()], "quorum = 2");
    assert!(found.iter().any(|(l, d)| l == "fail" && d.contains("is on chain 8453, not on 31337")), "{found:?}");
    assert!(found.iter().any(|(l, d)| l == "fail" && d.contains("1 of the 2 endpoints")), "{found:?}");

    // An endpoint that is behind.
    let behind = Proxy::new(chain.port());
    behind.rule(|_| {
        ProxyAction::Edit(Box::new(|answer| {
            for reply in answer.as_array_mut().into_iter().flatten() {
                if let Some(text) = reply["result"].as_str().filter(|t| t.len() == 258) {
                    reply["result"] = format!("0x{:064x}{}", 12, &text[66..]).into();
                }
            }
        }))
    });
    let found = endpoint_findings(&[chain.url(), behind.url()], "");
    assert!(
        found.iter().any(|(l, d)| l == "warn" && d == &format!("{} blocks behind the others", height - 12)),
        "{found:?}"
    );

    let found = self::endpoint_findings("0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", &[chain.url()], "");
    assert!(found.iter().any(|(l, d)| l == "fail" && d.contains("has no contract at 0x37d2")), "{found:?}");
    let o = spoke(
        "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186",
        &[chain.url()],
        "",
        &["grants", "verify", "node-0", &pair(0).1.to_string()],
    );
    assert!(o.status.code() == Some(1) && output(&o).contains("there is no contract"), "{}", output(&o));
}

#[test]
fn doctor_works_with_a_provider_that_takes_no_arrays() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let address = Contract::deploy(&chain, false, false).address.to_string();
    chain.mine(30);
    let proxy = Proxy::new(chain.port());
    for more in ["", "batch = 1"] {
        let arrays = Arc::new(AtomicU64::new(0));
        let count = arrays.clone();
        proxy.rule(move |request| {
            if request.as_array().is_some_and(|calls| calls.len() > 1) {
                count.fetch_add(1, Ordering::Relaxed);
                let body = br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch requests are not supported"}}"#;
                return ProxyAction::Say(200, String::new(), body.to_vec());
            }
            ProxyAction::Pass
        });
        let found = endpoint_findings(&address, &[proxy.url()], more);
        assert!(found.len() == 1 && found[0].0 == "ok", "{more}: {found:?}");
        assert_eq!(arrays.load(Ordering::Relaxed) == 0, !more.is_empty(), "{more}: arrays were sent, or never tried");
    }
}

#[test]
fn doctor_names_an_endpoint_that_contradicts_the_others() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "2"]);
    let address = Contract::deploy(&chain, false, false).address.to_string();
    chain.mine(30);
    let liar = Proxy::new(chain.port());
    liar.rule(|request| {
        let block = |q: &&Value| q["method"] == "eth_getBlockByNumber";
        let ids: Vec<Value> = request.as_array().into_iter().flatten().filter(block).map(|q| q["id"].clone()).collect();
        ProxyAction::Edit(Box::new(move |answer| {
            for reply in answer.as_array_mut().into_iter().flatten().filter(|r| ids.contains(&r["id"])) {
                if ids.len() == 1 && !reply["result"].is_null() {
                    reply["result"]["hash"] = format!("0x{:064x}", 7).into();
                }
            }
        }))
    });
    let honest = [Proxy::new(chain.port()), Proxy::new(chain.port())];
    let urls = [liar.url(), honest[0].url(), honest[1].url()];
    let o = spoke(&address, &urls, "quorum = 2", &["doctor", "--json"]);
    let all = findings(&o);
    let of = |url: &String| all.iter().find(|f| f["what"] == **url).unwrap_or_else(|| panic!("{url}: {}", output(&o)));
    assert_eq!(of(&urls[0])["level"], "fail", "{}", output(&o));
    assert!(urls[1..].iter().all(|u| of(u)["level"] == "ok"), "{}", output(&o));
}

#[test]
fn doctor_reports_each_missing_method() {
    let chain = Anvil::start();
    let address = Contract::deploy(&chain, false, false).address.to_string();
    chain.mine(10);
    let without = |method: &'static str, param: &'static str| {
        let proxy = Proxy::new(chain.port());
        proxy.rule(move |request| {
            let refused: Vec<Value> = request
                .as_array()
                .into_iter()
                .flatten()
                .filter(|q| q["method"] == method && q["params"].to_string().contains(param))
                .map(|q| q["id"].clone())
                .collect();
            ProxyAction::Edit(Box::new(move |answer| {
                for reply in answer.as_array_mut().into_iter().flatten().filter(|r| refused.contains(&r["id"])) {
                    *reply = json!({"id": reply["id"], "error": {"code": -32601, "message": "method not found"}});
                }
            }))
        });
        endpoint_findings(&address, &[proxy.url()], "finality = \"finalized\"")
    };
    for (method, param, level, words) in [
        ("eth_chainId", "", "fail", "does not report its chain"),
        ("eth_call", "latest", "fail", "does not run code"),
        ("eth_call", "finalized", "warn", "does not know the tag \"finalized\""),
        ("eth_call", "blockHash", "fail", "EIP-1898"),
        ("eth_getLogs", "", "warn", "does not return 2,000 blocks"),
        ("eth_getBlockByNumber", "", "fail", "blocks by number"),
    ] {
        let found = without(method, param);
        assert!(found.iter().any(|(l, d)| l == level && d.contains(words)), "{method} {param}: {found:?}");
    }
}

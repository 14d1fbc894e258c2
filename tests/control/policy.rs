//! The contract that a network hands out: taken whole or not at all, signed into every document, shown without its keys.
use crate::db::{Kind, fresh};
use crate::serving::Serving;
use serde_json::json;

crate::on_both![a_grants_policy_reaches_every_node_and_shows_no_key];

async fn a_grants_policy_reaches_every_node_and_shows_no_key(kind: Kind) {
    let serving = Serving::start(fresh(kind).await).await;
    serving.done(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = serving.done(&["token", "create", "--network", "field"]).await;
    let mut edge = serving.device("edge-1");
    edge.enrol(&token).await;
    let mut told = async |after: u64| {
        let (status, state) = edge.ask("GET", &format!("/api/v1/nodes/self/state?after={after}"), "").await;
        (status, state["document"]["grants"].clone(), state["document"]["generation"].as_u64().unwrap_or(after))
    };
    let set = async |change: serde_json::Value| {
        let (status, answer) = serving.operator("PUT", "/api/networks/field", &change.to_string()).await;
        (status, answer["data"]["grants"].clone(), answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let (_, none, generation) = told(0).await;
    assert!(none.is_null(), "nothing is said where nothing is set: {none}");

    let policy = json!({"contract": "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", "chain_id": 8453, "grace": "1d",
        "endpoints": ["https://rpc.example.net/v2/s3cret", "credential:rpc"], "quorum": 2});
    let (status, shown, _) = set(json!({"grants": policy})).await;
    let redacted = json!(["https://rpc.example.net/[redacted]", "credential:rpc"]);
    assert_eq!((status, &shown["endpoints"], &shown["grace"]), (200, &redacted, &"1d".into()));
    let (status, whole, generation) = told(generation).await;
    assert_eq!((status, &whole), (200, &policy), "the device needs all of it");
    assert!(!serving.json(&["audit"]).await.to_string().contains("s3cret"));
    assert_eq!(serving.json(&["network", "list"]).await[0]["grants"]["endpoints"], redacted);

    for (key, value, fault) in [
        ("chain_id", json!(0), "grants.chain_id"),
        ("contract", json!("0x12"), "grants.contract"),
        ("endpoints", json!([]), "grants.endpoints"),
        ("quorum", json!(3), "grants.quorum"),
        ("grase", json!("1d"), "grants.grase"),
        // Long enough for a hub, which looks every five seconds, and not for a device.
        ("fresh", json!("60s"), "grants.fresh"),
    ] {
        let mut bad = policy.clone();
        bad[key] = value;
        let (status, _, message) = set(json!({"grants": bad})).await;
        assert!(status == 400 && message.contains(fault), "{key}: {status} {message}");
    }
    assert_eq!(set(json!({"grants": "none"})).await.0, 400);
    assert_eq!(told(generation).await.0, 204, "nobody hears of what was not taken");
    assert_eq!(set(json!({"mtu": 1380})).await.1["chain_id"], 8453, "what is not named stays");

    let file = serving.dir.path().join("policy.toml");
    let path = file.to_str().unwrap();
    let toml = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://h\"]\n";
    std::fs::write(&file, toml).unwrap();
    assert_eq!(serving.json(&["network", "set", "field", "--grants", path]).await[0]["grants"]["chain_id"], 1);
    let (_, by_file, generation) = told(generation).await;
    assert_eq!(by_file["endpoints"], json!(["http://h"]));
    for (text, part) in [("", "--grants none"), ("[grants", path), (&toml.replace("= 1", "= 0"), "grants.chain_id")] {
        std::fs::write(&file, text).unwrap();
        let (code, said) = serving.cli(&["network", "set", "field", "--grants", path]).await;
        assert!(code == 2 && said.contains(part), "{text}: {code} {said}");
    }
    assert!(serving.json(&["network", "set", "field", "--grants", "none"]).await[0]["grants"].is_null());
    assert!(told(generation).await.1.is_null());
    assert_eq!(set(json!({"grants": policy})).await.0, 200);
    assert!(set(json!({"grants": {}})).await.1.is_null(), "an empty one takes it away");
}

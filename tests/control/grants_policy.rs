//! A network's grants policy: validated as a whole, part of every document, shown without keys.
use crate::database::Kind;
use crate::server::ControlPlane;
use serde_json::json;

crate::on_both_databases![grants_policy_reaches_nodes_and_hides_keys];

async fn grants_policy_reaches_nodes_and_hides_keys(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let mut edge = server.device("edge-1");
    edge.enrol(&token).await;
    let mut poll = async |after: u64| {
        let (status, state) = edge.ask("GET", &format!("/api/v1/nodes/self/state?after={after}"), "").await;
        (status, state["document"]["grants"].clone(), state["document"]["generation"].as_u64().unwrap_or(after))
    };
    let set = async |change: serde_json::Value| {
        let (status, answer) = server.operator("PUT", "/api/networks/field", &change.to_string()).await;
        (status, answer["data"]["grants"].clone(), answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let (_, none, generation) = poll(0).await;
    assert!(none.is_null(), "no policy is set: {none}");

    let policy = json!({"contract": "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", "chain_id": 8453, "grace": "1d",
        "endpoints": ["https://rpc.example.net/v2/s3cret", "credential:rpc"], "quorum": 2});
    let (status, shown, _) = set(json!({"grants": policy})).await;
    let redacted = json!(["https://rpc.example.net/[redacted]", "credential:rpc"]);
    assert_eq!((status, &shown["endpoints"], &shown["grace"]), (200, &redacted, &"1d".into()));
    let (status, whole, generation) = poll(generation).await;
    assert_eq!((status, &whole), (200, &policy), "the device gets all of it");
    assert!(!server.cli_json(&["audit"]).await.to_string().contains("s3cret"));
    assert_eq!(server.cli_json(&["network", "list"]).await[0]["grants"]["endpoints"], redacted);

    for (key, value, fault) in [
        ("chain_id", json!(0), "grants.chain_id"),
        ("contract", json!("0x12"), "grants.contract"),
        ("endpoints", json!([]), "grants.endpoints"),
        ("quorum", json!(3), "grants.quorum"),
        ("grase", json!("1d"), "grants.grase"),
        // Long enough for a hub, which polls every five seconds, but not for a device.
        ("fresh", json!("60s"), "grants.fresh"),
    ] {
        let mut bad = policy.clone();
        bad[key] = value;
        let (status, _, message) = set(json!({"grants": bad})).await;
        assert!(status == 400 && message.contains(fault), "{key}: {status} {message}");
    }
    assert_eq!(set(json!({"grants": "none"})).await.0, 400);
    assert_eq!(poll(generation).await.0, 204, "a refused policy reaches no node");
    assert_eq!(set(json!({"mtu": 1380})).await.1["chain_id"], 8453, "absent settings stay");

    let file = server.dir.path().join("policy.toml");
    let path = file.to_str().unwrap();
    let toml = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://h\"]\n";
    std::fs::write(&file, toml).unwrap();
    assert_eq!(server.cli_json(&["network", "set", "field", "--grants", path]).await[0]["grants"]["chain_id"], 1);
    let (_, by_file, generation) = poll(generation).await;
    assert_eq!(by_file["endpoints"], json!(["http://h"]));
    for (text, part) in [("", "--grants none"), ("[grants", path), (&toml.replace("= 1", "= 0"), "grants.chain_id")] {
        std::fs::write(&file, text).unwrap();
        let (code, output) = server.cli(&["network", "set", "field", "--grants", path]).await;
        assert!(code == 2 && output.contains(part), "{text}: {code} {output}");
    }
    assert!(server.cli_json(&["network", "set", "field", "--grants", "none"]).await[0]["grants"].is_null());
    assert!(poll(generation).await.1.is_null());
    assert_eq!(set(json!({"grants": policy})).await.0, 200);
    assert!(set(json!({"grants": {}})).await.1.is_null(), "an empty one removes it");
}

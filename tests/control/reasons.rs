//! The node list says what is wrong on a node.
use crate::database::Kind;
use crate::server::{ControlPlane, wait_until};

crate::on_both_databases![node_list_says_why, copied_device_is_named, report_of_a_disabled_node_is_answered_with_it];

async fn report_of_a_disabled_node_is_answered_with_it(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    let report =
        serde_json::json!({"generation": 1, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0"});
    let path = |n: u32| format!("/api/v1/nodes/self/report?run=1&number={n}");
    let ask = async |n| s.device("edge-1").ask("POST", &path(n), &report.to_string()).await;
    assert_eq!(ask(1).await.0, 204);
    s.cli_ok(&["node", "disable", "edge-1", "--yes"]).await;
    // The control plane reads again what another process has written within a second.
    let mut n = 1;
    let answer = wait_until("the report is answered with it", async || {
        n += 1;
        Some(ask(n).await).filter(|(status, _)| *status == 200)
    })
    .await;
    assert_eq!(answer.1, serde_json::json!({"enabled": false}));
}

async fn node_list_says_why(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    let detail = "IPv6 is disabled on wg0: fd00:8::5/64 not added";
    let report = |health: serde_json::Value| {
        serde_json::json!({
            "generation": 1, "outcome": "applied", "healthy": false, "drift": 0, "version": "0.1.0", "health": health,
        })
        .to_string()
    };
    let health = serde_json::json!({"reasons": [{"code": "ipv6_disabled", "detail": detail}, {"code": "x"}, 7]});
    let path = |n: u32| format!("/api/v1/nodes/self/report?run=1&number={n}");
    assert_eq!(s.device("edge-1").ask("POST", &path(1), &report(health)).await.0, 204);
    let shown = wait_until("the report is stored", async || {
        Some(s.cli_json(&["node", "show", "edge-1"]).await).filter(|n| n["healthy"] == false)
    })
    .await;
    assert_eq!(shown["conditions"], serde_json::json!([detail]), "{shown}");
    for args in [&["node", "list"][..], &["node", "show", "edge-1"]] {
        let text = s.cli_ok(args).await;
        assert!(text.contains("unhealthy") && text.contains(detail), "{text}");
    }
    let (_, nodes) = s.operator("GET", "/api/nodes", "").await;
    assert_eq!(nodes["data"]["items"][0]["conditions"][0], detail, "{nodes}");
    for (n, odd) in
        [serde_json::json!({"reasons": "none"}), serde_json::json!([1]), serde_json::json!({})].iter().enumerate()
    {
        let path = path(u32::try_from(n).unwrap() + 2);
        assert_eq!(s.device("edge-1").ask("POST", &path, &report(odd.clone())).await.0, 204);
    }
    wait_until("the condition is gone", async || {
        let shown = s.cli_json(&["node", "show", "edge-1"]).await;
        (shown["conditions"] == serde_json::json!([])).then_some(())
    })
    .await;
}

async fn copied_device_is_named(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    let report =
        serde_json::json!({"generation": 1, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0"});
    let send = async |run: u32, number: u32| {
        let path = format!("/api/v1/nodes/self/report?run={run}&number={number}");
        assert_eq!(s.device("edge-1").ask("POST", &path, &report.to_string()).await.0, 204);
    };
    // A restart: one report of the run before may be late.
    send(1, 1).await;
    wait_until("it is stored", async || {
        (s.cli_json(&["node", "show", "edge-1"]).await["healthy"] == true).then_some(())
    })
    .await;
    send(2, 1).await;
    send(1, 2).await;
    let audited = async || s.cli_ok(&["audit"]).await.matches("duplicate_identity").count();
    let mut number = 2;
    let shown = wait_until("the copy is named", async || {
        number += 1;
        send(1, number).await;
        send(2, number).await;
        Some(s.cli_json(&["node", "show", "edge-1"]).await).filter(|n| n["healthy"] == false)
    })
    .await;
    let detail = shown["conditions"][0].as_str().unwrap_or_default();
    assert!(detail.starts_with("two devices report as this node"), "{shown}");
    assert_eq!(audited().await, 1);
}

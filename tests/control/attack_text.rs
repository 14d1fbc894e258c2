//! Attacks with text: what a node reports is shown to operators, and must not forge what they or their scripts read.
use crate::database::Kind;
use crate::server::{ControlPlane, wait_until};

crate::on_both_databases![report_text_forges_neither_pin_nor_table];

async fn report_text_forges_neither_pin_nor_table(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let mut edge = server.device("edge-1");
    assert_eq!(edge.enrol(&token).await.0, 200);
    let forged = format!("sha256:{}", "ab".repeat(32));
    let reason = format!("pin {forged} \u{202e}\u{200b}end");
    let report = serde_json::json!({"generation": 1, "outcome": "reverted", "reason": reason, "healthy": false,
        "drift": 0, "version": "0.1.0"});
    assert_eq!(edge.ask("POST", "/api/v1/nodes/self/report", &report.to_string()).await.0, 204);
    let shown = wait_until("the report is stored", async || {
        let shown = server.cli_ok(&["node", "show", "edge-1"]).await;
        shown.contains(&forged).then_some(shown)
    })
    .await;
    assert!(shown.contains("\\u{202e}\\u{200b}end"), "{shown}");
    let audit = server.cli_ok(&["audit"]).await;
    for text in [&shown, &audit, &server.log()] {
        assert!(!text.contains(['\u{202e}', '\u{200b}']), "{text}");
    }
    // Machines have an output of their own, exact and not from the log.
    let pin: String = server.pin.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(server.cli_ok(&["pin"]).await, format!("sha256:{pin}"));
    assert_eq!(server.cli_json(&["pin"]).await["pin"], format!("sha256:{pin}"));
    assert_eq!(server.cli_json(&["node", "show", "edge-1"]).await["reason"], reason);
}

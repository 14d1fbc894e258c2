//! A hub that is moved: no node is left with an endpoint that leads nowhere.
use crate::database::Kind;
use crate::fixture::{NOW, document, hub, join, open_with_network, operator, report, store_report, token};
use crate::server::ControlPlane;
use spoke_control::registry::RegistryError;
use spoke_control::registry::node_change::NodeChange;
use spoke_control::registry::nodes::{self, HubMove};
use spoke_control::store::Store;
use spoke_model::node_id::NodeId;

crate::on_both_databases![hub_in_use_is_not_moved, hub_is_moved_after_its_nodes_have_left, commands_and_api_agree];

fn port(port: u16) -> NodeChange {
    let overrides = format!(r#"{{"override_listen_port": {port}}}"#);
    NodeChange { overrides: Some(serde_json::from_str(&overrides).unwrap()), ..NodeChange::default() }
}

async fn change(store: &Store, id: &str, change: &NodeChange) -> Result<(), RegistryError> {
    nodes::change(store, &id.parse().unwrap(), change, &operator(), NOW).await
}

async fn confirm(store: &Store, id: &str, at_ms: i64) {
    store_report(store, id, at_ms, report(document(store, id).await.generation)).await;
}

async fn hub_in_use_is_not_moved(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", None).await;
    change(&store, "hub-1", &port(51821)).await.expect("no node uses it");
    change(&store, "hub-1", &port(51820)).await.unwrap();
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let before = document(&store, "hub-1").await;
    for moved in [51821, 0] {
        let refused = change(&store, "hub-1", &port(moved)).await.unwrap_err().to_string();
        for part in ["hub.example.net:51820", "edge-1", "disable the hub", "hub move"] {
            assert!(refused.contains(part), "{part} in {refused}");
        }
    }
    assert_eq!(document(&store, "hub-1").await, before);
    change(&store, "hub-1", &NodeChange { overrides: Some(Default::default()), ..NodeChange::default() })
        .await
        .expect("the port of its endpoint is where it is");
    change(&store, "edge-1", &port(51821)).await.expect("no node connects to a node");
}

async fn hub_is_moved_after_its_nodes_have_left(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", None).await;
    hub(&store, "hub-2", None).await;
    let token = token(&store, 2).await;
    for id in ["edge-1", "edge-2"] {
        join(&store, id, &token).await.unwrap();
        confirm(&store, id, NOW).await;
    }
    let id: NodeId = "hub-1".parse().unwrap();
    let to = HubMove { endpoint: "new.example.net:443".parse().unwrap(), listen_port: None, lose_nodes: false };
    let moved = async |to: &HubMove| nodes::move_hub(&store, &id, to, &operator(), NOW).await;
    assert!(matches!(moved(&to).await, Err(RegistryError::HubInUse { .. })));
    let enabled = |enabled| NodeChange { enabled: Some(enabled), ..NodeChange::default() };
    change(&store, "hub-1", &enabled(false)).await.unwrap();
    confirm(&store, "edge-2", NOW + 1).await;
    let refused = moved(&to).await.unwrap_err().to_string();
    assert!(refused.contains("edge-1 has not yet kept") && !refused.contains("edge-2"), "{refused}");
    confirm(&store, "edge-1", NOW + 1).await;
    moved(&to).await.unwrap();
    assert_eq!(document(&store, "hub-1").await.interfaces[0].listen_port, Some(443));
    let hubs = async || document(&store, "edge-1").await.interfaces[0].hubs.clone();
    assert_eq!(hubs().await.iter().map(|h| h.node_id.as_str()).collect::<Vec<_>>(), ["hub-2"]);
    change(&store, "hub-1", &enabled(true)).await.unwrap();
    assert_eq!(hubs().await[0].endpoint.to_string(), "new.example.net:443");
    let forced = HubMove { endpoint: "b.example.net:444".parse().unwrap(), listen_port: Some(51820), lose_nodes: true };
    moved(&forced).await.expect("an operator who accepts the loss");
    assert_eq!(document(&store, "hub-1").await.interfaces[0].overrides.listen_port, Some(51820));
    let node = nodes::move_hub(&store, &"edge-1".parse().unwrap(), &to, &operator(), NOW).await;
    assert!(matches!(node, Err(RegistryError::NotAHub(_))));
}

async fn commands_and_api_agree(kind: Kind) {
    let (s, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let hub = s.cli_ok(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "hub.example.net:51820"]).await;
    assert_eq!(s.device("hub-1").enrol(&hub).await.0, 200);
    assert_eq!(s.device("edge-1").enrol(&token).await.0, 200);
    let (code, output) = s.cli(&["node", "override", "hub-1", "--listen-port", "51999"]).await;
    assert!(code == 2 && output.contains("edge-1 has it in use"), "{code} {output}");
    let body = r#"{"overrides": {"override_listen_port": 51999}}"#;
    let (status, answer) = s.operator("PUT", "/api/nodes/hub-1", body).await;
    assert!(status == 409 && answer["message"].as_str().unwrap().contains("hub move"), "{status} {answer}");
    let moving = ["hub", "move", "hub-1", "--endpoint", "hub.example.net:51999"];
    let (code, output) = s.cli(&moving).await;
    assert!(code == 2 && output.contains("disable the hub"), "{code} {output}");
    s.cli_ok(&["node", "disable", "hub-1", "--yes"]).await;
    let (code, output) = s.cli(&moving).await;
    assert!(code == 2 && output.contains("edge-1 has not yet kept"), "{code} {output}");
    let generation = s.cli_json(&["node", "show", "edge-1"]).await["generation"].as_u64().unwrap();
    let kept = serde_json::to_string(&report(generation)).unwrap();
    assert_eq!(s.device("edge-1").ask("POST", "/api/v1/nodes/self/report?run=1&number=1", &kept).await.0, 204);
    crate::server::wait_until("the report is stored", async || {
        let shown = s.cli_json(&["node", "show", "edge-1"]).await;
        (shown["observed_generation"] == generation).then_some(())
    })
    .await;
    assert_eq!(s.cli_json(&moving).await["endpoint"], "hub.example.net:51999");
}

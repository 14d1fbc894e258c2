//! Desired releases on both databases.
use crate::database::Kind;
use crate::fixture::{NOW, document, join, open_with_network, operator, report, store_report, token};
use spoke_control::api::view::NodeView;
use spoke_control::registry::{RegistryError, releases};
use spoke_control::store::Store;
use spoke_control::store::release::Release;

crate::on_both_databases![node_release_overrides_network_release];

/// Sets the desired release of the network `field`, or of a node in it.
pub async fn set_release(store: &Store, node: Option<&str>, version: &str) -> Result<(), RegistryError> {
    let node = node.map(|n| n.parse().unwrap());
    let wanted = Release { network: "field".into(), node, version: version.into(), source: None };
    releases::set(store, &wanted, &operator(), NOW).await
}

async fn node_release_overrides_network_release(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let token = token(&store, 3).await;
    join(&store, "edge-1", &token).await.unwrap();
    join(&store, "edge-2", &token).await.unwrap();
    let version = async |id: &str| {
        let document = document(&store, id).await;
        (document.generation, document.release.map(|r| r.version))
    };
    let (first, second) = (version("edge-1").await, version("edge-2").await);
    assert_eq!((&first.1, &second.1), (&None, &None));

    set_release(&store, Some("edge-1"), "1.4.0").await.unwrap();
    assert_eq!(version("edge-1").await, (first.0 + 1, Some("1.4.0".into())));
    assert_eq!(version("edge-2").await, second, "other nodes are unchanged");

    set_release(&store, None, "1.3.9").await.unwrap();
    assert_eq!(version("edge-1").await.1.as_deref(), Some("1.4.0"), "its own overrides its network's");
    assert_eq!(version("edge-2").await, (second.0 + 1, Some("1.3.9".into())));

    let edge_1 = "edge-1".parse().unwrap();
    releases::clear(&store, "field", Some(&edge_1), &operator(), NOW).await.unwrap();
    assert_eq!(version("edge-1").await.1.as_deref(), Some("1.3.9"));
    let gone = releases::clear(&store, "field", Some(&edge_1), &operator(), NOW).await.unwrap_err();
    assert!(matches!(gone, RegistryError::NotFound(..)), "{gone}");

    assert!(matches!(set_release(&store, None, "1 2").await, Err(RegistryError::Release(_))));
    assert!(matches!(set_release(&store, Some("edge-9"), "1.4.0").await, Err(RegistryError::NotFound(..))));

    let mut report = report(1);
    report.health = Some(serde_json::json!({"update": {"version": "1.3.9", "last": null}}));
    store_report(&store, "edge-1", NOW, report).await;
    let view: NodeView = store.read().await.unwrap().node_status(&edge_1).await.unwrap().unwrap().into();
    assert_eq!(view.update.unwrap()["version"], "1.3.9", "operators see the update's state");
}

//! Desired releases on both databases.
use crate::database::Kind;
use crate::fixture::{NOW, document, join, open_with_network, operator, report, store_report, token};
use spoke_control::api::view::NodeView;
use spoke_control::registry::{RegistryError, releases};
use spoke_control::store::Store;
use spoke_control::store::release::Release;

crate::on_both_databases![node_release_overrides_network_release, rollout_is_spread_and_renewed];

/// Sets the desired release of the network `field`, or of a node in it.
pub async fn set_release(store: &Store, node: Option<&str>, version: &str) -> Result<(), RegistryError> {
    releases::set(store, &wanted(node, version, 0), &operator(), NOW).await
}

fn wanted(node: Option<&str>, version: &str, spread_seconds: u32) -> Release {
    let node = node.map(|n| n.parse().unwrap());
    let (network, version) = ("field".into(), version.into());
    Release { network, node, version, source: None, spread_seconds, since_ms: 0, renewed_ms: 0 }
}

/// A rollout over six hours: each node has its own moment in it, also after the same wish again; a retry begins another.
async fn rollout_is_spread_and_renewed(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let token = token(&store, 20).await;
    for n in 0..20 {
        join(&store, &format!("edge-{n}"), &token).await.unwrap();
    }
    let spread = 6 * 3600;
    let rollout = async |n: u32| document(&store, &format!("edge-{n}")).await.rollout;
    releases::set(&store, &wanted(None, "1.4.0", spread), &operator(), NOW).await.unwrap();
    let mut parts = Vec::new();
    for n in 0..20 {
        let part = rollout(n).await;
        assert!(part.wait < u64::from(spread) && part.renewed == 0, "{part:?}");
        assert_eq!(part.not_before, NOW.unsigned_abs() / 1000 + part.wait);
        parts.push(part);
    }
    let times: std::collections::BTreeSet<_> = parts.iter().map(|p| p.not_before).collect();
    assert!(times.len() > 15, "{times:?}");
    releases::set(&store, &wanted(None, "1.4.0", spread), &operator(), NOW + 60_000).await.unwrap();
    assert_eq!(rollout(3).await, parts[3], "the same wish again changes no start");

    releases::retry(&store, "field", None, &operator(), NOW + 100_000).await.unwrap();
    let renewed = rollout(3).await;
    assert_eq!(renewed.not_before, parts[3].not_before + 100);
    // The clock of the control plane may be set back.
    releases::retry(&store, "field", None, &operator(), NOW - 100_000).await.unwrap();
    assert!(rollout(3).await.renewed > renewed.renewed && renewed.renewed > 0);
    let none = releases::retry(&store, "field", Some(&"edge-3".parse().unwrap()), &operator(), NOW).await.unwrap_err();
    assert!(matches!(none, RegistryError::NotFound(..)), "{none}");
    let long = releases::set(&store, &wanted(None, "1.4.0", u32::MAX), &operator(), NOW).await.unwrap_err();
    assert!(matches!(long, RegistryError::Release(_)), "{long}");
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

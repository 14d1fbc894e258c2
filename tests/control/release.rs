//! Wanted releases on both databases: of one node before all.
use crate::db::{Kind, open};
use crate::world::{NOW, document, join, network, operator, report, say, token};
use spoke_control::registry::{RegistryError, release};
use spoke_control::store::Store;
use spoke_control::store::release::Release;

crate::on_both![a_release_is_wanted_of_one_node_before_all];

/// Wants a release.
pub async fn want(store: &Store, node: Option<&str>, version: &str) -> Result<(), RegistryError> {
    let node = node.map(|n| n.parse().unwrap());
    let wanted = Release { network: "field".into(), node, version: version.into(), source: None };
    release::want(store, &wanted, &operator(), NOW).await
}

async fn a_release_is_wanted_of_one_node_before_all(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let token = token(&store, 3).await;
    join(&store, "edge-1", &token).await.unwrap();
    join(&store, "edge-2", &token).await.unwrap();
    let version = async |id: &str| {
        let document = document(&store, id).await;
        (document.generation, document.release.map(|r| r.version))
    };
    let (first, second) = (version("edge-1").await, version("edge-2").await);
    assert_eq!((&first.1, &second.1), (&None, &None));

    want(&store, Some("edge-1"), "1.4.0").await.unwrap();
    assert_eq!(version("edge-1").await, (first.0 + 1, Some("1.4.0".into())));
    assert_eq!(version("edge-2").await, second, "nobody else is disturbed");

    want(&store, None, "1.3.9").await.unwrap();
    assert_eq!(version("edge-1").await.1.as_deref(), Some("1.4.0"), "its own goes before its network's");
    assert_eq!(version("edge-2").await, (second.0 + 1, Some("1.3.9".into())));

    let edge_1 = "edge-1".parse().unwrap();
    release::unwant(&store, "field", Some(&edge_1), &operator(), NOW).await.unwrap();
    assert_eq!(version("edge-1").await.1.as_deref(), Some("1.3.9"));
    let gone = release::unwant(&store, "field", Some(&edge_1), &operator(), NOW).await.unwrap_err();
    assert!(matches!(gone, RegistryError::NotFound(..)), "{gone}");

    assert!(matches!(want(&store, None, "1 2").await, Err(RegistryError::Value(_))));
    assert!(matches!(want(&store, Some("edge-9"), "1.4.0").await, Err(RegistryError::NotFound(..))));

    let mut told = report(1);
    told.health = Some(serde_json::json!({"update": {"version": "1.3.9", "last": null}}));
    say(&store, "edge-1", NOW, told).await;
    let view = store.read().await.unwrap().node_views(Some(&edge_1), "", 1).await.unwrap().remove(0);
    assert_eq!(view.update.unwrap()["version"], "1.3.9", "operators see how it went");
}

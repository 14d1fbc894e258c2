//! Preshared keys of the fleet's tunnels on both databases: who gets one, that both ends get the same, and that nothing stores it.
use crate::database::{Kind, open};
use crate::fixture::{NOW, backup_key, document, network, operator, report, request, store_report, token, wireguard};
use spoke_control::registry::enrol::{Enrolled, EnrollingDevice, enrol};
use spoke_control::registry::nodes::HubAnnouncement;
use spoke_control::registry::{key_rotation, nodes};
use spoke_control::signing::MasterKey;
use spoke_control::store::Store;
use spoke_enroll::document::StateDocument;
use spoke_enroll::wire::{KeyRequest, KeyStep};
use spoke_model::key::{PresharedKey, PublicKey};

crate::on_both_databases![
    both_ends_get_the_same_key_where_both_take_it,
    key_changes_with_the_wireguard_key,
    earlier_tunnel_gets_its_key_with_the_next_wireguard_key,
    downgrade_of_either_end_withdraws_the_key,
    new_hub_shares_a_key_with_every_node,
    preshared_keys_are_in_no_backup,
];

fn master() -> MasterKey {
    MasterKey::new(&[1; 32]).unwrap()
}

async fn enter(store: &Store, id: &str, token: &str, takes_preshared: bool) {
    let request = request(id);
    let device = EnrollingDevice { request: &request, takes_preshared };
    assert!(matches!(enrol(store, device, token, None, NOW).await, Ok(Enrolled::Active(_))));
}

async fn hub(store: &Store, id: &str, takes_preshared: bool) {
    let endpoint = "hub.example.net:51820".parse().unwrap();
    let id_of = id.parse().unwrap();
    let announced = HubAnnouncement { endpoint, address: None, fingerprint: None };
    let token = nodes::announce_hub(store, &id_of, "field", &announced, &operator(), NOW).await.unwrap();
    enter(store, id, token.reveal(), takes_preshared).await;
}

/// A fleet with the hub `hub-1`, and a token for devices.
async fn fleet(kind: Kind, hub_takes: bool) -> (Store, crate::database::Database, String) {
    let (store, database) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", hub_takes).await;
    let token = token(&store, 9).await;
    (store, database, token)
}

/// The document as it is sent.
async fn sent(store: &Store, id: &str) -> StateDocument {
    let mut document = document(store, id).await;
    store.read().await.unwrap().add_preshared(&mut document, &master()).await.unwrap();
    document
}

/// What a node has for a hub, by its own keys.
async fn of_node(store: &Store, node: &str, hub: &str) -> Vec<(PublicKey, PresharedKey)> {
    let document = sent(store, node).await;
    let hub = document.interfaces[0].hubs.iter().find(|h| h.node_id.as_str() == hub).unwrap();
    hub.preshared_keys.iter().map(|p| (p.public_key, p.preshared_key.0.clone())).collect()
}

/// What a hub has for a key of a node.
async fn of_hub(store: &Store, hub: &str, key: PublicKey) -> Option<PresharedKey> {
    let document = sent(store, hub).await;
    let peer = document.interfaces[0].peers.iter().find(|p| p.public_key == key).unwrap();
    peer.preshared_key.as_ref().map(|k| k.0.clone())
}

async fn note(store: &Store, id: &str, takes: bool) -> bool {
    let mut tx = store.write().await.unwrap();
    let withdrawn = tx.note_preshared(&id.parse().unwrap(), takes).await.unwrap();
    tx.commit().await.unwrap();
    withdrawn
}

async fn rotate(store: &Store, id: &str, key: PublicKey, step: KeyStep) -> bool {
    let request = KeyRequest { wireguard_public_key: key, step };
    key_rotation::rotate(store, &id.parse().unwrap(), &request, NOW).await.unwrap().ready
}

async fn keeps(store: &Store, id: &str) {
    let generation = document(store, id).await.generation;
    store_report(store, id, NOW, report(generation)).await;
}

async fn both_ends_get_the_same_key_where_both_take_it(kind: Kind) {
    let (store, _db, token) = fleet(kind, true).await;
    enter(&store, "edge-1", &token, true).await;
    enter(&store, "edge-2", &token, true).await;
    enter(&store, "old", &token, false).await;
    let (one, two) = (wireguard("edge-1").public(), wireguard("edge-2").public());
    let [(key, first)] = of_node(&store, "edge-1", "hub-1").await.try_into().unwrap();
    assert_eq!((key, of_hub(&store, "hub-1", one).await), (one, Some(first.clone())));
    let [(_, second)] = of_node(&store, "edge-2", "hub-1").await.try_into().unwrap();
    assert_eq!(of_hub(&store, "hub-1", two).await.as_ref(), Some(&second));
    assert!(first != second, "each tunnel has its own");
    assert_eq!(of_node(&store, "old", "hub-1").await, []);
    assert_eq!(of_hub(&store, "hub-1", wireguard("old").public()).await, None);
    let shown = format!("{:?}", sent(&store, "edge-1").await);
    assert!(!shown.contains(&first.reveal_base64()[..8]), "{shown}");

    let (store, _db, token) = fleet(kind, false).await;
    enter(&store, "edge-1", &token, true).await;
    assert_eq!(of_node(&store, "edge-1", "hub-1").await, [], "an old hub has none");
}

async fn key_changes_with_the_wireguard_key(kind: Kind) {
    let (store, _db, token) = fleet(kind, true).await;
    enter(&store, "edge-1", &token, true).await;
    let (old, new) = (wireguard("edge-1").public(), PublicKey([42; 32]));
    let before = of_hub(&store, "hub-1", old).await.unwrap();
    assert!(!rotate(&store, "edge-1", new, KeyStep::Announce).await);
    let both = of_node(&store, "edge-1", "hub-1").await;
    let after = of_hub(&store, "hub-1", new).await.unwrap();
    let expected = std::collections::BTreeMap::from([(old, before.clone()), (new, after.clone())]);
    assert!(both.into_iter().collect::<std::collections::BTreeMap<_, _>>() == expected, "the node has both");
    assert!(before != after);

    keeps(&store, "hub-1").await;
    assert!(!rotate(&store, "edge-1", new, KeyStep::Announce).await, "the node has not kept the new preshared key");
    keeps(&store, "edge-1").await;
    assert!(rotate(&store, "edge-1", new, KeyStep::Announce).await);
    assert!(rotate(&store, "edge-1", new, KeyStep::Switch).await);
    assert_eq!(of_node(&store, "edge-1", "hub-1").await, [(new, after.clone())]);
    assert_eq!(of_hub(&store, "hub-1", new).await, Some(after), "the switch changes no preshared key");
}

async fn earlier_tunnel_gets_its_key_with_the_next_wireguard_key(kind: Kind) {
    let (store, _db, token) = fleet(kind, false).await;
    enter(&store, "edge-1", &token, false).await;
    let (old, new) = (wireguard("edge-1").public(), PublicKey([42; 32]));
    for id in ["hub-1", "edge-1"] {
        assert!(!note(&store, id, true).await);
    }
    assert_eq!(of_node(&store, "edge-1", "hub-1").await, [], "its ends would not change at the same time");
    rotate(&store, "edge-1", new, KeyStep::Announce).await;
    assert_eq!(of_hub(&store, "hub-1", old).await, None);
    let key = of_hub(&store, "hub-1", new).await.unwrap();
    assert_eq!(of_node(&store, "edge-1", "hub-1").await, [(new, key)]);
}

async fn downgrade_of_either_end_withdraws_the_key(kind: Kind) {
    for end in ["edge-1", "hub-1"] {
        let (store, _db, token) = fleet(kind, true).await;
        enter(&store, "edge-1", &token, true).await;
        assert_eq!(of_node(&store, "edge-1", "hub-1").await.len(), 1);
        let generations = [document(&store, "edge-1").await.generation, document(&store, "hub-1").await.generation];
        assert!(!note(&store, end, true).await, "{end} goes on");
        assert!(note(&store, end, false).await, "{end} is downgraded");
        assert_eq!(of_node(&store, "edge-1", "hub-1").await, []);
        assert_eq!(of_hub(&store, "hub-1", wireguard("edge-1").public()).await, None);
        assert!(document(&store, "edge-1").await.generation > generations[0]);
        assert!(document(&store, "hub-1").await.generation > generations[1]);
        assert!(!note(&store, end, false).await, "{end}: once");
    }
}

async fn new_hub_shares_a_key_with_every_node(kind: Kind) {
    let (store, _db, token) = fleet(kind, true).await;
    enter(&store, "edge-1", &token, true).await;
    enter(&store, "old", &token, false).await;
    hub(&store, "hub-2", true).await;
    let (one, key) =
        (wireguard("edge-1").public(), of_hub(&store, "hub-2", wireguard("edge-1").public()).await.unwrap());
    assert_eq!(of_node(&store, "edge-1", "hub-2").await, [(one, key.clone())]);
    assert_eq!(of_hub(&store, "hub-2", wireguard("old").public()).await, None);
    assert!(of_hub(&store, "hub-1", one).await != Some(key), "each tunnel has its own");
}

async fn preshared_keys_are_in_no_backup(kind: Kind) {
    let (store, _db, token) = fleet(kind, true).await;
    enter(&store, "edge-1", &token, true).await;
    let [(_, key)] = of_node(&store, "edge-1", "hub-1").await.try_into().unwrap();
    let mut backup = Vec::new();
    store.backup(&mut backup, &backup_key()).await.unwrap();
    let text = String::from_utf8(backup.clone()).unwrap();
    assert!(text.contains("takes_preshared") && !text.contains(key.reveal_base64().as_str()), "{text}");
    let (restored, _db) = open(kind).await;
    restored.restore(backup.as_slice(), Some(&backup_key())).await.unwrap();
    assert_eq!(of_node(&restored, "edge-1", "hub-1").await[0].1, key, "with the same master key");
}

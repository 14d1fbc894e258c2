//! Keys on both databases: admission by the contract, rotation, signing keys.
use crate::database::{Kind, open};
use crate::fixture::{
    NOW, admission, document, hub, join, open_with_network, operator, report, request, store_report, token,
};
use spoke_control::api::view::NodeView;
use spoke_control::registry::enrol::{Enrolled, enrol, requirements};
use spoke_control::registry::{RegistryError, key_rotation, nodes};
use spoke_control::signing::{MasterKey, SigningKeys};
use spoke_control::store::admission::Admission;
use spoke_control::store::network::Access;
use spoke_control::store::node_status::NodeQuery;
use spoke_control::store::signing_key::{Retirement, Without};
use spoke_enroll::document::StateDocument;
use spoke_enroll::wire::{KeyRequest, KeyStep, NodeReport, Outcome};
use spoke_grants::policy::Reason;
use spoke_model::key::PublicKey;

crate::on_both_databases![
    only_granted_nodes_are_peers,
    key_rotation_takes_two_steps,
    signing_keys_overlap,
    no_node_is_locked_out_by_a_retired_key,
    silent_hub_does_not_hold_up_a_new_key,
];

async fn only_granted_nodes_are_peers(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/22", |n| n.access = Access::Nft).await;
    hub(&store, "hub-1", Some("10.8.3.254")).await;
    let token = token(&store, 10).await;
    let enter = |id: &'static str, v: Option<Admission>| {
        let (store, token) = (store.clone(), token.clone());
        async move {
            assert!(
                requirements(&store, &request(id), &token, NOW).await.unwrap().admission,
                "the contract is asked about {id}"
            );
            match enrol(&store, &request(id), &token, v.as_ref(), NOW).await.unwrap() {
                Enrolled::Active(config) => config.assigned_ip.to_string(),
                Enrolled::Pending => panic!("{id} is pending"),
            }
        }
    };
    let granted = admission(Reason::AccessGranted, Some(7));
    assert_eq!(enter("granted", Some(granted.clone())).await, "10.8.0.7", "token 7 prefers the seventh host");
    assert_eq!(
        enter("far", Some(admission(Reason::AccessGranted, Some(700)))).await,
        "10.8.2.188",
        "and 700 the 700th"
    );
    assert_eq!(enter("wrong-key", Some(admission(Reason::PublicKeyMismatch, Some(9)))).await, "10.8.0.9");
    enter("undecided", None).await;
    let peers = |d: StateDocument| d.interfaces[0].peers.iter().map(|p| p.node_id.to_string()).collect::<Vec<_>>();
    let before = document(&store, "hub-1").await;
    assert_eq!(peers(before.clone()), ["far", "granted"]);
    let mut tx = store.read().await.unwrap();
    let statuses = tx.node_statuses(&NodeQuery::default(), 10).await.unwrap();
    let access = |view: NodeView| (view.id.to_string(), view.access.unwrap_or_default());
    let all: Vec<_> = statuses.into_iter().map(|s| access(s.into())).collect();
    let expected = [
        ("far", "ACCESS_GRANTED"),
        ("granted", "ACCESS_GRANTED"),
        ("hub-1", ""),
        ("undecided", "VERIFICATION_ERROR"),
        ("wrong-key", "PUBLIC_KEY_MISMATCH"),
    ];
    assert_eq!(all, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let candidates = tx.candidates().await.unwrap();
    assert_eq!(candidates.len(), 4, "every node, no hub");
    drop(tx);

    // The decision on a removed node is deleted.
    nodes::remove(&store, &"far".parse().unwrap(), &operator(), NOW).await.unwrap();
    let mut tx = store.write().await.unwrap();
    assert_eq!(tx.prune_admissions().await.unwrap(), 1);
    tx.commit().await.unwrap();

    // The key changes when the contract does: at no time do two keys have the address.
    let (id, new): (spoke_model::node_id::NodeId, _) = ("granted".parse().unwrap(), PublicKey([42; 32]));
    let step = |step| {
        let (store, id) = (store.clone(), &id);
        async move {
            key_rotation::rotate(&store, id, &KeyRequest { wireguard_public_key: new, step }, NOW).await.unwrap().ready
        }
    };
    assert!(!step(KeyStep::Announce).await);
    let generation = document(&store, "hub-1").await.generation;
    store_report(&store, "hub-1", NOW, report(generation)).await;
    assert!(!step(KeyStep::Announce).await, "the hub has the key, the contract does not");
    assert_eq!(
        document(&store, "hub-1").await.interfaces[0].peers[0].public_key,
        request("granted").wireguard_public_key
    );
    let mut tx = store.write().await.unwrap();
    let old = (id.clone(), request("granted").wireguard_public_key);
    tx.put_admission(&old, &admission(Reason::PublicKeyMismatch, Some(7)), NOW).await.unwrap();
    tx.put_admission(&(id.clone(), new), &granted, NOW).await.unwrap();
    tx.commit().await.unwrap();
    let peers = document(&store, "hub-1").await.interfaces[0].peers.clone();
    assert_eq!((peers.len(), peers[0].public_key, peers[0].allowed_ips[0].to_string()), (1, new, "10.8.0.7/32".into()));
    assert!(step(KeyStep::Announce).await);
    assert!(step(KeyStep::Switch).await);
}

async fn key_rotation_takes_two_steps(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", Some("10.8.0.1")).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let id = "edge-1".parse().unwrap();
    let new = PublicKey([42; 32]);
    let step = |step| {
        let (store, id) = (store.clone(), &id);
        async move { key_rotation::rotate(&store, id, &KeyRequest { wireguard_public_key: new, step }, NOW).await }
    };
    assert!(matches!(step(KeyStep::Switch).await, Err(RegistryError::KeyNotAnnounced)), "before the announcement");
    assert!(!step(KeyStep::Announce).await.unwrap().ready, "the hub has not reported yet");
    let hub_1 = document(&store, "hub-1").await;
    let peers = &hub_1.interfaces[0].peers;
    assert_eq!(peers.len(), 2);
    assert!(peers[1].public_key == new && peers[1].allowed_ips.is_empty(), "the old key still has the address");
    assert_eq!(document(&store, "edge-1").await.interfaces[0].next_key, Some(new));
    store_report(&store, "hub-1", NOW, report(hub_1.generation)).await;
    assert!(step(KeyStep::Announce).await.unwrap().ready);
    assert!(step(KeyStep::Switch).await.unwrap().ready);
    assert!(step(KeyStep::Switch).await.unwrap().ready, "repeatable after a lost answer");
    let peers = document(&store, "hub-1").await.interfaces[0].peers.clone();
    assert_eq!((peers.len(), peers[0].public_key, peers[0].allowed_ips.len()), (1, new, 1));
    let taken = KeyRequest { wireguard_public_key: request("hub-1").wireguard_public_key, step: KeyStep::Announce };
    assert!(matches!(key_rotation::rotate(&store, &id, &taken, NOW).await, Err(RegistryError::KeyTaken)));
}

async fn signing_keys_overlap(kind: Kind) {
    let (store, _db) = open(kind).await;
    let master = MasterKey::new(&[1; 32]).unwrap();
    let first = SigningKeys::load(&store, &master, NOW).await.unwrap().public();
    assert_eq!(SigningKeys::load(&store, &master, NOW).await.unwrap().public(), first, "created once");
    assert!(SigningKeys::load(&store, &MasterKey::new(&[2; 32]).unwrap(), NOW).await.is_err());
    let mut tx = store.write().await.unwrap();
    let retired = tx.retire_signing_key(first[0], Without::NoNode).await.unwrap();
    assert_eq!(retired, Retirement::NotRetirable, "the last active key stays");
    let second = SigningKeys::add(&mut tx, &master, NOW + 1).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(SigningKeys::load(&store, &master, NOW).await.unwrap().public(), [first[0], second]);
    let mut tx = store.write().await.unwrap();
    assert_eq!(tx.retire_signing_key(first[0], Without::NoNode).await.unwrap(), Retirement::Retired);
    tx.commit().await.unwrap();
    assert_eq!(SigningKeys::load(&store, &master, NOW).await.unwrap().public(), [second]);
}

async fn no_node_is_locked_out_by_a_retired_key(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let master = MasterKey::new(&[1; 32]).unwrap();
    let first = SigningKeys::load(&store, &master, NOW).await.unwrap().public()[0];
    let token = token(&store, 3).await;
    for id in ["edge-1", "edge-2"] {
        join(&store, id, &token).await.unwrap();
        store_report(&store, id, NOW, report(document(&store, id).await.generation)).await;
    }
    let mut tx = store.write().await.unwrap();
    let second = SigningKeys::add(&mut tx, &master, NOW + 1).await.unwrap();
    tx.commit().await.unwrap();
    join(&store, "edge-3", &token).await.expect("it pins both keys at its enrolment");
    let retire = async |key, without| {
        let mut tx = store.write().await.unwrap();
        let done = tx.retire_signing_key(key, without).await.unwrap();
        drop(tx);
        done
    };
    let lost = |ids: &[&str]| Retirement::WouldLose(ids.iter().map(|id| id.parse().unwrap()).collect());
    assert_eq!(retire(first, Without::NoNode).await, lost(&["edge-1", "edge-2"]));
    assert_eq!(retire(second, Without::NoNode).await, Retirement::Retired, "every node knows the older one");
    let generation = document(&store, "edge-1").await.generation;
    let trial = |generation| NodeReport { outcome: Outcome::Trial, ..report(generation) };
    store_report(&store, "edge-1", NOW + 2, report(generation)).await;
    store_report(&store, "edge-2", NOW + 2, trial(generation)).await;
    assert_eq!(retire(first, Without::NoNode).await, lost(&["edge-2"]), "on trial is not kept");
    let reverted = NodeReport { outcome: Outcome::Reverted, ..report(generation - 1) };
    store_report(&store, "edge-2", NOW + 3, reverted).await;
    assert_eq!(retire(first, Without::NoNode).await, lost(&["edge-2"]));
    assert_eq!(retire(first, Without::AnyNode).await, Retirement::Retired);
    store_report(&store, "edge-2", NOW + 4, report(generation + 1)).await;
    store_report(&store, "edge-1", NOW + 4, trial(generation + 1)).await;
    assert_eq!(retire(first, Without::NoNode).await, Retirement::Retired, "edge-1 kept the one before its trial");
}

/// A board whose handshakes a hub refuses is given a new key through the control plane, without that hub.
async fn silent_hub_does_not_hold_up_a_new_key(kind: Kind) {
    const HOUR: i64 = 3_600_000;
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", None).await;
    hub(&store, "hub-2", None).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let id = "edge-1".parse().unwrap();
    let request = KeyRequest { wireguard_public_key: PublicKey([42; 32]), step: KeyStep::Announce };
    let ready = async || key_rotation::rotate(&store, &id, &request, NOW).await.unwrap().ready;
    let tell = async |hub: &str, at_ms, generation: Option<u64>| {
        let generation = match generation {
            Some(generation) => generation,
            None => document(&store, hub).await.generation,
        };
        store_report(&store, hub, at_ms, report(generation)).await;
    };
    for hub in ["hub-1", "hub-2"] {
        tell(hub, NOW - HOUR, None).await;
    }
    assert!(!ready().await, "no hub has the key, and both are silent");
    tell("hub-1", NOW - 2, None).await;
    assert!(ready().await, "hub-2 has been silent for an hour");
    tell("hub-2", NOW - 1, Some(1)).await;
    assert!(!ready().await, "it reports, and will have the key soon");
    tell("hub-2", NOW, None).await;
    assert!(ready().await);
}

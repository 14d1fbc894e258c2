//! The conformance suite of the store: the same promises kept by both databases.
use crate::db::{Kind, open};
use crate::world::{NOW, identity, network, operator, request, token};
use spoke::control::ipam::Pool;
use spoke::control::registry::enrol::{Enrolled, enrol};
use spoke::control::registry::{RegistryError, keys, operate, release};
use spoke::control::signing::{MasterKey, SigningKeys};
use spoke::control::store::audit::Filter;
use spoke::control::store::fleet::Wanted;
use spoke::control::store::lease::LeaseError;
use spoke::control::store::network::Access;
use spoke::control::store::node::NodeState;
use spoke::control::store::release::Release;
use spoke::control::store::report::Received;
use spoke::control::store::token::NewToken;
use spoke::control::store::{Store, StoreError};
use spoke::enroll::document::StateDocument;
use spoke::enroll::wire::{KeyRequest, KeyStep, Outcome, ProvisionConfig, Report};
use spoke::net::key::PublicKey;
use std::collections::BTreeSet;
use std::net::IpAddr;

crate::on_both![
    same_keys_get_the_same_answer,
    a_name_or_key_of_another_is_refused,
    tokens_end,
    concurrent_enrolments_get_different_addresses,
    an_exhausted_pool_says_so_and_quarantine_holds,
    preferences_follow_the_model,
    approval_comes_before_an_address,
    documents_say_what_is_stored,
    only_granted_nodes_are_peers,
    a_key_changes_in_two_steps,
    what_fails_leaves_nothing,
    other_processes_are_heard,
    a_job_is_done_once,
    older_reports_never_win,
    a_backup_restores_into_either_database,
    signing_keys_overlap,
    a_pool_cannot_shrink_under_its_leases,
    a_release_is_wanted_of_one_node_before_all,
];

async fn join(store: &Store, id: &str, token: &str) -> Result<ProvisionConfig, RegistryError> {
    match enrol(store, &[], &request(id), token, NOW).await? {
        Enrolled::Active(config) => Ok(*config),
        Enrolled::Pending => panic!("{id} is pending"),
    }
}

async fn document(store: &Store, id: &str) -> StateDocument {
    let mut tx = store.read().await.unwrap();
    match tx.wanted(&id.parse().unwrap(), 0, &[identity("signer").public()]).await.unwrap() {
        Wanted::Document(document) => *document,
        other => panic!("{id}: {other:?}"),
    }
}

async fn hub(store: &Store, id: &str, address: Option<&str>) {
    let endpoint = "hub.example.net:51820".parse().unwrap();
    let address = address.map(|a| a.parse().unwrap());
    let token =
        operate::add_hub(store, &id.parse().unwrap(), "field", &endpoint, address, &operator(), NOW).await.unwrap();
    join(store, id, token.reveal()).await.unwrap();
}

async fn same_keys_get_the_same_answer(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let once = token(&store, 1).await;
    let first = join(&store, "edge-1", &once).await.unwrap();
    let again = join(&store, "edge-1", &once).await.unwrap();
    assert_eq!(first, again, "the answer was lost on the way, and the token is used up");
    assert!(matches!(join(&store, "edge-2", &once).await, Err(RegistryError::BadToken)));
}

async fn a_name_or_key_of_another_is_refused(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let token = token(&store, 100).await;
    join(&store, "edge-1", &token).await.unwrap();

    let mut posing = request("edge-1");
    posing.wireguard_public_key = PublicKey([9; 32]);
    let refused = enrol(&store, &[], &posing, &token, NOW).await.unwrap_err();
    let RegistryError::NodeIdTaken { existing, .. } = refused else { panic!("{refused}") };
    assert_eq!(existing["wireguard_public_key"], request("edge-1").wireguard_public_key.to_string());
    posing = request("edge-1");
    posing.identity_public_key = identity("somebody else").public();
    assert!(matches!(enrol(&store, &[], &posing, &token, NOW).await, Err(RegistryError::NodeIdTaken { .. })));
    assert!(
        matches!(enrol(&store, &[], &posing, "spk_no", NOW).await, Err(RegistryError::BadToken)),
        "without a token nobody learns which names exist"
    );

    for change in [0, 1] {
        let mut thief = request("edge-2");
        match change {
            0 => thief.wireguard_public_key = request("edge-1").wireguard_public_key,
            _ => thief.identity_public_key = request("edge-1").identity_public_key,
        }
        assert!(matches!(enrol(&store, &[], &thief, &token, NOW).await, Err(RegistryError::KeyTaken)));
    }
    let tokens = store.read().await.unwrap().tokens().await.unwrap();
    assert_eq!(tokens[0].uses, 1, "what was refused has used nothing");
}

async fn tokens_end(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let make = |node: Option<&str>, expires_ms| NewToken {
        network: "field".into(),
        node: node.map(|n| n.parse().unwrap()),
        note: None,
        max_uses: 5,
        expires_ms,
    };
    let (id, text) = operate::add_token(&store, &make(None, None), &operator(), NOW).await.unwrap();
    let stored =
        store.read().await.unwrap().row("SELECT hash FROM token", &[]).await.unwrap().unwrap().text("hash").unwrap();
    assert!(!text.reveal().contains(&stored) && stored.len() == 64, "only a hash is kept");
    join(&store, "edge-1", text.reveal()).await.unwrap();
    operate::revoke_token(&store, &id, &operator(), NOW).await.unwrap();
    assert!(matches!(join(&store, "edge-2", text.reveal()).await, Err(RegistryError::BadToken)));
    assert!(matches!(operate::revoke_token(&store, &id, &operator(), NOW).await, Err(RegistryError::NotFound(..))));

    let (_, old) = operate::add_token(&store, &make(None, Some(NOW)), &operator(), NOW - 1).await.unwrap();
    assert!(matches!(join(&store, "edge-3", old.reveal()).await, Err(RegistryError::BadToken)));
    let (_, bound) = operate::add_token(&store, &make(Some("edge-4"), None), &operator(), NOW).await.unwrap();
    assert!(matches!(join(&store, "edge-5", bound.reveal()).await, Err(RegistryError::BadToken)));
    join(&store, "edge-4", bound.reveal()).await.unwrap();
    let mut wrong = bound.reveal().clone();
    wrong.pop();
    wrong.push(if bound.reveal().ends_with('A') { 'B' } else { 'A' });
    for guess in [wrong.as_str(), "", "spk__", "spk_000000000000_", "Bearer", "spk_é"] {
        assert!(matches!(join(&store, "edge-6", guess).await, Err(RegistryError::BadToken)), "{guess}");
    }
}

async fn concurrent_enrolments_get_different_addresses(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/22", |n| n.pool6 = Some("fd00:8::/64".parse().unwrap())).await;
    let token = token(&store, 1000).await;
    let mut joining = tokio::task::JoinSet::new();
    for i in 0..120 {
        let (store, token) = (store.clone(), token.clone());
        joining.spawn(async move { join(&store, &format!("edge-{i}"), &token).await.unwrap() });
    }
    let all = joining.join_all().await;
    let four: BTreeSet<IpAddr> = all.iter().map(|c| c.assigned_ip).collect();
    let six: BTreeSet<IpAddr> = all.iter().filter_map(|c| c.assigned_ip6).collect();
    assert_eq!((four.len(), six.len()), (120, 120));
    assert_eq!(all[0].subnet_mask, "255.255.252.0");
    let stats = store.read().await.unwrap();
    let mut stats = stats;
    let field = stats.network("field").await.unwrap().unwrap();
    let figures = stats.pool_stats(&field).await.unwrap();
    assert_eq!((figures.total_addresses, figures.allocated_addresses, figures.available_addresses), (1022, 120, 902));
}

async fn an_exhausted_pool_says_so_and_quarantine_holds(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/29", |n| {
        n.reserved = vec!["10.8.0.1".parse().unwrap()];
        n.quarantine_secs = 60;
    })
    .await;
    let token = token(&store, 100).await;
    for i in 0..5 {
        join(&store, &format!("edge-{i}"), &token).await.unwrap();
    }
    let said = join(&store, "late", &token).await.unwrap_err();
    assert!(matches!(&said, RegistryError::Lease(LeaseError::Exhausted { usable: 5, .. })), "{said}");
    assert!(said.to_string().contains("10.8.0.0/29"), "{said}");
    let id = "late".parse().unwrap();
    assert!(store.read().await.unwrap().node(&id).await.unwrap().is_none(), "nothing is half done");

    let gone = join(&store, "edge-3", &token).await.unwrap().assigned_ip;
    operate::remove(&store, &"edge-3".parse().unwrap(), &operator(), NOW).await.unwrap();
    assert!(join(&store, "late", &token).await.is_err(), "the address is in quarantine");
    let later = |id: &'static str, ms| {
        let (store, token) = (store.clone(), token.clone());
        async move { enrol(&store, &[], &request(id), &token, NOW + ms).await }
    };
    assert!(later("late", 59_999).await.is_err());
    let Ok(Enrolled::Active(config)) = later("late", 60_000).await else { panic!("the quarantine is over") };
    assert_eq!(config.assigned_ip, gone);

    operate::remove(&store, &"edge-4".parse().unwrap(), &operator(), NOW + 60_000).await.unwrap();
    assert!(matches!(later("edge-4", 61_000).await, Ok(Enrolled::Active(_))), "a node's own address waits for it");
}

/// The SQL finds the same free address as the arithmetic does on a set in memory.
async fn preferences_follow_the_model(kind: Kind) {
    let (store, _db) = open(kind).await;
    let field = network(&store, "10.8.0.0/20", |n| n.reserved = vec!["10.8.0.1".parse().unwrap()]).await;
    let pool = Pool::new(field.pool4.unwrap(), &field.reserved).unwrap();
    let mut taken = BTreeSet::new();
    let mut tx = store.write().await.unwrap();
    let mut number: u64 = 7;
    for i in 0..3000 {
        // Runs of neighbours and scattered ones, by a fixed sequence.
        number = if i % 4 == 0 { number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) } else { number + 1 };
        let Ok(model) = pool.free(pool.preference(number), |from| {
            Ok::<_, std::convert::Infallible>((from..).find(|i| !taken.contains(i)).unwrap())
        });
        let model = model.unwrap();
        taken.insert(model);
        let got = tx.lease(&field, &format!("n{i}").parse().unwrap(), number, NOW).await.unwrap();
        assert_eq!(got[0].addr(), pool.address(model).unwrap(), "lease {i}");
    }
    tx.commit().await.unwrap();
}

async fn approval_comes_before_an_address(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |n| n.approval = true).await;
    let token = token(&store, 1).await;
    for _ in 0..2 {
        assert!(matches!(enrol(&store, &[], &request("edge-1"), &token, NOW).await.unwrap(), Enrolled::Pending));
    }
    let id = "edge-1".parse().unwrap();
    let mut tx = store.read().await.unwrap();
    let field = tx.network("field").await.unwrap().unwrap();
    assert_eq!(tx.pool_stats(&field).await.unwrap().allocated_addresses, 0);
    assert!(matches!(tx.wanted(&id, 0, &[]).await.unwrap(), Wanted::NotActive(NodeState::Pending)));
    drop(tx);
    operate::approve(&store, &id, &operator(), NOW).await.unwrap();
    assert!(matches!(operate::approve(&store, &id, &operator(), NOW).await, Err(RegistryError::Conflict(_))));
    join(&store, "edge-1", &token).await.unwrap();
}

async fn documents_say_what_is_stored(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |n| n.mtu = Some(1380)).await;
    let token = token(&store, 10).await;
    let early = join(&store, "edge-1", &token).await.unwrap();
    assert_eq!(document(&store, "edge-1").await.interfaces[0].hubs.len(), 0);
    let before = document(&store, "edge-1").await.generation;
    hub(&store, "hub-1", Some("10.8.0.1")).await;

    let node = document(&store, "edge-1").await;
    assert!(node.generation > before, "the node learns of the hub");
    let interface = &node.interfaces[0];
    assert_eq!(interface.addresses[0].to_string(), format!("{}/24", early.assigned_ip));
    assert_eq!((interface.mtu, interface.listen_port), (Some(1380), None));
    assert_eq!(interface.hubs[0].address.to_string(), "10.8.0.1");
    assert_eq!(interface.hubs[0].allowed_ips[0].to_string(), "10.8.0.1/32", "no forwarding: only the hub itself");
    let hub_1 = document(&store, "hub-1").await;
    assert_eq!(hub_1.interfaces[0].listen_port, Some(51820));
    assert_eq!(hub_1.interfaces[0].peers[0].allowed_ips[0].to_string(), format!("{}/32", early.assigned_ip));

    operate::set_network(&store, "field", |n| n.forwarding = true, &operator(), NOW).await.unwrap();
    let forwarded = document(&store, "edge-1").await;
    assert_eq!(forwarded.interfaces[0].hubs[0].allowed_ips[0].to_string(), "10.8.0.0/24");
    assert!(forwarded.generation > node.generation);

    let change: operate::NodeChange =
        serde_json::from_str(r#"{"isolated": true, "overrides": {"override_mtu": 1300, "override_keepalive": 0}}"#)
            .unwrap();
    operate::set_node(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    let own = document(&store, "edge-1").await;
    let over = &own.interfaces[0].overrides;
    assert_eq!((over.mtu, over.keepalive, over.listen_port), (Some(1300), Some(0), None), "0 is a value");
    assert_eq!(own.interfaces[0].mtu, Some(1380), "the node can say what it would do without");
    assert!(document(&store, "hub-1").await.interfaces[0].peers[0].isolated);
    let same = own.generation;
    operate::set_node(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "edge-1").await.generation, same, "no change, no generation");

    operate::remove(&store, &"edge-1".parse().unwrap(), &operator(), NOW).await.unwrap();
    assert!(document(&store, "hub-1").await.interfaces[0].peers.is_empty());
    let filter = Filter { entity_id: Some("edge-1".into()), limit: 10, ..Filter::default() };
    let records = store.read().await.unwrap().audit_records(&filter).await.unwrap();
    let actions: Vec<&str> = records.iter().map(|r| r.action.as_str()).collect();
    assert_eq!(actions, ["remove", "set", "enrol"], "newest first");
    assert_eq!(records[2].user, "node:edge-1");
}

async fn only_granted_nodes_are_peers(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |n| n.access = Access::Nft).await;
    hub(&store, "hub-1", Some("10.8.0.254")).await;
    let token = token(&store, 10).await;
    let mut tx = store.write().await.unwrap();
    let key = request("granted").wireguard_public_key.to_string();
    let sql = "INSERT INTO admission (node, wireguard_key, token_id) VALUES ($1, $2, $3)";
    tx.run(sql, &["granted".into(), key.into(), "7".into()]).await.unwrap();
    tx.commit().await.unwrap();
    let granted = join(&store, "granted", &token).await.unwrap();
    assert_eq!(granted.assigned_ip.to_string(), "10.8.0.7", "token 7 prefers the seventh host");
    join(&store, "other", &token).await.unwrap();
    let peers = document(&store, "hub-1").await.interfaces[0].peers.clone();
    assert_eq!(peers.iter().map(|p| p.node_id.as_str()).collect::<Vec<_>>(), ["granted"]);
}

fn report(generation: u64) -> Report {
    Report {
        generation,
        outcome: Outcome::Applied,
        reason: None,
        healthy: true,
        drift: 0,
        version: "0.1.0".into(),
        health: None,
    }
}

async fn say(store: &Store, id: &str, sent_ms: i64, report: Report) {
    let mut tx = store.write().await.unwrap();
    let node = id.parse().unwrap();
    tx.put_report(&Received { node, sent_ms, received_ms: sent_ms, report }).await.unwrap();
    tx.commit().await.unwrap();
}

async fn a_key_changes_in_two_steps(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", Some("10.8.0.1")).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let id = "edge-1".parse().unwrap();
    let new = PublicKey([42; 32]);
    let step = |step| {
        let (store, id) = (store.clone(), &id);
        async move { keys::change(&store, id, &KeyRequest { wireguard_public_key: new, step }, NOW).await }
    };
    assert!(matches!(step(KeyStep::Switch).await, Err(RegistryError::Conflict(_))), "not before it is announced");
    assert!(!step(KeyStep::Announce).await.unwrap().ready, "the hub has not reported yet");
    let hub_1 = document(&store, "hub-1").await;
    let peers = &hub_1.interfaces[0].peers;
    assert_eq!(peers.len(), 2);
    assert!(peers[1].public_key == new && peers[1].allowed_ips.is_empty(), "the old key still has the address");
    assert_eq!(document(&store, "edge-1").await.interfaces[0].next_key, Some(new));
    say(&store, "hub-1", NOW, report(hub_1.generation)).await;
    assert!(step(KeyStep::Announce).await.unwrap().ready);
    assert!(step(KeyStep::Switch).await.unwrap().ready);
    assert!(step(KeyStep::Switch).await.unwrap().ready, "the answer was lost: the same again");
    let peers = document(&store, "hub-1").await.interfaces[0].peers.clone();
    assert_eq!((peers.len(), peers[0].public_key, peers[0].allowed_ips.len()), (1, new, 1));
    let taken = KeyRequest { wireguard_public_key: request("hub-1").wireguard_public_key, step: KeyStep::Announce };
    assert!(matches!(keys::change(&store, &id, &taken, NOW).await, Err(RegistryError::KeyTaken)));
}

async fn what_fails_leaves_nothing(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let once = token(&store, 1).await;
    let mut tx = store.write().await.unwrap();
    tx.redeem(&once, &"edge-1".parse().unwrap(), NOW).await.unwrap().unwrap();
    tx.touch_network("field").await.unwrap();
    drop(tx);
    join(&store, "edge-1", &once).await.expect("the token was not used by the transaction that was dropped");
    let mut tx = store.write().await.unwrap();
    let again = tx.add_network(&tx_network(&store).await, NOW).await;
    assert!(matches!(again, Err(StoreError::Taken(_))), "{again:?}");
}

async fn tx_network(store: &Store) -> spoke::control::store::network::Network {
    store.read().await.unwrap().network("field").await.unwrap().unwrap()
}

async fn other_processes_are_heard(kind: Kind) {
    let (here, db) = open(kind).await;
    network(&here, "10.8.0.0/24", |_| {}).await;
    let token = token(&here, 10).await;
    join(&here, "edge-1", &token).await.unwrap();
    let there = Store::open(&db.url).await.unwrap();
    let id = "edge-1".parse().unwrap();
    let mut waiter = there.waiter(&id);
    let listener = tokio::spawn({
        let there = there.clone();
        async move { there.listen().await }
    });
    // The first thing a listener does is to wake everybody, since it may have missed something.
    waiter.changed().await;
    let label = operate::NodeChange {
        overrides: Some(serde_json::from_str(r#"{"override_mtu": 1300}"#).unwrap()),
        ..Default::default()
    };
    operate::set_node(&here, &id, &label, &operator(), NOW).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(5), waiter.changed()).await.expect("the change is heard of");
    assert_eq!(document(&there, "edge-1").await.interfaces[0].overrides.mtu, Some(1300));
    drop(waiter);
    assert_eq!(there.waiting(), 0, "nobody is remembered who waits no more");
    listener.abort();
}

async fn a_job_is_done_once(kind: Kind) {
    let (store, _db) = open(kind).await;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        claims.spawn(async move {
            let mut tx = store.write().await.unwrap();
            let mine = tx.claim("sweep", NOW, 1000).await.unwrap();
            tx.commit().await.unwrap();
            mine
        });
    }
    assert_eq!(claims.join_all().await.into_iter().filter(|c| *c).count(), 1);
    assert!(store.prune(NOW).await.unwrap());
    assert!(!store.prune(NOW + 59_999).await.unwrap());
}

async fn older_reports_never_win(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    say(&store, "edge-1", NOW, report(5)).await;
    say(&store, "edge-1", NOW - 1, report(9)).await;
    say(&store, "edge-1", NOW, report(9)).await;
    say(&store, "nobody", NOW, report(9)).await;
    let id = "edge-1".parse().unwrap();
    let view = store.read().await.unwrap().node_views(Some(&id), "", 10).await.unwrap().remove(0);
    assert_eq!(view.observed_generation, Some(5), "a replayed or late report changes nothing");
    assert_eq!(view.last_seen.as_deref(), Some("2026-01-01T00:00:00Z"));
    let mut tx = store.write().await.unwrap();
    assert!(tx.use_nonce(&id, "aa", NOW).await.unwrap());
    assert!(!tx.use_nonce(&id, "aa", NOW).await.unwrap(), "a nonce is used once");
}

async fn a_backup_restores_into_either_database(kind: Kind) {
    let (store, _db) = open(kind).await;
    let master = MasterKey::new(&[1; 32]).unwrap();
    let keys = SigningKeys::load(&store, &master, NOW).await.unwrap();
    network(&store, "10.8.0.0/24", |n| n.dns = vec!["10.8.0.53".parse().unwrap()]).await;
    hub(&store, "hub-1", Some("10.8.0.1")).await;
    let token = token(&store, 3).await;
    let config = join(&store, "edge-1", &token).await.unwrap();
    want(&store, None, "1.4.0").await.unwrap();
    let before = document(&store, "edge-1").await;
    let mut backup = Vec::new();
    let rows = store.dump(&mut backup).await.unwrap();
    let text = String::from_utf8(backup.clone()).unwrap();
    assert!(!text.contains(token.rsplit('_').next().unwrap()), "no token is in it");

    for other in [Kind::Sqlite, Kind::Postgres] {
        let (restored, _db) = open(other).await;
        let end = text.rfind("{\"rows\"").unwrap();
        assert!(restored.restore(&backup[..end]).await.unwrap_err().to_string().contains("cut short"));
        assert!(restored.restore(&backup[..end - 20]).await.is_err(), "cut within a line");
        assert_eq!(restored.restore(backup.as_slice()).await.unwrap(), rows, "a failed restore has left nothing");
        assert!(restored.restore(backup.as_slice()).await.unwrap_err().to_string().contains("not empty"));
        let again = join(&restored, "edge-1", &token).await.unwrap();
        assert_eq!(again, config);
        let after = document(&restored, "edge-1").await;
        assert!(after.generation > before.generation, "devices take it as newer than anything lost since");
        assert_eq!(StateDocument { generation: before.generation, ..after }, before);
        let theirs = SigningKeys::load(&restored, &master, NOW).await.unwrap();
        assert_eq!(theirs.public(), keys.public());
        join(&restored, "edge-2", &token).await.expect("it goes on where it was");
    }
    let (restored, _db) = open(kind).await;
    assert!(restored.restore(&b"{}\n"[..]).await.is_err());
}

async fn signing_keys_overlap(kind: Kind) {
    let (store, _db) = open(kind).await;
    let master = MasterKey::new(&[1; 32]).unwrap();
    let first = SigningKeys::load(&store, &master, NOW).await.unwrap().public();
    assert_eq!(SigningKeys::load(&store, &master, NOW).await.unwrap().public(), first, "made once");
    assert!(SigningKeys::load(&store, &MasterKey::new(&[2; 32]).unwrap(), NOW).await.is_err());
    let mut tx = store.write().await.unwrap();
    assert!(!tx.retire_signing_key(first[0]).await.unwrap(), "the last key stays");
    let second = SigningKeys::add(&mut tx, &master, NOW + 1).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(SigningKeys::load(&store, &master, NOW).await.unwrap().public(), [first[0], second]);
    let mut tx = store.write().await.unwrap();
    assert!(tx.retire_signing_key(first[0]).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(SigningKeys::load(&store, &master, NOW).await.unwrap().public(), [second]);
}

async fn a_pool_cannot_shrink_under_its_leases(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/23", |n| n.access = Access::Nft).await;
    hub(&store, "hub-1", Some("10.8.1.9")).await;
    let shrink = |n: &mut spoke::control::store::network::Network| n.pool4 = Some("10.8.0.0/24".parse().unwrap());
    let said = operate::set_network(&store, "field", shrink, &operator(), NOW).await.unwrap_err().to_string();
    assert!(said.contains("hub-1"), "{said}");
    let grow = |n: &mut spoke::control::store::network::Network| n.pool4 = Some("10.8.0.0/22".parse().unwrap());
    operate::set_network(&store, "field", grow, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "hub-1").await.interfaces[0].addresses[0].to_string(), "10.8.1.9/22");
}

async fn want(store: &Store, node: Option<&str>, version: &str) -> Result<(), RegistryError> {
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

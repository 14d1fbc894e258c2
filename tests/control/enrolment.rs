//! Who becomes a node, on both databases: names, keys, tokens, approval, removal, and what each is told.
use crate::db::{Kind, open};
use crate::world::{NOW, document, hub, identity, join, network, operator, request, token};
use spoke_control::registry::enrol::{Enrolled, enrol};
use spoke_control::registry::{RegistryError, operate};
use spoke_control::store::audit::Filter;
use spoke_control::store::fleet::Wanted;
use spoke_control::store::node::NodeState;
use spoke_control::store::token::NewToken;
use spoke_model::key::PublicKey;

crate::on_both![
    same_keys_get_the_same_answer,
    a_name_or_key_of_another_is_refused,
    tokens_end,
    approval_comes_before_an_address,
    who_was_removed_comes_back_by_invitation_only,
    an_announced_node_needs_no_approval,
    a_node_switched_off_is_nobodys_peer,
    documents_say_what_is_stored,
];

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
    let refused = enrol(&store, &posing, &token, None, NOW).await.unwrap_err();
    let RegistryError::NodeIdTaken { existing, .. } = refused else { panic!("{refused}") };
    assert_eq!(existing["wireguard_public_key"], request("edge-1").wireguard_public_key.to_string());
    posing = request("edge-1");
    posing.identity_public_key = identity("somebody else").public();
    assert!(matches!(enrol(&store, &posing, &token, None, NOW).await, Err(RegistryError::NodeIdTaken { .. })));
    assert!(
        matches!(enrol(&store, &posing, "spk_no", None, NOW).await, Err(RegistryError::BadToken)),
        "without a token nobody learns which names exist"
    );

    for change in [0, 1] {
        let mut thief = request("edge-2");
        match change {
            0 => thief.wireguard_public_key = request("edge-1").wireguard_public_key,
            _ => thief.identity_public_key = request("edge-1").identity_public_key,
        }
        assert!(matches!(enrol(&store, &thief, &token, None, NOW).await, Err(RegistryError::KeyTaken)));
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

async fn approval_comes_before_an_address(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |n| n.approval = true).await;
    let token = token(&store, 1).await;
    for _ in 0..2 {
        assert!(matches!(enrol(&store, &request("edge-1"), &token, None, NOW).await.unwrap(), Enrolled::Pending));
    }
    let id = "edge-1".parse().unwrap();
    let mut tx = store.read().await.unwrap();
    let field = tx.network("field").await.unwrap().unwrap();
    assert_eq!(tx.pool_stats(&field).await.unwrap().allocated_addresses, 0);
    assert!(matches!(tx.wanted(&id, 0).await.unwrap(), Wanted::NotActive(NodeState::Pending)));
    drop(tx);
    operate::approve(&store, &id, &operator(), NOW).await.unwrap();
    assert!(matches!(operate::approve(&store, &id, &operator(), NOW).await, Err(RegistryError::Conflict(_))));
    join(&store, "edge-1", &token).await.unwrap();
}

async fn who_was_removed_comes_back_by_invitation_only(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let general = token(&store, 100).await;
    let id: spoke_model::node_id::NodeId = "edge-1".parse().unwrap();
    let before = join(&store, "edge-1", &general).await.unwrap();
    let invitation =
        || NewToken { network: "field".into(), node: Some(id.clone()), note: None, max_uses: 5, expires_ms: None };
    let (_, old) = operate::add_token(&store, &invitation(), &operator(), NOW).await.unwrap();
    operate::remove(&store, &id, &operator(), NOW).await.unwrap();
    assert!(
        matches!(join(&store, "edge-1", &general).await, Err(RegistryError::Revoked(_))),
        "its token has uses left"
    );
    assert!(matches!(join(&store, "edge-1", old.reveal()).await, Err(RegistryError::BadToken)), "made before");
    let mut posing = request("edge-2");
    posing.identity_public_key = request("edge-1").identity_public_key;
    assert!(matches!(enrol(&store, &posing, &general, None, NOW).await, Err(RegistryError::KeyTaken)));
    let (_, new) = operate::add_token(&store, &invitation(), &operator(), NOW).await.unwrap();
    let after = join(&store, "edge-1", new.reveal()).await.unwrap();
    assert_eq!(after.assigned_ip, before.assigned_ip, "a node's own address waits for it");
}

async fn an_announced_node_needs_no_approval(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |n| n.approval = true).await;
    let id = "edge-1".parse().unwrap();
    let add = async || operate::add_node(&store, &id, "field", Some("by the door".into()), &operator(), NOW).await;
    let token = add().await.unwrap();
    assert!(matches!(add().await, Err(RegistryError::Conflict(_))), "it is there already");
    assert!(matches!(join(&store, "edge-2", token.reveal()).await, Err(RegistryError::BadToken)), "for edge-1 alone");
    join(&store, "edge-1", token.reveal()).await.unwrap();
    let view = store.read().await.unwrap().node_detail(&id).await.unwrap().unwrap();
    assert_eq!((view.view.state, view.view.label.as_deref()), (NodeState::Active, Some("by the door")));
    assert_eq!(view.capabilities.unwrap().memory_mb, 64);
}

async fn a_node_switched_off_is_nobodys_peer(kind: Kind) {
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", Some("10.8.0.1")).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let (edge, hub_id) = ("edge-1".parse().unwrap(), "hub-1".parse().unwrap());
    let before = document(&store, "hub-1").await;
    operate::toggle(&store, &edge, &operator(), NOW).await.unwrap();
    let off = document(&store, "hub-1").await;
    assert!(off.interfaces[0].peers.is_empty() && off.generation > before.generation);
    document(&store, "edge-1").await;
    operate::toggle(&store, &edge, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "hub-1").await.interfaces[0].peers, before.interfaces[0].peers);
    let node = document(&store, "edge-1").await;
    operate::toggle(&store, &hub_id, &operator(), NOW).await.unwrap();
    let without = document(&store, "edge-1").await;
    assert!(without.interfaces[0].hubs.is_empty() && without.generation > node.generation);
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
    let nets: operate::NodeChange =
        serde_json::from_str(r#"{"overrides": {"override_endpoint_allowed_ip": ["192.168.0.0/16"]}}"#).unwrap();
    operate::set_node(&store, &"edge-1".parse().unwrap(), &nets, &operator(), NOW).await.unwrap();
    let over = document(&store, "edge-1").await.interfaces[0].overrides.clone();
    assert_eq!(over.endpoint_allowed_ips, Some(["192.168.0.0/16".parse().unwrap()].into()));
    operate::set_node(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    let own = document(&store, "edge-1").await;
    assert!(document(&store, "hub-1").await.interfaces[0].peers[0].isolated);
    let same = own.generation;
    operate::set_node(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "edge-1").await.generation, same, "no change, no generation");

    operate::remove(&store, &"edge-1".parse().unwrap(), &operator(), NOW).await.unwrap();
    assert!(document(&store, "hub-1").await.interfaces[0].peers.is_empty());
    let filter = Filter { entity_id: Some("edge-1".into()), limit: 10, ..Filter::default() };
    let records = store.read().await.unwrap().audit_records(&filter).await.unwrap();
    let actions: Vec<&str> = records.iter().map(|r| r.action.as_str()).collect();
    assert_eq!(actions, ["remove", "set", "set", "set", "enrol"], "newest first");
    assert_eq!(records[4].user, "node:edge-1");
}

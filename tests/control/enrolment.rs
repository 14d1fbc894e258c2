//! Enrolment on both databases: node ids, keys, tokens, approval, removal, documents.
use crate::database::Kind;
use crate::fixture::{NOW, document, hub, identity, join, open_with_network, operator, request, token};
use spoke_control::registry::enrol::{Enrolled, bad_token, enrol};
use spoke_control::registry::node_change::NodeChange;
use spoke_control::registry::nodes::NodeAnnouncement;
use spoke_control::registry::{RegistryError, networks, nodes, tokens};
use spoke_control::store::audit::AuditFilter;
use spoke_control::store::document::DocumentLookup;
use spoke_control::store::node::NodeState;
use spoke_control::store::token::NewToken;
use spoke_model::key::PublicKey;

crate::on_both_databases![
    same_keys_get_the_same_answer,
    taken_id_or_key_is_refused,
    spent_expired_and_revoked_tokens_are_refused,
    refused_token_is_explained_to_operators,
    pending_node_has_no_address,
    removed_node_needs_a_new_bound_token,
    announced_node_needs_no_approval,
    disabled_node_is_no_peer,
    documents_follow_stored_settings,
];

async fn same_keys_get_the_same_answer(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let once = token(&store, 1).await;
    let first = join(&store, "edge-1", &once).await.unwrap();
    let again = join(&store, "edge-1", &once).await.unwrap();
    assert_eq!(first, again, "repeatable after a lost answer, with a spent token");
    assert!(matches!(join(&store, "edge-2", &once).await, Err(RegistryError::BadToken)));
}

async fn taken_id_or_key_is_refused(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let token = token(&store, 100).await;
    join(&store, "edge-1", &token).await.unwrap();

    let mut impostor = request("edge-1");
    impostor.wireguard_public_key = PublicKey([9; 32]);
    let refused = enrol(&store, &impostor, &token, None, NOW).await.unwrap_err();
    let RegistryError::NodeIdTaken { existing, .. } = refused else { panic!("{refused}") };
    assert_eq!(existing["wireguard_public_key"], request("edge-1").wireguard_public_key.to_string());
    impostor = request("edge-1");
    impostor.identity_public_key = identity("another device").public();
    assert!(matches!(enrol(&store, &impostor, &token, None, NOW).await, Err(RegistryError::NodeIdTaken { .. })));
    assert!(
        matches!(enrol(&store, &impostor, "spk_no", None, NOW).await, Err(RegistryError::BadToken)),
        "without a token no node id is disclosed"
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
    assert_eq!(tokens[0].uses, 1, "refused requests do not use the token");
}

async fn spent_expired_and_revoked_tokens_are_refused(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let make = |node: Option<&str>, expires_ms| NewToken {
        network: "field".into(),
        node: node.map(|n| n.parse().unwrap()),
        note: None,
        max_uses: 5,
        expires_ms,
        key_proof: false,
    };
    let (id, text) = tokens::create(&store, &make(None, None), &operator(), NOW).await.unwrap();
    let stored =
        store.read().await.unwrap().row("SELECT hash FROM token", &[]).await.unwrap().unwrap().text("hash").unwrap();
    assert!(!text.reveal().contains(&stored) && stored.len() == 64, "only a hash is stored");
    join(&store, "edge-1", text.reveal()).await.unwrap();
    tokens::revoke(&store, &id, &operator(), NOW).await.unwrap();
    assert!(matches!(join(&store, "edge-2", text.reveal()).await, Err(RegistryError::BadToken)));
    assert!(matches!(tokens::revoke(&store, &id, &operator(), NOW).await, Err(RegistryError::NotFound(..))));

    let (_, old) = tokens::create(&store, &make(None, Some(NOW)), &operator(), NOW - 1).await.unwrap();
    assert!(matches!(join(&store, "edge-3", old.reveal()).await, Err(RegistryError::BadToken)));
    let (_, bound) = tokens::create(&store, &make(Some("edge-4"), None), &operator(), NOW).await.unwrap();
    assert!(matches!(join(&store, "edge-5", bound.reveal()).await, Err(RegistryError::BadToken)));
    join(&store, "edge-4", bound.reveal()).await.unwrap();
    let mut wrong = bound.reveal().clone();
    wrong.pop();
    wrong.push(if bound.reveal().ends_with('A') { 'B' } else { 'A' });
    for guess in [wrong.as_str(), "", "spk__", "spk_000000000000_", "Bearer", "spk_é"] {
        assert!(matches!(join(&store, "edge-6", guess).await, Err(RegistryError::BadToken)), "{guess}");
    }
}

/// The device learns only that its token is not valid; the log and the audit trail say why, once for each reason.
async fn refused_token_is_explained_to_operators(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let make = |node: Option<&str>, expires_ms| NewToken {
        network: "field".into(),
        node: node.map(|n| n.parse().unwrap()),
        note: None,
        max_uses: 1,
        expires_ms,
        key_proof: false,
    };
    let create = async |new: NewToken| tokens::create(&store, &new, &operator(), NOW - 1).await.unwrap();
    let (used, bound) = (create(make(None, None)).await, create(make(Some("edge-4"), None)).await);
    let (expired, revoked) = (create(make(None, Some(NOW))).await, create(make(None, None)).await);
    join(&store, "edge-1", used.1.reveal()).await.unwrap();
    tokens::revoke(&store, &revoked.0, &operator(), NOW).await.unwrap();
    let node = "edge-5".parse().unwrap();
    for ((id, text), why) in [
        (used, "was used 1 of 1 times"),
        (bound, "is for node edge-4"),
        (expired, "expired at "),
        (revoked, "was revoked at "),
    ] {
        for _ in 0..2 {
            let reason = bad_token(&store, &node, text.reveal(), NOW).await.unwrap();
            assert!(reason.contains(&format!("token {id} {why}")), "{reason}");
        }
        let filter = AuditFilter { entity_id: Some(id), limit: 10, ..AuditFilter::default() };
        let records = store.read().await.unwrap().audit_records(&filter).await.unwrap();
        let refused: Vec<_> = records.iter().filter(|r| r.action == "enrolment_refused").collect();
        assert!(refused.len() == 1 && refused[0].details["reason"].as_str().unwrap().contains(why), "{refused:?}");
    }
    let reason = bad_token(&store, &node, "spk_000000000000_", NOW).await.unwrap();
    assert!(reason.contains("unknown token"), "{reason}");
}

async fn pending_node_has_no_address(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |n| n.approval = true).await;
    let token = token(&store, 1).await;
    for _ in 0..2 {
        assert!(matches!(enrol(&store, &request("edge-1"), &token, None, NOW).await.unwrap(), Enrolled::Pending));
    }
    let id = "edge-1".parse().unwrap();
    let mut tx = store.read().await.unwrap();
    let field = tx.network("field").await.unwrap().unwrap();
    assert_eq!(tx.pool_stats(&field).await.unwrap().allocated_addresses, 0);
    assert!(matches!(tx.document(&id, 0).await.unwrap(), DocumentLookup::NotActive(NodeState::Pending)));
    drop(tx);
    nodes::approve(&store, &id, &operator(), NOW).await.unwrap();
    assert!(matches!(nodes::approve(&store, &id, &operator(), NOW).await, Err(RegistryError::NotPending { .. })));
    join(&store, "edge-1", &token).await.unwrap();
}

async fn removed_node_needs_a_new_bound_token(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let general = token(&store, 100).await;
    let id: spoke_model::node_id::NodeId = "edge-1".parse().unwrap();
    let before = join(&store, "edge-1", &general).await.unwrap();
    let bound_token = || NewToken {
        network: "field".into(),
        node: Some(id.clone()),
        note: None,
        max_uses: 5,
        expires_ms: None,
        key_proof: false,
    };
    let (_, old) = tokens::create(&store, &bound_token(), &operator(), NOW).await.unwrap();
    nodes::remove(&store, &id, &operator(), NOW).await.unwrap();
    assert!(
        matches!(join(&store, "edge-1", &general).await, Err(RegistryError::Removed(_))),
        "its unbound token has uses left"
    );
    assert!(
        matches!(join(&store, "edge-1", old.reveal()).await, Err(RegistryError::Removed(_))),
        "created before the removal"
    );
    let mut impostor = request("edge-2");
    impostor.identity_public_key = request("edge-1").identity_public_key;
    let refused = enrol(&store, &impostor, &general, None, NOW).await;
    assert!(matches!(&refused, Err(RegistryError::Removed(name)) if *name == id), "under another name: {refused:?}");
    let (_, new) = tokens::create(&store, &bound_token(), &operator(), NOW).await.unwrap();
    let after = join(&store, "edge-1", new.reveal()).await.unwrap();
    assert_eq!(after.assigned_ip, before.assigned_ip, "its address was reserved for it");
}

async fn announced_node_needs_no_approval(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |n| n.approval = true).await;
    let id = "edge-1".parse().unwrap();
    let announced = NodeAnnouncement { label: Some("by the door".into()), fingerprint: None };
    let add = async || nodes::announce(&store, &id, "field", announced.clone(), &operator(), NOW).await;
    let token = add().await.unwrap();
    assert!(matches!(add().await, Err(RegistryError::Exists(..))), "it exists already");
    assert!(matches!(join(&store, "edge-2", token.reveal()).await, Err(RegistryError::BadToken)), "bound to edge-1");
    join(&store, "edge-1", token.reveal()).await.unwrap();
    let record = store.read().await.unwrap().node_record(&id).await.unwrap().unwrap();
    assert_eq!(
        (record.status.node.state, record.status.node.label.as_deref()),
        (NodeState::Active, Some("by the door"))
    );
    assert_eq!(record.capabilities.unwrap().memory_mb, 64);
}

async fn disabled_node_is_no_peer(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    hub(&store, "hub-1", Some("10.8.0.1")).await;
    join(&store, "edge-1", &token(&store, 1).await).await.unwrap();
    let (edge, hub_id) = ("edge-1".parse().unwrap(), "hub-1".parse().unwrap());
    let before = document(&store, "hub-1").await;
    nodes::toggle(&store, &edge, &operator(), NOW).await.unwrap();
    let off = document(&store, "hub-1").await;
    assert!(off.interfaces[0].peers.is_empty() && off.generation > before.generation);
    document(&store, "edge-1").await;
    nodes::toggle(&store, &edge, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "hub-1").await.interfaces[0].peers, before.interfaces[0].peers);
    let node = document(&store, "edge-1").await;
    nodes::toggle(&store, &hub_id, &operator(), NOW).await.unwrap();
    let without = document(&store, "edge-1").await;
    assert!(without.interfaces[0].hubs.is_empty() && without.generation > node.generation);
}

async fn documents_follow_stored_settings(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |n| n.mtu = Some(1380)).await;
    let token = token(&store, 10).await;
    let early = join(&store, "edge-1", &token).await.unwrap();
    assert_eq!(document(&store, "edge-1").await.interfaces[0].hubs.len(), 0);
    let before = document(&store, "edge-1").await.generation;
    hub(&store, "hub-1", Some("10.8.0.1")).await;

    let node = document(&store, "edge-1").await;
    assert!(node.generation > before, "the node gets the hub");
    let interface = &node.interfaces[0];
    assert_eq!(interface.addresses[0].to_string(), format!("{}/24", early.assigned_ip));
    assert_eq!((interface.mtu, interface.listen_port), (Some(1380), None));
    assert_eq!(interface.hubs[0].address.to_string(), "10.8.0.1");
    assert_eq!(interface.hubs[0].allowed_ips[0].to_string(), "10.8.0.1/32", "no forwarding: only the hub itself");
    let hub_1 = document(&store, "hub-1").await;
    assert_eq!(hub_1.interfaces[0].listen_port, Some(51820));
    assert_eq!(hub_1.interfaces[0].peers[0].allowed_ips[0].to_string(), format!("{}/32", early.assigned_ip));

    networks::change(&store, "field", |n| n.forwarding = true, &operator(), NOW).await.unwrap();
    let forwarded = document(&store, "edge-1").await;
    assert_eq!(forwarded.interfaces[0].hubs[0].allowed_ips[0].to_string(), "10.8.0.0/24");
    assert!(forwarded.generation > node.generation);

    let change: NodeChange =
        serde_json::from_str(r#"{"isolated": true, "overrides": {"override_mtu": 1300, "override_keepalive": 0}}"#)
            .unwrap();
    nodes::change(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    let own = document(&store, "edge-1").await;
    let over = &own.interfaces[0].overrides;
    assert_eq!((over.mtu, over.keepalive, over.listen_port), (Some(1300), Some(0), None), "0 is a value");
    assert_eq!(own.interfaces[0].mtu, Some(1380), "the value without the override is sent too");
    let nets: NodeChange =
        serde_json::from_str(r#"{"overrides": {"override_endpoint_allowed_ip": ["192.168.0.0/16"]}}"#).unwrap();
    nodes::change(&store, &"edge-1".parse().unwrap(), &nets, &operator(), NOW).await.unwrap();
    let over = document(&store, "edge-1").await.interfaces[0].overrides.clone();
    assert_eq!(over.endpoint_allowed_ips, Some(["192.168.0.0/16".parse().unwrap()].into()));
    nodes::change(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    let own = document(&store, "edge-1").await;
    assert!(document(&store, "hub-1").await.interfaces[0].peers[0].isolated);
    let same = own.generation;
    nodes::change(&store, &"edge-1".parse().unwrap(), &change, &operator(), NOW).await.unwrap();
    assert_eq!(document(&store, "edge-1").await.generation, same, "no change raises no generation");

    nodes::remove(&store, &"edge-1".parse().unwrap(), &operator(), NOW).await.unwrap();
    assert!(document(&store, "hub-1").await.interfaces[0].peers.is_empty());
    let filter = AuditFilter { entity_id: Some("edge-1".into()), limit: 10, ..AuditFilter::default() };
    let records = store.read().await.unwrap().audit_records(&filter).await.unwrap();
    let actions: Vec<&str> = records.iter().map(|r| r.action.as_str()).collect();
    assert_eq!(actions, ["remove", "set", "set", "set", "enrol"], "newest first");
    assert_eq!(records[4].actor, "node:edge-1");
}

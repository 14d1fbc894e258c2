//! Attacks on membership: names of others, removed devices, other networks, states of others.
use crate::database::{Kind, fresh};
use crate::fixture::{NOW, identity, join, open_with_network, operator, request, token};
use crate::server::{ControlPlane, Device, Settings, plain};
use ipnet::IpNet;
use spoke_control::registry::enrol::{Enrolled, enrol};
use spoke_control::registry::nodes::{HubAnnouncement, NodeAnnouncement};
use spoke_control::registry::{RegistryError, networks, nodes, tokens};
use spoke_control::store::Store;
use spoke_control::store::network::Network;
use spoke_control::store::node::NodeState;
use spoke_control::store::token::NewToken;
use spoke_enroll::request::{NONCE, Nonce};
use spoke_enroll::wire::Problem;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_sys::http::Http as _;

crate::on_both_databases![
    announced_name_needs_its_bound_token,
    running_control_plane_keeps_announced_names,
    token_of_another_network_takes_no_name,
    earlier_token_does_not_take_an_announced_name,
    removed_name_needs_a_new_bound_token_for_any_key,
    removal_can_revoke_the_enrolling_token,
    tokens_expire_by_default,
    removal_is_signed_for_the_removed_node_alone,
    removed_device_learns_it_whoever_holds_its_name,
    removed_device_does_not_use_up_what_its_successor_may_ask,
    announced_fingerprint_takes_the_name,
    hub_reads_only_its_own_network,
    node_state_needs_the_signature_of_the_node,
    node_is_led_back_from_a_generation_of_an_attacker,
];

async fn network_at(store: &Store, name: &str, pool: &str) {
    let pool: IpNet = pool.parse().unwrap();
    let network = Network::new(name, Some(pool), None, "wg0".parse().unwrap());
    networks::create(store, &network, &operator(), NOW).await.unwrap();
}

async fn token_for(store: &Store, network: &str, node: Option<&str>) -> String {
    let new = NewToken {
        network: network.into(),
        node: node.map(|n| n.parse().unwrap()),
        note: None,
        max_uses: 100,
        expires_ms: None,
        key_proof: false,
    };
    tokens::create(store, &new, &operator(), NOW).await.unwrap().1.reveal().clone()
}

async fn announced_hub(store: &Store, id: &str, network: &str) -> String {
    let endpoint = "hub.example.net:51820".parse().unwrap();
    let id = id.parse().unwrap();
    let announced = HubAnnouncement { endpoint, address: None, fingerprint: None };
    nodes::announce_hub(store, &id, network, &announced, &operator(), NOW).await.unwrap().reveal().clone()
}

async fn state_of(store: &Store, id: &str) -> Option<NodeState> {
    store.read().await.unwrap().node(&id.parse().unwrap()).await.unwrap().map(|n| n.state)
}

/// A device of the fleet's owner holds a token for many; it must not become the hub.
async fn announced_name_needs_its_bound_token(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |n| n.approval = true).await;
    let unbound = token(&store, 100).await;
    let of_hub = announced_hub(&store, "hub-1", "field").await;
    let id = "edge-1".parse().unwrap();
    let of_edge = nodes::announce(&store, &id, "field", NodeAnnouncement::default(), &operator(), NOW).await.unwrap();

    let mut attacker = request("hub-1");
    attacker.wireguard_public_key = PublicKey([7; 32]);
    attacker.identity_public_key = identity("attacker").public();
    assert!(matches!(enrol(&store, &attacker, &unbound, None, NOW).await, Err(RegistryError::BadToken)));
    let mut attacker = request("edge-1");
    attacker.identity_public_key = identity("attacker").public();
    assert!(matches!(enrol(&store, &attacker, &unbound, None, NOW).await, Err(RegistryError::BadToken)));
    assert_eq!(state_of(&store, "hub-1").await, Some(NodeState::Expected));
    assert_eq!(state_of(&store, "edge-1").await, Some(NodeState::Expected), "past approval");

    join(&store, "hub-1", &of_hub).await.expect("the hub itself");
    join(&store, "edge-1", of_edge.reveal()).await.expect("the device itself, without approval");
}

/// The same at the real program, so that an earlier one can be attacked as well.
async fn running_control_plane_keeps_announced_names(kind: Kind) {
    let (server, unbound) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let add = ["hub", "add", "hub-1", "--network", "field", "--endpoint", "hub.example.net:51820"];
    let of_hub = server.cli_ok(&add).await;
    assert_eq!(server.device("hub-1").enrol(&unbound).await.0, 401, "a token for devices makes no hub");
    assert_eq!(server.device("hub-1").enrol(&of_hub).await.0, 200, "the hub itself");
}

async fn token_of_another_network_takes_no_name(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    network_at(&store, "other", "10.9.0.0/24").await;
    let of_hub = announced_hub(&store, "hub-1", "field").await;
    let elsewhere = token_for(&store, "other", None).await;
    let bound_elsewhere = token_for(&store, "other", Some("hub-1")).await;
    for (what, text) in [("unbound", &elsewhere), ("bound to the name", &bound_elsewhere)] {
        let refused = enrol(&store, &request("hub-1"), text, None, NOW).await;
        assert!(matches!(refused, Err(RegistryError::BadToken)), "{what}: {refused:?}");
    }
    let hub = join(&store, "hub-1", &of_hub).await.unwrap();
    assert_eq!(hub.assigned_ip.to_string(), "10.8.0.1", "not shut out");

    // What an enrolled node has is not disclosed to the holder of another network's token.
    let mut impostor = request("hub-1");
    impostor.identity_public_key = identity("attacker").public();
    let refused = enrol(&store, &impostor, &elsewhere, None, NOW).await.unwrap_err();
    let RegistryError::NodeIdTaken { existing, .. } = refused else { panic!("{refused}") };
    assert!(existing.is_null(), "{existing}");
}

/// A bound token that was made for a device must not become a hub announced later under the same name.
async fn earlier_token_does_not_take_an_announced_name(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let early = token_for(&store, "field", Some("gate")).await;
    let of_hub = announced_hub(&store, "gate", "field").await;
    assert!(matches!(enrol(&store, &request("gate"), &early, None, NOW).await, Err(RegistryError::BadToken)));
    join(&store, "gate", &of_hub).await.unwrap();
}

async fn removed_name_needs_a_new_bound_token_for_any_key(kind: Kind) {
    let (store, _db) = open_with_network(kind, "10.8.0.0/24", |_| {}).await;
    let unbound = token(&store, 100).await;
    join(&store, "edge-1", &unbound).await.unwrap();
    let id = "edge-1".parse().unwrap();
    nodes::remove(&store, &id, &operator(), NOW).await.unwrap();

    // The stolen device makes new keys and uses the token that is still on its disk.
    let mut stolen = request("edge-1");
    stolen.identity_public_key = identity("new keys").public();
    stolen.wireguard_public_key = PublicKey([7; 32]);
    let refused = enrol(&store, &stolen, &unbound, None, NOW).await;
    assert!(matches!(refused, Err(RegistryError::Removed(_))), "{refused:?}");
    assert_eq!(state_of(&store, "edge-1").await, Some(NodeState::Removed));
    let bound = token_for(&store, "field", Some("edge-1")).await;
    assert!(matches!(enrol(&store, &stolen, &bound, None, NOW).await, Ok(Enrolled::Active(_))), "by the operator");
}

async fn removal_can_revoke_the_enrolling_token(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    assert_eq!(server.device("edge-1").enrol(&token).await.0, 200);
    assert_eq!(server.device("edge-2").enrol(&token).await.0, 200);
    let printed = server.cli_ok(&["node", "remove", "edge-1", "--yes"]).await;
    let id = token.split('_').nth(1).unwrap();
    assert!(printed.contains(&format!("token revoke {id}")), "the command is printed: {printed}");
    assert_eq!(server.device("edge-3").enrol(&token).await.0, 200, "not revoked unasked: others need it");
    server.cli_ok(&["node", "remove", "edge-2", "--yes", "--revoke-token"]).await;
    // The stolen device under another name, with other keys.
    assert_eq!(server.device("edge-4").enrol(&token).await.0, 401);
    let (status, _) = server.operator("DELETE", "/api/nodes/edge-3?revoke_token=true", "").await;
    assert_eq!(status, 200, "by HTTP too");
}

async fn tokens_expire_by_default(kind: Kind) {
    let server = ControlPlane::start(fresh(kind).await).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    server.cli_ok(&["token", "create", "--network", "field"]).await;
    server.cli_ok(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "h.example.net:51820"]).await;
    let body = r#"{"network": "field"}"#;
    assert_eq!(server.operator("POST", "/api/tokens", body).await.0, 200);
    let body = r#"{"network": "field", "node_id": "edge-1"}"#;
    assert_eq!(server.operator("POST", "/api/nodes", body).await.0, 200);
    for token in server.cli_json(&["token", "list"]).await.as_array().unwrap() {
        assert!(token["expires_at"].is_string(), "{token}");
    }
    server.cli_ok(&["token", "create", "--network", "field", "--expires-in", "never", "--note", "kept"]).await;
    let listed = server.cli_json(&["token", "list"]).await;
    let kept = listed.as_array().unwrap().iter().find(|t| t["note"] == "kept").unwrap();
    assert!(kept["expires_at"].is_null(), "on request only: {kept}");
}

/// The signed removal makes a device erase its state: none may be had for another node, or without a removal.
async fn removal_is_signed_for_the_removed_node_alone(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    for id in ["edge-1", "edge-2"] {
        assert_eq!(server.device(id).enrol(&token).await.0, 200);
    }
    let keys = server.cli_json(&["signing-key", "list"]).await;
    let pinned = [keys[0]["key"].as_str().unwrap().parse().unwrap()];
    server.cli_ok(&["node", "remove", "edge-1", "--yes"]).await;
    let ask = async |device: &mut Device| {
        let request = device.signed("GET", "/api/v1/nodes/self/state?after=0", Vec::new());
        let header = |name: &str| request.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        let nonce = Nonce::from_hex(&header(NONCE).unwrap()).unwrap();
        let answer = device.http.send(request).await.unwrap();
        let problem = serde_json::from_slice::<Problem>(&answer.body).ok();
        (answer.status, nonce, problem.and_then(|p| p.detail.removal))
    };
    let id = |text: &str| text.parse::<NodeId>().unwrap();
    let (status, nonce, removal) = ask(&mut server.device("edge-1")).await;
    let removal = removal.expect("signed");
    assert_eq!(status, 403);
    assert!(removal.verify(&id("edge-1"), nonce, &pinned), "the device's keys are those it pinned");
    assert!(!removal.verify(&id("edge-2"), nonce, &pinned));
    let mut thief = server.device("edge-1");
    thief.key = identity("thief");
    let (status, _, removal) = ask(&mut thief).await;
    assert_eq!((status, removal), (401, None));
    let (status, _, removal) = ask(&mut server.device("edge-2")).await;
    assert_eq!((status, removal), (200, None));
}

/// The name of a removed device is announced again, and taken by its successor: the device itself still learns of its removal,
/// and no other one does.
async fn removed_device_learns_it_whoever_holds_its_name(kind: Kind) {
    const STATE: &str = "/api/v1/nodes/self/state?after=0";
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let mut edge = server.device("edge-1");
    assert_eq!(edge.enrol(&token).await.0, 200);
    server.cli_ok(&["node", "remove", "edge-1", "--yes"]).await;
    let answer = async |device: &mut Device| {
        let (status, answer) = device.ask("GET", STATE, "").await;
        let detail = &answer["detail"];
        (status, detail["code"].as_str().unwrap_or_default().to_owned(), detail["removal"].is_object())
    };
    let removed = |signed| (403, "revoked".to_owned(), signed);
    let unknown = (401, "bad_proof".to_owned(), false);
    assert_eq!(answer(&mut edge).await, removed(true));

    let bound = server.operator("POST", "/api/nodes", r#"{"network": "field", "node_id": "edge-1"}"#).await.1;
    assert_eq!(answer(&mut edge).await, removed(true), "announced again");
    let mut thief = server.device("edge-1");
    thief.key = identity("thief");
    assert_eq!(answer(&mut thief).await, unknown, "another key");
    let (status, problem) = edge.enrol(&token).await;
    assert_eq!((status, &problem["detail"]["code"]), (403, &"revoked".into()), "{problem}");

    // The successor has other keys.
    let mut successor = server.device("edge-1");
    (successor.key, successor.wireguard) = (identity("successor"), crate::fixture::wireguard("successor"));
    let enrolled = successor.enrol_with_own_keys(bound["data"]["token"].as_str().unwrap()).await;
    assert_eq!(enrolled.0, 200, "{}", enrolled.1);
    assert_eq!(answer(&mut successor).await.0, 200);
    assert_eq!(answer(&mut edge).await, removed(false), "what its successor could be made to obey is not signed");
    assert_eq!(answer(&mut thief).await, unknown);
    let request = edge.signed("GET", STATE, Vec::new());
    assert_eq!(edge.http.send(request.clone()).await.unwrap().status, 403);
    assert_eq!(edge.http.send(request).await.unwrap().status, 401, "a replay does not learn it");

    // A network that goes takes no memory of the removal with it.
    server.cli_ok(&["node", "remove", "edge-1", "--yes"]).await;
    server.cli_ok(&["network", "remove", "field", "--yes"]).await;
    assert_eq!(answer(&mut successor).await, removed(true));
}

/// A stolen device that is removed has a limit of its own, and not that of the device that has its name.
async fn removed_device_does_not_use_up_what_its_successor_may_ask(kind: Kind) {
    const STATE: &str = "/api/v1/nodes/self/state?after=0";
    let limits = "per_address = 100000\nper_node = 1\n".to_owned();
    let server = ControlPlane::start_as(fresh(kind).await, Settings { limits, ..Settings::default() }).await;
    let token = server.create_network("10.8.0.0/24").await;
    let mut stolen = server.device("edge-1");
    assert_eq!(stolen.enrol(&token).await.0, 200);
    server.cli_ok(&["node", "remove", "edge-1", "--yes"]).await;
    let bound = server.cli_ok(&["node", "announce", "edge-1"]).await;
    let mut successor = server.device("edge-1");
    (successor.key, successor.wireguard) = (identity("successor"), crate::fixture::wireguard("successor"));
    assert_eq!(successor.enrol_with_own_keys(&bound).await.0, 200);
    let mut refused = 0;
    for _ in 0..100 {
        refused += u32::from(stolen.ask("GET", STATE, "").await.0 == 429);
    }
    assert!(refused > 0, "it is limited");
    assert_eq!(successor.ask("GET", STATE, "").await.0, 200);
}

/// An operator who knows the key of a device announces its name for that key: any token of the network will do for it.
async fn announced_fingerprint_takes_the_name(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let fingerprint = identity("edge-1").public().fingerprint();
    for (name, of) in [("edge-1", &fingerprint), ("edge-2", &fingerprint)] {
        server.cli_ok(&["node", "announce", name, "--network", "field", "--fingerprint", of]).await;
    }
    let add = ["hub", "add", "hub-1", "--endpoint", "hub.example.net:51820", "--fingerprint", "sha256:12"];
    let (code, output) = server.cli(&add).await;
    assert!(code == 2 && output.contains("spoke key fingerprint"), "{code} {output}");
    let of_hub = identity("hub-1").public().fingerprint();
    let add = ["hub", "add", "hub-1", "--endpoint", "hub.example.net:51820", "--fingerprint", &of_hub];
    server.cli_ok(&add).await;
    assert_eq!(server.cli_json(&["node", "show", "edge-1"]).await["fingerprint"], fingerprint.as_str());

    assert_eq!(server.device("edge-2").enrol(&token).await.0, 401, "another key than the announced one");
    assert_eq!(server.device("edge-1").enrol("spk_000000000000_x").await.0, 401, "the key alone is no token");
    assert_eq!(server.device("edge-1").enrol(&token).await.0, 200);
    assert_eq!(server.device("hub-1").enrol(&token).await.0, 200);
    let hub = server.cli_json(&["node", "show", "hub-1"]).await;
    assert_eq!((&hub["role"], &hub["fingerprint"]), (&"hub".into(), &of_hub.into()), "{hub}");
    // The bound token is for a device whose key is not the announced one.
    let bound = server.cli_ok(&["token", "create", "--node", "edge-2"]).await;
    assert_eq!(server.device("edge-2").enrol(&bound).await.0, 200);
}

async fn hub_reads_only_its_own_network(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    server.cli_ok(&["network", "create", "other", "--pool4", "10.9.0.0/24"]).await;
    let other = server.cli_ok(&["token", "create", "--network", "other", "--uses", "9"]).await;
    let of_hub = server.cli_ok(&["hub", "add", "hub-1", "--network", "other", "--endpoint", "h.example.net:1"]).await;
    let mut hub = server.device("hub-1");
    assert_eq!(hub.enrol(&of_hub).await.0, 200);
    assert_eq!(server.device("a-foreign").enrol(&token).await.0, 200);
    assert_eq!(server.device("own").enrol(&other).await.0, 200);
    let peers = "/api/v1/wireguard/peers";
    let (status, list) = hub.ask("GET", peers, "").await;
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|p| p["node_id"].as_str().unwrap()).collect();
    assert_eq!((status, ids), (200, vec!["hub-1", "own"]));
    let (_, first) = hub.ask("GET", &format!("{peers}?limit=1"), "").await;
    assert_eq!(first[0]["node_id"], "hub-1", "a page is filled with its own peers");
    assert_eq!(hub.ask("GET", &format!("{peers}/own"), "").await.0, 200);
    assert_eq!(hub.ask("GET", &format!("{peers}/a-foreign"), "").await.0, 404, "as if there were none");
    let pool = "/api/v1/wireguard/pool/stats";
    let (status, stats) = hub.ask("GET", pool, "").await;
    assert_eq!((status, &stats["allocated_addresses"]), (200, &2.into()), "its own, whatever the first by name is");
    assert_eq!(hub.ask("GET", &format!("{pool}?network=field"), "").await.0, 404);
    assert_eq!(hub.ask("GET", &format!("{pool}?network=other"), "").await.0, 200);
    // Operators see all.
    let (_, all) = server.operator("GET", peers, "").await;
    assert_eq!(all.as_array().map(Vec::len), Some(3), "{all}");
}

async fn node_state_needs_the_signature_of_the_node(kind: Kind) {
    let server = ControlPlane::start_as(fresh(kind).await, Settings::default()).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24", "--approval", "true"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field", "--uses", "9"]).await;
    for id in ["pending", "removed"] {
        assert_eq!(server.device(id).enrol(&token).await.0, 202);
    }
    server.cli_ok(&["node", "remove", "removed", "--yes"]).await;
    server.operator("POST", "/api/nodes", r#"{"network": "field", "node_id": "expected"}"#).await;
    let state = "/api/v1/nodes/self/state?after=0";
    let mut seen = Vec::new();
    for id in ["pending", "removed", "expected", "unknown"] {
        let mut spy = server.device(id);
        spy.key = identity("spy");
        let (status, answer) = spy.ask("GET", state, "").await;
        seen.push((status, answer["detail"]["code"].clone(), answer["detail"]["message"].clone()));
    }
    assert!(seen.iter().all(|s| s.0 == 401 && s.1 == "bad_proof" && *s == seen[0]), "{seen:?}");
    // The node itself is answered.
    assert_eq!(server.device("pending").ask("GET", state, "").await.1["detail"]["code"], "pending");
    let mut removed = server.device("removed");
    let request = removed.signed("GET", state, Vec::new());
    assert_eq!(removed.http.send(request.clone()).await.unwrap().status, 403);
    let again = removed.http.send(request).await.unwrap();
    assert_eq!(again.status, 401, "a replay does not learn it either");
    let bare = server.client().send(plain("GET", state, "", None)).await.unwrap();
    assert_eq!(bare.status, 401);
}

/// An attacker with a stolen signing key gave the node the last generation there is.
async fn node_is_led_back_from_a_generation_of_an_attacker(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let mut edge = server.device("edge-1");
    assert_eq!(edge.enrol(&token).await.0, 200);
    let held = format!("/api/v1/nodes/self/state?after={}", u64::MAX);
    assert_eq!(edge.ask("GET", &held, "").await.0, 204);
    assert!(server.log().contains("later generation"), "the operator learns of it: {}", server.log());
    let generation = u64::MAX.to_string();
    server.cli_ok(&["node", "take-back", "edge-1", "--generation", &generation]).await;
    let (status, state) = edge.ask("GET", &held, "").await;
    let document = &state["document"];
    assert_eq!((status, &document["supersedes"]), (200, &u64::MAX.into()), "{state}");
    let after = document["generation"].as_u64().unwrap();
    let path = |after: u64| format!("/api/v1/nodes/self/state?after={after}");
    assert_eq!(edge.ask("GET", &path(after), "").await.0, 204, "then all is as usual");
    assert_eq!(edge.ask("GET", &path(after + 1000), "").await.0, 204, "no other generation is replaced");
    let (_, state) = edge.ask("GET", &path(0), "").await;
    assert!(state["document"]["supersedes"].is_null(), "{state}");
    let (code, output) = server.cli(&["node", "take-back", "edge-1", "--generation", "1"]).await;
    assert!(code == 2 && output.contains("later"), "{output}");
}

//! Attacks with WireGuard keys of others: enrolments and rotations that name a key without holding its private half.
use crate::database::Kind;
use crate::fixture::{request, wireguard};
use crate::server::{ControlPlane, Device};
use spoke_control::store::Store;
use spoke_enroll::wire::PROVISION;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_sys::http::Http as _;

crate::on_both_databases![
    enrolment_does_not_squat_on_the_key_of_another,
    rotation_does_not_squat_on_the_key_of_another,
    points_of_low_order_are_refused,
    device_of_an_earlier_release_enrols_where_allowed,
];

/// Sends an enrolment that names `key`.
async fn enrol_with(device: &mut Device, key: PublicKey, token: &str) -> (u16, serde_json::Value) {
    let mut body = request(device.id.as_str());
    body.wireguard_public_key = key;
    let mut request = device.signed("POST", PROVISION, serde_json::to_vec(&body).unwrap());
    request.headers.push(("authorization", format!("Bearer {token}")));
    let answer = device.http.send(request).await.unwrap();
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

fn code(answer: &serde_json::Value) -> &str {
    answer["detail"]["code"].as_str().unwrap_or("none")
}

async fn enrolment_does_not_squat_on_the_key_of_another(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let victims = wireguard("victim").public();
    let mut attacker = server.device("attacker");
    let (status, answer) = enrol_with(&mut attacker, victims, &token).await;
    assert_eq!((status, code(&answer)), (401, "bad_proof"), "{answer}");
    assert!(answer["detail"]["message"].as_str().unwrap().contains("--without-key-proof"), "{answer}");
    attacker.verifier = Some(answer["detail"]["key_verifier"].as_str().unwrap().parse().unwrap());
    let (status, answer) = enrol_with(&mut attacker, victims, &token).await;
    assert_eq!((status, code(&answer)), (401, "bad_proof"), "a proof of its own key proves nothing: {answer}");
    // Its own key, but the proof of another request.
    let own = attacker.wireguard.public();
    let mut replayed = attacker.signed("POST", PROVISION, serde_json::to_vec(&request("attacker")).unwrap());
    let old = attacker.signed("GET", "/", Vec::new()).headers.pop().unwrap();
    assert_eq!(old.0, "spoke-key-proof");
    *replayed.headers.last_mut().unwrap() = old;
    replayed.headers.push(("authorization", format!("Bearer {token}")));
    assert_eq!(attacker.http.send(replayed).await.unwrap().status, 401);
    assert_eq!(server.operator("GET", "/api/nodes/attacker", "").await.0, 404, "nothing is stored");

    assert_eq!(server.device("victim").enrol(&token).await.0, 200, "the owner of the key is not shut out");
    assert_eq!(enrol_with(&mut attacker, own, &token).await.0, 200, "with a key of its own");
    // A replica has the same key.
    let database = spoke_control::store::Store::open(&server.url()).await.unwrap();
    assert!(database.read().await.unwrap().proves_keys(&"victim".parse().unwrap()).await.unwrap());
}

async fn rotation_does_not_squat_on_the_key_of_another(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let mut attacker = server.device("attacker");
    assert_eq!(attacker.enrol(&token).await.0, 200);
    let announce = |key: PublicKey| serde_json::json!({"wireguard_public_key": key, "step": "announce"}).to_string();
    let victims = wireguard("victim").public();
    let (status, answer) = attacker.ask("POST", "/api/v1/nodes/self/key", &announce(victims)).await;
    assert_eq!((status, code(&answer)), (401, "bad_proof"), "{answer}");
    assert_eq!(server.device("victim").enrol(&token).await.0, 200);
    attacker.wireguard = SecretKey::clamped([42; 32]);
    let own = attacker.wireguard.public();
    assert_eq!(attacker.ask("POST", "/api/v1/nodes/self/key", &announce(own)).await.0, 200);
}

async fn points_of_low_order_are_refused(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let old = server.cli_ok(&["token", "create", "--network", "field", "--without-key-proof"]).await;
    let mut one = [0; 32];
    one[0] = 1;
    for key in [PublicKey([0; 32]), PublicKey(one)] {
        for token in [&token, &old] {
            let (status, answer) = enrol_with(&mut server.device("edge-1"), key, token).await;
            assert_eq!((status, code(&answer)), (422, "bad_request"), "{answer}");
        }
    }
    let mut edge = server.device("edge-1");
    assert_eq!(edge.enrol(&token).await.0, 200);
    let body = serde_json::json!({"wireguard_public_key": PublicKey([0; 32]), "step": "announce"}).to_string();
    assert_eq!(edge.ask("POST", "/api/v1/nodes/self/key", &body).await.0, 422);
}

async fn device_of_an_earlier_release_enrols_where_allowed(kind: Kind) {
    let (server, token) = ControlPlane::start_with_network(kind, "10.8.0.0/24").await;
    let allowed = server.cli_ok(&["token", "create", "--network", "field", "--without-key-proof"]).await;
    let mut old = server.device("old-1");
    let key = old.wireguard.public();
    assert_eq!(enrol_with(&mut old, key, &allowed).await.0, 200);
    let body = serde_json::json!({"wireguard_public_key": PublicKey([42; 32]), "step": "announce"}).to_string();
    assert_eq!(old.ask("POST", "/api/v1/nodes/self/key", &body).await.0, 200, "its rotation works as before");

    // A token made by the release before.
    let store = Store::open(&server.url()).await.unwrap();
    let mut tx = store.write().await.unwrap();
    tx.run("UPDATE token SET key_proof = NULL", &[]).await.unwrap();
    tx.commit().await.unwrap();
    let mut old = server.device("old-2");
    let key = old.wireguard.public();
    assert_eq!(enrol_with(&mut old, key, &token).await.0, 200);
}

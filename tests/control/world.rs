//! A fleet to test with: devices with keys, a network, a token.
use ipnet::IpNet;
use spoke_control::registry::enrol::{Enrolled, enrol};
use spoke_control::registry::{RegistryError, operate};
use spoke_control::store::Store;
use spoke_control::store::admission::Verdict;
use spoke_control::store::audit::Actor;
use spoke_control::store::fleet::Wanted;
use spoke_control::store::network::Network;
use spoke_control::store::report::Received;
use spoke_control::store::token::NewToken;
use spoke_enroll::document::StateDocument;
use spoke_enroll::wire::{Capabilities, NodeReport, Outcome, ProvisionConfig, ProvisionRequest};
use spoke_grants::policy::Reason;
use spoke_model::key::PublicKey;
use spoke_model::signature::SignKey;

/// A moment of the tests: 2026-01-01.
pub const NOW: i64 = 1_767_225_600_000;

/// Who operates.
pub fn operator() -> Actor {
    Actor::Operator("test".into())
}

/// 32 bytes that belong to `text`.
pub fn seed(text: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().unwrap()
}

/// The key that signs the requests of `id`.
pub fn identity(id: &str) -> SignKey {
    SignKey::from_seed(&seed(id)).unwrap()
}

/// The request of a device called `id`.
pub fn request(id: &str) -> ProvisionRequest {
    ProvisionRequest {
        node_id: id.parse().unwrap(),
        wireguard_public_key: PublicKey(seed(&format!("wg {id}"))),
        identity_public_key: identity(id).public(),
        version: "0.1.0".into(),
        capabilities: Capabilities { cpu_cores: 1, memory_mb: 64, arch: None },
        metadata: Default::default(),
    }
}

/// A network called `field` on `pool`, changed by `with`.
pub async fn network(store: &Store, pool: &str, with: impl FnOnce(&mut Network)) -> Network {
    let pool: IpNet = pool.parse().unwrap();
    let mut network = Network::new("field", Some(pool), None, "wg0".parse().unwrap());
    with(&mut network);
    operate::add_network(store, &network, &operator(), NOW).await.unwrap();
    network
}

/// A token of the network `field`.
pub async fn token(store: &Store, max_uses: u64) -> String {
    let new = NewToken { network: "field".into(), node: None, note: None, max_uses, expires_ms: None };
    operate::add_token(store, &new, &operator(), NOW).await.unwrap().1.reveal().clone()
}

/// Enrols `id`, which must become a node at once.
pub async fn join(store: &Store, id: &str, token: &str) -> Result<ProvisionConfig, RegistryError> {
    match enrol(store, &request(id), token, None, NOW).await? {
        Enrolled::Active(config) => Ok(*config),
        Enrolled::Pending => panic!("{id} is pending"),
    }
}

/// The state document of `id`.
pub async fn document(store: &Store, id: &str) -> StateDocument {
    let mut tx = store.read().await.unwrap();
    match tx.wanted(&id.parse().unwrap(), 0).await.unwrap() {
        Wanted::Document(document) => *document,
        other => panic!("{id}: {other:?}"),
    }
}

/// Announces and enrols a hub.
pub async fn hub(store: &Store, id: &str, address: Option<&str>) {
    let endpoint = "hub.example.net:51820".parse().unwrap();
    let address = address.map(|a| a.parse().unwrap());
    let token =
        operate::add_hub(store, &id.parse().unwrap(), "field", &endpoint, address, &operator(), NOW).await.unwrap();
    join(store, id, token.reveal()).await.unwrap();
}

/// What the chain says.
pub fn verdict(reason: Reason, token: Option<u64>) -> Verdict {
    Verdict { reason, token_id: token.map(alloy_primitives::U256::from) }
}

/// The report of a node that has applied a generation.
pub fn report(generation: u64) -> NodeReport {
    NodeReport {
        generation,
        outcome: Outcome::Applied,
        reason: None,
        healthy: true,
        drift: 0,
        version: "0.1.0".into(),
        health: None,
    }
}

/// Takes a report into the store.
pub async fn say(store: &Store, id: &str, sent_ms: i64, report: NodeReport) {
    let mut tx = store.write().await.unwrap();
    let node = id.parse().unwrap();
    tx.put_report(&Received { node, sent_ms, received_ms: sent_ms, report }).await.unwrap();
    tx.commit().await.unwrap();
}

//! Fixtures: devices with keys, networks, tokens, reports.
use crate::database::{Database, Kind, open};
use ipnet::IpNet;
use spoke_control::registry::enrol::{Enrolled, enrol};
use spoke_control::registry::nodes::HubAnnouncement;
use spoke_control::registry::{RegistryError, networks, nodes, tokens};
use spoke_control::store::Store;
use spoke_control::store::admission::Admission;
use spoke_control::store::audit::Actor;
use spoke_control::store::document::DocumentLookup;
use spoke_control::store::network::Network;
use spoke_control::store::report::ReceivedReport;
use spoke_control::store::token::NewToken;
use spoke_enroll::document::StateDocument;
use spoke_enroll::wire::{Capabilities, NodeReport, Outcome, ProvisionConfig, ProvisionRequest, ReportOrder};
use spoke_grants::policy::Reason;
use spoke_model::key::SecretKey;
use spoke_model::signature::SignKey;

/// 2026-01-01, in milliseconds since 1970.
pub const NOW: i64 = 1_767_225_600_000;

/// The operator.
pub fn operator() -> Actor {
    Actor::Operator("test".into())
}

/// 32 bytes derived from `text`.
pub fn seed(text: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().try_into().unwrap()
}

/// The identity key of `id`.
pub fn identity(id: &str) -> SignKey {
    SignKey::from_seed(&seed(id)).unwrap()
}

/// The WireGuard key of `id`.
pub fn wireguard(id: &str) -> SecretKey {
    SecretKey::clamped(seed(&format!("wg {id}")))
}

/// The enrolment of the device `id`.
pub fn request(id: &str) -> ProvisionRequest {
    ProvisionRequest {
        node_id: id.parse().unwrap(),
        wireguard_public_key: wireguard(id).public(),
        identity_public_key: identity(id).public(),
        version: "0.1.0".into(),
        capabilities: Capabilities { cpu_cores: 1, memory_mb: 64, arch: None },
        metadata: Default::default(),
    }
}

/// Creates the network `field` on `pool`, changed by `with`.
pub async fn network(store: &Store, pool: &str, with: impl FnOnce(&mut Network)) -> Network {
    let pool: IpNet = pool.parse().unwrap();
    let mut network = Network::new("field", Some(pool), None, "wg0".parse().unwrap());
    with(&mut network);
    networks::create(store, &network, &operator(), NOW).await.unwrap();
    network
}

/// An empty database with the network `field` on `pool`.
pub async fn open_with_network(kind: Kind, pool: &str, with: impl FnOnce(&mut Network)) -> (Store, Database) {
    let (store, database) = open(kind).await;
    network(&store, pool, with).await;
    (store, database)
}

/// Creates a token for the network `field`.
pub async fn token(store: &Store, max_uses: u64) -> String {
    let new =
        NewToken { network: "field".into(), node: None, note: None, max_uses, expires_ms: None, key_proof: false };
    tokens::create(store, &new, &operator(), NOW).await.unwrap().1.reveal().clone()
}

/// Enrols `id`, which must become active.
pub async fn join(store: &Store, id: &str, token: &str) -> Result<ProvisionConfig, RegistryError> {
    match enrol(store, &request(id), token, None, NOW).await? {
        Enrolled::Active(config) => Ok(*config),
        Enrolled::Pending => panic!("{id} is pending"),
    }
}

/// The state document of `id`.
pub async fn document(store: &Store, id: &str) -> StateDocument {
    let mut tx = store.read().await.unwrap();
    match tx.document(&id.parse().unwrap(), 0).await.unwrap() {
        DocumentLookup::Document(document) => *document,
        other => panic!("{id}: {other:?}"),
    }
}

/// Announces and enrols a hub.
pub async fn hub(store: &Store, id: &str, address: Option<&str>) {
    let endpoint = "hub.example.net:51820".parse().unwrap();
    let address = address.map(|a| a.parse().unwrap());
    let announced = HubAnnouncement { endpoint, address, fingerprint: None };
    let token = nodes::announce_hub(store, &id.parse().unwrap(), "field", &announced, &operator(), NOW).await.unwrap();
    join(store, id, token.reveal()).await.unwrap();
}

/// A decision of the contract.
pub fn admission(reason: Reason, token: Option<u64>) -> Admission {
    Admission { reason, token_id: token.map(alloy_primitives::U256::from) }
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

/// Stores a report of a device that does not number its reports.
pub async fn store_report(store: &Store, id: &str, sent_ms: i64, report: NodeReport) -> bool {
    put_report(store, id, sent_ms, None, report).await
}

/// Stores a report signed and received at `at_ms`; whether it was taken.
pub async fn put_report(store: &Store, id: &str, at_ms: i64, order: Option<ReportOrder>, report: NodeReport) -> bool {
    let mut tx = store.write().await.unwrap();
    let node = id.parse().unwrap();
    let received = ReceivedReport { node, order, sent_ms: at_ms, received_ms: at_ms, takes_preshared: false, report };
    let taken = tx.put_report(&received).await.unwrap();
    tx.commit().await.unwrap();
    taken
}

/// The key of backups' MACs.
pub fn backup_key() -> spoke_control::store::backup::BackupKey {
    spoke_control::signing::MasterKey::new(&[1; 32]).unwrap().backup_key()
}

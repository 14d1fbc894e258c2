//! A fleet to test with: devices with keys, a network, a token.
use ipnet::IpNet;
use spoke::control::registry::operate;
use spoke::control::store::Store;
use spoke::control::store::audit::Actor;
use spoke::control::store::network::Network;
use spoke::control::store::token::NewToken;
use spoke::enroll::signature::SignKey;
use spoke::enroll::wire::{Capabilities, ProvisionRequest};
use spoke::net::key::PublicKey;

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

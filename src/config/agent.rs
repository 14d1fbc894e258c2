//! `[agent]`: the signed node agent API; off by default.
use super::reader::Table;
use serde::Serialize;
use spoke_model::key_source::KeySource;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The default port.
pub const PORT: u16 = 8081;

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Whether it is served.
    pub enabled: bool,
    /// Where it listens. Our tunnel addresses are added with the port of the first one unless `tunnel` is off.
    pub listen: Vec<SocketAddr>,
    /// Whether it also listens at our tunnel addresses.
    pub tunnel: bool,
    /// Place of the shared secret, at least 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeySource>,
    /// Whether answers contain preshared and private keys.
    pub reveal_keys: bool,
    /// Certificate chain in PEM; with `tls_key` the API is served over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Names accepted in the `Host` header of `/v1/metrics` besides addresses and `localhost`; with TLS any name is.
    pub allowed_hosts: Vec<String>,
    /// Requests per second from one source.
    pub rate: u32,
    /// Longest body, in bytes.
    pub max_body: u32,
    /// Generations kept for `spoke config rollback`.
    pub keep_generations: u32,
}

impl Agent {
    pub(super) fn read(t: &mut Table<'_>) -> Self {
        let enabled = t.flag("enabled").unwrap_or(false);
        let listen = t.list("listen", "ADDRESS:PORT such as 127.0.0.1:8081");
        if listen.as_ref().is_some_and(Vec::is_empty) {
            t.fault("listen", "is empty", "add an address, or set agent.enabled = false");
        }
        let secret = t.parsed("secret", "\"file:/absolute/path\" or \"credential:NAME\"");
        if enabled && secret.is_none() && !t.has("secret") {
            t.required("secret", "the place of the shared secret, such as \"file:/var/lib/spoke/agent.secret\"");
        }
        let path = |t: &mut Table<'_>, key| t.text(key).map(PathBuf::from);
        let (tls_certificate, tls_key) = (path(t, "tls_certificate"), path(t, "tls_key"));
        if tls_certificate.is_some() != tls_key.is_some() {
            t.fault(
                "tls_key",
                "requires tls_certificate and the other way round",
                "give both, or neither for plain HTTP",
            );
        }
        let number = |n: Option<u64>, default: u32| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
        Self {
            enabled,
            listen: listen.unwrap_or_else(|| vec![SocketAddr::from(([127, 0, 0, 1], PORT))]),
            tunnel: t.flag("tunnel").unwrap_or(true),
            secret,
            reveal_keys: t.flag("reveal_keys").unwrap_or(false),
            tls_certificate,
            tls_key,
            allowed_hosts: t.list("allowed_hosts", "a host name").unwrap_or_default(),
            rate: number(t.number("rate", 1..=100_000), 100),
            max_body: number(t.number("max_body", 1024..=64 << 20), 4 << 20),
            keep_generations: number(t.number("keep_generations", 1..=100), 10),
        }
    }
}

//! The TLS certificate: from files, or self-signed and pinned by the devices.
use rustls_pemfile::Item;
use spoke_model::address::HostPort;
use spoke_model::signature::sha256_hex;
use spoke_sys::disk::{DiskError, read_secret, write_atomic};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::ServerSessionMemoryCache;

/// The longest PEM file read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// TLS sessions cached for resumption, a few hundred bytes each: two for each node of a large fleet.
const SESSIONS: usize = 32 << 10;

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file is missing.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// A file without the expected PEM item.
    #[error("{0} holds no {1} in PEM")]
    NotPem(PathBuf, &'static str),
    /// A self-signed certificate could not be created.
    #[error("cannot create a certificate for {0}")]
    Create(String, #[source] rcgen::Error),
    /// Certificate and key do not match.
    #[error("the certificate and its key cannot be used")]
    Use(#[from] tokio_rustls::rustls::Error),
}

/// The server's TLS configuration.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For each connection.
    pub config: Arc<ServerConfig>,
    /// `sha256:` and the digest of the certificate; a device that pins it ignores the dates in it.
    pub pin: String,
    /// The certificate's file.
    pub path: PathBuf,
}

/// The pin of the certificate that [`load`] uses; it is not created.
pub fn pin(files: Option<&(PathBuf, PathBuf)>, state_dir: &Path) -> Result<String, TlsError> {
    let path = files.map_or_else(|| state_dir.join("tls.crt"), |(certificate, _)| certificate.clone());
    let pem = std::fs::read(&path).map_err(|_| TlsError::Missing(path.clone()))?;
    let first = rustls_pemfile::certs(&mut pem.as_slice()).flatten().next();
    Ok(pin_of(&first.ok_or_else(|| TlsError::NotPem(path, "certificate"))?))
}

fn pin_of(certificate: &CertificateDer<'_>) -> String {
    format!("sha256:{}", sha256_hex(certificate))
}

/// Loads the certificate from `files`, or the self-signed one for `public` from `state_dir`.
pub fn load(files: Option<&(PathBuf, PathBuf)>, state_dir: &Path, public: &HostPort) -> Result<Tls, TlsError> {
    let (certificate, key) = match files {
        Some((certificate, key)) => (certificate.clone(), key.clone()),
        None => self_signed(state_dir, public)?,
    };
    let chain = std::fs::read(&certificate).map_err(|_| TlsError::Missing(certificate.clone()))?;
    let chain: Vec<CertificateDer<'static>> = rustls_pemfile::certs(&mut chain.as_slice()).flatten().collect();
    let first = chain.first().ok_or_else(|| TlsError::NotPem(certificate.clone(), "certificate"))?;
    let pin = pin_of(first);
    let pem = read_secret(&key, MAX_FILE)?.ok_or_else(|| TlsError::Missing(key.clone()))?;
    let private = rustls_pemfile::read_all(&mut pem.as_slice()).flatten().find_map(|item| match item {
        Item::Pkcs8Key(k) => Some(PrivateKeyDer::from(k)),
        Item::Pkcs1Key(k) => Some(k.into()),
        Item::Sec1Key(k) => Some(k.into()),
        _ => None,
    });
    let private = private.ok_or_else(|| TlsError::NotPem(key, "private key"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Resumption saves a reconnecting device the certificate's bytes. Stateful tickets: stateless ones would be nearly as large
    // as the certificate.
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.send_tls13_tickets = 1;
    Ok(Tls { config: Arc::new(config), pin, path: certificate })
}

/// The paths of the self-signed certificate and its key, created when missing.
fn self_signed(state_dir: &Path, public: &HostPort) -> Result<(PathBuf, PathBuf), TlsError> {
    let paths = (state_dir.join("tls.crt"), state_dir.join("tls.key"));
    if paths.0.exists() {
        return Ok(paths);
    }
    let names = [public.host.clone(), "localhost".to_owned()];
    let created = rcgen::generate_simple_self_signed(names).map_err(|e| TlsError::Create(public.host.clone(), e))?;
    // The key first: the certificate's existence marks both as complete.
    write_atomic(&paths.1, created.signing_key.serialize_pem().as_bytes(), true)?;
    write_atomic(&paths.0, created.cert.pem().as_bytes(), true)?;
    tracing::warn!(path = %paths.0.display(), "self-signed certificate created: devices must pin it");
    Ok(paths)
}

//! TLS for the agent API: certificate and key from two PEM files, read again when they change.
use super::http_server::Wrap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use spoke_model::time::Wall;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The files are checked for changes at most this often.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read a PEM {what} from {path}")]
    Pem {
        /// Certificate chain or private key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The key of others.
    #[error("{path} can be read or changed by others (mode {mode:04o}): run `chmod 640 {path}`")]
    TooOpen {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no certificate in the file.
    #[error("there is no certificate in {0}")]
    Empty(PathBuf),
    /// Certificate and key do not belong together.
    #[error("certificate {certificate} and key {key} cannot be used together")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
}

/// Wraps connections in TLS with the newest certificate that could be read.
#[derive(Clone, Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<Mutex<Current>>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    changed: [Option<SystemTime>; 2],
    checked: tokio::time::Instant,
}

impl Tls {
    /// Reads both files. Blocks.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let changed = [changed(certificate), changed(key)];
        let config = Arc::new(load(certificate, key)?);
        let current = Current { config, changed, checked: tokio::time::Instant::now() };
        Ok(Self { certificate: certificate.into(), key: key.into(), current: Arc::new(Mutex::new(current)) })
    }

    /// The configuration for the next connection. New files that cannot be used leave the old ones in force.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.checked.elapsed() >= CHECK_INTERVAL {
            current.checked = tokio::time::Instant::now();
            let now = [changed(&self.certificate), changed(&self.key)];
            if now != current.changed {
                match load(&self.certificate, &self.key) {
                    Ok(config) => {
                        tracing::info!(path = %self.certificate.display(), "certificate reloaded");
                        (current.config, current.changed) = (Arc::new(config), now);
                    }
                    // Tried again at the next check: the two files are seldom replaced at the same moment.
                    Err(error) => tracing::warn!(%error, "new certificate refused; the old one stays in use"),
                }
            }
        }
        current.config.clone()
    }
}

impl Wrap for Tls {
    type Stream = TlsStream<TcpStream>;

    async fn wrap(&self, stream: TcpStream) -> std::io::Result<Self::Stream> {
        TlsAcceptor::from(self.config()).accept(stream).await
    }
}

/// When the first certificate of a PEM file ends; `None`: there is none, or it cannot be read. Blocks.
pub fn expiry(certificate: &Path) -> Option<Wall> {
    not_after(&CertificateDer::from_pem_file(certificate).ok()?)
}

/// The end of the validity of a certificate in DER (RFC 5280 §4.1): the fifth field of the first, not counting the optional version.
fn not_after(certificate: &[u8]) -> Option<Wall> {
    const VERSION: u8 = 0xa0;
    let (_, outer, _) = field(certificate)?;
    let (_, mut rest, _) = field(outer)?;
    if *rest.first()? == VERSION {
        (_, _, rest) = field(rest)?;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        (_, _, rest) = field(rest)?;
    }
    let (_, validity, _) = field(rest)?;
    let (_, _, end) = field(validity)?;
    let (tag, text, _) = field(end)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Tag, content and rest of a DER field.
fn field(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match usize::from(*first) {
        short @ 0..0x80 => (short, rest),
        long => {
            let (bytes, rest) = rest.split_at_checked(long - 0x80)?;
            (bytes.iter().try_fold(0usize, |n, b| n.checked_mul(256)?.checked_add(usize::from(*b)))?, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// UTCTime has two digits of the year, of 1950 to 2049; GeneralizedTime has four.
fn time(tag: u8, text: &str) -> Option<Wall> {
    const UTC_TIME: u8 = 0x17;
    let century = match text.get(..1)? {
        _ if tag != UTC_TIME => "",
        "0" | "1" | "2" | "3" | "4" => "20",
        _ => "19",
    };
    let full = format!("{century}{text}");
    let part = |from: usize, to: usize| full.get(from..to);
    let (date, clock) = ([part(0, 4)?, part(4, 6)?, part(6, 8)?], [part(8, 10)?, part(10, 12)?, part(12, 14)?]);
    Wall::parse_rfc3339(&format!("{}T{}Z", date.join("-"), clock.join(":")))
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn load(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    // A group may read it: certificates are renewed by another user.
    if let Ok(meta) = std::fs::metadata(key)
        && meta.mode() & 0o027 != 0
    {
        return Err(TlsError::TooOpen { path: key.to_owned(), mode: meta.mode() & 0o7777 });
    }
    let pem = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(pem("certificate", certificate))?.collect();
    let chain = chain.map_err(pem("certificate", certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(certificate.to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(pem("private key", key))?;
    let mismatch = |source| TlsError::Mismatch { certificate: certificate.into(), key: key.into(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(mismatch)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(mismatch)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For `node.example`, made by `openssl req -x509`, which read its end; its key was thrown away.
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBgzCCASmgAwIBAgIUW7vCNfDg0nnYp3YoK2WQtuuwYSowCgYIKoZIzj0EAwIw\n\
        FzEVMBMGA1UEAwwMbm9kZS5leGFtcGxlMB4XDTI2MTEzMDA5MDQyMloXDTM2MTEy\n\
        NzA5MDQyMlowFzEVMBMGA1UEAwwMbm9kZS5leGFtcGxlMFkwEwYHKoZIzj0CAQYI\n\
        KoZIzj0DAQcDQgAEU+0eRwTLJ+njRoXwbSTCPmAj3f5LsIkDRfTedDpAypUNqF7q\n\
        fv0K4SQEnpBZOnB0rF8eb6eLOl5XYSQD5FWjlKNTMFEwHQYDVR0OBBYEFCRZTXih\n\
        wKJ7+7Yhz1OBej45z9goMB8GA1UdIwQYMBaAFCRZTXihwKJ7+7Yhz1OBej45z9go\n\
        MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgH9c18XTNfpUHkjta\n\
        Zgt5XuW478SB9jJgHa3tLj65m3gCIQDF1awW9L9iJrLLS8FYZ8YYjCLWWOmldxPv\n\
        zmQ2rD8FvA==\n\
        -----END CERTIFICATE-----\n";

    #[test]
    fn times_of_both_forms_are_read() {
        let of = |tag, text| time(tag, text).map(|t| t.to_string());
        assert_eq!(of(0x17, "261130085900Z").as_deref(), Some("2026-11-30T08:59:00Z"));
        assert_eq!(of(0x17, "991231235959Z").as_deref(), Some("1999-12-31T23:59:59Z"));
        assert_eq!(of(0x18, "20991231235959Z").as_deref(), Some("2099-12-31T23:59:59Z"));
        assert_eq!(of(0x17, "xx"), None);
    }

    #[test]
    fn end_of_a_certificate_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.crt");
        assert_eq!(expiry(&path), None);
        std::fs::write(&path, CERTIFICATE).unwrap();
        assert_eq!(expiry(&path).unwrap().to_string(), "2036-11-27T09:04:22Z");
        let der = CertificateDer::from_pem_file(&path).unwrap();
        for length in 0..der.len() {
            // Cut short or not a certificate: no panic.
            let _ = not_after(&der[..length]);
            let _ = not_after(&der[length..]);
        }
    }

    #[test]
    fn key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("crt"), dir.path().join("key"));
        std::fs::write(&certificate, "").unwrap();
        std::fs::write(&key, "").unwrap();
        for (mode, accepted) in [(0o600, true), (0o640, true), (0o644, false), (0o660, false), (0o604, false)] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = load(&certificate, &key).unwrap_err();
            assert_eq!(!matches!(refused, TlsError::TooOpen { .. }), accepted, "{mode:o}: {refused}");
        }
    }
}

//! WireGuard keys of the device: read from the configured source, created once if a file is missing, never replaced.
use super::disk::{DiskError, read_secret, write_state};
use super::random::{NoRandom, key_bytes};
use spoke_config::Config;
use spoke_model::error_chain::ErrorChain;
use spoke_model::key::{PresharedKey, SecretKey};
use spoke_model::key_source::KeySource;
use spoke_model::secret::Secret;
use spoke_net::derive::Keys;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

pub mod pending;

/// Longest key file accepted, in bytes.
const MAX_FILE: u64 = 2304;

/// Why a key cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written, or others may read it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The content is not a key.
    #[error(
        "{0} does not hold a WireGuard key: expected one line of 44 characters; put its backup there. A new key (move the file away to have one created) has to be made known to the other side; with [control] by `spoke enrol --again`"
    )]
    NotAKey(KeySource),
    /// The content is not the node's identity.
    #[error(
        "{0} is damaged, and a new one would be another node: put its backup there (an image restores its second copy at the next start); without one move it away, make a token for the same name on the control plane (spoke-control token create --node ID), put it in control.token, and run `spoke enrol --again` if the node has not enrolled by itself"
    )]
    DamagedIdentity(KeySource),
    /// The content is not a URL.
    #[error("{0} does not hold an HTTP URL: expected one line such as https://rpc.example.net/v2/KEY")]
    NotAUrl(KeySource),
    /// A key that is provided from outside is missing.
    #[error("{origin} is missing: {remedy}")]
    Missing {
        /// Where it should be.
        origin: KeySource,
        /// What to do.
        remedy: &'static str,
    },
    /// Not ours to change.
    #[error(
        "{0} is provided from outside and cannot be changed from here: change it there, or set private_key to a file:/path"
    )]
    NotOurs(KeySource),
    /// No key could be generated.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// What to do if a private key file is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    /// Create it.
    Create,
    /// Generate a key without storing it, for a preview.
    Imagine,
    /// Return an error.
    Fail,
}

/// Reads every key that `config` names, and why one cannot be read.
pub fn load(config: &Config, if_missing: IfMissing) -> (Keys, Vec<KeyError>) {
    let (mut keys, mut faults) = (Keys::default(), Vec::new());
    let mut fault = |unreadable: &mut BTreeMap<KeySource, Arc<str>>, source: &KeySource, e: KeyError| {
        if unreadable.insert(source.clone(), ErrorChain(&e).to_string().into()).is_none() {
            faults.push(e);
        }
    };
    for interface in &config.interfaces {
        match private(&interface.private_key, if_missing) {
            Ok(key) => drop(keys.private.insert(interface.name.clone(), key)),
            Err(e) => fault(&mut keys.unreadable, &interface.private_key, e),
        }
    }
    let peers = config.interfaces.iter().flat_map(|i| &i.peers).filter_map(|p| p.preshared_key.as_ref());
    let hubs = config.uplink.iter().flat_map(|u| &u.hubs).filter_map(|h| h.preshared_key.as_ref());
    for source in peers.chain(hubs) {
        if keys.preshared.contains_key(source) || keys.unreadable.contains_key(source) {
            continue;
        }
        match preshared(source) {
            Ok(key) => drop(keys.preshared.insert(source.clone(), key)),
            Err(e) => fault(&mut keys.unreadable, source, e),
        }
    }
    (keys, faults)
}

/// Reads a private key. A missing file is created if `if_missing` allows it.
pub fn private(source: &KeySource, if_missing: IfMissing) -> Result<SecretKey, KeyError> {
    if let Some(text) = read(source)? {
        return text.trim().parse().map_err(|_| KeyError::NotAKey(source.clone()));
    }
    let path = match (source, if_missing) {
        (KeySource::File(path), IfMissing::Create) => path,
        (KeySource::File(_), IfMissing::Imagine) => return Ok(SecretKey::clamped(*key_bytes()?)),
        (KeySource::File(_), IfMissing::Fail) => {
            return Err(KeyError::Missing {
                origin: source.clone(),
                remedy: "`spoke run` creates it at its first start",
            });
        }
        (KeySource::Credential(_), _) => return Err(no_credential(source)),
    };
    let key = SecretKey::clamped(*key_bytes()?);
    match create(path, &key) {
        Ok(()) => {
            tracing::info!(path = %path.display(), public_key = %key.public(), "WireGuard key created");
            Ok(key)
        }
        // Another process created it since the read: its key is used.
        Err(DiskError::Write { source: e, .. }) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            private(source, IfMissing::Fail)
        }
        Err(e) => Err(e.into()),
    }
}

/// Stores a private key where there is none.
pub fn store(source: &KeySource, key: &SecretKey) -> Result<(), KeyError> {
    match source {
        KeySource::File(path) => Ok(create(path, key)?),
        KeySource::Credential(_) => Err(KeyError::NotOurs(source.clone())),
    }
}

fn create(path: &Path, key: &SecretKey) -> Result<(), DiskError> {
    let mut line = key.reveal_base64();
    line.push('\n');
    if let Some(dir) = path.parent() {
        ensure_dir(dir)?;
    }
    write_state(path, line.as_bytes(), false)
}

/// Reads a preshared key.
pub fn preshared(source: &KeySource) -> Result<PresharedKey, KeyError> {
    match read(source)? {
        Some(text) => text.trim().parse().map_err(|_| KeyError::NotAKey(source.clone())),
        None => match source {
            KeySource::File(_) => Err(KeyError::Missing {
                origin: source.clone(),
                remedy: "put the preshared key of the other side there (wg genpsk), mode 0600",
            }),
            KeySource::Credential(_) => Err(no_credential(source)),
        },
    }
}

/// The key that signs our requests to the control plane: a seed of 32 bytes in base64. A missing file is created once.
pub fn identity(source: &KeySource) -> Result<spoke_model::signature::SignKey, KeyError> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let not_a_key = || KeyError::DamagedIdentity(source.clone());
    let text = match read(source) {
        Err(KeyError::NotAKey(_)) => return Err(not_a_key()),
        text => text?,
    };
    if let Some(text) = text {
        let seed = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| not_a_key())?);
        return spoke_model::signature::SignKey::from_seed(&seed).map_err(|_| not_a_key());
    }
    let KeySource::File(path) = source else { return Err(no_credential(source)) };
    let mut line = Zeroizing::new(STANDARD.encode(key_bytes()?.as_slice()));
    line.push('\n');
    match write_state(path, line.as_bytes(), false) {
        Ok(()) => {}
        // Another process created it since the read: its key is used.
        Err(DiskError::Write { source: e, .. }) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    identity(source)
}

/// Reads a one-line secret other than a key, such as a URL with a token.
pub fn line(source: &KeySource) -> Result<Zeroizing<String>, KeyError> {
    match read(source)? {
        Some(text) => Ok(Zeroizing::new(text.trim().to_owned())),
        None => match source {
            KeySource::File(_) => {
                Err(KeyError::Missing { origin: source.clone(), remedy: "put the line there, mode 0600" })
            }
            KeySource::Credential(_) => Err(no_credential(source)),
        },
    }
}

/// Reads a shared secret as raw bytes, such as that of the agent API.
pub fn shared_secret(source: &KeySource) -> Result<Secret<Vec<u8>>, KeyError> {
    match read_bytes(source)? {
        Some(bytes) => Ok(Secret::new(bytes.to_vec())),
        None => match source {
            KeySource::File(_) => Err(KeyError::Missing {
                origin: source.clone(),
                remedy: "create one: `(umask 077; head -c 32 /dev/urandom | base64 > FILE)`, and give it to the panel",
            }),
            KeySource::Credential(_) => Err(no_credential(source)),
        },
    }
}

/// Creates a state directory with mode 0700.
pub fn ensure_dir(dir: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| DiskError::Write {
        path: dir.to_owned(),
        remedy: "create the directory and let the user that runs spoke write it (systemd: StateDirectory=spoke)",
        source,
    })
}

fn no_credential(source: &KeySource) -> KeyError {
    KeyError::Missing {
        origin: source.clone(),
        remedy: "pass it with LoadCredential= in the unit (systemd), or use file:/path",
    }
}

fn read_bytes(source: &KeySource) -> Result<Option<Zeroizing<Vec<u8>>>, DiskError> {
    match source {
        KeySource::File(path) => read_secret(path, MAX_FILE),
        KeySource::Credential(name) => credential(name).map_or(Ok(None), |path| read_credential(&path)),
    }
}

fn read(source: &KeySource) -> Result<Option<Zeroizing<String>>, KeyError> {
    let Some(bytes) = read_bytes(source)? else { return Ok(None) };
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(Zeroizing::new(text.to_owned()))),
        Err(_) => Err(KeyError::NotAKey(source.clone())),
    }
}

fn credential(name: &str) -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(name))
}

/// The service manager vouches for the directory: its files may be 0440 with an access list of their own.
fn read_credential(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, DiskError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiskError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir) -> KeySource {
        KeySource::File(dir.path().join("state/wg0.key"))
    }

    #[test]
    fn a_key_is_made_once_and_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        let source = file(&dir);
        assert!(matches!(private(&source, IfMissing::Fail), Err(KeyError::Missing { .. })));
        let made = private(&source, IfMissing::Create).unwrap();
        assert_eq!(private(&source, IfMissing::Create).unwrap(), made);
        assert_eq!(SecretKey::clamped(*made.reveal()), made, "as wg genkey would clamp it");
    }

    #[test]
    fn damaged_identity_is_kept_and_told_how_to_keep_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let source = KeySource::File(path.clone());
        let whole = {
            identity(&source).unwrap();
            std::fs::read(&path).unwrap()
        };
        for bytes in [&b""[..], &whole[..20], &[0; 45], b"\xff\xfe"] {
            std::fs::write(&path, bytes).unwrap();
            let error = identity(&source).unwrap_err().to_string();
            for part in ["identity.key", "backup", "token create --node", "spoke enrol --again"] {
                assert!(error.contains(part), "{part}: {error}");
            }
            assert!(!error.contains("key generate"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_not_a_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let source = file(&dir);
        let KeySource::File(path) = &source else { unreachable!() };
        ensure_dir(path.parent().unwrap()).unwrap();
        for text in ["", "short\n", "\u{0}\u{1}", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"] {
            let _ = std::fs::remove_file(path);
            super::super::disk::write_atomic(path, text.as_bytes(), false).unwrap();
            let error = private(&source, IfMissing::Create).unwrap_err().to_string();
            assert!(error.contains("wg0.key") && error.contains("44 characters"), "{error}");
            assert_eq!(std::fs::read(path).unwrap(), text.as_bytes());
        }
    }
}

//! The signing keys of state documents, sealed under a master key that never enters the database.
//!
//! Every active key signs every document, so that a node that was offline during a rotation still knows one of them. A
//! rotation is: add a key, wait until the fleet has reported the new generation, retire the old key.
use crate::store::backup::BackupKey;
use crate::store::preshared::DerivePreshared;
use crate::store::{Store, StoreError, Tx};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::signature::{SignKey, VerifyKey};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The master key's file.
    #[error("the master key cannot be read or created")]
    Disk(#[from] spoke_sys::disk::DiskError),
    /// The master key's file has another content.
    #[error("{0} is not a master key (32 bytes): restore it from its backup")]
    BadMaster(String),
    /// The file is missing, and the store has keys sealed under it.
    #[error(
        "{0} is missing, and the keys in this database are sealed under it: copy it from another control plane or its backup"
    )]
    NoMaster(String),
    /// The file is there, and the store has no keys.
    #[error(
        "the database is empty and {0} is of an earlier one: correct store.url, or bring the fleet back with `spoke-control restore FILE`; to begin a new fleet, move that file away"
    )]
    LostStore(String),
    /// The stored keys were sealed under another master key.
    #[error("signing key {0} was sealed under another master key: restore the one that belongs to this database")]
    Sealed(VerifyKey),
    /// No key is active.
    #[error("the database has no active signing key")]
    None,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system's random number generator failed.
    #[error("no random numbers from the system")]
    Random,
}

/// The key that seals the signing keys; a file of mode 0600 outside of the database.
pub struct MasterKey {
    seal: LessSafeKey,
    /// Devices prove the possession of their WireGuard keys to it; the same at every control plane of the fleet.
    verifier: SecretKey,
    /// Preshared keys are derived from it.
    preshared: ring::hmac::Key,
    backup: BackupKey,
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Random bytes.
pub fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, SigningError> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new().fill(bytes.as_mut_slice()).map_err(|_| SigningError::Random)?;
    Ok(bytes)
}

impl MasterKey {
    /// Reads the key, or creates it, with the first signing key, for a store without signing keys.
    ///
    /// A new key has its name only once the store has a signing key: a named one beside an empty store is of a lost one.
    pub async fn load_or_create(path: &Path, store: &Store, now_ms: i64) -> Result<Self, SigningError> {
        if let Some(master) = Self::read(path)? {
            return Ok(master);
        }
        let is_new = store.read().await?.signing_keys().await?.is_empty();
        let unnamed = path.with_extension("key.new");
        let bytes = match spoke_sys::disk::read_secret(&unnamed, 33)? {
            Some(bytes) => bytes,
            None if is_new => {
                let bytes = Zeroizing::new(random::<32>()?.to_vec());
                spoke_sys::disk::write_atomic(&unnamed, &bytes, false)?;
                bytes
            }
            None => return Err(SigningError::NoMaster(path.display().to_string())),
        };
        let master = Self::new(&bytes).ok_or_else(|| SigningError::BadMaster(unnamed.display().to_string()))?;
        match SigningKeys::load(store, &master, now_ms).await {
            Err(SigningError::Sealed(_)) if !is_new => return Err(SigningError::NoMaster(path.display().to_string())),
            other => other?,
        };
        spoke_sys::disk::write_atomic(path, &bytes, false)?;
        let _ = std::fs::remove_file(&unnamed);
        Ok(master)
    }

    /// Refuses a store without a fleet where a master key is: the database was lost, or another one is configured.
    pub async fn check_store(path: &Path, store: &Store) -> Result<(), SigningError> {
        if path.exists() && store.read().await?.signing_keys().await?.is_empty() {
            return Err(SigningError::LostStore(path.display().to_string()));
        }
        Ok(())
    }

    /// A key of 32 bytes.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let seal = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).ok()?);
        let master = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, bytes);
        let verifier = ring::hmac::sign(&master, b"spoke key verifier");
        let preshared = ring::hmac::sign(&master, b"spoke preshared keys");
        let backup = ring::hmac::sign(&master, b"spoke backups");
        Some(Self {
            seal,
            verifier: SecretKey::clamped(verifier.as_ref().try_into().ok()?),
            preshared: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, preshared.as_ref()),
            backup: BackupKey::new(ring::hmac::HMAC_SHA256, backup.as_ref()),
        })
    }

    /// The key that devices prove the possession of their WireGuard keys to.
    pub const fn verifier(&self) -> &SecretKey {
        &self.verifier
    }

    /// Reads the key; `None`: there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, SigningError> {
        let Some(bytes) = spoke_sys::disk::read_secret(path, 33)? else { return Ok(None) };
        Self::new(&bytes).map(Some).ok_or_else(|| SigningError::BadMaster(path.display().to_string()))
    }

    /// The key of backups' MACs.
    pub fn backup_key(&self) -> BackupKey {
        self.backup.clone()
    }

    fn seal_bytes(&self, purpose: &[u8], mut bytes: Vec<u8>) -> Result<String, SigningError> {
        let nonce = random::<NONCE_LEN>()?;
        self.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose), &mut bytes)
            .map_err(|_| SigningError::Random)?;
        Ok(STANDARD.encode([nonce.as_slice(), &bytes].concat()))
    }

    fn open_bytes(&self, purpose: &[u8], sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = STANDARD.decode(sealed).ok()?;
        let (nonce, rest) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut rest = Zeroizing::new(rest.to_vec());
        let opened = self.seal.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose), &mut rest);
        let length = opened.ok()?.len();
        rest.truncate(length);
        Some(rest)
    }

    fn seal(&self, key: &SignKey) -> Result<String, SigningError> {
        self.seal_bytes(&key.public().0, key.reveal_seed().to_vec())
    }

    /// Seals a text for one purpose.
    pub fn seal_text(&self, purpose: &str, text: &str) -> Result<String, SigningError> {
        self.seal_bytes(purpose.as_bytes(), text.as_bytes().to_vec())
    }

    /// Opens what [`MasterKey::seal_text`] sealed for the same purpose; `None`: it is of another key or purpose.
    pub fn open_text(&self, purpose: &str, sealed: &str) -> Option<String> {
        String::from_utf8(self.open_bytes(purpose.as_bytes(), sealed)?.to_vec()).ok()
    }

    fn open(&self, public: VerifyKey, sealed: &str) -> Result<SignKey, SigningError> {
        let sealed_otherwise = SigningError::Sealed(public);
        let Some(seed) = self.open_bytes(&public.0, sealed) else { return Err(sealed_otherwise) };
        SignKey::from_seed(&seed).ok().filter(|k| k.public() == public).ok_or(sealed_otherwise)
    }
}

impl DerivePreshared for MasterKey {
    fn preshared_key(&self, salt: &[u8], node: PublicKey, hub: PublicKey) -> PresharedKey {
        // The public keys have a fixed length, so no two inputs are the same text.
        let tag = ring::hmac::sign(&self.preshared, &[&node.0, &hub.0, salt].concat());
        let mut key = Zeroizing::new([0; 32]);
        key.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        PresharedKey::from_bytes(*key)
    }
}

/// The active signing keys, oldest first.
#[derive(Clone, Debug)]
pub struct SigningKeys(pub Arc<Vec<SignKey>>);

impl SigningKeys {
    /// Opens the active keys; creates the first key of an empty store.
    pub async fn load(store: &Store, master: &MasterKey, now_ms: i64) -> Result<Self, SigningError> {
        let mut tx = store.write().await?;
        // Serialises control planes that start on an empty database: one of them creates the key.
        tx.claim_job("first signing key", now_ms, 0).await?;
        if tx.signing_keys().await?.is_empty() {
            Self::add(&mut tx, master, now_ms).await?;
        }
        let keys = Self::read(&mut tx, master).await?;
        tx.commit().await?;
        Ok(keys)
    }

    /// Opens the active keys within a transaction.
    pub async fn read(tx: &mut Tx, master: &MasterKey) -> Result<Self, SigningError> {
        let keys = tx
            .signing_keys()
            .await?
            .iter()
            .filter(|k| k.active)
            .map(|k| master.open(k.public, &k.sealed))
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(SigningError::None) } else { Ok(Self(Arc::new(keys))) }
    }

    /// Creates an active key beside the others.
    pub async fn add(tx: &mut Tx, master: &MasterKey, now_ms: i64) -> Result<VerifyKey, SigningError> {
        let seed = random::<32>()?;
        let key = SignKey::from_seed(seed.as_slice()).map_err(|_| SigningError::Random)?;
        tx.add_signing_key(key.public(), &master.seal(&key)?, now_ms).await?;
        Ok(key.public())
    }

    /// The public halves.
    pub fn public(&self) -> Vec<VerifyKey> {
        self.0.iter().map(SignKey::public).collect()
    }

    /// The oldest key, for messages with one signature: a node may not know a newer one yet.
    pub fn oldest(&self) -> Option<&SignKey> {
        self.0.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preshared_key_is_of_one_salt_one_pair_and_one_master() {
        let (master, other) = (MasterKey::new(&[1; 32]).unwrap(), MasterKey::new(&[2; 32]).unwrap());
        let (node, hub) = (PublicKey([3; 32]), PublicKey([4; 32]));
        let key = master.preshared_key(&[5; 32], node, hub);
        assert_eq!(master.preshared_key(&[5; 32], node, hub), key, "the same at each replica");
        let others = [
            other.preshared_key(&[5; 32], node, hub),
            master.preshared_key(&[6; 32], node, hub),
            master.preshared_key(&[5; 32], hub, node),
            master.preshared_key(&[5; 32], node, PublicKey([9; 32])),
        ];
        assert!(others.iter().all(|o| *o != key));
    }

    #[test]
    fn seed_opens_only_under_its_master_and_public_key() {
        let (master, other) = (MasterKey::new(&[1; 32]).unwrap(), MasterKey::new(&[2; 32]).unwrap());
        let (key, another) = (SignKey::from_seed(&[3; 32]).unwrap(), SignKey::from_seed(&[4; 32]).unwrap());
        let sealed = master.seal(&key).unwrap();
        assert!(!sealed.contains(&STANDARD.encode([3; 32])[..20]));
        assert_eq!(master.open(key.public(), &sealed).unwrap().reveal_seed(), &[3; 32]);
        assert!(matches!(other.open(key.public(), &sealed), Err(SigningError::Sealed(_))));
        assert!(matches!(master.open(another.public(), &sealed), Err(SigningError::Sealed(_))));
        for cut in 0..sealed.len() {
            assert!(master.open(key.public(), &sealed[..cut]).is_err(), "cut at {cut}");
        }
    }
}

//! The new WireGuard key of a rotation, until the rotation is finished or abandoned.
//!
//! Two files beside the key's own: `KEY.next` was announced, `KEY.switching` may already be at the hub. Each step is one
//! rename, so a power cut leaves one of the two or neither, and loses no key that may be in use.
use super::{IfMissing, KeyError, ensure_dir, private, read};
use crate::disk::{DiskError, write_atomic};
use crate::random::key_bytes;
use spoke_enroll::events::KeySlot;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::key_source::KeySource;
use std::path::{Path, PathBuf};

/// The keys of a rotation under way.
pub trait TunnelKeys: Send + 'static {
    /// The public half of the key that is proven to be in use.
    fn current(&mut self) -> Result<PublicKey, KeyError>;
    /// The new key of an unfinished rotation, and whether [`TunnelKeys::remember`] was done.
    fn pending(&mut self) -> Result<Option<(PublicKey, bool)>, KeyError>;
    /// Generates a new key and stores it beside the other.
    fn make(&mut self) -> Result<PublicKey, KeyError>;
    /// Records that the hub may hold the new key.
    fn remember(&mut self) -> Result<(), KeyError>;
    /// The private half, for the kernel and for a proof of its possession.
    fn secret(&mut self, which: KeySlot) -> Result<SecretKey, KeyError>;
    /// The new key replaces the old one.
    fn finish(&mut self) -> Result<(), KeyError>;
    /// Deletes the new key.
    fn abandon(&mut self) -> Result<(), KeyError>;
}

/// [`TunnelKeys`] in files.
#[derive(Clone, Debug)]
pub struct KeyFiles(KeySource);

impl KeyFiles {
    /// The keys at `source`.
    pub const fn at(source: KeySource) -> Self {
        Self(source)
    }

    fn path(&self) -> Result<&Path, KeyError> {
        match &self.0 {
            KeySource::File(path) => Ok(path),
            KeySource::Credential(_) => Err(KeyError::NotOurs(self.0.clone())),
        }
    }

    fn beside(&self, what: &str) -> Result<PathBuf, KeyError> {
        let mut name = self.path()?.to_owned().into_os_string();
        name.push(what);
        Ok(name.into())
    }

    fn rename(from: &Path, to: &Path) -> Result<(), KeyError> {
        let synced = || -> std::io::Result<()> {
            std::fs::rename(from, to)?;
            std::fs::File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        synced().map_err(|e| DiskError::write(to, e).into())
    }
}

impl TunnelKeys for KeyFiles {
    fn current(&mut self) -> Result<PublicKey, KeyError> {
        Ok(private(&self.0, IfMissing::Fail)?.public())
    }

    fn pending(&mut self) -> Result<Option<(PublicKey, bool)>, KeyError> {
        if matches!(self.0, KeySource::Credential(_)) {
            return Ok(None);
        }
        for (what, switching) in [(".switching", true), (".next", false)] {
            let source = KeySource::File(self.beside(what)?);
            if read(&source)?.is_some() {
                return Ok(Some((private(&source, IfMissing::Fail)?.public(), switching)));
            }
        }
        Ok(None)
    }

    fn make(&mut self) -> Result<PublicKey, KeyError> {
        let path = self.beside(".next")?;
        if let Some(dir) = path.parent() {
            ensure_dir(dir)?;
        }
        let key = SecretKey::clamped(*key_bytes()?);
        let mut line = key.reveal_base64();
        line.push('\n');
        write_atomic(&path, line.as_bytes(), true)?;
        Ok(key.public())
    }

    fn remember(&mut self) -> Result<(), KeyError> {
        Self::rename(&self.beside(".next")?, &self.beside(".switching")?)
    }

    fn secret(&mut self, which: KeySlot) -> Result<SecretKey, KeyError> {
        match which {
            KeySlot::Old => private(&self.0, IfMissing::Fail),
            KeySlot::New => {
                let switching = KeySource::File(self.beside(".switching")?);
                match read(&switching)? {
                    Some(_) => private(&switching, IfMissing::Fail),
                    None => private(&KeySource::File(self.beside(".next")?), IfMissing::Fail),
                }
            }
        }
    }

    fn finish(&mut self) -> Result<(), KeyError> {
        Self::rename(&self.beside(".switching")?, self.path()?)
    }

    fn abandon(&mut self) -> Result<(), KeyError> {
        for what in [".next", ".switching"] {
            let path = self.beside(what)?;
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(DiskError::write(&path, e).into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_finds_the_keys_of_every_step() {
        let dir = tempfile::tempdir().unwrap();
        let source = KeySource::File(dir.path().join("wg0.key"));
        let old = private(&source, IfMissing::Create).unwrap().public();
        let again = || KeyFiles::at(source.clone());
        assert_eq!(again().pending().unwrap(), None);
        let new = again().make().unwrap();
        assert_eq!((again().current().unwrap(), again().pending().unwrap()), (old, Some((new, false))));
        assert_eq!(again().secret(KeySlot::New).unwrap().public(), new, "to prove it when it is announced");
        again().remember().unwrap();
        assert_eq!((again().current().unwrap(), again().pending().unwrap()), (old, Some((new, true))));
        assert_eq!(again().secret(KeySlot::Old).unwrap().public(), old);
        assert_eq!(again().secret(KeySlot::New).unwrap().public(), new);
        again().finish().unwrap();
        assert_eq!((again().current().unwrap(), again().pending().unwrap()), (new, None));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no old key is left");
    }

    #[test]
    fn abandoned_rotation_leaves_the_old_key() {
        let dir = tempfile::tempdir().unwrap();
        let source = KeySource::File(dir.path().join("wg0.key"));
        let old = private(&source, IfMissing::Create).unwrap().public();
        let mut keys = KeyFiles::at(source);
        keys.make().unwrap();
        keys.abandon().unwrap();
        assert_eq!((keys.current().unwrap(), keys.pending().unwrap()), (old, None));
    }

    #[test]
    fn credential_cannot_be_rotated() {
        let error = KeyFiles::at(KeySource::Credential("spoke.wireguard-key".into())).make().unwrap_err().to_string();
        assert!(error.contains("spoke.wireguard-key") && error.contains("file:"), "{error}");
    }
}

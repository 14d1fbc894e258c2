//! The second copy of the identity, in a small raw partition beside the state partition, for its loss.
//!
//! Two records at fixed offsets, written alternately, each with a number and a checksum: a power cut during one leaves the
//! other. Written only when a kept file has changed.
use super::disk::{DiskError, Owner, write_atomic_for};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"SPKVAULT";
/// Offset of the second record; a record is smaller than this.
const STRIDE: u64 = 512 * 1024;
const HEAD: usize = 8 + 8 + 8 + 32;
/// Larger files are not kept: an identity is small. Bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Why the vault could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The partition.
    #[error("cannot {what} the vault")]
    Io {
        /// The intention.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The files are too many.
    #[error("the vault has room for {STRIDE} bytes and the identity has {0}")]
    Full(usize),
    /// A file could not be restored.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn io(what: &'static str) -> impl FnOnce(io::Error) -> VaultError {
    move |source| VaultError::Io { what, source }
}

/// Files by their path below the state partition.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    files: BTreeMap<String, Kept>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    mode: u32,
    uid: u32,
    gid: u32,
    bytes: Vec<u8>,
}

/// The vault at a partition.
#[derive(Debug)]
pub struct Vault(PathBuf);

impl Vault {
    /// At this device or file.
    pub const fn at(path: PathBuf) -> Self {
        Self(path)
    }

    fn records(&self) -> Result<Vec<(u64, u64, Content)>, VaultError> {
        let file = fs::File::open(&self.0).map_err(io("open"))?;
        let mut found = Vec::new();
        for at in [0, STRIDE] {
            let mut head = [0; HEAD];
            file.read_exact_at(&mut head, at).map_err(io("read"))?;
            let number = |i: usize| head.get(i..i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
            let (turn, length) = (number(8), number(16));
            if !head.starts_with(MAGIC) || length > STRIDE - HEAD as u64 {
                continue;
            }
            let mut body = Zeroizing::new(vec![0; usize::try_from(length).unwrap_or(0)]);
            file.read_exact_at(&mut body, at + HEAD as u64).map_err(io("read"))?;
            if digest(&SHA256, &body).as_ref() == &head[24..]
                && let Ok(content) = serde_json::from_slice(&body)
            {
                found.push((turn, at, content));
            }
        }
        found.sort_by_key(|(turn, ..)| *turn);
        Ok(found)
    }

    /// Keeps the files below `base` that `wanted` accepts; returns whether anything had to be written.
    pub fn keep(&self, base: &Path, wanted: impl Fn(&str) -> bool) -> Result<bool, VaultError> {
        let mut content = Content::default();
        collect(base, base, &wanted, &mut content).map_err(io("read the files for"))?;
        let mut records = self.records()?;
        let newest = records.pop();
        if newest.as_ref().is_some_and(|(_, _, kept)| *kept == content) {
            return Ok(false);
        }
        let (turn, at) = newest.map_or((0, STRIDE), |(turn, at, _)| (turn, at));
        let body = Zeroizing::new(serde_json::to_vec(&content).map_err(|e| io("write")(io::Error::other(e)))?);
        if body.len() as u64 > STRIDE - HEAD as u64 {
            return Err(VaultError::Full(body.len()));
        }
        let mut record = Zeroizing::new(MAGIC.to_vec());
        record.extend_from_slice(&(turn + 1).to_le_bytes());
        record.extend_from_slice(&(body.len() as u64).to_le_bytes());
        record.extend_from_slice(digest(&SHA256, &body).as_ref());
        record.extend_from_slice(&body);
        let file = OpenOptions::new().write(true).open(&self.0).map_err(io("open"))?;
        file.write_all_at(&record, if at == 0 { STRIDE } else { 0 }).map_err(io("write"))?;
        file.sync_all().map_err(io("sync"))?;
        Ok(true)
    }

    /// Restores every kept file that is missing below `base`; returns their paths.
    pub fn restore(&self, base: &Path) -> Result<Vec<String>, VaultError> {
        let Some((_, _, content)) = self.records()?.pop() else { return Ok(Vec::new()) };
        let mut restored = Vec::new();
        for (name, kept) in content.files {
            let path = base.join(&name);
            if path.exists() || name.split('/').any(|p| p == "..") {
                continue;
            }
            let owner = Owner { uid: kept.uid, gid: kept.gid };
            // Also of an existing directory: a power cut may have come before its owner was set.
            if let Some(directory) = path.parent().filter(|d| *d != base) {
                fs::create_dir_all(directory).map_err(io("make a directory for"))?;
                owner.take(directory).map_err(io("restore an owner from"))?;
            }
            write_atomic_for(owner, &path, &kept.bytes, false)?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(kept.mode))
                .map_err(io("restore from"))?;
            restored.push(name);
        }
        Ok(restored)
    }
}

fn collect(base: &Path, directory: &Path, wanted: &impl Fn(&str) -> bool, into: &mut Content) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            collect(base, &path, wanted, into)?;
            continue;
        }
        let Some(name) = path.strip_prefix(base).ok().and_then(Path::to_str) else { continue };
        let meta = entry.metadata()?;
        if kind.is_file() && wanted(name) && meta.len() <= MAX_FILE {
            let kept = Kept { mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), bytes: fs::read(&path)? };
            into.files.insert(name.to_owned(), kept);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault() -> (tempfile::TempDir, Vault, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (partition, base) = (dir.path().join("vault"), dir.path().join("state"));
        fs::File::create(&partition).unwrap().set_len(2 * STRIDE).unwrap();
        fs::create_dir_all(base.join("spoke")).unwrap();
        fs::write(base.join("spoke/wg0.key"), b"one").unwrap();
        (dir, Vault::at(partition), base)
    }

    #[test]
    fn lost_identity_is_restored() {
        let (_dir, vault, base) = vault();
        assert!(vault.keep(&base, |_| true).unwrap());
        assert!(!vault.keep(&base, |_| true).unwrap(), "no write without a change");
        fs::remove_dir_all(base.join("spoke")).unwrap();
        assert_eq!(vault.restore(&base).unwrap(), ["spoke/wg0.key"]);
        assert_eq!(fs::read(base.join("spoke/wg0.key")).unwrap(), b"one");
        fs::write(base.join("spoke/wg0.key"), b"newer").unwrap();
        assert!(vault.restore(&base).unwrap().is_empty(), "an existing file is never replaced");
    }

    #[test]
    fn restored_files_keep_their_owner_after_a_power_cut() {
        let (_dir, vault, base) = vault();
        let (directory, key, owner) = (base.join("spoke"), base.join("spoke/wg0.key"), crate::sim::another_user());
        for path in [&directory, &key] {
            owner.take(path).unwrap();
        }
        vault.keep(&base, |_| true).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        // Power cut after the directory was created and before its owner was set.
        fs::create_dir(&directory).unwrap();
        vault.restore(&base).unwrap();
        for path in [&directory, &key] {
            assert_eq!(Owner::of(path).unwrap(), owner, "{}", path.display());
        }
    }

    #[test]
    fn power_cut_during_a_write_leaves_one_good_record() {
        let (_dir, vault, base) = vault();
        vault.keep(&base, |_| true).unwrap();
        let before = fs::read(&vault.0).unwrap();
        fs::write(base.join("spoke/wg0.key"), b"two").unwrap();
        vault.keep(&base, |_| true).unwrap();
        let after = fs::read(&vault.0).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
        for cut in &changed {
            let mut torn = before.clone();
            torn[..*cut].copy_from_slice(&after[..*cut]);
            fs::write(&vault.0, &torn).unwrap();
            fs::remove_file(base.join("spoke/wg0.key")).unwrap();
            vault.restore(&base).unwrap();
            assert_eq!(fs::read(base.join("spoke/wg0.key")).unwrap(), b"one", "cut at {cut}");
        }
    }

    #[test]
    fn empty_or_damaged_vault_restores_nothing() {
        let (_dir, vault, base) = vault();
        assert!(vault.restore(&base).unwrap().is_empty());
        fs::write(&vault.0, vec![0xff; usize::try_from(2 * STRIDE).unwrap()]).unwrap();
        assert!(vault.restore(&base).unwrap().is_empty());
    }
}

//! The second copy of the identity, in a small raw partition beside the state partition, for its loss.
//!
//! Two records at fixed offsets, written alternately, each with a number and a checksum: a power cut during one leaves the
//! other. Written only when a kept file has changed.
//!
//! A marker on the state partition says that its files are kept: what is missing beside it was removed on purpose, unless a
//! check of the file system has repaired something. A file that is no longer what its name says (an emptied or torn one) is
//! restored, and never replaces its copy.
use super::disk::{DiskError, Owner, write_atomic, write_atomic_for};
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
/// On the state partition: its files have been kept or restored.
const MARKER: &str = ".kept-in-vault";

/// What may be missing on the state partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Only files that were removed on purpose, if the marker is there.
    Removed,
    /// Also files that a check of the file system has lost.
    Lost,
}

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
        if let Some((_, _, kept)) = &newest {
            for (name, file) in &mut content.files {
                if let Some(good) =
                    kept.files.get(name).filter(|k| !is_whole(name, &file.bytes) && is_whole(name, &k.bytes))
                {
                    file.bytes.clone_from(&good.bytes);
                }
            }
        }
        // Without the marker a removed file may come back; that is no reason to keep no copy.
        let _ = mark(base);
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

    /// Restores every kept file that is damaged or, where `missing` or the lack of a marker allows it, missing below `base`;
    /// returns their paths. A damaged file is moved aside.
    pub fn restore(&self, base: &Path, missing: Missing) -> Result<Vec<String>, VaultError> {
        let Some((_, _, content)) = self.records()?.pop() else { return Ok(Vec::new()) };
        let new = missing == Missing::Lost || !base.join(MARKER).exists();
        let mut restored = Vec::new();
        for (name, kept) in content.files {
            let path = base.join(&name);
            if name.split('/').any(|p| p == "..") {
                continue;
            }
            match fs::read(&path) {
                Ok(bytes) if is_whole(&name, &bytes) || !is_whole(&name, &kept.bytes) => continue,
                Ok(_) => fs::rename(&path, aside(&path)).map_err(io("move a damaged file aside for"))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound && new => {}
                // Removed on purpose, or not readable: then it cannot be replaced either.
                Err(_) => continue,
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
        mark(base)?;
        Ok(restored)
    }
}

fn mark(base: &Path) -> Result<(), VaultError> {
    let marker = base.join(MARKER);
    if marker.exists() { Ok(()) } else { Ok(write_atomic(&marker, b"", true)?) }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".damaged");
    name.into()
}

/// Whether a file can be what its name says.
fn is_whole(name: &str, bytes: &[u8]) -> bool {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = bytes.trim_ascii();
    if text.is_empty() || text.iter().all(|b| *b == 0) {
        return false;
    }
    if name.starts_with("spoke/") && name.ends_with(".key") && !text.starts_with(b"-----BEGIN") {
        return STANDARD.decode(text).is_ok_and(|key| key.len() == 32);
    }
    if name.ends_with(".json") {
        return serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
    }
    true
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
        if kind.is_file() && name != MARKER && wanted(name) && meta.len() <= MAX_FILE {
            let kept = Kept { mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), bytes: fs::read(&path)? };
            into.files.insert(name.to_owned(), kept);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[u8] = b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    const TWO: &[u8] = b"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n";

    fn vault() -> (tempfile::TempDir, Vault, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (partition, base) = (dir.path().join("vault"), dir.path().join("state"));
        fs::File::create(&partition).unwrap().set_len(2 * STRIDE).unwrap();
        fs::create_dir_all(base.join("spoke")).unwrap();
        fs::write(base.join("spoke/wg0.key"), ONE).unwrap();
        (dir, Vault::at(partition), base)
    }

    /// A new file system on the state partition.
    fn format(base: &Path) {
        fs::remove_dir_all(base).unwrap();
        fs::create_dir(base).unwrap();
    }

    #[test]
    fn removed_file_stays_removed() {
        let (_dir, vault, base) = vault();
        for name in ["ssh/authorized_keys", "spoke/enrolment.json"] {
            let path = base.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"{}").unwrap();
            vault.keep(&base, |_| true).unwrap();
            fs::remove_file(&path).unwrap();
            // A restart at once: the removal is not kept yet.
            assert!(vault.restore(&base, Missing::Removed).unwrap().is_empty(), "{name}");
            assert!(!path.exists());
            // A check of the file system may have lost it.
            assert_eq!(vault.restore(&base, Missing::Lost).unwrap(), [name]);
            fs::remove_file(&path).unwrap();
            vault.keep(&base, |_| true).unwrap();
            assert!(vault.restore(&base, Missing::Lost).unwrap().is_empty(), "the removal is kept");
        }
    }

    #[test]
    fn damaged_file_is_restored_and_replaces_no_copy() {
        let (_dir, vault, base) = vault();
        let config = base.join("config/spoke.toml");
        fs::create_dir(base.join("config")).unwrap();
        fs::write(&config, b"[control]").unwrap();
        fs::write(base.join("spoke/enrolment.json"), b"{\"version\":1}").unwrap();
        vault.keep(&base, |_| true).unwrap();
        let damage: [(&str, &[u8]); 7] = [
            ("spoke/wg0.key", b""),
            ("spoke/wg0.key", &ONE[..20]),
            ("spoke/wg0.key", &[0; 45]),
            ("spoke/enrolment.json", b"{\"ver"),
            ("spoke/enrolment.json", b""),
            ("config/spoke.toml", b"\n"),
            ("config/spoke.toml", &[0; 512]),
        ];
        for (name, bytes) in damage {
            let path = base.join(name);
            let good = fs::read(&path).unwrap();
            fs::write(&path, bytes).unwrap();
            vault.keep(&base, |name| !name.ends_with(".damaged")).unwrap();
            assert_eq!(vault.restore(&base, Missing::Removed).unwrap(), [name], "{bytes:?}");
            assert_eq!((fs::read(&path).unwrap(), fs::read(aside(&path)).unwrap()), (good, bytes.to_vec()));
        }
    }

    #[test]
    fn lost_identity_is_restored() {
        let (_dir, vault, base) = vault();
        assert!(vault.keep(&base, |_| true).unwrap());
        assert!(!vault.keep(&base, |_| true).unwrap(), "no write without a change");
        format(&base);
        assert_eq!(vault.restore(&base, Missing::Removed).unwrap(), ["spoke/wg0.key"]);
        assert_eq!(fs::read(base.join("spoke/wg0.key")).unwrap(), ONE);
        fs::write(base.join("spoke/wg0.key"), TWO).unwrap();
        assert!(vault.restore(&base, Missing::Removed).unwrap().is_empty(), "an existing file is never replaced");
    }

    #[test]
    fn restored_files_keep_their_owner_after_a_power_cut() {
        let (_dir, vault, base) = vault();
        let (directory, key, owner) = (base.join("spoke"), base.join("spoke/wg0.key"), crate::sim::another_user());
        for path in [&directory, &key] {
            owner.take(path).unwrap();
        }
        vault.keep(&base, |_| true).unwrap();
        format(&base);
        // Power cut after the directory was created and before its owner was set.
        fs::create_dir(&directory).unwrap();
        vault.restore(&base, Missing::Removed).unwrap();
        for path in [&directory, &key] {
            assert_eq!(Owner::of(path).unwrap(), owner, "{}", path.display());
        }
    }

    #[test]
    fn power_cut_during_a_write_leaves_one_good_record() {
        let (_dir, vault, base) = vault();
        vault.keep(&base, |_| true).unwrap();
        let before = fs::read(&vault.0).unwrap();
        fs::write(base.join("spoke/wg0.key"), TWO).unwrap();
        vault.keep(&base, |_| true).unwrap();
        let after = fs::read(&vault.0).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
        for cut in &changed {
            let mut torn = before.clone();
            torn[..*cut].copy_from_slice(&after[..*cut]);
            fs::write(&vault.0, &torn).unwrap();
            format(&base);
            vault.restore(&base, Missing::Removed).unwrap();
            assert_eq!(fs::read(base.join("spoke/wg0.key")).unwrap(), ONE, "cut at {cut}");
        }
    }

    #[test]
    fn empty_or_damaged_vault_restores_nothing() {
        let (_dir, vault, base) = vault();
        assert!(vault.restore(&base, Missing::Removed).unwrap().is_empty());
        fs::write(&vault.0, vec![0xff; usize::try_from(2 * STRIDE).unwrap()]).unwrap();
        assert!(vault.restore(&base, Missing::Removed).unwrap().is_empty());
    }
}

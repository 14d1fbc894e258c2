//! The second copy of the identity, in a small raw partition beside the state partition, for its loss.
//!
//! Two records at fixed offsets, written alternately, each with a number and a checksum: a power cut during one leaves the
//! other. Written only when a kept file has changed.
//!
//! A marker on the state partition says that its files are kept: what is missing beside it was removed on purpose, unless a
//! check of the file system has repaired something. A file that is no longer what its name says (an emptied or torn one) is
//! restored, and never replaces its copy.
//!
//! The process is root, and some of the directories belong to the supervisor's user: files there are read and restored with that
//! user's rights, so that its links lead to nothing that it could not reach itself.
use super::beneath::{Beneath, inside, is_plain};
use super::disk::{DiskError, Owner, write_atomic};
use ring::digest::{SHA256, digest};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
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
/// Directories of the state partition with files to keep, all made by `mount-state` of the image.
const AREAS: [&str; 4] = ["config", "host", "spoke", "ssh"];
/// Directories below one another in an area.
const MAX_DEPTH: usize = 4;
/// Files of one area.
const MAX_FILES: usize = 256;

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
    /// For releases that restore by it; the owner is that of the area.
    uid: u32,
    gid: u32,
    bytes: Vec<u8>,
}

/// Whether a file, by its path below the state partition, is kept: keys, identity, settings and secrets, and of what belongs to
/// root exactly the files that the image itself writes.
fn is_kept(name: &str) -> bool {
    if !name.split('/').all(is_plain) || name.split('/').count() > MAX_DEPTH + 2 {
        return false;
    }
    let (Some((area, rest)), Some(file)) = (name.split_once('/'), name.rsplit('/').next()) else { return false };
    // Not temporary files and previous copies.
    if file.starts_with('.') || file.ends_with(".damaged") || file.ends_with(".prev") {
        return false;
    }
    match area {
        "ssh" => matches!(rest, "authorized_keys" | "host_key"),
        "host" => matches!(rest, "hostname" | "timesyncd.conf"),
        "config" => true,
        "spoke" => {
            rest.starts_with("secrets/")
                || file.ends_with(".key")
                || file.starts_with("identity")
                || file.starts_with("enrolment")
        }
        _ => false,
    }
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

    /// Keeps keys, identity and settings below `base`; returns whether anything had to be written.
    pub fn keep(&self, base: &Path) -> Result<bool, VaultError> {
        let mut content = Content::default();
        for name in AREAS {
            if let Some(files) = in_area(base, name, collect).map_err(io("read the files for"))? {
                content.files.extend(files);
            }
        }
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
        let (mut restored, mut failed) = (Vec::new(), None);
        for area in AREAS {
            let files: Vec<_> = content.files.iter().filter(|(name, _)| is_kept(name) && within(name, area)).collect();
            let done = in_area(base, area, |area| {
                let mut done = Vec::new();
                for (name, kept) in files {
                    match restore_file(area, name, kept, new) {
                        Ok(true) => done.push(name.clone()),
                        Ok(false) => {}
                        Err(e) => failed = Some(e),
                    }
                }
                Ok(done)
            });
            // One area must not keep the others from being restored.
            match done {
                Ok(done) => restored.extend(done.unwrap_or_default()),
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            return Err(io("restore from")(e));
        }
        mark(base)?;
        Ok(restored)
    }
}

fn mark(base: &Path) -> Result<(), VaultError> {
    let marker = base.join(MARKER);
    if marker.exists() { Ok(()) } else { Ok(write_atomic(&marker, b"", true)?) }
}

fn within(name: &str, area: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| first == area)
}

/// Runs `work` on an area with the rights of its owner. `None`: the area is not there.
fn in_area<T: Send>(
    base: &Path,
    name: &str,
    work: impl FnOnce(&Area<'_>) -> io::Result<T> + Send,
) -> io::Result<Option<T>> {
    let done = inside(&base.join(name), |directory| {
        let Owner { uid, gid } = directory.owner()?;
        work(&Area { name, uid, gid, directory }).map(Some)
    });
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done,
    }
}

/// A directory of the state partition.
struct Area<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    directory: &'a Beneath,
}

/// Restores a file if it is damaged or, where `missing` allows it, missing; returns whether it did.
fn restore_file(area: &Area<'_>, name: &str, kept: &Kept, missing: bool) -> io::Result<bool> {
    let Some((directories, file)) = name.rsplit_once('/') else { return Ok(false) };
    let within = directories.strip_prefix(area.name).unwrap_or_default();
    let rest = format!("{within}/{file}");
    match area.directory.read(rest.trim_start_matches('/'), MAX_FILE) {
        Ok((bytes, _)) if is_whole(name, &bytes) || !is_whole(name, &kept.bytes) => return Ok(false),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && missing => {}
        // Removed on purpose, or not readable: then it cannot be replaced either.
        Err(_) => return Ok(false),
    }
    let mut directory = None;
    for part in within.split('/').filter(|part| !part.is_empty()) {
        directory = Some(directory.as_ref().unwrap_or(area.directory).make_directory(part)?);
    }
    let directory = directory.as_ref().unwrap_or(area.directory);
    match directory.rename(file, &format!("{file}.damaged")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    directory.write(file, &kept.bytes, kept.mode & 0o777)?;
    Ok(true)
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

/// The files of an area that are kept.
fn collect(area: &Area<'_>) -> io::Result<BTreeMap<String, Kept>> {
    let mut found = BTreeMap::new();
    collect_below(area, area.directory, area.name, 0, &mut found)?;
    Ok(found)
}

fn collect_below(
    area: &Area<'_>,
    directory: &Beneath,
    prefix: &str,
    depth: usize,
    found: &mut BTreeMap<String, Kept>,
) -> io::Result<()> {
    for (entry, kind) in directory.entries()? {
        let name = format!("{prefix}/{entry}");
        match kind {
            FileType::Directory if depth < MAX_DEPTH => {
                // Removed since it was listed, or not readable for its owner: nothing of it is kept.
                if let Ok(deeper) = directory.directory(&entry) {
                    collect_below(area, &deeper, &name, depth + 1, found)?;
                }
            }
            FileType::RegularFile if is_kept(&name) && found.len() < MAX_FILES => {
                match directory.read(&entry, MAX_FILE) {
                    Ok((bytes, mode)) => {
                        found.insert(name, Kept { mode, uid: area.uid, gid: area.gid, bytes });
                    }
                    Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Err(e),
                    // Removed, replaced or too large.
                    Err(_) => {}
                }
            }
            _ => {}
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

    /// A new file system on the state partition, with its directories (`mount-state`).
    fn format(base: &Path) {
        fs::remove_dir_all(base).unwrap();
        for area in AREAS {
            fs::create_dir_all(base.join(area)).unwrap();
        }
    }

    fn aside(path: &Path) -> PathBuf {
        path.with_file_name(format!("{}.damaged", path.file_name().unwrap().to_str().unwrap()))
    }

    /// The state directory as the supervisor's user has it, and that user.
    fn of_another_user(base: &Path) -> Owner {
        let owner = crate::sim::another_user();
        for entry in fs::read_dir(base.join("spoke")).unwrap().flatten() {
            owner.take(&entry.path()).unwrap();
        }
        owner.take(&base.join("spoke")).unwrap();
        owner
    }

    #[test]
    fn links_of_the_supervisors_user_lead_nowhere() {
        let (dir, vault, base) = vault();
        let (shadow, ssh) = (dir.path().join("shadow.key"), base.join("ssh"));
        super::super::disk::write_atomic(&shadow, b"root's secret", true).unwrap();
        fs::create_dir(&ssh).unwrap();
        let secrets = base.join("spoke/secrets");
        fs::create_dir(&secrets).unwrap();
        fs::write(secrets.join("authorized_keys"), b"ssh-ed25519 attacker").unwrap();
        let owner = of_another_user(&base);
        owner.take(&secrets.join("authorized_keys")).unwrap();
        // Read: a key that is a link to a file of root.
        std::os::unix::fs::symlink(&shadow, base.join("spoke/stolen.key")).unwrap();
        vault.keep(&base).unwrap();
        let kept = vault.records().unwrap().pop().unwrap().2.files;
        assert!(kept.contains_key("spoke/secrets/authorized_keys") && !kept.contains_key("spoke/stolen.key"));
        // Restore: through a directory that is a link to one of root.
        fs::remove_dir_all(&secrets).unwrap();
        std::os::unix::fs::symlink(&ssh, &secrets).unwrap();
        let _ = vault.restore(&base, Missing::Lost);
        assert_eq!(fs::read_dir(&ssh).unwrap().count(), 0);
        assert_eq!(Owner::of(&ssh).unwrap(), Owner::of(&base).unwrap());
        assert_eq!(fs::read(&shadow).unwrap(), b"root's secret");
    }

    #[test]
    fn kept_files_are_those_of_the_list() {
        for name in ["ssh/host_key", "spoke/wg0.key", "spoke/keys/wg0.key", "spoke/secrets/token", "config/spoke.toml"]
        {
            assert!(is_kept(name), "{name}");
        }
        for name in [
            "ssh/rc",
            "ssh/a/authorized_keys",
            "host/../../etc/shadow.key",
            "../x.key",
            "/etc/x.key",
            "update/update.json",
            "spoke/./wg0.key",
            "spoke/.wg0.key.new",
            "spoke/a/b/c/d/e/f.key",
            "wg0.key",
        ] {
            assert!(!is_kept(name), "{name}");
        }
    }

    #[test]
    fn removed_file_stays_removed() {
        let (_dir, vault, base) = vault();
        for name in ["ssh/authorized_keys", "spoke/enrolment.json"] {
            let path = base.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, b"{}").unwrap();
            vault.keep(&base).unwrap();
            fs::remove_file(&path).unwrap();
            // A restart at once: the removal is not kept yet.
            assert!(vault.restore(&base, Missing::Removed).unwrap().is_empty(), "{name}");
            assert!(!path.exists());
            // A check of the file system may have lost it.
            assert_eq!(vault.restore(&base, Missing::Lost).unwrap(), [name]);
            fs::remove_file(&path).unwrap();
            vault.keep(&base).unwrap();
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
        vault.keep(&base).unwrap();
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
            vault.keep(&base).unwrap();
            assert_eq!(vault.restore(&base, Missing::Removed).unwrap(), [name], "{bytes:?}");
            assert_eq!((fs::read(&path).unwrap(), fs::read(aside(&path)).unwrap()), (good, bytes.to_vec()));
        }
    }

    #[test]
    fn lost_identity_is_restored() {
        let (_dir, vault, base) = vault();
        assert!(vault.keep(&base).unwrap());
        assert!(!vault.keep(&base).unwrap(), "no write without a change");
        format(&base);
        assert_eq!(vault.restore(&base, Missing::Removed).unwrap(), ["spoke/wg0.key"]);
        assert_eq!(fs::read(base.join("spoke/wg0.key")).unwrap(), ONE);
        fs::write(base.join("spoke/wg0.key"), TWO).unwrap();
        assert!(vault.restore(&base, Missing::Removed).unwrap().is_empty(), "an existing file is never replaced");
    }

    #[test]
    fn restored_files_belong_to_the_owner_of_their_directory() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, vault, base) = vault();
        fs::create_dir(base.join("spoke/secrets")).unwrap();
        fs::write(base.join("spoke/secrets/token"), b"spk").unwrap();
        fs::set_permissions(base.join("spoke/secrets/token"), fs::Permissions::from_mode(0o640)).unwrap();
        vault.keep(&base).unwrap();
        format(&base);
        let owner = of_another_user(&base);
        // Power cut after the directory was created.
        let cut = base.join("spoke/secrets");
        fs::create_dir(&cut).unwrap();
        owner.take(&cut).unwrap();
        vault.restore(&base, Missing::Removed).unwrap();
        for name in ["spoke/wg0.key", "spoke/secrets", "spoke/secrets/token"] {
            assert_eq!(Owner::of(&base.join(name)).unwrap(), owner, "{name}");
        }
        assert_eq!(fs::metadata(base.join("spoke/secrets/token")).unwrap().permissions().mode() & 0o7777, 0o640);
    }

    #[test]
    fn power_cut_during_a_write_leaves_one_good_record() {
        let (_dir, vault, base) = vault();
        vault.keep(&base).unwrap();
        let before = fs::read(&vault.0).unwrap();
        fs::write(base.join("spoke/wg0.key"), TWO).unwrap();
        vault.keep(&base).unwrap();
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

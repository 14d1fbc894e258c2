//! Files that survive a power cut: written to a temporary name, synced, renamed, directory synced; never in place.
use rustix::fs::{Mode, OFlags, open};
use serde::{Serialize, de::DeserializeOwned};
use spoke_model::signature::sha256_hex;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

mod atomic;
pub mod journaled;
use atomic::fill_in;
pub(crate) use atomic::{How, write_in};
#[cfg(any(test, feature = "sim"))]
pub use journaled::recorded;
use journaled::{Operation, record};

/// Files written whole and records appended by this process, and their bytes.
static WRITTEN: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Counts a write that reached the file system.
pub(crate) fn count_write(bytes: usize) {
    WRITTEN[0].fetch_add(1, Ordering::Relaxed);
    WRITTEN[1].fetch_add(bytes, Ordering::Relaxed);
}

/// Writes of this process through this module and the journals, and their bytes.
pub fn written() -> (u64, u64) {
    let [writes, bytes] = [&WRITTEN[0], &WRITTEN[1]].map(|n| n.load(Ordering::Relaxed) as u64);
    (writes, bytes)
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Reading failed.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Writing failed; the old content is untouched.
    #[error("cannot write {path} (its old content stays): {remedy}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A secret that others may read.
    #[error("{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Neither the document nor its previous good copy can be understood.
    #[error("{path} is damaged ({problem}) and has no good previous copy: it is kept as {aside}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Where the damaged file is kept: its own path on a file system that cannot be written.
        aside: PathBuf,
    },
}

impl DiskError {
    fn read(path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Read { path: path.to_owned(), source: source.into() }
    }

    pub(super) fn write(path: &Path, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let remedy = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "free some space on its file system",
            std::io::ErrorKind::ReadOnlyFilesystem => {
                "its file system is read-only: check it for errors and remount it"
            }
            std::io::ErrorKind::PermissionDenied => "give the user that runs spoke the right to write its directory",
            std::io::ErrorKind::NotFound => "create its directory (systemd: StateDirectory=spoke)",
            _ => "check its file system",
        };
        Self::Write { path: path.to_owned(), remedy, source }
    }
}

/// Writes `bytes` so that after a power cut either the old or the new content is there, mode 0600.
///
/// `replace = false` fails with `AlreadyExists` rather than touch a file that is there.
pub fn write_atomic(path: &Path, bytes: &[u8], replace: bool) -> Result<(), DiskError> {
    write(path, bytes, How { replace, owner: None, mode: 0o600 })
}

/// As [`write_atomic`], for a file of the service: what root writes by hand into a directory of the service's user is that
/// user's, else the service could not read it.
pub fn write_state(path: &Path, bytes: &[u8], replace: bool) -> Result<(), DiskError> {
    let (dir, name) = split(path).ok_or_else(|| no_name(path))?;
    let dir = open_dir(dir).map_err(|e| DiskError::write(path, e))?;
    let stat = rustix::fs::fstat(&dir).ok().filter(|_| rustix::process::geteuid().is_root());
    let owner = stat.filter(|s| s.st_uid != 0).map(|s| Owner { uid: s.st_uid, gid: s.st_gid });
    write_in(dir.as_fd(), path, name, bytes, How { replace, owner, mode: 0o600 })
}

/// As [`write_atomic`], for a secret that the owner of `like` reads, if there is such a file or directory.
pub fn write_for(path: &Path, bytes: &[u8], like: &Path) -> Result<(), DiskError> {
    let root = rustix::process::geteuid().is_root();
    let owner = std::fs::metadata(like).ok().filter(|_| root).map(|m| Owner { uid: m.uid(), gid: m.gid() });
    write(path, bytes, How { replace: true, owner, mode: 0o600 })
}

/// As [`write_atomic`], for a configuration: owner and mode of the file that is replaced stay; a new one has mode 0644.
pub fn write_settings(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let before = std::fs::metadata(path).ok();
    let owner = before.as_ref().map(|m| Owner { uid: m.uid(), gid: m.gid() });
    let mode = before.map_or(0o644, |m| m.mode() & 0o777);
    write(path, bytes, How { replace: true, owner, mode })
}

/// As [`write_atomic`], for public content of any length that `fill` writes, mode 0644. A pipe or device is written as it is.
///
/// # Errors
/// The file system's, or those of `fill`.
pub fn write_public(path: &Path, fill: &mut dyn FnMut(&mut File) -> std::io::Result<()>) -> Result<(), DiskError> {
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let open = File::options().write(true).open(path);
        return open.and_then(|mut file| fill(&mut file)).map_err(|e| DiskError::write(path, e));
    }
    let (dir, name) = split(path).ok_or_else(|| no_name(path))?;
    let dir = open_dir(dir).map_err(|e| DiskError::write(path, e))?;
    fill_in(dir.as_fd(), path, name, How { replace: true, owner: None, mode: 0o644 }, &mut |file, _| fill(file))
}

/// User and group of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

fn write(path: &Path, bytes: &[u8], how: How) -> Result<(), DiskError> {
    let (dir, name) = split(path).ok_or_else(|| no_name(path))?;
    let dir = open_dir(dir).map_err(|e| DiskError::write(path, e))?;
    write_in(dir.as_fd(), path, name, bytes, how)
}

fn no_name(path: &Path) -> DiskError {
    DiskError::write(path, std::io::Error::from(std::io::ErrorKind::InvalidInput))
}

fn open_dir(dir: &Path) -> rustix::io::Result<OwnedFd> {
    open(dir, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Removes a file durably. Removing a missing one succeeds.
///
/// # Errors
/// The file is still there, or may be back after a power cut.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    match std::fs::remove_file(path) {
        Ok(()) => record(|| Operation::Remove(path.to_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(DiskError::write(path, e)),
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| DiskError::write(path, e))?;
    record(|| Operation::SyncDirectory);
    Ok(())
}

/// Erases the one-line secret in `path` if `is_it` holds for it; whether it did. Overwritten before it is deleted: freed
/// blocks would keep the text. In a directory that this process cannot write an empty file stays.
///
/// # Errors
/// The secret may still be there.
pub fn erase_secret(path: &Path, is_it: impl FnOnce(&str) -> bool) -> Result<bool, DiskError> {
    let fail = |e: std::io::Error| DiskError::write(path, e);
    let Some(bytes) = read_secret(path, 4096)? else { return Ok(false) };
    if !std::str::from_utf8(&bytes).is_ok_and(|text| is_it(text.trim())) {
        return Ok(false);
    }
    let file = open(path, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let mut file = File::from(file.map_err(|e| DiskError::write(path, e))?);
    file.write_all(&vec![b'#'; bytes.len()]).and_then(|()| file.sync_all()).map_err(fail)?;
    file.set_len(0).and_then(|()| file.sync_all()).map_err(fail)?;
    drop(file);
    let _ = remove(path);
    Ok(true)
}

fn split(path: &Path) -> Option<(&Path, &str)> {
    let directory = path.parent()?;
    // The parent of a bare file name is empty, not ".".
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    Some((directory, path.file_name()?.to_str()?))
}

/// Reads a file that is no secret, such as a certificate; at most 1 MiB.
pub fn read_public(path: &Path) -> Result<Vec<u8>, DiskError> {
    let file = File::open(path).map_err(|e| DiskError::read(path, e))?;
    let mut bytes = Vec::new();
    file.take(1 << 20).read_to_end(&mut bytes).map_err(|e| DiskError::read(path, e))?;
    Ok(bytes)
}

/// Reads a secret file of at most `max` bytes; refuses one that group or others may read. `Ok(None)`: there is none.
pub fn read_secret(path: &Path, max: u64) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, DiskError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DiskError::read(path, e)),
    };
    let meta = file.metadata().map_err(|e| DiskError::read(path, e))?;
    if !meta.is_file() {
        return Err(DiskError::read(path, std::io::Error::other("it is not a file")));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(DiskError::TooOpen { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    // Room for all of it at once: a growing buffer would leave copies of the secret behind.
    let mut bytes =
        zeroize::Zeroizing::new(Vec::with_capacity(usize::try_from(max.min(meta.len() + 1)).unwrap_or(4096)));
    file.take(max).read_to_end(&mut bytes).map_err(|e| DiskError::read(path, e))?;
    Ok(Some(bytes))
}

/// A versioned JSON document with its previous good copy (`NAME.prev`), written only on change.
///
/// Shape on disk: `{"version": N, "sum": "<sha-256 hex of body>", "body": …}`.
#[derive(Debug)]
pub struct Document<T> {
    path: PathBuf,
    version: u32,
    /// The sum of the body that was last read or written.
    last: Option<String>,
    kind: std::marker::PhantomData<fn() -> T>,
}

#[derive(serde::Deserialize)]
struct Envelope<'a> {
    version: u32,
    sum: &'a str,
    #[serde(borrow)]
    body: &'a serde_json::value::RawValue,
}

impl<T: Serialize + DeserializeOwned> Document<T> {
    /// The document at `path`, in the `version` this build writes and reads.
    pub const fn new(path: PathBuf, version: u32) -> Self {
        Self { path, version, last: None, kind: std::marker::PhantomData }
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it; if it is damaged or cannot be read, logs that and reads the previous good copy. `Ok(None)`: it does not
    /// exist. Every write replaces it by a rename, so no power cut removes it: a missing one was removed on purpose, and
    /// its previous copy counts for nothing.
    pub fn load(&mut self) -> Result<Option<T>, DiskError> {
        let error = match self.read(&self.path) {
            Ok(None) => return Ok(None),
            Ok(Some((value, sum))) => {
                self.last = Some(sum);
                return Ok(Some(value));
            }
            Err(error) => error,
        };
        if let Ok(Some((value, _))) = self.read(&self.previous()) {
            let problem = match &error {
                ReadError::Disk(e) => spoke_model::error_chain::ErrorChain(e).to_string(),
                ReadError::Damaged(problem) => problem.clone(),
            };
            tracing::warn!(path = %self.path.display(), problem, "document damaged; its previous copy is used");
            return Ok(Some(value));
        }
        match error {
            ReadError::Disk(e) => Err(e),
            ReadError::Damaged(problem) => {
                let aside = self.path.with_extension("damaged");
                let moved = std::fs::rename(&self.path, &aside);
                if moved.is_ok() {
                    record(|| Operation::Rename(self.path.clone(), aside.clone()));
                }
                let aside = if moved.is_ok() { aside } else { self.path.clone() };
                Err(DiskError::Damaged { path: self.path.clone(), problem, aside })
            }
        }
    }

    /// Deletes its previous copy, which must not come back.
    ///
    /// # Errors
    /// It is still there.
    pub fn forget_previous(&mut self) -> Result<(), DiskError> {
        remove(&self.previous())
    }

    /// As [`Document::load`] without changing anything: nothing is moved aside, and what cannot be read counts as absent.
    pub fn peek(&self) -> Option<T> {
        match self.read(&self.path) {
            Ok(found) => found.map(|(value, _)| value),
            Err(_) => self.read(&self.previous()).ok().flatten().map(|(value, _)| value),
        }
    }

    /// Writes it if it differs from what was last read or written; returns whether it did.
    pub fn store(&mut self, value: &T) -> Result<bool, DiskError> {
        let head = |sum: &str| format!("{{\"version\":{},\"sum\":\"{sum:064}\",\"body\":", self.version).into_bytes();
        // In one buffer: a document of a hub may have megabytes.
        let mut bytes = head("");
        let begin = bytes.len();
        serde_json::to_writer(&mut bytes, value).map_err(|e| DiskError::write(&self.path, std::io::Error::other(e)))?;
        let sum = sha256_hex(bytes.get(begin..).unwrap_or_default());
        if self.last.as_ref() == Some(&sum) {
            return Ok(false);
        }
        bytes.splice(..begin, head(&sum)).for_each(drop);
        bytes.push(b'}');
        write_content(&self.path, &self.previous(), &bytes, self.is_good())?;
        self.last = Some(sum);
        Ok(true)
    }

    /// As [`Document::store`], for content that withdraws something: no older content stays, not even as the previous
    /// copy, whose space a full disk gets back. If the new content cannot be written, the document is removed.
    pub fn replace(&mut self, value: &T) -> Result<bool, ReplaceError> {
        let removed = remove(&self.previous());
        let error = match self.store(value) {
            // `store` keeps the content it replaced.
            Ok(written) => match removed.and_then(|()| remove(&self.previous())) {
                Ok(()) => return Ok(written),
                Err(e) => return Err(ReplaceError { error: e, removed: false }),
            },
            Err(e) => e,
        };
        let removed = remove(&self.previous()).and_then(|()| self.remove()).is_ok();
        Err(ReplaceError { error, removed })
    }

    /// Removes it and its previous copy.
    pub fn remove(&mut self) -> Result<(), DiskError> {
        self.last = None;
        self.forget_previous()?;
        remove(&self.path)
    }

    fn previous(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".prev");
        name.into()
    }

    fn read(&self, path: &Path) -> Result<Option<(T, String)>, ReadError> {
        let Some(bytes) = content(path)? else { return Ok(None) };
        let (body, sum) = open_content(&bytes, self.version)?;
        let value = serde_json::from_slice(body).map_err(damaged)?;
        Ok(Some((value, sum.to_owned())))
    }

    /// Whether the file is undamaged. What was last read or written is not parsed again.
    fn is_good(&self) -> Result<Option<()>, ReadError> {
        let Some(bytes) = content(&self.path)? else { return Ok(None) };
        let (body, sum) = open_content(&bytes, self.version)?;
        if self.last.as_deref() != Some(sum) {
            serde_json::from_slice::<T>(body).map_err(damaged)?;
        }
        Ok(Some(()))
    }
}

/// Writes a document whose file is good, absent (`None`) or damaged.
fn write_content(
    path: &Path,
    previous: &Path,
    bytes: &[u8],
    current: Result<Option<()>, ReadError>,
) -> Result<(), DiskError> {
    match current {
        // Only a good copy may become the previous one.
        Ok(Some(())) => {
            if std::fs::remove_file(previous).is_ok() {
                record(|| Operation::Remove(previous.to_owned()));
            }
            match std::fs::hard_link(path, previous) {
                Ok(()) => record(|| Operation::Link(path.to_owned(), previous.to_owned())),
                Err(e) => {
                    tracing::debug!(error = %e, path = %previous.display(), "previous copy not kept");
                }
            }
        }
        // Of a document that was removed: it must not come back when this one is damaged.
        Ok(None) => remove(previous)?,
        Err(_) => {}
    }
    write_state(path, bytes, true)
}

/// The body and its sum.
fn open_content(bytes: &[u8], version: u32) -> Result<(&[u8], &str), ReadError> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(damaged)?;
    if envelope.version != version {
        return Err(damaged(format_args!("version {} instead of {version}", envelope.version)));
    }
    let body = envelope.body.get().as_bytes();
    if sha256_hex(body) != envelope.sum {
        return Err(damaged("its checksum does not match"));
    }
    Ok((body, envelope.sum))
}

fn content(path: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ReadError::Disk(DiskError::read(path, e))),
    }
}

fn damaged(reason: impl std::fmt::Display) -> ReadError {
    ReadError::Damaged(reason.to_string())
}

/// [`Document::replace`] failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ReplaceError {
    /// Why the new content was not written.
    #[source]
    pub error: DiskError,
    /// Whether the old content was removed.
    pub removed: bool,
}

enum ReadError {
    Disk(DiskError),
    Damaged(String),
}

#[cfg(test)]
mod tests;

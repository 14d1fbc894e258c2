//! An append-only file of lines with checksums: a change costs one line. Its user replaces it as a whole at times.
//!
//! A line is `<16 hex digits of SHA-256> <payload>\n`. Opening drops everything from the first line with a wrong
//! checksum on (a write cut short by a power cut). If valid lines follow it, the file is damaged, and a copy of it is
//! kept. Only the owner can read the file.
use crate::disk::{DiskError, write_state};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// `None`: not yet opened for writing.
    file: Option<Arc<File>>,
    len: u64,
    /// Repair that failed at opening; it is tried again before each append.
    repair: Option<Arc<Repair>>,
}

/// Repair of a damaged file.
#[derive(Debug)]
enum Repair {
    /// Copy it to `PATH.damaged` and rewrite it with its valid bytes.
    Aside { damaged: Vec<u8>, good: Vec<u8> },
    /// Rename it unchanged to `PATH.1` and start a new file.
    Rename,
    /// As [`Repair::Rename`], with these bytes in the new file.
    Replace { good: Vec<u8> },
}

impl Repair {
    /// Returns the path of the damaged file's copy.
    fn run(&self, path: &Path) -> Result<PathBuf, DiskError> {
        match self {
            Self::Aside { damaged, good } => {
                let copy = beside(path, "damaged");
                write_state(&copy, damaged, true)?;
                write_state(path, good, true)?;
                Ok(copy)
            }
            Self::Rename => set_aside(path),
            Self::Replace { good } => {
                let old = set_aside(path)?;
                write_state(path, good, true)?;
                Ok(old)
            }
        }
    }

    /// Repairs, or returns itself for the next append if the disk cannot be written.
    fn run_or_defer(self, path: &Path) -> (Option<PathBuf>, Option<Arc<Self>>) {
        match self.run(path) {
            Ok(kept) => {
                tracing::error!(path = %path.display(), copy = %kept.display(), "file damaged; a copy is kept aside");
                (Some(kept), None)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(
                    path = %path.display(), %error, cause,
                    "file damaged and not repaired; its good lines, or those of the previous copy, are used"
                );
                (None, Some(Arc::new(self)))
            }
        }
    }
}

/// Lines in the format of the file.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Adds a line.
    pub fn push(&mut self, payload: &[u8]) {
        write_line(&mut self.0, payload);
    }

    /// Length in the file, in bytes.
    pub const fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether there are no lines.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<P: AsRef<[u8]>> FromIterator<P> for Lines {
    fn from_iter<I: IntoIterator<Item = P>>(payloads: I) -> Self {
        let mut out = Self::default();
        payloads.into_iter().for_each(|p| out.push(p.as_ref()));
        out
    }
}

/// Content found at opening.
#[derive(Debug, Default)]
pub struct Found {
    /// Payloads of the valid lines, oldest first.
    pub lines: Vec<Vec<u8>>,
    /// Bytes dropped because of a wrong checksum.
    pub dropped: u64,
    /// Path of the damaged file's copy, if it was damaged elsewhere than at its end.
    pub aside: Option<PathBuf>,
}

impl Journal {
    /// Opens or creates the file. Blocks. If the file system is read-only or full, its lines are still returned, the
    /// error is logged, and each append tries again. A file that cannot be read counts as damaged: the previous copy is
    /// used.
    pub fn open(path: PathBuf) -> (Self, Found) {
        let bytes = match read_or_nothing(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Self::unreadable(path, &error),
        };
        let (mut lines, mut good) = parse(&bytes);
        let mut dropped = (bytes.len() - good) as u64;
        let (mut aside, mut repair) = (None, None);
        if dropped > 0 && (good == 0 || !salvage(&bytes[good..]).0.is_empty()) {
            // The copy is for examination. If the first line is damaged, the previous copy of the file is used.
            let mut whole = bytes[..good].to_vec();
            if good == 0 {
                let previous = std::fs::read(beside(&path, "prev")).unwrap_or_default();
                (lines, good) = parse(&previous);
                dropped = (previous.len() - good) as u64;
                whole = previous[..good].to_vec();
            }
            (aside, repair) = Repair::Aside { damaged: bytes, good: whole }.run_or_defer(&path);
        }
        (Self::with(path, good as u64, repair), Found { lines, dropped, aside })
    }

    /// The file is renamed to `PATH.1` before the first append, and replaced by the lines of the previous copy.
    fn unreadable(path: PathBuf, error: &DiskError) -> (Self, Found) {
        let error = spoke_model::error_chain::ErrorChain(error);
        tracing::error!(path = %path.display(), %error, "file not readable; its previous copy is used");
        let previous = std::fs::read(beside(&path, "prev")).unwrap_or_default();
        let (lines, good) = parse(&previous);
        let whole = previous[..good].to_vec();
        let (aside, repair) = Repair::Replace { good: whole }.run_or_defer(&path);
        (Self::with(path, good as u64, repair), Found { lines, dropped: 0, aside })
    }

    /// Like [`Journal::open`], for a file whose every line is evidence: one that is damaged elsewhere than at its end
    /// is renamed unchanged to `PATH.1`, replacing an earlier one, and a new file is started.
    pub fn open_or_rotate(path: PathBuf) -> (Self, Found) {
        let bytes = match read_or_nothing(&path) {
            Ok(bytes) => bytes,
            Err(error) => return Self::unreadable(path, &error),
        };
        let (_, good) = parse(&bytes);
        if salvage(&bytes[good..]).0.is_empty() {
            return Self::open(path);
        }
        let (lines, dropped) = salvage(&bytes);
        let (aside, repair) = Repair::Rename.run_or_defer(&path);
        (Self::with(path, 0, repair), Found { lines, dropped, aside })
    }

    /// The journal whose first `len` bytes are valid after `repair`.
    fn with(path: PathBuf, len: u64, repair: Option<Arc<Repair>>) -> Self {
        let mut out = Self { path, file: None, len, repair };
        if out.repair.is_none() {
            match open_append(&out.path, len) {
                Ok(file) => out.file = Some(Arc::new(file)),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(%error, cause, "journal is read-only; its lines are used");
                }
            }
        }
        out
    }

    /// Truncates the journal to `lines`, its first ones; a copy of the file is kept as of a damaged one. Blocks.
    pub fn keep_first(&mut self, lines: &[Vec<u8>]) {
        let mut good = Vec::new();
        lines.iter().for_each(|l| write_line(&mut good, l));
        let len = good.len() as u64;
        let damaged = read_or_nothing(&self.path).unwrap_or_default();
        let (_, repair) = Repair::Aside { damaged, good }.run_or_defer(&self.path);
        *self = Self::with(self.path.clone(), len, repair);
    }

    /// Whether the file is damaged and not yet repaired.
    pub const fn is_damaged(&self) -> bool {
        self.repair.is_some()
    }

    /// Bytes in the file.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file is empty.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line; with `sync` it is on the medium on return. A partly written line is truncated.
    pub async fn append(&mut self, payload: &[u8], sync: bool) -> Result<(), DiskError> {
        self.repair().await?;
        let (file, path, at) = (self.file.clone(), self.path.clone(), self.len);
        let mut line = Vec::with_capacity(payload.len() + 18);
        write_line(&mut line, payload);
        let (file, written) = blocking(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(open_append(&path, at)?),
            };
            // An earlier failed write may have left bytes that could not be truncated.
            let clean = || if file.metadata()?.len() == at { Ok(()) } else { file.set_len(at) };
            let write = || (&*file).write_all(&line);
            let done = clean().and_then(|()| write()).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
            match done {
                Ok(()) => {
                    crate::disk::count_write(line.len());
                    Ok((file, line.len() as u64))
                }
                Err(e) => {
                    let _ = file.set_len(at);
                    Err(DiskError::write(&path, e))
                }
            }
        })
        .await?;
        self.file = Some(file);
        self.len += written;
        Ok(())
    }

    /// Replaces all lines atomically: after a power cut the file has either the old or the new ones.
    pub async fn replace(&mut self, lines: Lines) -> Result<(), DiskError> {
        let Lines(bytes) = lines;
        self.repair().await?;
        let path = self.path.clone();
        let (file, len) = blocking(move || {
            let previous = beside(&path, "prev");
            let _ = std::fs::remove_file(&previous);
            if let Err(error) = std::fs::hard_link(&path, &previous) {
                tracing::debug!(%error, path = %previous.display(), "previous copy not kept");
            }
            write_state(&path, &bytes, true)?;
            let len = bytes.len() as u64;
            Ok((open_append(&path, len)?, len))
        })
        .await?;
        (self.file, self.len) = (Some(Arc::new(file)), len);
        Ok(())
    }

    async fn repair(&mut self) -> Result<(), DiskError> {
        if let Some(repair) = self.repair.clone() {
            let path = self.path.clone();
            blocking(move || repair.run(&path)).await?;
            self.repair = None;
        }
        Ok(())
    }

    /// Renames the file to `PATH.1`, replacing an earlier one, and starts a new file.
    pub async fn rotate(&mut self) -> Result<(), DiskError> {
        self.repair().await?;
        let path = self.path.clone();
        let file = blocking(move || {
            std::fs::rename(&path, beside(&path, "1")).map_err(|e| DiskError::write(&path, e))?;
            open_append(&path, 0)
        })
        .await?;
        (self.file, self.len) = (Some(Arc::new(file)), 0);
        Ok(())
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, DiskError> {
    let old = beside(path, "1");
    std::fs::rename(path, &old).map_err(|e| DiskError::write(path, e))?;
    Ok(old)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn read_or_nothing(path: &Path) -> Result<Vec<u8>, DiskError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(DiskError::Read { path: path.to_owned(), source }),
    }
}

/// Every valid line, also after a damaged one; empty if the file does not exist. Does not change the file. Blocks.
pub fn read(path: &Path) -> Result<Found, DiskError> {
    let (lines, dropped) = salvage(&read_or_nothing(path)?);
    Ok(Found { lines, dropped, aside: None })
}

/// The content that [`Journal::open`] would find, without changing the file. `None`: no such file. Blocks.
pub fn peek(path: &Path) -> Result<Option<Found>, DiskError> {
    let mut bytes = read_or_nothing(path)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if parse(&bytes).1 == 0 {
        bytes = read_or_nothing(&beside(path, "prev"))?;
    }
    let (lines, good) = parse(&bytes);
    Ok(Some(Found { lines, dropped: (bytes.len() - good) as u64, aside: None }))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(DiskError::write(Path::new("journal"), std::io::Error::other(e))),
    }
}

/// Opens the file and truncates it to its first `len` bytes.
fn open_append(path: &Path, len: u64) -> Result<File, DiskError> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| DiskError::write(path, e))?;
    let file = File::from(file);
    if file.metadata().map_err(|e| DiskError::write(path, e))?.len() > len {
        file.set_len(len).map_err(|e| DiskError::write(path, e))?;
    }
    Ok(file)
}

fn write_line(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(&sum(payload));
    out.push(b' ');
    out.extend_from_slice(payload);
    out.push(b'\n');
}

fn sum(payload: &[u8]) -> [u8; 16] {
    let digest = ring::digest::digest(&ring::digest::SHA256, payload);
    let mut out = [0; 16];
    // Fails only on a wrong length.
    let _ = const_hex::encode_to_slice(&digest.as_ref()[..8], &mut out);
    out
}

/// The valid lines from the beginning, and their length in bytes.
fn parse(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let (mut lines, mut good) = (Vec::new(), 0);
    while let Some(end) = bytes[good..].iter().position(|b| *b == b'\n') {
        let Some(payload) = check(&bytes[good..good + end]) else { break };
        lines.push(payload.to_vec());
        good += end + 1;
    }
    (lines, good)
}

/// All valid lines, and the number of bytes outside of them.
fn salvage(bytes: &[u8]) -> (Vec<Vec<u8>>, u64) {
    let lines: Vec<Vec<u8>> = bytes.split_inclusive(|b| *b == b'\n').filter_map(whole_line).collect();
    let good: usize = lines.iter().map(|l| l.len() + 18).sum();
    (lines, (bytes.len() - good) as u64)
}

fn whole_line(line: &[u8]) -> Option<Vec<u8>> {
    check(line.strip_suffix(b"\n")?).map(<[u8]>::to_vec)
}

/// The payload of a line without its newline, if the checksum matches.
fn check(line: &[u8]) -> Option<&[u8]> {
    let (head, payload) = line.split_at_checked(17)?;
    (head[..16] == sum(payload) && head[16] == b' ').then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn unreadable_file_counts_as_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, _) = Journal::open(path.clone());
        journal.append(b"one", true).await.unwrap();
        journal.replace([b"one", b"two"].into_iter().collect()).await.unwrap();
        // EISDIR stands for any error of reading, EIO among them.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let (mut journal, found) = Journal::open(path.clone());
        assert_eq!((found.lines, found.aside), (vec![b"one".to_vec()], Some(beside(&path, "1"))));
        journal.append(b"three", true).await.unwrap();
        let (_, found) = Journal::open_or_rotate(path);
        assert_eq!(found.lines, [b"one".to_vec(), b"three".to_vec()]);
    }

    #[tokio::test]
    async fn truncation_keeps_every_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, _) = Journal::open(path.clone());
        for line in ["one", "two", "three"] {
            journal.append(line.as_bytes(), true).await.unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, found) = Journal::open(path.clone());
            assert_eq!(found.lines.len(), whole[..cut].iter().filter(|b| **b == b'\n').count(), "cut at {cut}");
            journal.append(b"next", false).await.unwrap();
            let again = read(&path).unwrap();
            assert_eq!((again.lines.last().unwrap().as_slice(), again.dropped), (b"next".as_slice(), 0));
        }
    }

    #[tokio::test]
    async fn replacement_is_atomic_and_private() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path().join("j"));
        journal.append(b"old", true).await.unwrap();
        journal.replace(["a", "b"].into_iter().collect()).await.unwrap();
        journal.append(b"c", true).await.unwrap();
        assert_eq!(read(journal.path()).unwrap().lines, [b"a", b"b", b"c"]);
        assert_eq!(std::fs::metadata(journal.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(journal.path()).unwrap().len(), journal.len());
    }

    #[tokio::test]
    async fn damage_in_the_middle_keeps_a_copy() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, _) = Journal::open(path.clone());
        for line in ["one", "two", "three"] {
            journal.append(line.as_bytes(), true).await.unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(3).position(|w| w == b"two").unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path).unwrap().lines, [&b"one"[..], b"three"], "valid lines are returned");
        assert_eq!(peek(&path).unwrap().unwrap().lines, [b"one"], "lines after the damage are not used");

        let evidence = dir.path().join("e");
        std::fs::copy(&path, &evidence).unwrap();
        let (mut journal, found) = Journal::open_or_rotate(evidence.clone());
        assert_eq!((found.lines.len(), found.dropped, journal.is_empty()), (2, 21, true));
        assert_eq!(std::fs::read(found.aside.unwrap()).unwrap(), bytes, "the file is unchanged");
        journal.append(b"four", false).await.unwrap();
        assert_eq!(read(&evidence).unwrap().lines, [b"four"]);

        let (journal, found) = Journal::open(path.clone());
        assert_eq!((found.lines, journal.len()), (vec![b"one".to_vec()], 21));
        let aside = found.aside.unwrap();
        assert_eq!(std::fs::metadata(&aside).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(aside).unwrap(), bytes);
        let (_, found) = Journal::open(path);
        assert!(found.aside.is_none() && found.dropped == 0, "reported once");
    }

    #[tokio::test]
    async fn failed_repair_keeps_the_damaged_file() {
        for (text, left) in [("", &[&b"one"[..], b"two"][..]), ("keeps", &[&b"first"[..]])] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("j");
            let (mut journal, _) = Journal::open(path.clone());
            journal.append(b"one", true).await.unwrap();
            journal.append(b"two", true).await.unwrap();
            journal.replace(["first", "second", "third"].into_iter().collect()).await.unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = if text.is_empty() { 0 } else { bytes.iter().position(|b| *b == b'\n').unwrap() + 1 };
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            // Permissions do not stop root; a directory in place of the file does.
            let (in_the_way, rotated) = (dir.path().join("j.damaged"), dir.path().join("j.1"));
            for d in [&in_the_way, &rotated] {
                std::fs::create_dir_all(d.join("full")).unwrap();
            }
            let (mut journal, found) = Journal::open(path.clone());
            assert_eq!(found.lines, left, "the last valid lines");
            journal.append(b"new", true).await.unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "the file is unchanged");
            std::fs::remove_dir_all(&in_the_way).unwrap();
            journal.append(b"new", true).await.unwrap();
            assert_eq!(std::fs::read(&in_the_way).unwrap(), bytes);
            let all = read(&path).unwrap();
            assert_eq!(all.lines, [left, &[&b"new"[..]]].concat());
            assert_eq!(all.dropped, 0);

            // Evidence.
            std::fs::write(&path, &bytes).unwrap();
            let (mut journal, found) = Journal::open_or_rotate(path.clone());
            assert!(found.lines.len() == 2 && found.aside.is_none(), "{found:?}");
            journal.append(b"new", true).await.unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            std::fs::remove_dir_all(&rotated).unwrap();
            journal.append(b"new", true).await.unwrap();
            assert_eq!(std::fs::read(&rotated).unwrap(), bytes);
            assert_eq!(read(&path).unwrap().lines, [b"new"]);
        }
    }

    proptest! {
        #[test]
        fn flipped_bit_is_never_read(at in 0usize..60, bit in 0u8..8) {
            let mut bytes = Vec::new();
            for line in [&b"first line"[..], b"second line", b"third"] {
                write_line(&mut bytes, line);
            }
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let (lines, _) = parse(&bytes);
            let good: [&[u8]; 3] = [b"first line", b"second line", b"third"];
            prop_assert!(lines.len() < 3 && lines.iter().zip(good).all(|(a, b)| a == b));
        }
    }
}

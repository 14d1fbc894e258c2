//! Writes a file beside its final name and moves it there. The temporary file is created by this process (`O_EXCL`) under a name that
//! cannot be predicted, so that a prepared file, link or pipe neither receives the content nor stops the write.
use super::{DiskError, Operation, Owner, record};
use crate::clock::{Clock as _, SystemClock};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, fsync, openat, renameat, statat, unlinkat};
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// A temporary file older or younger than this, in seconds, is not one of a write under way.
const LEFT_BEHIND_SECS: u64 = 60;
/// Digits of the random part of a temporary name.
const DIGITS: usize = 16;

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Replace a file that is there; otherwise it is an error.
    pub replace: bool,
    /// The owner, if it is not the writer.
    pub owner: Option<Owner>,
    /// Permission bits.
    pub mode: u32,
}

/// Writes `bytes` as `name` in `dir`; `path` is for messages.
pub(crate) fn write_in(dir: BorrowedFd<'_>, path: &Path, name: &str, bytes: &[u8], how: How) -> Result<(), DiskError> {
    fill_in(dir, path, name, how, &mut |file, temporary| {
        record(|| Operation::Write(temporary.to_owned(), bytes.to_vec()));
        file.write_all(bytes)
    })
}

/// As [`write_in`], with content that `fill` writes; it gets the temporary path too.
pub(super) fn fill_in(
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &str,
    how: How,
    fill: &mut dyn FnMut(&mut File, &Path) -> io::Result<()>,
) -> Result<(), DiskError> {
    let fail = |e: rustix::io::Errno| DiskError::write(path, e);
    sweep(dir, name);
    let (file, temporary) = create(dir, name, how).map_err(|e| DiskError::write(path, e))?;
    let mut file = file;
    let temporary_path = path.with_file_name(&temporary);
    let written = fill(&mut file, &temporary_path).and_then(|()| file.sync_all());
    record(|| Operation::Sync(temporary_path.clone()));
    if written.is_ok() {
        super::count_write(file.metadata().map_or(0, |m| usize::try_from(m.len()).unwrap_or(usize::MAX)));
    }
    drop(file);
    let renamed = written.and_then(|()| {
        if how.replace {
            return Ok(renameat(dir, &temporary, dir, name)?);
        }
        rustix::fs::linkat(dir, &temporary, dir, name, AtFlags::empty())?;
        Ok(unlinkat(dir, &temporary, AtFlags::empty())?)
    });
    if let Err(e) = renamed {
        let _ = unlinkat(dir, &temporary, AtFlags::empty());
        return Err(DiskError::write(path, e));
    }
    record(|| match how.replace {
        true => Operation::Rename(temporary_path.clone(), path.to_owned()),
        false => Operation::Link(temporary_path.clone(), path.to_owned()),
    });
    if !how.replace {
        record(|| Operation::Remove(temporary_path.clone()));
    }
    fsync(dir).map_err(fail)?;
    record(|| Operation::SyncDirectory);
    Ok(())
}

/// A new file with its owner and mode, and its temporary name.
fn create(dir: BorrowedFd<'_>, name: &str, how: How) -> io::Result<(File, String)> {
    let mut digits = [0; DIGITS / 2];
    getrandom::fill(&mut digits).map_err(io::Error::other)?;
    let temporary = format!(".{name}.{}.new", const_hex::encode(digits));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(openat(dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?);
    let given = || -> io::Result<()> {
        if let Some(owner) = how.owner {
            std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        // After the owner: a change of owner clears bits, and the umask may have.
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(how.mode))?)
    };
    match given() {
        Ok(()) => Ok((file, temporary)),
        Err(e) => {
            let _ = unlinkat(dir, &temporary, AtFlags::empty());
            Err(e)
        }
    }
}

/// Removes what power cuts have left of earlier writes of this file.
fn sweep(dir: BorrowedFd<'_>, name: &str) {
    let Ok(entries) = Dir::read_from(dir) else { return };
    let now = SystemClock.wall().secs();
    for entry in entries.flatten() {
        let Ok(found) = entry.file_name().to_str() else { continue };
        if !is_temporary(found, name) {
            continue;
        }
        let changed = statat(dir.as_fd(), found, AtFlags::SYMLINK_NOFOLLOW).map(|s| s.st_ctime);
        if changed.is_ok_and(|at| u64::try_from(at).unwrap_or(0).abs_diff(now) > LEFT_BEHIND_SECS) {
            let _ = unlinkat(dir, found, AtFlags::empty());
        }
    }
}

/// Whether `found` is a temporary name of `name`, also one of releases that had a fixed name.
fn is_temporary(found: &str, name: &str) -> bool {
    let middle = found.strip_prefix('.').and_then(|f| f.strip_prefix(name)).and_then(|f| f.strip_suffix(".new"));
    match middle.map(|m| m.strip_prefix('.').unwrap_or(m)) {
        Some(digits) => digits.is_empty() || digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::write_atomic;
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn prepared_temporary_file_gives_neither_owner_nor_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, prepared) = (dir.path().join("key"), dir.path().join(".key.new"));
        std::fs::write(&prepared, "").unwrap();
        std::fs::set_permissions(&prepared, std::fs::Permissions::from_mode(0o666)).unwrap();
        crate::sim::another_user().take(&prepared).unwrap();
        write_atomic(&path, b"secret", true).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        let own = (rustix::process::geteuid().as_raw(), 0o600);
        assert_eq!((meta.uid(), meta.mode() & 0o7777), own);
    }

    #[test]
    fn prepared_pipe_or_link_does_not_stop_the_write() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("key"), dir.path().join("elsewhere"));
        std::fs::write(&elsewhere, "kept").unwrap();
        let fifo = dir.path().join(".key.new");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        write_atomic(&path, b"one", true).unwrap();
        std::fs::remove_file(&fifo).unwrap();
        std::fs::hard_link(&elsewhere, &fifo).unwrap();
        write_atomic(&path, b"two", true).unwrap();
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"kept");
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn temporary_names_differ_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let how = How { replace: true, owner: None, mode: 0o640 };
        let names: std::collections::BTreeSet<_> =
            (0..20).map(|_| create(open.as_fd(), "key", how).unwrap().1).collect();
        assert_eq!(names.len(), 20);
        // Left by power cuts, an hour ago and by an older release.
        for name in names.iter().chain([&".key.new".to_owned()]) {
            assert!(is_temporary(name, "key") && !is_temporary(name, "wg0.key"), "{name}");
        }
        assert!(!is_temporary(".key.backup.new", "key") && !is_temporary("key.new", "key"));
        write_in(open.as_fd(), &dir.path().join("key"), "key", b"x", how).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("key")).unwrap().mode() & 0o7777, 0o640);
    }
}

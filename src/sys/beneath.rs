//! A directory whose content belongs to another user: its files are opened without following links, and with that user's rights.
use crate::disk::{How, Owner, write_in};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Attempts while the tree changes below the look-up (openat2(2), `EAGAIN`).
const ATTEMPTS: usize = 16;

/// Runs `work` with the rights of `owner` and no capability: what `owner` may not do fails. The rights are those of a thread, which
/// no process of `owner` can signal or trace. `work` runs directly if the caller is `owner`.
///
/// # Errors
/// The rights cannot be taken (`CAP_SETUID` and `CAP_SETGID` are missing), or those of `work`.
pub fn as_owner<T: Send>(owner: Owner, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    if rustix::process::geteuid().as_raw() == owner.uid {
        return work();
    }
    let confined = move || {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(None, gid, None)?;
        // Real and saved user stay: they decide who may send a signal. The kernel clears the effective capabilities.
        rustix::thread::set_thread_res_uid(None, uid, None)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("as-owner".into()).spawn_scoped(scope, confined)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the work for the owner was aborted")))
    })
}

/// A directory that names are looked up beneath.
#[derive(Debug)]
pub struct Beneath {
    directory: OwnedFd,
    path: PathBuf,
}

/// Runs `work` on the directory `path`, whose parents must be the caller's own, with the rights of the directory's owner.
///
/// # Errors
/// It is not there, or a link; or those of `work`.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce(&Beneath) -> io::Result<T> + Send) -> io::Result<T> {
    // PATH: only its owner needs to be able to read it.
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    as_owner(Owner { uid: stat.st_uid, gid: stat.st_gid }, || {
        let directory = openat(&directory, ".", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        work(&Beneath { directory, path: path.to_owned() })
    })
}

impl Beneath {
    /// The directory `path`, whose parents must be the caller's own.
    ///
    /// # Errors
    /// It is not there, or a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Self { directory: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Its owner.
    ///
    /// # Errors
    /// The file system's.
    pub fn owner(&self) -> io::Result<Owner> {
        let stat = rustix::fs::fstat(&self.directory)?;
        Ok(Owner { uid: stat.st_uid, gid: stat.st_gid })
    }

    /// The directory `name` beneath this one.
    ///
    /// # Errors
    /// It is not there, or a link is on the way.
    pub fn directory(&self, name: &str) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self { directory: look_up(self.directory.as_fd(), name, flags)?, path: self.path.join(name) })
    }

    /// The directory `name`, for its owner alone (mode 0700); created if it is not there.
    ///
    /// # Errors
    /// As [`Beneath::directory`].
    pub fn make_directory(&self, name: &str) -> io::Result<Self> {
        match rustix::fs::mkdirat(&self.directory, plain(name)?, Mode::RWXU) {
            Ok(()) => rustix::fs::fsync(&self.directory)?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let made = self.directory(name)?;
        if rustix::fs::fstat(&made.directory)?.st_mode & 0o7777 != 0o700 {
            rustix::fs::fchmod(&made.directory, Mode::RWXU)?;
        }
        Ok(made)
    }

    /// The regular file `name`, for reading; of a pipe or device nothing is opened.
    ///
    /// # Errors
    /// It is not there, a link is on the way, or it is something else.
    pub fn file(&self, name: &str) -> io::Result<File> {
        // NONBLOCK: a pipe without a writer would hold the caller.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(look_up(self.directory.as_fd(), name, flags)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
    }

    /// The content and permission bits of a file of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Beneath::file`]; or it is longer.
    pub fn read(&self, name: &str, max: u64) -> io::Result<(Vec<u8>, u32)> {
        let file = self.file(name)?;
        let mode = file.metadata()?.mode() & 0o777;
        let mut bytes = Vec::new();
        file.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max} bytes")));
        }
        Ok((bytes, mode))
    }

    /// Writes `name` durably, for the user whose rights the caller has.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
        let how = How { replace: true, owner: None, mode };
        write_in(self.directory.as_fd(), &self.path.join(name), plain(name)?, bytes, how).map_err(io::Error::other)
    }

    /// Renames a file within this directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.directory, plain(from)?, &self.directory, plain(to)?)?)
    }

    /// Removes a file; a missing one is no error.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, plain(name)?, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives a file that the caller's own user owns, such as one that an editor has made, to the owner of the directory.
    ///
    /// # Errors
    /// It is not a file of one name, or the owner cannot be changed.
    pub fn give(&self, name: &str) -> io::Result<()> {
        let (file, owner) = (self.file(name)?, self.owner()?);
        let meta = file.metadata()?;
        if (meta.uid(), meta.gid()) == (owner.uid, owner.gid) {
            return Ok(());
        }
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.nlink() != 1 {
            return Err(io::Error::other("it is not a file that was made here"));
        }
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))
    }

    /// Names and types of what is in the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn entries(&self) -> io::Result<Vec<(String, FileType)>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode)),
                kind => kind,
            };
            found.push((name.to_owned(), kind));
        }
        Ok(found)
    }
}

/// A name without a directory.
fn plain(name: &str) -> io::Result<&str> {
    if is_plain(name) { Ok(name) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Whether it names something in a directory itself.
pub(crate) fn is_plain(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn look_up(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    match by_openat2(directory, name, flags) {
        // Kernels before 5.6, and filters of system calls that do not know it.
        Err(Errno::NOSYS | Errno::PERM) => Ok(by_components(directory, name, flags)?),
        other => Ok(other?),
    }
}

fn by_openat2(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..ATTEMPTS {
        match openat2(directory, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    openat2(directory, name, flags, Mode::empty(), resolve)
}

/// One component at a time, none of them a link.
fn by_components(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut parts: Vec<&str> = name.split('/').collect();
    if !parts.iter().all(|part| is_plain(part)) {
        return Err(Errno::XDEV);
    }
    let last = parts.pop().ok_or(Errno::INVAL)?;
    let mut at: Option<OwnedFd> = None;
    for part in parts {
        let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = Some(openat(at.as_ref().map_or(directory, OwnedFd::as_fd), part, through, Mode::empty())?);
    }
    openat(at.as_ref().map_or(directory, OwnedFd::as_fd), last, flags | OFlags::NOFOLLOW, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    type LookUp = fn(BorrowedFd<'_>, &str, OFlags) -> Result<OwnedFd, Errno>;
    const WAYS: [LookUp; 2] = [by_openat2, by_components];

    #[test]
    fn no_link_and_no_parent_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (base, outside) = (dir.path().join("state"), dir.path().join("outside"));
        std::fs::create_dir_all(base.join("real/deeper")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for file in [outside.join("shadow"), base.join("real/deeper/file")] {
            std::fs::write(file, "x").unwrap();
        }
        symlink(&outside, base.join("link")).unwrap();
        symlink("real", base.join("inner")).unwrap();
        symlink(outside.join("shadow"), base.join("file")).unwrap();
        symlink("/proc/self/root", base.join("magic")).unwrap();
        let base = Beneath::open(&base).unwrap();
        for way in WAYS {
            let open = |name: &str| way(base.directory.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC);
            open("real/deeper/file").unwrap();
            for name in ["link/shadow", "file", "../outside/shadow", "inner/deeper/file", "magic/etc", "/etc/passwd"] {
                assert!(open(name).is_err(), "{name}");
            }
        }
        assert!(Beneath::open(&dir.path().join("state/link")).is_err(), "the base itself");
    }

    #[test]
    fn pipe_neither_blocks_nor_counts_as_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("key");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(Beneath::open(dir.path()).unwrap().read("key", 10).is_err());
    }

    #[test]
    fn reads_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), [0; 11]).unwrap();
        let dir = Beneath::open(dir.path()).unwrap();
        assert!(dir.read("a", 10).is_err());
        assert_eq!(dir.read("a", 11).unwrap().0.len(), 11);
    }

    #[test]
    fn rights_of_root_end_with_the_work_for_an_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (secret, theirs) = (dir.path().join("secret"), dir.path().join("theirs"));
        crate::disk::write_atomic(&secret, b"root's", true).unwrap();
        std::fs::create_dir(&theirs).unwrap();
        let owner = crate::sim::another_user();
        owner.take(&theirs).unwrap();
        let seen = as_owner(owner, || {
            assert!(std::fs::read(&secret).is_err());
            assert!(std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o666)).is_err());
            std::fs::write(theirs.join("file"), "x")
        });
        seen.unwrap();
        assert_eq!(Owner::of(&theirs.join("file")).unwrap(), owner);
        assert_eq!(std::fs::read(&secret).unwrap(), b"root's", "the caller has its rights still");
    }
}

//! Fakes with the semantics of the real implementations, and a simulated world of them under one clock.
//!
//! Time is the runtime's: a test that starts with time paused (`#[tokio::test(start_paused = true)]`) runs hours in
//! milliseconds, and everything in the world sees the same time. Only in tests and with the feature `sim`.
pub mod clock;
pub mod kernel;
pub mod world;

use crate::disk::Owner;
use std::os::unix::fs::MetadataExt as _;

/// A user other than root, if root calls; else the caller.
pub fn another_user() -> Owner {
    let own = rustix::process::geteuid();
    if own.is_root() {
        Owner { uid: 4242, gid: 4243 }
    } else {
        Owner { uid: own.as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

impl Owner {
    /// The owner of `path`; of a symlink itself, not of its target.
    ///
    /// # Errors
    /// `path` cannot be read.
    pub fn of(path: &std::path::Path) -> std::io::Result<Self> {
        std::fs::symlink_metadata(path).map(|m| Self { uid: m.uid(), gid: m.gid() })
    }

    /// Makes it the owner of `path` unless it is. Symlinks are not followed: in a directory that others write, one could lead to
    /// any file.
    ///
    /// # Errors
    /// `path` cannot be read, or the process may not change its owner.
    pub fn take(self, path: &std::path::Path) -> std::io::Result<()> {
        if Self::of(path)? == self { Ok(()) } else { std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)) }
    }
}

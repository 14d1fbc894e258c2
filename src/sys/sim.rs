//! Fakes with the semantics of the real implementations, and a simulated world of them under one clock.
//!
//! Time is the runtime's: a test that starts with time paused (`#[tokio::test(start_paused = true)]`) runs hours in
//! milliseconds, and everything in the world sees the same time. Only in tests and with the feature `sim`.
pub mod clock;
pub mod kernel;
pub mod world;

use crate::disk::Owner;

/// A user other than root, if root calls; else the caller.
pub fn another_user() -> Owner {
    let own = rustix::process::geteuid();
    if own.is_root() {
        Owner { uid: 4242, gid: 4243 }
    } else {
        Owner { uid: own.as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

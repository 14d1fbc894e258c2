//! The hardware watchdog before systemd feeds it: a kernel or first process that hangs is reset.
use rustix::ioctl::{Updater, ioctl, opcode};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

/// Seconds until the reset without a feed; covers the time from the first process to systemd on a slow board. Hardware with a shorter
/// limit keeps its own.
const TIMEOUT_SECS: i32 = 120;
const SET_TIMEOUT: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'W', 6);
const PRINTK: &str = "/proc/sys/kernel/printk";

/// A running watchdog.
#[derive(Debug)]
pub struct Watchdog(File);

impl Watchdog {
    /// Starts the first watchdog; `None` on hardware without one.
    pub fn start() -> Option<Self> {
        let file = OpenOptions::new().write(true).open(Path::new("/dev/watchdog0")).ok()?;
        let mut seconds = TIMEOUT_SECS;
        // SAFETY: WDIOC_SETTIMEOUT reads and writes one `int` (linux/watchdog.h).
        #[allow(unsafe_code)]
        let _ = unsafe { ioctl(&file, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) };
        Some(Self(file))
    }

    /// Starts its time again.
    pub fn feed(&mut self) {
        let _ = self.0.write_all(b"\0");
    }

    /// Closes the device and leaves the watchdog running: systemd opens it next.
    pub fn hand_over(mut self) {
        self.feed();
        // The kernel reports a watchdog that is closed while running as critical, which it is not here.
        let level = std::fs::read_to_string(PRINTK).unwrap_or_default();
        let _ = std::fs::write(PRINTK, "2");
        drop(self);
        if let Some(level) = level.split_ascii_whitespace().next() {
            let _ = std::fs::write(PRINTK, level);
        }
    }
}

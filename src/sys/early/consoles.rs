//! Every console of the kernel (screen and serial port), for the time before systemd.
#![allow(clippy::disallowed_methods, reason = "the only process: it may sleep and read any clock")]

use super::rescue::Console;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Lists the consoles, e.g. `tty0 ttyS0`. /dev/console is only the last of them.
const ACTIVE: &str = "/sys/class/tty/console/active";
/// Longest line taken, in bytes.
const LINE_MAX: usize = 256;
/// Time between two reads of the consoles.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// One console with the input received since its last line end.
struct Tty {
    file: File,
    partial: Vec<u8>,
}

impl Tty {
    fn open(path: &Path) -> Option<Self> {
        // Without O_NONBLOCK the open of a serial port waits for its carrier.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
        Some(Self { file, partial: Vec::new() })
    }

    /// A whole line, if one was entered.
    fn line(&mut self) -> Option<String> {
        let mut buffer = [0; LINE_MAX];
        let count = self.file.read(&mut buffer).unwrap_or(0);
        self.partial.extend_from_slice(buffer.get(..count)?);
        let end = self.partial.iter().position(|b| matches!(b, b'\n' | b'\r'));
        if end.is_none() && self.partial.len() >= LINE_MAX {
            self.partial.clear();
        }
        let line: Vec<u8> = self.partial.drain(..=end?).collect();
        Some(String::from_utf8_lossy(&line).trim().to_owned())
    }
}

/// All consoles.
pub struct Consoles<F> {
    ttys: Vec<Tty>,
    /// Called at least every second while waiting for input.
    alive: F,
}

impl<F: FnMut()> Consoles<F> {
    /// Opens the kernel's consoles; `alive` is called at least every second while waiting for input.
    pub fn open(alive: F) -> Self {
        let names = std::fs::read_to_string(ACTIVE).unwrap_or_default();
        let mut ttys: Vec<_> =
            names.split_ascii_whitespace().filter_map(|n| Tty::open(&Path::new("/dev").join(n))).collect();
        if ttys.is_empty() {
            ttys.extend(Tty::open(Path::new("/dev/console")));
        }
        Self { ttys, alive }
    }
}

impl<F: FnMut()> Console for Consoles<F> {
    fn write(&mut self, text: &str) {
        for tty in &mut self.ttys {
            let mut left = text.as_bytes();
            // A port whose buffer stays full must not keep the others waiting.
            for _ in 0..50 {
                match tty.file.write(left) {
                    Ok(count) => left = left.get(count..).unwrap_or(&[]),
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
                if left.is_empty() {
                    break;
                }
            }
        }
    }

    fn line(&mut self, timeout: Duration) -> Option<String> {
        let began = Instant::now();
        loop {
            if let Some(line) = self.ttys.iter_mut().find_map(Tty::line) {
                return Some(line);
            }
            if began.elapsed() >= timeout {
                return None;
            }
            (self.alive)();
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

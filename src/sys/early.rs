//! Steps of a slot's first process before systemd: drivers, partitions of its disk, the verified root.
pub mod booted;
pub mod consoles;
pub mod kernels;
pub mod machine_id;
pub mod parts;
pub mod rescue;
pub mod verity;
pub mod watchdog;

use rustix::fs::{Mode, OFlags};
use std::path::Path;

/// Writes one line to the kernel's log, which reaches the console before user space has one.
pub fn say(text: &str) {
    let _ = std::fs::write("/dev/kmsg", format!("<3>spoke-init: {text}\n"));
}

/// The value of `key=` on the kernel's command line.
pub fn argument(command_line: &str, key: &str) -> Option<String> {
    command_line.split_ascii_whitespace().find_map(|word| Some(word.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

/// Loads the modules listed in `list`, one file name a line, from `directory`; a driver without its hardware is no
/// error. Returns how many were loaded.
pub fn load_modules(list: &Path, directory: &Path) -> usize {
    let names = std::fs::read_to_string(list).unwrap_or_default();
    let mut loaded = 0;
    for name in names.lines() {
        let Ok(file) = rustix::fs::open(directory.join(name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
            say(&format!("module {name} is missing"));
            continue;
        };
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) => loaded += 1,
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => {}
            Err(e) => say(&format!("module {name}: {e}")),
        }
    }
    loaded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_matches_whole_words_only() {
        let line = "a=1 spoke.roothash=abc xspoke.roothash=no quiet\n";
        assert_eq!(argument(line, "spoke.roothash").as_deref(), Some("abc"));
        assert_eq!(argument(line, "quiet"), None);
        assert_eq!(argument(line, "spoke"), None);
    }
}

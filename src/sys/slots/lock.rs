//! The lock of the process that changes the slots.
use super::{RUN, SlotError};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Held while the slots are changed; of all processes one has it.
#[derive(Debug)]
pub struct UpdateLock {
    _file: File,
}

impl UpdateLock {
    /// Takes it, in [`RUN`]. The kernel releases it when the process ends.
    pub fn take() -> Result<Self, SlotError> {
        Self::take_at(&Path::new(RUN).join("update.lock"))
    }

    fn take_at(path: &Path) -> Result<Self, SlotError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed("open the lock of updates"))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.take(32).read_to_string(&mut holder);
                let holder = holder.trim();
                return Err(SlotError::Busy(if holder.is_empty() {
                    String::new()
                } else {
                    format!(" (process {holder})")
                }));
            }
            Err(e) => return Err(failed("take the lock of updates")(e.into())),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed("write the lock of updates"))?;
        Ok(Self { _file: file })
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> SlotError {
    move |source| SlotError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_process_changes_the_slots() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("update.lock");
        let held = UpdateLock::take_at(&path).unwrap();
        let refused = UpdateLock::take_at(&path).unwrap_err();
        let own = std::process::id().to_string();
        assert!(matches!(&refused, SlotError::Busy(holder) if holder.contains(&own)), "{refused}");
        drop(held);
        UpdateLock::take_at(&path).unwrap();
    }
}

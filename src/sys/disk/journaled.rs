//! The operations of [`super`] in their order, recorded for tests that cut the power between any two of them.
use std::path::PathBuf;

/// An operation that a power cut may leave undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A file was created or truncated, and these bytes were written to it.
    Write(PathBuf, Vec<u8>),
    /// The file's bytes are on the medium.
    Sync(PathBuf),
    /// Renamed, replacing what was there.
    Rename(PathBuf, PathBuf),
    /// The second is another name of the first.
    Link(PathBuf, PathBuf),
    /// Removed.
    Remove(PathBuf),
    /// All names are on the medium.
    SyncDirectory,
}

#[cfg(not(any(test, feature = "sim")))]
pub(super) fn record(_: impl FnOnce() -> Operation) {}

#[cfg(any(test, feature = "sim"))]
pub(super) fn record(operation: impl FnOnce() -> Operation) {
    recorded::push(operation);
}

/// The recorder of this thread.
#[cfg(any(test, feature = "sim"))]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests only: a failure is a failed test")]
pub mod recorded {
    pub use super::Operation;
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    thread_local! {
        static OPERATIONS: RefCell<Option<Vec<Operation>>> = const { RefCell::new(None) };
    }

    pub(super) fn push(operation: impl FnOnce() -> Operation) {
        OPERATIONS.with_borrow_mut(|all| all.as_mut().map(|all| all.push(operation())));
    }

    /// Records this thread's operations from here on.
    pub fn begin() {
        OPERATIONS.set(Some(Vec::new()));
    }

    /// The operations since [`begin`].
    pub fn end() -> Vec<Operation> {
        OPERATIONS.take().unwrap_or_default()
    }

    /// Bytes of a file that were not synced, after a power cut.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Unsynced {
        /// None arrived.
        Lost,
        /// The first half arrived.
        Torn,
        /// All arrived.
        Kept,
    }

    /// A directory after a power cut during `operations`: the first `done` were made, of changes of names only the first
    /// `named`. Names reach a journaling file system's medium in order, bytes in any.
    #[derive(Clone, Copy, Debug)]
    pub struct PowerCut {
        done: usize,
        named: usize,
        unsynced: Unsynced,
    }

    /// Every power cut that `operations` allow.
    pub fn power_cuts(operations: &[Operation]) -> Vec<PowerCut> {
        let mut out = Vec::new();
        for done in 0..=operations.len() {
            let durable = operations[..done].iter().rposition(|o| *o == Operation::SyncDirectory).unwrap_or(0);
            for named in durable..=done {
                let cuts = [Unsynced::Lost, Unsynced::Torn, Unsynced::Kept];
                out.extend(cuts.map(|unsynced| PowerCut { done, named, unsynced }));
            }
        }
        out
    }

    impl PowerCut {
        /// Makes `directory` what the power cut leaves of `before` (name and bytes).
        pub fn leave(self, before: &BTreeMap<PathBuf, Vec<u8>>, operations: &[Operation], directory: &Path) {
            // Files by number: two names may be one file.
            let mut files: Vec<Vec<u8>> = before.values().cloned().collect();
            let mut names: BTreeMap<PathBuf, usize> = before.keys().cloned().zip(0..).collect();
            let name = |path: &Path| PathBuf::from(path.file_name().unwrap());
            for (i, operation) in operations[..self.named].iter().enumerate() {
                match operation {
                    Operation::Write(path, bytes) => {
                        let synced = operations[i..self.done]
                            .iter()
                            .take_while(|o| !matches!(o, Operation::Write(p, _) if p == path && *o != operation))
                            .any(|o| *o == Operation::Sync(path.clone()));
                        let kept = match self.unsynced {
                            _ if synced => bytes.len(),
                            Unsynced::Lost => 0,
                            Unsynced::Torn => bytes.len() / 2,
                            Unsynced::Kept => bytes.len(),
                        };
                        names.insert(name(path), files.len());
                        files.push(bytes[..kept].to_vec());
                    }
                    Operation::Rename(from, to) => {
                        if let Some(file) = names.remove(&name(from)) {
                            names.insert(name(to), file);
                        }
                    }
                    Operation::Link(from, to) => {
                        if let Some(file) = names.get(&name(from)).copied() {
                            names.insert(name(to), file);
                        }
                    }
                    Operation::Remove(path) => {
                        names.remove(&name(path));
                    }
                    Operation::Sync(_) | Operation::SyncDirectory => {}
                }
            }
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                std::fs::remove_file(entry.path()).unwrap();
            }
            for (name, file) in names {
                std::fs::write(directory.join(name), &files[file]).unwrap();
            }
        }
    }

    /// The files of a directory by name.
    pub fn files_of(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = std::fs::read_dir(directory).unwrap().flatten();
        entries.map(|e| (PathBuf::from(e.file_name()), std::fs::read(e.path()).unwrap())).collect()
    }
}

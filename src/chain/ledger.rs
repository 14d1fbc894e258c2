//! Reads and writes the stored grants on the blocking pool.
use spoke_grants::cursor::ChainCursor;
use spoke_grants::ledger::{OldContent, Origin, StoreError, StoredCursor, StoredGrants, further};
use spoke_model::error_chain::ErrorChain;
use spoke_sys::disk::{DiskError, Document};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// File name of the decisions in the state directory.
pub const DECISIONS: &str = "grants.json";
/// File name of the cursor in the runtime directory.
pub const REACHED: &str = "grants-height.json";
/// Version of both documents.
const VERSION: u32 = 1;

/// The directories of the documents.
#[derive(Clone, Debug, Default)]
pub struct Directories {
    /// For the decisions; `None`: not stored.
    pub state: Option<PathBuf>,
    /// For the cursor, cleared by a reboot; `None`: not stored.
    pub runtime: Option<PathBuf>,
}

/// The open documents.
#[derive(Debug)]
pub struct Ledger {
    origin: Origin,
    decisions: Option<Arc<Mutex<Decisions>>>,
    cursor: Option<Arc<Mutex<Document<StoredCursor>>>>,
}

/// The decisions on disk, and in the runtime directory while the disk cannot be written: a restart of the process reads
/// those first.
#[derive(Debug)]
struct Decisions {
    disk: Document<StoredGrants>,
    substitute: Option<Document<StoredGrants>>,
    substituted: bool,
}

impl Decisions {
    fn store(&mut self, stored: &StoredGrants, revokes: bool) -> Result<bool, StoreError> {
        let failed = |e: &DiskError, old| StoreError { error: ErrorChain(e).to_string(), old };
        let result = if revokes {
            self.disk.replace(stored).map_err(|e| {
                let old = if e.removed { OldContent::Removed } else { OldContent::Obsolete };
                failed(&e.error, old)
            })
        } else {
            self.disk.store(stored).map_err(|e| failed(&e, OldContent::Stays))
        };
        let Some(substitute) = &mut self.substitute else { return result };
        match &result {
            Ok(_) if self.substituted => self.substituted = substitute.remove().is_err(),
            Ok(_) => {}
            Err(_) => match substitute.replace(stored) {
                Ok(_) => self.substituted = true,
                Err(e) => {
                    self.substituted = !e.removed;
                    tracing::debug!(error = %ErrorChain(&e), "grants not kept in the runtime directory");
                }
            },
        }
        result
    }
}

/// The decisions that a start finds.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest.
    pub stored: Option<StoredGrants>,
    /// The disk's, where the newest are in the runtime directory.
    pub older: Option<StoredGrants>,
}

impl Ledger {
    /// Opens and reads both documents: the cursor and the decisions. An unreadable document counts as missing; one of
    /// another contract is ignored.
    pub fn open(directories: &Directories, origin: Origin) -> (Self, ChainCursor, Found) {
        let (disk, stored) = document::<StoredGrants>(directories.state.as_deref(), DECISIONS);
        let (substitute, substituted) = document::<StoredGrants>(directories.runtime.as_deref(), DECISIONS);
        let decisions = disk.map(|disk| Decisions { disk, substitute, substituted: substituted.is_some() });
        let (stored, older) = match substituted {
            Some(newer) => (Some(newer), stored),
            None => (stored, None),
        };
        let (cursor, reached) = document::<StoredCursor>(directories.runtime.as_deref(), REACHED);
        let stored = stored.filter(|s| {
            let same = s.origin == origin;
            if !same {
                tracing::info!("stored grants ignored: another contract is configured");
            }
            same
        });
        let reached = reached.filter(|r| r.origin == origin).map(|r| r.follow);
        let older = older.filter(|s| s.origin == origin);
        let further = further(stored.as_ref().map(|s| s.follow.clone()).unwrap_or_default(), reached);
        let decisions = decisions.map(|d| Arc::new(Mutex::new(d)));
        (Self { origin, decisions, cursor: cursor.map(|c| Arc::new(Mutex::new(c))) }, further, Found { stored, older })
    }

    /// Writes the decisions if they differ from the disk's; returns whether they did. With `revokes`, no older decisions
    /// stay on the disk, whether the write succeeds or not.
    pub fn store_decisions(
        &self,
        stored: StoredGrants,
        revokes: bool,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send + use<> {
        write(self.decisions.clone(), move |decisions: &mut Decisions| decisions.store(&stored, revokes))
    }

    /// Writes the cursor if it differs from the disk's; returns whether it did.
    pub fn store_cursor(&self, cursor: ChainCursor) -> impl Future<Output = Result<bool, StoreError>> + Send + use<> {
        let stored = StoredCursor { origin: self.origin, follow: cursor };
        write(self.cursor.clone(), move |document: &mut Document<StoredCursor>| {
            let failed = |e| StoreError { error: ErrorChain(&e).to_string(), old: OldContent::Stays };
            document.store(&stored).map_err(failed)
        })
    }
}

/// Reads the stored grants without a change to the state directory.
pub fn peek(state_dir: &Path, origin: Origin) -> Option<StoredGrants> {
    Document::<StoredGrants>::new(state_dir.join(DECISIONS), VERSION).peek().filter(|s| s.origin == origin)
}

type Opened<T> = (Option<Document<T>>, Option<T>);

fn document<T: serde::Serialize + serde::de::DeserializeOwned>(directory: Option<&Path>, name: &str) -> Opened<T> {
    let Some(directory) = directory else { return (None, None) };
    let mut document = Document::new(directory.join(name), VERSION);
    let read = document.load().unwrap_or_else(|e| {
        tracing::error!(error = %e, file = name, "stored grants unreadable: no peer is admitted before the chain is reachable");
        None
    });
    (Some(document), read)
}

/// Runs on the blocking pool, because an SD card may take a second to sync. Without a document nothing is written.
async fn write<D: Send + 'static>(
    document: Option<Arc<Mutex<D>>>,
    store: impl FnOnce(&mut D) -> Result<bool, StoreError> + Send + 'static,
) -> Result<bool, StoreError> {
    let Some(document) = document else { return Ok(false) };
    let stored =
        tokio::task::spawn_blocking(move || store(&mut document.lock().unwrap_or_else(PoisonError::into_inner)));
    stored.await.unwrap_or_else(|e| Err(StoreError { error: e.to_string(), old: OldContent::Stays }))
}

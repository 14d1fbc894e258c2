//! Reads and writes the stored grants on the blocking pool.
use spoke_grants::cursor::ChainCursor;
use spoke_grants::ledger::{Origin, StoreError, StoredCursor, StoredGrants, further};
use spoke_model::error_chain::ErrorChain;
use spoke_sys::disk::Document;
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
    decisions: Option<Arc<Mutex<Document<StoredGrants>>>>,
    cursor: Option<Arc<Mutex<Document<StoredCursor>>>>,
}

impl Ledger {
    /// Opens and reads both documents: the cursor and the decisions. An unreadable document counts as missing; one of
    /// another contract is ignored.
    pub fn open(directories: &Directories, origin: Origin) -> (Self, ChainCursor, Option<StoredGrants>) {
        let (decisions, stored) = document::<StoredGrants>(directories.state.as_deref(), DECISIONS);
        let (cursor, reached) = document::<StoredCursor>(directories.runtime.as_deref(), REACHED);
        let stored = stored.filter(|s| {
            let same = s.origin == origin;
            if !same {
                tracing::info!("stored grants ignored: another contract is configured");
            }
            same
        });
        let reached = reached.filter(|r| r.origin == origin).map(|r| r.follow);
        let further = further(stored.as_ref().map(|s| s.follow.clone()).unwrap_or_default(), reached);
        (Self { origin, decisions, cursor }, further, stored)
    }

    /// Writes the decisions if they differ from the disk's; returns whether they did.
    pub fn store_decisions(
        &self,
        stored: StoredGrants,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send + use<> {
        write(self.decisions.clone(), stored)
    }

    /// Writes the cursor if it differs from the disk's; returns whether it did.
    pub fn store_cursor(&self, cursor: ChainCursor) -> impl Future<Output = Result<bool, StoreError>> + Send + use<> {
        write(self.cursor.clone(), StoredCursor { origin: self.origin, follow: cursor })
    }
}

/// Reads the stored grants without a change to the state directory.
pub fn peek(state_dir: &Path, origin: Origin) -> Option<StoredGrants> {
    Document::<StoredGrants>::new(state_dir.join(DECISIONS), VERSION).peek().filter(|s| s.origin == origin)
}

type Opened<T> = (Option<Arc<Mutex<Document<T>>>>, Option<T>);

fn document<T: serde::Serialize + serde::de::DeserializeOwned>(directory: Option<&Path>, name: &str) -> Opened<T> {
    let Some(directory) = directory else { return (None, None) };
    let mut document = Document::new(directory.join(name), VERSION);
    let read = document.load().unwrap_or_else(|e| {
        tracing::error!(error = %e, file = name, "stored grants unreadable: no peer is admitted before the chain is reachable");
        None
    });
    (Some(Arc::new(Mutex::new(document))), read)
}

/// Runs on the blocking pool, because an SD card may take a second to sync. Without a document nothing is written.
async fn write<T>(document: Option<Arc<Mutex<Document<T>>>>, value: T) -> Result<bool, StoreError>
where
    T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
{
    let Some(document) = document else { return Ok(false) };
    let stored = tokio::task::spawn_blocking(move || {
        document
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .store(&value)
            .map_err(|e| StoreError(ErrorChain(&e).to_string()))
    });
    stored.await.unwrap_or_else(|e| Err(StoreError(e.to_string())))
}

//! Reads and writes what is kept of the grants, off the thread that everything else runs on.
use spoke_grants::cursor::ChainCursor;
use spoke_grants::ledger::{Origin, StoredCursor, StoredGrants, further};
use spoke_sys::disk::Document;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// File name of the decisions in the state directory.
pub const DECISIONS: &str = "grants.json";
/// File name of the height in the runtime directory.
pub const REACHED: &str = "grants-height.json";
/// The version of both.
const VERSION: u32 = 1;

/// Where things are kept.
#[derive(Clone, Debug, Default)]
pub struct Directories {
    /// For decisions; `None`: nowhere.
    pub state: Option<PathBuf>,
    /// For the height, cleared by a reboot; `None`: nowhere.
    pub runtime: Option<PathBuf>,
}

/// The open documents.
#[derive(Debug)]
pub struct Ledger {
    origin: Origin,
    decisions: Option<Arc<Mutex<Document<StoredGrants>>>>,
    reached: Option<Arc<Mutex<Document<StoredCursor>>>>,
}

impl Ledger {
    /// Opens both and reads them: how far the chain was followed, and what the disk holds. What cannot be read is as if it
    /// had never been there; what is about another contract is dropped.
    pub fn open(directories: &Directories, origin: Origin) -> (Self, ChainCursor, Option<StoredGrants>) {
        let (decisions, saved) = document::<StoredGrants>(directories.state.as_deref(), DECISIONS);
        let (reached, memory) = document::<StoredCursor>(directories.runtime.as_deref(), REACHED);
        let saved = saved.filter(|s| {
            let same = s.origin == origin;
            if !same {
                tracing::info!("the contract is another one: the grants of the last run are dropped");
            }
            same
        });
        let memory = memory.filter(|r| r.origin == origin).map(|r| r.follow);
        let follow = further(saved.as_ref().map(|s| s.follow.clone()).unwrap_or_default(), memory);
        (Self { origin, decisions, reached }, follow, saved)
    }

    /// What everything kept here is about.
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Whether decisions are kept at all.
    pub const fn keeps_decisions(&self) -> bool {
        self.decisions.is_some()
    }

    /// Writes the decisions if they differ from what the disk holds; gives whether they did.
    pub async fn store(&self, saved: StoredGrants) -> Result<bool, String> {
        match &self.decisions {
            Some(document) => write(document.clone(), saved).await,
            None => Ok(false),
        }
    }

    /// Writes how far the chain was followed.
    pub async fn reached(&self, follow: &ChainCursor) -> Result<bool, String> {
        match &self.reached {
            Some(document) => {
                write(document.clone(), StoredCursor { origin: self.origin, follow: follow.clone() }).await
            }
            None => Ok(false),
        }
    }
}

/// What the state directory holds of the grants, which is left as it is.
pub fn peek(state_dir: &Path, origin: Origin) -> Option<StoredGrants> {
    Document::<StoredGrants>::new(state_dir.join(DECISIONS), VERSION).peek().filter(|s| s.origin == origin)
}

type Opened<T> = (Option<Arc<Mutex<Document<T>>>>, Option<T>);

fn document<T: serde::Serialize + serde::de::DeserializeOwned>(directory: Option<&Path>, name: &str) -> Opened<T> {
    let Some(directory) = directory else { return (None, None) };
    let mut document = Document::new(directory.join(name), VERSION);
    let read = document.load().unwrap_or_else(|e| {
        // Without it we start as if the chain had never been heard: nobody is admitted before it is.
        tracing::error!(error = %e, "what was kept of the grants cannot be read");
        None
    });
    (Some(Arc::new(Mutex::new(document))), read)
}

/// A card may take a second to sync.
async fn write<T>(document: Arc<Mutex<Document<T>>>, value: T) -> Result<bool, String>
where
    T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
{
    let stored = tokio::task::spawn_blocking(move || {
        document.lock().unwrap_or_else(PoisonError::into_inner).store(&value).map_err(|e| e.to_string())
    });
    stored.await.unwrap_or_else(|e| Err(e.to_string()))
}

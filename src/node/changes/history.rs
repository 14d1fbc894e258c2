//! The history on disk: one line a generation, synced before the change is reported, in one bounded file of mode 0600.
use spoke_change::audit::Actor;
use spoke_change::declared::Declared;
use spoke_change::history::History;
use spoke_change::record::{GenerationRecord, HistoryLine, NewPeers};
use spoke_model::time::Boot;
use spoke_net::api_state::ApiState;
use spoke_sys::disk::DiskError;
use spoke_sys::journal;
use spoke_sys::journal::{Journal, Lines};
use std::path::Path;
use std::sync::Arc;

/// File name in the state directory.
pub const FILE: &str = "changes.journal";
/// Size in bytes above which generations are dropped, even below the configured number.
const MAX_BYTES: u64 = 8 << 20;
/// Generations above the configured number before the file is rewritten, which costs more than a line.
const SLACK: usize = 4;

/// The history and its file.
#[derive(Debug)]
pub struct Store {
    journal: Journal,
    history: History,
    max_bytes: u64,
    /// Size after the last rewrite.
    compact: u64,
}

impl Store {
    /// Opens the store in the state directory. Blocks. A pending confirmation of another boot is due at once.
    ///
    /// If a line cannot be parsed, the file is kept aside and the lines before it are used: after an update is rolled back,
    /// the older version must start with the file of the newer one.
    pub fn open(dir: &Path, keep: usize, boot_id: &str, now: Boot) -> Self {
        let path = dir.join(FILE);
        let (mut journal, found) = Journal::open(path.clone());
        if found.dropped > 0 && found.aside.is_none() && !journal.is_damaged() {
            tracing::warn!(bytes = found.dropped, "last change cut off by a power loss; it is not in force");
        }
        let (history, problem) = replay(&found.lines, keep, boot_id, now);
        if let Some((parsed, problem)) = problem {
            tracing::error!(
                path = %path.display(), line = parsed + 1, error = problem, generation = history.current(),
                "changes not readable from this line on, perhaps of a newer version; using the lines before"
            );
            journal.keep_first(found.lines.get(..parsed).unwrap_or_default());
        }
        Self { journal, history, max_bytes: MAX_BYTES, compact: 0 }
    }

    /// The history.
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Stores the next generation. An error leaves the history unchanged.
    pub async fn commit(
        &mut self,
        record: GenerationRecord,
        state: Arc<ApiState>,
        due: Option<Boot>,
    ) -> Result<(), DiskError> {
        if self.journal.is_empty() {
            self.journal.replace(self.lines()?).await?;
        }
        let line = self.text(&HistoryLine::Change(record.clone()))?;
        self.journal.append(&line, true).await?;
        self.history.commit(record, state, due);
        self.bound().await;
        Ok(())
    }

    /// Stores an intent. Not synced: it serves the next process after a crash, and a power loss clears the kernel too.
    pub async fn intend(&mut self, peers: NewPeers) -> Result<(), DiskError> {
        if self.journal.is_empty() {
            self.journal.replace(self.lines()?).await?;
        }
        let line = self.text(&HistoryLine::Intent { peers: peers.clone() })?;
        self.journal.append(&line, false).await?;
        self.history.intend(peers);
        Ok(())
    }

    /// Stores that none of the intent's peers is in the kernel.
    pub async fn abandon(&mut self) -> Result<(), DiskError> {
        let line = self.text(&HistoryLine::Abandoned)?;
        self.journal.append(&line, false).await?;
        self.history.abandon();
        self.bound().await;
        Ok(())
    }

    /// Stores the declared values that later changes are compared with.
    pub async fn begin(&mut self, declared: Declared) -> Result<(), DiskError> {
        self.history.begin(declared);
        self.journal.replace(self.lines()?).await
    }

    /// Stores a generation of another source.
    pub async fn declare(&mut self, record: GenerationRecord) -> Result<(), DiskError> {
        if self.journal.is_empty() {
            self.journal.replace(self.lines()?).await?;
        }
        let line = self.text(&HistoryLine::Change(record.clone()))?;
        self.journal.append(&line, true).await?;
        self.history.declare(record);
        self.bound().await;
        Ok(())
    }

    /// Stores a confirmation.
    pub async fn confirm(&mut self, generation: u64) -> Result<(), DiskError> {
        let line = self.text(&HistoryLine::Confirmed { generation })?;
        self.journal.append(&line, true).await?;
        self.history.confirm(generation);
        Ok(())
    }

    /// Drops the oldest generations if there are too many or the file is too large.
    async fn bound(&mut self) {
        // A state that is large by itself must not cause a rewrite with every change.
        let long = self.journal.len() > self.max_bytes.max(2 * self.compact);
        if !long && !self.history.is_long_by(SLACK) {
            return;
        }
        self.history.shorten();
        let written = async {
            let mut lines = self.lines()?;
            while lines.len() > self.max_bytes / 2 && self.history.drop_oldest() {
                drop(lines);
                lines = self.lines()?;
            }
            self.journal.replace(lines).await?;
            self.compact = self.journal.len();
            Ok::<(), DiskError>(())
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, "old generations not dropped; retrying with a later change");
        }
    }

    fn lines(&self) -> Result<Lines, DiskError> {
        let mut out = Lines::default();
        for line in self.history.lines() {
            out.push(&self.text(&line)?);
        }
        Ok(out)
    }

    fn text(&self, line: &HistoryLine) -> Result<Vec<u8>, DiskError> {
        serde_json::to_vec(line).map_err(|e| DiskError::Read { path: self.journal.path().to_owned(), source: e.into() })
    }
}

/// The API state in the store, without changing it. Blocks.
pub fn peek(dir: &Path) -> Result<Arc<ApiState>, DiskError> {
    let path = dir.join(FILE);
    let Some(found) = journal::peek(&path)? else { return Ok(Arc::default()) };
    Ok(replay(&found.lines, 1, "", Boot::default()).0.state().clone())
}

/// Whether the store has a change by a client of the agent API, or cannot tell. Blocks.
pub fn may_have_calls(dir: &Path) -> bool {
    let by_client = |line: &Vec<u8>| match serde_json::from_slice(line) {
        Ok(HistoryLine::Change(record)) => matches!(record.actor, Actor::Panel(_)),
        Ok(_) => false,
        Err(_) => true,
    };
    journal::peek(&dir.join(FILE)).map_or(true, |found| found.is_some_and(|f| f.lines.iter().any(by_client)))
}

/// The history of these lines, and the first line that cannot be parsed, with its error.
fn replay(lines: &[Vec<u8>], keep: usize, boot_id: &str, now: Boot) -> (History, Option<(usize, String)>) {
    let mut parsed = Vec::new();
    let mut problem = None;
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_slice::<HistoryLine>(line) {
            Ok(line) => parsed.push(line),
            Err(error) => {
                problem = Some((i, error.to_string()));
                break;
            }
        }
    }
    match History::load(parsed, keep, boot_id, now) {
        Ok(history) => (history, problem),
        Err(error) => (History::new(keep), Some((0, error.to_string()))),
    }
}

#[cfg(test)]
mod tests;

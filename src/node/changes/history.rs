//! Keeps the history on disk: a line a change, on the medium before anybody hears of it, in one bounded file of mode 0600.
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
/// Size in bytes at which generations are given up for room, even if fewer than asked for remain.
const MAX_BYTES: u64 = 8 << 20;
/// Generations more than shall be kept before the file is written anew: that costs more than a line.
const SLACK: usize = 4;

/// The history and its file.
#[derive(Debug)]
pub struct Store {
    journal: Journal,
    history: History,
    max_bytes: u64,
    /// Size when it was last written anew.
    compact: u64,
}

impl Store {
    /// Opens the store in the state directory. Blocks. A confirmation outstanding from another boot is due at once.
    ///
    /// From a line on that cannot be understood the file is kept aside, and what stands before it holds: after an update
    /// that did not last, the older version must start with what the newer one has left behind.
    pub fn open(dir: &Path, keep: usize, boot_id: &str, now: Boot) -> Result<Self, DiskError> {
        let path = dir.join(FILE);
        let (mut journal, found) = Journal::open(path.clone())?;
        if found.dropped > 0 && found.aside.is_none() && !journal.is_damaged() {
            tracing::warn!(bytes = found.dropped, "the last change was cut off by a power cut and is not in force");
        }
        let (history, problem) = follow(&found.lines, keep, boot_id, now);
        if let Some((understood, problem)) = problem {
            tracing::error!(
                path = %path.display(), problem, generation = history.current(),
                "from its line {} on, the store of changes cannot be understood; was it written by a newer version? \
                 What stands before it holds", understood + 1
            );
            journal.keep_first(found.lines.get(..understood).unwrap_or_default())?;
        }
        Ok(Self { journal, history, max_bytes: MAX_BYTES, compact: 0 })
    }

    /// What is in it.
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// Writes the next generation down and takes it over. An error leaves everything as it was.
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

    /// Notes what is about to come into the kernel. A process that is killed leaves this line to the next; a machine that
    /// loses its power loses the kernel's state as well, so nothing waits for the medium.
    pub async fn intend(&mut self, peers: NewPeers) -> Result<(), DiskError> {
        if self.journal.is_empty() {
            self.journal.replace(self.lines()?).await?;
        }
        let line = self.text(&HistoryLine::Intent { peers: peers.clone() })?;
        self.journal.append(&line, false).await?;
        self.history.intend(peers);
        Ok(())
    }

    /// Notes that none of it is in the kernel any more.
    pub async fn abandon(&mut self) -> Result<(), DiskError> {
        let line = self.text(&HistoryLine::Abandoned)?;
        self.journal.append(&line, false).await?;
        self.history.abandon();
        self.bound().await;
        Ok(())
    }

    /// Notes what is declared, before the first change of it: later ones are told by it.
    pub async fn begin(&mut self, declared: Declared) -> Result<(), DiskError> {
        self.history.begin(declared);
        self.journal.replace(self.lines()?).await
    }

    /// Writes a generation down that somebody declared, and takes it over.
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

    /// Takes note of a confirmation.
    pub async fn confirm(&mut self, generation: u64) -> Result<(), DiskError> {
        let line = self.text(&HistoryLine::Confirmed { generation })?;
        self.journal.append(&line, true).await?;
        self.history.confirm(generation);
        Ok(())
    }

    /// Gives up the oldest generations where there are too many of them, or they are too long.
    async fn bound(&mut self) {
        // A state that is long by itself is not written anew with every change.
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
            tracing::warn!(%error, "old generations could not be dropped; trying again later");
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

/// What is set according to the store in the state directory, which is left as it is. Blocks.
pub fn peek(dir: &Path) -> Result<Arc<ApiState>, DiskError> {
    let path = dir.join(FILE);
    let Some(found) = journal::peek(&path)? else { return Ok(Arc::default()) };
    Ok(follow(&found.lines, 1, "", Boot::default()).0.state().clone())
}

/// The history these lines make, and which of them is the first that cannot be understood, with the reason.
fn follow(lines: &[Vec<u8>], keep: usize, boot_id: &str, now: Boot) -> (History, Option<(usize, String)>) {
    let mut understood = Vec::new();
    let mut problem = None;
    for (i, line) in lines.iter().enumerate() {
        match serde_json::from_slice::<HistoryLine>(line) {
            Ok(line) => understood.push(line),
            Err(error) => {
                problem = Some((i, error.to_string()));
                break;
            }
        }
    }
    match History::load(understood, keep, boot_id, now) {
        Ok(history) => (history, problem),
        Err(error) => (History::new(keep), Some((0, error.to_string()))),
    }
}

#[cfg(test)]
mod tests;

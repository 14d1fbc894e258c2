//! Replay protection on disk, and the first answer for a call that is sent again at once.
use crate::changes::history;
use crate::reconciler::NetStatus;
use spoke_api::agent::auth::{Proof, WINDOW};
use spoke_api::agent::replay;
use spoke_api::agent::replay::{CAPACITY, ReplayVerdict, Replays};
use spoke_api::http::Response;
use spoke_model::time::Boot;
use spoke_net::api_state::ApiState;
use spoke_sys::clock::{Clock, boot_id};
use spoke_sys::disk::DiskError;
use spoke_sys::journal::{Journal, Lines};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// File name of the record of accepted requests, in the state directory.
pub const REPLAYS: &str = "agent.replays";
/// How long the answer to a call is given again: timestamps are whole seconds, so that a client that sends a call twice within
/// one signs the same.
const REPEAT_WITHIN: Duration = Duration::from_secs(2);

/// The record of accepted requests and its file, whose first line names the boot it was written in.
pub(super) struct ReplayRecord {
    replays: Replays,
    journal: Journal,
    lines: usize,
    boot: String,
    /// The call accepted last.
    newest: Option<Newest>,
}

/// A call, and its answer once there is one.
struct Newest {
    digest: [u8; 16],
    answer: watch::Receiver<Option<Answered>>,
}

/// The answer to a call that changes something.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) at: Boot,
    /// The API state in force after it.
    pub(super) state: Arc<ApiState>,
    pub(super) response: Response,
}

/// What becomes of a signed call.
pub(super) enum Accepted {
    /// It is new and recorded; its answer goes here.
    New(watch::Sender<Option<Answered>>),
    /// It is the one accepted last, whose answer comes from here.
    Again(watch::Receiver<Option<Answered>>),
    Used,
    Forgotten,
}

/// The answer to the same call sent again: the first one, while nothing has changed since. Nothing is carried out.
pub(super) async fn first_answer(
    mut answer: watch::Receiver<Option<Answered>>,
    net: &watch::Receiver<NetStatus>,
    clock: &impl Clock,
) -> Option<Response> {
    let first = answer.wait_for(Option::is_some).await.ok()?.clone()?;
    let in_force = Arc::ptr_eq(&first.state, &net.borrow().api_state);
    (in_force && clock.now().since(first.at) <= REPEAT_WITHIN).then_some(first.response)
}

impl ReplayRecord {
    /// Blocks.
    pub(super) fn open(dir: &Path, clock: &impl Clock) -> Self {
        let (journal, found) = Journal::open(dir.join(REPLAYS));
        let boot = boot_id().unwrap_or_default();
        let mut lines = found.lines.iter();
        // Between boots there may have been a power loss.
        let whole = lines.next().is_none_or(|first| first == boot.as_bytes()) && found.dropped == 0;
        let lost = found.lines.is_empty();
        let mut replays = Replays::load(lines.filter_map(|l| replay::Line::parse(l)), whole);
        let now = clock.wall().secs();
        let unknown = found.aside.is_some() || journal.is_damaged();
        if unknown || lost && history::may_have_calls(dir) {
            // Requests were accepted, and which is unknown: also of panels whose clock is ahead.
            replays.distrust(now.saturating_sub(WINDOW), now.saturating_add(WINDOW));
        } else if lost {
            // A new device or a new agent. What was signed before is not for it, or was accepted before its state was lost.
            replays.distrust(now.saturating_sub(WINDOW), now.saturating_sub(1));
        }
        // Above every limit: the next acceptance rewrites the file.
        Self { replays, journal, lines: usize::MAX, boot, newest: None }
    }

    /// Checks a request, and records it on disk before it is executed.
    pub(super) async fn accept(&mut self, proof: Proof, clock: &impl Clock) -> Result<Accepted, DiskError> {
        match self.replays.accept(proof, clock.wall()) {
            ReplayVerdict::New => {}
            ReplayVerdict::Used => {
                let same = self.newest.as_ref().filter(|n| n.digest == proof.digest);
                return Ok(same.map_or(Accepted::Used, |n| Accepted::Again(n.answer.clone())));
            }
            ReplayVerdict::Forgotten => return Ok(Accepted::Forgotten),
        }
        self.store(proof).await?;
        let (answered, answer) = watch::channel(None);
        self.newest = Some(Newest { digest: proof.digest, answer });
        Ok(Accepted::New(answered))
    }

    async fn store(&mut self, proof: Proof) -> Result<(), DiskError> {
        let reserved = self.replays.reserve(proof.timestamp);
        if self.lines > 2 * CAPACITY {
            let mut lines: Lines = [&self.boot].into_iter().collect();
            let mut written = 1;
            for line in self.replays.lines() {
                lines.push(line.to_string().as_bytes());
                written += 1;
            }
            self.journal.replace(lines).await?;
            self.lines = written;
            return Ok(());
        }
        if let Some(line) = reserved {
            self.lines += 1;
            self.journal.append(line.to_string().as_bytes(), true).await?;
        }
        self.lines += 1;
        self.journal.append(replay::Line::Accepted(proof).to_string().as_bytes(), false).await
    }
}

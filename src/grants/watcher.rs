//! Keeps the admission table synchronised with the chain: a state machine without I/O that maps events and the time to
//! actions. The device runs it for its peers, the control plane for its nodes.
use super::abi::Malformed;
use super::admission::{AdmissionTable, DecisionChange};
use super::cache::Cache;
use super::cursor::ChainCursor;
use super::exchange::{Conversation, EndpointNotice, ExchangeAction, MAX_EXCHANGE_ACTIONS, Outcome};
use super::exchange::{NoQuorum, RpcFailure, RpcReply, RpcRequest};
use super::ladder::{Phase, Reserve};
use super::ledger::{Origin, StoreError, StoredGrants};
use super::policy::Pair;
use super::report::{Counts, Unreachable};
use round::Round;
use spoke_config::grants::Grants;
use spoke_model::backoff::JitterRng;
use spoke_model::condition::Condition;
use spoke_model::time::Boot;
use spoke_net::derive::Admitted;
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;
use sweeps::Sweeps;
use wakes::Wakes;

#[cfg(test)]
mod model;
mod output;
mod round;
mod sweeps;
#[cfg(test)]
mod tests;
mod wakes;

/// First backoff after a poll without a quorum.
const RETRY: Duration = Duration::from_secs(1);
/// Consecutive polls without a quorum before health reports it: a single lost answer is no condition.
const FAILED_POLLS: u32 = 2;
/// How long the next question waits for a write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Input of the machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The deadline has passed. An early or late tick is harmless.
    Tick,
    /// The stored documents; the first event.
    Loaded {
        /// How far the events were read.
        cursor: Box<ChainCursor>,
        /// Decisions of the last run.
        stored: Option<Box<StoredGrants>>,
        /// What the disk has instead, where `stored` is from the runtime directory: a reboot finds it.
        older: Option<Box<StoredGrants>>,
    },
    /// The endpoints are ready; their schemes and hosts.
    Opened(Vec<String>),
    /// The peers that need a grant.
    Candidates(Arc<BTreeSet<Pair>>),
    /// Verify all candidates again, at once.
    Refresh,
    /// A subscription reports an event of the contract, rightly or not: the next poll may come earlier.
    Woken,
    /// The reply to [`Action::Send`].
    Replied {
        /// The request's id.
        id: u64,
        /// The reply.
        reply: Result<RpcReply, RpcFailure>,
    },
    /// [`Action::StoreCursor`] was performed.
    CursorStored(Result<(), StoreError>),
    /// [`Action::StoreDecisions`] was performed; whether the content differed from the disk's.
    DecisionsStored(Result<bool, StoreError>),
}

/// Output of the machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send a batch to an endpoint; answer with [`Event::Replied`].
    Send(RpcRequest),
    /// Publish [`ChainWatcher::report`] and [`ChainWatcher::admitted`].
    Publish,
    /// Write the cursor to the runtime directory, which a reboot clears; answer with [`Event::CursorStored`].
    StoreCursor(Box<ChainCursor>),
    /// Write the decisions to disk; answer with [`Event::DecisionsStored`].
    StoreDecisions {
        /// The decisions.
        stored: Box<StoredGrants>,
        /// A peer was revoked since the last write: if this one fails, the old content must go.
        revokes: bool,
    },
    /// Log it.
    Report(Transition),
}

/// A log event.
#[derive(Clone, Debug, PartialEq)]
pub enum Transition {
    /// About an endpoint.
    Endpoint(EndpointNotice),
    /// The decisions of the last run were restored.
    Restored {
        /// How many.
        decisions: usize,
    },
    /// Too few endpoints agree.
    Unreachable {
        /// Phase of the grace ladder.
        phase: Phase,
        /// The faults of the endpoints.
        reason: NoQuorum,
    },
    /// A quorum agrees that the contract cannot be read.
    ContractUnreadable {
        /// Phase of the grace ladder.
        phase: Phase,
        /// What is wrong with it.
        reason: Malformed,
    },
    /// Enough endpoints agree again, and the contract can be read.
    Reachable {
        /// Duration of the outage.
        after: Duration,
    },
    /// Known blocks were replaced.
    Reorganised {
        /// The newest known block.
        from: Option<u64>,
        /// The newest known block that is still part of the chain.
        to: u64,
    },
    /// New or changed decisions.
    Decided(Vec<DecisionChange>),
    /// The cursor could not be written.
    CursorNotStored(StoreError),
    /// The decisions could not be written.
    DecisionsNotStored(StoreError),
}

/// Why a poll changed no decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PollFailure {
    /// Too few endpoints agree.
    #[error(transparent)]
    NoQuorum(#[from] NoQuorum),
    /// A quorum agrees that the contract cannot be read.
    #[error("contract {contract}: {reason}")]
    ContractUnreadable {
        /// The contract.
        contract: alloy_primitives::Address,
        /// What is wrong with it.
        reason: Malformed,
    },
}

/// The actions of an exchange, and a few of each other kind.
pub const MAX_ACTIONS: usize = MAX_EXCHANGE_ACTIONS + 16;

/// Actions of one event, in the order to perform them.
pub type Actions = heapless::Vec<Action, MAX_ACTIONS>;

/// When [`Event::Tick`] is due, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The time.
    pub at: Boot,
    /// The reason.
    pub reason: DeadlineReason,
}

/// The reason of a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineReason {
    /// The next poll of the chain.
    Poll,
    /// A poll that a subscription has brought forward.
    Wake,
    /// Another poll after one without a quorum.
    Retry,
    /// Open requests time out.
    Reply,
    /// The next question stops waiting for a write.
    Write,
    /// A phase of the grace ladder ends, or more of it must be reserved on disk.
    Ladder,
}

/// Parameters of the machine.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// Id of this boot.
    pub boot_id: Option<String>,
    /// The peers that need a grant.
    pub candidates: Arc<BTreeSet<Pair>>,
    /// Until then the peers admitted by the previous contract stay, as long as not every candidate was verified.
    pub hold: Option<Boot>,
}

#[derive(Debug)]
enum State {
    /// The stored documents were not read, or the endpoints are not ready.
    Starting,
    Waiting(Deadline),
    Polling(Box<Round>),
}

#[derive(Debug, Default)]
struct Writes {
    cursor: bool,
    decisions: Option<DecisionsWrite>,
    /// The content changed during the write: write again.
    again: bool,
    /// The next question waits for the writes until then.
    hold_until: Option<Boot>,
}

#[derive(Debug)]
struct DecisionsWrite {
    edition: u64,
    reserve: Option<Reserve>,
}

/// The machine.
///
/// ```text
///  Starting ──Loaded, Opened──► Polling ◄──poll, retry, Candidates, Refresh── Waiting
///                                  │                                              ▲
///                                  └── done, or no quorum: backoff ───────────────┘
///  Polling:
///   Position ─known block replaced─► Fork: back to a known block of the chain ─► Position
///      │ no block to verify at ─► Newest                │
///      ▼                           ▼                    ▼
///     Logs (in chunks) ◄──► Granted: peers a change concerns, at the newest block;
///      │                       │     a revocation is published and stored before the next question
///      ▼ all read              ▼
///     Granted ─────────────► Pending: pairs without a grant, at the newest and the final block ─► done
/// ```
/// Each box is one or more exchanges ([`super::exchange`]). An exchange without a quorum ends the poll and changes
/// nothing: neither a grant nor a revocation. So does a contract that cannot be read: its answers are none.
///
/// Driver: [`ChainWatcher::new`], then [`Event::Loaded`], which publishes the stored decisions, then [`Event::Opened`].
/// Perform the actions of each event in order; answer every `Send` and `Store…` once, in any order.
/// [`Event::Candidates`] and [`Event::Refresh`] may come at any time and take effect between polls. Read
/// [`ChainWatcher::deadline`] after each event and send [`Event::Tick`] when it has passed. From [`Event::Opened`] on
/// there is always a deadline, so a missing answer never stops the machine.
#[derive(Debug)]
pub struct ChainWatcher {
    config: Arc<Grants>,
    boot_id: Option<String>,
    hold: Option<Boot>,
    rng: JitterRng,
    conversation: Conversation,
    table: AdmissionTable<RandomState>,
    cursor: ChainCursor,
    state: State,
    /// Candidates that take effect after this poll.
    new_candidates: Option<Arc<BTreeSet<Pair>>>,
    refresh: bool,
    writes: Writes,
    /// The next question, while it waits for the writes.
    deferred: Option<super::question::Question>,
    stored_edition: u64,
    counts: Counts,
    head: Option<u64>,
    last_quorum: Option<Boot>,
    unreachable: Option<Unreachable>,
    /// The last verification of grants found the contract unreadable: a few pairs are verified first, before all.
    probe_contract: bool,
    /// Too few endpoints know the block tag of `finality`, as of the last poll that asked for it.
    no_finals: bool,
    sweeps: Sweeps,
    wakes: Wakes,
    /// The chain's first block was requested in this run.
    asked_first: bool,
    condition: Option<Condition>,
    /// Next change by time alone: publish and store then.
    due: Option<Boot>,
    /// The last pending pair that was verified, if more wait: the next poll continues after it.
    asked: Option<Pair>,
    admitted: Option<Arc<Admitted>>,
}

impl ChainWatcher {
    /// A machine before [`Event::Loaded`]; `seed` spreads polls and retries.
    pub fn new(now: Boot, seed: u64, setup: Setup) -> Self {
        let Setup { config, boot_id, candidates, hold } = setup;
        let mut rng = JitterRng::new(seed);
        Self {
            boot_id,
            hold,
            conversation: Conversation::new(config.clone(), Vec::new(), rng.next_u64()),
            rng,
            table: AdmissionTable::new(&config, Cache::new(RandomState::new()), now),
            cursor: ChainCursor::default(),
            state: State::Starting,
            new_candidates: Some(candidates),
            refresh: false,
            writes: Writes::default(),
            deferred: None,
            stored_edition: 0,
            counts: Counts::default(),
            head: None,
            last_quorum: None,
            unreachable: None,
            probe_contract: false,
            no_finals: false,
            asked_first: false,
            sweeps: Sweeps::new(now),
            wakes: Wakes::new(now),
            condition: None,
            due: None,
            asked: None,
            admitted: None,
            config,
        }
    }

    /// When [`Event::Tick`] is due; `None` only before [`Event::Opened`].
    pub fn deadline(&self) -> Option<Deadline> {
        let deadline = |reason| move |at| Deadline { at, reason };
        let state = match &self.state {
            State::Starting => None,
            State::Waiting(until) => Some(*until),
            State::Polling(_) => self.conversation.deadline().map(deadline(DeadlineReason::Reply)),
        };
        let write = self.writes.hold_until.filter(|_| self.deferred.is_some()).map(deadline(DeadlineReason::Write));
        let ladder = self.due.map(deadline(DeadlineReason::Ladder));
        [state, write, ladder].into_iter().flatten().min_by_key(|d| d.at)
    }

    /// The admitted pairs; `None` while the peers of the previous contract are held.
    pub const fn admitted(&self) -> Option<&Arc<Admitted>> {
        self.admitted.as_ref()
    }

    /// Handles an event; returns the actions to perform.
    #[must_use]
    pub fn handle(&mut self, now: Boot, event: Event) -> Actions {
        let mut out = Actions::new();
        if self.due.is_some_and(|due| now >= due) {
            self.publish(now, &mut out);
            self.store(now, &mut out);
        }
        match event {
            Event::Tick => {
                if self.writes.hold_until.is_some_and(|until| now >= until) {
                    self.writes.hold_until = None;
                    self.ask_deferred(now, &mut out);
                }
                if let Some(outcome) = self.conversation.expire(now) {
                    self.advance(now, outcome, &mut out);
                }
            }
            Event::Loaded { cursor, stored, older } => self.load(now, *cursor, (stored, older), &mut out),
            Event::Opened(names) => {
                self.conversation.open(names);
                if matches!(self.state, State::Starting) {
                    self.state = State::Waiting(Deadline { at: now, reason: DeadlineReason::Poll });
                }
            }
            Event::Candidates(candidates) => self.new_candidates = Some(candidates),
            Event::Refresh => self.refresh = true,
            Event::Woken => {
                self.wakes.woken();
                self.bring_forward(now);
            }
            Event::Replied { id, reply } => {
                if let Some(outcome) = self.conversation.replied(now, id, reply) {
                    self.advance(now, outcome, &mut out);
                }
            }
            Event::CursorStored(result) => self.cursor_stored(now, result, &mut out),
            Event::DecisionsStored(result) => self.decisions_stored(now, result, &mut out),
        }
        self.begin_poll_if_due(now, &mut out);
        self.drain_conversation(&mut out);
        self.due = self.table.deadline(now);
        out
    }

    fn load(
        &mut self,
        now: Boot,
        cursor: ChainCursor,
        (stored, older): (Option<Box<StoredGrants>>, Option<Box<StoredGrants>>),
        out: &mut Actions,
    ) {
        self.cursor = cursor;
        if let Some(stored) = stored {
            push(out, Action::Report(Transition::Restored { decisions: stored.grants.len() }));
            self.table.restore(stored.grants, stored.reserve.as_ref(), self.boot_id.as_deref(), now);
        }
        if let Some(older) = older {
            self.table.note_grants_on_disk(&older.grants);
        }
        if let Some(candidates) = self.new_candidates.take() {
            self.table.set_candidates(&candidates);
        }
        self.publish(now, out);
    }

    /// Has the next poll begin earlier if a subscription reported an event. Not after one without a quorum: its backoff holds.
    fn bring_forward(&mut self, now: Boot) {
        if let State::Waiting(until @ Deadline { reason: DeadlineReason::Poll, .. }) = &mut self.state
            && let Some(due) = self.wakes.due(now, self.config.poll)
        {
            // A fleet is woken by one event.
            let spread = u64::try_from(self.config.poll.as_millis() / 100).unwrap_or(u64::MAX).clamp(1, 1_000);
            let at = due + Duration::from_millis(self.rng.next_u64() % spread);
            if at < until.at {
                *until = Deadline { at, reason: DeadlineReason::Wake };
            }
        }
    }

    /// Begins a poll when one is due, or at new candidates or a refresh.
    fn begin_poll_if_due(&mut self, now: Boot, out: &mut Actions) {
        while let State::Waiting(until) = &self.state {
            let due = now >= until.at;
            let woken = due && until.reason == DeadlineReason::Wake;
            let refresh = std::mem::take(&mut self.refresh);
            let candidates = self.new_candidates.take();
            if !due && !refresh && candidates.is_none() {
                return;
            }
            if let Some(candidates) = candidates {
                self.table.set_candidates(&candidates);
            }
            if refresh {
                self.table.refresh(now);
                self.conversation.endpoints.retry_now();
            }
            self.wakes.begin(now, woken);
            self.begin_poll(now, out);
        }
    }

    /// Sends `question` after the writes in progress. Returns its outcome if no endpoint may be asked now.
    fn ask(&mut self, now: Boot, question: super::question::Question) -> Option<Outcome> {
        if self.writes.hold_until.is_some() {
            self.deferred = Some(question);
            return None;
        }
        self.conversation.ask(now, question)
    }

    fn ask_deferred(&mut self, now: Boot, out: &mut Actions) {
        if let Some(question) = self.deferred.take()
            && let Some(outcome) = self.conversation.ask(now, question)
        {
            self.advance(now, outcome, out);
        }
    }

    fn drain_conversation(&mut self, out: &mut Actions) {
        for action in self.conversation.take_actions() {
            push(
                out,
                match action {
                    ExchangeAction::Send(request) => Action::Send(request),
                    ExchangeAction::Report(notice) => Action::Report(Transition::Endpoint(notice)),
                },
            );
        }
    }

    fn origin(&self) -> Origin {
        Origin { contract: self.config.contract, chain_id: self.config.chain_id }
    }
}

fn push(out: &mut Actions, action: Action) {
    // Cannot overflow: see `MAX_ACTIONS`.
    let _ = out.push(action);
}

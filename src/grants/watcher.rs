//! Keeps the admission table in step with the chain, as a machine without I/O: events and the time go in, actions come out.
//! The device runs it for its peers, the control plane for its nodes.
use super::admission::{AdmissionTable, DecisionChange};
use super::cache::Cache;
use super::cursor::ChainCursor;
use super::exchange::{Conversation, EndpointNotice, ExchangeAction, MAX_EXCHANGE_ACTIONS, Outcome};
use super::exchange::{NoQuorum, RpcFailure, RpcReply, RpcRequest};
use super::ladder::{Phase, Reserve};
use super::ledger::{Origin, StoredGrants};
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

#[cfg(test)]
mod model;
mod output;
mod round;
#[cfg(test)]
mod tests;

/// First wait after a poll without a quorum.
const RETRY: Duration = Duration::from_secs(1);
/// Polls in a row without a quorum before health reports it: a single lost answer is no condition.
const FAILED_POLLS: u32 = 2;
/// A write that takes longer no longer holds back the next question.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The deadline has come. Too early or too late does no harm.
    Tick,
    /// What the disk holds; the first event.
    Loaded {
        /// How far the chain was followed.
        cursor: Box<ChainCursor>,
        /// Decisions of the last run.
        stored: Option<Box<StoredGrants>>,
    },
    /// The endpoints can be asked; their schemes and hosts.
    Opened(Vec<String>),
    /// The peers that need a grant.
    Candidates(Arc<BTreeSet<Pair>>),
    /// Verify everything again, at once.
    Refresh,
    /// The reply to [`Action::Send`].
    Replied {
        /// The request's id.
        id: u64,
        /// The reply.
        reply: Result<RpcReply, RpcFailure>,
    },
    /// [`Action::StoreCursor`] ended.
    CursorStored(Result<(), String>),
    /// [`Action::StoreDecisions`] ended; whether the disk held something else before.
    DecisionsStored(Result<bool, String>),
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send a batch to an endpoint; answer with [`Event::Replied`].
    Send(RpcRequest),
    /// Publish [`ChainWatcher::report`] and [`ChainWatcher::admitted`].
    Publish,
    /// Write how far the chain was followed to where a reboot clears it; answer with [`Event::CursorStored`].
    StoreCursor(Box<ChainCursor>),
    /// Write the decisions to disk; answer with [`Event::DecisionsStored`].
    StoreDecisions(Box<StoredGrants>),
    /// Log it.
    Report(Transition),
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Transition {
    /// About an endpoint.
    Endpoint(EndpointNotice),
    /// Decisions of the last run are in force.
    Restored {
        /// How many.
        decisions: usize,
    },
    /// Too few endpoints agree.
    Unreachable {
        /// Where on the grace ladder.
        phase: Phase,
        /// What each endpoint answered.
        reason: NoQuorum,
    },
    /// Enough endpoints agree again.
    Reachable {
        /// After how long.
        after: Duration,
    },
    /// Known blocks are not part of the chain any more.
    Reorganised {
        /// The newest known block.
        from: Option<u64>,
        /// The newest that is left.
        to: u64,
    },
    /// Decisions that differ from the ones before.
    Decided(Vec<DecisionChange>),
    /// The cursor could not be written.
    CursorNotStored(String),
    /// The decisions could not be written.
    DecisionsNotStored(String),
}

/// Requests, their notices, and a few actions of each other kind.
pub const MAX_ACTIONS: usize = MAX_EXCHANGE_ACTIONS + 16;

/// Actions of one event, to be performed in this order.
pub type Actions = heapless::Vec<Action, MAX_ACTIONS>;

/// When [`Event::Tick`] is due, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The moment.
    pub at: Boot,
    /// What it is for.
    pub reason: DeadlineReason,
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineReason {
    /// The next poll of the chain.
    Poll,
    /// Another poll after one without a quorum.
    Retry,
    /// Open requests are lost.
    Reply,
    /// A write takes too long to wait for.
    Write,
    /// A phase of the grace ladder ends, or the disk must hold more of it.
    Ladder,
}

/// Everything the machine begins with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// The id of this boot.
    pub boot_id: Option<String>,
    /// The peers that need a grant.
    pub candidates: Arc<BTreeSet<Pair>>,
    /// Until then the peers admitted by the contract before stay, as long as not every candidate was verified.
    pub hold: Option<Boot>,
}

#[derive(Debug)]
enum State {
    /// The disk was not read, or the endpoints cannot be asked.
    Starting,
    Waiting(Deadline),
    Polling(Box<Round>),
}

/// Writes under way.
#[derive(Debug, Default)]
struct Writes {
    cursor: bool,
    decisions: Option<DecisionsWrite>,
    /// What is written is out of date already.
    again: bool,
    /// Questions are held back until then for the sake of the writes.
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
///   Position ─known block replaced─► Fork: back to a known block that is left ─► Position
///      │ no block to verify at ─► Newest                │
///      ▼                           ▼                    ▼
///     Logs (in chunks) ◄──► Granted: peers a change concerns, at the newest block; a revocation is published and
///      │                       │     stored before the next question
///      ▼ all read              ▼
///     Granted ─────────────► Pending: those without a grant, at the newest and the final block ─► done
/// ```
/// Each box is one or more exchanges ([`super::exchange`]): a question to as many endpoints as it takes until a quorum gives
/// the same answer. An exchange without a quorum ends the poll and leaves everything as it is: neither a grant nor a
/// revocation.
///
/// Driver: [`ChainWatcher::new`], then [`Event::Loaded`]; what the disk holds is published before [`Event::Opened`] is
/// expected. Perform the actions of each event in their order; every `Send` and `Store…` is answered once, in any order.
/// [`Event::Candidates`] and [`Event::Refresh`] may come at any time and take effect between polls. Read
/// [`ChainWatcher::deadline`] after each event and hand in [`Event::Tick`] when it has come. There is a deadline from
/// [`Event::Opened`] on, so the machine goes on whatever is not answered.
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
    /// Waits for the writes.
    deferred: Option<super::question::Question>,
    stored_edition: u64,
    counts: Counts,
    head: Option<u64>,
    last_quorum: Option<Boot>,
    unreachable: Option<Unreachable>,
    condition: Option<Condition>,
    /// When something changes by itself that was not published yet.
    due: Option<Boot>,
    /// The last pending pair that was asked about, where not all of them were.
    asked: Option<Pair>,
    admitted: Option<Arc<Admitted>>,
}

impl ChainWatcher {
    /// A machine that has read nothing yet; `seed` spreads polls and retries.
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

    /// Who is admitted; `None` while the peers of the contract before are held.
    pub const fn admitted(&self) -> Option<&Arc<Admitted>> {
        self.admitted.as_ref()
    }

    /// Takes an event; returns what is to be done.
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
            Event::Loaded { cursor, stored } => self.load(now, *cursor, stored, &mut out),
            Event::Opened(names) => {
                self.conversation.open(names);
                if matches!(self.state, State::Starting) {
                    self.state = State::Waiting(Deadline { at: now, reason: DeadlineReason::Poll });
                }
            }
            Event::Candidates(candidates) => self.new_candidates = Some(candidates),
            Event::Refresh => self.refresh = true,
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

    fn load(&mut self, now: Boot, cursor: ChainCursor, stored: Option<Box<StoredGrants>>, out: &mut Actions) {
        self.cursor = cursor;
        if let Some(stored) = stored {
            push(out, Action::Report(Transition::Restored { decisions: stored.grants.len() }));
            self.table.restore(stored.grants, stored.reserve.as_ref(), self.boot_id.as_deref(), now);
        }
        if let Some(candidates) = self.new_candidates.take() {
            self.table.set_candidates(&candidates);
        }
        self.publish(now, out);
    }

    /// Begins a poll when its time has come or something asks for one.
    fn begin_poll_if_due(&mut self, now: Boot, out: &mut Actions) {
        while let State::Waiting(until) = &self.state {
            let due = now >= until.at;
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
            self.begin_poll(now, out);
        }
    }

    /// Sends `question`, after the writes under way. Gives its outcome if no endpoint may be asked now.
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
    // The bound is the sum over all kinds of action.
    let _ = out.push(action);
}

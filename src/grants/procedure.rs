//! Sequences of exchanges with one result: the position of the chain, decisions about pairs at a block.
use super::abi::{ContractProbe, Malformed};
use super::cursor::{ChainCursor, Continuity};
use super::events::{Confirmed, Reported, confirmed};
use super::exchange::{Agreement, Conversation, NoQuorum, Outcome};
use super::jsonrpc::{At, BlockRef, GrantEvent};
use super::policy::{Decision, Pair};
use super::question::{EndpointFault, Finding, PinState, PinnedCall, Question, View, common_head, lags, pinned_calls};
use spoke_config::grants::{Finality, MAX_ENDPOINTS};
use std::sync::Arc;
use std::time::Duration;

/// How long the final blocks of a correct endpoint may stand still while those of others advance.
const FINAL_STALL: Duration = Duration::from_secs(600);

/// Next step of a procedure.
#[derive(Debug)]
pub enum Step<T> {
    /// Another exchange.
    Ask(Next),
    /// The result.
    Done(Result<T, NoQuorum>),
}

/// The next exchange of a procedure.
#[derive(Debug)]
pub struct Next(pub Question);

impl<T> Step<T> {
    pub(crate) const fn ask(question: Question) -> Self {
        Self::Ask(Next(question))
    }
}

/// The outcome of an exchange, for the procedure that requested it.
#[derive(Debug)]
pub struct Answered(pub(crate) Outcome);

/// A sequence of exchanges with one result. Order of calls: `begin`, then `answered` with the outcome of each requested
/// exchange, until [`Step::Done`].
pub trait Procedure {
    /// The result.
    type Output;
    /// The first exchange.
    fn begin(&mut self, conversation: &mut Conversation) -> Step<Self::Output>;
    /// Handles the outcome of an exchange.
    fn answered(&mut self, conversation: &mut Conversation, outcome: Answered) -> Step<Self::Output>;
}

/// The position of the chain, as far as a quorum agrees.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Whether the newest known block is still part of the chain.
    pub continuity: Continuity,
    /// The greatest height that a quorum has reached.
    pub head: u64,
    /// A block that a quorum has below its head.
    pub anchor: Option<BlockRef>,
    /// Blocks to verify at, best first.
    pub pins: Vec<BlockRef>,
    /// Blocks that a quorum reports as final, newest first; empty unless requested.
    pub finals: Vec<BlockRef>,
    /// Too few endpoints know the requested block tag.
    pub no_finals: bool,
    /// Events reported by any endpoint: they only cause a verification.
    pub events: Vec<GrantEvent>,
    /// Whether `events` contains every event up to `head`.
    pub complete: bool,
}

impl Position {
    /// The greatest height that a quorum has below its head.
    pub const fn common(&self) -> u64 {
        self.head.saturating_sub(1)
    }
}

/// Views by endpoint.
type Views = heapless::Vec<(usize, View), MAX_ENDPOINTS>;

/// Finds the [`Position`] relative to a cursor.
#[derive(Debug)]
pub struct FindPosition {
    cursor: ChainCursor,
    finals: bool,
    events: bool,
    /// The views, while the cursor's newest block is requested by height.
    views: Option<Views>,
    /// A quorum is behind the cursor: the chain's first block is requested, which a restarted chain replaced.
    behind: Option<NoQuorum>,
}

impl FindPosition {
    /// `finals`: whether to request the final block.
    pub const fn new(cursor: ChainCursor, finals: bool) -> Self {
        Self { cursor, finals, events: false, views: None, behind: None }
    }

    fn question(&self, conversation: &Conversation) -> Question {
        let finality = conversation.finality().filter(|_| self.finals);
        Question::Position { cursor: Box::new(self.cursor.clone()), finality, events: self.events }
    }

    fn finish(
        &self,
        conversation: &mut Conversation,
        continuity: Continuity,
        views: Views,
    ) -> Result<Position, NoQuorum> {
        let known = self.cursor.newest().map_or(0, |b| b.number);
        let blocks = |v: &View| [v.events.iter().map(|e| e.block).max(), v.parent, v.last_final];
        let claims = views.iter().flat_map(|(i, v)| blocks(v).into_iter().flatten().map(|b| (*i, b)));
        conversation.remember_claims(claims.collect());
        let need = conversation.config().quorum;
        let Some(head) = common_head(views.iter().map(|(_, v)| v.head), need) else {
            // An old block is no answer, and which heads are old is not known.
            let fault = |(i, v): &(usize, View)| (conversation.name(*i).to_owned(), EndpointFault::Behind(v.head));
            return Err(NoQuorum {
                agreed: need.saturating_sub(1),
                needed: need,
                faults: views.iter().map(fault).collect(),
            });
        };
        for (i, _) in views.iter().filter(|(_, v)| lags(v.head, head)) {
            conversation.endpoints.lags(*i);
        }
        let finals = if self.finals { finals(conversation, &views, need) } else { Vec::new() };
        let report =
            |(i, v): &mut (usize, View)| Reported { endpoint: *i, head: v.head, events: std::mem::take(&mut v.events) };
        let newest = |v: &View| v.events.iter().map(|e| e.block).max();
        let mut pins: Vec<BlockRef> = views.iter().flat_map(|(_, v)| [newest(v), v.parent]).flatten().collect();
        let mut views = views;
        let reports = views.iter_mut().map(report).collect();
        let Confirmed { events, refuted } = confirmed(reports, head, need);
        for i in refuted {
            conversation.contradicted(i, &EndpointFault::FalseEvents);
        }
        let views: heapless::Vec<View, MAX_ENDPOINTS> = views.into_iter().map(|(_, v)| v).collect();
        let common = |b: &BlockRef| views.iter().filter(|v| v.parent == Some(*b)).count() >= need;
        let anchor = views.iter().filter_map(|v| v.parent).find(common);
        // Two blocks per endpoint, so that false events cannot displace the others: the one of its newest event and the
        // one below its head.
        pins.sort_unstable_by(|a, b| b.cmp(a));
        pins.dedup();
        pins.retain(|b| !lags(b.number, head));
        // Decisions at a block before the newest known one would be out of date.
        pins.retain(|b| b.number >= known);
        let no_finals = self.finals && finals.is_empty() && head > 1;
        let started = self.cursor.scanned().is_some();
        let complete = started && (self.events || continuity == Continuity::Same && self.cursor.gap(head) == 0);
        conversation.near_head = !started || complete;
        Ok(Position { continuity, head, anchor, pins, finals, no_finals, events, complete })
    }
}

/// The newest block that a quorum reports as final, and those below. Names the endpoints whose final blocks stand still
/// or are others than those of a quorum.
fn finals(conversation: &mut Conversation, views: &Views, need: usize) -> Vec<BlockRef> {
    let reported = || views.iter().filter_map(|(i, v)| Some((*i, v.last_final?)));
    let mut finals: Vec<BlockRef> = reported().map(|(_, b)| b).collect();
    finals.sort_unstable_by(|a, b| b.cmp(a));
    finals.drain(..finals.len().min(need.saturating_sub(1)));
    let quorum = finals.first().map_or(0, |b| b.number);
    finals.dedup();
    let (now, stall) = (conversation.now(), conversation.config().stall.max(FINAL_STALL));
    for (i, block) in reported() {
        let since = conversation.endpoints.final_for(i, block.number, now);
        let agrees = |b: &BlockRef| reported().filter(|(_, other)| other == b).count() >= need;
        let other = reported().map(|(_, b)| b).find(|b| b.number == block.number && *b != block && agrees(b));
        if let Some(other) = other {
            conversation.contradicted(i, &EndpointFault::FalseFinal { height: other.number });
        } else if block.number < quorum && since >= stall {
            conversation.contradicted(i, &EndpointFault::FinalStuck { height: block.number, since, quorum });
        }
    }
    finals
}

impl Procedure for FindPosition {
    type Output = Position;

    fn begin(&mut self, conversation: &mut Conversation) -> Step<Position> {
        self.events = conversation.near_head && !conversation.events_apart();
        Step::ask(self.question(conversation))
    }

    fn answered(&mut self, conversation: &mut Conversation, outcome: Answered) -> Step<Position> {
        if let Some(behind) = self.behind.take() {
            return Step::Done(match outcome.0.map(|agreement| block(agreement.agreed)) {
                Ok(Some(first)) if self.cursor.first().is_some_and(|known| known != first.hash) => {
                    Ok(Position { continuity: Continuity::Reorganised, ..Position::default() })
                }
                Ok(_) | Err(_) => Err(behind),
            });
        }
        let Agreement { agreed, all } = match outcome.0 {
            Ok(agreement) => agreement,
            Err(e) if self.events && too_much(&e) => {
                // Not the endpoints' fault: the events are read in chunks instead.
                if e.any(EndpointFault::too_much) {
                    conversation.read_events_apart();
                }
                conversation.near_head = false;
                conversation.endpoints.pardon();
                self.events = false;
                self.views = None;
                return Step::ask(self.question(conversation));
            }
            Err(e) => {
                let behind = e.faults.iter().filter(|(_, f)| matches!(f, EndpointFault::Behind(_))).count();
                if behind >= conversation.config().quorum && self.cursor.first().is_some() {
                    conversation.endpoints.pardon();
                    self.behind = Some(e);
                    return Step::ask(Question::Block(At::Number(0)));
                }
                return Step::Done(Err(e));
            }
        };
        if let Some(views) = self.views.take() {
            let known = match agreed {
                Finding::Block(block) => block,
                Finding::Position(_) | Finding::Logs(_) | Finding::Decisions { .. } => None,
            };
            let continuity = self.cursor.judge_block(known);
            return Step::Done(self.finish(conversation, continuity, views));
        }
        let mut continuity = Continuity::Same;
        if let Finding::Position(view) = &agreed {
            continuity = view.continuity;
        }
        let views = all.into_iter().filter_map(|(i, f)| match f {
            Finding::Position(view) => Some((i, view)),
            Finding::Logs(_) | Finding::Block(_) | Finding::Decisions { .. } => None,
        });
        let views = views.collect();
        if let (Continuity::TooOld, Some(known)) = (continuity, self.cursor.newest()) {
            self.views = Some(views);
            return Step::ask(Question::Block(At::Number(known.number)));
        }
        Step::Done(self.finish(conversation, continuity, views))
    }
}

/// Whether an endpoint refused the range or its answer was too large.
pub(crate) fn too_much(e: &NoQuorum) -> bool {
    e.any(EndpointFault::too_much) || e.any(|f| *f == EndpointFault::too_large())
}

/// Requests a block's number and hash.
#[derive(Debug)]
pub struct FindBlock(pub At);

impl Procedure for FindBlock {
    type Output = Option<BlockRef>;

    fn begin(&mut self, _: &mut Conversation) -> Step<Self::Output> {
        Step::ask(Question::Block(self.0))
    }

    fn answered(&mut self, _: &mut Conversation, outcome: Answered) -> Step<Self::Output> {
        Step::Done(outcome.0.map(|a| block(a.agreed)))
    }
}

pub(crate) fn block(finding: Finding) -> Option<BlockRef> {
    match finding {
        Finding::Block(block) => block,
        Finding::Position(_) | Finding::Logs(_) | Finding::Decisions { .. } => None,
    }
}

/// Decisions in the order of the pairs; `None`: the answer could not be read.
pub type Decisions = Vec<Option<Decision>>;

/// The result of [`Verify`].
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The block.
    pub pin: BlockRef,
    /// The decisions at it and at each of the further blocks.
    pub decisions: Vec<Decisions>,
    /// Why nothing at `pin` could be read; then there is no decision at it.
    pub unreadable: Option<Malformed>,
}

/// Answers about one pinned block.
#[derive(Clone, Debug, Default)]
struct AtPin {
    contract: ContractProbe,
    decisions: Vec<Result<Decision, Malformed>>,
}

impl AtPin {
    /// Why these answers are none: there is no contract, or it answers as one that never held a token. A record that
    /// names its node proves the contract.
    fn unreadable(&self) -> Option<Malformed> {
        if !self.contract.exists {
            return Some(Malformed::NoContract);
        }
        let proved = self.decisions.iter().flatten().any(|d| d.token_id.is_some());
        if proved || self.decisions.is_empty() {
            return None;
        }
        match self.decisions.iter().find_map(|d| d.as_ref().err()) {
            Some(e) if self.decisions.iter().all(Result::is_err) => Some(*e),
            Some(_) | None => (!self.contract.erc721).then_some(Malformed::OtherContract),
        }
    }

    fn decisions(self) -> Decisions {
        let unreadable = self.unreadable().is_some();
        self.decisions.into_iter().map(|d| d.ok().filter(|_| !unreadable)).collect()
    }
}

/// Verifies pairs at the first candidate block that a quorum knows, and at further blocks together with it.
#[derive(Debug)]
pub struct Verify {
    candidates: std::vec::IntoIter<BlockRef>,
    /// More than one candidate: an endpoint without one block may have the next.
    several: bool,
    also: Vec<BlockRef>,
    pairs: Arc<[Pair]>,
    pin: BlockRef,
    /// Calls of the current candidate that are not sent yet, next one last.
    rest: Vec<PinnedCall>,
    /// Calls of the exchange in progress.
    asked: Vec<PinnedCall>,
    decided: Vec<AtPin>,
}

impl Verify {
    /// Verifies `pairs` at one of `candidates` together with all of `also`.
    pub fn new(candidates: Vec<BlockRef>, also: Vec<BlockRef>, pairs: Arc<[Pair]>) -> Self {
        Self {
            several: candidates.len() > 1,
            candidates: candidates.into_iter(),
            also,
            pairs,
            pin: BlockRef::default(),
            rest: Vec::new(),
            asked: Vec::new(),
            decided: Vec::new(),
        }
    }

    fn next_candidate(&mut self, conversation: &mut Conversation, last: NoQuorum) -> Step<Verified> {
        let Some(pin) = self.candidates.next() else { return Step::Done(Err(last)) };
        self.pin = pin;
        let pins: Vec<BlockRef> = std::iter::once(pin).chain(self.also.iter().copied()).collect();
        self.rest = pinned_calls(&pins, self.pairs.len(), conversation.nodes_per_call());
        self.rest.reverse();
        self.decided = vec![AtPin::default(); pins.len()];
        self.next_batch(conversation)
    }

    fn next_batch(&mut self, conversation: &Conversation) -> Step<Verified> {
        // Besides one call for each pinned block.
        let most = conversation.config().batch.saturating_sub(self.decided.len()).max(1);
        let keep = self.rest.len().saturating_sub(most);
        let mut calls = self.rest.split_off(keep);
        if calls.is_empty() {
            let decided = std::mem::take(&mut self.decided);
            let unreadable = decided.first().and_then(AtPin::unreadable);
            let decisions = decided.into_iter().map(AtPin::decisions).collect();
            return Step::Done(Ok(Verified { pin: self.pin, decisions, unreadable }));
        }
        calls.reverse();
        self.asked.clone_from(&calls);
        Step::ask(Question::Decisions { calls, pairs: self.pairs.clone() })
    }
}

impl Procedure for Verify {
    type Output = Verified;

    fn begin(&mut self, conversation: &mut Conversation) -> Step<Self::Output> {
        let none = NoQuorum { agreed: 0, needed: conversation.config().quorum, faults: Vec::new() };
        self.next_candidate(conversation, none)
    }

    fn answered(&mut self, conversation: &mut Conversation, outcome: Answered) -> Step<Self::Output> {
        let agreed = match outcome.0 {
            Ok(agreement) => agreement.agreed,
            Err(e) => {
                if e.any(EndpointFault::too_expensive) {
                    conversation.lower_nodes_per_call();
                }
                if self.several {
                    conversation.endpoints.pardon();
                }
                return self.next_candidate(conversation, e);
            }
        };
        let (pins, decided) = match agreed {
            Finding::Decisions { pins, decisions } => (pins, decisions),
            Finding::Position(_) | Finding::Logs(_) | Finding::Block(_) => (Vec::new(), Vec::new()),
        };
        for PinState { pin, number, contract } in pins {
            if let Some(at) = self.decided.get_mut(pin) {
                at.contract = contract;
            }
            let block = if pin == 0 { Some(&self.pin) } else { self.also.get(pin - 1) };
            if let Some(block) = block.copied().filter(|b| b.number != number) {
                let refuted = conversation.refute(block, number);
                if pin == 0 {
                    return self.next_candidate(conversation, refuted);
                }
                // Wrong for every candidate.
                return Step::Done(Err(refuted));
            }
        }
        let mut decided = decided.into_iter();
        for call in self.asked.drain(..) {
            if let Some(of_pin) = self.decided.get_mut(call.pin) {
                of_pin.decisions.extend(decided.by_ref().take(call.pairs.len()));
            }
        }
        self.next_batch(conversation)
    }
}

/// The chain's decision about one pair; no decision where the answer could not be read.
#[derive(Clone, Copy, Debug)]
pub struct PairDecision {
    /// At the newest block.
    pub newest: (BlockRef, Option<Decision>),
    /// At the newest final block; `None` with `finality = "latest"`, or if no block is final yet.
    pub last_final: Option<(BlockRef, Option<Decision>)>,
    /// Why the contract could not be read at the newest block.
    pub unreadable: Option<Malformed>,
}

#[derive(Debug)]
enum PairStep {
    Position(Box<FindPosition>),
    Newest,
    Verify(Box<Verify>),
}

/// Verifies one pair without a cursor.
#[derive(Debug)]
pub struct DecidePair {
    pair: Pair,
    step: PairStep,
    pins: Vec<BlockRef>,
    last_final: Option<BlockRef>,
}

impl DecidePair {
    /// A procedure for `pair`.
    pub fn new(pair: Pair) -> Self {
        let step = PairStep::Position(Box::new(FindPosition::new(ChainCursor::default(), false)));
        Self { pair, step, pins: Vec::new(), last_final: None }
    }

    fn decided(&self, outcome: Step<Verified>) -> Step<PairDecision> {
        match outcome {
            Step::Ask(next) => Step::Ask(next),
            Step::Done(Err(e)) => Step::Done(Err(e)),
            Step::Done(Ok(Verified { pin, decisions, unreadable })) => {
                let mut decided = decisions.into_iter().map(|d| d.into_iter().next().flatten());
                let newest = (pin, decided.next().flatten());
                let last_final = self.last_final.into_iter().zip(decided).next();
                Step::Done(Ok(PairDecision { newest, last_final, unreadable }))
            }
        }
    }
}

impl Procedure for DecidePair {
    type Output = PairDecision;

    fn begin(&mut self, conversation: &mut Conversation) -> Step<PairDecision> {
        let finals = conversation.config().finality != Finality::Latest;
        let mut find = FindPosition::new(ChainCursor::default(), finals);
        let step = find.begin(conversation);
        self.step = PairStep::Position(Box::new(find));
        match step {
            Step::Ask(next) => Step::Ask(next),
            Step::Done(Err(e)) => Step::Done(Err(e)),
            Step::Done(Ok(_)) => Step::ask(Question::Block(At::Latest)),
        }
    }

    fn answered(&mut self, conversation: &mut Conversation, outcome: Answered) -> Step<PairDecision> {
        match &mut self.step {
            PairStep::Position(find) => match find.answered(conversation, outcome) {
                Step::Ask(next) => Step::Ask(next),
                Step::Done(Err(e)) => Step::Done(Err(e)),
                Step::Done(Ok(position)) => {
                    self.pins = position.pins;
                    self.last_final = position.finals.first().copied();
                    // The newest block itself instead of the one below: the caller does not wait for the next block.
                    self.step = PairStep::Newest;
                    Step::ask(Question::Block(At::Latest))
                }
            },
            PairStep::Newest => {
                match outcome.0 {
                    Ok(agreement) => self.pins.splice(..0, block(agreement.agreed)).for_each(drop),
                    Err(e) => return Step::Done(Err(e)),
                }
                let pairs = Arc::from([self.pair.clone()]);
                let also = self.last_final.into_iter().collect();
                let mut verify = Verify::new(std::mem::take(&mut self.pins), also, pairs);
                let step = verify.begin(conversation);
                self.step = PairStep::Verify(Box::new(verify));
                self.decided(step)
            }
            PairStep::Verify(verify) => {
                let step = verify.answered(conversation, outcome);
                self.decided(step)
            }
        }
    }
}

//! Sequences of exchanges with one result: the position of the chain, a block.
use super::cursor::{ChainCursor, Continuity};
use super::events::{Confirmed, Reported, confirmed};
use super::exchange::{Agreement, Conversation, NoQuorum, Outcome};
use super::fault::EndpointFault;
use super::jsonrpc::{At, BlockRef, GrantEvent};
use super::question::{Finding, Question, View, common_head, lags};
use spoke_config::grants::MAX_ENDPOINTS;
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
                _ => None,
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
            _ => None,
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
        _ => None,
    }
}

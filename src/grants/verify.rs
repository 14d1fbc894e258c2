//! Decisions about pairs at a block, by calls of the contract or by proofs of its storage.
use super::abi::{ContractProbe, Malformed};
use super::cursor::ChainCursor;
use super::exchange::{Conversation, NoQuorum};
use super::fault::EndpointFault;
use super::jsonrpc::{At, BlockRef};
use super::policy::{Decision, Pair};
use super::procedure::{Answered, FindPosition, Procedure, Step, block};
use super::proof::{PAIRS_AT_ONCE, Proving};
use super::question::{Finding, PinState, PinnedCall, Question, pinned_calls};
use alloy_primitives::B256;
use spoke_config::grants::Finality;
use spoke_config::layout::Verification;
use std::ops::Range;
use std::sync::Arc;

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
    /// The storage is not what the functions return.
    other_layout: bool,
    decisions: Vec<Result<Decision, Malformed>>,
}

impl AtPin {
    /// Why these answers are none: there is no contract, or it answers as one that never held a token. A record that
    /// names its node proves the contract.
    fn unreadable(&self) -> Option<Malformed> {
        if !self.contract.exists {
            return Some(Malformed::NoContract);
        }
        if self.other_layout {
            return Some(Malformed::OtherLayout);
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
///
/// ```text
///  calls:  Decisions ─► Decisions … ─► done
///  proof:  Pins: a quorum has the blocks ─► Proofs of one chunk of pairs, in up to three steps ─► next chunk … ─► done
///                                              └─► Facts: a quorum's answers to the same, until they showed the layout right
/// ```
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
    /// With `verify = "proof"`.
    proving: Option<Proving>,
    /// The chunk of pairs that is proved.
    chunk: Range<usize>,
    /// The chunk's storage was compared with the contract's answers.
    compared: bool,
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
            proving: None,
            chunk: 0..0,
            compared: false,
        }
    }

    fn next_candidate(&mut self, conversation: &mut Conversation, last: NoQuorum) -> Step<Verified> {
        let Some(pin) = self.candidates.next() else { return Step::Done(Err(last)) };
        self.pin = pin;
        let pins: Vec<BlockRef> = std::iter::once(pin).chain(self.also.iter().copied()).collect();
        if conversation.config().verify == Verification::Proof {
            self.decided = vec![AtPin::default(); pins.len()];
            self.proving = Some(Proving::new(&pins));
            (self.chunk, self.compared) = (0..0, false);
            return Step::ask(Question::Pins(pins.into_iter().enumerate().collect()));
        }
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
            return self.done();
        }
        calls.reverse();
        self.asked.clone_from(&calls);
        Step::ask(Question::Decisions { calls, pairs: self.pairs.clone() })
    }

    fn done(&mut self) -> Step<Verified> {
        let decided = std::mem::take(&mut self.decided);
        let unreadable = decided.first().and_then(AtPin::unreadable);
        let decisions = decided.into_iter().map(AtPin::decisions).collect();
        Step::Done(Ok(Verified { pin: self.pin, decisions, unreadable }))
    }

    /// Requests what the chunk still needs, or decides about it and goes on with the next.
    fn next_proofs(&mut self, conversation: &mut Conversation) -> Step<Verified> {
        let config = conversation.config().clone();
        let layout = &config.layout;
        let Some(proving) = &mut self.proving else { return self.done() };
        loop {
            let pairs = self.pairs.get(self.chunk.clone()).unwrap_or_default();
            if !pairs.is_empty() {
                let missing = proving.missing(layout, pairs);
                if !missing.is_empty() {
                    return Step::ask(Question::Proofs(missing));
                }
                let code = proving.code(0);
                if code.is_some() && code != conversation.layout_of && !self.compared {
                    let call = PinnedCall { pin: 0, block: self.pin, pairs: self.chunk.clone() };
                    return Step::ask(Question::Facts { call, pairs: self.pairs.clone() });
                }
                for (pin, at) in self.decided.iter_mut().enumerate() {
                    at.contract.exists = proving.code(pin).is_some();
                    at.decisions.extend(proving.decisions(layout, pin, pairs));
                }
                proving.forget_words();
            }
            self.compared = false;
            let from = self.chunk.end;
            let to = from.saturating_add(conversation.nodes_per_call().min(PAIRS_AT_ONCE)).min(self.pairs.len());
            self.chunk = from..to;
            if self.chunk.is_empty() {
                return self.done();
            }
        }
    }

    /// Compares the chunk's storage with what a quorum returns about it.
    fn compare(&mut self, conversation: &mut Conversation, answered: &[B256]) -> Step<Verified> {
        let layout = &conversation.config().layout;
        let pairs = self.pairs.get(self.chunk.clone()).unwrap_or_default();
        let grants = self.proving.as_ref().map(|p| p.grants(layout, 0, pairs)).unwrap_or_default();
        let stored: Vec<Option<B256>> = grants.iter().map(|g| g.as_ref().map(|g| g.facts().fingerprint())).collect();
        if !stored.iter().copied().eq(answered.iter().map(|f| Some(*f))) {
            self.decided.iter_mut().for_each(|at| at.other_layout = true);
            return self.done();
        }
        if grants.iter().flatten().any(super::storage::StoredGrant::proves_layout) {
            conversation.layout_of = self.proving.as_ref().and_then(|p| p.code(0));
        }
        self.compared = true;
        self.next_proofs(conversation)
    }

    /// An endpoint reported `block` with another height than `number`, which a quorum or its header has.
    fn refuted(&mut self, conversation: &mut Conversation, block: BlockRef, number: u64) -> Step<Verified> {
        let refuted = conversation.refute(block, number);
        if block == self.pin {
            return self.next_candidate(conversation, refuted);
        }
        // Wrong for every candidate.
        Step::Done(Err(refuted))
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
            Finding::Proved(proved) => {
                let learnt = self.proving.as_mut().map_or(Ok(()), |p| p.learn(proved));
                return match learnt {
                    Ok(()) => self.next_proofs(conversation),
                    Err((block, number)) => self.refuted(conversation, block, number),
                };
            }
            Finding::Facts(answered) => return self.compare(conversation, &answered),
            Finding::Position(_) | Finding::Logs(_) | Finding::Block(_) => (Vec::new(), Vec::new()),
        };
        for PinState { pin, number, contract } in pins {
            if let Some(at) = self.decided.get_mut(pin) {
                at.contract = contract;
            }
            let block = if pin == 0 { Some(&self.pin) } else { self.also.get(pin - 1) };
            if let Some(block) = block.copied().filter(|b| b.number != number) {
                return self.refuted(conversation, block, number);
            }
        }
        if self.proving.is_some() {
            return self.next_proofs(conversation);
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

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

//! One poll of the chain, from the position to the last verification. An error changes no decision.
use super::{
    Action, Actions, ChainWatcher, Deadline, DeadlineReason, FAILED_POLLS, PollFailure, RETRY, State, Transition, push,
};
use crate::abi::{Malformed, NODES_PER_CALL};
use crate::admission::DecisionChange;
use crate::cache::{Settled, Ticket};
use crate::cursor::{ChainCursor, Continuity};
use crate::events::{Confirmed, Reported, confirmed};
use crate::exchange::{NoQuorum, Outcome};
use crate::fault::EndpointFault;
use crate::jsonrpc::{At, BlockRef, GrantEvent, Subject};
use crate::policy::Pair;
use crate::procedure::{Answered, FindPosition, Position, Procedure, Step, block, too_much};
use crate::question::{Finding, Question};
use crate::report::Unreachable;
use crate::verify::{Verified, Verify};
use spoke_config::grants::Finality;
use spoke_model::time::Boot;
use std::sync::Arc;
use std::time::Duration;

/// No honest endpoint is this many blocks behind an earlier quorum.
const MAX_BEHIND: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Round {
    finals: bool,
    position: Position,
    step: RoundStep,
}

#[derive(Debug)]
enum RoundStep {
    Position {
        find: Box<FindPosition>,
        after_reorganisation: bool,
    },
    /// Whether the newest block of `cursor` is part of the chain.
    Fork {
        cursor: Box<ChainCursor>,
    },
    Newest,
    /// The chain's first block, at the end of a poll.
    First,
    Logs {
        to: u64,
    },
    Granted {
        verify: Verify,
        begun: Vec<(Pair, Ticket)>,
        more_logs: bool,
    },
    Pending(Pending),
}

/// Verification of pairs without a grant, at the newest block and at the first final block that a quorum knows.
#[derive(Debug)]
struct Pending {
    verify: Verify,
    begun: Vec<(Pair, Ticket)>,
    finals: std::vec::IntoIter<Option<BlockRef>>,
    /// The last pair of the previous poll.
    after: Option<Pair>,
}

enum Then {
    Ask(Box<Round>, Question),
    End(Result<(), PollFailure>),
}

fn ask(finals: bool, position: Position, step: RoundStep, question: Question) -> Then {
    Then::Ask(Box::new(Round { finals, position, step }), question)
}

impl ChainWatcher {
    pub(super) fn begin_poll(&mut self, now: Boot, out: &mut Actions) {
        self.counts.polls += 1;
        self.cursor.begin_poll(now);
        let finals = self.table.needs_final(now);
        let then = self.find_position(finals, false);
        self.run_steps(now, then, out);
        self.publish(now, out);
    }

    pub(super) fn advance(&mut self, now: Boot, outcome: Outcome, out: &mut Actions) {
        match std::mem::replace(&mut self.state, State::Starting) {
            State::Polling(round) => {
                let then = self.step(now, *round, outcome, out);
                self.run_steps(now, then, out);
            }
            other @ (State::Starting | State::Waiting(_)) => self.state = other,
        }
    }

    fn run_steps(&mut self, now: Boot, mut then: Then, out: &mut Actions) {
        loop {
            match then {
                Then::Ask(round, question) => {
                    let Some(outcome) = self.ask(now, question) else {
                        self.state = State::Polling(round);
                        return;
                    };
                    then = self.step(now, *round, outcome, out);
                }
                Then::End(result) => return self.end_poll(now, result, out),
            }
        }
    }

    fn step(&mut self, now: Boot, round: Round, outcome: Outcome, out: &mut Actions) -> Then {
        let Round { finals, position, step } = round;
        match step {
            RoundStep::Position { mut find, after_reorganisation } => {
                match find.answered(&mut self.conversation, Answered(outcome)) {
                    Step::Ask(next) => {
                        ask(finals, position, RoundStep::Position { find, after_reorganisation }, next.0)
                    }
                    Step::Done(Ok(found)) if found.continuity == Continuity::Reorganised && !after_reorganisation => {
                        self.step_back(now, finals, Box::new(self.cursor.clone()), out)
                    }
                    Step::Done(Ok(found)) => {
                        self.head = Some(found.head);
                        if finals {
                            self.no_finals = found.no_finals;
                        }
                        self.table.forget_heights_above(found.head.saturating_add(MAX_BEHIND), now);
                        if found.pins.is_empty() {
                            // The first block of a chain has no parent.
                            return ask(finals, found, RoundStep::Newest, Question::Block(At::Latest));
                        }
                        self.follow(now, finals, found, out)
                    }
                    Step::Done(Err(e)) => Then::End(Err(e.into())),
                }
            }
            RoundStep::Fork { cursor } => match outcome.map(|agreement| block(agreement.agreed)) {
                Ok(found) if found == cursor.newest() => self.reorganised(now, finals, cursor, out),
                Ok(_) => self.step_back(now, finals, cursor, out),
                Err(e) => Then::End(Err(e.into())),
            },
            RoundStep::Newest => match outcome {
                Ok(agreement) => {
                    let pins = block(agreement.agreed).into_iter().collect();
                    self.follow(now, finals, Position { pins, ..position }, out)
                }
                Err(e) => Then::End(Err(e.into())),
            },
            RoundStep::First => {
                if let Some(first) = outcome.ok().and_then(|agreement| block(agreement.agreed)) {
                    self.cursor.set_first(first.hash);
                }
                Then::End(Ok(()))
            }
            RoundStep::Logs { to } => self.logs_read(now, finals, position, to, outcome, out),
            RoundStep::Granted { mut verify, begun, more_logs } => {
                let step = verify.answered(&mut self.conversation, Answered(outcome));
                self.granted(
                    now,
                    Round { finals, position, step: RoundStep::Newest },
                    (verify, begun, more_logs),
                    step,
                    out,
                )
            }
            RoundStep::Pending(mut pending) => {
                let step = pending.verify.answered(&mut self.conversation, Answered(outcome));
                self.pending(now, finals, position, pending, step, out)
            }
        }
    }

    fn find_position(&mut self, finals: bool, after_reorganisation: bool) -> Then {
        let mut find = Box::new(FindPosition::new(self.cursor.clone(), finals));
        match find.begin(&mut self.conversation) {
            Step::Ask(next) => {
                ask(finals, Position::default(), RoundStep::Position { find, after_reorganisation }, next.0)
            }
            Step::Done(result) => Then::End(result.map(drop).map_err(PollFailure::from)),
        }
    }

    /// Searches the newest known block that is part of the chain, on a copy of the cursor: without an answer the cursor
    /// is unchanged, and the next poll repeats the search.
    fn step_back(&mut self, now: Boot, finals: bool, mut cursor: Box<ChainCursor>, out: &mut Actions) -> Then {
        let more = cursor.step_back();
        match cursor.newest().filter(|_| more) {
            Some(known) => {
                let question = Question::Block(At::Number(known.number));
                ask(finals, Position::default(), RoundStep::Fork { cursor }, question)
            }
            None => self.reorganised(now, finals, cursor, out),
        }
    }

    fn reorganised(&mut self, now: Boot, finals: bool, cursor: Box<ChainCursor>, out: &mut Actions) -> Then {
        let from = self.cursor.newest().map(|b| b.number);
        let to = cursor.newest().map_or(0, |b| b.number);
        push(out, Action::Report(Transition::Reorganised { from, to }));
        // Without a known block start as on the first start.
        self.cursor = if cursor.newest().is_none() { ChainCursor::default() } else { *cursor };
        self.counts.reorganisations += 1;
        self.table.reorganised(to, now);
        self.find_position(finals, true)
    }

    /// Reads every event up to the head. The pairs they concern are in doubt from then on, so each event is read once.
    fn follow(&mut self, now: Boot, finals: bool, mut position: Position, out: &mut Actions) -> Then {
        let start = position.anchor.or_else(|| position.pins.last().copied());
        if let (true, Some(start)) = (self.cursor.costly_gap(position.head), start) {
            // First start, or a long outage. The position is asked again, with the events since then: the newest block
            // may hold a revocation.
            self.table.refresh(now);
            self.cursor.restart(start);
            self.conversation.near_head = true;
            return self.find_position(finals, true);
        }
        let events = std::mem::take(&mut position.events);
        self.note(now, &events, &position);
        self.read_logs(now, finals, position, out)
    }

    /// Applies events. Those that concern every grant are applied a few times a day, the newest of those held back.
    fn note(&mut self, now: Boot, events: &[GrantEvent], position: &Position) {
        if events.iter().any(|e| Some(e.block.number) > self.cursor.scanned()) {
            self.wakes.found();
        }
        let (anyone, mut events): (Vec<_>, Vec<_>) = events.iter().cloned().partition(|e| e.subject == Subject::Anyone);
        events.extend(self.sweeps.take(now, anyone));
        self.table.note(&events, position.common(), now);
    }

    /// Requests the next chunk of events, if any are left.
    fn read_logs(&mut self, now: Boot, finals: bool, position: Position, out: &mut Actions) -> Then {
        let left = !position.complete && self.cursor.gap(position.head) > 0;
        if let Some((from, to)) = self.cursor.next(position.head).filter(|_| left) {
            return ask(finals, position, RoundStep::Logs { to }, Question::Logs { from, to });
        }
        self.cursor.read_to(position.head);
        if let Some(anchor) = position.anchor {
            self.cursor.anchor(anchor);
        }
        self.verify_granted(now, finals, position, false, out)
    }

    fn logs_read(
        &mut self,
        now: Boot,
        finals: bool,
        position: Position,
        to: u64,
        outcome: Outcome,
        out: &mut Actions,
    ) -> Then {
        let agreement = match outcome {
            Ok(agreement) => agreement,
            Err(e) if too_much(&e) && self.cursor.too_much(now) => {
                // Not the endpoint's fault.
                self.conversation.endpoints.pardon();
                return self.read_logs(now, finals, position, out);
            }
            Err(e) => return Then::End(Err(e.into())),
        };
        self.conversation.near_head = to == position.head;
        let report = |(endpoint, f)| Reported { endpoint, head: u64::MAX, events: events_of(f) };
        let reports = agreement.all.into_iter().map(report).collect();
        let Confirmed { events, refuted } = confirmed(reports, position.head, self.config.quorum);
        for i in refuted {
            self.conversation.contradicted(i, &EndpointFault::FalseEvents);
        }
        self.note(now, &events, &position);
        self.cursor.read_to(to);
        // Reading many chunks takes long: a revocation must not wait for the last one.
        if to < position.head && !events.is_empty() {
            return self.verify_granted(now, finals, position, true, out);
        }
        self.read_logs(now, finals, position, out)
    }

    /// Verifies grants in doubt at the newest block.
    fn verify_granted(
        &mut self,
        now: Boot,
        finals: bool,
        position: Position,
        more_logs: bool,
        out: &mut Actions,
    ) -> Then {
        let mut doubted = self.table.doubted(now);
        if self.probe_contract {
            // With one grant that is not in doubt: a token that cannot be read is no fault of the contract.
            doubted.truncate(NODES_PER_CALL - 1);
            doubted.extend(self.table.undoubted_grant(now));
        }
        let begun = self.table.begin(doubted);
        if begun.is_empty() {
            return self.granted_verified(now, finals, position, more_logs, out);
        }
        let pairs: Arc<[Pair]> = begun.iter().map(|(p, _)| p.clone()).collect();
        let mut verify = Verify::new(position.pins.clone(), Vec::new(), pairs);
        let step = verify.begin(&mut self.conversation);
        self.granted(now, Round { finals, position, step: RoundStep::Newest }, (verify, begun, more_logs), step, out)
    }

    fn granted(
        &mut self,
        now: Boot,
        round: Round,
        (verify, begun, more_logs): (Verify, Vec<(Pair, Ticket)>, bool),
        step: Step<Verified>,
        out: &mut Actions,
    ) -> Then {
        let Round { finals, position, .. } = round;
        let Verified { pin, mut decisions, unreadable } = match step {
            Step::Ask(next) => {
                return ask(finals, position, RoundStep::Granted { verify, begun, more_logs }, next.0);
            }
            Step::Done(Err(e)) => {
                self.counts.verification_errors += begun.len() as u64;
                self.table.abandon(begun);
                return Then::End(Err(e.into()));
            }
            Step::Done(Ok(verified)) => verified,
        };
        if let Some(reason) = unreadable {
            return self.contract_unreadable(now, begun, reason);
        }
        let mut changes = Vec::new();
        for (begun, decision) in begun.into_iter().zip(decisions.swap_remove(0)) {
            self.counts.verification_errors += u64::from(decision.is_none());
            changes.extend(self.table.settle_newest(begun, decision, pin.number, now));
        }
        let revoked = changes.iter().any(|c| c.settled == Settled::Revoked);
        self.decided(changes, out);
        if pin.number <= self.cursor.scanned().unwrap_or(0) {
            self.cursor.anchor(pin);
        }
        if revoked {
            self.publish(now, out);
            self.store(now, out);
        }
        if std::mem::take(&mut self.probe_contract) {
            return self.verify_granted(now, finals, position, more_logs, out);
        }
        self.granted_verified(now, finals, position, more_logs, out)
    }

    /// Ends a poll that decided nothing about `begun`. Every grant is verified before the ladder is confirmed again.
    fn contract_unreadable(&mut self, now: Boot, begun: Vec<(Pair, Ticket)>, reason: Malformed) -> Then {
        self.counts.verification_errors += begun.len() as u64;
        self.table.abandon(begun);
        self.table.doubt_grants(now);
        self.probe_contract = true;
        Then::End(Err(PollFailure::ContractUnreadable { contract: self.config.contract, reason }))
    }

    fn granted_verified(
        &mut self,
        now: Boot,
        finals: bool,
        position: Position,
        more_logs: bool,
        out: &mut Actions,
    ) -> Then {
        if more_logs {
            return self.read_logs(now, finals, position, out);
        }
        // Every grant matches the chain, whatever the result for the pending pairs.
        self.table.confirm(now);
        let latest = self.config.finality == Finality::Latest;
        let finals_to_try: Vec<Option<BlockRef>> = if latest || position.finals.is_empty() {
            vec![None]
        } else {
            position.finals.iter().copied().map(Some).collect()
        };
        let after = self.asked.take();
        self.verify_pending(now, finals, position, finals_to_try.into_iter(), after, Ok(()), out)
    }

    /// Verifies pairs without a grant at the newest block and at the next of `blocks`. At most one batch per poll, so
    /// that a revocation does not wait for a thousand candidates.
    #[expect(clippy::too_many_arguments, reason = "the state of one step of the poll")]
    fn verify_pending(
        &mut self,
        now: Boot,
        finals: bool,
        position: Position,
        mut blocks: std::vec::IntoIter<Option<BlockRef>>,
        after: Option<Pair>,
        last: Result<(), NoQuorum>,
        out: &mut Actions,
    ) -> Then {
        let Some(last_final) = blocks.next() else {
            self.asked = None;
            return Then::End(last.map_err(PollFailure::from));
        };
        let mut waiting = self.table.waiting(now, last_final.map(|b| b.number));
        // Continue after the last pair of the previous poll, so that an unreadable answer does not delay the others.
        waiting.retain(|pair| after.as_ref().is_none_or(|last| pair > last));
        let pins = 1 + usize::from(last_final.is_some());
        let most = self.config.batch.saturating_sub(pins).max(1).saturating_mul(NODES_PER_CALL);
        let rest = waiting.len() > most;
        waiting.truncate(most);
        let begun = self.table.begin(waiting);
        let Some((newest, _)) = begun.last() else {
            if self.cursor.first().is_none() && !std::mem::replace(&mut self.asked_first, true) {
                return ask(finals, position, RoundStep::First, Question::Block(At::Number(0)));
            }
            return Then::End(Ok(()));
        };
        self.asked = rest.then(|| newest.clone());
        let pairs: Arc<[Pair]> = begun.iter().map(|(p, _)| p.clone()).collect();
        let mut verify = Verify::new(position.pins.clone(), last_final.into_iter().collect(), pairs);
        let step = verify.begin(&mut self.conversation);
        self.pending(now, finals, position, Pending { verify, begun, finals: blocks, after }, step, out)
    }

    fn pending(
        &mut self,
        now: Boot,
        finals: bool,
        position: Position,
        pending: Pending,
        step: Step<Verified>,
        out: &mut Actions,
    ) -> Then {
        match step {
            Step::Ask(next) => ask(finals, position, RoundStep::Pending(pending), next.0),
            Step::Done(Ok(Verified { unreadable: Some(reason), .. })) => {
                self.contract_unreadable(now, pending.begun, reason)
            }
            Step::Done(Ok(Verified { pin, decisions, unreadable: None })) => {
                let mut decided = decisions.into_iter();
                let newest = decided.next().unwrap_or_default();
                let latest = self.config.finality == Finality::Latest;
                let last = if latest { newest.clone() } else { decided.next().unwrap_or_default() };
                let mut last = last.into_iter();
                let mut changes = Vec::new();
                for (begun, newest) in pending.begun.into_iter().zip(newest) {
                    self.counts.verification_errors += u64::from(newest.is_none());
                    changes.extend(self.table.settle_final(begun, newest, last.next().flatten(), pin.number, now));
                }
                self.decided(changes, out);
                Then::End(Ok(()))
            }
            Step::Done(Err(e)) => {
                self.counts.verification_errors += pending.begun.len() as u64;
                self.table.abandon(pending.begun);
                self.verify_pending(now, finals, position, pending.finals, pending.after, Err(e), out)
            }
        }
    }

    fn decided(&mut self, changes: Vec<DecisionChange>, out: &mut Actions) {
        for change in &changes {
            self.counts.decided(change.decision.reason, change.settled);
        }
        if !changes.is_empty() {
            push(out, Action::Report(Transition::Decided(changes)));
        }
    }

    fn end_poll(&mut self, now: Boot, result: Result<(), PollFailure>, out: &mut Actions) {
        let poll = self.config.poll;
        let until = match result {
            Ok(()) => {
                if let Some(before) = self.unreachable.take() {
                    push(out, Action::Report(Transition::Reachable { after: now.since(before.since) }));
                }
                self.last_quorum = Some(now);
                // Jitter of a tenth of the interval, so that a fleet does not poll in step.
                let tenth = u64::try_from(poll.as_millis() / 10).unwrap_or(u64::MAX).max(1);
                let pause = poll.mul_f64(0.95) + Duration::from_millis(self.rng.next_u64() % tenth);
                // The remaining pending pairs are verified at once, after new events.
                let at = if self.asked.is_some() { now } else { now + pause };
                Deadline { at, reason: DeadlineReason::Poll }
            }
            Err(reason) => {
                self.counts.failed_polls += 1;
                let contract = matches!(reason, PollFailure::ContractUnreadable { .. });
                let before = Unreachable { since: now, reason: String::new(), failed_polls: 0, contract };
                let unreachable = self.unreachable.get_or_insert(before);
                unreachable.failed_polls += 1;
                unreachable.reason = reason.to_string();
                let failed_polls = unreachable.failed_polls;
                let other_cause = std::mem::replace(&mut unreachable.contract, contract) != contract;
                if failed_polls == FAILED_POLLS || failed_polls > FAILED_POLLS && other_cause && contract {
                    let phase = self.table.ladder.phase(now);
                    let transition = match reason {
                        PollFailure::NoQuorum(reason) => Transition::Unreachable { phase, reason },
                        PollFailure::ContractUnreadable { reason, .. } => {
                            Transition::ContractUnreadable { phase, reason }
                        }
                    };
                    push(out, Action::Report(transition));
                }
                let retry = RETRY.saturating_mul(failed_polls).min(poll.max(RETRY));
                let allowed = self.conversation.endpoints.next(self.config.quorum);
                let at = (now + retry).max(allowed.unwrap_or(now));
                Deadline { at, reason: DeadlineReason::Retry }
            }
        };
        self.state = State::Waiting(until);
        self.bring_forward(now);
        self.condition = self.find_condition(now);
        self.publish(now, out);
        self.store(now, out);
    }
}

fn events_of(finding: Finding) -> Vec<GrantEvent> {
    match finding {
        Finding::Logs(events) => events,
        _ => Vec::new(),
    }
}

//! The reports and documents of the machine.
use super::{Action, Actions, ChainWatcher, DecisionsWrite, FAILED_POLLS, State, Transition, WRITE_TIMEOUT, push};
use crate::ladder::Phase;
use crate::ledger::{StoreError, StoredGrants};
use crate::report::{Counts, Report, rows};
use spoke_model::condition::{Code, Condition};
use spoke_model::time::Boot;
use std::sync::Arc;

impl ChainWatcher {
    pub(super) fn publish(&mut self, now: Boot, out: &mut Actions) {
        let admitted = self.table.admitted(now);
        if self.last_quorum.is_some() && self.asked.is_none() {
            self.hold = None;
        }
        if self.hold.is_none_or(|until| now >= until) && self.admitted.as_deref() != Some(&admitted) {
            self.admitted = Some(Arc::new(admitted));
        }
        if !out.contains(&Action::Publish) {
            push(out, Action::Publish);
        }
    }

    /// Stores the cursor, and the decisions if they changed. The next question waits for the writes.
    pub(super) fn store(&mut self, now: Boot, out: &mut Actions) {
        if self.writes.cursor || self.writes.decisions.is_some() {
            self.writes.again = true;
            return;
        }
        self.writes.cursor = true;
        self.writes.hold_until = Some(now + WRITE_TIMEOUT);
        push(out, Action::StoreCursor(Box::new(self.cursor.clone())));
        let boot_id = self.boot_id.as_deref();
        let reserve = self.table.ladder.to_reserve(now, boot_id);
        let same = reserve.is_none() && self.stored_edition == self.table.edition && !self.table.must_keep_doubts(now);
        if same {
            return;
        }
        let reserve = reserve.or_else(|| self.table.ladder.record(now, boot_id));
        let stored = StoredGrants {
            origin: self.origin(),
            follow: self.cursor.clone(),
            reserve: reserve.clone(),
            grants: self.table.kept(now),
        };
        self.writes.decisions = Some(DecisionsWrite { edition: self.table.edition, reserve });
        let revokes = self.table.revoked_edition > self.stored_edition;
        push(out, Action::StoreDecisions { stored: Box::new(stored), revokes });
    }

    pub(super) fn cursor_stored(&mut self, now: Boot, result: Result<(), StoreError>, out: &mut Actions) {
        self.writes.cursor = false;
        if let Err(e) = result {
            push(out, Action::Report(Transition::CursorNotStored(e)));
        }
        self.write_ended(now, out);
    }

    pub(super) fn decisions_stored(&mut self, now: Boot, result: Result<bool, StoreError>, out: &mut Actions) {
        if let Some(write) = self.writes.decisions.take() {
            match result {
                Ok(written) => {
                    self.counts.writes += u64::from(written);
                    self.stored_edition = write.edition;
                    self.table.stored(write.edition, now);
                    if let Some(reserve) = &write.reserve {
                        self.table.ladder.reserved(reserve);
                    }
                }
                Err(e) => push(out, Action::Report(Transition::DecisionsNotStored(e))),
            }
        }
        self.write_ended(now, out);
    }

    fn write_ended(&mut self, now: Boot, out: &mut Actions) {
        if self.writes.cursor || self.writes.decisions.is_some() {
            return;
        }
        self.writes.hold_until = None;
        if std::mem::take(&mut self.writes.again) {
            self.store(now, out);
        } else {
            self.ask_deferred(now, out);
        }
    }

    /// The current report. The driver sets the wall clock time.
    pub fn report(&self, now: Boot) -> Report {
        let phase = self.table.ladder.phase(now);
        let cache = self.table.cache();
        let traffic = self.conversation.traffic;
        let counts = Counts {
            requests: traffic.requests,
            failed_requests: traffic.failures,
            bytes: traffic.bytes,
            verifications: traffic.verifications,
            cache_size: cache.len() as u64,
            cache_max: cache.max() as u64,
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            ..self.counts
        };
        let rows = rows(&self.table, phase, now);
        Report {
            at: now,
            phase,
            last_quorum: self.last_quorum,
            last_quorum_wall: None,
            subscription: None,
            height: self.cursor.scanned(),
            head: self.head,
            verify: self.config.verify,
            admitted: rows.iter().filter(|r| r.admitted).count(),
            polling: matches!(self.state, State::Polling(_)),
            unreachable: self.unreachable.clone().filter(|u| u.failed_polls >= FAILED_POLLS || phase != Phase::Fresh),
            condition: self.condition.clone(),
            counts,
            endpoints: self.conversation.rows(),
            rows,
        }
    }

    /// The local condition that restricts verification.
    pub(super) fn find_condition(&self, now: Boot) -> Option<Condition> {
        let wrong = self.conversation.on_other_chains().map(|(name, chain)| format!("{name} is on chain {chain}"));
        let wrong: Vec<String> = wrong.collect();
        let detail = if !wrong.is_empty() {
            let chain_id = self.config.chain_id;
            format!("{}: correct grants.endpoints or grants.chain_id ({chain_id})", wrong.join(", "))
        } else if let Some(first) = &self.table.first_left_out {
            let (most, more) = (self.table.cache().max(), self.table.overflow);
            format!(
                "{more} candidates are beyond the {most} that fit and are not admitted: {first} and all that follow by name"
            )
        } else if let Some((name, claim)) = self.conversation.refuted(now).next() {
            format!(
                "{name} contradicts the quorum: {claim}: remove it from grants.endpoints or report it to its provider"
            )
        } else if self.no_finals {
            "too few endpoints know the block tag of grants.finality: no new peer is admitted; use other endpoints, or another finality".to_owned()
        } else {
            return None;
        };
        let since = self.condition.as_ref().filter(|c| c.detail == detail).map_or(now, |c| c.since);
        Some(Condition::new(Code::AccessControlDegraded, since, detail))
    }
}

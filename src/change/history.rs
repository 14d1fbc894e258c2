//! Generations: a base state and the changes after it.
//!
//! Only states that the kernel accepted are recorded. Current and previous generation follow from the stored lines alone, so
//! they are the same after a restart. Beside them stands the intent: peers of an unfinished change that the kernel may have
//! in part when the process is killed.
use super::audit::Actor;
use super::declared::Declared;
use super::record::{Deadline, GenerationRecord, HistoryLine, NewPeers, StateChange};
use spoke_model::time::Boot;
use spoke_net::api_state::ApiState;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// The API state and the generations that led to it.
#[derive(Clone, Debug)]
pub struct History {
    keep: usize,
    base: Arc<ApiState>,
    base_generation: u64,
    records: VecDeque<GenerationRecord>,
    state: Arc<ApiState>,
    pending: Option<Pending>,
    unfinished: NewPeers,
    /// Declared values at the base; `None`: not recorded yet.
    declared: Option<Declared>,
}

/// A generation that reverts unless confirmed before its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The generation.
    pub generation: u64,
    /// The generation it reverts to.
    pub back_to: u64,
    /// Deadline on the boot clock.
    pub deadline: Boot,
}

/// Lines that are not a history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHistory {
    /// The first line is not a base.
    #[error("the store does not begin with a base")]
    NoBase,
    /// A generation out of order.
    #[error("generation {found} follows {expected}")]
    Order {
        /// Generation expected.
        expected: u64,
        /// Generation found.
        found: u64,
    },
}

impl History {
    /// An empty history that keeps `keep` generations.
    pub fn new(keep: usize) -> Self {
        Self {
            keep: keep.max(1),
            base: Arc::default(),
            base_generation: 0,
            records: VecDeque::new(),
            state: Arc::default(),
            pending: None,
            unfinished: NewPeers::new(),
            declared: None,
        }
    }

    /// Replays the lines of a store. A pending confirmation of another boot is due at once.
    pub fn load(
        lines: impl IntoIterator<Item = HistoryLine>,
        keep: usize,
        boot_id: &str,
        now: Boot,
    ) -> Result<Self, BadHistory> {
        let mut out = Self::new(keep);
        let mut lines = lines.into_iter();
        match lines.next() {
            None => return Ok(out),
            Some(HistoryLine::Base { generation, change, declared }) => {
                out.declared = declared;
                let mut state = ApiState::default();
                change.apply(&mut state);
                out.base_generation = generation;
                out.base = Arc::new(state);
                out.state = out.base.clone();
            }
            Some(
                HistoryLine::Change(_)
                | HistoryLine::Confirmed { .. }
                | HistoryLine::Intent { .. }
                | HistoryLine::Abandoned,
            ) => {
                return Err(BadHistory::NoBase);
            }
        }
        for line in lines {
            match line {
                HistoryLine::Base { .. } => return Err(BadHistory::NoBase),
                HistoryLine::Confirmed { generation } => out.confirm(generation),
                HistoryLine::Intent { peers } => out.intend(peers),
                HistoryLine::Abandoned => out.abandon(),
                HistoryLine::Change(record) => {
                    let expected = out.current() + 1;
                    if record.generation != expected {
                        return Err(BadHistory::Order { expected, found: record.generation });
                    }
                    if !record.revision.is_empty() {
                        out.declare(record);
                        continue;
                    }
                    let due = record.confirm.as_ref().map(|d| if d.boot_id == boot_id { d.at } else { now });
                    let mut state = (*out.state).clone();
                    record.change.apply(&mut state);
                    out.commit(record, Arc::new(state), due);
                }
            }
        }
        Ok(out)
    }

    /// The current generation.
    pub fn current(&self) -> u64 {
        self.base_generation + self.records.len() as u64
    }

    /// The target of a rollback without a number: the API state before the API's last change that is in force. Generations
    /// of other sources do not count, and one that restored another counts as that one: several rollbacks go further back,
    /// and none of them leads to a change that was reverted for lack of a confirmation. `None` before the first change, or
    /// if it is not kept.
    pub fn previous(&self) -> Option<u64> {
        let before = |newest| self.records.iter().rfind(|r| r.revision.is_empty() && r.generation <= newest);
        let mut last = before(self.current())?;
        loop {
            let restored = match (last.restores, &last.actor) {
                (Some(restored), _) => Some(restored.min(last.generation - 1)),
                // Earlier versions have not recorded which one: that before the change without a confirmation.
                (None, Actor::TimeOut) => Some(before(last.generation - 1)?.generation - 1),
                (None, _) => None,
            };
            match restored {
                Some(restored) => last = before(restored)?,
                None => return Some(last.generation - 1),
            }
        }
    }

    /// The current API state.
    pub const fn state(&self) -> &Arc<ApiState> {
        &self.state
    }

    /// Records, oldest first. The oldest generation, the base, has none.
    pub fn records(&self) -> impl Iterator<Item = &GenerationRecord> {
        self.records.iter()
    }

    /// The oldest generation that a rollback can restore.
    pub const fn oldest(&self) -> u64 {
        self.base_generation
    }

    /// The API state of a generation.
    pub fn at(&self, generation: u64) -> Option<ApiState> {
        let steps = self.steps(generation)?;
        let mut state = (*self.base).clone();
        self.records.iter().take(steps).for_each(|r| r.change.apply(&mut state));
        Some(state)
    }

    /// The record that would make `to` the next generation.
    pub fn next(&self, to: &ApiState, mut record: GenerationRecord) -> GenerationRecord {
        record.generation = self.current() + 1;
        record.change = StateChange::between(&self.state, to);
        record
    }

    /// Adds the next generation, after the kernel accepted it and it was stored. `due`: deadline of its confirmation.
    pub fn commit(&mut self, record: GenerationRecord, state: Arc<ApiState>, due: Option<Boot>) {
        let back_to = self.current();
        self.pending = due.map(|deadline| Pending { generation: record.generation, back_to, deadline });
        self.records.push_back(record);
        self.state = state;
        self.unfinished.clear();
    }

    /// Adds a generation of another source. API state, pending confirmation and intent stay.
    pub fn declare(&mut self, record: GenerationRecord) {
        self.records.push_back(record);
    }

    /// Declared values of a generation; `None`: not kept, or not recorded.
    pub fn declared_at(&self, generation: u64) -> Option<Declared> {
        let steps = self.steps(generation)?;
        let mut declared = self.declared.clone()?;
        self.records.iter().take(steps).for_each(|r| declared.revise(&r.revision));
        Some(declared)
    }

    /// The actors whose declarations changed after a generation.
    pub fn declarers_since(&self, generation: u64) -> BTreeSet<&Actor> {
        let later = self.records.iter().filter(|r| r.generation > generation && !r.revision.is_empty());
        later.map(|r| &r.actor).collect()
    }

    /// Records the declared values of the base.
    pub fn begin(&mut self, declared: Declared) {
        self.declared = Some(declared);
    }

    /// Number of records that lead to a generation; `None`: not kept.
    fn steps(&self, generation: u64) -> Option<usize> {
        let steps = usize::try_from(generation.checked_sub(self.base_generation)?).ok()?;
        (steps <= self.records.len()).then_some(steps)
    }

    /// Records peers that a change is about to add to the kernel.
    pub fn intend(&mut self, peers: NewPeers) {
        for (link, keys) in peers {
            self.unfinished.entry(link).or_default().extend(keys);
        }
    }

    /// Clears the intent: none of its peers is in the kernel.
    pub fn abandon(&mut self) {
        self.unfinished.clear();
    }

    /// Peers of an unfinished change, which may be in the kernel although no generation has them.
    pub const fn unfinished(&self) -> &NewPeers {
        &self.unfinished
    }

    /// The generation that awaits its confirmation.
    pub const fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref()
    }

    /// Confirms a generation.
    pub fn confirm(&mut self, generation: u64) {
        self.pending = self.pending.take().filter(|p| p.generation != generation);
    }

    /// Whether at least `more` generations more than the limit are recorded.
    pub fn is_long_by(&self, more: usize) -> bool {
        self.records.len() >= self.keep + more
    }

    /// Drops the oldest generations above the limit.
    pub fn shorten(&mut self) {
        while self.records.len() > self.keep && self.drop_oldest() {}
    }

    /// Drops the oldest generation, unless it is the current or the previous one or the target of a pending reversion.
    /// Returns whether one was dropped.
    pub fn drop_oldest(&mut self) -> bool {
        let needed = self.pending.as_ref().is_some_and(|p| p.back_to == self.base_generation);
        if self.records.len() <= 1 || needed {
            return false;
        }
        if let Some(record) = self.records.pop_front() {
            record.change.apply(Arc::make_mut(&mut self.base));
            if let Some(declared) = &mut self.declared {
                declared.revise(&record.revision);
            }
            self.base_generation = record.generation;
        }
        true
    }

    /// The lines that [`History::load`] reads. Lazy: each may hold thousands of peers.
    pub fn lines(&self) -> impl Iterator<Item = HistoryLine> {
        let base = || HistoryLine::Base {
            generation: self.base_generation,
            change: StateChange::between(&ApiState::default(), &self.base),
            declared: self.declared.clone(),
        };
        let outstanding = self.pending.as_ref().map(|p| p.generation);
        let last = self.records.iter().rfind(|r| r.revision.is_empty());
        let confirmed = last.filter(|r| r.confirm.is_some() && outstanding != Some(r.generation));
        let intent = Some(&self.unfinished).filter(|peers| !peers.is_empty());
        std::iter::once_with(base)
            .chain(self.records.iter().cloned().map(HistoryLine::Change))
            .chain(confirmed.map(|r| HistoryLine::Confirmed { generation: r.generation }))
            .chain(intent.map(|peers| HistoryLine::Intent { peers: peers.clone() }))
    }
}

/// The stored form of a deadline on the boot clock.
pub fn deadline(boot_id: &str, at: Boot) -> Deadline {
    Deadline { boot_id: boot_id.to_owned(), at }
}

#[cfg(test)]
mod tests;

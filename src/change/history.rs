//! Generations and which of them is which: pure pointer arithmetic over a base and the changes after it.
//!
//! Only states the kernel has taken are in here. So the present generation is the last one, the previous one is the one
//! before it, and both are the same after a restart, because they follow from what is written down. Beside them stands what is
//! about to be: peers of a change that the kernel may have in part when the process is killed.
use super::declared::Declared;
use super::record::{Deadline, GenerationRecord, HistoryLine, NewPeers, StateChange};
use spoke_model::time::Boot;
use spoke_net::api_state::ApiState;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// What was set and how it came about.
#[derive(Clone, Debug)]
pub struct History {
    keep: usize,
    base: Arc<ApiState>,
    base_generation: u64,
    records: VecDeque<GenerationRecord>,
    state: Arc<ApiState>,
    pending: Option<Pending>,
    unfinished: NewPeers,
    /// What was declared at the base; `None`: nobody had looked yet.
    declared: Option<Declared>,
}

/// A generation that reverts by itself unless confirmed in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The generation.
    pub generation: u64,
    /// What it goes back to.
    pub back_to: u64,
    /// When.
    pub deadline: Boot,
}

/// A line that does not follow from those before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHistory {
    /// The first line is not a base.
    #[error("the store does not begin with a base")]
    NoBase,
    /// A generation out of order.
    #[error("generation {found} follows {expected}")]
    Order {
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
}

impl History {
    /// No change was made yet.
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

    /// Follows the lines of a store. A confirmation that is outstanding from another boot is due at once.
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

    /// The generation in force.
    pub fn current(&self) -> u64 {
        self.base_generation + self.records.len() as u64
    }

    /// Where a rollback leads that names no generation: what the API had set before its last change. Generations of others
    /// in between have the same of it. `None` before the first change, and where it is no longer kept.
    pub fn previous(&self) -> Option<u64> {
        let last = self.records.iter().rfind(|r| r.revision.is_empty());
        last.map(|r| r.generation - 1)
    }

    /// What is set.
    pub const fn state(&self) -> &Arc<ApiState> {
        &self.state
    }

    /// Generations whose content is known, oldest first, and how they came about; the oldest has no record of its own.
    pub fn records(&self) -> impl Iterator<Item = &GenerationRecord> {
        self.records.iter()
    }

    /// The oldest generation that can be gone back to.
    pub const fn oldest(&self) -> u64 {
        self.base_generation
    }

    /// The content of a generation.
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

    /// Takes the next generation, once the kernel has it and it is written down. `due` is when it reverts unconfirmed.
    pub fn commit(&mut self, record: GenerationRecord, state: Arc<ApiState>, due: Option<Boot>) {
        let back_to = self.current();
        self.pending = due.map(|deadline| Pending { generation: record.generation, back_to, deadline });
        self.records.push_back(record);
        self.state = state;
        self.unfinished.clear();
    }

    /// Takes a generation that somebody declared. What the API has set, what it awaits and what it left unfinished stay.
    pub fn declare(&mut self, record: GenerationRecord) {
        self.records.push_back(record);
    }

    /// What is declared in a generation; `None`: it is not kept, or nobody had looked yet.
    pub fn declared_at(&self, generation: u64) -> Option<Declared> {
        let steps = self.steps(generation)?;
        let mut declared = self.declared.clone()?;
        self.records.iter().take(steps).for_each(|r| declared.revise(&r.revision));
        Some(declared)
    }

    /// Who has declared something after a generation.
    pub fn declarers_since(&self, generation: u64) -> BTreeSet<&str> {
        let later = self.records.iter().filter(|r| r.generation > generation && !r.revision.is_empty());
        later.map(|r| r.actor.as_str()).collect()
    }

    /// Takes note of what is declared at the base, when it is looked at for the first time.
    pub fn begin(&mut self, declared: Declared) {
        self.declared = Some(declared);
    }

    /// How many records lead to a generation; `None`: it is not kept.
    fn steps(&self, generation: u64) -> Option<usize> {
        let steps = usize::try_from(generation.checked_sub(self.base_generation)?).ok()?;
        (steps <= self.records.len()).then_some(steps)
    }

    /// Takes note of peers that are about to come into the kernel.
    pub fn intend(&mut self, peers: NewPeers) {
        for (link, keys) in peers {
            self.unfinished.entry(link).or_default().extend(keys);
        }
    }

    /// Takes note that none of the peers that were about to come is in the kernel.
    pub fn abandon(&mut self) {
        self.unfinished.clear();
    }

    /// Peers that may be in the kernel although no generation has them: of a change that was not finished.
    pub const fn unfinished(&self) -> &NewPeers {
        &self.unfinished
    }

    /// The generation that waits for a confirmation.
    pub const fn pending(&self) -> Option<&Pending> {
        self.pending.as_ref()
    }

    /// Takes note of a confirmation.
    pub fn confirm(&mut self, generation: u64) {
        self.pending = self.pending.take().filter(|p| p.generation != generation);
    }

    /// Whether there are at least so many generations more than shall be kept.
    pub fn is_long_by(&self, more: usize) -> bool {
        self.records.len() >= self.keep + more
    }

    /// Forgets the oldest generations beyond those to be kept.
    pub fn shorten(&mut self) {
        while self.records.len() > self.keep && self.drop_oldest() {}
    }

    /// Forgets the oldest generation; never the present one or the one before it, nor one that an outstanding confirmation
    /// goes back to. Whether there was one to forget.
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

    /// The lines that [`History::load`] reads back, each made when it is asked for: each may hold thousands of peers.
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

/// The written deadline of a moment of this boot.
pub fn deadline(boot_id: &str, at: Boot) -> Deadline {
    Deadline { boot_id: boot_id.to_owned(), at }
}

#[cfg(test)]
mod tests;

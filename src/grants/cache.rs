//! The cached decisions: bounded, evicted by least recent use, found by a keyed hash, read without allocating.
//!
//! A verification that began before a change was seen cannot grant after it: every verification carries the generation
//! it began in, and the generation grows with each known change of its key.
use super::ladder::Doubt;
use super::policy::Decision;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::Boot;
use std::hash::BuildHasher;
use std::time::Duration;

/// Maximum number of decisions: as many as a node may have peers. Memory is allocated as they are added.
pub const CAPACITY: usize = 65_536;
const PAGE: usize = 128;
/// Buckets of an empty cache.
const BUCKETS: usize = 256;
/// No slot: an end of the LRU list, or an empty bucket.
const NONE: u32 = u32::MAX;

/// What is known about one node and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The last decision; `None`: never verified.
    pub decision: Option<Decision>,
    /// Height it holds for: no event up to this height changed it.
    pub block: u64,
    /// Time of the decision.
    pub at: Boot,
    /// Granted at the newest block, but held until this height is final.
    pub held_until: Option<u64>,
    /// Set while a change was seen and not verified.
    pub doubt: Option<Doubt>,
    /// Height of the newest change seen; a decision for an earlier block must be verified again.
    pub news: u64,
    /// Whether it was a peer when the grants were last published.
    pub peer: bool,
    /// The disk may hold a grant of it.
    pub(super) kept_grant: bool,
    /// Value of `AdmissionTable::events_read` when it ceased to be a candidate.
    pub(super) left: u64,
    /// Grows with every known change.
    pub(super) generation: u32,
    /// Generation in which the verification in progress began.
    pub(super) flight: Option<u32>,
}

impl Entry {
    /// Whether the last decision grants.
    pub fn grants(&self) -> bool {
        self.decision.is_some_and(|d| d.reason.grants())
    }

    /// Records a change at `height`; a verification in progress may not include it.
    pub(super) fn changed(&mut self, height: u64) {
        self.news = self.news.max(height);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether the decision is older than its TTL.
    pub fn due(&self, now: Boot, positive: Duration, negative: Duration) -> bool {
        let ttl = if self.grants() { positive } else { negative };
        self.decision.is_none() || now.since(self.at) >= ttl
    }
}

/// A verification in progress; required to settle it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "settle it or abandon it"]
pub struct Ticket {
    generation: u32,
}

/// The effect of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The peer is admitted.
    Granted,
    /// The peer is removed.
    Revoked,
    /// No change.
    Unchanged,
    /// Ignored: a change or a later block was seen meanwhile.
    Outdated,
}

#[derive(Debug)]
struct Slot {
    node: NodeId,
    key: PublicKey,
    entry: Entry,
    newer: u32,
    older: u32,
}

type Page = heapless::Vec<Slot, PAGE>;

/// The cache.
#[derive(Debug)]
pub struct Cache<S> {
    hasher: S,
    /// A slot never moves, so that adding one copies no others.
    pages: Vec<Box<Page>>,
    /// At least twice as many as entries, so that probing stays short.
    buckets: Vec<u32>,
    newest: u32,
    oldest: u32,
    len: usize,
    max: usize,
    /// Successful look-ups.
    pub hits: u64,
    /// Failed look-ups.
    pub misses: u64,
    /// Evicted entries.
    pub evictions: u64,
    /// The disk may hold a grant of an evicted entry, so it may hold one of any key that is inserted.
    pub(super) forgotten_grant: bool,
}

impl<S: BuildHasher> Cache<S> {
    /// An empty cache; `hasher` needs a secret key, so that bucket collisions cannot be chosen.
    pub fn new(hasher: S) -> Self {
        Self::bounded(hasher, CAPACITY)
    }

    /// As [`Cache::new`], for at most `max` entries.
    pub fn bounded(hasher: S, max: usize) -> Self {
        Self {
            hasher,
            pages: Vec::new(),
            buckets: vec![NONE; BUCKETS],
            newest: NONE,
            oldest: NONE,
            len: 0,
            max: max.clamp(1, CAPACITY),
            hits: 0,
            misses: 0,
            evictions: 0,
            forgotten_grant: false,
        }
    }

    /// Number of entries.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no entry.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maximum number of entries.
    pub const fn max(&self) -> usize {
        self.max
    }

    /// Looks up and marks as used.
    pub fn get(&mut self, node: &NodeId, key: &PublicKey) -> Option<&Entry> {
        let Some(at) = self.find(node, key) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        self.touch(at);
        self.slot(at).map(|s| &s.entry)
    }

    /// Looks up without marking as used.
    pub fn peek(&self, node: &NodeId, key: &PublicKey) -> Option<&Entry> {
        self.find(node, key).and_then(|at| self.slot(at)).map(|s| &s.entry)
    }

    /// Changes an existing entry.
    pub fn change(&mut self, node: &NodeId, key: &PublicKey, change: impl FnOnce(&mut Entry)) {
        if let Some(at) = self.find(node, key)
            && let Some(slot) = self.slot_mut(at)
        {
            change(&mut slot.entry);
        }
    }

    /// Every entry, the most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &PublicKey, &Entry)> {
        std::iter::successors(self.slot(self.newest), |s| self.slot(s.older)).map(|s| (&s.node, &s.key, &s.entry))
    }

    /// Begins a verification; `None`: one of this key is in progress.
    pub fn begin(&mut self, node: &NodeId, key: &PublicKey) -> Option<Ticket> {
        let at = self.find(node, key).or_else(|| self.insert(node, key))?;
        let entry = &mut self.slot_mut(at)?.entry;
        if entry.flight.is_some() {
            return None;
        }
        entry.flight = Some(entry.generation);
        Some(Ticket { generation: entry.generation })
    }

    /// Ends a verification without a result: neither a grant nor a revocation.
    pub fn abandon(&mut self, node: &NodeId, key: &PublicKey, ticket: Ticket) {
        self.change(node, key, |e| {
            if e.flight == Some(ticket.generation) {
                e.flight = None;
            }
        });
    }

    /// Ends a verification with a decision that holds for `block`.
    pub fn settle(
        &mut self,
        node: &NodeId,
        key: &PublicKey,
        ticket: Ticket,
        decision: Decision,
        block: u64,
        now: Boot,
    ) -> Settled {
        let mut settled = Settled::Outdated;
        self.change(node, key, |e| {
            e.flight = None;
            let newer = block >= e.block || e.decision.is_none();
            let overtaken =
                decision.reason.grants() && (e.generation != ticket.generation || !e.grants() && e.news > block);
            if !newer || overtaken {
                return;
            }
            let before = e.grants();
            settled = match (before, decision.reason.grants()) {
                (false, true) => Settled::Granted,
                (true, false) => Settled::Revoked,
                (true, true) | (false, false) => Settled::Unchanged,
            };
            // A grant for a block before the newest change keeps its doubt and the doubt's age.
            let doubt = e.doubt.filter(|_| decision.reason.grants() && e.news > block);
            let kept_grant = e.kept_grant || decision.reason.grants();
            *e = Entry { decision: Some(decision), block, at: now, doubt, flight: None, kept_grant, ..e.clone() };
        });
        settled
    }

    /// Restores a stored entry.
    pub fn restore(&mut self, node: &NodeId, key: &PublicKey, kept: Entry) {
        if let Some(at) = self.find(node, key).or_else(|| self.insert(node, key))
            && let Some(slot) = self.slot_mut(at)
        {
            let kept_grant = kept.kept_grant || slot.entry.kept_grant;
            slot.entry = Entry { flight: None, kept_grant, ..kept };
        }
    }

    fn slot(&self, at: u32) -> Option<&Slot> {
        let at = usize::try_from(at).ok()?;
        self.pages.get(at / PAGE)?.get(at % PAGE)
    }

    fn slot_mut(&mut self, at: u32) -> Option<&mut Slot> {
        let at = usize::try_from(at).ok()?;
        self.pages.get_mut(at / PAGE)?.get_mut(at % PAGE)
    }

    fn home(&self, node: &NodeId, key: &PublicKey) -> usize {
        usize::try_from(self.hasher.hash_one((node.as_str(), key)) % self.buckets.len() as u64).unwrap_or(0)
    }

    /// The bucket of a key, or the empty one where it would be inserted.
    fn bucket(&self, node: &NodeId, key: &PublicKey) -> usize {
        let mut b = self.home(node, key);
        // Terminates: half of the buckets are empty.
        while let Some(slot) = self.buckets.get(b).and_then(|at| self.slot(*at)) {
            if slot.key == *key && slot.node == *node {
                break;
            }
            b = (b + 1) % self.buckets.len();
        }
        b
    }

    fn find(&self, node: &NodeId, key: &PublicKey) -> Option<u32> {
        self.buckets.get(self.bucket(node, key)).copied().filter(|at| *at != NONE)
    }

    /// Inserts an entry, in place of the least recently used one if the cache is full.
    fn insert(&mut self, node: &NodeId, key: &PublicKey) -> Option<u32> {
        let evicted = self.slot(self.oldest).filter(|_| self.len >= self.max);
        self.forgotten_grant |= evicted.is_some_and(|s| s.entry.kept_grant);
        let entry = Entry { kept_grant: self.forgotten_grant, ..Entry::default() };
        let slot = Slot { node: node.clone(), key: *key, entry, newer: NONE, older: NONE };
        let at = if self.len < self.max {
            if self.len.is_multiple_of(PAGE) {
                self.pages.push(Box::default());
            }
            self.pages.last_mut()?.push(slot).ok()?;
            self.len += 1;
            if 2 * self.len > self.buckets.len() {
                self.grow();
            }
            u32::try_from(self.len - 1).ok()?
        } else {
            let at = self.oldest;
            self.unlink(at);
            self.forget(at);
            self.evictions += 1;
            *self.slot_mut(at)? = slot;
            at
        };
        let bucket = self.bucket(node, key);
        *self.buckets.get_mut(bucket)? = at;
        self.link(at);
        Some(at)
    }

    /// Doubles the buckets and places every slot that is linked.
    fn grow(&mut self) {
        self.buckets = vec![NONE; 2 * self.buckets.len()];
        let mut at = self.newest;
        while let Some((node, key, older)) = self.slot(at).map(|s| (s.node.clone(), s.key, s.older)) {
            let bucket = self.bucket(&node, &key);
            if let Some(bucket) = self.buckets.get_mut(bucket) {
                *bucket = at;
            }
            at = older;
        }
    }

    /// Removes a slot's key from the buckets and closes the gap, so that no later key becomes unreachable.
    fn forget(&mut self, at: u32) {
        let Some(slot) = self.slot(at) else { return };
        let mut gap = self.bucket(&slot.node, &slot.key);
        let mut b = gap;
        loop {
            b = (b + 1) % self.buckets.len();
            let Some(slot) = self.buckets.get(b).and_then(|at| self.slot(*at)) else { break };
            let home = self.home(&slot.node, &slot.key);
            // It may move into the gap unless its home lies behind it.
            let distance = |from: usize, to: usize| (to + self.buckets.len() - from) % self.buckets.len();
            if distance(home, b) >= distance(gap, b) {
                self.buckets.swap(gap, b);
                gap = b;
            }
        }
        if let Some(bucket) = self.buckets.get_mut(gap) {
            *bucket = NONE;
        }
    }

    fn touch(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.link(at);
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some((newer, older)) = self.slot(at).map(|s| (s.newer, s.older)) else { return };
        match self.slot_mut(newer) {
            Some(s) => s.older = older,
            None => self.newest = older,
        }
        match self.slot_mut(older) {
            Some(s) => s.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link(&mut self, at: u32) {
        let before = self.newest;
        if let Some(s) = self.slot_mut(at) {
            (s.newer, s.older) = (NONE, before);
        }
        match self.slot_mut(before) {
            Some(s) => s.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests;

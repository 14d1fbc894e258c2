//! The cached decisions: bounded, evicted by least recent use, found by a keyed hash, read without allocating.
//!
//! A revocation that was seen outlives a positive that was already under way: every verification carries the generation it
//! began in, and the generation grows with each change of its key that becomes known.
use super::ladder::Doubt;
use super::policy::Decision;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::Boot;
use std::hash::BuildHasher;
use std::time::Duration;

/// Most decisions kept: about 3 MB when full, allocated as it fills.
pub const CAPACITY: usize = PAGES * PAGE;
const PAGE: usize = 128;
const PAGES: usize = 128;
/// Twice the capacity, so that probing stays short.
const BUCKETS: usize = 2 * CAPACITY;
/// No slot: the ends of the list of use, and an empty bucket.
const NONE: u16 = u16::MAX;

/// What is known of one node and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The last decision; `None`: never verified.
    pub decision: Option<Decision>,
    /// Height it holds for: no event up to there changed it.
    pub block: u64,
    /// When it was made.
    pub at: Boot,
    /// Granted at the newest block, but not before this height counts as final.
    pub held_until: Option<u64>,
    /// A change was seen that has not been verified yet.
    pub doubt: Option<Doubt>,
    /// Height of the newest change seen; a decision for an earlier block is not the last word.
    pub news: u64,
    /// Whether it was a peer when the grants were last published.
    pub peer: bool,
    /// Stretches of events that had been read when it ceased to be a candidate.
    pub(super) left: u64,
    /// Grows with every change that becomes known.
    pub(super) generation: u32,
    /// A verification is under way, begun in this generation.
    pub(super) flight: Option<u32>,
}

impl Entry {
    /// Whether it grants, by the last decision.
    pub fn grants(&self) -> bool {
        self.decision.is_some_and(|d| d.reason.grants())
    }

    /// A change at `height` has become known: whatever is being verified may not know it.
    pub(super) fn changed(&mut self, height: u64) {
        self.news = self.news.max(height);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether it is old enough to be verified again although nothing happened.
    pub fn due(&self, now: Boot, positive: Duration, negative: Duration) -> bool {
        let ttl = if self.grants() { positive } else { negative };
        self.decision.is_none() || now.since(self.at) >= ttl
    }
}

/// A verification that was begun; without it nothing can be settled.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "settle it or abandon it"]
pub struct Ticket {
    generation: u32,
}

/// The effect of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// A peer may come in.
    Granted,
    /// A peer must go.
    Revoked,
    /// As before.
    Unchanged,
    /// A change was seen meanwhile, or a later block: nothing is changed.
    Outdated,
}

#[derive(Debug)]
struct Slot {
    node: NodeId,
    key: PublicKey,
    entry: Entry,
    newer: u16,
    older: u16,
}

type Page = heapless::Vec<Slot, PAGE>;

/// The cache.
#[derive(Debug)]
pub struct Cache<S> {
    hasher: S,
    pages: heapless::Vec<Box<Page>, PAGES>,
    buckets: Box<[u16]>,
    newest: u16,
    oldest: u16,
    len: usize,
    max: usize,
    /// Look-ups that found something.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Entries that made room for others.
    pub evictions: u64,
}

impl<S: BuildHasher> Cache<S> {
    /// An empty cache; `hasher` is keyed by something nobody outside knows.
    pub fn new(hasher: S) -> Self {
        Self::bounded(hasher, CAPACITY)
    }

    /// As [`Cache::new`], for at most `max` entries.
    pub fn bounded(hasher: S, max: usize) -> Self {
        Self {
            hasher,
            pages: heapless::Vec::new(),
            buckets: vec![NONE; BUCKETS].into_boxed_slice(),
            newest: NONE,
            oldest: NONE,
            len: 0,
            max: max.clamp(1, CAPACITY),
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    /// Entries.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most entries.
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

    /// Changes an entry that is there.
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

    /// Begins a verification; `None`: one of this key is under way.
    pub fn begin(&mut self, node: &NodeId, key: &PublicKey) -> Option<Ticket> {
        let at = self.find(node, key).or_else(|| self.insert(node, key))?;
        let entry = &mut self.slot_mut(at)?.entry;
        if entry.flight.is_some() {
            return None;
        }
        entry.flight = Some(entry.generation);
        Some(Ticket { generation: entry.generation })
    }

    /// Ends a verification that gave no answer: neither a grant nor a revocation.
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
            // A grant of a block before the newest change stays in doubt, and the doubt as old as it is.
            let doubt = e.doubt.filter(|_| decision.reason.grants() && e.news > block);
            *e = Entry { decision: Some(decision), block, at: now, doubt, flight: None, ..e.clone() };
        });
        settled
    }

    /// Puts back what the disk kept.
    pub fn restore(&mut self, node: &NodeId, key: &PublicKey, kept: Entry) {
        if let Some(at) = self.find(node, key).or_else(|| self.insert(node, key))
            && let Some(slot) = self.slot_mut(at)
        {
            slot.entry = Entry { flight: None, ..kept };
        }
    }

    fn slot(&self, at: u16) -> Option<&Slot> {
        self.pages.get(usize::from(at) / PAGE)?.get(usize::from(at) % PAGE)
    }

    fn slot_mut(&mut self, at: u16) -> Option<&mut Slot> {
        self.pages.get_mut(usize::from(at) / PAGE)?.get_mut(usize::from(at) % PAGE)
    }

    fn home(&self, node: &NodeId, key: &PublicKey) -> usize {
        usize::try_from(self.hasher.hash_one((node.as_str(), key)) % BUCKETS as u64).unwrap_or(0)
    }

    /// The bucket that leads to a key, or the empty one where it would go.
    fn bucket(&self, node: &NodeId, key: &PublicKey) -> usize {
        let mut b = self.home(node, key);
        // Half of the buckets are empty: this ends.
        while let Some(slot) = self.buckets.get(b).and_then(|at| self.slot(*at)) {
            if slot.key == *key && slot.node == *node {
                break;
            }
            b = (b + 1) % BUCKETS;
        }
        b
    }

    fn find(&self, node: &NodeId, key: &PublicKey) -> Option<u16> {
        self.buckets.get(self.bucket(node, key)).copied().filter(|at| *at != NONE)
    }

    /// A new entry, in place of the least recently used one if there is no room.
    fn insert(&mut self, node: &NodeId, key: &PublicKey) -> Option<u16> {
        let slot = Slot { node: node.clone(), key: *key, entry: Entry::default(), newer: NONE, older: NONE };
        let at = if self.len < self.max {
            if self.len.is_multiple_of(PAGE) {
                self.pages.push(Box::default()).ok()?;
            }
            self.pages.last_mut()?.push(slot).ok()?;
            self.len += 1;
            u16::try_from(self.len - 1).ok()?
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

    /// Takes a slot's key out of the buckets and closes the gap, so that no later key becomes unreachable.
    fn forget(&mut self, at: u16) {
        let Some(slot) = self.slot(at) else { return };
        let mut gap = self.bucket(&slot.node, &slot.key);
        let mut b = gap;
        loop {
            b = (b + 1) % BUCKETS;
            let Some(slot) = self.buckets.get(b).and_then(|at| self.slot(*at)) else { break };
            let home = self.home(&slot.node, &slot.key);
            // It may move into the gap unless its home lies behind it.
            let distance = |from: usize, to: usize| (to + BUCKETS - from) % BUCKETS;
            if distance(home, b) >= distance(gap, b) {
                self.buckets.swap(gap, b);
                gap = b;
            }
        }
        if let Some(bucket) = self.buckets.get_mut(gap) {
            *bucket = NONE;
        }
    }

    fn touch(&mut self, at: u16) {
        if self.newest != at {
            self.unlink(at);
            self.link(at);
        }
    }

    fn unlink(&mut self, at: u16) {
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

    fn link(&mut self, at: u16) {
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
mod tests {
    use super::*;
    use crate::policy::Reason;
    use proptest::prelude::*;
    use std::hash::RandomState;

    fn node(n: u16) -> NodeId {
        format!("n{n}").parse().unwrap()
    }

    fn key(n: u16) -> PublicKey {
        PublicKey([u8::try_from(n % 251).unwrap(); 32])
    }

    fn says(reason: Reason) -> Decision {
        Decision { reason, token_id: None, owner: None }
    }

    fn verify<S: BuildHasher>(c: &mut Cache<S>, n: u16, reason: Reason, block: u64) -> Settled {
        let t = c.begin(&node(n), &key(n)).unwrap();
        c.settle(&node(n), &key(n), t, says(reason), block, Boot::default())
    }

    #[test]
    fn a_positive_under_way_never_overwrites_a_seen_revocation() {
        let mut c = Cache::new(RandomState::new());
        assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 10), Settled::Granted);
        let under_way = c.begin(&node(1), &key(1)).unwrap();
        assert!(c.begin(&node(1), &key(1)).is_none(), "one flight a key");
        let doubt = Doubt::new(Boot::default());
        c.change(&node(1), &key(1), |e| {
            e.changed(11);
            e.doubt = Some(doubt);
        });
        let settled = c.settle(&node(1), &key(1), under_way, says(Reason::AccessGranted), 12, Boot::default());
        assert_eq!(settled, Settled::Outdated);
        assert_eq!(c.peek(&node(1), &key(1)).unwrap().doubt, Some(doubt), "whatever block it was of");
        // A revocation under way may: nobody is let in by it.
        let under_way = c.begin(&node(1), &key(1)).unwrap();
        c.change(&node(1), &key(1), |e| e.changed(13));
        let settled = c.settle(&node(1), &key(1), under_way, says(Reason::NodeInactive), 12, Boot::default());
        assert_eq!(settled, Settled::Revoked);
        // And a positive that was begun after the change.
        assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 13), Settled::Granted);
    }

    #[test]
    fn a_grant_of_a_block_before_the_change_stays_in_doubt() {
        let mut c = Cache::new(RandomState::new());
        verify(&mut c, 1, Reason::AccessGranted, 10);
        let doubt = Doubt::new(Boot::from_secs(3));
        c.change(&node(1), &key(1), |e| {
            e.changed(20);
            e.doubt = Some(doubt);
        });
        assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 19), Settled::Unchanged);
        assert_eq!(c.peek(&node(1), &key(1)).unwrap().doubt, Some(doubt));
        assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 20), Settled::Unchanged);
        assert_eq!(c.peek(&node(1), &key(1)).unwrap().doubt, None);
    }

    #[test]
    fn a_decision_of_an_earlier_block_changes_nothing() {
        let mut c = Cache::new(RandomState::new());
        verify(&mut c, 1, Reason::NodeInactive, 10);
        assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 9), Settled::Outdated);
        assert_eq!(c.peek(&node(1), &key(1)).unwrap().decision, Some(says(Reason::NodeInactive)));
    }

    #[test]
    fn no_answer_changes_nothing() {
        let mut c = Cache::new(RandomState::new());
        verify(&mut c, 1, Reason::AccessGranted, 10);
        let before = c.peek(&node(1), &key(1)).unwrap().clone();
        let t = c.begin(&node(1), &key(1)).unwrap();
        c.abandon(&node(1), &key(1), t);
        assert_eq!(c.peek(&node(1), &key(1)), Some(&before));
    }

    /// Every key at the same bucket: only closing gaps keeps them reachable.
    #[derive(Clone, Default)]
    struct OneBucket;
    struct Zero;
    impl std::hash::Hasher for Zero {
        fn finish(&self) -> u64 {
            BUCKETS as u64 - 2
        }
        fn write(&mut self, _: &[u8]) {}
    }
    impl BuildHasher for OneBucket {
        type Hasher = Zero;
        fn build_hasher(&self) -> Zero {
            Zero
        }
    }

    fn like_a_model<S: BuildHasher>(hasher: S, ops: &[(u16, bool)], max: usize) {
        let mut c = Cache::bounded(hasher, max);
        let mut model: Vec<u16> = Vec::new();
        for (n, insert) in ops {
            if *insert {
                let known = model.contains(n);
                if let Some(t) = c.begin(&node(*n), &key(*n)) {
                    let _ = c.settle(&node(*n), &key(*n), t, says(Reason::AccessGranted), 1, Boot::default());
                }
                if !known {
                    if model.len() == max {
                        model.pop();
                    }
                    model.insert(0, *n);
                }
            } else {
                let found = c.get(&node(*n), &key(*n)).is_some();
                assert_eq!(found, model.contains(n));
                if found {
                    model.retain(|m| m != n);
                    model.insert(0, *n);
                }
            }
            let order: Vec<_> = c.iter().map(|(id, _, _)| id.clone()).collect();
            assert_eq!(order, model.iter().map(|n| node(*n)).collect::<Vec<_>>());
            assert!(model.iter().all(|n| c.peek(&node(*n), &key(*n)).is_some()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_least_recently_used_goes(ops in proptest::collection::vec((0u16..20, any::<bool>()), 1..120), max in 1usize..9) {
            like_a_model(OneBucket, &ops, max);
            like_a_model(RandomState::new(), &ops, max);
        }
    }

    #[test]
    fn it_fills_to_its_capacity_and_no_further() {
        let mut c = Cache::new(RandomState::new());
        for n in 0..20_000 {
            verify(&mut c, n, Reason::AccessGranted, 1);
        }
        assert_eq!((c.len(), c.evictions), (CAPACITY, 20_000 - CAPACITY as u64));
        assert!(c.peek(&node(19_999), &key(19_999)).is_some() && c.peek(&node(0), &key(0)).is_none());
    }
}

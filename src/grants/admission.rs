//! The admission table: the candidates, their decisions, the pairs to verify next, and the admitted ones.
use super::cache::{Cache, Entry, Settled};
use super::jsonrpc::{GrantEvent, Subject};
use super::ladder::{Doubt, Ladder, Phase, Reserve};
use super::policy::Pair;
use super::policy::{Decision, Reason, VERIFICATION_ERROR};
use crate::ladder::phase_after;
use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};
use spoke_config::grants::{Finality, Grants};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::Boot;
use spoke_net::derive::Admitted;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::time::Duration;

/// Whether a key may act as a node at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Admitted.
    Granted(Phase),
    /// Not admitted, by a decision of the chain.
    Denied(Reason),
    /// Not admitted: there is no decision, or it is too old.
    Unverified(Phase),
}

impl Admission {
    /// Whether the pair is admitted.
    pub const fn granted(self) -> bool {
        match self {
            Self::Granted(_) => true,
            Self::Denied(_) | Self::Unverified(_) => false,
        }
    }

    /// The reason code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Granted(_) => Reason::AccessGranted.code(),
            Self::Denied(reason) => reason.code(),
            Self::Unverified(_) => VERIFICATION_ERROR,
        }
    }
}

/// One decision as stored on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredDecision {
    /// The node.
    pub node: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// The last decision.
    pub decision: Decision,
    /// Height it holds for.
    pub block: u64,
    /// Whether it was a peer.
    pub peer: bool,
    /// Age of an unverified change of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Duration>,
}

/// A new or changed decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionChange {
    /// The node.
    pub node: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// The decision.
    pub decision: Decision,
    /// Its effect.
    pub settled: Settled,
    /// Height it holds for.
    pub block: u64,
}

/// The decisions about all candidates, and how long they hold.
#[derive(Debug)]
pub struct AdmissionTable<S> {
    cache: Cache<S>,
    /// The grace ladder.
    pub ladder: Ladder,
    candidates: BTreeSet<Pair>,
    finality: Finality,
    positive_ttl: Duration,
    negative_ttl: Duration,
    /// Grows with every change that must be stored.
    pub edition: u64,
    /// The edition of the last revocation.
    pub revoked_edition: u64,
    /// Number of candidates beyond the capacity of the cache.
    pub overflow: usize,
    /// The first of them; they are taken by name.
    pub first_left_out: Option<NodeId>,
    /// Whether a grant was in doubt when the grants were last published.
    doubtful: bool,
    /// When the ages of doubts were last stored.
    doubts_kept: Option<Boot>,
    /// Grows with every range of events that was read. Events are applied to candidates only.
    pub(super) events_read: u64,
}

impl<S: BuildHasher> AdmissionTable<S> {
    /// An empty table.
    pub fn new(config: &Grants, cache: Cache<S>, now: Boot) -> Self {
        Self {
            cache,
            ladder: Ladder::new(config.rungs(), now),
            candidates: BTreeSet::new(),
            finality: config.finality,
            positive_ttl: config.positive_ttl,
            negative_ttl: config.negative_ttl,
            edition: 0,
            revoked_edition: 0,
            overflow: 0,
            first_left_out: None,
            doubtful: false,
            doubts_kept: None,
            events_read: 0,
        }
    }

    /// Restores the stored decisions. All of them are verified again as soon as the chain is reachable.
    pub fn restore(&mut self, kept: Vec<StoredDecision>, reserve: Option<&Reserve>, boot_id: Option<&str>, now: Boot) {
        if let Some(reserve) = reserve {
            self.ladder = Ladder::resume(*self.ladder.rungs(), reserve, boot_id, now);
        }
        let since_written = reserve.map_or(now.since_boot(), |r| r.elapsed(boot_id, now));
        // Stored most recently used first: insert in reverse order.
        for k in kept.into_iter().rev() {
            let StoredDecision { node, key, decision, block, peer, doubt } = k;
            let grants = decision.reason.grants();
            // A change during the downtime may have been missed: every grant is in doubt; a stored doubt keeps its age.
            let used = doubt.map_or(Duration::ZERO, |d| d.saturating_add(since_written));
            let entry = Entry {
                decision: Some(decision),
                block,
                at: now,
                held_until: (!grants).then_some(0),
                doubt: grants.then(|| Doubt::resume(used, now)),
                peer: peer && grants,
                kept_grant: grants,
                ..Entry::default()
            };
            self.cache.restore(&node, &key, entry);
        }
    }

    /// Takes note of what the disk grants beside the restored decisions: where a pair is denied, the disk's content has to go.
    pub fn note_grants_on_disk(&mut self, on_disk: &[StoredDecision]) {
        for StoredDecision { node, key, .. } in on_disk.iter().filter(|k| k.decision.reason.grants()) {
            if self.cache.peek(node, key).is_none() {
                if self.cache.len() == self.cache.max() {
                    // A restored decision is worth more than the note.
                    self.cache.forgotten_grant = true;
                    continue;
                }
                self.cache.restore(node, key, Entry { held_until: Some(0), ..Entry::default() });
            }
            self.cache.change(node, key, |e| e.kept_grant = true);
        }
    }

    /// The decisions to store, most recently used first: those of candidates, as no events are applied to others. Before
    /// any events are read all that were restored: the candidates may not be known yet.
    pub fn kept(&self, now: Boot) -> Vec<StoredDecision> {
        let keep = |(node, key, e): (&NodeId, &PublicKey, &Entry)| {
            if self.events_read > 0 && !self.candidates.contains(&(node.clone(), *key)) {
                return None;
            }
            let doubt = e.doubt.map(|d| d.age(now));
            Some(StoredDecision {
                node: node.clone(),
                key: *key,
                decision: e.decision?,
                block: e.block,
                peer: e.peer,
                doubt,
            })
        };
        self.cache.iter().filter_map(keep).collect()
    }

    /// Whether the ages of the doubts must be stored, or that none are left: otherwise a reboot would make them
    /// younger.
    pub fn must_keep_doubts(&self, now: Boot) -> bool {
        match self.doubts_kept {
            None => self.doubtful,
            Some(at) => !self.doubtful || now.since(at) >= self.ladder.step() / 2,
        }
    }

    /// The result of [`AdmissionTable::kept`] at `edition` was stored.
    pub const fn stored(&mut self, edition: u64, now: Boot) {
        if edition == self.edition {
            self.cache.forgotten_grant = false;
        }
        self.doubts_kept = if self.doubtful { Some(now) } else { None };
    }

    /// The cache.
    pub const fn cache(&self) -> &Cache<S> {
        &self.cache
    }

    /// The candidates.
    pub const fn candidates(&self) -> &BTreeSet<Pair> {
        &self.candidates
    }

    /// Sets the candidates. A candidate that returns after events were read without it counts as new.
    pub fn set_candidates(&mut self, candidates: &BTreeSet<Pair>) {
        let gone: Vec<Pair> = self.candidates.difference(candidates).cloned().collect();
        for (node, key) in &gone {
            let events_read = self.events_read;
            self.cache.change(node, key, |e| (e.peer, e.left) = (false, events_read));
        }
        for (node, key) in candidates.difference(&self.candidates) {
            let events_read = self.events_read;
            self.cache.change(node, key, |e| {
                // Events were read while it was no candidate: its decision may be out of date.
                if e.left != events_read {
                    e.changed(0);
                    *e = Entry { decision: None, doubt: None, held_until: Some(0), ..e.clone() };
                }
            });
        }
        self.overflow = candidates.len().saturating_sub(self.cache.max());
        self.first_left_out = candidates.iter().nth(self.cache.max()).map(|(node, _)| node.clone());
        self.candidates = candidates.iter().take(self.cache.max()).cloned().collect();
        // Marked as used first, so that no candidate is evicted for another.
        let new: Vec<&Pair> =
            self.candidates.iter().filter(|(node, key)| self.cache.get(node, key).is_none()).collect();
        let evictions = self.cache.evictions;
        for (node, key) in new {
            self.cache.restore(node, key, Entry { held_until: Some(0), ..Entry::default() });
        }
        // The decisions of those that left are not stored any more.
        self.edition += u64::from(!gone.is_empty() || self.cache.evictions > evictions);
    }

    /// Applies reported changes: the pairs they concern are verified again. Heights count up to `common`, where every
    /// asked endpoint has a block, so that a single endpoint cannot cause a wait for a block that the others do not
    /// have.
    pub fn note(&mut self, changes: &[GrantEvent], common: u64, now: Boot) {
        if self.events_read == 0 && !self.candidates.is_empty() {
            // Restored decisions of others are not stored from here on.
            let mut decided = self.cache.iter().filter(|(_, _, e)| e.decision.is_some());
            let stale = decided.any(|(node, key, _)| !self.candidates.contains(&(node.clone(), *key)));
            self.edition += u64::from(stale);
        }
        self.events_read += 1;
        let touched = Touched::by(changes);
        let latest = self.finality == Finality::Latest;
        for (node, key) in &self.candidates {
            self.cache.change(node, key, |e| {
                let Some(span) = touched.span(node, e.decision.as_ref()).filter(|s| s.newest > e.block) else {
                    return;
                };
                e.changed(span.newest.min(common));
                if e.grants() {
                    e.doubt = e.doubt.or(Some(Doubt::new(now)));
                } else {
                    // The first event: later ones must not hold back what the final and the newest block grant alike.
                    let wait = if latest { 0 } else { span.oldest.min(common.saturating_add(1)) };
                    e.held_until = Some(e.held_until.map_or(wait, |a| a.min(wait)));
                }
            });
        }
    }

    /// The blocks above `height` were replaced: decisions for them are verified again.
    pub fn reorganised(&mut self, height: u64, now: Boot) {
        self.mark_unverified(now, |e| e.block > height);
        // Heights of replaced blocks are void, so that events of the new blocks count as changes.
        for (node, key) in &self.candidates {
            self.cache.change(node, key, |e| {
                e.block = e.block.min(height);
                e.news = e.news.min(height);
            });
        }
    }

    /// No block of the chain is above `height`: decisions for higher ones lose their height and are verified again.
    pub fn forget_heights_above(&mut self, height: u64, now: Boot) {
        if self.candidates.iter().any(|(n, k)| self.cache.peek(n, k).is_some_and(|e| e.block.max(e.news) > height)) {
            self.mark_unverified(now, |e| e.block > height);
            for (node, key) in &self.candidates {
                self.cache.change(node, key, |e| {
                    e.block = if e.block > height { 0 } else { e.block };
                    e.news = e.news.min(height);
                });
            }
        }
    }

    /// Marks every candidate for verification.
    pub fn refresh(&mut self, now: Boot) {
        self.events_read += 1;
        self.mark_unverified(now, |_| true);
    }

    /// Marks every grant for verification.
    pub fn doubt_grants(&mut self, now: Boot) {
        self.mark_unverified(now, Entry::grants);
    }

    /// A grant that is not to be verified now.
    pub fn undoubted_grant(&self, now: Boot) -> Option<Pair> {
        let settled = |e: &Entry| e.grants() && e.doubt.is_none() && !e.due(now, self.positive_ttl, self.negative_ttl);
        let found = self.candidates.iter().find(|(node, key)| self.cache.peek(node, key).is_some_and(settled));
        found.cloned()
    }

    fn mark_unverified(&mut self, now: Boot, which: impl Fn(&Entry) -> bool) {
        for (node, key) in &self.candidates {
            self.cache.change(node, key, |e| {
                if which(e) {
                    e.changed(0);
                    if e.grants() {
                        e.doubt = e.doubt.or(Some(Doubt::new(now)));
                    } else {
                        e.held_until = Some(e.held_until.unwrap_or(0));
                    }
                }
            });
        }
    }

    /// Grants to verify at the newest block.
    pub fn doubted(&self, now: Boot) -> Vec<Pair> {
        self.pick(|e| e.grants() && (e.doubt.is_some() || e.due(now, self.positive_ttl, self.negative_ttl)))
    }

    /// Pairs without a grant to verify, once the block they wait for is final.
    pub fn waiting(&self, now: Boot, final_height: Option<u64>) -> Vec<Pair> {
        self.pick(|e| {
            let due = e.due(now, self.positive_ttl, self.negative_ttl);
            let ready = e.held_until.is_some_and(|h| h == 0 || final_height.is_some_and(|f| h <= f));
            !e.grants() && (ready || due && e.held_until.is_none())
        })
    }

    /// Whether the final height is needed to verify a pair.
    pub fn needs_final(&self, now: Boot) -> bool {
        self.finality != Finality::Latest
            && self.candidates.iter().any(|(node, key)| {
                self.cache.peek(node, key).is_some_and(|e| {
                    !e.grants() && (e.held_until.is_some() || e.due(now, self.positive_ttl, self.negative_ttl))
                })
            })
    }

    fn pick(&self, which: impl Fn(&Entry) -> bool) -> Vec<Pair> {
        let picked = self.candidates.iter().filter(|(node, key)| self.cache.peek(node, key).is_some_and(&which));
        picked.cloned().collect()
    }

    /// Begins verifications; returns the pairs without one in progress.
    pub fn begin(&mut self, pairs: Vec<Pair>) -> Vec<(Pair, super::cache::Ticket)> {
        pairs.into_iter().filter_map(|p| self.cache.begin(&p.0, &p.1).map(|t| (p, t))).collect()
    }

    /// Ends verifications without a result.
    pub fn abandon(&mut self, begun: Vec<(Pair, super::cache::Ticket)>) {
        for ((node, key), ticket) in begun {
            self.cache.abandon(&node, &key, ticket);
        }
    }

    /// Settles a grant by the decision at the newest block. `None`: the answer could not be read, the grant is in
    /// doubt.
    pub fn settle_newest(
        &mut self,
        begun: (Pair, super::cache::Ticket),
        decision: Option<Decision>,
        block: u64,
        now: Boot,
    ) -> Option<DecisionChange> {
        let ((node, key), ticket) = begun;
        let Some(decision) = decision else {
            self.cache.abandon(&node, &key, ticket);
            self.cache.change(&node, &key, |e| e.doubt = e.doubt.or(Some(Doubt::new(now))));
            return None;
        };
        self.settle((node, key), ticket, decision, block, now, None)
    }

    /// Settles a pair without a grant by the decisions at the newest and the final block. Granted only if both grant.
    pub fn settle_final(
        &mut self,
        begun: (Pair, super::cache::Ticket),
        newest: Option<Decision>,
        last_final: Option<Decision>,
        block: u64,
        now: Boot,
    ) -> Option<DecisionChange> {
        let ((node, key), ticket) = begun;
        match (newest, last_final) {
            (Some(newest), _) if !newest.reason.grants() => self.settle((node, key), ticket, newest, block, now, None),
            (Some(newest), Some(last)) if last.reason.grants() && last == newest => {
                self.settle((node, key), ticket, newest, block, now, None)
            }
            // Granted at the newest block only: the reason is that of the final block, such as an unknown node.
            (Some(newest), Some(last)) => {
                let reason = if last.reason.grants() { Reason::AccessDenied } else { last.reason };
                self.settle((node, key), ticket, Decision { reason, ..newest }, block, now, Some(block))
            }
            (Some(_), None) => {
                self.cache.abandon(&node, &key, ticket);
                self.cache.change(&node, &key, |e| e.held_until = Some(block.max(1)));
                None
            }
            (None, _) => {
                self.cache.abandon(&node, &key, ticket);
                None
            }
        }
    }

    fn settle(
        &mut self,
        (node, key): Pair,
        ticket: super::cache::Ticket,
        decision: Decision,
        block: u64,
        now: Boot,
        held_until: Option<u64>,
    ) -> Option<DecisionChange> {
        let before = self.cache.peek(&node, &key).and_then(|e| e.decision);
        let settled = self.cache.settle(&node, &key, ticket, decision, block, now);
        if settled == Settled::Outdated {
            return None;
        }
        let latest = self.finality == Finality::Latest;
        let mut revokes = false;
        self.cache.change(&node, &key, |e| {
            revokes = e.kept_grant && !decision.reason.grants();
            e.kept_grant &= !revokes;
            // A change after that block is not verified yet.
            let pending = (e.news > block && !e.grants()).then_some(if latest { 0 } else { e.news });
            e.held_until = pending.max(held_until);
        });
        if before == Some(decision) && !revokes {
            return None;
        }
        self.edition += 1;
        if revokes {
            self.revoked_edition = self.edition;
        }
        Some(DecisionChange { node, key, decision, settled, block })
    }

    /// A quorum confirmed every decision.
    pub const fn confirm(&mut self, now: Boot) {
        self.ladder.confirm(now);
    }

    /// Whether `key` may act as `node`. Does not allocate.
    pub fn admission(&mut self, node: &NodeId, key: &PublicKey, now: Boot) -> Admission {
        let phase = self.ladder.phase(now);
        let rungs = *self.ladder.rungs();
        match self.cache.get(node, key) {
            Some(entry) => admission(entry, phase, |doubt| phase_after(&rungs, doubt.age(now))),
            None => Admission::Unverified(phase),
        }
    }

    /// The pairs admitted now; marks them as peers.
    pub fn admitted(&mut self, now: Boot) -> Admitted {
        let mut out = BTreeSet::new();
        let candidates = std::mem::take(&mut self.candidates);
        self.doubtful = false;
        for (node, key) in &candidates {
            let granted = self.admission(node, key, now).granted();
            let mut changed = false;
            self.cache.change(node, key, |e| {
                changed = e.peer != granted;
                e.peer = granted;
                self.doubtful |= e.doubt.is_some();
            });
            self.edition += u64::from(changed);
            if granted {
                out.insert((node.clone(), *key));
            }
        }
        self.candidates = candidates;
        Admitted(out)
    }

    /// The next change by time alone: a phase ends, or the ladder or the doubts must be stored.
    pub fn deadline(&self, now: Boot) -> Option<Boot> {
        let rewrite = self.doubts_kept.map(|at| at + self.ladder.step() / 2).filter(|at| *at > now);
        self.ladder.deadline(now).into_iter().chain(rewrite).min()
    }
}

/// The pairs that changes concern, with the height of the newest change.
/// Heights of the first and of the last event about something.
#[derive(Clone, Copy, Debug)]
struct Span {
    oldest: u64,
    newest: u64,
}

impl Span {
    const fn at(height: u64) -> Self {
        Self { oldest: height, newest: height }
    }

    fn join(self, other: Self) -> Self {
        Self { oldest: self.oldest.min(other.oldest), newest: self.newest.max(other.newest) }
    }
}

#[derive(Debug, Default)]
struct Touched<'a> {
    nodes: BTreeMap<&'a NodeId, Span>,
    tokens: BTreeMap<U256, Span>,
    owners: BTreeMap<Address, Span>,
    anyone: Option<Span>,
}

impl<'a> Touched<'a> {
    fn by(changes: &'a [GrantEvent]) -> Self {
        fn join<K: Ord>(spans: &mut BTreeMap<K, Span>, key: K, at: Span) {
            spans.entry(key).and_modify(|span| *span = span.join(at)).or_insert(at);
        }
        let mut t = Self::default();
        for change in changes {
            let at = Span::at(change.block.number);
            match &change.subject {
                Subject::Node { node, token_id } => {
                    join(&mut t.nodes, node, at);
                    join(&mut t.tokens, *token_id, at);
                }
                Subject::Token(id) => join(&mut t.tokens, *id, at),
                Subject::Owner(owner) => join(&mut t.owners, *owner, at),
                Subject::Anyone => t.anyone = Some(t.anyone.map_or(at, |span| span.join(at))),
            }
        }
        t
    }

    fn span(&self, node: &NodeId, decision: Option<&Decision>) -> Option<Span> {
        let token = decision.and_then(|d| d.token_id).and_then(|id| self.tokens.get(&id));
        let owner = decision.and_then(|d| d.owner).and_then(|o| self.owners.get(&o));
        [self.nodes.get(node), token, owner].into_iter().flatten().copied().chain(self.anyone).reduce(Span::join)
    }
}

/// The admission by an entry in a phase; `doubted` returns the phase of a doubt by its age.
pub fn admission(entry: &Entry, phase: Phase, doubted: impl Fn(Doubt) -> Phase) -> Admission {
    let Some(decision) = entry.decision else { return Admission::Unverified(phase) };
    if !decision.reason.grants() {
        return Admission::Denied(decision.reason);
    }
    let phase = entry.doubt.map_or(phase, |d| phase.max(doubted(d)));
    match phase {
        Phase::Fresh | Phase::Stale => Admission::Granted(phase),
        Phase::Grace if entry.peer => Admission::Granted(phase),
        Phase::Grace | Phase::Expired => Admission::Unverified(phase),
    }
}

#[cfg(test)]
mod tests;

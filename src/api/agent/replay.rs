//! Replay protection: a changing request is accepted once, and recorded until its timestamp alone refuses it.
//!
//! The record is bounded and sound for every clock. A request dropped for age or space leaves its timestamp in a short list
//! of intervals in which nothing is accepted. An accepted request is therefore either recorded or within an interval, even if
//! the clock was set back meanwhile. Intervals instead of one bound: a clock that was years ahead for an hour must not lock
//! panels out for years.
use super::auth::{Proof, WINDOW};
use spoke_model::time::Wall;
use std::collections::{BTreeSet, HashSet};

/// Requests recorded: thirteen per second over the window on both sides of now.
pub const CAPACITY: usize = 8192;
/// Intervals kept; above that the two closest are merged.
const INTERVALS: usize = 8;
/// Seconds around a timestamp that one [`Line::Reserved`] covers.
const ROOM: u64 = 60;

/// The result of a replay check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayVerdict {
    /// New; recorded.
    New,
    /// Accepted before.
    Used,
    /// Possibly accepted before: its record was dropped.
    Forgotten,
}

/// Closed intervals in Unix seconds, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Intervals(Vec<(u64, u64)>);

impl Intervals {
    fn contains(&self, time: u64) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&time))
    }

    /// Adds an interval; those no further apart than the window are merged.
    fn add(&mut self, from: u64, to: u64) {
        let at = self.0.partition_point(|(f, _)| *f < from);
        self.0.insert(at, (from, to));
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.0.len());
        for (from, to) in self.0.drain(..) {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(WINDOW) => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        while merged.len() > INTERVALS {
            let gap = |i: &usize| merged[i + 1].0 - merged[*i].1;
            let Some(closest) = (0..merged.len() - 1).min_by_key(gap) else { break };
            let (_, to) = merged.remove(closest + 1);
            merged[closest].1 = to;
        }
        self.0 = merged;
    }
}

/// Accepted requests.
#[derive(Clone, Debug, Default)]
pub struct Replays {
    known: HashSet<[u8; 16]>,
    by_time: BTreeSet<(u64, [u8; 16])>,
    forgotten: Intervals,
    reserved: Option<(u64, u64)>,
}

impl Replays {
    /// Loads stored lines. Unless the file is `whole`, lines after its last synced one may be missing.
    pub fn load(lines: impl IntoIterator<Item = Line>, whole: bool) -> Self {
        let mut out = Self::default();
        for line in lines {
            match line {
                Line::Accepted(proof) => out.insert(proof),
                Line::Forgotten(from, to) => out.forgotten.add(from, to),
                Line::Reserved(from, to) => out.reserved = Some((from, to)),
            }
        }
        if let Some((from, to)) = out.reserved.take_if(|_| !whole) {
            out.forgotten.add(from, to);
        }
        out
    }

    /// Refuses timestamps in this interval.
    pub fn distrust(&mut self, from: u64, to: u64) {
        self.forgotten.add(from, to);
    }

    /// Checks a request and records it if it is new. The caller must have authenticated it.
    pub fn accept(&mut self, proof: Proof, now: Wall) -> ReplayVerdict {
        if self.known.contains(&proof.digest) {
            return ReplayVerdict::Used;
        }
        if self.forgotten.contains(proof.timestamp) {
            return ReplayVerdict::Forgotten;
        }
        self.insert(proof);
        // Refused by their timestamps alone.
        while let Some((time, _)) = self.by_time.first().copied()
            && time.saturating_add(WINDOW) < now.secs()
        {
            self.forget_oldest();
        }
        ReplayVerdict::New
    }

    /// A line that must be synced before a request of this timestamp is executed; `None` if an earlier one covers it.
    pub fn reserve(&mut self, timestamp: u64) -> Option<Line> {
        if self.reserved.is_some_and(|(from, to)| (from..=to).contains(&timestamp)) {
            return None;
        }
        let (from, to) = (timestamp.saturating_sub(ROOM), timestamp.saturating_add(ROOM));
        self.reserved = Some((from, to));
        Some(Line::Reserved(from, to))
    }

    fn insert(&mut self, proof: Proof) {
        if self.known.insert(proof.digest) {
            self.by_time.insert((proof.timestamp, proof.digest));
        }
        while self.by_time.len() > CAPACITY {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((time, digest)) = self.by_time.pop_first() {
            self.known.remove(&digest);
            self.forgotten.add(time, time);
        }
    }

    /// The lines to store.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        let forgotten = self.forgotten.0.iter().map(|(from, to)| Line::Forgotten(*from, *to));
        let accepted = self.by_time.iter().map(|(timestamp, digest)| Proof { timestamp: *timestamp, digest: *digest });
        let reserved = self.reserved.map(|(from, to)| Line::Reserved(from, to));
        forgotten.chain(accepted.map(Line::Accepted)).chain(reserved)
    }

    /// Number of requests recorded.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// Whether none is recorded.
    pub fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }
}

/// A stored line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// An accepted request: `<time> <digest in hex>`.
    Accepted(Proof),
    /// An interval in which nothing is accepted: `forgotten <from> <to>`.
    Forgotten(u64, u64),
    /// After a power loss nothing in this interval is accepted, so lines within it need no sync: `reserved <from> <to>`.
    /// A board then syncs one line a minute instead of one a request.
    Reserved(u64, u64),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accepted(Proof { timestamp, digest }) => {
                write!(f, "{timestamp} {}", const_hex::encode(digest))
            }
            Self::Forgotten(from, to) => write!(f, "forgotten {from} {to}"),
            Self::Reserved(from, to) => write!(f, "reserved {from} {to}"),
        }
    }
}

impl Line {
    /// Parses the text form; `None` for anything else.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let (first, second, third) = (words.next()?, words.next()?, words.next());
        let interval = || Some((second.parse().ok()?, third?.parse().ok()?));
        let line = match first {
            "forgotten" => interval().map(|(from, to)| Self::Forgotten(from, to)),
            "reserved" => interval().map(|(from, to)| Self::Reserved(from, to)),
            time if third.is_none() => {
                let digest = const_hex::decode_to_array(second).ok().filter(|_| second.len() == 32)?;
                Some(Self::Accepted(Proof { timestamp: time.parse().ok()?, digest }))
            }
            _ => None,
        };
        line.filter(|_| words.next().is_none())
    }
}

#[cfg(test)]
mod tests;

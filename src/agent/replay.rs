//! A changing request works once: what was accepted is remembered until its time alone refuses it.
//!
//! The memory is bounded, and sound whatever the clock does. Whenever an entry is forgotten, for age or for room, the floor
//! rises to its time, and nothing at or below the floor is accepted any more. So a request that was accepted is either
//! remembered or below the floor, even where the clock went back after it was forgotten.
use super::auth::{Proof, WINDOW};
use crate::time::Wall;
use std::collections::{BTreeSet, HashSet};

/// Requests remembered: thirteen a second through the whole window, either side of now.
pub const CAPACITY: usize = 8192;

/// What was accepted.
#[derive(Clone, Debug, Default)]
pub struct Replays {
    known: HashSet<[u8; 16]>,
    by_time: BTreeSet<(u64, [u8; 16])>,
    floor: u64,
}

impl Replays {
    /// Takes up what was written down; everything at or below `floor` is refused.
    pub fn load(entries: impl IntoIterator<Item = Proof>, floor: u64) -> Self {
        let mut out = Self { floor, ..Self::default() };
        entries.into_iter().for_each(|proof| out.insert(proof));
        out
    }

    /// Whether the request is new, and if so remembers it. To be called for authentic requests only.
    pub fn accept(&mut self, proof: Proof, now: Wall) -> bool {
        if proof.timestamp <= self.floor || self.known.contains(&proof.digest) {
            return false;
        }
        self.insert(proof);
        // Of no use any more: its time alone refuses it.
        while let Some((time, _)) = self.by_time.first().copied()
            && time.saturating_add(WINDOW) < now.secs()
        {
            self.forget_oldest();
        }
        true
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
            self.floor = self.floor.max(time);
        }
    }

    /// Nothing at or below this time is accepted.
    pub const fn floor(&self) -> u64 {
        self.floor
    }

    /// What must be written down to be sound after a restart, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = Proof> {
        self.by_time.iter().map(|(timestamp, digest)| Proof { timestamp: *timestamp, digest: *digest })
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }
}

/// One entry in its written form: time, blank, digest in hex. The floor has no digest.
pub fn line(timestamp: u64, digest: Option<&[u8; 16]>) -> String {
    use std::fmt::Write as _;
    let mut text = timestamp.to_string();
    if let Some(digest) = digest {
        text.push(' ');
        for b in digest {
            let _ = write!(text, "{b:02x}");
        }
    }
    text
}

/// Reads [`line()`]; `None` if it is anything else.
pub fn parse(line: &[u8]) -> Option<(u64, Option<[u8; 16]>)> {
    let text = std::str::from_utf8(line).ok()?;
    let Some((time, hex)) = text.split_once(' ') else { return Some((text.parse().ok()?, None)) };
    let hex: &[u8; 32] = hex.as_bytes().try_into().ok()?;
    let mut digest = [0; 16];
    for (i, pair) in hex.chunks_exact(2).enumerate() {
        digest[i] = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some((time.parse().ok()?, Some(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proof(id: u16, timestamp: u64) -> Proof {
        let mut digest = [0; 16];
        digest[..2].copy_from_slice(&id.to_be_bytes());
        // The time is part of what is signed, so it is part of the digest.
        digest[2..10].copy_from_slice(&timestamp.to_be_bytes());
        Proof { timestamp, digest }
    }

    proptest! {
        /// The clock jumps both ways, the process restarts, requests come again at any time.
        #[test]
        fn nothing_is_accepted_twice(
            steps in proptest::collection::vec((0u16..6, 0u64..4000, -600i64..600, any::<bool>()), 1..300),
        ) {
            let mut replays = Replays::default();
            let mut accepted = HashSet::new();
            for (id, wall, skew, restart) in steps {
                let timestamp = wall.saturating_add_signed(skew) / 50 * 50;
                let p = proof(id, timestamp);
                let in_window = wall.abs_diff(timestamp) <= WINDOW;
                if in_window && replays.accept(p, Wall(wall)) {
                    prop_assert!(accepted.insert(p.digest), "accepted twice");
                }
                if restart {
                    let lines: Vec<String> = replays.entries().map(|p| line(p.timestamp, Some(&p.digest))).collect();
                    let entries = lines.iter().map(|l| parse(l.as_bytes()).unwrap());
                    let entries = entries.map(|(timestamp, d)| Proof { timestamp, digest: d.unwrap() });
                    replays = Replays::load(entries.collect::<Vec<_>>(), parse(line(replays.floor(), None).as_bytes()).unwrap().0);
                }
            }
        }

        #[test]
        fn no_line_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_steady_clock_never_refuses_a_new_request() {
        let mut replays = Replays::default();
        for now in 1000..2000 {
            for id in 0..5 {
                assert!(replays.accept(proof(id, now), Wall(now)));
                assert!(!replays.accept(proof(id, now), Wall(now)), "at once again");
            }
        }
        assert!(replays.len() <= 5 * 302, "{}", replays.len());
    }

    #[test]
    fn a_flood_is_bounded_and_forgets_nothing_it_could_accept_again() {
        let mut replays = Replays::default();
        let first = proof(0, 1000);
        assert!(replays.accept(first, Wall(1000)));
        for id in 0..20_000u16 {
            replays.accept(proof(id, 1001 + u64::from(id / 1000)), Wall(1001));
        }
        assert!(replays.len() <= CAPACITY);
        assert!(!replays.accept(first, Wall(1000)), "forgotten for room, yet refused");
    }
}

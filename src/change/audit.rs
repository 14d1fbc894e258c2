//! The chain: each entry carries the hash of the one before it, so that a change of any entry shows in all later ones.
//!
//! What the chain cannot show by itself is a trail cut off at its end, or remade as a whole by somebody with root's rights:
//! compare the head that `spoke audit verify` prints with one noted down elsewhere.
use serde::{Deserialize, Serialize};
use spoke_model::time::{Boot, Wall};
use std::fmt;
use std::time::Duration;

/// The hash before the first entry.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A client of the agent API.
    Panel(std::net::IpAddr),
    /// A user of the command line, by the kernel's word.
    User(u32),
    /// The configuration, by whoever has changed it before a start.
    Configuration,
    /// The control plane.
    ControlPlane,
    /// The reconcile task, against drift.
    Reconcile,
    /// A change that nobody confirmed in time.
    TimeOut,
    /// The node about itself.
    Node,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panel(ip) => write!(f, "panel {}", ip.to_canonical()),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Configuration => f.write_str("configuration"),
            Self::ControlPlane => f.write_str("control plane"),
            Self::Reconcile => f.write_str("reconcile"),
            Self::TimeOut => f.write_str("confirmation time-out"),
            Self::Node => f.write_str("node"),
        }
    }
}

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Who.
    pub actor: String,
    /// What, without secrets.
    pub what: String,
    /// What came of it: `done`, or why not.
    pub result: String,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Counts from 1 without a gap.
    pub seq: u64,
    /// When, by the wall clock as it stood.
    pub time: Wall,
    /// Whether that clock was believed.
    pub trusted: bool,
    /// Who.
    pub actor: String,
    /// What.
    pub what: String,
    /// What came of it.
    pub result: String,
    /// Hash of the entry before, in hex.
    pub prev: String,
    /// Hash of this entry, in hex.
    pub hash: String,
}

impl AuditEntry {
    /// The entry that follows `(seq, hash)`.
    pub fn after(head: &ChainHead, time: Wall, trusted: bool, event: AuditEvent) -> Self {
        let AuditEvent { actor, what, result } = event;
        let mut entry = Self {
            seq: head.seq + 1,
            time,
            trusted,
            actor,
            what,
            result,
            prev: head.hash.clone(),
            hash: String::new(),
        };
        entry.hash = entry.digest();
        entry
    }

    /// The hash over everything else. Every field is written with its length, so that no two entries are written alike.
    fn digest(&self) -> String {
        use fmt::Write as _;
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let (seq, time, trusted) = (self.seq.to_string(), self.time.secs().to_string(), self.trusted.to_string());
        for part in [&seq, &time, &trusted, &self.actor, &self.what, &self.result, &self.prev] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        context.finish().as_ref().iter().fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// Where the chain is after this entry.
    pub fn head(&self) -> ChainHead {
        ChainHead { seq: self.seq, hash: self.hash.clone() }
    }
}

/// How many entries of one kind may be written in an hour: nobody shall wear out the flash, or push the rest of the trail
/// out of its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    per_hour: u32,
    hour: Boot,
    left: u32,
}

impl Allowance {
    /// So many in each hour from now on.
    pub const fn new(per_hour: u32, now: Boot) -> Self {
        Self { per_hour, hour: now, left: per_hour }
    }

    /// Whether there may be one more.
    pub fn take(&mut self, now: Boot) -> bool {
        if now.since(self.hour) >= Duration::from_secs(3600) {
            (self.hour, self.left) = (now, self.per_hour);
        }
        let fine = self.left > 0;
        self.left = self.left.saturating_sub(1);
        fine
    }
}

/// Where a chain has got to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Number of the last entry; 0 for none.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for ChainHead {
    fn default() -> Self {
        Self { seq: 0, hash: GENESIS.to_owned() }
    }
}

/// An entry that does not follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// Entries are missing.
    #[error("entry {found} follows where {expected} should: entries are missing")]
    Gap {
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The chain does not hold.
    #[error("entry {0} does not follow from the one before it")]
    Link(u64),
    /// The entry was changed.
    #[error("entry {0} was changed after it was written")]
    Content(u64),
}

/// Checks entries, oldest first. The first may stand at any number: older ones are given up for room.
pub fn verify<'e>(entries: impl IntoIterator<Item = &'e AuditEntry>) -> Result<Option<ChainHead>, BrokenChain> {
    let mut head: Option<ChainHead> = None;
    for entry in entries {
        if let Some(head) = &head {
            if entry.seq != head.seq + 1 {
                return Err(BrokenChain::Gap { expected: head.seq + 1, found: entry.seq });
            }
            if entry.prev != head.hash {
                return Err(BrokenChain::Link(entry.seq));
            }
        }
        if entry.digest() != entry.hash || (entry.seq == 1 && entry.prev != GENESIS) {
            return Err(BrokenChain::Content(entry.seq));
        }
        head = Some(entry.head());
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chain(n: u64) -> Vec<AuditEntry> {
        let mut head = ChainHead::default();
        (0..n)
            .map(|i| {
                let event =
                    AuditEvent { actor: format!("user {i}"), what: "x".repeat(i as usize), result: "done".into() };
                let entry = AuditEntry::after(&head, Wall(i), i % 2 == 0, event);
                head = entry.head();
                entry
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_change_shows(n in 2u64..12, at in 0usize..12, field in 0usize..8) {
            let mut entries = chain(n);
            let at = at % entries.len();
            let e = &mut entries[at];
            match field {
                0 => e.seq += 1,
                1 => e.time.0 += 1,
                2 => e.trusted = !e.trusted,
                3 => e.actor.push('0'),
                4 => e.what.push('y'),
                5 => e.result = "refused".into(),
                6 => e.prev = GENESIS.replace('0', "1"),
                _ => e.hash = GENESIS.to_owned(),
            }
            prop_assert!(verify(&entries).is_err());
        }

        #[test]
        fn a_missing_entry_shows_and_a_missing_beginning_does_not(n in 3u64..12, at in 1usize..12) {
            let entries = chain(n);
            prop_assert_eq!(verify(&entries).unwrap().unwrap().seq, n);
            prop_assert_eq!(verify(&entries[1..]).unwrap().unwrap().seq, n);
            let mut cut = entries.clone();
            cut.remove(1 + at % (entries.len() - 2));
            prop_assert!(verify(&cut).is_err());
        }
    }

    #[test]
    fn an_hour_has_so_many_entries_and_no_more() {
        let mut allowed = Allowance::new(2, Boot::from_secs(10));
        let taken = [10, 11, 12, 3609, 3610, 3611, 3612].map(|s| allowed.take(Boot::from_secs(s)));
        assert_eq!(taken, [true, true, false, false, true, true, false]);
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let event = |a: &str, b: &str| AuditEvent { actor: a.into(), what: b.into(), result: String::new() };
        let one = AuditEntry::after(&ChainHead::default(), Wall(0), true, event("ab", "c"));
        let two = AuditEntry::after(&ChainHead::default(), Wall(0), true, event("a", "bc"));
        assert_ne!(one.hash, two.hash);
    }
}

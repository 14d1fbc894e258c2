//! The audit trail as a hash chain: each entry carries the hash of the one before it, so a modified entry breaks the chain.
//!
//! A chain alone does not detect a trail cut off at its end or rewritten as a whole by root: compare the head printed by
//! `spoke audit verify` with one recorded elsewhere.
use serde::{Deserialize, Serialize};
use spoke_model::time::{Boot, Wall};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// The hash before the first entry.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The origin of a change. Stored as its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Actor {
    /// A client of the agent API.
    Panel(IpAddr),
    /// A user of the control socket, by the uid of its peer credentials.
    User(u32),
    /// The configuration file, changed before a start.
    Configuration,
    /// The control plane.
    ControlPlane,
    /// The reconciler, against drift.
    Reconcile,
    /// A confirmation that did not come in time.
    TimeOut,
    /// The node itself.
    Node,
    /// An actor of another version.
    Other(String),
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
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<Actor> for String {
    fn from(actor: Actor) -> Self {
        actor.to_string()
    }
}

impl From<String> for Actor {
    fn from(text: String) -> Self {
        match text.as_str() {
            "configuration" => Self::Configuration,
            "control plane" => Self::ControlPlane,
            "reconcile" => Self::Reconcile,
            "confirmation time-out" => Self::TimeOut,
            "node" => Self::Node,
            other => {
                let panel = other.strip_prefix("panel ").and_then(|ip| ip.parse().ok()).map(Self::Panel);
                let user = || other.strip_prefix("user ").and_then(|uid| uid.parse().ok()).map(Self::User);
                panel.or_else(user).unwrap_or(Self::Other(text))
            }
        }
    }
}

/// An event to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Its origin.
    pub actor: Actor,
    /// The change, without secrets.
    pub what: String,
    /// `done`, or the error.
    pub result: String,
}

/// One entry of the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Counts from 1 without a gap.
    pub seq: u64,
    /// Wall clock, trusted or not.
    pub time: Wall,
    /// Whether the wall clock was trusted.
    pub trusted: bool,
    /// An [`Actor`] as text.
    pub actor: String,
    /// The change.
    pub what: String,
    /// `done`, or the error.
    pub result: String,
    /// SHA-256 of the entry before, in hex.
    pub prev: String,
    /// SHA-256 of this entry, in hex.
    pub hash: String,
}

impl AuditEntry {
    /// The entry that follows `head`.
    pub fn after(head: &ChainHead, time: Wall, trusted: bool, event: AuditEvent) -> Self {
        let AuditEvent { actor, what, result } = event;
        let mut entry = Self {
            seq: head.seq + 1,
            time,
            trusted,
            actor: actor.to_string(),
            what,
            result,
            prev: head.hash.clone(),
            hash: String::new(),
        };
        entry.hash = entry.digest();
        entry
    }

    /// The hash over all other fields. Each is prefixed with its length, so the encoding is unambiguous.
    fn digest(&self) -> String {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let (seq, time, trusted) = (self.seq.to_string(), self.time.secs().to_string(), self.trusted.to_string());
        for part in [&seq, &time, &trusted, &self.actor, &self.what, &self.result, &self.prev] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        const_hex::encode(context.finish())
    }

    /// The head of the chain after this entry.
    pub fn head(&self) -> ChainHead {
        ChainHead { seq: self.seq, hash: self.hash.clone() }
    }
}

/// Rate limit for entries of one kind: the flash has limited writes, and the trail has a limited size.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    per_hour: u32,
    hour: Boot,
    left: u32,
}

impl Allowance {
    /// Allows `per_hour` entries in each hour that begins at `now`.
    pub const fn new(per_hour: u32, now: Boot) -> Self {
        Self { per_hour, hour: now, left: per_hour }
    }

    /// Takes one entry; `false` when the hour's allowance is used up.
    pub fn take(&mut self, now: Boot) -> bool {
        if now.since(self.hour) >= Duration::from_secs(3600) {
            (self.hour, self.left) = (now, self.per_hour);
        }
        let fine = self.left > 0;
        self.left = self.left.saturating_sub(1);
        fine
    }
}

/// The end of a chain.
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

/// A break in the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// Entries are missing.
    #[error("entry {found} follows where {expected} should: entries are missing")]
    Gap {
        /// Sequence number expected.
        expected: u64,
        /// Sequence number found.
        found: u64,
    },
    /// The hash of the previous entry differs.
    #[error("entry {0} does not follow from the one before it")]
    Link(u64),
    /// The entry's own hash differs.
    #[error("entry {0} was changed after it was written")]
    Content(u64),
}

/// Verifies entries, oldest first. The first may have any number, since old entries are dropped for space.
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
                let event = AuditEvent {
                    actor: Actor::Other(format!("user {i}")),
                    what: "x".repeat(i as usize),
                    result: "done".into(),
                };
                let entry = AuditEntry::after(&head, Wall(i), i % 2 == 0, event);
                head = entry.head();
                entry
            })
            .collect()
    }

    proptest! {
        #[test]
        fn modified_entry_breaks_the_chain(n in 2u64..12, at in 0usize..12, field in 0usize..8) {
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
        fn missing_entry_breaks_the_chain_missing_start_does_not(n in 3u64..12, at in 1usize..12) {
            let entries = chain(n);
            prop_assert_eq!(verify(&entries).unwrap().unwrap().seq, n);
            prop_assert_eq!(verify(&entries[1..]).unwrap().unwrap().seq, n);
            let mut cut = entries.clone();
            cut.remove(1 + at % (entries.len() - 2));
            prop_assert!(verify(&cut).is_err());
        }
    }

    #[test]
    fn actor_survives_its_text_form() {
        let ip = "2001:db8::1".parse().unwrap();
        for actor in [
            Actor::Panel(ip),
            Actor::User(1000),
            Actor::Configuration,
            Actor::ControlPlane,
            Actor::Reconcile,
            Actor::TimeOut,
            Actor::Node,
            Actor::Other("panel x".into()),
        ] {
            let text = serde_json::to_string(&actor).unwrap();
            assert_eq!(text, format!("\"{actor}\""));
            assert_eq!(serde_json::from_str::<Actor>(&text).unwrap(), actor);
        }
    }

    #[test]
    fn allowance_limits_entries_per_hour() {
        let mut allowed = Allowance::new(2, Boot::from_secs(10));
        let taken = [10, 11, 12, 3609, 3610, 3611, 3612].map(|s| allowed.take(Boot::from_secs(s)));
        assert_eq!(taken, [true, true, false, false, true, true, false]);
    }

    #[test]
    fn field_boundaries_are_part_of_the_hash() {
        let event =
            |a: &str, b: &str| AuditEvent { actor: Actor::Other(a.into()), what: b.into(), result: String::new() };
        let one = AuditEntry::after(&ChainHead::default(), Wall(0), true, event("ab", "c"));
        let two = AuditEntry::after(&ChainHead::default(), Wall(0), true, event("a", "bc"));
        assert_ne!(one.hash, two.hash);
    }
}

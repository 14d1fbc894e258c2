//! The two slots and their boot entries as values.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Starts of a new slot before the boot loader returns to the other one.
pub const TRIES: u8 = 3;
/// Starts of a committed slot that do not reach its first process before the boot loader takes the other one.
pub const STARTS: u8 = 2;

/// One of the two root partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `root_a`
    A,
    /// `root_b`
    B,
}

impl Slot {
    /// The other slot.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The name of its partition.
    pub const fn partition(self) -> &'static str {
        match self {
            Self::A => "root_a",
            Self::B => "root_b",
        }
    }

    /// The slot of a partition's name.
    pub fn of_partition(name: &str) -> Option<Self> {
        [Self::A, Self::B].into_iter().find(|s| s.partition() == name)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

impl FromStr for Slot {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            _ => Err("a slot is a or b"),
        }
    }
}

/// How far the boot loader trusts an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Committed.
    Good,
    /// On trial, with this many starts left; at 0 the boot loader prefers any other entry.
    Trying(u8),
}

/// A systemd-boot entry: a unified kernel whose file name contains order, slot and starts left.
///
/// `spoke-000012-b+2-1.efi`: order 12, slot b, 2 starts left, 1 used. systemd-boot renames it at each start and passes over an
/// entry without starts left. Left and used add up to [`TRIES`] on trial, and to one more (`+2-2`) in a committed slot, whose
/// first process sets them back; without `+…` it is committed and not counted, as in older releases. Of two entries with
/// starts left the one with the higher order is started, so a rollback is a rename.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Higher is preferred.
    pub order: u32,
    /// The slot it starts.
    pub slot: Slot,
    /// Starts left and used; `None`: not counted.
    counter: Option<(u8, u8)>,
}

/// Starts left and used of a committed slot while its system runs.
const ARMED: (u8, u8) = (STARTS, TRIES + 1 - STARTS);

impl Entry {
    /// An entry on trial.
    pub const fn trying(order: u32, slot: Slot) -> Self {
        Self { order, slot, counter: Some((TRIES, 0)) }
    }

    /// Parses a file name; `None` for other files.
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("spoke-")?.strip_suffix(".efi")?;
        let (id, counter) = match rest.split_once('+') {
            None => (rest, None),
            Some((id, counter)) => (id, Some(counter)),
        };
        let (order, slot) = id.split_once('-')?;
        if order.len() != 6 || !order.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let counter = match counter {
            None => None,
            Some(text) => {
                let (left, used) = text.split_once('-').unwrap_or((text, "0"));
                Some((left.parse().ok()?, used.parse().ok()?))
            }
        };
        Some(Self { order: order.parse().ok()?, slot: slot.parse().ok()?, counter })
    }

    /// How far the boot loader trusts it. A committed entry without starts left is passed over like one that was given up.
    pub const fn trust(&self) -> Trust {
        match self.counter {
            None => Trust::Good,
            Some((left, used)) if left > 0 && left.saturating_add(used) == ARMED.0 + ARMED.1 => Trust::Good,
            Some((left, _)) => Trust::Trying(left),
        }
    }

    /// Whether it is committed and used up its starts without reaching its first process.
    pub const fn is_unstarted(&self) -> bool {
        matches!(self.counter, Some((0, used)) if used == ARMED.0 + ARMED.1)
    }

    /// The entry after its slot is committed, or after its first process found it committed: all starts left.
    #[must_use]
    pub const fn armed(&self) -> Self {
        Self { order: self.order, slot: self.slot, counter: Some(ARMED) }
    }

    /// The entry after its slot is rejected: kept for rescue, never preferred.
    #[must_use]
    pub const fn condemned(&self) -> Self {
        Self { order: self.order, slot: self.slot, counter: Some((0, 0)) }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spoke-{:06}-{}", self.order, self.slot)?;
        match self.counter {
            None => {}
            Some((left, 0)) => write!(f, "+{left}")?,
            Some((left, used)) => write!(f, "+{left}-{used}")?,
        }
        f.write_str(".efi")
    }
}

/// The entry systemd-boot starts next: those with starts left or not counted before those without, then by order.
pub fn next(entries: &[Entry]) -> Option<&Entry> {
    entries.iter().max_by_key(|e| (e.trust() != Trust::Trying(0), e.order))
}

/// The order of an entry that is preferred over all of these.
pub fn next_order(entries: &[Entry]) -> u32 {
    entries.iter().map(|e| e.order).max().unwrap_or(0).saturating_add(1).min(999_999)
}

/// The entry of `slot` that the boot loader prefers: the one with the highest order.
pub fn preferred(entries: Vec<Entry>, slot: Slot) -> Option<Entry> {
    entries.into_iter().filter(|e| e.slot == slot).max_by_key(|e| e.order)
}

/// Consecutive starts of a committed slot in which no reconcile pass was completed, stored in a raw partition. The boot loader
/// counts only up to a slot's first process.
///
/// A start counts as failed after [`LIVED`]; one that ended earlier may have been a power cut and counts apart, with a higher
/// limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// Starts that lasted.
    pub failed: u8,
    /// Starts that ended early, the current one among them.
    pub early: u8,
}

/// Uptime after which a start without a pass counts as failed.
pub const LIVED: Duration = Duration::from_secs(120);
/// Failed starts after which the other slot is started.
const FAILED_MAX: u8 = 6;
/// Early ends after which the other slot is started: a kernel that panics each time is back every minute.
const EARLY_MAX: u8 = 30;

const STARTS_MAGIC: &[u8; 8] = b"SPKSTRT1";

impl Starts {
    /// Bytes of the record; they fit into one sector, which is written atomically.
    pub const SIZE: usize = 12;

    /// Parses the record; a damaged count is 0, so that it never prevents a start.
    pub fn parse(bytes: &[u8]) -> Self {
        let count = |at: usize| match bytes.get(at..at + 2) {
            Some([n, inverse]) if *inverse == !*n => *n,
            _ => 0,
        };
        // Releases before the second count read and write the first ten bytes.
        if bytes.starts_with(STARTS_MAGIC) { Self { failed: count(8), early: count(10) } } else { Self::default() }
    }

    /// The record's bytes.
    pub fn bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..8].copy_from_slice(STARTS_MAGIC);
        out[8..].copy_from_slice(&[self.failed, !self.failed, self.early, !self.early]);
        out
    }

    /// At the beginning of a start.
    #[must_use]
    pub const fn begun(self) -> Self {
        Self { failed: self.failed, early: self.early.saturating_add(1) }
    }

    /// After [`LIVED`] without a pass.
    #[must_use]
    pub const fn lived(self) -> Self {
        Self { failed: self.failed.saturating_add(1), early: 0 }
    }

    /// Whether the slot cannot be kept running.
    pub const fn exhausted(self) -> bool {
        self.failed >= FAILED_MAX || self.early >= EARLY_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str) -> Entry {
        Entry::parse(name).unwrap()
    }

    #[test]
    fn names_contain_order_slot_and_tries() {
        for name in ["spoke-000001-a.efi", "spoke-000012-b+3.efi", "spoke-000012-b+2-1.efi", "spoke-000003-a+0-3.efi"] {
            assert_eq!(entry(name).to_string(), name);
        }
        for other in [
            "spoke-1-a.efi",
            "spoke-000001-c.efi",
            "spoke-000001-a+x.efi",
            "edge.efi",
            "spoke-000001-a",
            "spoke-+00001-a.efi",
        ] {
            assert_eq!(Entry::parse(other), None, "{other}");
        }
    }

    #[test]
    fn new_slot_is_preferred_until_its_tries_are_used() {
        let good = entry("spoke-000001-a.efi");
        assert_eq!(next(&[good.clone(), entry("spoke-000002-b+3.efi")]).unwrap().slot, Slot::B);
        assert_eq!(next(&[good.clone(), entry("spoke-000002-b+1-2.efi")]).unwrap().slot, Slot::B);
        assert_eq!(next(&[good.clone(), entry("spoke-000002-b+0-3.efi")]).unwrap().slot, Slot::A);
        assert_eq!(
            next(&[good.condemned(), entry("spoke-000002-b+0-3.efi")]).unwrap().slot,
            Slot::B,
            "no entry is ever excluded"
        );
        assert_eq!(next(&[]), None);
    }

    #[test]
    fn committed_entry_is_counted_until_its_first_process() {
        let other = entry("spoke-000001-a+2-2.efi");
        for (name, trust, slot) in [
            ("spoke-000002-b.efi", Trust::Good, Slot::B),
            ("spoke-000002-b+2-2.efi", Trust::Good, Slot::B),
            ("spoke-000002-b+1-3.efi", Trust::Good, Slot::B),
            ("spoke-000002-b+0-4.efi", Trust::Trying(0), Slot::A),
        ] {
            assert_eq!(entry(name).trust(), trust, "{name}");
            assert_eq!(next(&[other.clone(), entry(name)]).unwrap().slot, slot, "{name}");
            assert_eq!(entry(name).armed().to_string(), "spoke-000002-b+2-2.efi");
        }
        assert_eq!(entry("spoke-000002-b+3.efi").trust(), Trust::Trying(3));
    }

    #[test]
    fn damaged_start_count_is_zero() {
        let starts = Starts { failed: 3, early: 7 };
        assert_eq!(Starts::parse(&starts.bytes()), starts);
        for damaged in [&[][..], &[0xff; 12], &starts.bytes()[..7]] {
            assert_eq!(Starts::parse(damaged), Starts::default());
        }
        // A record of an older release.
        assert_eq!(Starts::parse(b"SPKSTRT1\x03\xfc\0\0"), Starts { failed: 3, early: 0 });
    }

    #[test]
    fn flapping_power_is_no_failed_start() {
        let mut starts = Starts::default();
        for _ in 0..20 {
            starts = starts.begun();
        }
        assert!(!starts.exhausted());
        // A system that never gets anywhere is given up all the same.
        for _ in 0..10 {
            starts = starts.begun();
        }
        assert!(starts.exhausted());
        let lasting = (0..5).fold(Starts::default(), |s, _| s.begun().lived());
        assert!(!lasting.begun().exhausted() && lasting.begun().lived().exhausted());
    }

    #[test]
    fn preferred_entry_has_the_highest_order() {
        let entry = |slot, order| Entry { order, slot, counter: None };
        let all = vec![entry(Slot::A, 2), entry(Slot::A, 3), entry(Slot::B, 9)];
        assert_eq!(preferred(all.clone(), Slot::A), Some(entry(Slot::A, 3)));
        assert_eq!(preferred(vec![entry(Slot::B, 9)], Slot::A), None);
    }

    proptest! {
        #[test]
        fn any_name_is_parsed_or_rejected(name in "\\PC{0,40}") {
            let _ = Entry::parse(&name);
        }

        #[test]
        fn entry_name_round_trips(order in 0u32..1_000_000, a in any::<bool>(), counter in proptest::option::of(any::<(u8, u8)>())) {
            let e = Entry { order, slot: if a { Slot::A } else { Slot::B }, counter };
            prop_assert_eq!(Entry::parse(&e.to_string()), Some(e));
        }

        #[test]
        fn committed_entry_stays_preferred(order in 1u32..999_999) {
            let old = Entry { order: order - 1, slot: Slot::A, counter: None };
            let tried = Entry { order, slot: Slot::B, counter: Some((1, 2)) };
            let after = [old.clone(), tried.armed()];
            prop_assert_eq!(next(&after).unwrap().slot, Slot::B);
            let after = [old, tried.condemned()];
            prop_assert_eq!(next(&after).unwrap().slot, Slot::A);
        }
    }
}

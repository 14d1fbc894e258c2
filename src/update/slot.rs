//! The two slots and their boot entries as values.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Starts of a new slot before the boot loader returns to the other one.
pub const TRIES: u8 = 3;

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
    /// Committed: started without counting.
    Good,
    /// On trial, with this many starts left; at 0 the boot loader prefers any other entry.
    Trying(u8),
}

/// A systemd-boot entry: a unified kernel whose file name contains order, slot and tries.
///
/// `spoke-000012-b+2-1.efi`: order 12, slot b, 2 tries left, 1 used. systemd-boot renames it at each start; without
/// `+…` it is committed. Of two good entries the one with the higher order is started, so a rollback is a rename.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Higher is preferred.
    pub order: u32,
    /// The slot it starts.
    pub slot: Slot,
    /// Its trust.
    pub trust: Trust,
    /// Starts used while trying.
    pub used: u8,
}

impl Entry {
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
        let (trust, used) = match counter {
            None => (Trust::Good, 0),
            Some(text) => {
                let (left, used) = text.split_once('-').unwrap_or((text, "0"));
                (Trust::Trying(left.parse().ok()?), used.parse().ok()?)
            }
        };
        Some(Self { order: order.parse().ok()?, slot: slot.parse().ok()?, trust, used })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spoke-{:06}-{}", self.order, self.slot)?;
        match (self.trust, self.used) {
            (Trust::Good, _) => {}
            (Trust::Trying(left), 0) => write!(f, "+{left}")?,
            (Trust::Trying(left), used) => write!(f, "+{left}-{used}")?,
        }
        f.write_str(".efi")
    }
}

/// The entry systemd-boot starts next: those with tries left or committed before those without, then by order.
pub fn next(entries: &[Entry]) -> Option<&Entry> {
    entries.iter().max_by_key(|e| (e.trust != Trust::Trying(0), e.order))
}

/// The order of an entry that is preferred over all of these.
pub fn next_order(entries: &[Entry]) -> u32 {
    entries.iter().map(|e| e.order).max().unwrap_or(0).saturating_add(1).min(999_999)
}

/// The entry of `slot` that the boot loader prefers: the one with the highest order.
pub fn preferred(entries: Vec<Entry>, slot: Slot) -> Option<Entry> {
    entries.into_iter().filter(|e| e.slot == slot).max_by_key(|e| e.order)
}

/// The entry after its slot is committed.
pub fn committed(entry: &Entry) -> Entry {
    Entry { trust: Trust::Good, used: 0, ..entry.clone() }
}

/// The entry after its slot is rejected: kept for rescue, never preferred.
pub fn condemned(entry: &Entry) -> Entry {
    Entry { trust: Trust::Trying(0), ..entry.clone() }
}

/// Consecutive starts without a clean reconcile pass, stored in a raw partition. The boot loader counts the tries of a
/// new slot; this counts those of a committed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Starts(pub u8);

/// Starts without a clean pass after which the other slot is tried.
pub const STARTS_MAX: u8 = 6;

const STARTS_MAGIC: &[u8; 8] = b"SPKSTRT1";

impl Starts {
    /// Parses the record; a damaged one counts as 0, so that it never prevents a start.
    pub fn parse(bytes: &[u8]) -> Self {
        match bytes {
            [magic @ .., n, inverse] if bytes.len() == 10 && magic == STARTS_MAGIC && *inverse == !*n => Self(*n),
            _ => Self(0),
        }
    }

    /// The record's bytes; they fit into one sector, which is written atomically.
    pub fn bytes(self) -> [u8; 10] {
        let mut out = [0; 10];
        out[..8].copy_from_slice(STARTS_MAGIC);
        out[8] = self.0;
        out[9] = !self.0;
        out
    }

    /// After one more start.
    pub const fn one_more(self) -> Self {
        Self(self.0.saturating_add(1))
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
            next(&[condemned(&good), entry("spoke-000002-b+0-3.efi")]).unwrap().slot,
            Slot::B,
            "no entry is ever excluded"
        );
        assert_eq!(next(&[]), None);
    }

    #[test]
    fn damaged_start_count_is_zero() {
        assert_eq!(Starts::parse(&[]), Starts(0));
        assert_eq!(Starts::parse(&[0xff; 10]), Starts(0));
        assert_eq!(Starts::parse(&Starts(3).bytes()), Starts(3));
    }

    #[test]
    fn preferred_entry_has_the_highest_order() {
        let entry = |slot, order| Entry { order, slot, trust: Trust::Good, used: 0 };
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
        fn entry_name_round_trips(order in 0u32..1_000_000, a in any::<bool>(), left in proptest::option::of(any::<u8>()), used in any::<u8>()) {
            let e = Entry {
                order,
                slot: if a { Slot::A } else { Slot::B },
                trust: left.map_or(Trust::Good, Trust::Trying),
                used: if left.is_some() { used } else { 0 },
            };
            prop_assert_eq!(Entry::parse(&e.to_string()), Some(e));
        }

        #[test]
        fn committed_entry_stays_preferred(order in 1u32..999_999) {
            let old = Entry { order: order - 1, slot: Slot::A, trust: Trust::Good, used: 0 };
            let tried = Entry { order, slot: Slot::B, trust: Trust::Trying(1), used: 2 };
            let after = [old.clone(), committed(&tried)];
            prop_assert_eq!(next(&after).unwrap().slot, Slot::B);
            let after = [old, condemned(&tried)];
            prop_assert_eq!(next(&after).unwrap().slot, Slot::A);
        }
    }
}

//! What a device has committed, apart from the state partition: its loss must not let an older release in.
//!
//! Three numbers that only grow, in two copies in the raw partition of the boot environment. Of both copies the higher numbers
//! count, so neither the order of the writes nor a damaged copy matters.
use super::manifest::Known;
use super::uboot::crc32;

const MAGIC: &[u8; 8] = b"SPKSEAL1";
/// Bytes of a copy; they fit into one sector.
pub const SIZE: usize = 36;
/// Offsets of the copies in the partition, in bytes.
pub const OFFSETS: [u64; 2] = [0x3_0000, 0x3_8000];

/// The numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Highest serial of a certificate.
    pub serial: u64,
    /// Lowest sequence that may be installed.
    pub floor: u64,
    /// Highest sequence committed.
    pub sequence: u64,
}

impl Seal {
    /// Of both copies; a damaged one counts for nothing.
    pub fn parse(copies: [&[u8]; 2]) -> Self {
        let [first, second] = copies.map(|c| Self::read(c).unwrap_or_default());
        first.raised(second)
    }

    fn read(copy: &[u8]) -> Option<Self> {
        let (data, sum) = copy.get(..SIZE)?.split_at_checked(SIZE - 4)?;
        if !data.starts_with(MAGIC) || crc32(data).to_le_bytes() != *sum {
            return None;
        }
        let number = |at: usize| Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?));
        Some(Self { serial: number(8)?, floor: number(16)?, sequence: number(24)? })
    }

    /// The bytes of each copy.
    pub fn bytes(self) -> Vec<u8> {
        let numbers = [self.serial, self.floor, self.sequence].map(u64::to_le_bytes);
        let mut out = [MAGIC.as_slice(), numbers.as_flattened()].concat();
        let sum = crc32(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// The higher of each number.
    #[must_use]
    pub fn raised(self, other: Self) -> Self {
        Self {
            serial: self.serial.max(other.serial),
            floor: self.floor.max(other.floor),
            sequence: self.sequence.max(other.sequence),
        }
    }

    /// Raises what bundles are checked against.
    pub fn apply(self, known: &mut Known) {
        known.serial = known.serial.max(self.serial);
        known.floor = known.floor.max(self.floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn seal()(serial in any::<u64>(), floor in any::<u64>(), sequence in any::<u64>()) -> Seal {
            Seal { serial, floor, sequence }
        }
    }

    proptest! {
        #[test]
        fn damage_of_one_copy_loses_nothing(seal in seal(), copy in 0usize..2, at in 0..SIZE, bit in 0u8..8) {
            let mut copies = [seal.bytes(), seal.bytes()];
            copies[copy][at] ^= 1 << bit;
            prop_assert_eq!(Seal::parse([&copies[0], &copies[1]]), seal);
        }

        #[test]
        fn numbers_never_fall(one in seal(), two in seal()) {
            // A cut after the first of two writes.
            let found = Seal::parse([&one.raised(two).bytes(), &one.bytes()]);
            prop_assert_eq!(found, one.raised(two));
        }

        #[test]
        fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Seal::parse([&bytes, &[]]), Seal::default());
        }
    }
}

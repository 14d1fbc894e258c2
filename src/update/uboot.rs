//! U-Boot's environment block as a value: a CRC32, then `name=value` strings.
//!
//! Boards with U-Boot count the tries in these variables, in a raw partition, instead of in the name of a boot entry.
use super::slot::{Slot, TRIES, Trust};
use std::collections::BTreeMap;

/// Bytes of the block, as in `env import -c` of the boot script.
pub const SIZE: usize = 0x1000;

/// The variables of the boot script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEnv {
    /// The slot tried first.
    pub first: Slot,
    /// Slot a.
    pub a: Trust,
    /// Slot b.
    pub b: Trust,
}

impl Default for BootEnv {
    /// A new disk, and what the script assumes for a damaged block: a is committed, b is empty.
    fn default() -> Self {
        Self { first: Slot::A, a: Trust::Good, b: Trust::Trying(0) }
    }
}

impl BootEnv {
    /// Parses a block; the default if the checksum is wrong or a variable is malformed.
    pub fn parse(block: &[u8]) -> Self {
        Self::read(block).unwrap_or_default()
    }

    fn read(block: &[u8]) -> Option<Self> {
        let (sum, data) = block.get(..SIZE)?.split_at_checked(4)?;
        if crc32(data).to_le_bytes() != *sum {
            return None;
        }
        let text = data.split(|b| *b == 0).take_while(|v| !v.is_empty());
        let variables: BTreeMap<&str, &str> =
            text.filter_map(|v| std::str::from_utf8(v).ok()?.split_once('=')).collect();
        let trust = |name: &str| match *variables.get(name)? {
            "ok" => Some(Trust::Good),
            n => n.parse().ok().map(Trust::Trying),
        };
        let first = variables.get("spoke_order")?.split(' ').next()?.parse().ok()?;
        Some(Self { first, a: trust("spoke_a")?, b: trust("spoke_b")? })
    }

    /// The block to write.
    pub fn bytes(&self) -> Vec<u8> {
        let value = |t: Trust| match t {
            Trust::Good => "ok".to_owned(),
            Trust::Trying(n) => n.to_string(),
        };
        let text = format!(
            "spoke_a={}\0spoke_b={}\0spoke_order={} {}\0\0",
            value(self.a),
            value(self.b),
            self.first,
            self.first.other()
        );
        let mut data = text.into_bytes();
        data.resize(SIZE - 4, 0);
        let mut block = crc32(&data).to_le_bytes().to_vec();
        block.extend_from_slice(&data);
        block
    }

    /// The trust in a slot.
    pub const fn trust(&self, slot: Slot) -> Trust {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }

    /// With this trust in `slot`.
    pub const fn with(mut self, slot: Slot, trust: Trust) -> Self {
        match slot {
            Slot::A => self.a = trust,
            Slot::B => self.b = trust,
        }
        self
    }

    /// With `slot` on trial, preferred.
    pub const fn trying(self, slot: Slot) -> Self {
        let mut env = self.with(slot, Trust::Trying(TRIES));
        env.first = slot;
        env
    }

    /// The same with `slot` committed and started first.
    pub const fn committed(self, slot: Slot) -> Self {
        let mut env = self.with(slot, Trust::Good);
        env.first = slot;
        env
    }

    /// The slot the boot script starts next.
    pub fn next(&self) -> Slot {
        [self.first, self.first.other()].into_iter().find(|s| self.trust(*s) != Trust::Trying(0)).unwrap_or(Slot::A)
    }
}

/// CRC-32 (IEEE 802.3), as in U-Boot.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trust() -> impl Strategy<Value = Trust> {
        prop_oneof![Just(Trust::Good), (0u8..=9).prop_map(Trust::Trying)]
    }

    #[test]
    fn crc32_has_the_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn exhausted_trial_returns_to_the_old_slot() {
        let mut env = BootEnv::default().trying(Slot::B);
        for left in (0..TRIES).rev() {
            assert_eq!(env.next(), Slot::B);
            env = env.with(Slot::B, Trust::Trying(left));
        }
        assert_eq!(env.next(), Slot::A);
    }

    proptest! {
        #[test]
        fn block_round_trips(first in any::<bool>(), a in trust(), b in trust()) {
            let env = BootEnv { first: if first { Slot::A } else { Slot::B }, a, b };
            prop_assert_eq!(BootEnv::parse(&env.bytes()), env);
        }

        #[test]
        fn damaged_block_is_the_default(at in 0usize..64, bit in 0u8..8, a in trust()) {
            let mut block = BootEnv { first: Slot::B, a, b: Trust::Good }.bytes();
            block[at] ^= 1 << bit;
            prop_assert_eq!(BootEnv::parse(&block), BootEnv::default());
        }

        #[test]
        fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..SIZE + 10)) {
            let _ = BootEnv::parse(&bytes);
        }
    }
}

//! U-Boot's environment as a value: two copies, each a CRC32 and `name=value` strings.
//!
//! Boards with U-Boot count the starts in these variables, in a raw partition, instead of in the name of a boot entry. The
//! scheme is that of U-Boot's own redundant environment: the valid copy with the higher counter is current, the other one
//! is written first. The counter is a variable (`spoke_seq`), so the first copy stays readable by releases that know no other.
use super::slot::{STARTS, Slot, TRIES, Trust};
use std::collections::BTreeMap;

/// Bytes of a copy, as in `env import -c` of the boot script.
pub const SIZE: usize = 0x1000;
/// Offsets of the copies in their partition, in bytes; far apart, since flash fails by erase blocks.
pub const OFFSETS: [u64; 2] = [0, 0x2_0000];

/// The variables of the boot script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEnv {
    /// The slot tried first.
    pub first: Slot,
    a: SlotVars,
    b: SlotVars,
}

/// The variables of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotVars {
    trust: Trust,
    /// Starts left of a committed slot; `None`: its starts are not counted.
    left: Option<u8>,
}

impl Default for BootEnv {
    /// A new disk, and what the script assumes if both copies are damaged: a is committed, b is empty.
    fn default() -> Self {
        let vars = |trust| SlotVars { trust, left: None };
        Self { first: Slot::A, a: vars(Trust::Good), b: vars(Trust::Trying(0)) }
    }
}

/// The environment as found on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The current variables; the default if both copies are damaged.
    pub env: BootEnv,
    /// Counter of the current copy; 0 if it has none.
    sequence: u32,
    /// Index of the current copy; `None` if both are damaged.
    current: Option<usize>,
    /// Both copies are the current one.
    intact: bool,
}

impl Stored {
    /// Chooses between both copies.
    pub fn parse(copies: [&[u8]; 2]) -> Self {
        let [first, second] = copies.map(BootEnv::read);
        // Without a counter the first copy was written by an older release, which knows no other.
        let second = second.and_then(|(env, sequence)| Some((env, sequence?)));
        let (current, env, sequence, intact) = match (first, second) {
            (Some((env, None)), _) => (Some(0), env, 0, false),
            (Some((env, Some(n))), Some((_, m))) if n > m => (Some(0), env, n, false),
            (Some((_, Some(n))), Some((env, m))) if m > n => (Some(1), env, m, false),
            (Some((env, Some(n))), Some((other, _))) => (Some(0), env.clone(), n, env == other),
            (Some((env, Some(n))), None) => (Some(0), env, n, false),
            (None, Some((env, m))) => (Some(1), env, m, false),
            (None, None) => (None, BootEnv::default(), 0, false),
        };
        Self { env, sequence, current, intact }
    }

    /// The writes that store `env`, as (index of the copy, bytes), in order; none if it is stored in both copies.
    pub fn store(&self, env: &BootEnv) -> Vec<(usize, Vec<u8>)> {
        if self.intact && *env == self.env {
            return Vec::new();
        }
        let bytes = env.bytes(self.sequence.saturating_add(1));
        let order = if self.current == Some(1) { [0, 1] } else { [1, 0] };
        order.map(|at| (at, bytes.clone())).into()
    }

    /// Whether a copy is damaged or outdated.
    pub const fn needs_repair(&self) -> bool {
        !self.intact
    }
}

impl BootEnv {
    fn read(block: &[u8]) -> Option<(Self, Option<u32>)> {
        let (sum, data) = block.get(..SIZE)?.split_at_checked(4)?;
        if crc32(data).to_le_bytes() != *sum {
            return None;
        }
        let text = data.split(|b| *b == 0).take_while(|v| !v.is_empty());
        let variables: BTreeMap<&str, &str> =
            text.filter_map(|v| std::str::from_utf8(v).ok()?.split_once('=')).collect();
        let vars = |trust: &str, left: &str| {
            let trust = match *variables.get(trust)? {
                "ok" => Trust::Good,
                n => Trust::Trying(n.parse().ok()?),
            };
            Some(SlotVars { trust, left: variables.get(left).and_then(|n| n.parse().ok()) })
        };
        let first = variables.get("spoke_order")?.split(' ').next()?.parse().ok()?;
        // setexpr writes hexadecimal.
        let sequence = variables.get("spoke_seq").and_then(|n| u32::from_str_radix(n, 16).ok());
        Some((Self { first, a: vars("spoke_a", "spoke_la")?, b: vars("spoke_b", "spoke_lb")? }, sequence))
    }

    fn bytes(&self, sequence: u32) -> Vec<u8> {
        let mut text = String::new();
        for (name, vars) in [("a", self.a), ("b", self.b)] {
            match vars.trust {
                Trust::Good => text += &format!("spoke_{name}=ok\0"),
                Trust::Trying(n) => text += &format!("spoke_{name}={n}\0"),
            }
            if let Some(left) = vars.left {
                text += &format!("spoke_l{name}={left}\0");
            }
        }
        text += &format!("spoke_order={} {}\0spoke_seq={sequence:x}\0\0", self.first, self.first.other());
        let mut data = text.into_bytes();
        data.resize(SIZE - 4, 0);
        let mut block = crc32(&data).to_le_bytes().to_vec();
        block.extend_from_slice(&data);
        block
    }

    const fn vars(&self, slot: Slot) -> SlotVars {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }

    /// The trust in a slot. A committed one whose starts are used up is passed over like one that was given up.
    pub const fn trust(&self, slot: Slot) -> Trust {
        match self.vars(slot) {
            SlotVars { trust: Trust::Good, left: Some(0) } => Trust::Trying(0),
            vars => vars.trust,
        }
    }

    /// Whether `slot` is committed and used up its starts without reaching its first process.
    pub const fn is_unstarted(&self, slot: Slot) -> bool {
        matches!(self.vars(slot), SlotVars { trust: Trust::Good, left: Some(0) })
    }

    /// With this trust in `slot`; a committed one is not counted before it is [armed](Self::armed).
    pub const fn with(mut self, slot: Slot, trust: Trust) -> Self {
        let vars = SlotVars { trust, left: None };
        match slot {
            Slot::A => self.a = vars,
            Slot::B => self.b = vars,
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
        env.armed(slot)
    }

    /// With all starts left of `slot` if it is committed: its first process runs, so its kernel is whole.
    pub const fn armed(mut self, slot: Slot) -> Self {
        if matches!(self.vars(slot).trust, Trust::Good) {
            match slot {
                Slot::A => self.a.left = Some(STARTS),
                Slot::B => self.b.left = Some(STARTS),
            }
        }
        self
    }

    /// The slot the boot script starts next.
    pub fn next(&self) -> Slot {
        let usable = |s: &Slot| self.trust(*s) != Trust::Trying(0);
        [self.first, self.first.other()].into_iter().find(usable).unwrap_or(self.first)
    }
}

/// CRC-32 (IEEE 802.3), as in U-Boot.
pub(super) fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests;

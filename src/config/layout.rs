//! `[grants] verify` and `[grants.layout]`: whether decisions rest on calls of the contract or on proofs of its storage, and
//! where that storage has them.
use super::reader::Table;
use alloy_primitives::U256;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// What decisions rest on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verification {
    /// Equal answers of the contract's functions from a quorum.
    #[default]
    Calls,
    /// Words of the contract's storage, proved by any endpoint against a block that a quorum has.
    Proof,
}

impl Verification {
    /// As in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Proof => "proof",
        }
    }

    /// Whether it is the default.
    pub const fn is_calls(&self) -> bool {
        matches!(self, Self::Calls)
    }
}

impl FromStr for Verification {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Calls, Self::Proof].into_iter().find(|v| v.name() == text).ok_or("not a verification")
    }
}

/// A slot of the contract's storage: a number, or `0x` and up to 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub U256);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Slot {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl FromStr for Slot {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let number = plain.then(|| U256::from_str_radix(digits, radix).ok()).flatten();
        number.map(Self).ok_or("not a slot")
    }
}

/// The slots of the contract's mappings, as `solc --storage-layout` prints them. The struct of a token has its key, its node,
/// the time of its creation and whether it is active, in this order and a slot each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// `mapping(uint256 tokenId => address)`: the holders (OpenZeppelin: `_owners`).
    pub owners: Slot,
    /// `mapping(uint256 tokenId => struct)`.
    pub accesses: Slot,
    /// `mapping(string nodeId => uint256 tokenId)`.
    pub tokens: Slot,
    /// `mapping(address => string)`: the holders' keys.
    pub keys: Slot,
}

impl Default for Layout {
    /// That of the reference contract, `contracts/NodeAccess.sol`.
    fn default() -> Self {
        let slot = |n: u64| Slot(U256::from(n));
        Self { owners: slot(2), accesses: slot(8), tokens: slot(9), keys: slot(10) }
    }
}

impl Layout {
    /// Whether it is that of the reference contract.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the section; a slot that is not given is that of the reference contract.
    pub fn read(t: &mut Table<'_>) -> Self {
        let mut layout = Self::default();
        let slots = [
            ("owners", &mut layout.owners),
            ("accesses", &mut layout.accesses),
            ("tokens", &mut layout.tokens),
            ("keys", &mut layout.keys),
        ];
        let mut known: Vec<(&str, Slot)> = Vec::new();
        for (key, slot) in slots {
            if let Some(given) = t.scalar(key, "a slot such as 9, or \"0x\" and up to 64 hexadecimal digits") {
                *slot = given;
            }
            if let Some((other, _)) = known.iter().find(|(_, s)| s == slot) {
                let remedy = "write the slot that solc --storage-layout prints for each mapping";
                t.fault(key, format_args!("is the same slot as {other}"), remedy);
            }
            known.push((key, *slot));
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::fault::ConfigFaults;
    use crate::grants::Grants;

    fn load(more: &str) -> Result<Grants, ConfigFaults> {
        let text = format!(
            "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 8453\nendpoints = [\"https://rpc.example.net\"]\n{more}"
        );
        Config::from_text(Some(("spoke.toml", &text)), []).map(|c| c.grants.unwrap())
    }

    #[test]
    fn proofs_take_the_reference_layout_or_a_given_one() {
        let calls = load("").unwrap();
        assert_eq!((calls.verify, calls.layout), (Verification::Calls, Layout::default()));
        let proof = load("verify = \"proof\"").unwrap();
        assert_eq!((proof.verify, proof.layout), (Verification::Proof, Layout::default()));
        let owners = "0x80bb2b638cc20bc4d0a60d66940f3ab4a00c1d7b313497ca82fb0b4ab0079300";
        let given = load(&format!("verify = \"proof\"\n[grants.layout]\nowners = \"{owners}\"\ntokens = 0\n")).unwrap();
        assert_eq!(given.layout.owners.to_string(), owners);
        assert_eq!(given.layout.tokens, Slot(U256::ZERO));
        assert_eq!(given.layout.keys, Layout::default().keys);
    }

    #[test]
    fn shown_configuration_reads_back() {
        for more in ["", "verify = \"proof\"", "verify = \"proof\"\n[grants.layout]\nkeys = \"0xff\"\n"] {
            let text = format!(
                "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 8453\nendpoints = [\"https://rpc.example.net\"]\n{more}"
            );
            let config = Config::from_text(Some(("a", &text)), []).unwrap();
            let again = Config::from_text(Some(("b", &config.to_toml())), []).unwrap();
            assert_eq!(config.grants, again.grants, "{more}");
        }
    }

    #[test]
    fn faults_name_the_key() {
        for (more, key, words) in [
            ("verify = \"proofs\"", "grants.verify", "\"calls\" or \"proof\""),
            ("[grants.layout]\ntokens = 11", "grants.layout", "verify = \"proof\""),
            ("verify = \"proof\"\n[grants.layout]\ntokens = 8", "grants.layout.tokens", "same slot as accesses"),
            ("verify = \"proof\"\n[grants.layout]\ntokens = \"0xg\"", "grants.layout.tokens", "a slot such as 9"),
            ("verify = \"proof\"\n[grants.layout]\ntokens = -1", "grants.layout.tokens", "a slot such as 9"),
            ("verify = \"proof\"\n[grants.layout]\nnodes = 9", "grants.layout.nodes", "unknown key"),
        ] {
            let faults = load(more).unwrap_err();
            let named = faults.0.iter().any(|f| f.key == key && format!("{} {}", f.problem, f.remedy).contains(words));
            assert!(named, "{more}: {faults}");
        }
    }
}

//! The name of a network interface.
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The name of a network interface: 1 to 15 bytes (the kernel's `IFNAMSIZ` less the terminator).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(heapless::String<15>);

/// Text that is not an interface name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an interface name: expected 1 to 15 characters of A-Z a-z 0-9 _ . - that do not begin with - or .")]
pub struct BadIfName;

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = BadIfName;
    fn from_str(text: &str) -> Result<Self, BadIfName> {
        let fine = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && !text.starts_with(['-', '.'])
            && !text.is_empty();
        match heapless::String::try_from(text) {
            Ok(name) if fine => Ok(Self(name)),
            Ok(_) | Err(_) => Err(BadIfName),
        }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for IfName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for IfName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_names_are_rejected() {
        for good in ["wg0", "spoke-hub.1", "a23456789012345"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for bad in ["", "a234567890123456", "-h", "--help", "wg/0", "..", ".", "wg 0", "wg:0", "wg\u{e4}"] {
            assert_eq!(bad.parse::<IfName>(), Err(BadIfName), "{bad}");
        }
    }
}

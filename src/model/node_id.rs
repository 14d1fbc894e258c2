//! The id of a node, as in the contract and the control plane.
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A node id: `^[A-Za-z0-9_-]{1,128}$`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// Text that is not a node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node id: expected 1 to 128 characters of A-Z a-z 0-9 _ -")]
pub struct BadNodeId;

impl NodeId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;
    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        let fine = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if fine { Ok(Self(text.into())) } else { Err(BadNodeId) }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_alphabet_is_accepted() {
        assert!("edge-17_A".parse::<NodeId>().is_ok());
        let long = "a".repeat(129);
        for bad in ["", "a b", "ä", "a/b", "a.b", long.as_str()] {
            assert_eq!(bad.parse::<NodeId>(), Err(BadNodeId), "{bad}");
        }
    }
}

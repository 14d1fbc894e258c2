//! Whether a pair is granted: the order of the checks and the reason of each result.
use super::abi;
use super::abi::{Malformed, NodeAccess, Reads, Text};
use alloy_primitives::{Address, B256, U256, keccak256};
use serde::{Deserialize, Serialize};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use std::fmt;

/// A node and its key.
pub type Pair = (NodeId, PublicKey);

/// Why access was granted or denied. `VERIFICATION_ERROR` is not among them: it is the absence of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// Every check passed.
    AccessGranted,
    /// No token for this node.
    NodeNotFound,
    /// Revoked on chain.
    NodeInactive,
    /// The token or its owner has another key.
    PublicKeyMismatch,
    /// `hasNodeAccess` of the contract returned false.
    AccessDenied,
}

impl Reason {
    /// Every reason, in the order of the checks.
    pub const ALL: [Self; 5] =
        [Self::NodeNotFound, Self::NodeInactive, Self::PublicKeyMismatch, Self::AccessDenied, Self::AccessGranted];

    /// The code published with the contract.
    pub const fn code(self) -> &'static str {
        match self {
            Self::AccessGranted => "ACCESS_GRANTED",
            Self::NodeNotFound => "NODE_NOT_FOUND",
            Self::NodeInactive => "NODE_INACTIVE",
            Self::PublicKeyMismatch => "PUBLIC_KEY_MISMATCH",
            Self::AccessDenied => "ACCESS_DENIED",
        }
    }

    /// Whether it grants.
    pub const fn grants(self) -> bool {
        match self {
            Self::AccessGranted => true,
            Self::NodeNotFound | Self::NodeInactive | Self::PublicKeyMismatch | Self::AccessDenied => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// The code of a missing decision: never a grant, never a revocation.
pub const VERIFICATION_ERROR: &str = "VERIFICATION_ERROR";

/// The chain's decision about one node and key at one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The reason.
    pub reason: Reason,
    /// The node's token, if there is one.
    pub token_id: Option<U256>,
    /// The holder of the token, if it has one.
    pub owner: Option<Address>,
}

/// What the contract has about one node: its answers, or the same from its storage. `None`: there is no such token. A fact that
/// cannot be read spoils only the decisions that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// `getTokenIdByNodeId(node)`.
    pub token_id: Result<Option<U256>, Malformed>,
    /// `getNodeAccess(id)`.
    pub access: Result<Option<NodeAccess<'a>>, Malformed>,
    /// `ownerOf(id)`.
    pub owner: Result<Option<Address>, Malformed>,
    /// `getPublicKeyByOwner(owner)`.
    pub owner_key: Result<Option<Text<'a>>, Malformed>,
    /// `hasNodeAccess(owner, node)`.
    pub has_access: Result<Option<bool>, Malformed>,
}

impl<'a> Facts<'a> {
    /// The facts of five answers.
    pub fn of(reads: &Reads<'a>) -> Self {
        Self {
            token_id: abi::uint(reads.token_id),
            access: abi::node_access(reads.access),
            owner: abi::address(reads.owner),
            owner_key: abi::string(reads.owner_key),
            has_access: abi::boolean(reads.has_access),
        }
    }

    /// A hash of all facts that may matter for a decision.
    pub fn fingerprint(&self) -> B256 {
        let mut out = Vec::with_capacity(384);
        let Ok(id) = self.token_id else { return B256::repeat_byte(0xff) };
        let Some(id) = id.filter(|id| !id.is_zero()) else { return B256::ZERO };
        out.extend_from_slice(&id.to_be_bytes::<32>());
        if let (Ok(Some(access)), Ok(Some(owner))) = (self.access, self.owner) {
            out.extend_from_slice(owner.as_slice());
            out.push(u8::from(access.active));
            out.push(u8::from(self.has_access == Ok(Some(true))));
            out.extend(access.node_id.plain().unwrap_or_default().bytes().chain([0]));
            for key in [access.public_key, self.owner_key.ok().flatten().unwrap_or(Text::Plain(""))] {
                match key.plain().map(str::parse::<PublicKey>) {
                    Some(Ok(key)) => out.extend_from_slice(&key.0),
                    _ if key == Text::Plain("") => out.push(0xff),
                    Some(Err(_)) | None => out.push(0xfe),
                }
            }
        }
        keccak256(out)
    }
}

/// Decides whether the peer with `key` may act as `node`. All of `facts` are of one block.
pub fn decide(facts: &Facts<'_>, node: &str, key: &PublicKey) -> Result<Decision, Malformed> {
    let denied = |reason, token_id, owner| Ok(Decision { reason, token_id, owner });
    let Some(id) = facts.token_id?.filter(|id| !id.is_zero()) else {
        return denied(Reason::NodeNotFound, None, None);
    };
    let Some(access) = facts.access? else {
        return denied(Reason::NodeNotFound, Some(id), None);
    };
    if access.node_id != Text::Plain(node) {
        return Err(Malformed::OtherNode);
    }
    // Read before any denial, so that a later transfer finds this decision by its owner.
    let owner = facts.owner?;
    if !access.active {
        return denied(Reason::NodeInactive, Some(id), owner);
    }
    if !is_key(access.public_key, key) {
        return denied(Reason::PublicKeyMismatch, Some(id), owner);
    }
    let Some(owner) = owner else { return denied(Reason::NodeNotFound, Some(id), None) };
    let owners_key = facts.owner_key?;
    if owners_key.is_some_and(|k| k != Text::Plain("") && !is_key(k, key)) {
        return denied(Reason::PublicKeyMismatch, Some(id), Some(owner));
    }
    let reason = if facts.has_access? == Some(true) { Reason::AccessGranted } else { Reason::AccessDenied };
    Ok(Decision { reason, token_id: Some(id), owner: Some(owner) })
}

/// Compared as 32 decoded bytes: text that is no key matches none.
fn is_key(text: Text<'_>, key: &PublicKey) -> bool {
    match text {
        Text::Plain(t) => t.parse::<PublicKey>().is_ok_and(|k| k == *key),
        Text::Nonsense => false,
    }
}

/// A key shortened for the log: its first eight characters.
#[derive(Clone, Copy, Debug)]
pub struct Short<'a>(pub &'a PublicKey);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        write!(f, "{}…", text.get(..8).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Read;
    use proptest::prelude::*;

    const NODE: &str = "edge-1";

    fn word(n: u64) -> Vec<u8> {
        U256::from(n).to_be_bytes::<32>().to_vec()
    }

    fn text(s: &[u8]) -> Vec<u8> {
        let mut out = word(s.len() as u64);
        out.extend_from_slice(s);
        out.resize(32 + s.len().next_multiple_of(32), 0);
        out
    }

    fn access(node: &[u8], key: &[u8], active: u64) -> Vec<u8> {
        let (node, key) = (text(node), text(key));
        [word(128), word(128 + node.len() as u64), word(1), word(active), node, key].concat()
    }

    /// The answers of a contract, changed one by one by the tests.
    struct Contract {
        id: Vec<u8>,
        access: Vec<u8>,
        owner: Vec<u8>,
        owner_key: Vec<u8>,
        has: Vec<u8>,
    }

    fn key() -> PublicKey {
        PublicKey([7; 32])
    }

    fn granting() -> Contract {
        let k = key().to_string();
        Contract {
            id: word(3),
            access: access(NODE.as_bytes(), k.as_bytes(), 1),
            owner: word(0xabc),
            owner_key: [word(32), text(k.as_bytes())].concat(),
            has: word(1),
        }
    }

    fn answer(data: &[u8]) -> Read<'_> {
        Read::Returned { size: data.len(), data }
    }

    fn reason(w: &Contract) -> Result<Reason, Malformed> {
        let reads = Reads {
            token_id: answer(&w.id),
            access: answer(&w.access),
            owner: answer(&w.owner),
            owner_key: answer(&w.owner_key),
            has_access: answer(&w.has),
        };
        decide(&Facts::of(&reads), NODE, &key()).map(|d| d.reason)
    }

    #[test]
    fn checks_run_in_the_published_order() {
        let other = PublicKey([8; 32]).to_string();
        let mut w = granting();
        assert_eq!(reason(&w), Ok(Reason::AccessGranted));
        // Fail the checks from last to first: the earliest failed check determines the reason.
        w.has = word(0);
        assert_eq!(reason(&w), Ok(Reason::AccessDenied));
        w.owner_key = [word(32), text(other.as_bytes())].concat();
        assert_eq!(reason(&w), Ok(Reason::PublicKeyMismatch));
        w = Contract { access: access(NODE.as_bytes(), other.as_bytes(), 1), has: word(1), ..granting() };
        assert_eq!(reason(&w), Ok(Reason::PublicKeyMismatch));
        w.access = access(NODE.as_bytes(), other.as_bytes(), 0);
        assert_eq!(reason(&w), Ok(Reason::NodeInactive));
        w.id = word(0);
        assert_eq!(reason(&w), Ok(Reason::NodeNotFound));
    }

    #[test]
    fn owner_without_a_key_is_accepted() {
        assert_eq!(
            reason(&Contract { owner_key: [word(32), text(b"")].concat(), ..granting() }),
            Ok(Reason::AccessGranted)
        );
    }

    #[test]
    fn malformed_key_never_matches() {
        for bad in [&b""[..], b"AAAA", &[0xff; 44], &[b'A'; 2000]] {
            assert_eq!(
                reason(&Contract { access: access(NODE.as_bytes(), bad, 1), ..granting() }),
                Ok(Reason::PublicKeyMismatch)
            );
        }
    }

    #[test]
    fn token_of_another_node_is_malformed() {
        let k = key().to_string();
        let w = Contract { access: access(b"edge-2", k.as_bytes(), 1), ..granting() };
        assert_eq!(reason(&w), Err(Malformed::OtherNode));
    }

    #[test]
    fn missing_token_is_not_found_in_openzeppelin_4_and_5() {
        let five = [&[0x7e, 0x27, 0x32, 0x89][..], &[0; 32]].concat();
        let four = [&[0x08, 0xc3, 0x79, 0xa0][..], &word(32), &text(b"ERC721: invalid token ID")].concat();
        let w = granting();
        for revert in [&five, &four] {
            let reads = Reads {
                token_id: answer(&w.id),
                access: Read::Reverted(revert),
                owner: Read::Reverted(revert),
                owner_key: answer(&w.owner_key),
                has_access: answer(&w.has),
            };
            assert_eq!(decide(&Facts::of(&reads), NODE, &key()).map(|d| d.reason), Ok(Reason::NodeNotFound));
        }
        let other = [&[0x11, 0x8c, 0xda, 0xa7][..], &[0; 32]].concat();
        let reads = Reads {
            access: Read::Reverted(&other),
            ..Reads {
                token_id: answer(&w.id),
                access: answer(&w.access),
                owner: answer(&w.owner),
                owner_key: answer(&w.owner_key),
                has_access: answer(&w.has),
            }
        };
        assert_eq!(decide(&Facts::of(&reads), NODE, &key()), Err(Malformed::Refused));
    }

    #[test]
    fn missing_contract_is_no_decision() {
        assert_eq!(reason(&Contract { id: Vec::new(), ..granting() }), Err(Malformed::NoContract));
    }

    proptest! {
        /// A changed byte never turns a denial into a grant.
        #[test]
        fn changed_byte_never_grants(at in 0usize..352, to in any::<u8>(), cut in 0usize..352) {
            let other = PublicKey([8; 32]).to_string();
            let mut w = Contract { access: access(NODE.as_bytes(), other.as_bytes(), 0), ..granting() };
            if let Some(b) = w.access.get_mut(at) { *b = to; }
            w.access.truncate(cut);
            prop_assert_ne!(reason(&w), Ok(Reason::AccessGranted));
        }
    }
}

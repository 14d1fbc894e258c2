//! The contract's ABI: encoding of the calls and decoding of untrusted answers.
//!
//! Written by hand: a macro crate is too large on a device for five types. A decoder returns a value or [`Malformed`];
//! it never allocates more than its input and checks every length.
use alloy_primitives::{Address, B256, U256, b256};
use std::sync::LazyLock;

/// Code in the data of an `eth_call` that makes the five reads for many nodes at one block (`GrantReads.sol`).
const READS: &str = include_str!("GrantReads.hex");

/// Maximum number of nodes of one call: 35 records of at most 697 bytes fit into 24,576 bytes, the limit of clients for
/// the result of such a call (EIP-170).
pub const NODES_PER_CALL: usize = 35;

/// `NodeAccessGranted(uint256 indexed tokenId, string nodeId, address indexed owner, string wireguardPublicKey)`.
pub const GRANTED: B256 = b256!("9a71852b5ff3e6dcfff28eaeb177387d7be860dcf63f02bc0c74d796d373a22c");
/// `NodeAccessRevoked(uint256 indexed tokenId, string nodeId)`.
pub const REVOKED: B256 = b256!("f77547477629bf8d4b78aaa6babeeb3306e56da1ca9b54caceabf24cbc922020");
/// `NodeAccessTransferred(uint256 indexed tokenId, address indexed from, address indexed to)`.
pub const TRANSFERRED: B256 = b256!("692842951e9a8bdcf099c908e8dd428dedcb5c44056d3b636cd82870c5fd12b2");
/// `PublicKeyUpdated(address indexed owner, string wireguardPublicKey)`.
pub const KEY_UPDATED: B256 = b256!("a850082d2fb101274de37494dc864e9277de33c04415c7ad9db57592c60511a5");
/// ERC-721 `Transfer(address indexed from, address indexed to, uint256 indexed tokenId)`.
pub const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

/// Events that change no grant: approvals, the contract's owner, metadata. Anyone may cause the first two.
pub const HARMLESS: [B256; 6] = [
    // Approval(address indexed owner, address indexed approved, uint256 indexed tokenId)
    b256!("8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925"),
    // ApprovalForAll(address indexed owner, address indexed operator, bool approved)
    b256!("17307eab39ab6107e8899845ad3d59bd9653f200f220920489ca2b5937696c31"),
    // OwnershipTransferred(address indexed previousOwner, address indexed newOwner)
    b256!("8be0079c531659141344cd1fd0a4f28419497f9722a3daafe3b4186f6b6457e0"),
    // OwnershipTransferInitiated(address indexed previousOwner, address indexed newOwner)
    b256!("b150023a879fd806e3599b6ca8ee3b60f0e360ab3846d128d67ebce1a391639a"),
    // MetadataUpdate(uint256 _tokenId), BatchMetadataUpdate(uint256 _fromTokenId, uint256 _toTokenId): ERC-4906
    b256!("f8e1a15aba9398e019f0b49df1a4fde98ee17ae345cb5f6b5e2c27f5033e8ce7"),
    b256!("6bd5c950a8d8df17f772f5af37cb3655737899cbf903264b9795592da439661c"),
];

/// OpenZeppelin 5: `ERC721NonexistentToken(uint256)`.
const NONEXISTENT: [u8; 4] = [0x7e, 0x27, 0x32, 0x89];
/// `Error(string)`.
const ERROR: [u8; 4] = [0x08, 0xc3, 0x79, 0xa0];
/// Text of the same error in OpenZeppelin 4.
const NONEXISTENT_TEXT: &str = "ERC721: invalid token ID";

/// Maximum length of a text in use: a node id has at most 128 characters, a key 44.
pub const MAX_TEXT: usize = 128;

/// Bytes that do not match the ABI. Neither a grant nor a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too few bytes.
    #[error("the answer is cut short")]
    Short,
    /// A value out of range: an address with high bits, a bool of 2, an offset beyond the data.
    #[error("the answer holds a value outside of its type")]
    Range,
    /// Trailing bytes.
    #[error("the answer is longer than what was asked for")]
    Trailing,
    /// The token names another node than the requested one.
    #[error("the token belongs to another node than was asked for")]
    OtherNode,
    /// A revert that does not mean "no such token".
    #[error("the contract refused the read")]
    Refused,
    /// No data: there is no contract at this address.
    #[error("there is no contract at this address")]
    NoContract,
    /// The contract knows no token and is not an ERC-721 contract (ERC-165): its zeros are no answer.
    #[error("the contract at this address is no access contract")]
    OtherContract,
    /// Its functions return something else than its storage has at the configured slots.
    #[error("its storage is not laid out as in grants.layout: correct that, or set grants.verify = \"calls\"")]
    OtherLayout,
}

/// Result of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<'a> {
    /// It returned `size` bytes; `data` may be truncated.
    Returned {
        /// Number of bytes returned.
        size: usize,
        /// The first of these bytes.
        data: &'a [u8],
    },
    /// It reverted with this data, which may be truncated.
    Reverted(&'a [u8]),
}

/// The five reads of one node, as returned by the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads<'a> {
    /// `getTokenIdByNodeId(node)`.
    pub token_id: Read<'a>,
    /// `getNodeAccess(id)`.
    pub access: Read<'a>,
    /// `ownerOf(id)`.
    pub owner: Read<'a>,
    /// `getPublicKeyByOwner(owner)`.
    pub owner_key: Read<'a>,
    /// `hasNodeAccess(owner, node)`.
    pub has_access: Read<'a>,
}

/// Text from the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// At most [`MAX_TEXT`] bytes of UTF-8.
    Plain(&'a str),
    /// Neither a key nor a node id: too long, or not UTF-8.
    Nonsense,
}

impl<'a> Text<'a> {
    pub(crate) const fn plain(self) -> Option<&'a str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Nonsense => None,
        }
    }
}

/// The results of `getNodeAccess` in use; the time of creation is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAccess<'a> {
    /// The node's id as minted.
    pub node_id: Text<'a>,
    /// Its key as minted.
    pub public_key: Text<'a>,
    /// False once revoked.
    pub active: bool,
}

/// The data of an `eth_call` without `to` that reads about `nodes` (at most [`NODES_PER_CALL`]) from `contract`.
pub fn reads_call<'n>(contract: Address, nodes: impl ExactSizeIterator<Item = &'n str> + Clone) -> Vec<u8> {
    let mut out = code();
    let word = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&U256::from(n).to_be_bytes::<32>());
    out.extend_from_slice(contract.into_word().as_slice());
    word(&mut out, 64);
    word(&mut out, nodes.len());
    let mut offset = nodes.len() * 32;
    for node in nodes.clone() {
        word(&mut out, offset);
        offset += 32 + node.len().div_ceil(32) * 32;
    }
    for node in nodes {
        word(&mut out, node.len());
        out.extend_from_slice(node.as_bytes());
        out.resize(out.len() + node.len().next_multiple_of(32) - node.len(), 0);
    }
    out
}

fn code() -> Vec<u8> {
    // The committed hex is checked by a test. An endpoint refuses empty code.
    static CODE: LazyLock<Vec<u8>> =
        LazyLock::new(|| alloy_primitives::hex::decode(READS.trim_ascii_end()).unwrap_or_default());
    CODE.clone()
}

/// Code that returns the number of the block it runs at, its parent's hash, and the hash of block `of` (zero unless it
/// is one of the 256 before), and the chain's id: 128 bytes, where a header with its transaction hashes has 14 KB on a
/// busy chain.
pub fn head_call(of: u64) -> [u8; 34] {
    let mut code = [
        0x43, 0x60, 0x00, 0x52, // mstore(0, number)
        0x60, 0x01, 0x43, 0x03, 0x40, 0x60, 0x20, 0x52, // mstore(32, blockhash(number - 1))
        0x67, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x60, 0x40, 0x52, // mstore(64, blockhash(of))
        0x46, 0x60, 0x60, 0x52, // mstore(96, chainid)
        0x60, 0x80, 0x60, 0x00, 0xf3, // return(0, 128)
    ];
    code[13..21].copy_from_slice(&of.to_be_bytes());
    code
}

/// The answer to [`head_call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The block's number.
    pub number: u64,
    /// The hash of the block before it; `None` at the first block.
    pub parent: Option<B256>,
    /// The hash of the requested block; `None` if it is not one of the 256 before.
    pub asked: Option<B256>,
    /// The chain's id.
    pub chain_id: u64,
}

/// Code that returns the number of the block it runs at, the id of its chain, the size of the code at `contract`, and
/// whether that supports ERC-721 (ERC-165): called at a block hash, it verifies the block's height and chain, and that
/// the answers of the contract are some.
pub fn pin_call(contract: Address) -> Vec<u8> {
    let mut code = Vec::with_capacity(128);
    code.extend_from_slice(&[0x43, 0x60, 0x00, 0x52]); // mstore(0, number)
    code.extend_from_slice(&[0x46, 0x60, 0x20, 0x52]); // mstore(32, chainid)
    code.push(0x73);
    code.extend_from_slice(contract.as_slice());
    code.extend_from_slice(&[0x3b, 0x60, 0x40, 0x52]); // mstore(64, extcodesize(contract))
    code.push(0x7f);
    code.extend_from_slice(&[0x01, 0xff, 0xc9, 0xa7, 0x80, 0xac, 0x58, 0xcd]); // supportsInterface(ERC-721)
    code.extend_from_slice(&[0; 24]);
    code.extend_from_slice(&[0x60, 0x80, 0x52]); // mstore(128, …)
    code.extend_from_slice(&[0x60, 0x20, 0x60, 0x60, 0x60, 0x24, 0x60, 0x80, 0x73]);
    code.extend_from_slice(contract.as_slice());
    code.extend_from_slice(&[0x62, 0x01, 0x86, 0xa0, 0xfa]); // staticcall(100000, contract, 128, 36, 96, 32)
    code.extend_from_slice(&[0x60, 0x60, 0x51, 0x02, 0x60, 0x60, 0x52]); // mstore(96, mul(success, mload(96)))
    code.extend_from_slice(&[0x60, 0xa0, 0x60, 0x00, 0xf3]); // return(0, 160), distinguished from a head by its length
    code
}

/// The answer to [`pin_call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinAnswer {
    /// The block's number.
    pub number: u64,
    /// The chain's id.
    pub chain_id: u64,
    /// The contract.
    pub contract: ContractProbe,
}

/// What is at the contract's address at one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContractProbe {
    /// Whether there is code.
    pub exists: bool,
    /// Whether it reports to be an ERC-721 contract.
    pub erc721: bool,
}

/// Reads the answer to [`pin_call`].
pub fn decode_pin(data: &[u8]) -> Result<PinAnswer, Malformed> {
    if data.len() != 160 {
        return Err(if data.len() < 160 { Malformed::Short } else { Malformed::Trailing });
    }
    let number = |at| U256::from_be_bytes(word(data, at)?).try_into().map_err(|_| Malformed::Range);
    let erc721 = U256::from_be_bytes(word(data, 96)?) == U256::ONE;
    let contract = ContractProbe { exists: number(64)? > 0, erc721 };
    Ok(PinAnswer { number: number(0)?, chain_id: number(32)?, contract })
}

/// Reads the answer to [`head_call`].
pub fn decode_head(data: &[u8]) -> Result<Head, Malformed> {
    if data.len() != 128 {
        return Err(if data.len() < 128 { Malformed::Short } else { Malformed::Trailing });
    }
    let hash = |at| word(data, at).map(|w| Some(B256::from(w)).filter(|h| !h.is_zero()));
    let number = |at| U256::from_be_bytes(word(data, at)?).try_into().map_err(|_| Malformed::Range);
    Ok(Head { number: number(0)?, parent: hash(32)?, asked: hash(64)?, chain_id: number(96)? })
}

/// Splits the answer to [`reads_call`] into one record for each of `count` nodes.
pub fn decode_reads(data: &[u8], count: usize) -> Result<Vec<Reads<'_>>, Malformed> {
    // A first byte of zero, because created code must not begin with 0xEF (EIP-3541).
    let Some((0, mut rest)) = data.split_first().map(|(b, r)| (*b, r)) else {
        return Err(Malformed::Short);
    };
    let mut next = |room: usize| -> Result<_, Malformed> {
        let (head, tail) = rest.split_at_checked(5).ok_or(Malformed::Short)?;
        let size = usize::try_from(u32::from_be_bytes([head[1], head[2], head[3], head[4]])).unwrap_or(usize::MAX);
        let (ok, room) = match head[0] {
            0 => (false, 100),
            1 => (true, room),
            _ => return Err(Malformed::Range),
        };
        let (data, tail) = tail.split_at_checked(size.min(room)).ok_or(Malformed::Short)?;
        rest = tail;
        Ok(if ok { Read::Returned { size, data } } else { Read::Reverted(data) })
    };
    let mut out = Vec::with_capacity(count.min(NODES_PER_CALL));
    for _ in 0..count {
        out.push(Reads {
            token_id: next(32)?,
            access: next(448)?,
            owner: next(32)?,
            owner_key: next(128)?,
            has_access: next(32)?,
        });
    }
    if rest.is_empty() { Ok(out) } else { Err(Malformed::Trailing) }
}

fn word(data: &[u8], at: usize) -> Result<[u8; 32], Malformed> {
    let bytes = at.checked_add(32).and_then(|end| data.get(at..end)).ok_or(Malformed::Short)?;
    bytes.try_into().map_err(|_| Malformed::Short)
}

fn single(read: Read<'_>) -> Result<Option<[u8; 32]>, Malformed> {
    match read {
        Read::Reverted(data) => no_such_token(data).then_some(None).ok_or(Malformed::Refused),
        Read::Returned { size: 0, .. } => Err(Malformed::NoContract),
        Read::Returned { data, .. } => word(data, 0).map(Some),
    }
}

/// A `uint256`; `None` if the contract reports no such token.
pub fn uint(read: Read<'_>) -> Result<Option<U256>, Malformed> {
    Ok(single(read)?.map(U256::from_be_bytes))
}

/// An `address`; `None` if the contract reports no such token.
pub fn address(read: Read<'_>) -> Result<Option<Address>, Malformed> {
    let Some(w) = single(read)? else { return Ok(None) };
    if w[..12].iter().any(|b| *b != 0) {
        return Err(Malformed::Range);
    }
    Ok(Some(Address::from_slice(&w[12..])))
}

/// A `bool`; `None` if the contract reports no such token.
pub fn boolean(read: Read<'_>) -> Result<Option<bool>, Malformed> {
    single(read)?.map(flag).transpose()
}

fn flag(w: [u8; 32]) -> Result<bool, Malformed> {
    match U256::from_be_bytes(w).try_into() {
        Ok(0u8) => Ok(false),
        Ok(1) => Ok(true),
        Ok(_) | Err(_) => Err(Malformed::Range),
    }
}

/// A single `string`; `None` if the contract reports no such token.
pub fn string(read: Read<'_>) -> Result<Option<Text<'_>>, Malformed> {
    match read {
        Read::Reverted(data) => no_such_token(data).then_some(None).ok_or(Malformed::Refused),
        Read::Returned { size: 0, .. } => Err(Malformed::NoContract),
        Read::Returned { size, data } => text(data, size, 0).map(Some),
    }
}

/// `getNodeAccess`'s four results; `None` if the contract reports no such token.
pub fn node_access(read: Read<'_>) -> Result<Option<NodeAccess<'_>>, Malformed> {
    match read {
        Read::Reverted(data) => no_such_token(data).then_some(None).ok_or(Malformed::Refused),
        Read::Returned { size: 0, .. } => Err(Malformed::NoContract),
        Read::Returned { size, data } => Ok(Some(NodeAccess {
            node_id: text(data, size, 0)?,
            public_key: text(data, size, 32)?,
            active: flag(word(data, 96)?)?,
        })),
    }
}

/// The string whose offset is at `slot`, in an answer of `size` bytes that begins with `data`.
fn text(data: &[u8], size: usize, slot: usize) -> Result<Text<'_>, Malformed> {
    let small = |w: [u8; 32]| usize::try_from(U256::from_be_bytes(w)).map_err(|_| Malformed::Range);
    let offset = small(word(data, slot)?)?;
    let start = offset.checked_add(32).filter(|s| *s <= size).ok_or(Malformed::Range)?;
    // An offset into the truncated part: the text before it was too long for a key or a node id.
    if start > data.len() && size > data.len() {
        return Ok(Text::Nonsense);
    }
    let len = small(word(data, offset)?)?;
    let end = start.checked_add(len).filter(|e| *e <= size).ok_or(Malformed::Range)?;
    if len > MAX_TEXT {
        return Ok(Text::Nonsense);
    }
    match data.get(start..end) {
        Some(bytes) => Ok(std::str::from_utf8(bytes).map_or(Text::Nonsense, Text::Plain)),
        None if size > data.len() => Ok(Text::Nonsense),
        None => Err(Malformed::Short),
    }
}

/// Whether a revert means "no such token", which is a valid answer.
pub fn no_such_token(data: &[u8]) -> bool {
    match data.split_at_checked(4) {
        Some((selector, rest)) if selector == NONEXISTENT => rest.len() >= 32,
        Some((selector, rest)) if selector == ERROR => {
            text(rest, rest.len(), 0).is_ok_and(|t| t == Text::Plain(NONEXISTENT_TEXT))
        }
        Some(_) | None => false,
    }
}

/// The string at `slot` of an event's data.
pub fn event_text(data: &[u8], slot: usize) -> Result<Text<'_>, Malformed> {
    text(data, data.len(), slot.saturating_mul(32))
}

#[cfg(test)]
mod tests;

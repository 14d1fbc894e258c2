//! Proofs of Ethereum's state: headers and Merkle-Patricia tries, and the RLP they consist of (Yellow Paper, appendices B
//! and D). An endpoint's bytes are trusted only as far as they are reached by hashes from a block's hash.
use alloy_primitives::{Address, B256, U256, b256, keccak256};
use std::collections::BTreeMap;

/// Root of a trie without values: the hash of an empty string in RLP.
pub const EMPTY_ROOT: B256 = b256!("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421");
/// Hash of no code.
const NO_CODE: B256 = b256!("c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470");
/// Nibbles of a path: every key is a hash.
const PATH: usize = 64;
/// Items of a branch: one for each nibble, and a value, which no trie of hashed keys has.
const BRANCH: usize = 17;

/// Why a proof does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProof {
    /// The bytes are no RLP, or no header, node, account or word.
    #[error("it has no valid form")]
    Form,
    /// A node on the path from the root is missing, or was changed.
    #[error("a node of the trie is missing")]
    Missing,
    /// The header has another hash than the block.
    #[error("the header has another hash than the block")]
    Header,
}

/// The fields of a header in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The block's number.
    pub number: u64,
    /// Root of the trie of accounts.
    pub state_root: B256,
}

/// The fields of an account in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Root of the trie of its storage.
    pub storage_root: B256,
    /// Hash of its code.
    pub code_hash: B256,
}

impl Account {
    /// Whether it has code.
    pub fn has_code(&self) -> bool {
        self.code_hash != NO_CODE
    }
}

/// Reads a header in RLP, which must have this hash.
pub fn header(rlp: &[u8], hash: B256) -> Result<Header, BadProof> {
    if keccak256(rlp) != hash {
        return Err(BadProof::Header);
    }
    let mut rest = list(rlp)?;
    let mut fields = [&[][..]; 9];
    for field in &mut fields {
        let item;
        (item, rest) = next(rest)?;
        *field = item.bytes()?;
    }
    let [_, _, _, root, _, _, _, _, number] = fields;
    let state_root = root.try_into().map_err(|_| BadProof::Form)?;
    Ok(Header { number: uint(number)?.try_into().map_err(|_| BadProof::Form)?, state_root })
}

/// Nodes of tries as an endpoint sent them, by hash. Further ones do no harm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes(BTreeMap<B256, Vec<u8>>);

impl Nodes {
    /// Adds nodes.
    pub fn add(&mut self, nodes: Vec<Vec<u8>>) {
        for node in nodes {
            self.0.insert(keccak256(&node), node);
        }
    }

    /// The account at `address` in the trie with root `state_root`; `None`: proved to be absent.
    pub fn account(&self, state_root: B256, address: Address) -> Result<Option<Account>, BadProof> {
        let Some(value) = self.get(state_root, keccak256(address))? else { return Ok(None) };
        let (_nonce, rest) = next(list(value)?)?;
        let (_balance, rest) = next(rest)?;
        let (root, rest) = next(rest)?;
        let (code, _) = next(rest)?;
        let hash = |item: Item<'_>| item.bytes()?.try_into().map_err(|_| BadProof::Form);
        Ok(Some(Account { storage_root: hash(root)?, code_hash: hash(code)? }))
    }

    /// The word at `slot` in the trie with root `storage_root`; zero is proved by its absence.
    pub fn word(&self, storage_root: B256, slot: B256) -> Result<U256, BadProof> {
        let Some(value) = self.get(storage_root, keccak256(slot))? else { return Ok(U256::ZERO) };
        let (item, rest) = next(value)?;
        if !rest.is_empty() {
            return Err(BadProof::Form);
        }
        uint(item.bytes()?)
    }

    /// The value at `path`; `None`: the trie has none.
    fn get(&self, root: B256, path: B256) -> Result<Option<&[u8]>, BadProof> {
        if root == EMPTY_ROOT {
            return Ok(None);
        }
        let nibble = |i: usize| path.get(i / 2).map(|b| if i.is_multiple_of(2) { b >> 4 } else { b & 15 });
        let mut node = self.node(root)?;
        let mut depth = 0;
        loop {
            let (first, rest) = next(node)?;
            let (second, rest) = next(rest)?;
            let below = if rest.is_empty() {
                let part = first.bytes()?;
                let (&flags, packed) = part.split_first().ok_or(BadProof::Form)?;
                let odd = (flags >> 4 & 1 == 1).then_some(flags & 15);
                let packed = packed.iter().flat_map(|b| [b >> 4, b & 15]);
                let length = part.len() * 2 - 1 - usize::from(odd.is_none());
                if depth + length > PATH {
                    return Err(BadProof::Form);
                }
                let other = odd.into_iter().chain(packed).enumerate().any(|(i, n)| nibble(depth + i) != Some(n));
                depth += length;
                match (flags >> 4, other) {
                    // A leaf.
                    (2 | 3, _) if depth != PATH => return Err(BadProof::Form),
                    (2 | 3, false) => return second.bytes().map(Some),
                    // An extension.
                    (0 | 1, _) if length == 0 => return Err(BadProof::Form),
                    (0 | 1, false) => second,
                    (0..=3, true) => return Ok(None),
                    (_, _) => return Err(BadProof::Form),
                }
            } else {
                let at = usize::from(nibble(depth).ok_or(BadProof::Form)?);
                depth += 1;
                branch(node, at)?
            };
            node = match below {
                Item::Bytes([]) => return Ok(None),
                Item::Bytes(hash) => self.node(hash.try_into().map_err(|_| BadProof::Form)?)?,
                // A node shorter than a hash is in place of it.
                Item::List(node) => node,
            };
        }
    }

    /// The content of a node.
    fn node(&self, hash: B256) -> Result<&[u8], BadProof> {
        list(self.0.get(&hash).ok_or(BadProof::Missing)?)
    }
}

/// The item of a branch below a nibble.
fn branch(node: &[u8], at: usize) -> Result<Item<'_>, BadProof> {
    let (mut rest, mut found) = (node, None);
    for i in 0..BRANCH {
        let item;
        (item, rest) = next(rest)?;
        if i == at {
            found = Some(item);
        }
    }
    found.filter(|_| rest.is_empty()).ok_or(BadProof::Form)
}

/// An item in RLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item<'a> {
    Bytes(&'a [u8]),
    /// The items of a list, in RLP.
    List(&'a [u8]),
}

impl<'a> Item<'a> {
    const fn bytes(self) -> Result<&'a [u8], BadProof> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::List(_) => Err(BadProof::Form),
        }
    }
}

/// The first item, and all after it.
fn next(data: &[u8]) -> Result<(Item<'_>, &[u8]), BadProof> {
    let (&first, rest) = data.split_first().ok_or(BadProof::Form)?;
    let is_list = first >= 0xc0;
    let length = match first {
        0..=0x7f => {
            let (one, rest) = data.split_at(1);
            return Ok((Item::Bytes(one), rest));
        }
        0x80..=0xb7 => Ok(usize::from(first - 0x80)),
        0xc0..=0xf7 => Ok(usize::from(first - 0xc0)),
        0xb8..=0xbf => Err(usize::from(first - 0xb7)),
        0xf8..=0xff => Err(usize::from(first - 0xf7)),
    };
    let (length, rest) = match length {
        Ok(length) => (length, rest),
        Err(digits) => {
            let (digits, rest) = rest.split_at_checked(digits).ok_or(BadProof::Form)?;
            (uint(digits)?.try_into().map_err(|_| BadProof::Form)?, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length).ok_or(BadProof::Form)?;
    Ok((if is_list { Item::List(content) } else { Item::Bytes(content) }, rest))
}

/// The items of a list that is all of `data`.
fn list(data: &[u8]) -> Result<&[u8], BadProof> {
    match next(data)? {
        (Item::List(items), []) => Ok(items),
        (Item::List(_) | Item::Bytes(_), _) => Err(BadProof::Form),
    }
}

fn uint(digits: &[u8]) -> Result<U256, BadProof> {
    U256::try_from_be_slice(digits).ok_or(BadProof::Form)
}

/// A list of byte strings in RLP.
pub fn encode_list<'a>(items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut content = Vec::with_capacity(700);
    for item in items {
        match item {
            [one @ 0..=0x7f] => content.push(*one),
            bytes => {
                prefix(&mut content, 0x80, bytes.len());
                content.extend_from_slice(bytes);
            }
        }
    }
    let mut out = Vec::with_capacity(content.len() + 9);
    prefix(&mut out, 0xc0, content.len());
    out.extend_from_slice(&content);
    out
}

fn prefix(out: &mut Vec<u8>, base: u8, length: usize) {
    let digits = length.to_be_bytes();
    let digits = digits.get(length.leading_zeros() as usize / 8..).unwrap_or_default();
    match u8::try_from(length) {
        Ok(short @ 0..=55) => out.push(base + short),
        Ok(_) | Err(_) => {
            // At most eight digits.
            out.push(base + 55 + u8::try_from(digits.len()).unwrap_or(8));
            out.extend_from_slice(digits);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

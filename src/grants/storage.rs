//! The state of a grant in the contract's storage, as Solidity lays it out: the slots to read, and what their words mean.
use super::abi::{MAX_TEXT, Malformed, NodeAccess, Text};
use super::policy::Facts;
use alloy_primitives::{Address, B256, U256, keccak256};
use spoke_config::layout::Layout;

/// Characters of a WireGuard key in base64.
const KEY_LENGTH: usize = 44;
/// Positions in the struct of a token: its key, its node, the time of its creation (not read), whether it is active.
const ACCESS_KEY: u64 = 0;
const ACCESS_NODE: u64 = 1;
const ACCESS_ACTIVE: u64 = 3;

/// The words of the contract's storage that are known; `None`: not known yet.
pub(crate) type Words<'a> = &'a dyn Fn(B256) -> Option<U256>;

/// What the storage has about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredGrant {
    /// Zero: none.
    token_id: U256,
    /// Zero: none. The contract answers no read about such a token.
    owner: Address,
    node: StoredText,
    key: StoredText,
    active: Result<bool, Malformed>,
    owner_key: StoredText,
}

/// A string of at most [`MAX_TEXT`] bytes; `None`: a longer one.
type StoredText = Option<Vec<u8>>;

impl StoredGrant {
    const fn none(token_id: U256) -> Self {
        let text = Some(Vec::new());
        Self {
            token_id,
            owner: Address::ZERO,
            node: Some(Vec::new()),
            key: Some(Vec::new()),
            active: Ok(false),
            owner_key: text,
        }
    }

    /// Reads it from `words`; otherwise the slots to read next. Strings are expected to be `node` and a key: their words are
    /// requested before their length is known.
    pub(crate) fn read(layout: &Layout, node: &str, words: Words<'_>) -> Result<Self, Vec<B256>> {
        let token = mapped(node.as_bytes(), layout.tokens.0);
        let Some(token_id) = words(token) else { return Err(vec![token]) };
        if token_id.is_zero() {
            return Ok(Self::none(token_id));
        }
        let mut missing = Vec::new();
        let mut word = |slot| {
            let word = words(slot);
            missing.extend(word.is_none().then_some(slot));
            word
        };
        let id = token_id.to_be_bytes::<32>();
        let access = U256::from_be_bytes(mapped(&id, layout.accesses.0).0);
        let member = |n| B256::from(access.wrapping_add(U256::from(n)));
        let owner = word(mapped(&id, layout.owners.0));
        let active = word(member(ACCESS_ACTIVE));
        let key = text(member(ACCESS_KEY), KEY_LENGTH, words, &mut missing);
        let minted = text(member(ACCESS_NODE), node.len(), words, &mut missing);
        // A holder's address is in the lower bytes of its word.
        let owner = owner.map(|w| Address::from_word(w.into()));
        let owner_key = match owner {
            Some(owner) if !owner.is_zero() => {
                text(mapped(owner.into_word().as_slice(), layout.keys.0), KEY_LENGTH, words, &mut missing)
            }
            Some(_) | None => Some(Some(Vec::new())),
        };
        match (owner, active, key, minted, owner_key) {
            (Some(owner), Some(active), Some(key), Some(node), Some(owner_key)) if missing.is_empty() => {
                let active = match active.byte(0) {
                    0 => Ok(false),
                    1 => Ok(true),
                    _ => Err(Malformed::Range),
                };
                Ok(Self { token_id, owner, node, key, active, owner_key })
            }
            _ => Err(missing),
        }
    }

    /// The same as the contract's functions would return.
    pub(crate) fn facts(&self) -> Facts<'_> {
        let owner = Some(self.owner).filter(|o| !o.is_zero());
        let access = self.active.map(|active| NodeAccess {
            node_id: plain(self.node.as_ref()),
            public_key: plain(self.key.as_ref()),
            active,
        });
        Facts {
            token_id: Ok(Some(self.token_id)),
            access: if owner.is_some() { access.map(Some) } else { Ok(None) },
            owner: Ok(owner),
            owner_key: Ok(Some(plain(self.owner_key.as_ref()))),
            has_access: self.active.map(|active| Some(active && owner.is_some())),
        }
    }

    /// Whether every mapping and member was needed to read it: a token in force, with a key of its holder.
    pub(crate) fn proves_layout(&self) -> bool {
        self.active == Ok(true) && !self.owner.is_zero() && self.owner_key.as_ref().is_some_and(|k| !k.is_empty())
    }
}

fn plain(text: Option<&Vec<u8>>) -> Text<'_> {
    text.and_then(|bytes| std::str::from_utf8(bytes).ok()).map_or(Text::Nonsense, Text::Plain)
}

/// The slot of a mapping's value. Keys of a value type have 32 bytes.
fn mapped(key: &[u8], slot: U256) -> B256 {
    keccak256([key, &slot.to_be_bytes::<32>()].concat())
}

/// The slots of a string's bytes, where they are not in its own.
fn data(slot: B256, length: usize) -> impl Iterator<Item = B256> {
    let words = if length < 32 { 0 } else { length.div_ceil(32) };
    let first = U256::from_be_bytes(keccak256(slot).0);
    (0..words).map(move |i| B256::from(first.wrapping_add(U256::from(i))))
}

/// Reads the string at `slot`. `None`: words are missing.
fn text(slot: B256, expected: usize, words: Words<'_>, missing: &mut Vec<B256>) -> Option<StoredText> {
    let Some(head) = words(slot) else {
        missing.push(slot);
        missing.extend(data(slot, expected));
        return None;
    };
    // Up to 31 bytes are in the slot, with twice their number in the last; of more, twice their number plus one.
    if !head.bit(0) {
        let length = usize::from(head.byte(0)) / 2;
        return Some(head.to_be_bytes::<32>().get(..length).filter(|_| length < 32).map(<[u8]>::to_vec));
    }
    let length = usize::try_from(head >> 1).ok().filter(|l| (32..=MAX_TEXT).contains(l));
    let Some(length) = length else { return Some(None) };
    let before = missing.len();
    let mut bytes = Vec::with_capacity(MAX_TEXT);
    for slot in data(slot, length) {
        match words(slot) {
            Some(word) => bytes.extend_from_slice(&word.to_be_bytes::<32>()),
            None => missing.push(slot),
        }
    }
    bytes.truncate(length);
    (missing.len() == before).then_some(Some(bytes))
}

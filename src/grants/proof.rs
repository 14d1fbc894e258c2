//! Decisions from the contract's storage, proved by any endpoint against a block's hash.
//!
//! Which slots a grant takes is known only step by step (the token of a node, its holder, the holder's key): each request is
//! for the slots that the words known so far lead to.
use super::abi::Malformed;
use super::jsonrpc::{BlockRef, Call};
use super::policy::{Decision, Pair, decide};
use super::storage::StoredGrant;
use super::trie::{Account, BadProof, Nodes, header};
use alloy_primitives::{Address, B256, U256};
use spoke_config::layout::Layout;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pairs whose storage is requested at once: about 300 slots in the largest request.
pub(crate) const PAIRS_AT_ONCE: usize = 32;
/// Slots of one call; clients limit them, some to 100.
const SLOTS_PER_CALL: usize = 64;
/// Maximum size in bytes of a block without its transactions, but with their hashes.
const HEADER_MAX: u64 = 1 << 20;
/// Maximum size in bytes of an account's proof: 16 levels of branches, in hexadecimal.
const ACCOUNT_MAX: u64 = 16 * 1_100 + 1_024;
/// Maximum size in bytes of a slot's proof, likewise.
const SLOT_MAX: u64 = 16 * 1_100 + 256;

/// What to prove at one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofRequest {
    /// Position of the block among the pins.
    pub pin: usize,
    /// The block.
    pub block: BlockRef,
    /// Root of the contract's storage; `None`: its account and the header are requested, too.
    pub storage_root: Option<B256>,
    /// The slots.
    pub slots: Arc<[B256]>,
}

impl ProofRequest {
    /// The calls, a header first.
    pub(crate) fn calls(&self, contract: Address) -> impl Iterator<Item = Call> {
        let hash = self.block.hash;
        let header = self.storage_root.is_none().then_some(Call::FullHeader(hash));
        let chunks = self.slots.len().div_ceil(SLOTS_PER_CALL).max(1);
        let chunk = |i| self.slots.iter().copied().skip(i * SLOTS_PER_CALL).take(SLOTS_PER_CALL).collect();
        let proofs = (0..chunks).map(move |i| Call::Proof { contract, slots: chunk(i), block: hash });
        header.into_iter().chain(proofs)
    }

    /// Maximum size of the answers in bytes.
    pub(crate) fn max_bytes(&self) -> u64 {
        let calls = self.slots.len().div_ceil(SLOTS_PER_CALL).max(1) as u64;
        HEADER_MAX + ACCOUNT_MAX * calls + SLOT_MAX * self.slots.len() as u64
    }

    /// Verifies the answers: the header's RLP if it was requested, and the nodes.
    pub(crate) fn verify(
        &self,
        contract: Address,
        header_rlp: Option<&[u8]>,
        nodes: &Nodes,
    ) -> Result<ProvedPin, BadProof> {
        let mut proved = ProvedPin { pin: self.pin, block: None, words: Vec::with_capacity(self.slots.len()) };
        let root = match (self.storage_root, header_rlp) {
            (Some(root), _) => Some(root),
            (None, None) => return Err(BadProof::Header),
            (None, Some(rlp)) => {
                let header = header(rlp, self.block.hash)?;
                let account = nodes.account(header.state_root, contract)?;
                proved.block = Some((header.number, account));
                account.map(|a| a.storage_root)
            }
        };
        for slot in self.slots.iter() {
            let word = root.map_or(Ok(U256::ZERO), |root| nodes.word(root, *slot))?;
            proved.words.push((*slot, word));
        }
        Ok(proved)
    }
}

/// What is proved at one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvedPin {
    /// Position of the block among the pins.
    pub pin: usize,
    /// The block's number, and the contract's account; `None`: not requested.
    pub block: Option<(u64, Option<Account>)>,
    /// Words by slot.
    pub words: Vec<(B256, U256)>,
}

#[derive(Debug)]
struct Pin {
    block: BlockRef,
    /// `None`: not known yet.
    account: Option<Option<Account>>,
    words: BTreeMap<B256, U256>,
}

/// The storage that is proved so far at some pins.
#[derive(Debug, Default)]
pub(crate) struct Proving(Vec<Pin>);

impl Proving {
    pub(crate) fn new(pins: &[BlockRef]) -> Self {
        Self(pins.iter().map(|b| Pin { block: *b, account: None, words: BTreeMap::new() }).collect())
    }

    /// What to prove next about `pairs`; empty: everything is known.
    pub(crate) fn missing(&self, layout: &Layout, pairs: &[Pair]) -> Vec<ProofRequest> {
        let request = |(pin, at): (usize, &Pin)| {
            let mut slots: Vec<B256> = Vec::new();
            if at.account.is_none_or(|a| a.is_some_and(|a| a.has_code())) {
                let read = |(node, _): &Pair| StoredGrant::read(layout, node.as_str(), &at.word()).err();
                slots = pairs.iter().filter_map(read).flatten().collect();
                slots.sort_unstable();
                slots.dedup();
            }
            let storage_root = at.account.map(|a| a.map_or(B256::ZERO, |a| a.storage_root));
            let request = ProofRequest { pin, block: at.block, storage_root, slots: slots.into() };
            (at.account.is_none() || !request.slots.is_empty()).then_some(request)
        };
        self.0.iter().enumerate().filter_map(request).collect()
    }

    /// Takes in what was proved. Fails with the block's number if it is another than the pin's.
    pub(crate) fn learn(&mut self, proved: Vec<ProvedPin>) -> Result<(), (BlockRef, u64)> {
        for ProvedPin { pin, block, words } in proved {
            let Some(at) = self.0.get_mut(pin) else { continue };
            if let Some((number, account)) = block {
                if number != at.block.number {
                    return Err((at.block, number));
                }
                at.account = Some(account);
            }
            at.words.extend(words);
        }
        Ok(())
    }

    /// Hash of the contract's code at a pin; `None`: it has none there, or is not known.
    pub(crate) fn code(&self, pin: usize) -> Option<B256> {
        self.account(pin).filter(Account::has_code).map(|a| a.code_hash)
    }

    fn account(&self, pin: usize) -> Option<Account> {
        self.0.get(pin)?.account.flatten()
    }

    /// The stored grants of `pairs` at a pin, once nothing is missing.
    pub(crate) fn grants(&self, layout: &Layout, pin: usize, pairs: &[Pair]) -> Vec<Option<StoredGrant>> {
        let Some(at) = self.0.get(pin) else { return Vec::new() };
        pairs.iter().map(|(node, _)| StoredGrant::read(layout, node.as_str(), &at.word()).ok()).collect()
    }

    /// The decisions about `pairs` at a pin, once nothing is missing.
    pub(crate) fn decisions(&self, layout: &Layout, pin: usize, pairs: &[Pair]) -> Vec<Result<Decision, Malformed>> {
        if self.code(pin).is_none() {
            return pairs.iter().map(|_| Err(Malformed::NoContract)).collect();
        }
        let grants = self.grants(layout, pin, pairs);
        let decision = |(grant, (node, key)): (Option<StoredGrant>, &Pair)| match grant {
            Some(grant) => decide(&grant.facts(), node.as_str(), key),
            None => Err(Malformed::Short),
        };
        grants.into_iter().zip(pairs).map(decision).collect()
    }

    /// Drops the words: those of further pairs are others.
    pub(crate) fn forget_words(&mut self) {
        self.0.iter_mut().for_each(|p| p.words.clear());
    }
}

impl Pin {
    fn word(&self) -> impl Fn(B256) -> Option<U256> {
        |slot| self.words.get(&slot).copied()
    }
}

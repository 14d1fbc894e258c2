//! A chain of one block with the contract's storage as Solidity lays it out, and endpoints that answer about it.
use crate::exchange::{Conversation, ExchangeAction, ExchangeActions, NoQuorum, RpcFailure, RpcReply};
use crate::jsonrpc::{Answer, At, BlockRef, Call, Refusal};
use crate::policy::Pair;
use crate::query::{Query, QueryEvent};
use crate::trie::tests::{Trie, account, word};
use crate::trie::{EMPTY_ROOT, encode_list};
use crate::verify::{Verified, Verify};
use alloy_primitives::{Address, B256, U256, keccak256};
use spoke_config::grants::Grants;
use spoke_config::layout::Layout;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const CHAIN_ID: u64 = 1;
const NUMBER: u64 = 7_000;

/// A token of the contract.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) node: String,
    pub(super) key: String,
    /// Zero: it was burnt.
    pub(super) owner: u8,
    pub(super) owner_key: String,
    pub(super) active: bool,
}

/// The chain.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// The contract's, ids from 1.
    tokens: Vec<Token>,
    storage: Trie,
    state: Trie,
    header: Vec<Vec<u8>>,
    contract: Address,
    code: bool,
}

/// What an endpoint does with requests for proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Honest,
    /// Answers nothing at all.
    Silent,
    /// Knows no `eth_getProof`.
    Refuses,
    /// Leaves the last node out.
    Shortens,
    /// Changes a byte of this node, counted from the end.
    Changes(usize),
    /// Sends no node.
    Empties,
    /// Proves the storage of a chain on which everything is granted.
    OtherState,
    /// The same, with that chain's header.
    OtherHeader,
    /// A header with another root.
    ChangesHeader,
    /// A true hash, with another height and contract in the pin.
    FalsePin,
}

impl Mode {
    pub(super) const LIES: [Self; 9] = [
        Self::Refuses,
        Self::Shortens,
        Self::Changes(0),
        Self::Changes(1),
        Self::Empties,
        Self::OtherState,
        Self::OtherHeader,
        Self::ChangesHeader,
        Self::FalsePin,
    ];
}

impl World {
    pub(super) fn new(config: &Grants, tokens: Vec<Token>) -> Self {
        Self::with_layout(config, tokens, &Layout::default())
    }

    /// The storage is laid out like this, whatever the configuration.
    pub(super) fn with_layout(config: &Grants, tokens: Vec<Token>, layout: &Layout) -> Self {
        let mut words = BTreeMap::new();
        for (i, t) in tokens.iter().enumerate() {
            let id = U256::from(i + 1);
            let access = U256::from_be_bytes(mapped(&id.to_be_bytes::<32>(), layout.accesses.0).0);
            words.insert(mapped(t.node.as_bytes(), layout.tokens.0), id);
            text(&mut words, access.into(), &t.key);
            text(&mut words, (access + U256::from(1)).into(), &t.node);
            words.insert((access + U256::from(2)).into(), U256::from(1_700_000_000));
            words.insert((access + U256::from(3)).into(), U256::from(u8::from(t.active)));
            let owner = Address::repeat_byte(t.owner).into_word();
            words.insert(mapped(&id.to_be_bytes::<32>(), layout.owners.0), owner.into());
            text(&mut words, mapped(owner.as_slice(), layout.keys.0), &t.owner_key);
        }
        words.retain(|_, w| !w.is_zero());
        let storage = Trie::new(words.into_iter().map(|(slot, w)| (slot, word(w))));
        let mut world =
            Self { tokens, storage, state: Trie::default(), header: Vec::new(), contract: config.contract, code: true };
        world.seal(true);
        world
    }

    /// The same chain without the contract.
    pub(super) fn without_contract(mut self) -> Self {
        self.seal(false);
        self
    }

    fn seal(&mut self, code: bool) {
        self.code = code;
        let mut accounts = vec![(Address::repeat_byte(1), account(EMPTY_ROOT, keccak256("")))];
        accounts.push((Address::repeat_byte(2), account(EMPTY_ROOT, B256::repeat_byte(2))));
        if code {
            accounts.push((self.contract, account(self.storage.root(), B256::repeat_byte(3))));
        }
        self.state = Trie::new(accounts);
        self.header = vec![vec![0x77; 32]; 16];
        self.header[3] = self.state.root().to_vec();
        self.header[8] = U256::from(NUMBER).to_be_bytes_trimmed_vec();
    }

    pub(super) fn block(&self) -> BlockRef {
        BlockRef { number: NUMBER, hash: keccak256(rlp(&self.header)) }
    }

    /// An endpoint's answer; `other`: the chain that a liar shows.
    fn answer(&self, mode: Mode, other: &Self, call: &Call) -> Answer {
        let refused = |message: &str| Answer::Refused(Refusal { code: -32601, message: message.to_owned() });
        match call {
            Call::ChainId => Answer::Number(CHAIN_ID),
            Call::Run { at: At::Hash(hash), .. } | Call::FullHeader(hash) | Call::Proof { block: hash, .. }
                if *hash != self.block().hash =>
            {
                refused("header not found")
            }
            Call::Run { code, .. } if code.len() == crate::abi::pin_call(Address::ZERO).len() => {
                let (number, size) =
                    if mode == Mode::FalsePin { (NUMBER + 9, 0) } else { (NUMBER, u64::from(self.code)) };
                Answer::Bytes([number, CHAIN_ID, size, size, 0].map(|n| padded(U256::from(n))).concat())
            }
            Call::Run { code, .. } => Answer::Bytes(self.reads(code)),
            Call::FullHeader(_) => {
                let mut header = self.header.clone();
                match mode {
                    Mode::OtherHeader => header.clone_from(&other.header),
                    Mode::ChangesHeader => header[3] = other.state.root().to_vec(),
                    _ => {}
                }
                Answer::FullHeader(rlp(&header))
            }
            Call::Proof { .. } if mode == Mode::Refuses => refused("the method eth_getProof does not exist"),
            Call::Proof { contract, slots, .. } => {
                let shown = matches!(mode, Mode::OtherState | Mode::OtherHeader | Mode::ChangesHeader);
                let shown = if shown { other } else { self };
                let mut nodes = shown.state.proof(contract);
                nodes.extend(slots.iter().flat_map(|slot| shown.storage.proof(slot)));
                let last = nodes.len().saturating_sub(1);
                match mode {
                    Mode::Shortens => {
                        let gone = nodes[last].clone();
                        nodes.retain(|n| *n != gone);
                    }
                    Mode::Changes(back) => {
                        let changed = nodes[last.saturating_sub(back)].clone();
                        nodes.iter_mut().filter(|n| **n == changed).for_each(|n| n[3] ^= 1);
                    }
                    Mode::Empties => nodes.clear(),
                    _ => {}
                }
                Answer::Nodes(nodes)
            }
            Call::ClientVersion | Call::Logs { .. } | Call::Header(_) | Call::Send { .. } => panic!("{call:?}"),
        }
    }

    /// The answer to `reads_call`, as returned by `GrantReads.sol`.
    fn reads(&self, code: &[u8]) -> Vec<u8> {
        let data = &code[crate::abi::reads_call(Address::ZERO, std::iter::empty::<&str>()).len() - 96..];
        let number = |at: usize| usize::try_from(U256::from_be_slice(&data[at..at + 32])).unwrap();
        let mut out = vec![0];
        for i in 0..number(64) {
            let at = 96 + number(96 + 32 * i);
            let node = std::str::from_utf8(&data[at + 32..at + 32 + number(at)]).unwrap();
            let id = self.tokens.iter().rposition(|t| t.node == node).map_or(0, |i| i + 1);
            record(&mut out, true, &padded(U256::from(id)), 32);
            let missing = [&[0x7e, 0x27, 0x32, 0x89][..], &[0; 32]].concat();
            let token = id.checked_sub(1).map(|i| &self.tokens[i]).filter(|t| t.owner != 0);
            let Some(t) = token else {
                record(&mut out, false, &missing, 0);
                record(&mut out, false, &missing, 0);
                record(&mut out, true, &[padded(U256::from(32)), abi("")].concat(), 128);
                record(&mut out, true, &padded(U256::ZERO), 32);
                continue;
            };
            let (node, key) = (abi(&t.node), abi(&t.key));
            let head = [128, 128 + node.len(), 1, usize::from(t.active)].map(|n| padded(U256::from(n))).concat();
            record(&mut out, true, &[head, node, key].concat(), 448);
            record(&mut out, true, Address::repeat_byte(t.owner).into_word().as_slice(), 32);
            record(&mut out, true, &[padded(U256::from(32)), abi(&t.owner_key)].concat(), 128);
            record(&mut out, true, &padded(U256::from(u8::from(t.active))), 32);
        }
        out
    }
}

/// Verifies `pairs` at the world's block through endpoints of these modes.
pub(super) fn verify(
    world: &World,
    other: &World,
    modes: &[Mode],
    conversation: &mut Conversation,
    pairs: &[Pair],
) -> Result<Verified, NoQuorum> {
    let now = Boot::from_secs(100);
    let pin = world.block();
    let procedure = Verify::new(vec![pin], vec![pin], Arc::from(pairs));
    let (mut query, actions) = Query::begin(now, conversation, procedure);
    let mut sent = VecDeque::new();
    let queue = |sent: &mut VecDeque<_>, actions: ExchangeActions| {
        sent.extend(actions.into_iter().filter_map(|a| match a {
            ExchangeAction::Send(request) => Some(request),
            ExchangeAction::Report(_) => None,
        }));
    };
    queue(&mut sent, actions);
    while let Some(request) = sent.pop_front() {
        let mode = modes[request.endpoint];
        let reply = if mode == Mode::Silent {
            Err(RpcFailure::Failed { error: "connection refused".to_owned(), retry_after: None })
        } else {
            let answers = request.calls.iter().map(|call| Some(world.answer(mode, other, call))).collect();
            Ok(RpcReply { answers, took: Duration::from_millis(20), bytes: 100 })
        };
        queue(&mut sent, query.handle(now, QueryEvent::Replied { id: request.id, reply }));
    }
    query.into_result().expect("done")
}

fn rlp(header: &[Vec<u8>]) -> Vec<u8> {
    encode_list(header.iter().map(Vec::as_slice))
}

fn mapped(key: &[u8], slot: U256) -> B256 {
    keccak256([key, &slot.to_be_bytes::<32>()].concat())
}

/// Writes a string as Solidity does.
fn text(words: &mut BTreeMap<B256, U256>, slot: B256, text: &str) {
    let bytes = text.as_bytes();
    let word = |bytes: &[u8]| {
        let mut word = [0; 32];
        word[..bytes.len()].copy_from_slice(bytes);
        U256::from_be_bytes(word)
    };
    if bytes.len() < 32 {
        words.insert(slot, word(bytes) + U256::from(2 * bytes.len()));
        return;
    }
    words.insert(slot, U256::from(2 * bytes.len() + 1));
    for (i, part) in bytes.chunks(32).enumerate() {
        words.insert((U256::from_be_bytes(keccak256(slot).0) + U256::from(i)).into(), word(part));
    }
}

fn padded(n: U256) -> Vec<u8> {
    n.to_be_bytes::<32>().to_vec()
}

fn abi(text: &str) -> Vec<u8> {
    let mut out = padded(U256::from(text.len()));
    out.extend_from_slice(text.as_bytes());
    out.resize(32 + text.len().next_multiple_of(32), 0);
    out
}

/// `room`: how many bytes of a successful answer are kept.
fn record(out: &mut Vec<u8>, ok: bool, data: &[u8], room: usize) {
    let room = if ok { room } else { 100 };
    out.push(u8::from(ok));
    out.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&data[..data.len().min(room)]);
}

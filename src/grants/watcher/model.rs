//! A seeded model of a chain and its endpoints: blocks, logs and reorganisations; endpoints that are down,
//! unresponsive, slow, behind, range-limited, or return false answers.
use crate::abi::{pin_call, reads_call};
use crate::exchange::{RpcFailure, RpcReply};
use crate::jsonrpc::{Answer, At, BlockRef, Call, GrantEvent, Refusal, Subject};
use crate::policy::Pair;
use alloy_primitives::{Address, B256, U256};
use spoke_model::backoff::JitterRng;
use spoke_model::key::PublicKey;
use std::time::Duration;

pub(super) const PAIRS: usize = 5;
/// Maximum number of blocks an endpoint may be behind, for example behind a provider's load balancer.
pub(super) const MAX_LAG: u64 = 2;
/// Blocks from the head to the newest final one.
const FINALITY: u64 = 6;
const CHAIN_ID: u64 = 1;
/// The first head.
pub(super) const START: u64 = 1_000_000;
/// Owners of each pair.
const OWNERS: u8 = 3;

pub(super) fn pair(n: usize) -> Pair {
    let n = u8::try_from(n).unwrap();
    (format!("n{n}").parse().unwrap(), PublicKey([n + 1; 32]))
}

#[derive(Clone, Debug)]
pub(super) struct Random(JitterRng);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(JitterRng::new(seed))
    }

    /// Uniformly distributed below `n`.
    pub(super) const fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n
    }

    pub(super) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    pub(super) const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Token {
    /// Zero: none.
    pub(super) id: u64,
    pub(super) active: bool,
    pub(super) owner: u8,
    pub(super) right_key: bool,
}

impl Token {
    pub(super) const fn grants(self) -> bool {
        self.id != 0 && self.active && self.right_key
    }
}

/// What is at the contract's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Contract {
    #[default]
    Good,
    /// No code.
    Gone,
    /// A contract that answers every call with zeros.
    Zeros,
    /// A contract that refuses every call.
    Reverts,
}

impl Contract {
    pub(super) const BAD: [Self; 3] = [Self::Gone, Self::Zeros, Self::Reverts];
}

/// The honest chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) head: u64,
    /// The newest final height.
    pub(super) last_final: u64,
    /// The height from which each fork is the chain, ascending.
    forks: Vec<(u64, u64)>,
    /// Ascending by height.
    changes: Vec<(u64, usize, Token)>,
    /// Heights of events that name no grant, ascending.
    strangers: Vec<u64>,
    /// Ascending by height.
    contracts: Vec<(u64, Contract)>,
    next_token: u64,
    next_fork: u64,
}

impl Chain {
    pub(super) const fn new(head: u64) -> Self {
        Self {
            head,
            last_final: head,
            forks: Vec::new(),
            changes: Vec::new(),
            strangers: Vec::new(),
            contracts: Vec::new(),
            next_token: 1,
            next_fork: 1,
        }
    }

    pub(super) fn mine(&mut self, blocks: u64) {
        self.head += blocks;
        self.last_final = self.last_final.max(self.head.saturating_sub(FINALITY));
    }

    /// Replaces some blocks that are not final by one block more.
    pub(super) fn reorganise(&mut self, random: &mut Random) {
        let depth = self.head - self.last_final;
        if depth > 0 {
            let first = self.head - random.below(depth);
            self.changes.retain(|(height, _, _)| *height < first);
            self.contracts.retain(|(height, _)| *height < first);
            self.strangers.retain(|height| *height < first);
            self.forks.retain(|(from, _)| *from < first);
            self.forks.push((first, self.next_fork));
            self.next_fork += 1;
            self.mine(1);
        }
    }

    /// A foreign account makes the contract emit an event of an unknown type.
    pub(super) fn stranger(&mut self) {
        self.mine(1);
        self.strangers.push(self.head);
    }

    /// The contract at a height.
    pub(super) fn contract(&self, height: u64) -> Contract {
        self.contracts.iter().rev().find(|(from, _)| *from <= height).map_or(Contract::Good, |(_, c)| *c)
    }

    pub(super) fn replace_contract(&mut self, contract: Contract) {
        self.mine(1);
        self.contracts.push((self.head, contract));
    }

    pub(super) fn change(&mut self, random: &mut Random) {
        if self.contract(self.head) != Contract::Good {
            return self.mine(1);
        }
        let n = random.index(PAIRS);
        let before = self.token(n, self.head);
        // An owner's event concerns every pair of the owner, so each pair has its own.
        let owners = OWNERS * u8::try_from(n + 1).unwrap();
        let after = match random.below(4) {
            _ if before.id == 0 => {
                self.next_token += 1;
                Token { id: self.next_token, active: true, owner: owners, right_key: !random.one_in(6) }
            }
            0 => Token { active: false, ..before },
            1 => Token { owner: owners + (before.owner + 1) % OWNERS, ..before },
            2 => Token { right_key: !before.right_key, ..before },
            _ => Token::default(),
        };
        self.mine(1);
        self.changes.push((self.head, n, after));
    }

    pub(super) fn grant(&mut self, n: usize) {
        self.mine(1);
        let owner = OWNERS * u8::try_from(n + 1).unwrap();
        self.next_token += 1;
        self.changes.push((self.head, n, Token { id: self.next_token, active: true, owner, right_key: true }));
    }

    pub(super) fn revoke(&mut self, n: usize) {
        self.mine(1);
        self.changes.push((self.head, n, Token { active: false, ..self.token(n, self.head) }));
    }

    pub(super) fn token(&self, n: usize, height: u64) -> Token {
        let at = self.changes.iter().rev().find(|(h, of, _)| *of == n && *h <= height);
        at.map_or(Token::default(), |(_, _, token)| *token)
    }

    fn fork(&self, height: u64) -> u64 {
        self.forks.iter().rev().find(|(from, _)| *from <= height).map_or(0, |(_, fork)| *fork)
    }

    fn hash(&self, height: u64) -> B256 {
        let mut hash = [0x11; 32];
        hash[..8].copy_from_slice(&self.fork(height).to_be_bytes());
        hash[8..16].copy_from_slice(&height.to_be_bytes());
        B256::from(hash)
    }

    fn block(&self, number: u64) -> BlockRef {
        BlockRef { number, hash: self.hash(number) }
    }

    /// The height of a block of the chain.
    fn height(&self, hash: B256) -> Option<u64> {
        let height = u64::from_be_bytes(hash[8..16].try_into().unwrap());
        (height <= self.head && self.hash(height) == hash).then_some(height)
    }

    fn events(&self, from: u64, to: u64) -> Vec<GrantEvent> {
        let start = self.changes.partition_point(|(height, _, _)| *height < from);
        let event = |(height, n, token): &(u64, usize, Token)| {
            let before = self.token(*n, height - 1);
            let subject = match (before.id, token.id) {
                (0, id) => Subject::Node { node: pair(*n).0, token_id: U256::from(id) },
                (id, 0) => Subject::Token(U256::from(id)),
                (id, _) if before.right_key != token.right_key => {
                    if id % 2 == 0 {
                        Subject::Owner(owner(before.owner))
                    } else {
                        Subject::Token(U256::from(id))
                    }
                }
                (id, _) => Subject::Token(U256::from(id)),
            };
            GrantEvent { block: self.block(*height), subject }
        };
        let strangers = self.strangers.iter().rev().take_while(|h| **h >= from).filter(|h| **h <= to);
        let anyone = strangers.map(|h| GrantEvent { block: self.block(*h), subject: Subject::Anyone });
        let changes = self.changes[start..].iter().take_while(|(height, _, _)| *height <= to).map(event);
        changes.chain(anyone).collect()
    }
}

fn owner(n: u8) -> Address {
    Address::repeat_byte(n)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Good,
    Down,
    Unresponsive,
    /// Answers after this many milliseconds.
    Slow(u64),
    RateLimited,
    /// This many blocks behind.
    Behind(u64),
    /// Limits a request for events to this many blocks.
    Limited(u64),
    /// Truncates its answers.
    Broken,
    /// Does not know the tag of the final block.
    NoFinals,
    Liar(Lie),
}

/// The false answers of an endpoint. Fewer endpoints than the quorum give any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// Everything is granted.
    Grants,
    /// Nothing is granted.
    Denies,
    /// There were no events.
    HidesEvents,
    /// The block below the head is one that does not exist.
    InventsBlocks,
    /// The known block is not part of the chain.
    InventsReorganisations,
    /// A true hash with a height far above the head.
    RaisesHeights,
    /// The hash of an old block for the one below the head.
    RepeatsOldBlocks,
    /// The newest block is final, with the height of an older one.
    HastensFinality,
    /// The block below the head is final.
    CallsHeadFinal,
    /// Another chain under the same URL, on which nothing is granted.
    OtherChain,
    /// There is no contract.
    NoContract,
    /// Its final blocks stand still.
    StopsFinality,
    /// Its final blocks do not exist.
    InventsFinals,
    /// An event of an unknown type in every answer.
    InventsEvents,
    /// An event of every node in every answer.
    InventsNodeEvents,
    /// Its head is far behind and advances.
    Creeps,
}

impl Lie {
    pub(super) const ALL: [Self; 16] = [
        Self::Grants,
        Self::Denies,
        Self::HidesEvents,
        Self::InventsBlocks,
        Self::InventsReorganisations,
        Self::RaisesHeights,
        Self::RepeatsOldBlocks,
        Self::HastensFinality,
        Self::CallsHeadFinal,
        Self::OtherChain,
        Self::NoContract,
        Self::StopsFinality,
        Self::InventsFinals,
        Self::InventsEvents,
        Self::InventsNodeEvents,
        Self::Creeps,
    ];
}

/// An endpoint's reply and its latency in milliseconds; `None`: no reply.
pub(super) fn reply(
    chain: &Chain,
    mode: Mode,
    calls: &[Call],
    random: &mut Random,
) -> Option<(u64, Result<RpcReply, RpcFailure>)> {
    let mut latency = 20 + random.below(200);
    let failed = |error: &str, retry_after| Err(RpcFailure::Failed { error: error.to_owned(), retry_after });
    match mode {
        Mode::Unresponsive => return None,
        Mode::Down => return Some((1, failed("connection refused", None))),
        Mode::RateLimited => {
            let wait = random.one_in(2).then(|| Duration::from_secs(random.below(20)));
            return Some((latency, failed("HTTP status 429", wait)));
        }
        Mode::Slow(more) => latency += more,
        Mode::Good | Mode::Behind(_) | Mode::Limited(_) | Mode::Broken | Mode::NoFinals | Mode::Liar(_) => {}
    }
    let mut answers: Vec<_> = calls.iter().map(|call| Some(answer(chain, mode, call))).collect();
    if mode == Mode::Broken {
        match (random.below(3), answers.last_mut()) {
            (0, Some(last)) => *last = None,
            (1, Some(Some(Answer::Bytes(bytes)))) => bytes.truncate(bytes.len() / 2),
            _ => answers.truncate(answers.len() / 2),
        }
    }
    Some((latency, Ok(RpcReply { answers, took: Duration::from_millis(latency), bytes: 100 })))
}

fn refused(code: i64, message: &str) -> Answer {
    Answer::Refused(Refusal { code, message: message.to_owned() })
}

fn answer(chain: &Chain, mode: Mode, call: &Call) -> Answer {
    let head = match mode {
        Mode::Behind(lag) => chain.head - lag,
        Mode::Liar(Lie::Creeps) => chain.head - 40,
        _ => chain.head,
    };
    match call {
        Call::ChainId => Answer::Number(CHAIN_ID),
        Call::ClientVersion => Answer::Name("model".to_owned()),
        Call::Send { .. } => panic!("the watcher sends no transaction"),
        Call::FullHeader(_) | Call::Proof { .. } => panic!("only verify = \"proof\" needs proofs"),
        Call::Run { code, at: At::Hash(hash) } if code.len() == pin_call(Address::ZERO).len() => {
            let Some(height) = chain.height(*hash).filter(|h| *h <= head) else {
                return refused(-32001, "header not found");
            };
            let chain_id = if mode == Mode::Liar(Lie::OtherChain) { CHAIN_ID + 1 } else { CHAIN_ID };
            let contract = if mode == Mode::Liar(Lie::NoContract) { Contract::Gone } else { chain.contract(height) };
            let (size, erc721) = match contract {
                Contract::Good => (9_000, 1),
                Contract::Gone => (0, 0),
                Contract::Zeros | Contract::Reverts => (50, 0),
            };
            Answer::Bytes([word(height), word(chain_id), word(size), word(erc721), word(0)].concat())
        }
        Call::Run { code, at: At::Hash(hash) } => match chain.height(*hash).filter(|h| *h <= head) {
            Some(height) => Answer::Bytes(reads(chain, mode, code, height)),
            None => refused(-32001, "header not found"),
        },
        Call::Run { at: At::Safe | At::Finalized, .. } if mode == Mode::NoFinals => {
            refused(-39001, "safe block not found")
        }
        Call::Run { code, at: At::Safe | At::Finalized } => {
            let last_final = head.min(chain.last_final);
            let mut answer = position(chain, mode, code, last_final);
            if mode == Mode::Liar(Lie::HastensFinality) {
                answer[..32].copy_from_slice(&word(last_final - 1));
                answer[32..64].copy_from_slice(chain.hash(head - 1).as_slice());
            } else if mode == Mode::Liar(Lie::CallsHeadFinal) {
                return Answer::Bytes(position(chain, mode, code, head));
            } else if mode == Mode::Liar(Lie::StopsFinality) {
                return Answer::Bytes(position(chain, mode, code, START));
            } else if mode == Mode::Liar(Lie::InventsFinals) {
                answer[32..64].copy_from_slice(&[0xcc; 32]);
            }
            Answer::Bytes(answer)
        }
        Call::Run { code, at: At::Latest | At::Number(_) } => Answer::Bytes(position(chain, mode, code, head)),
        Call::Logs { from, to, .. } => {
            let to = to.unwrap_or(head).min(head);
            match mode {
                Mode::Limited(limit) if to.saturating_sub(*from) >= limit => refused(-32005, "block range too large"),
                Mode::Liar(Lie::HidesEvents) => Answer::Events(Vec::new()),
                Mode::Liar(Lie::InventsEvents) => {
                    let mut events = chain.events(*from, to);
                    events.push(GrantEvent { block: chain.block(to), subject: Subject::Anyone });
                    Answer::Events(events)
                }
                Mode::Liar(Lie::InventsNodeEvents) => {
                    let block = chain.block(to);
                    let subject = |n| Subject::Node { node: pair(n).0, token_id: U256::from(n) };
                    let invented = (0..PAIRS).map(|n| GrantEvent { block, subject: subject(n) });
                    Answer::Events(chain.events(*from, to).into_iter().chain(invented).collect())
                }
                _ => Answer::Events(chain.events(*from, to)),
            }
        }
        Call::Header(At::Number(n)) if *n > head => Answer::Nothing,
        Call::Header(At::Number(n)) => Answer::Block(chain.block(*n)),
        Call::Header(At::Latest) => Answer::Block(chain.block(head)),
        Call::Header(At::Safe | At::Finalized) => Answer::Block(chain.block(head.min(chain.last_final))),
        Call::Header(At::Hash(hash)) => chain.height(*hash).map_or(Answer::Nothing, |n| Answer::Block(chain.block(n))),
    }
}

/// The answer to `head_call`.
fn position(chain: &Chain, mode: Mode, code: &[u8], number: u64) -> Vec<u8> {
    let known = u64::from_be_bytes(code[13..21].try_into().unwrap());
    let parent = match mode {
        Mode::Liar(Lie::InventsBlocks) => B256::repeat_byte(0xee),
        Mode::Liar(Lie::RepeatsOldBlocks) => chain.hash(number.saturating_sub(60)),
        _ => chain.hash(number - 1),
    };
    let asked = match mode {
        _ if known >= number || number - known > 256 => B256::ZERO,
        Mode::Liar(Lie::InventsReorganisations) => B256::repeat_byte(0xdd),
        _ => chain.hash(known),
    };
    let number = if mode == Mode::Liar(Lie::RaisesHeights) { number + (1 << 40) } else { number };
    let chain_id = if mode == Mode::Liar(Lie::OtherChain) { CHAIN_ID + 1 } else { CHAIN_ID };
    [word(number), parent.to_vec(), asked.to_vec(), word(chain_id)].concat()
}

fn word(n: u64) -> Vec<u8> {
    U256::from(n).to_be_bytes::<32>().to_vec()
}

fn text(s: &str) -> Vec<u8> {
    let mut out = word(s.len() as u64);
    out.extend_from_slice(s.as_bytes());
    out.resize(32 + s.len().next_multiple_of(32), 0);
    out
}

/// The answer to `reads_call`, as returned by `GrantReads.sol`.
fn reads(chain: &Chain, mode: Mode, code: &[u8], height: u64) -> Vec<u8> {
    let data = &code[reads_call(Address::ZERO, std::iter::empty::<&str>()).len() - 96..];
    let number = |at: usize| usize::try_from(U256::from_be_slice(&data[at..at + 32])).unwrap();
    let mut out = vec![0];
    for i in 0..number(64) {
        let at = 96 + number(96 + 32 * i);
        let node = std::str::from_utf8(&data[at + 32..at + 32 + number(at)]).unwrap();
        let n: usize = node.trim_start_matches('n').parse().unwrap();
        let mut token = chain.token(n, height);
        match mode {
            Mode::Liar(Lie::Grants) => token = Token { id: 77, active: true, owner: 3, right_key: true },
            Mode::Liar(Lie::Denies | Lie::OtherChain) => token = Token::default(),
            _ => {}
        }
        match chain.contract(height) {
            Contract::Good => records(&mut out, node, &pair(n).1, token),
            Contract::Gone => (0..5).for_each(|_| record(&mut out, true, &[])),
            Contract::Zeros => (0..5).for_each(|_| record(&mut out, true, &word(0))),
            Contract::Reverts => (0..5).for_each(|_| record(&mut out, false, &[])),
        }
    }
    out
}

fn record(out: &mut Vec<u8>, ok: bool, data: &[u8]) {
    out.push(u8::from(ok));
    out.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    out.extend_from_slice(data);
}

fn records(out: &mut Vec<u8>, node: &str, key: &PublicKey, token: Token) {
    let mut put = |ok: bool, data: &[u8]| record(out, ok, data);
    put(true, &word(token.id));
    if token.id == 0 {
        let missing = [&[0x7e, 0x27, 0x32, 0x89][..], &[0; 32]].concat();
        put(false, &missing);
        put(false, &missing);
        put(true, &[word(32), text("")].concat());
        put(true, &word(0));
        return;
    }
    let key = if token.right_key { *key } else { PublicKey([0xee; 32]) }.to_string();
    let (id, key) = (text(node), text(&key));
    put(true, &[word(128), word(128 + id.len() as u64), word(1), word(u64::from(token.active)), id, key].concat());
    put(true, owner(token.owner).into_word().as_slice());
    put(true, &[word(32), text("")].concat());
    put(true, &word(1));
}

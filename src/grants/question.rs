//! The question of one exchange: its calls, the decoding of its answers, and which answers count as equal.
use super::abi::{
    ContractProbe, Head, Malformed, NODES_PER_CALL, decode_head, decode_pin, decode_reads, head_call, pin_call,
    reads_call,
};
use super::cursor::{ChainCursor, Continuity};
use super::events;
use super::fault::EndpointFault;
use super::jsonrpc::{Answer, At, BlockRef, Call, GrantEvent, Refusal};
use super::policy::{Decision, Facts, Pair, decide};
use super::proof::{ProofRequest, ProvedPin};
use super::trie::Nodes;
use alloy_primitives::{Address, B256};
use spoke_config::grants::MAX_ENDPOINTS;
use std::ops::Range;
use std::sync::Arc;

/// Maximum bytes of an answer with a position: about a thousand events.
const POSITION_MAX: u64 = 1 << 20;
/// Maximum bytes of an answer with a chunk of events: about ten thousand.
const LOGS_MAX: u64 = 10 << 20;
/// Maximum bytes of an answer to one call: 24,576 bytes in hexadecimal and the JSON around them.
const CALL_MAX: u64 = 2 * 24_576 + 1024;

/// Most blocks between the heads of correct endpoints: 32 s on Base, 4 s on a chain of four blocks a second.
const HEAD_SPREAD: u64 = 16;

/// The chain as reported by one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether the newest known block is still part of it.
    pub continuity: Continuity,
    /// Its newest height.
    pub head: u64,
    /// The block below `head`.
    pub parent: Option<BlockRef>,
    /// The block below the newest final one, if requested and known.
    pub last_final: Option<BlockRef>,
    /// Events, if requested.
    pub events: Vec<GrantEvent>,
}

/// One `eth_call` that reads the state of some pairs at one block.
#[derive(Clone, Debug)]
pub struct PinnedCall {
    /// Position of the block among the pins.
    pub pin: usize,
    /// The block.
    pub block: BlockRef,
    /// The pairs, by position.
    pub pairs: Range<usize>,
}

/// A question to an endpoint, sent as one batch.
#[derive(Clone, Debug)]
pub enum Question {
    /// Its head, its newest final block if `finality` names one, and the events since the cursor.
    Position {
        /// How far the events were read.
        cursor: Box<ChainCursor>,
        /// The tag of the final block to request.
        finality: Option<At>,
        /// Whether to request events.
        events: bool,
    },
    /// The events of a range of heights.
    Logs {
        /// First height.
        from: u64,
        /// Last height.
        to: u64,
    },
    /// A block's number and hash.
    Block(At),
    /// Decisions about pairs at pinned blocks, and the number, chain id and contract at each of these blocks.
    Decisions {
        /// The calls.
        calls: Vec<PinnedCall>,
        /// The pairs of all calls.
        pairs: Arc<[Pair]>,
    },
    /// The number, chain id and contract at pinned blocks.
    Pins(Vec<(usize, BlockRef)>),
    /// Storage of the contract, with proofs: one endpoint is enough.
    Proofs(Vec<ProofRequest>),
    /// What the contract's functions return about the pairs of one call, to compare with its storage.
    Facts {
        /// The call.
        call: PinnedCall,
        /// The pairs.
        pairs: Arc<[Pair]>,
    },
}

impl Question {
    /// The calls of the batch.
    pub fn calls(&self, contract: Address) -> Vec<Call> {
        match self {
            Self::Position { cursor, finality, events } => {
                let known = cursor.newest().map_or(0, |b| b.number);
                let mut calls = vec![Call::Run { code: head_call(known).to_vec(), at: At::Latest }];
                calls.extend(finality.map(|at| Call::Run { code: head_call(0).to_vec(), at }));
                if let Some((from, _)) = cursor.next(u64::MAX).filter(|_| *events) {
                    calls.push(Call::Logs { contract, from, to: None });
                }
                calls
            }
            Self::Logs { from, to } => vec![Call::Logs { contract, from: *from, to: Some(*to) }],
            Self::Block(at) => vec![Call::Header(*at)],
            Self::Decisions { calls, pairs } => {
                let reads = calls.iter().map(|c| c.reads(contract, pairs));
                blocks(calls).iter().map(|(_, b)| pinned(contract, b)).chain(reads).collect()
            }
            Self::Pins(blocks) => blocks.iter().map(|(_, b)| pinned(contract, b)).collect(),
            Self::Proofs(requests) => requests.iter().flat_map(|r| r.calls(contract)).collect(),
            Self::Facts { call, pairs } => vec![call.reads(contract, pairs)],
        }
    }

    /// Maximum size of the answer in bytes.
    pub fn max_bytes(&self) -> u64 {
        match self {
            Self::Position { .. } | Self::Block(_) => POSITION_MAX,
            Self::Logs { .. } => LOGS_MAX,
            Self::Decisions { calls, .. } => CALL_MAX.saturating_mul(calls.len() as u64 + 1),
            Self::Pins(_) | Self::Facts { .. } => CALL_MAX,
            Self::Proofs(requests) => requests.iter().map(ProofRequest::max_bytes).sum(),
        }
    }

    /// How many endpoints must give the same answer.
    pub(crate) const fn votes(&self, quorum: usize) -> usize {
        match self {
            Self::Proofs(_) => 1,
            Self::Position { .. }
            | Self::Logs { .. }
            | Self::Block(_)
            | Self::Decisions { .. }
            | Self::Pins(_)
            | Self::Facts { .. } => quorum,
        }
    }

    /// Whether every correct endpoint that has the blocks gives the same answer.
    pub(crate) const fn is_pinned(&self) -> bool {
        match self {
            Self::Decisions { .. } | Self::Pins(_) | Self::Facts { .. } | Self::Proofs(_) => true,
            Self::Position { .. } | Self::Logs { .. } | Self::Block(_) => false,
        }
    }

    /// Reads the answers to [`Question::calls`].
    pub fn read(
        &self,
        answers: Vec<Option<Answer>>,
        contract: Address,
        chain_id: u64,
    ) -> Result<Finding, EndpointFault> {
        match self {
            Self::Position { cursor, finality, .. } => {
                read_position(answers, cursor, finality.is_some(), chain_id).map(Finding::Position)
            }
            Self::Logs { .. } => match single(answers)? {
                Answer::Events(events) => Ok(Finding::Logs(events)),
                Answer::Number(_)
                | Answer::Name(_)
                | Answer::Bytes(_)
                | Answer::Block(_)
                | Answer::FullHeader(_)
                | Answer::Nodes(_)
                | Answer::Nothing
                | Answer::Refused(_) => Err(EndpointFault::Partial),
            },
            Self::Block(_) => match single(answers)? {
                Answer::Block(block) => Ok(Finding::Block(Some(block))),
                Answer::Nothing => Ok(Finding::Block(None)),
                Answer::Number(_)
                | Answer::Name(_)
                | Answer::Bytes(_)
                | Answer::Events(_)
                | Answer::FullHeader(_)
                | Answer::Nodes(_)
                | Answer::Refused(_) => Err(EndpointFault::Partial),
            },
            Self::Decisions { calls, pairs } => read_decisions(answers, &blocks(calls), calls, pairs, chain_id),
            Self::Pins(blocks) => read_decisions(answers, blocks, &[], &[], chain_id),
            Self::Proofs(requests) => read_proofs(answers, requests, contract).map(Finding::Proved),
            Self::Facts { call, pairs } => match single(answers)? {
                Answer::Bytes(bytes) => {
                    let count = pairs.get(call.pairs.clone()).unwrap_or_default().len();
                    let reads = decode_reads(&bytes, count)?;
                    Ok(Finding::Facts(reads.iter().map(|r| Facts::of(r).fingerprint()).collect()))
                }
                _ => Err(EndpointFault::Partial),
            },
        }
    }
}

impl PinnedCall {
    fn reads(&self, contract: Address, pairs: &[Pair]) -> Call {
        let pairs = pairs.get(self.pairs.clone()).unwrap_or_default();
        let code = reads_call(contract, pairs.iter().map(|(node, _)| node.as_str()));
        Call::Run { code, at: At::Hash(self.block.hash) }
    }
}

fn pinned(contract: Address, block: &BlockRef) -> Call {
    Call::Run { code: pin_call(contract), at: At::Hash(block.hash) }
}

/// The greatest height that `quorum` of `heads` have reached, none of them far below another: at least one of them is
/// correct, so that it is no old height.
pub(crate) fn common_head(heads: impl Iterator<Item = u64>, quorum: usize) -> Option<u64> {
    let mut heads: heapless::Vec<u64, MAX_ENDPOINTS> = heads.collect();
    heads.sort_unstable_by(|a, b| b.cmp(a));
    let ends = |w: &&[u64]| w.first().zip(w.last()).is_some_and(|(first, last)| first - last <= HEAD_SPREAD);
    heads.windows(quorum.max(1)).find(ends).and_then(|w| w.last().copied())
}

/// Whether `findings` of a quorum have no common head.
pub(crate) fn heads_differ<'a>(findings: impl Iterator<Item = &'a Finding>, quorum: usize) -> bool {
    let mut heads = findings
        .filter_map(|f| match f {
            Finding::Position(view) => Some(view.head),
            _ => None,
        })
        .peekable();
    heads.peek().is_some() && common_head(heads, quorum).is_none()
}

/// Whether `findings` agree on too little for a quorum to be outvoted by its false member: another endpoint is asked, up
/// to as many as outvote any minority.
pub(crate) fn disputed<'a>(
    question: &Question,
    findings: impl Iterator<Item = &'a Finding> + Clone,
    quorum: usize,
) -> bool {
    let enough = 2 * quorum - 1;
    let few = findings.clone().count() < enough;
    let views = findings.clone().filter_map(|f| match f {
        Finding::Position(view) => Some(view),
        _ => None,
    });
    match question {
        Question::Position { finality, events, .. } => {
            let finals = views.clone().map(|v| v.last_final);
            let known = finals.clone().flatten().count();
            let first = finals.clone().next().flatten();
            let differ = first.is_none() || finals.into_iter().any(|f| f != first);
            finality.is_some() && differ && known < enough
                || *events && few && events::disputed(views.map(|v| (v.head, v.events.as_slice())))
        }
        Question::Logs { .. } => {
            few && events::disputed(findings.filter_map(|f| match f {
                Finding::Logs(events) => Some((u64::MAX, events.as_slice())),
                _ => None,
            }))
        }
        Question::Block(_)
        | Question::Decisions { .. }
        | Question::Pins(_)
        | Question::Proofs(_)
        | Question::Facts { .. } => false,
    }
}

/// Whether `head` is so far below `quorum`'s that its endpoint is asked last.
pub(crate) const fn lags(head: u64, quorum: u64) -> bool {
    quorum.saturating_sub(head) > HEAD_SPREAD
}

/// The content of an endpoint's answers. Two endpoints agree if their findings are equal. Positions compare by
/// continuity only, since heads differ between honest endpoints; events are always equal, since they only cause a
/// verification.
#[derive(Clone, Debug)]
pub enum Finding {
    /// To [`Question::Position`].
    Position(View),
    /// To [`Question::Logs`].
    Logs(Vec<GrantEvent>),
    /// To [`Question::Block`]; `None`: the endpoint has no such block.
    Block(Option<BlockRef>),
    /// To [`Question::Decisions`].
    Decisions {
        /// The pins by position.
        pins: Vec<PinState>,
        /// In the order of the calls; an unreadable one affects only its own pair.
        decisions: Vec<Result<Decision, Malformed>>,
    },
    /// To [`Question::Proofs`]: verified.
    Proved(Vec<ProvedPin>),
    /// To [`Question::Facts`]: [`Facts::fingerprint`] of each pair.
    Facts(Vec<B256>),
}

impl PartialEq for Finding {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Position(a), Self::Position(b)) => a.continuity == b.continuity,
            (Self::Logs(_), Self::Logs(_)) => true,
            (Self::Block(a), Self::Block(b)) => a == b,
            (Self::Decisions { pins, decisions }, Self::Decisions { pins: other_pins, decisions: other_decisions }) => {
                pins == other_pins && decisions == other_decisions
            }
            (Self::Proved(a), Self::Proved(b)) => a == b,
            (Self::Facts(a), Self::Facts(b)) => a == b,
            (
                Self::Position(_)
                | Self::Logs(_)
                | Self::Block(_)
                | Self::Decisions { .. }
                | Self::Proved(_)
                | Self::Facts(_),
                _,
            ) => false,
        }
    }
}

/// A pinned block, as reported by the code run at its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinState {
    /// Position among the pins.
    pub pin: usize,
    /// The block's number.
    pub number: u64,
    /// The contract at that block.
    pub contract: ContractProbe,
}

fn single(answers: Vec<Option<Answer>>) -> Result<Answer, EndpointFault> {
    match answers.into_iter().next().flatten() {
        Some(Answer::Refused(refusal)) => Err(EndpointFault::Refused(refusal)),
        Some(answer) => Ok(answer),
        None => Err(EndpointFault::Partial),
    }
}

fn read_position(
    answers: Vec<Option<Answer>>,
    cursor: &ChainCursor,
    asked_final: bool,
    chain_id: u64,
) -> Result<View, EndpointFault> {
    let mut answers = answers.into_iter();
    let mut next = || match answers.next() {
        Some(Some(Answer::Refused(refusal))) => Err(EndpointFault::Refused(refusal)),
        Some(Some(answer)) => Ok(Some(answer)),
        Some(None) => Err(EndpointFault::Partial),
        None => Ok(None),
    };
    let head = read_head(next()?)?;
    if head.chain_id != chain_id {
        return Err(EndpointFault::OtherChain { reported: head.chain_id, wanted: chain_id });
    }
    let continuity = cursor.judge(&head);
    if continuity == Continuity::Behind {
        // It may refuse the range of the events, too.
        return Err(EndpointFault::Behind(head.number));
    }
    // An endpoint may not know the tag: then it reports no final block, and all the rest.
    let last_final = match asked_final.then(&mut next) {
        None | Some(Err(EndpointFault::Refused(_))) => None,
        Some(answer) => parent(&read_head(answer?)?),
    };
    let events = match next()? {
        Some(Answer::Events(events)) => events,
        None => Vec::new(),
        Some(_) => return Err(EndpointFault::Partial),
    };
    Ok(View { continuity, head: head.number, parent: parent(&head), last_final, events })
}

fn read_head(answer: Option<Answer>) -> Result<Head, EndpointFault> {
    match answer {
        Some(Answer::Bytes(bytes)) => Ok(decode_head(&bytes)?),
        Some(_) | None => Err(EndpointFault::Partial),
    }
}

fn parent(head: &Head) -> Option<BlockRef> {
    Some(BlockRef { number: head.number.checked_sub(1)?, hash: head.parent? })
}

/// One call for each pin and each `nodes_per_call` pairs.
pub fn pinned_calls(pins: &[BlockRef], pairs: usize, nodes_per_call: usize) -> Vec<PinnedCall> {
    let step = nodes_per_call.clamp(1, NODES_PER_CALL);
    let chunks = |(pin, block): (usize, &BlockRef)| {
        let block = *block;
        (0..pairs).step_by(step).map(move |from| PinnedCall { pin, block, pairs: from..(from + step).min(pairs) })
    };
    pins.iter().enumerate().flat_map(chunks).collect()
}

/// The distinct blocks of some calls, with their position among the pins.
fn blocks(calls: &[PinnedCall]) -> Vec<(usize, BlockRef)> {
    let mut blocks: Vec<(usize, BlockRef)> = calls.iter().map(|c| (c.pin, c.block)).collect();
    blocks.dedup();
    blocks
}

fn read_proofs(
    answers: Vec<Option<Answer>>,
    requests: &[ProofRequest],
    contract: Address,
) -> Result<Vec<ProvedPin>, EndpointFault> {
    let mut answers = answers.into_iter();
    let mut out = Vec::with_capacity(requests.len());
    for request in requests {
        let (mut header, mut nodes) = (None, Nodes::default());
        for _ in request.calls(contract) {
            match answers.next().flatten() {
                Some(Answer::FullHeader(rlp)) => header = Some(rlp),
                Some(Answer::Nodes(more)) => nodes.add(more),
                Some(Answer::Refused(refusal)) => return Err(EndpointFault::Refused(refusal)),
                Some(Answer::Nothing) => {
                    let message = "block not found".to_owned();
                    return Err(EndpointFault::Refused(Refusal { code: -32001, message }));
                }
                Some(_) | None => return Err(EndpointFault::Partial),
            }
        }
        out.push(request.verify(contract, header.as_deref(), &nodes).map_err(EndpointFault::FalseProof)?);
    }
    Ok(out)
}

fn read_decisions(
    answers: Vec<Option<Answer>>,
    blocks: &[(usize, BlockRef)],
    calls: &[PinnedCall],
    pairs: &[Pair],
    chain_id: u64,
) -> Result<Finding, EndpointFault> {
    if answers.len() != blocks.len() + calls.len() {
        return Err(EndpointFault::Partial);
    }
    let mut answers = answers.into_iter().map(|answer| match answer {
        Some(Answer::Bytes(bytes)) => Ok(bytes),
        Some(Answer::Refused(refusal)) => Err(EndpointFault::Refused(refusal)),
        Some(_) | None => Err(EndpointFault::Partial),
    });
    let mut pins = Vec::with_capacity(blocks.len());
    for ((pin, _), bytes) in blocks.iter().zip(answers.by_ref()) {
        let answer = decode_pin(&bytes?)?;
        if answer.chain_id != chain_id {
            return Err(EndpointFault::OtherChain { reported: answer.chain_id, wanted: chain_id });
        }
        pins.push(PinState { pin: *pin, number: answer.number, contract: answer.contract });
    }
    let mut decisions = Vec::new();
    for (bytes, call) in answers.zip(calls) {
        let (bytes, pairs) = (bytes?, pairs.get(call.pairs.clone()).unwrap_or_default());
        let reads = decode_reads(&bytes, pairs.len())?;
        decisions.extend(reads.iter().zip(pairs).map(|(r, (node, key))| decide(&Facts::of(r), node.as_str(), key)));
    }
    Ok(Finding::Decisions { pins, decisions })
}

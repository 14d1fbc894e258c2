//! What the chain is asked in one exchange and how the answers are read.

use super::abi::{Head, Malformed, NODES_PER_CALL, decode_head, decode_reads, head_call, reads_call};
use super::jsonrpc::{Answer, At, BlockRef, Call, GrantEvent, Refusal};
use super::policy::{Decision, decide};
use crate::cursor::{ChainCursor, Continuity};
use alloy_primitives::Address;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use std::time::Duration;

/// A node and the key it comes with.
pub type Pair = (NodeId, PublicKey);

/// Why an endpoint's answer does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointFault {
    /// It was not reached, or what it sent was no answer.
    #[error("{0}")]
    NoAnswer(String),
    /// It answered a part of the batch.
    #[error("it left a question unanswered")]
    Partial,
    /// It refused.
    #[error("it refused: {} ({})", .0.message, .0.code)]
    Refused(Refusal),
    /// Its answer does not have the shape that was asked for.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is behind what is known already.
    #[error("it is behind: at height {0}")]
    Behind(u64),
    /// Its chain does not go on.
    #[error("it is stuck: its newest block is {height} for {} s", .since.as_secs())]
    Stuck {
        /// Its newest height.
        height: u64,
        /// For how long.
        since: Duration,
    },
    /// It is on another chain.
    #[error("it is on chain {told}, not on {wanted}: correct grants.endpoints or grants.chain_id")]
    OtherChain {
        /// What it says.
        told: u64,
        /// What is configured.
        wanted: u64,
    },
}

impl EndpointFault {
    /// Whether it speaks against the endpoint and has not been booked: what did not come in at all was, and not to know a
    /// block that another one told of is no fault.
    pub fn counts(&self) -> bool {
        match self {
            Self::NoAnswer(_) | Self::OtherChain { .. } => false,
            Self::Refused(refusal) => !refusal.unknown_block(),
            Self::Partial | Self::Malformed(_) | Self::Behind(_) | Self::Stuck { .. } => true,
        }
    }

    /// Whether it says that too much was asked for at once.
    pub fn too_much(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.too_much(),
            Self::NoAnswer(_)
            | Self::OtherChain { .. }
            | Self::Partial
            | Self::Malformed(_)
            | Self::Behind(_)
            | Self::Stuck { .. } => false,
        }
    }
}

/// What one endpoint sees when the chain is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Whether the newest known block still is one.
    pub continuity: Continuity,
    /// Its newest height.
    pub head: u64,
    /// The block below.
    pub parent: Option<BlockRef>,
    /// The block below the newest final one, if asked for.
    pub last_final: Option<BlockRef>,
    /// Events, if asked for.
    pub changes: Vec<GrantEvent>,
}

/// The questions of a look at the chain.
pub fn look(follow: &ChainCursor, contract: Address, final_at: Option<At>, events: bool) -> Vec<Call> {
    let known = follow.newest().map_or(0, |b| b.number);
    let mut asks = vec![Call::Run { code: head_call(known).to_vec(), at: At::Latest }];
    asks.extend(final_at.map(|at| Call::Run { code: head_call(0).to_vec(), at }));
    if let Some((from, _)) = follow.next(u64::MAX).filter(|_| events) {
        asks.push(Call::Logs { contract, from, to: None });
    }
    asks
}

/// The answers to [`look`].
pub fn read_look(answers: Vec<Option<Answer>>, follow: &ChainCursor, asked_final: bool) -> Result<View, EndpointFault> {
    let mut answers = answers.into_iter();
    let mut next = || match answers.next() {
        Some(Some(Answer::Refused(refusal))) => Err(EndpointFault::Refused(refusal)),
        Some(Some(answer)) => Ok(Some(answer)),
        Some(None) => Err(EndpointFault::Partial),
        None => Ok(None),
    };
    let head = head(next()?)?;
    let last_final = if asked_final { below(&self::head(next()?)?) } else { None };
    let changes = match next()? {
        Some(Answer::Events(changes)) => changes,
        None => Vec::new(),
        Some(_) => return Err(EndpointFault::Partial),
    };
    let continuity = follow.judge(&head);
    if continuity == Continuity::Behind {
        return Err(EndpointFault::Behind(head.number));
    }
    Ok(View { continuity, head: head.number, parent: below(&head), last_final, changes })
}

fn head(answer: Option<Answer>) -> Result<Head, EndpointFault> {
    match answer {
        Some(Answer::Bytes(bytes)) => Ok(decode_head(&bytes)?),
        Some(_) | None => Err(EndpointFault::Partial),
    }
}

fn below(head: &Head) -> Option<BlockRef> {
    Some(BlockRef { number: head.number.checked_sub(1)?, hash: head.parent? })
}

/// What is asked to verify `pairs` at each of `pins`: one call for each block and each [`NODES_PER_CALL`] pairs at most.
#[derive(Clone, Debug)]
pub struct Verification<'a> {
    /// Calls: the block's position in `pins`, and the pairs.
    pub calls: Vec<(usize, &'a [Pair])>,
    pins: &'a [BlockRef],
}

impl<'a> Verification<'a> {
    /// Plans the calls, `per_call` pairs each.
    pub fn new(pins: &'a [BlockRef], pairs: &'a [Pair], per_call: usize) -> Self {
        let per_call = per_call.clamp(1, NODES_PER_CALL);
        let calls = (0..pins.len()).flat_map(|pin| pairs.chunks(per_call).map(move |c| (pin, c))).collect();
        Self { calls, pins }
    }

    /// The questions of some of the calls.
    pub fn asks(&self, calls: &[(usize, &[Pair])], contract: Address) -> Vec<Call> {
        calls
            .iter()
            .filter_map(|(pin, pairs)| {
                let code = reads_call(contract, pairs.iter().map(|(node, _)| node.as_str()));
                self.pins.get(*pin).map(|b| Call::Run { code, at: At::Hash(b.hash) })
            })
            .collect()
    }
}

/// The decisions in the answers to some calls; one that cannot be read spoils only its own pair.
pub fn read_decisions(
    answers: Vec<Option<Answer>>,
    calls: &[(usize, &[Pair])],
) -> Result<Vec<Result<Decision, Malformed>>, EndpointFault> {
    let mut out = Vec::new();
    if answers.len() != calls.len() {
        return Err(EndpointFault::Partial);
    }
    for (answer, (_, pairs)) in answers.into_iter().zip(calls) {
        let bytes = match answer {
            Some(Answer::Bytes(bytes)) => bytes,
            Some(Answer::Refused(refusal)) => return Err(EndpointFault::Refused(refusal)),
            Some(_) | None => return Err(EndpointFault::Partial),
        };
        let reads = decode_reads(&bytes, pairs.len())?;
        out.extend(reads.iter().zip(*pairs).map(|(r, (node, key))| decide(r, node.as_str(), key)));
    }
    Ok(out)
}

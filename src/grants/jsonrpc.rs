//! JSON-RPC batches: encoding of calls, streaming decoding of answers.
//!
//! A response is read element by element from a reader of limited size; only the fields in use are kept. Answers may
//! come in any order and be incomplete; a call without an answer stays `None`.
use alloy_primitives::{Address, B256, U256, hex};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use spoke_model::node_id::NodeId;
use std::fmt::{self, Write as _};
use std::io::Read;

mod reply;
use reply::{Raw, Reply, ReplySeed, ReplyVisitor};

/// A block by number and hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// Hash of its header.
    pub hash: B256,
}

/// The block of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The endpoint's newest block.
    Latest,
    /// The newest block that the sequencer does not revert by itself.
    Safe,
    /// The newest block that cannot be reverted.
    Finalized,
    /// The block at this height.
    Number(u64),
    /// The block with this hash, as long as it is part of the canonical chain.
    Hash(B256),
}

/// One call of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The chain id.
    ChainId,
    /// The client software of the endpoint.
    ClientVersion,
    /// Runs the given code.
    Run {
        /// Code followed by its arguments.
        code: Vec<u8>,
        /// At which block.
        at: At,
    },
    /// The contract's events.
    Logs {
        /// The contract.
        contract: Address,
        /// First height.
        from: u64,
        /// Last height; `None`: the newest.
        to: Option<u64>,
    },
    /// A block's number and hash.
    Header(At),
    /// All of a block's header.
    FullHeader(B256),
    /// The contract's account and slots of its storage, with their proofs, at the block with this hash.
    Proof {
        /// The contract.
        contract: Address,
        /// The slots.
        slots: Vec<B256>,
        /// The block.
        block: B256,
    },
    /// Sends a transaction from an account that the endpoint holds unlocked: a development chain.
    Send {
        /// The account.
        from: Address,
        /// The contract.
        to: Address,
        /// The calldata.
        data: Vec<u8>,
        /// Only runs it at the newest block: a client may take a transaction that reverts.
        dry: bool,
    },
}

/// The answer to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Call::ChainId`].
    Number(u64),
    /// To [`Call::ClientVersion`].
    Name(String),
    /// To [`Call::Run`]; to [`Call::Send`]: the transaction's hash, or the result of a dry run.
    Bytes(Vec<u8>),
    /// To [`Call::Logs`].
    Events(Vec<GrantEvent>),
    /// To [`Call::Header`].
    Block(BlockRef),
    /// To [`Call::FullHeader`]: in RLP.
    FullHeader(Vec<u8>),
    /// To [`Call::Proof`]: nodes of the tries, in RLP.
    Nodes(Vec<Vec<u8>>),
    /// The endpoint has no such block.
    Nothing,
    /// The endpoint refused.
    Refused(Refusal),
}

/// An error object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The JSON-RPC error code.
    pub code: i64,
    /// Its message, truncated.
    pub message: String,
}

impl Refusal {
    /// Whether it reports that the requested range or result is too large, or takes too long.
    pub fn too_much(&self) -> bool {
        let size = [
            "range too",
            "range is too",
            "range exceed",
            "range limit",
            "max range",
            "too large",
            "too big",
            "too wide",
            "too many",
            "more than",
            "exceeds",
            "exceed max",
            "limited to",
            "limit of",
            "limit is",
            "up to a",
            "maximum",
            "max block",
            "results limit",
            "response size",
            "limit exceeded",
            "query timeout",
            "timeout exceeded",
            "timed out",
        ];
        let code = matches!(self.code, -32005 | -32008);
        !self.rate() && !self.beyond_head() && !self.unknown_block() && (code || self.mentions(&size))
    }

    /// Whether it reports that the range ends above its head: it is behind.
    pub fn beyond_head(&self) -> bool {
        let mentions = |words: &[&str]| self.mentions(words);
        mentions(&["beyond", "exceeds", "after", "greater than", "ahead of", "above"])
            && mentions(&["head", "latest", "current block", "newest"])
            || mentions(&["future block", "in the future"])
    }

    /// Whether it reports that a request had too many calls.
    pub fn batch(&self) -> bool {
        self.mentions(&["batch"])
    }

    /// Whether one call cost more gas, bytes or time than is allowed.
    pub fn too_expensive(&self) -> bool {
        let cost = ["out of gas", "gas limit", "gas required", "size", "timeout", "timed out", "too big", "too large"];
        !self.rate() && (self.code == -32008 || self.mentions(&cost))
    }

    /// Whether it reports that the block is unknown or not canonical, which is no fault of the endpoint.
    pub fn unknown_block(&self) -> bool {
        // Clients report an unknown method in similar terms.
        let method = self.code == -32601 || self.mentions(&["method"]);
        !method && (self.code == -32001 || self.mentions(&["not found", "canonical", "unknown block"]))
    }

    /// Whether it reports a rate limit.
    pub fn rate(&self) -> bool {
        let words = [
            "rate limit",
            "rate exceeded",
            "request rate",
            "rate-limit",
            "ratelimit",
            "too many requests",
            "per second",
            "throttl",
            "capacity",
            "quota",
            "daily",
            "compute units",
            "credits",
            "requests limit",
            "request limit",
        ];
        let text = self.message.to_ascii_lowercase();
        self.code == 429
            || self.mentions(&words)
            || text.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| matches!(w, "rps" | "qps" | "tps"))
    }

    fn mentions(&self, any: &[&str]) -> bool {
        let text = self.message.to_ascii_lowercase();
        any.iter().any(|w| text.contains(w))
    }
}

/// An event of the contract, reduced to the grants it may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantEvent {
    /// The block that contains it.
    pub block: BlockRef,
    /// The grants it may have changed.
    pub subject: Subject,
}

/// The grants an event may have changed. It only causes a verification: an event decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The grant of this node.
    Node {
        /// The node.
        node: NodeId,
        /// Its token.
        token_id: U256,
    },
    /// The grant of this token.
    Token(U256),
    /// The grants of every token of this holder.
    Owner(Address),
    /// Every grant: the event is of no known type, or could not be decoded.
    Anyone,
}

/// Maximum number of events in one answer.
pub const MAX_EVENTS: usize = 20_000;
/// Maximum length kept of an error message or a client's name.
const MAX_MESSAGE: usize = 200;

/// Encodes a batch; the ids are the positions of the calls, from 1. One call is no array: some providers take none.
pub fn encode(asks: &[Call]) -> Vec<u8> {
    let mut out = String::with_capacity(asks.len() * 160);
    if let [only] = asks {
        let _ = one(&mut out, 1, only);
        return out.into_bytes();
    }
    out.push('[');
    for (i, ask) in asks.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        // Writing into a `String` cannot fail.
        let _ = one(&mut out, i + 1, ask);
    }
    out.push(']');
    out.into_bytes()
}

fn one(out: &mut String, id: usize, ask: &Call) -> fmt::Result {
    write!(out, r#"{{"jsonrpc":"2.0","id":{id},"method":"#)?;
    match ask {
        Call::ChainId => out.write_str(r#""eth_chainId","params":[]}"#),
        Call::ClientVersion => out.write_str(r#""web3_clientVersion","params":[]}"#),
        Call::Run { code, at } => {
            write!(out, r#""eth_call","params":[{{"data":"{}"}},"#, hex::encode_prefixed(code))?;
            tag(out, *at)?;
            out.write_str("]}")
        }
        Call::Logs { contract, from, to } => {
            write!(out, r#""eth_getLogs","params":[{{"address":"{contract:#x}","fromBlock":"{from:#x}""#)?;
            if let Some(to) = to {
                write!(out, r#","toBlock":"{to:#x}""#)?;
            }
            out.write_str("}]}")
        }
        Call::Send { from, to, data, dry } => {
            let method = if *dry { "eth_call" } else { "eth_sendTransaction" };
            let data = hex::encode_prefixed(data);
            write!(out, r#""{method}","params":[{{"from":"{from:#x}","to":"{to:#x}","data":"{data}"}}"#)?;
            out.write_str(if *dry { r#","latest"]}"# } else { "]}" })
        }
        Call::Header(At::Hash(hash)) | Call::FullHeader(hash) => {
            write!(out, r#""eth_getBlockByHash","params":["{hash:#x}",false]}}"#)
        }
        Call::Header(at) => {
            out.write_str(r#""eth_getBlockByNumber","params":["#)?;
            tag(out, *at)?;
            out.write_str(",false]}")
        }
        Call::Proof { contract, slots, block } => {
            write!(out, r#""eth_getProof","params":["{contract:#x}",["#)?;
            for (i, slot) in slots.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                write!(out, r#"{comma}"{slot:#x}""#)?;
            }
            out.write_str("],")?;
            tag(out, At::Hash(*block))?;
            out.write_str("]}")
        }
    }
}

fn tag(out: &mut String, at: At) -> fmt::Result {
    match at {
        At::Latest => out.write_str(r#""latest""#),
        At::Safe => out.write_str(r#""safe""#),
        At::Finalized => out.write_str(r#""finalized""#),
        At::Number(n) => write!(out, r#""{n:#x}""#),
        At::Hash(hash) => write!(out, r#"{{"blockHash":"{hash:#x}","requireCanonical":true}}"#),
    }
}

/// A response that does not match the request.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// Not JSON, not JSON-RPC, or larger than allowed.
    #[error("the answer is not JSON-RPC")]
    Json(#[source] serde_json::Error),
    /// An unknown id, or one that occurs twice.
    #[error("the answer has an id that was not asked for")]
    Id,
    /// A result of an unexpected type.
    #[error("result {id} is not of the type that was asked for")]
    Type {
        /// The id of the call.
        id: usize,
    },
    /// The endpoint refused the whole batch.
    #[error("the batch was refused: {} ({})", .0.message, .0.code)]
    Refused(Refusal),
}

/// Reads the answers to `asks` and returns them in the order of `asks`; `None`: no answer to that call.
pub fn decode(mut reader: impl Read, asks: &[Call]) -> Result<Vec<Option<Answer>>, BadAnswer> {
    // Compiled once, whatever the reader.
    let reader: &mut dyn Read = &mut reader;
    let mut de = serde_json::Deserializer::from_reader(std::io::BufReader::with_capacity(16 * 1024, reader));
    let mut out = vec![None; asks.len()];
    let mut outcome = Ok(());
    Batch { asks, out: &mut out, outcome: &mut outcome }.deserialize(&mut de).map_err(BadAnswer::Json)?;
    de.end().map_err(BadAnswer::Json)?;
    outcome.map(|()| out)
}

struct Batch<'a> {
    asks: &'a [Call],
    out: &'a mut [Option<Answer>],
    outcome: &'a mut Result<(), BadAnswer>,
}

impl<'de> DeserializeSeed<'de> for Batch<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch of answers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut left = self.asks.len();
        while let Some(reply) = seq.next_element_seed(ReplySeed)? {
            if left == 0 {
                return Err(A::Error::custom("more answers than questions"));
            }
            left -= 1;
            if self.outcome.is_ok() {
                *self.outcome = place(reply, self.asks, self.out);
            }
        }
        Ok(())
    }

    /// A single object is the answer to a single call, or an error for the whole batch.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let reply = ReplyVisitor.visit_map(map)?;
        if self.asks.len() == 1 && reply.id == Some(1) {
            *self.outcome = place(reply, self.asks, self.out);
            return Ok(());
        }
        *self.outcome = Err(match reply.error {
            Some(refusal) => BadAnswer::Refused(refusal),
            None => BadAnswer::Id,
        });
        Ok(())
    }
}

fn place(reply: Reply, asks: &[Call], out: &mut [Option<Answer>]) -> Result<(), BadAnswer> {
    let id = reply.id.and_then(|id| usize::try_from(id).ok()).ok_or(BadAnswer::Id)?;
    let at = id.checked_sub(1).ok_or(BadAnswer::Id)?;
    let (ask, slot) = asks.get(at).zip(out.get_mut(at)).ok_or(BadAnswer::Id)?;
    if slot.is_some() {
        return Err(BadAnswer::Id);
    }
    let wrong = BadAnswer::Type { id };
    let answer = match (reply.error, ask, reply.result) {
        (Some(refusal), _, _) => Answer::Refused(refusal),
        (None, Call::ChainId, Raw::Text(t)) => Answer::Number(quantity(&t).ok_or(wrong)?),
        (None, Call::ClientVersion, Raw::Text(t)) => Answer::Name(clip(&t)),
        (None, Call::Run { .. } | Call::Send { .. }, Raw::Text(t)) => {
            Answer::Bytes(t.strip_prefix("0x").and_then(|h| hex::decode(h).ok()).ok_or(wrong)?)
        }
        (None, Call::Logs { contract, .. }, Raw::Items(items)) => {
            // An event of another contract does not match the filter of the request.
            if items.iter().any(|(address, _)| *address != Some(*contract)) {
                return Err(wrong);
            }
            Answer::Events(items.into_iter().filter_map(|(_, change)| change).collect())
        }
        // Some clients return null for an empty list.
        (None, Call::Logs { .. }, Raw::Null) => Answer::Events(Vec::new()),
        (None, Call::Header(_), Raw::Object(fields)) => match (fields.number, fields.hash) {
            (Some(number), Some(hash)) => Answer::Block(BlockRef { number, hash }),
            (_, None) | (None, _) => return Err(wrong),
        },
        (None, Call::FullHeader(_), Raw::Object(fields)) => Answer::FullHeader(fields.header_rlp()),
        (None, Call::Proof { .. }, Raw::Object(fields)) => Answer::Nodes(fields.nodes),
        (None, Call::Header(_) | Call::FullHeader(_), Raw::Null) => Answer::Nothing,
        (None, _, Raw::Null | Raw::Text(_) | Raw::Items(_) | Raw::Object(_)) => return Err(wrong),
    };
    *slot = Some(answer);
    Ok(())
}

/// A quantity in the encoding of Ethereum's JSON-RPC: `0x1b4`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").filter(|d| (1..=16).contains(&d.len()))?;
    // `from_str_radix` also accepts a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests;

//! Streaming decoder of one answer of a batch: keeps the known fields in any order and drops all others.
use super::{BlockRef, GrantEvent, MAX_EVENTS, Refusal, Subject, clip, quantity};
use crate::abi::{GRANTED, HARMLESS, KEY_UPDATED, REVOKED, TRANSFER, TRANSFERRED};
use crate::abi::{Text, event_text};
use crate::trie::encode_list;
use alloy_primitives::{Address, B256, U256, hex};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use spoke_model::node_id::NodeId;
use std::fmt;

#[derive(Default)]
pub(super) struct Reply {
    pub(super) id: Option<u64>,
    pub(super) result: Raw,
    pub(super) error: Option<Refusal>,
}

/// A result of any type, reduced to the known fields. Its type is checked later, since the id may follow the result.
#[derive(Default)]
pub(super) enum Raw {
    #[default]
    Null,
    Text(String),
    /// The contract of each event, and the event unless it changes no grant.
    Items(Vec<(Option<Address>, Option<GrantEvent>)>),
    Object(Box<Fields>),
}

pub(super) struct ReplySeed;

impl<'de> DeserializeSeed<'de> for ReplySeed {
    type Value = Reply;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Reply, D::Error> {
        d.deserialize_map(ReplyVisitor)
    }
}

pub(super) struct ReplyVisitor;

impl<'de> Visitor<'de> for ReplyVisitor {
    type Value = Reply;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Reply, A::Error> {
        let mut reply = Reply::default();
        let mut results = 0;
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Id => reply.id = map.next_value()?,
                Key::Result => {
                    results += 1;
                    reply.result = map.next_value_seed(RawSeed)?;
                }
                Key::Error => {
                    reply.error = map.next_value::<Option<ErrorObject>>()?.map(|e| {
                        results += 1;
                        Refusal { code: e.code, message: clip(&e.message) }
                    });
                }
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        // Both, neither or duplicates: none of them can be trusted.
        if results != 1 && !(results == 2 && reply.error.is_some() && matches!(reply.result, Raw::Null)) {
            return Err(A::Error::custom("not exactly one result"));
        }
        Ok(reply)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Id,
    Result,
    Error,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
}

struct RawSeed;

impl<'de> DeserializeSeed<'de> for RawSeed {
    type Value = Raw;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
        d.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, an object, a list of events, or null")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Raw, A::Error> {
        Fields::from_map(map).map(|f| Raw::Object(Box::new(f)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(fields) = seq.next_element::<Fields>()? {
            if items.len() == MAX_EVENTS {
                return Err(A::Error::custom("more events than allowed"));
            }
            let address = fields.address;
            items.push((address, fields.change().map_err(A::Error::custom)?));
        }
        Ok(Raw::Items(items))
    }
}

/// The fields of a block's header in the order of its RLP; quantities have no leading zeros. A header ends with the last that
/// its chain knows.
const HEADER: [(&str, bool); 21] = [
    ("parentHash", false),
    ("sha3Uncles", false),
    ("miner", false),
    ("stateRoot", false),
    ("transactionsRoot", false),
    ("receiptsRoot", false),
    ("logsBloom", false),
    ("difficulty", true),
    ("number", true),
    ("gasLimit", true),
    ("gasUsed", true),
    ("timestamp", true),
    ("extraData", false),
    ("mixHash", false),
    ("nonce", false),
    ("baseFeePerGas", true),
    ("withdrawalsRoot", false),
    ("blobGasUsed", true),
    ("excessBlobGas", true),
    ("parentBeaconBlockRoot", false),
    ("requestsHash", false),
];
const NUMBER: usize = 8;
/// Maximum size in bytes of a header's field: extra data is the only one without a size of its own.
const FIELD_MAX: usize = 4_096;
/// Maximum size in bytes of a node: a branch has 17 items of 33 bytes at most.
const NODE_MAX: usize = 600;

/// The fields in use of an event, a block header or a proof.
#[derive(Default)]
pub(super) struct Fields {
    address: Option<Address>,
    topics: heapless::Vec<B256, 4>,
    data: Option<EventData>,
    pub(super) number: Option<u64>,
    pub(super) hash: Option<B256>,
    /// By position in [`HEADER`].
    header: Vec<(usize, Vec<u8>)>,
    pub(super) nodes: Vec<Vec<u8>>,
}

/// The first string of an event's data, if it is a node id; longer data is dropped.
enum EventData {
    Node(NodeId),
    Unreadable,
}

impl Fields {
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut fields = Self::default();
        while let Some(key) = map.next_key::<FieldKey>()? {
            match key {
                FieldKey::Address => fields.address = map.next_value()?,
                FieldKey::Topics => fields.topics = map.next_value()?,
                FieldKey::Data => fields.data = map.next_value_seed(EventDataSeed)?,
                FieldKey::BlockNumber | FieldKey::Number => {
                    let text: Option<std::borrow::Cow<'de, str>> = map.next_value()?;
                    fields.number = match text {
                        None => None,
                        Some(t) => Some(quantity(&t).ok_or_else(|| A::Error::custom("not a quantity"))?),
                    };
                }
                FieldKey::BlockHash | FieldKey::Hash => fields.hash = map.next_value()?,
                FieldKey::Header(i) => {
                    let text: Option<std::borrow::Cow<'de, str>> = map.next_value()?;
                    fields.header.extend(text.and_then(|t| field_bytes(&t)).map(|bytes| (i, bytes)));
                }
                FieldKey::AccountProof => map.next_value::<Proof>()?.add_to(&mut fields.nodes),
                FieldKey::StorageProof => {
                    for item in map.next_value::<Vec<StorageProof>>()? {
                        item.proof.add_to(&mut fields.nodes);
                    }
                }
                FieldKey::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(fields)
    }

    /// The header in RLP, as far as its fields are known.
    pub(super) fn header_rlp(mut self) -> Vec<u8> {
        self.header.extend(self.number.map(|n| (NUMBER, n.to_be_bytes().to_vec())));
        self.header.sort_unstable();
        encode_list(self.header.iter().map(|(i, bytes)| {
            let quantity = HEADER.get(*i).is_some_and(|(_, quantity)| *quantity);
            let zeros = if quantity { bytes.iter().take_while(|b| **b == 0).count() } else { 0 };
            bytes.get(zeros..).unwrap_or_default()
        }))
    }

    /// `None`: the event changes no grant.
    fn change(self) -> Result<Option<GrantEvent>, &'static str> {
        let (Some(number), Some(hash)) = (self.number, self.hash) else { return Err("an event without its block") };
        let block = BlockRef { number, hash };
        let topic = |i: usize| self.topics.get(i).copied();
        if topic(0).is_some_and(|t| HARMLESS.contains(&t)) {
            return Ok(None);
        }
        let holder = |i| topic(i).map(Address::from_word);
        let token = |i| topic(i).map(|t| U256::from_be_bytes(t.0));
        let subject = match topic(0) {
            Some(GRANTED | REVOKED) => match (token(1), self.data) {
                (Some(token_id), Some(EventData::Node(node))) => Some(Subject::Node { node, token_id }),
                (_, Some(EventData::Unreadable | EventData::Node(_)) | None) => token(1).map(Subject::Token),
            },
            Some(TRANSFERRED) => token(1).map(Subject::Token),
            Some(TRANSFER) => token(3).map(Subject::Token),
            Some(KEY_UPDATED) => holder(1).map(Subject::Owner),
            // Events of a later version may concern every grant.
            Some(_) | None => None,
        };
        Ok(Some(GrantEvent { block, subject: subject.unwrap_or(Subject::Anyone) }))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fields, A::Error> {
                Fields::from_map(map)
            }
        }
        d.deserialize_map(V)
    }
}

enum FieldKey {
    Address,
    Topics,
    Data,
    BlockNumber,
    Number,
    BlockHash,
    Hash,
    AccountProof,
    StorageProof,
    /// By position in [`HEADER`].
    Header(usize),
    Other,
}

impl<'de> Deserialize<'de> for FieldKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = FieldKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field")
            }
            fn visit_str<E>(self, name: &str) -> Result<FieldKey, E> {
                Ok(match name {
                    "address" => FieldKey::Address,
                    "topics" => FieldKey::Topics,
                    "data" => FieldKey::Data,
                    "blockNumber" => FieldKey::BlockNumber,
                    "number" => FieldKey::Number,
                    "blockHash" => FieldKey::BlockHash,
                    "hash" => FieldKey::Hash,
                    "accountProof" => FieldKey::AccountProof,
                    "storageProof" => FieldKey::StorageProof,
                    _ => HEADER.iter().position(|(n, _)| *n == name).map_or(FieldKey::Other, FieldKey::Header),
                })
            }
        }
        d.deserialize_identifier(V)
    }
}

/// The bytes of a field of a header; `None`: it is none.
fn field_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").filter(|d| d.len() <= 2 * FIELD_MAX)?;
    if digits.len().is_multiple_of(2) { hex::decode(digits).ok() } else { hex::decode(format!("0{digits}")).ok() }
}

#[derive(Deserialize)]
struct StorageProof {
    #[serde(default)]
    proof: Proof,
}

/// The nodes of one proof; not hexadecimal ones are left out, and are missed where they are needed.
#[derive(Default, Deserialize)]
#[serde(transparent)]
struct Proof(Vec<String>);

impl Proof {
    fn add_to(self, nodes: &mut Vec<Vec<u8>>) {
        let node = |text: String| hex::decode(text.strip_prefix("0x").filter(|d| d.len() <= 2 * NODE_MAX)?).ok();
        nodes.extend(self.0.into_iter().filter_map(node));
    }
}

struct EventDataSeed;

impl<'de> DeserializeSeed<'de> for EventDataSeed {
    type Value = Option<EventData>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Option<EventData>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("hexadecimal data")
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Some(node_id(text).map_or(EventData::Unreadable, EventData::Node)))
            }
        }
        d.deserialize_str(V)
    }
}

/// The node id in the data of a grant or a revocation: its first string.
fn node_id(data: &str) -> Option<NodeId> {
    // Offset, length, 128 characters and a key: longer data is not of a known event.
    let digits = data.strip_prefix("0x").filter(|d| d.len() <= 2 * 1024)?;
    let bytes = hex::decode(digits).ok()?;
    match event_text(&bytes, 0) {
        Ok(Text::Plain(text)) => text.parse().ok(),
        Ok(Text::Nonsense) | Err(_) => None,
    }
}

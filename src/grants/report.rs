//! The watcher's report: rows for operators, counters for metrics, the condition for health.
use super::cache::Settled;
use super::ladder::Phase;
use super::policy::Pair;
use super::policy::Reason;
use crate::admission::{Admission, AdmissionTable, admission};
use crate::ladder::phase_after;
use alloy_primitives::{Address, U256};
use serde::{Deserialize, Serialize};
use spoke_config::layout::Verification;
use spoke_model::condition::{Code, Condition};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::{Boot, Wall};
use std::borrow::Cow;
use std::hash::BuildHasher;
use std::time::Duration;

/// The state at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its time, on the boot clock.
    pub at: Boot,
    /// Phase of the grace ladder.
    pub phase: Phase,
    /// Time of the last quorum; `None`: none in this run.
    #[serde(rename = "heard")]
    pub last_quorum: Option<Boot>,
    /// The same by the wall clock of that time.
    #[serde(rename = "heard_wall")]
    pub last_quorum_wall: Option<Wall>,
    /// The WebSocket endpoint that is subscribed to, or why there is none; `None`: not configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<String>,
    /// Height up to which the events were read.
    pub height: Option<u64>,
    /// Newest reported height.
    pub head: Option<u64>,
    /// What decisions rest on.
    #[serde(default)]
    pub verify: Verification,
    /// Number of admitted candidates.
    pub admitted: usize,
    /// Whether a poll is in progress.
    #[serde(rename = "looking")]
    pub polling: bool,
    /// Set while there is no quorum.
    #[serde(rename = "away")]
    pub unreachable: Option<Unreachable>,
    /// The local condition that restricts verification. Its code is constant and not part of the JSON form.
    #[serde(rename = "trouble", default, with = "without_code")]
    pub condition: Option<Condition>,
    /// Counters.
    pub counts: Counts,
    /// Endpoints, as configured.
    pub endpoints: Vec<EndpointRow>,
    /// Candidates, by name.
    pub rows: Vec<Row>,
}

/// Too few endpoints agree on the state of the chain, or the contract cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// Since when.
    pub since: Boot,
    /// The faults of the endpoints.
    #[serde(rename = "why")]
    pub reason: String,
    /// Consecutive failed polls.
    #[serde(rename = "looks")]
    pub failed_polls: u32,
    /// The endpoints agree, and the contract cannot be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contract: bool,
}

/// The JSON form of [`Report::condition`]: `{"since", "detail"}`; the code is constant.
mod without_code {
    use super::{Boot, Code, Condition};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Json {
        since: Boot,
        detail: String,
    }

    #[expect(clippy::ref_option, reason = "the signature serde's `with` wants")]
    pub(super) fn serialize<S: Serializer>(c: &Option<Condition>, s: S) -> Result<S::Ok, S::Error> {
        c.as_ref().map(|c| Json { since: c.since, detail: c.detail.clone() }).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Condition>, D::Error> {
        let json = Option::<Json>::deserialize(d)?;
        Ok(json.map(|j| Condition::new(Code::AccessControlDegraded, j.since, j.detail)))
    }
}

/// Counters since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Polls of the chain.
    #[serde(rename = "looks")]
    pub polls: u64,
    /// Polls without a quorum.
    #[serde(rename = "failed_looks")]
    pub failed_polls: u64,
    /// Decisions by reason, in the order of [`Reason::ALL`].
    pub decisions: [u64; 5],
    /// Verifications without a decision.
    pub verification_errors: u64,
    /// Peers admitted.
    pub granted: u64,
    /// Peers removed by a decision of the chain.
    pub revoked: u64,
    /// Reorganisations.
    pub reorganisations: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests without a usable answer.
    pub failed_requests: u64,
    /// Bytes of request and response bodies.
    pub bytes: u64,
    /// `eth_call`s that verified pairs.
    pub verifications: u64,
    /// Decisions in the cache.
    pub cache_size: u64,
    /// Maximum number of decisions in the cache.
    pub cache_max: u64,
    /// Successful look-ups.
    pub cache_hits: u64,
    /// Failed look-ups.
    pub cache_misses: u64,
    /// Writes of the decisions to disk.
    pub writes: u64,
}

impl Counts {
    /// Counts a decision.
    pub fn decided(&mut self, reason: Reason, settled: Settled) {
        if let Some(i) = Reason::ALL.iter().position(|r| *r == reason)
            && let Some(n) = self.decisions.get_mut(i)
        {
            *n += 1;
        }
        match settled {
            Settled::Granted => self.granted += 1,
            Settled::Revoked => self.revoked += 1,
            Settled::Unchanged | Settled::Outdated => {}
        }
    }

    /// Decisions by reason.
    pub fn by_reason(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.decisions)
    }
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Scheme and host.
    pub name: String,
    /// Moving average of the response time in milliseconds.
    pub latency_ms: Option<f64>,
    /// Newest height it reported.
    pub height: Option<u64>,
    /// Consecutive failures.
    pub failures: u32,
    /// It is on this chain instead.
    pub other_chain: Option<u64>,
    /// Number of answers.
    pub answers: u64,
    /// Failures since start.
    pub errors: u64,
    /// Answers that a quorum contradicted.
    pub dissents: u64,
    /// What it reported within the last hour and a quorum refutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuted: Option<String>,
}

/// Values that JSON holds as text: a row of many is kept without a text of its own.
mod as_text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::fmt::Display;
    use std::str::FromStr;

    #[expect(clippy::ref_option, reason = "the signature serde's `with` wants")]
    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(s)
    }

    pub(super) fn deserialize<'de, T: FromStr, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| t.parse().map_err(|_| D::Error::custom("not the text of such a value"))).transpose()
    }
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The node.
    pub node: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Whether it is admitted now.
    pub admitted: bool,
    /// The current reason code.
    pub code: Cow<'static, str>,
    /// Its token; JSON: in decimal.
    #[serde(default, with = "as_text")]
    pub token_id: Option<U256>,
    /// The holder of the token.
    #[serde(default, with = "as_text")]
    pub owner: Option<Address>,
    /// Height the decision holds for.
    pub block: u64,
    /// Time of the decision; `None`: there is none.
    pub decided: Option<Boot>,
    /// Granted at the newest block, but held until this height is final.
    pub held_until: Option<u64>,
    /// Age of a change that could not be verified.
    pub doubt: Option<Duration>,
}

/// The candidates at time `now`, sorted by name.
pub fn rows<S: BuildHasher>(table: &AdmissionTable<S>, phase: Phase, now: Boot) -> Vec<Row> {
    let rungs = *table.ladder.rungs();
    let row = |(node, key): &Pair| {
        let entry = table.cache().peek(node, key);
        let admission = entry
            .map_or(Admission::Unverified(phase), |e| admission(e, phase, |doubt| phase_after(&rungs, doubt.age(now))));
        let decision = entry.and_then(|e| e.decision);
        Row {
            node: node.clone(),
            key: *key,
            admitted: admission.granted(),
            code: admission.code().into(),
            token_id: decision.and_then(|d| d.token_id),
            owner: decision.and_then(|d| d.owner),
            block: entry.map_or(0, |e| e.block),
            decided: decision.and(entry).map(|e| e.at),
            held_until: entry.and_then(|e| e.held_until).filter(|a| *a > 0),
            doubt: entry.and_then(|e| e.doubt).map(|d| d.age(now)),
        }
    };
    table.candidates().iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_json() {
        let owner = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
        let json = serde_json::json!({
            "node": "n1", "key": PublicKey([1; 32]), "admitted": true, "code": "ACCESS_GRANTED", "token_id": "7",
            "owner": owner, "block": 9, "decided": null, "held_until": null, "doubt": null
        });
        let row: Row = serde_json::from_value(json.clone()).unwrap();
        assert_eq!((row.token_id, row.owner), (Some(U256::from(7)), owner.parse().ok()));
        assert_eq!(serde_json::to_value(&row).unwrap(), json);
    }
}

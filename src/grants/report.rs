//! The watcher's report: rows for people, counters for monitors, conditions for health.
use super::cache::Settled;
use super::ladder::Phase;
use super::policy::Pair;
use super::policy::Reason;
use crate::admission::{Admission, AdmissionTable, admission};
use crate::ladder::phase_after;
use serde::{Deserialize, Serialize};
use spoke_model::condition::{Code, Condition};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::{Boot, Wall};
use std::hash::BuildHasher;
use std::time::Duration;

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When, on the boot clock.
    pub at: Boot,
    /// Where on the grace ladder.
    pub phase: Phase,
    /// When enough endpoints last agreed; `None`: not in this run.
    #[serde(rename = "heard")]
    pub last_quorum: Option<Boot>,
    /// The same by the wall clock as it stood.
    #[serde(rename = "heard_wall")]
    pub last_quorum_wall: Option<Wall>,
    /// Height up to which everything is known.
    pub height: Option<u64>,
    /// Newest height that was reported.
    pub head: Option<u64>,
    /// Candidates that are admitted.
    pub admitted: usize,
    /// Whether a poll is under way.
    #[serde(rename = "looking")]
    pub polling: bool,
    /// Why too few endpoints agree; `None` while enough do.
    #[serde(rename = "away")]
    pub unreachable: Option<Unreachable>,
    /// What restricts verification on this side. Its code is always the same and not part of the JSON form.
    #[serde(rename = "trouble", default, with = "without_code")]
    pub condition: Option<Condition>,
    /// Counters.
    pub counts: Counts,
    /// Endpoints, as configured.
    pub endpoints: Vec<EndpointRow>,
    /// Candidates, by name.
    pub rows: Vec<Row>,
}

/// Too few endpoints agree on the state of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// Since when.
    pub since: Boot,
    /// What each endpoint answered.
    #[serde(rename = "why")]
    pub reason: String,
    /// Failed polls in a row.
    #[serde(rename = "looks")]
    pub failed_polls: u32,
}

/// The JSON form of [`Report::condition`]: `{"since", "detail"}`; the code is always the same.
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
    /// Verifications that gave no decision.
    pub verification_errors: u64,
    /// Peers that came in.
    pub granted: u64,
    /// Peers that had to go because the chain said so.
    pub revoked: u64,
    /// Reorganisations.
    pub reorganisations: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests without a usable answer.
    pub failed_requests: u64,
    /// Bytes of the bodies, both ways.
    pub bytes: u64,
    /// `eth_call`s that verified something.
    pub verifications: u64,
    /// Decisions in the cache.
    pub cache_size: u64,
    /// Most of them.
    pub cache_max: u64,
    /// Look-ups that found one.
    pub cache_hits: u64,
    /// Look-ups that did not.
    pub cache_misses: u64,
    /// Times the decisions were written to disk.
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
    /// Milliseconds to an answer, smoothed.
    pub latency_ms: Option<f64>,
    /// Newest height it reported.
    pub height: Option<u64>,
    /// Failures in a row.
    pub failures: u32,
    /// It is on this chain instead.
    pub other_chain: Option<u64>,
    /// Answers.
    pub answers: u64,
    /// Failures since start.
    pub errors: u64,
    /// Answers that the others contradicted.
    pub dissents: u64,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The node.
    pub node: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Whether it may be a peer now.
    pub admitted: bool,
    /// The reason code now.
    pub code: String,
    /// Its token, in decimal.
    pub token_id: Option<String>,
    /// Who holds it.
    pub owner: Option<String>,
    /// Height the decision holds for.
    pub block: u64,
    /// When it was made; `None`: there is none.
    pub decided: Option<Boot>,
    /// Granted at the newest block, but not until this height counts as final.
    pub held_until: Option<u64>,
    /// For how long a change has been known that could not be verified.
    pub doubt: Option<Duration>,
}

/// The candidates at one moment, by name.
pub fn rows<S: BuildHasher>(book: &AdmissionTable<S>, phase: Phase, now: Boot) -> Vec<Row> {
    let rungs = *book.ladder.rungs();
    let row = |(node, key): &Pair| {
        let entry = book.cache().peek(node, key);
        let admission = entry
            .map_or(Admission::Unverified(phase), |e| admission(e, phase, |doubt| phase_after(&rungs, doubt.age(now))));
        let decision = entry.and_then(|e| e.decision);
        Row {
            node: node.clone(),
            key: *key,
            admitted: admission.granted(),
            code: admission.code().to_owned(),
            token_id: decision.and_then(|d| d.token_id).map(|id| id.to_string()),
            owner: decision.and_then(|d| d.owner).map(|o| o.to_string()),
            block: entry.map_or(0, |e| e.block),
            decided: decision.and(entry).map(|e| e.at),
            held_until: entry.and_then(|e| e.held_until).filter(|a| *a > 0),
            doubt: entry.and_then(|e| e.doubt).map(|d| d.age(now)),
        }
    };
    book.candidates().iter().map(row).collect()
}

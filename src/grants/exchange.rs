//! One question, sent to endpoints until a quorum of them agrees.
//!
//! Endpoints are asked in waves, best first, each wave as large as the number of missing votes. Between exchanges
//! [`Conversation`] keeps only the endpoints' states and limits.
use super::abi::NODES_PER_CALL;
use super::fault::EndpointFault;
use super::jsonrpc::{Answer, BlockRef, Call, Refusal};
use super::learnt::LearntLimit;
use super::question::{Finding, Question, disputed, heads_differ};
use super::quorum::{Endpoints, OnChain, REFUTED_SHOWN, Tally};
use super::report::EndpointRow;
use alloy_primitives::B256;
use spoke_config::grants::{Finality, Grants, MAX_ENDPOINTS};
use spoke_model::backoff::JitterRng;
use spoke_model::time::Boot;
use std::sync::Arc;
use std::time::Duration;

/// Added to the timeout of a call before it counts as lost, so that the driver's more specific error arrives first.
const REPLY_SLACK: Duration = Duration::from_secs(1);

/// How long an endpoint that reports a rate limit in an answer is not asked.
const RATE_PAUSE: Duration = Duration::from_secs(5);

/// A batch to send to one endpoint; the reply carries its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcRequest {
    /// Unique within the conversation.
    pub id: u64,
    /// The endpoint's position in `[grants] endpoints`.
    pub endpoint: usize,
    /// The calls of the batch.
    pub calls: Vec<Call>,
    /// Maximum size of the answer in bytes.
    pub max_bytes: u64,
    /// Time the endpoint has to answer.
    pub timeout: Duration,
}

/// The reply to an [`RpcRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcReply {
    /// In the order of the calls; `None`: no answer to that call.
    pub answers: Vec<Option<Answer>>,
    /// From the first byte sent to the last byte read.
    pub took: Duration,
    /// Bytes of request and response bodies.
    pub bytes: u64,
}

/// Why an [`RpcRequest`] has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RpcFailure {
    /// The endpoint refused the whole batch.
    Refused(Refusal),
    /// The answer was larger than allowed.
    TooLarge,
    /// Anything else.
    Failed {
        /// The error, without the URL.
        error: String,
        /// The `Retry-After` of the endpoint.
        retry_after: Option<Duration>,
    },
}

/// Too few endpoints gave the same answer: neither a grant nor a revocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{agreed} of {needed} endpoints agree{}", .faults.iter().map(|(name, f)| format!("; {name}: {f}")).collect::<String>())]
pub struct NoQuorum {
    /// Number of equal answers of the largest group.
    pub agreed: usize,
    /// The quorum.
    pub needed: usize,
    /// Endpoints without a usable answer.
    pub faults: Vec<(String, EndpointFault)>,
}

impl NoQuorum {
    pub(crate) fn any(&self, is: impl Fn(&EndpointFault) -> bool) -> bool {
        self.faults.iter().any(|(_, f)| is(f))
    }
}

/// A finding that a quorum agrees on.
#[derive(Debug)]
pub(crate) struct Agreement {
    pub(crate) agreed: Finding,
    /// Every finding, dissenting ones included, by endpoint.
    pub(crate) all: heapless::Vec<(usize, Finding), MAX_ENDPOINTS>,
}

pub(crate) type Outcome = Result<Agreement, NoQuorum>;

/// Counters of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests with a reply or timed out.
    pub requests: u64,
    /// Requests without a usable answer.
    pub failures: u64,
    /// Bytes of request and response bodies.
    pub bytes: u64,
    /// `eth_call`s that verified pairs.
    pub verifications: u64,
}

/// A log event about an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointNotice {
    /// Its answer was rejected.
    Rejected {
        /// Scheme and host.
        endpoint: String,
        /// The reason.
        fault: EndpointFault,
    },
    /// It contradicts the quorum.
    Dissented {
        /// Scheme and host.
        endpoint: String,
    },
    /// It reported what a quorum refutes, which no correct endpoint does.
    Refuted {
        /// Scheme and host.
        endpoint: String,
        /// The claim.
        fault: EndpointFault,
    },
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeAction {
    /// Send the request; pass its reply or failure back.
    Send(RpcRequest),
    /// Log it.
    Report(EndpointNotice),
}

/// At most a fault, a dissent, two refuted claims and a request for each endpoint, twice: one step may end an exchange
/// and begin the next.
pub const MAX_EXCHANGE_ACTIONS: usize = 10 * MAX_ENDPOINTS;

/// Actions of one step, in the order to perform them.
pub type ExchangeActions = heapless::Vec<ExchangeAction, MAX_EXCHANGE_ACTIONS>;

#[derive(Debug)]
struct Exchange {
    question: Question,
    calls: Vec<Call>,
    /// Endpoints not asked yet, best last.
    rest: heapless::Vec<usize, MAX_ENDPOINTS>,
    /// Endpoints in our backoff, next one last: asked if the others make no quorum.
    in_backoff: heapless::Vec<usize, MAX_ENDPOINTS>,
    /// Requests without a reply: id and endpoint.
    open: heapless::Vec<(u64, usize), MAX_ENDPOINTS>,
    /// Open requests count as lost from this time on.
    reply_by: Boot,
    tally: Tally<Finding>,
    faults: Vec<(String, EndpointFault)>,
}

/// The conversation with the endpoints of one chain: at most one exchange at a time.
#[derive(Debug)]
pub struct Conversation {
    config: Arc<Grants>,
    names: Vec<String>,
    rng: JitterRng,
    next_id: u64,
    exchange: Option<Exchange>,
    out: ExchangeActions,
    now: Boot,
    /// Blocks of the last position, with the endpoint that reported each.
    claims: Vec<(usize, BlockRef)>,
    pub(crate) endpoints: Endpoints,
    /// Counters.
    pub traffic: Traffic,
    /// Pairs in one call; halved when an endpoint refuses a call as too expensive.
    nodes_per_call: LearntLimit,
    /// Events were read up to the head: the next position request can include the new ones.
    pub(crate) near_head: bool,
    /// Hash of the contract's code for which its functions returned what its storage has.
    pub(crate) layout_of: Option<B256>,
    /// 1 while an endpoint limits `eth_getLogs` to fewer blocks than pass between two polls: events are read in chunks.
    events_with_position: LearntLimit,
}

impl Conversation {
    /// A conversation with the endpoints of these names; `seed` spreads retries.
    pub fn new(config: Arc<Grants>, names: Vec<String>, seed: u64) -> Self {
        Self {
            config,
            endpoints: Endpoints::new(names.len()),
            names,
            rng: JitterRng::new(seed),
            next_id: 0,
            exchange: None,
            out: ExchangeActions::new(),
            now: Boot::default(),
            claims: Vec::new(),
            traffic: Traffic::default(),
            nodes_per_call: LearntLimit::of(NODES_PER_CALL),
            near_head: false,
            layout_of: None,
            events_with_position: LearntLimit::new(2),
        }
    }

    /// `[grants]`.
    pub const fn config(&self) -> &Arc<Grants> {
        &self.config
    }

    pub(crate) fn open(&mut self, names: Vec<String>) {
        self.endpoints = Endpoints::new(names.len());
        self.names = names;
    }

    /// An endpoint's scheme and host.
    pub fn name(&self, endpoint: usize) -> &str {
        self.names.get(endpoint).map_or("?", String::as_str)
    }

    pub(crate) fn take_actions(&mut self) -> ExchangeActions {
        std::mem::take(&mut self.out)
    }

    /// When the open requests count as lost.
    pub(crate) fn deadline(&self) -> Option<Boot> {
        self.exchange.as_ref().map(|e| e.reply_by)
    }

    /// Begins an exchange. Returns its outcome if no endpoint may be asked now.
    pub(crate) fn ask(&mut self, now: Boot, question: Question) -> Option<Outcome> {
        self.traffic.verifications += match &question {
            Question::Decisions { calls, .. } => calls.len() as u64,
            Question::Proofs(requests) => requests.len() as u64,
            Question::Facts { .. } => 1,
            Question::Position { .. } | Question::Logs { .. } | Question::Block(_) | Question::Pins(_) => 0,
        };
        let (mut rest, mut in_backoff) = (self.endpoints.order(now), self.endpoints.in_backoff(now));
        if matches!(question, Question::Proofs(_)) {
            rest.sort_by_key(|i| self.endpoints.proofs_fail(*i, now));
        }
        rest.reverse();
        in_backoff.reverse();
        self.exchange = Some(Exchange {
            calls: question.calls(self.config.contract),
            tally: Tally::new(question.votes(self.config.quorum)),
            question,
            rest,
            in_backoff,
            open: heapless::Vec::new(),
            reply_by: now,
            faults: Vec::new(),
        });
        self.proceed(now)
    }

    /// Handles a reply. Returns the outcome if it ends the exchange.
    pub(crate) fn replied(&mut self, now: Boot, id: u64, reply: Result<RpcReply, RpcFailure>) -> Option<Outcome> {
        let exchange = self.exchange.as_mut()?;
        // `None`: the reply to a request that has timed out.
        let at = exchange.open.iter().position(|(open, _)| *open == id)?;
        let (_, endpoint) = exchange.open.swap_remove(at);
        self.settle(now, endpoint, reply);
        self.proceed(now)
    }

    /// Drops the open requests after their timeout. Returns the outcome if that ends the exchange.
    pub(crate) fn expire(&mut self, now: Boot) -> Option<Outcome> {
        let exchange = self.exchange.as_mut()?;
        if now < exchange.reply_by {
            return None;
        }
        for (_, endpoint) in std::mem::take(&mut exchange.open) {
            let lost = RpcFailure::Failed { error: "no answer in time".to_owned(), retry_after: None };
            self.settle(now, endpoint, Err(lost));
        }
        self.proceed(now)
    }

    fn settle(&mut self, now: Boot, endpoint: usize, reply: Result<RpcReply, RpcFailure>) {
        let answers = self.accept(now, endpoint, reply);
        let Some(exchange) = self.exchange.as_mut() else { return };
        let finding =
            answers.and_then(|answers| exchange.question.read(answers, self.config.contract, self.config.chain_id));
        if let Err(EndpointFault::OtherChain { reported, wanted }) = &finding {
            // A load balancer can forward to another chain under the same URL.
            self.endpoints.on_chain(endpoint, *reported, *wanted, now);
        }
        let finding = finding.and_then(|f| match &f {
            Finding::Position(view) => {
                let since = self.endpoints.stuck_for(endpoint, view.head, now);
                let stuck = !self.config.stall.is_zero() && since >= self.config.stall;
                if stuck { Err(EndpointFault::Stuck { height: view.head, since }) } else { Ok(f) }
            }
            Finding::Logs(_)
            | Finding::Block(_)
            | Finding::Decisions { .. }
            | Finding::Proved(_)
            | Finding::Facts(_) => Ok(f),
        });
        match finding {
            Ok(finding) => exchange.tally.add(endpoint, finding),
            Err(fault) => {
                self.traffic.failures += 1;
                if matches!(exchange.question, Question::Proofs(_)) {
                    self.endpoints.proofs_failed(endpoint, now);
                }
                if fault.counts() {
                    let rate = matches!(&fault, EndpointFault::Refused(refusal) if refusal.rate());
                    self.endpoints.failed(endpoint, now, rate.then_some(RATE_PAUSE), self.rng.next_u64());
                }
                let name = self.names.get(endpoint).cloned().unwrap_or_default();
                let notice = EndpointNotice::Rejected { endpoint: name.clone(), fault: fault.clone() };
                let _ = self.out.push(ExchangeAction::Report(notice));
                exchange.faults.push((name, fault.clone()));
                if matches!(fault, EndpointFault::FalseProof(_)) {
                    self.now = now;
                    self.contradicted(endpoint, &fault);
                }
            }
        }
    }

    /// Sends the next wave once the last one is complete, or ends the exchange.
    fn proceed(&mut self, now: Boot) -> Option<Outcome> {
        self.now = now;
        let exchange = self.exchange.as_mut()?;
        if !exchange.open.is_empty() {
            return None;
        }
        let mut missing = exchange.tally.missing();
        if missing == 0 {
            let (quorum, answers) = (self.config.quorum, exchange.tally.answers());
            if !heads_differ(answers.clone(), quorum) {
                // There is a quorum: whether it can be outvoted is no reason to end a backoff.
                exchange.in_backoff.clear();
                missing = usize::from(disputed(&exchange.question, answers, quorum));
            } else {
                missing = 1;
            }
        }
        if missing == 0 || exchange.rest.is_empty() && exchange.in_backoff.is_empty() {
            return self.exchange.take().map(|e| self.conclude(now, e));
        }
        for _ in 0..missing {
            let Some(endpoint) = exchange.rest.pop().or_else(|| exchange.in_backoff.pop()) else {
                break;
            };
            let mut calls = Vec::with_capacity(exchange.calls.len() + 1);
            calls.extend(self.endpoints.must_report_chain(endpoint).then_some(Call::ChainId));
            calls.extend_from_slice(&exchange.calls);
            self.next_id += 1;
            let request = RpcRequest {
                id: self.next_id,
                endpoint,
                calls,
                max_bytes: exchange.question.max_bytes(),
                timeout: self.config.timeout,
            };
            let _ = exchange.open.push((request.id, endpoint));
            let _ = self.out.push(ExchangeAction::Send(request));
        }
        exchange.reply_by = now + self.config.timeout + REPLY_SLACK;
        None
    }

    fn conclude(&mut self, now: Boot, exchange: Exchange) -> Outcome {
        let needed = exchange.question.votes(self.config.quorum);
        let Some(agreed) = exchange.tally.agreed().cloned() else {
            let agreed = needed.saturating_sub(exchange.tally.missing());
            return Err(NoQuorum { agreed, needed, faults: exchange.faults });
        };
        let pinned = exchange.question.is_pinned();
        let dissenters: heapless::Vec<usize, MAX_ENDPOINTS> = exchange.tally.dissenters().collect();
        for i in dissenters {
            if pinned {
                self.contradicted(i, &EndpointFault::FalseDecisions);
                continue;
            }
            let endpoint = self.names.get(i).cloned().unwrap_or_default();
            let _ = self.out.push(ExchangeAction::Report(EndpointNotice::Dissented { endpoint }));
            self.endpoints.dissented(i);
        }
        let all = exchange.tally.into_answers();
        self.now = now;
        for (i, finding) in &all {
            if let Finding::Position(view) = finding {
                self.endpoints.at_height(*i, view.head, now);
            }
        }
        Ok(Agreement { agreed, all })
    }

    /// Updates the endpoint's counters and removes the answer to the added `eth_chainId`.
    fn accept(
        &mut self,
        now: Boot,
        i: usize,
        reply: Result<RpcReply, RpcFailure>,
    ) -> Result<Vec<Option<Answer>>, EndpointFault> {
        self.traffic.requests += 1;
        let reply = match reply {
            Ok(reply) => reply,
            // `EndpointFault::counts` decides by the text whether it counts as a failure.
            Err(RpcFailure::Refused(refusal)) => return Err(EndpointFault::Refused(refusal)),
            Err(RpcFailure::TooLarge) => {
                self.endpoints.failed(i, now, None, self.rng.next_u64());
                return Err(EndpointFault::too_large());
            }
            Err(RpcFailure::Failed { error, retry_after }) => {
                self.endpoints.failed(i, now, retry_after, self.rng.next_u64());
                return Err(EndpointFault::NoAnswer(error));
            }
        };
        self.traffic.bytes += reply.bytes;
        let mut answers = reply.answers;
        if self.endpoints.must_report_chain(i) && !answers.is_empty() {
            match answers.remove(0) {
                Some(Answer::Number(reported)) => {
                    let wanted = self.config.chain_id;
                    if !self.endpoints.on_chain(i, reported, wanted, now) {
                        return Err(EndpointFault::OtherChain { reported, wanted });
                    }
                }
                Some(_) | None => return Err(EndpointFault::Partial),
            }
        }
        // Some providers report a rate limit inside the answer.
        let limited = |a: &&Answer| matches!(a, Answer::Refused(r) if r.rate());
        if let Some(Answer::Refused(r)) = answers.iter().flatten().find(limited) {
            return Err(EndpointFault::Refused(r.clone()));
        }
        self.endpoints.answered(i, reply.took);
        Ok(answers)
    }

    /// Records a claim of an endpoint that a quorum refutes.
    pub(crate) fn contradicted(&mut self, i: usize, fault: &EndpointFault) {
        if self.endpoints.contradicted(i, fault.to_string(), self.now) {
            let endpoint = self.name(i).to_owned();
            let notice = EndpointNotice::Refuted { endpoint, fault: fault.clone() };
            let _ = self.out.push(ExchangeAction::Report(notice));
        }
    }

    /// Pairs in one call.
    pub(crate) fn nodes_per_call(&mut self) -> usize {
        self.nodes_per_call.size(self.now)
    }

    pub(crate) fn lower_nodes_per_call(&mut self) {
        let half = self.nodes_per_call.get(self.now) / 2;
        self.nodes_per_call.lower(half, self.now);
    }

    /// Whether events are read in chunks, apart from the position.
    pub(crate) fn events_apart(&mut self) -> bool {
        self.events_with_position.get(self.now) < 2
    }

    pub(crate) fn read_events_apart(&mut self) {
        self.events_with_position.lower(1, self.now);
    }

    pub(crate) const fn now(&self) -> Boot {
        self.now
    }

    /// The endpoints whose claims a quorum refuted of late, and the claim.
    pub(crate) fn refuted(&self, now: Boot) -> impl Iterator<Item = (&str, &str)> {
        self.endpoints.iter().enumerate().filter_map(move |(i, e)| {
            let (_, claim) = e.refuted.as_ref().filter(|(at, _)| now.since(*at) < REFUTED_SHOWN)?;
            Some((self.name(i), claim.as_str()))
        })
    }

    pub(crate) fn remember_claims(&mut self, claims: Vec<(usize, BlockRef)>) {
        self.claims = claims;
    }

    /// A quorum has `block` at height `number`: counts a failure for each endpoint that reported another height.
    pub(crate) fn refute(&mut self, block: BlockRef, number: u64) -> NoQuorum {
        let fault = EndpointFault::FalseHeight { hash: block.hash, claimed: block.number, number };
        let mut faults = Vec::new();
        let claims = std::mem::take(&mut self.claims);
        let (false_claims, rest) = claims.into_iter().partition(|(_, claimed)| *claimed == block);
        self.claims = rest;
        for (i, _) in Vec::<(usize, BlockRef)>::from_iter(false_claims) {
            self.endpoints.refuted(i, self.now);
            self.contradicted(i, &fault);
            let endpoint = self.name(i).to_owned();
            faults.push((endpoint, fault.clone()));
        }
        NoQuorum { agreed: 0, needed: self.config.quorum, faults }
    }

    /// The block tag of `[grants] finality`; `None` for `latest`.
    pub(crate) fn finality(&self) -> Option<super::jsonrpc::At> {
        match self.config.finality {
            Finality::Latest => None,
            Finality::Safe => Some(super::jsonrpc::At::Safe),
            Finality::Finalized => Some(super::jsonrpc::At::Finalized),
        }
    }

    /// The endpoints on another chain than the configured one, and that chain.
    pub(crate) fn on_other_chains(&self) -> impl Iterator<Item = (&str, u64)> {
        self.endpoints.iter().enumerate().filter_map(|(i, e)| match e.chain {
            OnChain::Other(reported) => Some((self.name(i), reported)),
            OnChain::Unknown | OnChain::Yes => None,
        })
    }

    pub(crate) fn rows(&self) -> Vec<EndpointRow> {
        let row = |(i, e): (usize, &super::quorum::EndpointState)| EndpointRow {
            name: self.name(i).to_owned(),
            latency_ms: e.latency.map(|l| l.as_secs_f64() * 1000.0),
            failures: e.failures,
            other_chain: match e.chain {
                OnChain::Other(reported) => Some(reported),
                OnChain::Unknown | OnChain::Yes => None,
            },
            height: (e.height > 0).then_some(e.height),
            answers: e.answers,
            errors: e.errors,
            dissents: e.dissents,
            refuted: e.refuted.as_ref().filter(|(at, _)| self.now.since(*at) < REFUTED_SHOWN).map(|(_, c)| c.clone()),
        };
        self.endpoints.iter().enumerate().map(row).collect()
    }
}

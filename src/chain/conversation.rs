//! Talks to the endpoints until enough of them agree.
use futures_util::future::join_all;
use spoke_config::grants::MAX_ENDPOINTS;
use spoke_config::grants::{Finality, Grants};
use spoke_grants::abi::NODES_PER_CALL;
use spoke_grants::chain::{EndpointFault, Pair, Verification, View, look, read_decisions, read_look};
use spoke_grants::cursor::{ChainCursor, Continuity};
use spoke_grants::jsonrpc::{Answer, At, BadAnswer, BlockRef, Call, GrantEvent};
use spoke_grants::policy::Decision;
use spoke_grants::quorum::{Endpoints, Tally};
use spoke_sys::clock::Clock;
use spoke_sys::rpc::{Rpc, RpcError};
use std::sync::Arc;

/// Cap of an answer to a look: a thousand events.
const LOOK_CAP: u64 = 1 << 20;
/// Cap of an answer with a chunk of events: ten thousand.
const SCAN_CAP: u64 = 10 << 20;
/// Cap of an answer to one call: 24,576 bytes in hexadecimal, and its frame.
const CALL_CAP: u64 = 2 * 24_576 + 1024;

/// Not enough endpoints said the same. Never a grant, never a revocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{agreed} of {needed} endpoints agree{}", .faults.iter().map(|(name, f)| format!("; {name}: {f}")).collect::<String>())]
pub struct NoQuorum {
    /// Most equal answers.
    pub agreed: usize,
    /// How many it takes.
    pub needed: usize,
    /// What was wrong with the others.
    pub faults: Vec<(String, EndpointFault)>,
}

impl NoQuorum {
    fn says(&self, what: impl Fn(&EndpointFault) -> bool) -> bool {
        self.faults.iter().any(|(_, f)| what(f))
    }
}

/// What the endpoints see, as far as enough of them agree.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whether the newest known block still is one.
    pub continuity: Continuity,
    /// The lowest of the heads.
    pub head: u64,
    /// The block below it has this height: everybody who was asked has one there.
    pub common: u64,
    /// A block that enough of them have below their head.
    pub anchor: Option<BlockRef>,
    /// Blocks to verify at, best first.
    pub pins: Vec<BlockRef>,
    /// Blocks that enough endpoints count as final, the newest first; empty unless asked for.
    pub finals: Vec<BlockRef>,
    /// What any of them says has changed: only ever a reason to verify.
    pub changes: Vec<GrantEvent>,
    /// Whether `changes` hold everything up to `head`.
    pub complete: bool,
}

/// Counters of the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests sent.
    pub requests: u64,
    /// Requests that gave nothing.
    pub failures: u64,
    /// Bytes of the bodies, both ways.
    pub bytes: u64,
    /// `eth_call`s that verified something.
    pub verifications: u64,
}

/// What the chain says of one pair; no decision where the answer could not be read.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// At the newest block.
    pub newest: (BlockRef, Option<Decision>),
    /// At the last one that counts as final; `None` where every block does, or none does yet.
    pub last_final: Option<(BlockRef, Option<Decision>)>,
}

/// The chain behind its endpoints.
#[derive(Debug)]
pub struct Chain<R, C> {
    rpc: R,
    clock: C,
    config: Arc<Grants>,
    random: fn() -> u64,
    /// What is known of the endpoints.
    pub endpoints: Endpoints,
    /// Counters.
    pub traffic: Traffic,
    per_call: usize,
    /// The last look reached the head: the next one can take the events along.
    near: bool,
    /// Somebody gives fewer blocks of events at once than pass between two looks: they are always read in chunks.
    apart: bool,
}

impl<R: Rpc, C: Clock> Chain<R, C> {
    /// A chain nothing is known of yet; `random` spreads retries.
    pub fn new(rpc: R, clock: C, config: Arc<Grants>, random: fn() -> u64) -> Self {
        let endpoints = Endpoints::new(rpc.endpoints());
        Self {
            rpc,
            clock,
            config,
            random,
            endpoints,
            traffic: Traffic::default(),
            per_call: NODES_PER_CALL,
            near: false,
            apart: false,
        }
    }

    /// An endpoint's name for people.
    pub fn name(&self, endpoint: usize) -> &str {
        self.rpc.name(endpoint)
    }

    /// Looks at the chain: its head, whether it still is the chain that was known, and what happened since. `finals`
    /// asks for blocks that count as final.
    pub async fn look(&mut self, follow: &ChainCursor, finals: bool) -> Result<Seen, NoQuorum> {
        let events = self.near && !self.apart;
        match self.look_once(follow, finals, events).await {
            Err(e) if events && (e.says(EndpointFault::too_much) || e.says(|f| *f == too_large())) => {
                // Nobody's fault: what happened since is read in chunks.
                self.apart |= e.says(EndpointFault::too_much);
                self.near = false;
                self.endpoints.pardon();
                self.look_once(follow, finals, false).await
            }
            outcome => outcome,
        }
    }

    async fn look_once(&mut self, follow: &ChainCursor, finals: bool, events: bool) -> Result<Seen, NoQuorum> {
        let final_at = match self.config.finality {
            Finality::Latest => None,
            Finality::Safe => Some(At::Safe),
            Finality::Finalized => Some(At::Finalized),
        }
        .filter(|_| finals);
        let asks = look(follow, self.config.contract, final_at, events);
        let mut views: heapless::Vec<(usize, View), MAX_ENDPOINTS> = heapless::Vec::new();
        let (standings, now, stall) = (self.endpoints.clone(), self.clock.now(), self.config.stall);
        let mut continuity = self
            .agree(&asks, LOOK_CAP, |i, answers| {
                let view = read_look(answers, follow, final_at.is_some())?;
                let since = standings.stuck_for(i, view.head, now);
                if !stall.is_zero() && since >= stall {
                    return Err(EndpointFault::Stuck { height: view.head, since });
                }
                let continuity = view.continuity;
                let _ = views.push((i, view));
                Ok(continuity)
            })
            .await?;
        for (i, view) in &views {
            self.endpoints.at_height(*i, view.head, now);
        }
        if let (Continuity::TooOld, Some(known)) = (continuity, follow.newest()) {
            continuity = follow.judge_block(self.block(At::Number(known.number)).await?);
        }
        let mut views: heapless::Vec<View, MAX_ENDPOINTS> = views.into_iter().map(|(_, view)| view).collect();
        let head = views.iter().map(|v| v.head).min().unwrap_or(0);
        let need = self.config.quorum;
        let common = |b: &BlockRef| views.iter().filter(|v| v.parent == Some(*b)).count() >= need;
        let anchor = views.iter().filter_map(|v| v.parent).find(common);
        // Of each one the newest block that matters and the one below its head, so that nobody's inventions crowd out the rest.
        let newest = |v: &View| v.changes.iter().map(|c| c.block).max();
        let mut pins: Vec<BlockRef> = views.iter().flat_map(|v| [newest(v), v.parent]).flatten().collect();
        pins.sort_unstable_by(|a, b| b.cmp(a));
        pins.dedup();
        // Final is what as many count as final as have to agree.
        let mut finals: Vec<BlockRef> = views.iter().filter_map(|v| v.last_final).collect();
        finals.sort_unstable_by(|a, b| b.cmp(a));
        finals.drain(..finals.len().min(need.saturating_sub(1)));
        finals.dedup();
        let changes = views.iter_mut().flat_map(|v| std::mem::take(&mut v.changes)).collect();
        let started = follow.scanned().is_some();
        let complete = started && (events || continuity == Continuity::Same && follow.gap(head) == 0);
        self.near = !started || complete;
        Ok(Seen { continuity, head, common: head.saturating_sub(1), anchor, pins, finals, changes, complete })
    }

    /// Reads one chunk of events up to `head`; gives them and the height read to. `None`: the chunk was too large, and
    /// `follow` knows.
    pub async fn scan(
        &mut self,
        follow: &mut ChainCursor,
        head: u64,
    ) -> Result<Option<(Vec<GrantEvent>, u64)>, NoQuorum> {
        let Some((from, to)) = follow.next(head) else { return Ok(None) };
        let asks = [Call::Logs { contract: self.config.contract, from, to: Some(to) }];
        let mut changes = Vec::new();
        let agreed = self
            .agree(&asks, SCAN_CAP, |_, answers| match answers.into_iter().next().flatten() {
                Some(Answer::Events(mut more)) => {
                    changes.append(&mut more);
                    Ok(())
                }
                Some(Answer::Refused(refusal)) => Err(EndpointFault::Refused(refusal)),
                Some(_) | None => Err(EndpointFault::Partial),
            })
            .await;
        match agreed {
            Ok(()) => {
                self.near = to == head;
                Ok(Some((changes, to)))
            }
            Err(e) if e.says(EndpointFault::too_much) || e.says(|f| *f == too_large()) => {
                if follow.too_much() {
                    // Not the endpoint's fault.
                    self.endpoints.pardon();
                    Ok(None)
                } else {
                    Err(e)
                }
            }
            Err(e) => Err(e),
        }
    }

    /// A block by height or name, as enough endpoints see it.
    pub async fn block(&mut self, at: At) -> Result<Option<BlockRef>, NoQuorum> {
        self.agree(&[Call::Header(at)], LOOK_CAP, |_, answers| match answers.into_iter().next().flatten() {
            Some(Answer::Block(block)) => Ok(Some(block)),
            Some(Answer::Nothing) => Ok(None),
            Some(Answer::Refused(refusal)) => Err(EndpointFault::Refused(refusal)),
            Some(_) | None => Err(EndpointFault::Partial),
        })
        .await
    }

    /// Verifies `pairs` at each of `pins`; for each pin the decisions in the order of `pairs`, `None` where the answer
    /// could not be read.
    pub async fn verify(&mut self, pins: &[BlockRef], pairs: &[Pair]) -> Result<Vec<Vec<Option<Decision>>>, NoQuorum> {
        let mut out: Vec<Vec<Option<Decision>>> = vec![Vec::with_capacity(pairs.len()); pins.len()];
        let plan = Verification::new(pins, pairs, self.per_call);
        let mut rest = plan.calls.as_slice();
        while !rest.is_empty() {
            let (calls, later) = rest.split_at(rest.len().min(self.config.batch.max(1)));
            rest = later;
            self.traffic.verifications += calls.len() as u64;
            let asks = plan.asks(calls, self.config.contract);
            let cap = CALL_CAP.saturating_mul(calls.len() as u64);
            let decided = match self.agree(&asks, cap, |_, answers| read_decisions(answers, calls)).await {
                Ok(decided) => decided,
                Err(e) => {
                    let costs = |m: &str| m.contains("gas") || m.contains("size") || m.contains("timeout");
                    if e.says(|f| matches!(f, EndpointFault::Refused(r) if costs(&r.message.to_ascii_lowercase()))) {
                        self.per_call = (self.per_call / 2).max(1);
                    }
                    return Err(e);
                }
            };
            let mut decided = decided.into_iter();
            for (pin, pairs) in calls {
                if let Some(of_pin) = out.get_mut(*pin) {
                    of_pin.extend(decided.by_ref().take(pairs.len()).map(Result::ok));
                }
            }
        }
        Ok(out)
    }

    /// Verifies at the first of `candidates` that enough endpoints know, together with `also`.
    pub async fn verify_at_best(
        &mut self,
        candidates: &[BlockRef],
        also: &[BlockRef],
        pairs: &[Pair],
    ) -> Result<(BlockRef, Vec<Vec<Option<Decision>>>), NoQuorum> {
        let mut last = NoQuorum { agreed: 0, needed: self.config.quorum, faults: Vec::new() };
        for pin in candidates {
            let pins: Vec<BlockRef> = std::iter::once(*pin).chain(also.iter().copied()).collect();
            match self.verify(&pins, pairs).await {
                Ok(decided) => return Ok((*pin, decided)),
                Err(e) => last = e,
            }
            if candidates.len() > 1 {
                // One that does not know a block may well know the next.
                self.endpoints.pardon();
            }
        }
        Err(last)
    }

    /// Asks about one pair without following anything.
    pub async fn ask_about(&mut self, pair: &Pair) -> Result<Asked, NoQuorum> {
        let seen = self.look(&ChainCursor::default(), self.config.finality != Finality::Latest).await?;
        let mut pins = seen.pins;
        // The newest block itself, where its header can be had: nobody waits here for one more.
        if let Some(newest) = self.block(At::Latest).await? {
            pins.insert(0, newest);
        }
        let finals: Vec<BlockRef> = seen.finals.into_iter().take(1).collect();
        let (pin, decided) = self.verify_at_best(&pins, &finals, std::slice::from_ref(pair)).await?;
        let mut decided = decided.into_iter().map(|d| d.into_iter().next().flatten());
        let newest = (pin, decided.next().flatten());
        Ok(Asked { newest, last_final: finals.into_iter().zip(decided).next() })
    }

    /// Asks in the order of merit until enough endpoints say the same.
    async fn agree<T: PartialEq + Clone>(
        &mut self,
        asks: &[Call],
        cap: u64,
        mut read: impl FnMut(usize, Vec<Option<Answer>>) -> Result<T, EndpointFault>,
    ) -> Result<T, NoQuorum> {
        let order = self.endpoints.order(self.clock.now());
        let mut rest = order.as_slice();
        let mut tally = Tally::new(self.config.quorum);
        let mut faults = Vec::new();
        loop {
            let (now, later) = rest.split_at(rest.len().min(tally.missing()));
            rest = later;
            if now.is_empty() {
                let agreed = self.config.quorum.saturating_sub(tally.missing());
                return Err(NoQuorum { agreed, needed: self.config.quorum, faults });
            }
            let replies = join_all(now.iter().map(|i| {
                let mut all = Vec::with_capacity(asks.len() + 1);
                all.extend(self.endpoints.must_tell_chain(*i).then_some(Call::ChainId));
                all.extend_from_slice(asks);
                self.rpc.ask(*i, all, cap)
            }))
            .await;
            for (i, reply) in now.iter().copied().zip(replies) {
                let answer = self.take(i, reply).and_then(|answers| read(i, answers));
                match answer {
                    Ok(answer) => tally.add(i, answer),
                    Err(fault) => {
                        self.traffic.failures += 1;
                        if fault.counts() {
                            self.endpoints.failed(i, self.clock.now(), None, (self.random)());
                        }
                        tracing::debug!(endpoint = self.rpc.name(i), %fault, "endpoint gave nothing");
                        faults.push((self.rpc.name(i).to_owned(), fault));
                    }
                }
            }
            if let Some(agreed) = tally.agreed().cloned() {
                for i in tally.dissenters() {
                    tracing::warn!(endpoint = self.rpc.name(i), "endpoint contradicts the others");
                    self.endpoints.dissented(i);
                }
                return Ok(agreed);
            }
        }
    }

    /// Books an endpoint's reply and takes the answer about its chain off it.
    fn take(
        &mut self,
        i: usize,
        reply: Result<spoke_sys::rpc::Reply, RpcError>,
    ) -> Result<Vec<Option<Answer>>, EndpointFault> {
        let now = self.clock.now();
        self.traffic.requests += 1;
        let reply = match reply {
            Ok(reply) => reply,
            // A refusal of everything is judged by its words.
            Err(RpcError::Bad(BadAnswer::Refused(refusal))) => return Err(EndpointFault::Refused(refusal)),
            Err(e) => {
                self.endpoints.failed(i, now, e.retry_after(), (self.random)());
                return Err(match e {
                    RpcError::TooLarge(_) => too_large(),
                    other => EndpointFault::NoAnswer(other.to_string()),
                });
            }
        };
        self.traffic.bytes += reply.bytes;
        let mut answers = reply.answers;
        if self.endpoints.must_tell_chain(i) && !answers.is_empty() {
            match answers.remove(0) {
                Some(Answer::Number(told)) => {
                    let wanted = self.config.chain_id;
                    if !self.endpoints.on_chain(i, told, wanted, now) {
                        return Err(EndpointFault::OtherChain { told, wanted });
                    }
                }
                Some(_) | None => return Err(EndpointFault::Partial),
            }
        }
        // Whether rate limits come as errors inside the answer is the provider's taste.
        if let Some(Answer::Refused(r)) = answers.iter().flatten().find(|a| matches!(a, Answer::Refused(r) if r.rate()))
        {
            return Err(EndpointFault::Refused(r.clone()));
        }
        self.endpoints.answered(i, reply.took);
        Ok(answers)
    }
}

fn too_large() -> EndpointFault {
    EndpointFault::NoAnswer("its answer is too large".to_owned())
}

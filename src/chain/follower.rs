//! Keeps the book in step with the chain and publishes who is admitted. Whoever has candidates may run it: the device for
//! its peers, the control plane for its nodes.
use crate::conversation::{Chain, NoQuorum, Seen};
use crate::ledger;
use crate::ledger::{Directories, Ledger};
use spoke_config::grants::{Finality, Grants};
use spoke_grants::abi::NODES_PER_CALL;
use spoke_grants::admission::{AdmissionTable, DecisionChange};
use spoke_grants::cache::{Cache, Settled};
use spoke_grants::chain::Pair;
use spoke_grants::cursor::{ChainCursor, Continuity};
use spoke_grants::jsonrpc::{At, BlockRef, GrantEvent};
use spoke_grants::ladder::Phase;
use spoke_grants::ledger::{Origin, StoredGrants};
use spoke_grants::policy::Short;
use spoke_grants::quorum::OnChain;
use spoke_grants::report::{Counts, EndpointRow, Report, Unreachable, rows};
use spoke_model::condition::{Code, Condition};
use spoke_model::time::{Boot, Wall};
use spoke_net::derive::Admitted;
use spoke_sys::clock::{Clock, boot_id};
use spoke_sys::random::seed;
use spoke_sys::rpc::Rpc;
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// With more unread blocks than this, everything is verified anew instead of reading their events.
const JUMP: u64 = 20_000;
/// First wait after a look that came to nothing.
const RETRY: Duration = Duration::from_secs(1);
/// Looks in a row that come to nothing before health speaks of it: a single lost answer is none of its business.
const LOOKS: u32 = 2;

/// What the task needs.
#[derive(Clone, Debug)]
pub struct Board<C> {
    /// Clocks.
    pub clock: C,
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// Where the decisions are kept, and how far the chain was followed.
    pub directories: Directories,
    /// Who wants to be a peer.
    pub candidates: watch::Receiver<Arc<BTreeSet<Pair>>>,
    /// Who is admitted.
    pub admitted: Arc<watch::Sender<Option<Arc<Admitted>>>>,
    /// Everything for people and monitors.
    pub report: Arc<watch::Sender<Option<Arc<Report>>>>,
    /// Rung to have everything verified again at once.
    pub refresh: Arc<Notify>,
    /// Until then whoever is admitted stays, as long as the chain has not been asked about everybody.
    pub hold: Option<Boot>,
}

/// Runs for ever. `open` makes the connection to the endpoints; what the disk remembers is published before it is called,
/// so that a missing credential holds up nobody.
pub async fn run<C: Clock, R: Rpc, E: std::error::Error + Send + Sync + 'static>(
    board: Board<C>,
    open: impl FnOnce() -> Result<R, E>,
) -> Result<(), E> {
    let mut task = Task::start(board);
    task.publish();
    let rpc = open()?;
    let mut chain = Chain::new(rpc, task.board.clock.clone(), task.board.config.clone(), seed);
    loop {
        task.look(&mut chain).await;
        task.publish_with(&chain);
        task.save().await;
        task.wait(&mut chain).await;
    }
}

/// Who a run would admit at its start, by what the state directory remembers. Asks nobody and changes nothing.
pub fn remembered(config: &Grants, state_dir: &Path, candidates: &BTreeSet<Pair>, now: Boot) -> Admitted {
    let origin = Origin { contract: config.contract, chain_id: config.chain_id };
    let mut book = AdmissionTable::new(config, Cache::new(RandomState::new()), now);
    if let Some(saved) = ledger::peek(state_dir, origin) {
        book.restore(saved.grants, saved.reserve.as_ref(), boot_id().as_deref(), now);
    }
    book.set_candidates(candidates);
    book.admitted(now)
}

struct Task<C> {
    board: Board<C>,
    book: AdmissionTable<RandomState>,
    follow: ChainCursor,
    ledger: Ledger,
    saved_edition: u64,
    boot: Option<String>,
    counts: Counts,
    head: Option<u64>,
    heard: Option<(Boot, Wall)>,
    away: Option<Unreachable>,
    condition: Option<Condition>,
    looking: bool,
    next: Boot,
    /// When something changes by itself that was not published yet.
    due: Option<Boot>,
    /// The last of those waiting that was asked about, where not everybody was.
    asked: Option<Pair>,
}

impl<C: Clock> Task<C> {
    fn start(board: Board<C>) -> Self {
        let (now, boot) = (board.clock.now(), boot_id());
        let origin = Origin { contract: board.config.contract, chain_id: board.config.chain_id };
        let (ledger, follow, saved) = Ledger::open(&board.directories, origin);
        let mut book = AdmissionTable::new(&board.config, Cache::new(RandomState::new()), now);
        if let Some(saved) = saved {
            tracing::info!(grants = saved.grants.len(), "grants of the last run are taken up");
            book.restore(saved.grants, saved.reserve.as_ref(), boot.as_deref(), now);
        }
        let mut task = Self {
            book,
            follow,
            ledger,
            saved_edition: 0,
            boot,
            counts: Counts::default(),
            head: None,
            heard: None,
            away: None,
            condition: None,
            looking: false,
            next: now,
            due: None,
            asked: None,
            board,
        };
        let candidates = task.board.candidates.borrow_and_update().clone();
        task.book.set_candidates(&candidates);
        task
    }

    async fn look<R: Rpc>(&mut self, chain: &mut Chain<R, C>) {
        self.counts.polls += 1;
        self.looking = true;
        self.publish_with(chain);
        let outcome = self.round(chain).await;
        self.looking = false;
        let now = self.board.clock.now();
        let poll = self.board.config.poll;
        match outcome {
            Ok(()) => {
                if let Some(away) = self.away.take() {
                    tracing::info!(after = ?now.since(away.since), "the chain is heard again");
                }
                self.heard = Some((now, self.board.clock.wall()));
                // A tenth to and fro, so that a fleet does not ask in step.
                let tenth = u64::try_from(poll.as_millis() / 10).unwrap_or(u64::MAX).max(1);
                let pause = poll.mul_f64(0.95) + Duration::from_millis(seed() % tenth);
                // Whoever was not asked about yet is next, but the news come first.
                self.next = if self.asked.is_some() { now } else { now + pause };
            }
            Err(e) => {
                self.counts.failed_polls += 1;
                let away = self.away.get_or_insert(Unreachable { since: now, reason: String::new(), failed_polls: 0 });
                away.failed_polls += 1;
                away.reason = e.to_string();
                if away.failed_polls == LOOKS {
                    tracing::warn!(phase = self.book.ladder.phase(now).name(), reason = %e, "the chain is not heard; grants stay as they are");
                }
                let retry = RETRY.saturating_mul(away.failed_polls).min(poll.max(RETRY));
                self.next = (now + retry).max(chain.endpoints.next().unwrap_or(now));
            }
        }
        let (t, c) = (chain.traffic, &mut self.counts);
        (c.requests, c.failed_requests, c.bytes, c.verifications) = (t.requests, t.failures, t.bytes, t.verifications);
        self.condition = self.own_condition(chain, now);
    }

    fn own_condition<R: Rpc>(&self, chain: &Chain<R, C>, now: Boot) -> Option<Condition> {
        let wrong: Vec<String> = chain
            .endpoints
            .iter()
            .enumerate()
            .filter_map(|(i, s)| match s.chain {
                OnChain::Other(told) => Some(format!("{} is on chain {told}", chain.name(i))),
                OnChain::Unknown | OnChain::Yes => None,
            })
            .collect();
        let detail = if !wrong.is_empty() {
            format!(
                "{}: correct grants.endpoints or grants.chain_id ({})",
                wrong.join(", "),
                self.board.config.chain_id
            )
        } else if self.book.overflow > 0 {
            format!("{} candidates are beyond the {} that fit", self.book.overflow, self.book.cache().max())
        } else {
            return None;
        };
        let since = self.condition.as_ref().filter(|t| t.detail == detail).map_or(now, |t| t.since);
        Some(Condition::new(Code::AccessControlDegraded, since, detail))
    }

    /// One look at the chain and everything that follows from it. An error leaves what is known as it is.
    async fn round<R: Rpc>(&mut self, chain: &mut Chain<R, C>) -> Result<(), NoQuorum> {
        let finals = self.book.needs_final(self.board.clock.now());
        let mut seen = chain.look(&self.follow, finals).await?;
        if seen.continuity == Continuity::Reorganised {
            self.walk_back(chain).await?;
            seen = chain.look(&self.follow, finals).await?;
        }
        self.head = Some(seen.head);
        if seen.pins.is_empty() {
            // The first block of all has none below it.
            seen.pins.extend(chain.block(At::Latest).await?);
        }
        self.follow_to(chain, &seen).await?;
        self.verify_doubted(chain, &seen).await?;
        // Everything that was granted is as the chain says; those who wait change nothing about that.
        self.book.confirm(self.board.clock.now());
        self.verify_waiting(chain, &seen).await
    }

    /// Reads every event up to the head. Whoever one of them touches is in doubt from then on, so that they are read once.
    async fn follow_to<R: Rpc>(&mut self, chain: &mut Chain<R, C>, seen: &Seen) -> Result<(), NoQuorum> {
        let start = seen.anchor.or_else(|| seen.pins.last().copied());
        if let (true, Some(start)) = (self.follow.gap(seen.head) > JUMP, start) {
            // A new follower, or one that was away for long: whoever matters is verified anew, and events are read from here.
            self.book.refresh(self.board.clock.now());
            self.follow = ChainCursor::start(start);
            return Ok(());
        }
        self.note(&seen.changes, seen);
        while !seen.complete && self.follow.gap(seen.head) > 0 {
            let Some((changes, to)) = chain.scan(&mut self.follow, seen.head).await? else { continue };
            self.note(&changes, seen);
            self.follow.read_to(to);
            // Many chunks take long: nobody who has to go waits for the last of them, and no phase goes unnoticed.
            if to < seen.head && !changes.is_empty() {
                self.verify_doubted(chain, seen).await?;
            }
            if self.due.is_some_and(|due| self.board.clock.now() >= due) {
                self.publish_with(chain);
                self.save().await;
            }
        }
        self.follow.read_to(seen.head);
        if let Some(anchor) = seen.anchor {
            self.follow.anchor(anchor);
        }
        Ok(())
    }

    fn note(&mut self, changes: &[GrantEvent], seen: &Seen) {
        self.book.note(changes, seen.common, self.board.clock.now());
    }

    async fn walk_back<R: Rpc>(&mut self, chain: &mut Chain<R, C>) -> Result<(), NoQuorum> {
        let from = self.follow.newest().map(|b| b.number);
        // On a copy: if nobody answers halfway, nothing of it has happened, and the next look finds the same again.
        let mut follow = self.follow.clone();
        loop {
            let more = follow.step_back();
            let Some(known) = follow.newest().filter(|_| more) else { break };
            if chain.block(At::Number(known.number)).await? == Some(known) {
                break;
            }
        }
        let to = follow.newest().map_or(0, |b| b.number);
        tracing::warn!(?from, to, "the chain was reorganised: what was decided since is verified again");
        // Nothing we knew is left: as on the first day.
        self.follow = if follow.newest().is_none() { ChainCursor::default() } else { follow };
        self.counts.reorganisations += 1;
        self.book.reorganised(to, self.board.clock.now());
        Ok(())
    }

    /// Whoever is granted and may have to go is verified at the newest block; a revocation is published and written down
    /// before anything else is asked.
    async fn verify_doubted<R: Rpc>(&mut self, chain: &mut Chain<R, C>, seen: &Seen) -> Result<(), NoQuorum> {
        let doubted = self.book.doubted(self.board.clock.now());
        let begun = self.book.begin(doubted);
        if begun.is_empty() {
            return Ok(());
        }
        let pairs: Vec<Pair> = begun.iter().map(|(p, _)| p.clone()).collect();
        let (pin, mut decided) = match chain.verify_at_best(&seen.pins, &[], &pairs).await {
            Ok(d) => d,
            Err(e) => {
                self.counts.verification_errors += begun.len() as u64;
                self.book.abandon(begun);
                return Err(e);
            }
        };
        let now = self.board.clock.now();
        let mut revoked = false;
        for (begun, decision) in begun.into_iter().zip(decided.swap_remove(0)) {
            self.counts.verification_errors += u64::from(decision.is_none());
            let news = self.book.settle_newest(begun, decision, pin.number, now);
            revoked |= news.as_ref().is_some_and(|n| n.settled == Settled::Revoked);
            self.tell(news);
        }
        if pin.number <= self.follow.scanned().unwrap_or(0) {
            self.follow.anchor(pin);
        }
        if revoked {
            self.publish_with(chain);
            self.save().await;
        }
        Ok(())
    }

    /// Whoever may have to come in is verified at the newest block and at the one that counts as final. Not more of them at
    /// once than fit into one request: whoever has to go is not kept waiting for a thousand who want to come.
    async fn verify_waiting<R: Rpc>(&mut self, chain: &mut Chain<R, C>, seen: &Seen) -> Result<(), NoQuorum> {
        let latest = self.board.config.finality == Finality::Latest;
        let most = self.board.config.batch.saturating_mul(NODES_PER_CALL);
        let asked = self.asked.take();
        let mut outcome = Ok(());
        let finals: Vec<Option<BlockRef>> =
            if latest || seen.finals.is_empty() { vec![None] } else { seen.finals.iter().copied().map(Some).collect() };
        for last_final in finals {
            let mut waiting = self.book.waiting(self.board.clock.now(), last_final.map(|b| b.number));
            // On from where the last round ended, so that one whose answer cannot be read is in nobody's way.
            waiting.retain(|pair| asked.as_ref().is_none_or(|last| pair > last));
            let rest = waiting.len() > most;
            waiting.truncate(most);
            let begun = self.book.begin(waiting);
            let Some((last, _)) = begun.last() else { return Ok(()) };
            self.asked = rest.then(|| last.clone());
            let pairs: Vec<Pair> = begun.iter().map(|(p, _)| p.clone()).collect();
            let also = last_final.map_or_else(Vec::new, |b| vec![b]);
            match chain.verify_at_best(&seen.pins, &also, &pairs).await {
                Ok((pin, decided)) => {
                    let now = self.board.clock.now();
                    let mut decided = decided.into_iter();
                    let newest = decided.next().unwrap_or_default();
                    let last = if latest { newest.clone() } else { decided.next().unwrap_or_default() };
                    let mut last = last.into_iter();
                    for (begun, newest) in begun.into_iter().zip(newest) {
                        self.counts.verification_errors += u64::from(newest.is_none());
                        let news = self.book.settle_final(begun, newest, last.next().flatten(), pin.number, now);
                        self.tell(news);
                    }
                    return Ok(());
                }
                Err(e) => {
                    self.counts.verification_errors += begun.len() as u64;
                    self.book.abandon(begun);
                    outcome = Err(e);
                }
            }
        }
        self.asked = None;
        outcome
    }

    fn tell(&mut self, news: Option<DecisionChange>) {
        let Some(n) = news else { return };
        self.counts.decided(n.decision.reason, n.settled);
        let (node, key, reason, block) = (&n.node, Short(&n.key), n.decision.reason.code(), n.block);
        match n.settled {
            Settled::Granted => tracing::info!(%node, %key, reason, block, "access granted"),
            Settled::Revoked => tracing::info!(%node, %key, reason, block, "access taken away"),
            Settled::Unchanged | Settled::Outdated => tracing::info!(%node, %key, reason, block, "access denied"),
        }
    }

    /// Waits for the next look, a change of candidates, somebody who asks for it, or the end of a phase.
    async fn wait<R: Rpc>(&mut self, chain: &mut Chain<R, C>) {
        loop {
            let now = self.board.clock.now();
            if now >= self.next {
                return;
            }
            let until = self.book.deadline(now).map_or(self.next, |d| d.min(self.next));
            tokio::select! {
                () = tokio::time::sleep(until.since(now)) => {}
                () = self.board.refresh.notified() => {
                    self.book.refresh(self.board.clock.now());
                    chain.endpoints.hurry();
                    return;
                }
                Ok(()) = self.board.candidates.changed() => {
                    let candidates = self.board.candidates.borrow_and_update().clone();
                    self.book.set_candidates(&candidates);
                    // Whoever is known is served at once; the rest is asked for.
                    self.publish_with(chain);
                    return;
                }
            }
            self.publish_with(chain);
            self.save().await;
        }
    }

    async fn save(&mut self) {
        if let Err(e) = self.ledger.reached(&self.follow).await {
            tracing::debug!(error = %e, "how far the chain was followed is not kept");
        }
        let now = self.board.clock.now();
        let reserve = self.book.ladder.to_reserve(now, self.boot.as_deref());
        let same = reserve.is_none() && self.saved_edition == self.book.edition && !self.book.must_keep_doubts(now);
        if same || !self.ledger.keeps_decisions() {
            return;
        }
        let reserve = reserve.or_else(|| self.book.ladder.record(now, self.boot.as_deref()));
        let (origin, edition) = (self.ledger.origin(), self.book.edition);
        let saved =
            StoredGrants { origin, follow: self.follow.clone(), reserve: reserve.clone(), grants: self.book.kept(now) };
        match self.ledger.store(saved).await {
            Ok(written) => {
                self.counts.writes += u64::from(written);
                self.saved_edition = edition;
                self.book.doubts_kept(now);
                if let Some(reserve) = &reserve {
                    self.book.ladder.reserved(reserve);
                }
            }
            Err(e) => {
                tracing::error!(error = %e, "grants cannot be kept: after a restart the chain must be heard before anybody is admitted");
            }
        }
    }

    fn publish(&mut self) {
        let report = self.report(Vec::new());
        self.send(report);
    }

    fn publish_with<R: Rpc>(&mut self, chain: &Chain<R, C>) {
        let rows = chain
            .endpoints
            .iter()
            .enumerate()
            .map(|(i, s)| EndpointRow {
                name: chain.name(i).to_owned(),
                latency_ms: s.latency.map(|l| l.as_secs_f64() * 1000.0),
                failures: s.failures,
                other_chain: match s.chain {
                    OnChain::Other(told) => Some(told),
                    OnChain::Unknown | OnChain::Yes => None,
                },
                height: (s.height > 0).then_some(s.height),
                answers: s.answers,
                errors: s.errors,
                dissents: s.dissents,
            })
            .collect();
        let report = self.report(rows);
        self.send(report);
    }

    fn send(&mut self, report: Report) {
        let now = self.board.clock.now();
        let admitted = Arc::new(self.book.admitted(now));
        self.due = self.book.deadline(now);
        // First what explains it.
        self.board.report.send_replace(Some(Arc::new(report)));
        if self.heard.is_some() && self.asked.is_none() {
            self.board.hold = None;
        }
        if self.board.hold.is_some_and(|until| now < until) {
            return;
        }
        self.board.admitted.send_if_modified(|before| {
            let new = before.as_ref() != Some(&admitted);
            if new {
                *before = Some(admitted.clone());
            }
            new
        });
    }

    fn report(&mut self, endpoints: Vec<EndpointRow>) -> Report {
        let now = self.board.clock.now();
        let phase = self.book.ladder.phase(now);
        let cache = self.book.cache();
        let counts = Counts {
            cache_size: cache.len() as u64,
            cache_max: cache.max() as u64,
            cache_hits: cache.hits,
            cache_misses: cache.misses,
            ..self.counts
        };
        self.counts = counts;
        let rows = rows(&self.book, phase, now);
        Report {
            at: now,
            phase,
            last_quorum: self.heard.map(|(at, _)| at),
            last_quorum_wall: self.heard.map(|(_, wall)| wall),
            height: self.follow.scanned(),
            head: self.head,
            admitted: rows.iter().filter(|r| r.admitted).count(),
            polling: self.looking,
            unreachable: self.away.clone().filter(|a| a.failed_polls >= LOOKS || phase != Phase::Fresh),
            condition: self.condition.clone(),
            counts,
            endpoints,
            rows,
        }
    }
}

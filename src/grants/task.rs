//! Keeps the book in step with the chain and publishes who is admitted. Whoever has candidates may run it: the device for
//! its peers, the control plane for its nodes.
use super::book::{Admission, Book, Kept, News};
use super::cache::{Cache, Settled};
use super::chain::Pair;
use super::chain::task::{Chain, NoQuorum, Seen};
use super::follow::{Continuity, Follow};
use super::jsonrpc::{At, BlockRef};
use super::ladder::{Phase, Reserve};
use super::policy::Short;
use super::quorum::OnChain;
use super::report::{Away, Counts, EndpointRow, Report, Row, Trouble};
use crate::config::grants::{Finality, Grants};
use crate::net::derive::Admitted;
use crate::sys::clock::{Clock, boot_id};
use crate::sys::disk::Document;
use crate::sys::random::seed;
use crate::sys::rpc::Rpc;
use crate::time::{Boot, Wall};
use alloy_primitives::Address;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// File name of the document in the state directory.
pub const DOCUMENT: &str = "grants.json";
/// Its version.
const VERSION: u32 = 1;
/// With more unread blocks than this, everything is verified anew instead of reading their events.
const JUMP: u64 = 20_000;
/// First wait after a look that came to nothing.
const RETRY: Duration = Duration::from_secs(1);
/// Looks in a row that come to nothing before health speaks of it: a single lost answer is none of its business.
const LOOKS: u32 = 2;

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Saved {
    contract: Address,
    chain_id: u64,
    follow: Follow,
    reserve: Option<Reserve>,
    grants: Vec<Kept>,
}

/// What the task needs.
#[derive(Clone, Debug)]
pub struct Board<C> {
    /// Clocks.
    pub clock: C,
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// Directory the decisions are kept in; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Who wants to be a peer.
    pub candidates: watch::Receiver<Arc<BTreeSet<Pair>>>,
    /// Who is admitted.
    pub admitted: Arc<watch::Sender<Option<Arc<Admitted>>>>,
    /// Everything for people and monitors.
    pub report: Arc<watch::Sender<Option<Arc<Report>>>>,
    /// Rung to have everything verified again at once.
    pub refresh: Arc<Notify>,
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

struct Task<C> {
    board: Board<C>,
    book: Book<RandomState>,
    follow: Follow,
    document: Option<Arc<Mutex<Document<Saved>>>>,
    saved_edition: u64,
    boot: Option<String>,
    counts: Counts,
    head: Option<u64>,
    heard: Option<(Boot, Wall)>,
    away: Option<Away>,
    trouble: Option<Trouble>,
    next: Boot,
}

impl<C: Clock> Task<C> {
    fn start(board: Board<C>) -> Self {
        let now = board.clock.now();
        let mut task = Self {
            book: Book::new(&board.config, Cache::new(RandomState::new()), now),
            follow: Follow::default(),
            document: None,
            saved_edition: 0,
            boot: boot_id(),
            counts: Counts::default(),
            head: None,
            heard: None,
            away: None,
            trouble: None,
            next: now,
            board,
        };
        task.restore(now);
        let candidates = task.board.candidates.borrow_and_update().clone();
        task.book.set_candidates(&candidates);
        task
    }

    fn restore(&mut self, now: Boot) {
        let Some(dir) = &self.board.state_dir else { return };
        let path: &Path = dir;
        let mut document = Document::<Saved>::new(path.join(DOCUMENT), VERSION);
        match document.load() {
            Ok(Some(saved))
                if (saved.contract, saved.chain_id) == (self.board.config.contract, self.board.config.chain_id) =>
            {
                tracing::info!(grants = saved.grants.len(), "grants of the last run are taken up");
                self.follow = saved.follow;
                self.book.restore(saved.grants, saved.reserve.as_ref(), self.boot.as_deref(), now);
            }
            Ok(Some(_)) => tracing::info!("the contract is another one: the grants of the last run are dropped"),
            Ok(None) => {}
            // Without it we start as if the chain had never been heard: nobody is admitted before it is.
            Err(e) => tracing::error!(error = %e, "grants of the last run cannot be read"),
        }
        self.document = Some(Arc::new(Mutex::new(document)));
    }

    async fn look<R: Rpc>(&mut self, chain: &mut Chain<R, C>) {
        self.counts.looks += 1;
        let outcome = self.round(chain).await;
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
                self.next = now + poll.mul_f64(0.95) + Duration::from_millis(seed() % tenth);
            }
            Err(e) => {
                self.counts.failed_looks += 1;
                let away = self.away.get_or_insert(Away { since: now, why: String::new(), looks: 0 });
                away.looks += 1;
                away.why = e.to_string();
                if away.looks == LOOKS {
                    tracing::warn!(phase = self.book.ladder.phase(now).name(), reason = %e, "the chain is not heard; grants stay as they are");
                }
                let retry = RETRY.saturating_mul(away.looks).min(poll.max(RETRY));
                self.next = (now + retry).max(chain.endpoints.next().unwrap_or(now));
            }
        }
        let (t, c) = (chain.traffic, &mut self.counts);
        (c.requests, c.failed_requests, c.bytes, c.verifications) = (t.requests, t.failures, t.bytes, t.verifications);
        self.trouble = self.own_trouble(chain, now);
    }

    fn own_trouble<R: Rpc>(&self, chain: &Chain<R, C>, now: Boot) -> Option<Trouble> {
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
        let since = self.trouble.as_ref().filter(|t| t.detail == detail).map_or(now, |t| t.since);
        Some(Trouble { since, detail })
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
        let mut read_to = seen.head;
        let gap = self.follow.gap(seen.head);
        if gap > JUMP {
            // A new follower, or one that was away for long: whoever matters is verified anew, and events are read from here.
            self.book.refresh(self.board.clock.now());
            read_to = seen.pins.last().map_or(seen.head, |b| b.number);
        } else if !seen.complete {
            self.catch_up(chain, seen.head).await?;
        }
        let now = self.board.clock.now();
        self.book.note(&seen.changes, now);
        let newest_change = seen.changes.iter().map(|c| c.block.number).filter(|n| *n <= seen.head).max().unwrap_or(0);

        let pin = self.verify_doubted(chain, &seen, newest_change).await?;
        self.verify_waiting(chain, &seen).await?;

        match seen.anchor.or_else(|| seen.pins.last().copied()) {
            Some(start) if gap > JUMP => self.follow = Follow::start(start),
            Some(anchor) => {
                if seen.anchor.is_some() {
                    self.follow.anchor(anchor);
                }
                self.follow.read_to(read_to);
            }
            None => {}
        }
        if let Some(pin) = pin {
            self.follow.anchor(pin);
        }
        self.book.confirm(self.board.clock.now());
        Ok(())
    }

    async fn walk_back<R: Rpc>(&mut self, chain: &mut Chain<R, C>) -> Result<(), NoQuorum> {
        self.counts.reorganisations += 1;
        let from = self.follow.newest().map(|b| b.number);
        loop {
            let more = self.follow.step_back();
            let Some(known) = self.follow.newest().filter(|_| more) else { break };
            if chain.block(At::Number(known.number)).await? == Some(known) {
                break;
            }
        }
        let to = self.follow.newest().map_or(0, |b| b.number);
        tracing::warn!(?from, to, "the chain was reorganised: what was decided since is verified again");
        if self.follow.newest().is_none() {
            // Nothing we knew is left: as on the first day.
            self.follow = Follow::default();
        }
        self.book.reorganised(to, self.board.clock.now());
        Ok(())
    }

    async fn catch_up<R: Rpc>(&mut self, chain: &mut Chain<R, C>, head: u64) -> Result<(), NoQuorum> {
        while self.follow.gap(head) > 0 {
            if let Some((changes, to)) = chain.scan(&mut self.follow, head).await? {
                self.book.note(&changes, self.board.clock.now());
                self.follow.read_to(to);
            }
        }
        Ok(())
    }

    /// Whoever is granted and may have to go is verified at the newest block; a revocation is published before anything else
    /// is asked.
    async fn verify_doubted<R: Rpc>(
        &mut self,
        chain: &mut Chain<R, C>,
        seen: &Seen,
        newest_change: u64,
    ) -> Result<Option<BlockRef>, NoQuorum> {
        let doubted = self.book.doubted(self.board.clock.now());
        let begun = self.book.begin(doubted);
        if begun.is_empty() {
            return Ok(None);
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
        if revoked {
            self.publish_with(chain);
        }
        if pin.number < newest_change {
            // Whoever changed after that block is still in doubt.
            self.book.note(&seen.changes, now);
        }
        Ok(Some(pin))
    }

    /// Whoever may have to come in is verified at the newest block and at the one that counts as final.
    async fn verify_waiting<R: Rpc>(&mut self, chain: &mut Chain<R, C>, seen: &Seen) -> Result<(), NoQuorum> {
        let latest = self.board.config.finality == Finality::Latest;
        let mut outcome = Ok(());
        let finals: Vec<Option<BlockRef>> =
            if latest || seen.finals.is_empty() { vec![None] } else { seen.finals.iter().copied().map(Some).collect() };
        for last_final in finals {
            let waiting = self.book.waiting(self.board.clock.now(), last_final.map(|b| b.number));
            let begun = self.book.begin(waiting);
            if begun.is_empty() {
                return Ok(());
            }
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
        outcome
    }

    fn tell(&mut self, news: Option<News>) {
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
        let now = self.board.clock.now();
        let reserve = self.book.ladder.to_reserve(now, self.boot.as_deref());
        if reserve.is_none() && self.saved_edition == self.book.edition {
            return;
        }
        let Some(document) = self.document.clone() else { return };
        let reserve = reserve.or_else(|| self.book.ladder.record(now, self.boot.as_deref()));
        let saved = Saved {
            contract: self.board.config.contract,
            chain_id: self.board.config.chain_id,
            follow: self.follow.clone(),
            reserve: reserve.clone(),
            grants: self.book.kept(),
        };
        // A card may take a second to sync: not on the thread everything else runs on.
        let stored = tokio::task::spawn_blocking(move || {
            document.lock().unwrap_or_else(PoisonError::into_inner).store(&saved).map_err(|e| e.to_string())
        })
        .await
        .unwrap_or_else(|e| Err(e.to_string()));
        match stored {
            Ok(written) => {
                self.counts.writes += u64::from(written);
                self.saved_edition = self.book.edition;
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
                answers: s.answers,
                errors: s.errors,
                dissents: s.dissents,
            })
            .collect();
        let report = self.report(rows);
        self.send(report);
    }

    fn send(&mut self, report: Report) {
        let admitted = Arc::new(self.book.admitted(self.board.clock.now()));
        // First what explains it.
        self.board.report.send_replace(Some(Arc::new(report)));
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
        let rungs = *self.book.ladder.rungs();
        let rows: Vec<Row> = self
            .book
            .candidates()
            .iter()
            .map(|(node, key)| {
                let entry = self.book.cache().peek(node, key);
                let admission = entry.map_or(Admission::Unverified(phase), |e| {
                    super::book::admission(e, phase, |since| rungs.phase(now.since(since)))
                });
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
                    doubt: entry.and_then(|e| e.doubt),
                }
            })
            .collect();
        Report {
            at: now,
            phase,
            heard: self.heard.map(|(at, _)| at),
            heard_wall: self.heard.map(|(_, wall)| wall),
            height: self.follow.scanned(),
            head: self.head,
            admitted: rows.iter().filter(|r| r.admitted).count(),
            looking: false,
            away: self.away.clone().filter(|a| a.looks >= LOOKS || phase != Phase::Fresh),
            trouble: self.trouble.clone(),
            counts,
            endpoints,
            rows,
        }
    }
}

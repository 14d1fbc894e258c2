//! Who may be a peer by NFT: follows the contract's events for the whole fleet and keeps what it says in the store.
//!
//! The following itself is the code of [`spoke_grants`], with the fleet's nodes as candidates. One control plane at a time
//! does it, whoever holds the job; the others are ready to take over. What is kept changes only where the chain has
//! decided: an outage, of whatever length, leaves every verdict as it is. A device that keeps its own grants lets them end
//! with time; the registry does not, because its hubs verify nothing by themselves and a fleet must not vanish with an RPC
//! provider.
use super::api::now_ms;
use super::store::admission::{Progress, Verdict};
use super::store::audit::Actor;
use super::store::{Store, StoreError, Tx};
use spoke_chain::conversation::{Asked, Chain};
use spoke_chain::follower::{Board, run};
use spoke_chain::ledger::Directories;
use spoke_config::grants::{Finality, Grants};
use spoke_grants::chain::Pair;
use spoke_grants::policy::{Decision, Reason, Short, VERIFICATION_ERROR};
use spoke_grants::report::{Report, Row};
use spoke_sys::clock::SystemClock;
use spoke_sys::random::seed;
use spoke_sys::rpc::Http;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

/// The job's name in the store.
const JOB: &str = "follow the chain";
/// The follower is replaced when it was not seen for so long, in milliseconds.
const TERM_MS: i64 = 30_000;
/// It shows itself this often.
const RENEW: Duration = Duration::from_secs(10);
/// Changes of the fleet that come together are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// How long an enrolment waits for the chain's word, at most.
const ENROLMENT_WAITS: Duration = Duration::from_secs(5);
/// After an answer that did not come, enrolments do without for so long.
const SILENCE: Duration = Duration::from_secs(10);
/// Enrolments that ask the chain at the same time.
const ASKERS: usize = 8;

/// One control plane, as a follower of the chain.
#[derive(Debug)]
pub struct Follower {
    /// Where nodes and verdicts are.
    pub store: Store,
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// Where it keeps how far it has read.
    pub state_dir: PathBuf,
    /// Its name among the control planes on this store.
    pub name: String,
}

/// What is known while following.
struct Following {
    candidates: watch::Sender<Arc<BTreeSet<Pair>>>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    /// What the store holds, as far as this follower wrote or read it.
    known: BTreeMap<Pair, Verdict>,
}

impl Follower {
    /// Follows the chain whenever no other control plane does, until `stopping` turns true.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        loop {
            match self.follow(&mut stopping).await {
                Ok(()) => {}
                Err(e) if e.is_transient() => tracing::warn!(error = %e, "the chain is not followed at the moment"),
                Err(e) => tracing::error!(error = %e, "the chain is not followed"),
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = stopped(&mut stopping) => break,
            }
        }
        if let Ok(mut tx) = self.store.write().await
            && tx.let_go(JOB, &self.name).await.is_ok()
        {
            let _ = tx.commit().await;
        }
    }

    /// Follows while this control plane holds the job; returns when another does, or at the end.
    async fn follow(&self, stopping: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        if !tx.hold(JOB, &self.name, now_ms(), TERM_MS).await? {
            return Ok(());
        }
        let (first, known) = (tx.candidates().await?, tx.verdicts().await?);
        tx.commit().await?;
        tracing::info!(contract = %self.config.contract, candidates = first.len(), "following the chain");
        let (candidates, wanting) = watch::channel(Arc::new(first));
        let (report, reports) = watch::channel(None);
        let board = Board {
            clock: SystemClock,
            config: self.config.clone(),
            directories: Directories { state: Some(self.state_dir.clone()), runtime: None },
            candidates: wanting,
            admitted: Arc::new(watch::Sender::new(None)),
            report: Arc::new(report),
            refresh: Arc::new(Notify::new()),
            hold: None,
        };
        let config = self.config.clone();
        let task = tokio::spawn(run(board, move || Http::new(&config.endpoints, config.timeout)));
        let ended = self.keep(Following { candidates, reports, known }, task, stopping).await;
        tracing::info!("no longer following the chain");
        ended
    }

    async fn keep<E: std::fmt::Display>(
        &self,
        mut following: Following,
        mut task: tokio::task::JoinHandle<Result<(), E>>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut fleet = self.store.changes();
        let mut renew = tokio::time::interval(RENEW);
        let outcome = loop {
            let done = tokio::select! {
                ended = &mut task => {
                    match ended {
                        Ok(Ok(())) => {}
                        Ok(Err(e)) => tracing::error!(error = %e, "the chain cannot be followed"),
                        Err(e) => tracing::error!(error = %e, "the chain's follower has died"),
                    }
                    break Ok(());
                }
                () = stopped(stopping) => break Ok(()),
                Ok(()) = following.reports.changed() => self.take(&mut following, false).await,
                Ok(()) = fleet.changed() => {
                    tokio::time::sleep(GATHER).await;
                    fleet.mark_unchanged();
                    self.look_for_candidates(&following).await
                }
                _ = renew.tick() => self.take(&mut following, true).await,
            };
            match done {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                // What could not be written is written with the next report, or at the next renewal.
                Err(e) if e.is_transient() => {
                    tracing::warn!(error = %e, "verdicts of the chain not kept; trying again")
                }
                Err(e) => break Err(e),
            }
        };
        task.abort();
        outcome
    }

    async fn look_for_candidates(&self, following: &Following) -> Result<bool, StoreError> {
        let now = Arc::new(self.store.read().await?.candidates().await?);
        following.candidates.send_if_modified(|before| {
            let news = *before != now;
            if news {
                *before = now;
            }
            news
        });
        Ok(true)
    }

    /// Takes what the chain says into the store. `false`: another control plane follows it by now.
    async fn take(&self, following: &mut Following, renew: bool) -> Result<bool, StoreError> {
        let report = following.reports.borrow_and_update().clone();
        let rows = report.as_ref().map_or(&[][..], |r| &r.rows);
        let decided = rows.iter().filter_map(|row| Some(((row.node.clone(), row.key), decided(row)?)));
        let news: Vec<(Pair, Verdict)> = decided.filter(|(p, v)| following.known.get(p) != Some(v)).collect();
        if news.is_empty() && !renew {
            return Ok(true);
        }
        let now = now_ms();
        let mut tx = self.store.write().await?;
        if !tx.hold(JOB, &self.name, now, TERM_MS).await? {
            return Ok(false);
        }
        keep_verdicts(&mut tx, &news, now).await?;
        if renew {
            tx.forget_verdicts().await?;
        }
        tx.put_chain(&self.progress(report.as_deref(), now), now).await?;
        tx.commit().await?;
        let candidates = following.candidates.borrow().clone();
        following.known.extend(news);
        following.known.retain(|pair, _| candidates.contains(pair));
        Ok(true)
    }

    fn progress(&self, report: Option<&Report>, now_ms: i64) -> Progress {
        let ago = |r: &Report| {
            let since = r.last_quorum.map(|at| spoke_sys::clock::Clock::now(&SystemClock).since(at))?;
            Some(now_ms.saturating_sub(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
        };
        let trouble = |r: &Report| {
            r.unreachable.as_ref().map(|a| a.reason.clone()).or_else(|| r.condition.as_ref().map(|t| t.detail.clone()))
        };
        Progress {
            contract: self.config.contract.to_string(),
            chain_id: self.config.chain_id,
            follower: self.name.clone(),
            heard_ms: report.and_then(ago),
            height: report.and_then(|r| r.height),
            trouble: report.and_then(trouble),
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|s| *s).await;
}

/// What the chain has decided; `None`: nothing, for whatever reason.
fn decided(row: &Row) -> Option<Verdict> {
    row.decided?;
    if row.code == VERIFICATION_ERROR {
        return None;
    }
    let reason = Reason::ALL.into_iter().find(|r| r.code() == row.code)?;
    (reason.grants() == row.admitted).then_some(())?;
    Some(Verdict { reason, token_id: row.token_id.as_ref().and_then(|id| id.parse().ok()) })
}

/// Keeps verdicts; hubs hear of every peer that comes or goes by them.
async fn keep_verdicts(tx: &mut Tx, news: &[(Pair, Verdict)], now_ms: i64) -> Result<(), StoreError> {
    let mut moved = BTreeMap::new();
    for (pair, verdict) in news {
        let before = tx.verdict(&pair.0, pair.1).await?.is_some_and(|v| v.reason.grants());
        tx.put_verdict(pair, verdict, now_ms).await?;
        if before == verdict.reason.grants() {
            continue;
        }
        let action = if before { "revoke_access" } else { "grant_access" };
        let details = serde_json::json!({
            "reason": verdict.reason.code(), "token_id": verdict.token_id.map(|id| id.to_string()),
            "wireguard_public_key": pair.1,
        });
        tracing::info!(node = %pair.0, key = %Short(&pair.1), action, "the chain decided");
        tx.audit(now_ms, &Actor::System, action, ("node", pair.0.as_str()), details).await?;
        if let Some(node) = tx.node(&pair.0).await? {
            moved.entry(node.network.clone()).or_insert_with(Vec::new).push((node.id, pair.1));
        }
    }
    for (network, pairs) in moved {
        tx.lock_network(&network).await?;
        tx.touch_hubs(&network).await?;
        for (id, key) in pairs {
            let Some(mut node) = tx.node(&id).await?.filter(|n| n.next_key == Some(key)) else { continue };
            // It may change to the key once its hubs have the generation that lets the key in.
            node.next_key_hubs = tx.hubs(&network).await?.into_iter().map(|h| (h.id, h.generation)).collect();
            tx.put_node(&node).await?;
        }
    }
    Ok(())
}

/// Asks the chain about one node at its enrolment, so that a node minted before is a peer at once.
#[derive(Debug)]
pub struct Asker {
    rpc: Http,
    config: Arc<Grants>,
    room: Semaphore,
    silent_until: Mutex<Option<Instant>>,
}

impl Asker {
    /// An asker of the endpoints in `config`; a URL kept in a file is read now.
    pub fn new(config: Arc<Grants>) -> Result<Self, spoke_sys::keys::KeyError> {
        let rpc = Http::new(&config.endpoints, config.timeout)?;
        Ok(Self { rpc, config, room: Semaphore::new(ASKERS), silent_until: Mutex::default() })
    }

    /// What the chain says; `None` if it cannot be heard in time. The follower finds out later.
    pub async fn verdict(&self, pair: &Pair) -> Option<Verdict> {
        let silent = *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner);
        if silent.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let asked = tokio::time::timeout(ENROLMENT_WAITS, async {
            let _seat = self.room.acquire().await.ok()?;
            let mut chain = Chain::new(self.rpc.clone(), SystemClock, self.config.clone(), seed);
            chain.ask_about(pair).await.inspect_err(|e| tracing::warn!(error = %e, "the chain is not heard")).ok()
        });
        let Ok(Some(asked)) = asked.await else {
            let until = Instant::now() + SILENCE;
            *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
            return None;
        };
        settle(self.config.finality, &asked)
    }
}

/// A grant counts once the last final block has it as well; what the newest block denies is denied.
fn settle(finality: Finality, asked: &Asked) -> Option<Verdict> {
    let newest = asked.newest.1?;
    let of = |reason, d: Decision| Some(Verdict { reason, token_id: d.token_id });
    if !newest.reason.grants() || finality == Finality::Latest {
        return of(newest.reason, newest);
    }
    match asked.last_final {
        Some((_, Some(last))) if last == newest => of(newest.reason, newest),
        Some((_, Some(last))) if !last.reason.grants() => of(last.reason, newest),
        // Granted to another owner, or no block is final yet: not yet, and its token is known.
        Some((_, Some(_))) | None => of(Reason::AccessDenied, newest),
        Some((_, None)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::U256;
    use spoke_grants::jsonrpc::BlockRef;
    use spoke_model::time::Boot;
    use std::time::Duration;

    fn decision(reason: Reason) -> Decision {
        Decision { reason, token_id: Some(U256::from(7)), owner: None }
    }

    #[test]
    fn a_grant_counts_when_the_final_block_has_it_and_a_denial_at_once() {
        let at = |newest, last: Option<Option<Reason>>| Asked {
            newest: (BlockRef::default(), Some(decision(newest))),
            last_final: last.map(|l| (BlockRef::default(), l.map(decision))),
        };
        let reason = |f, asked: &Asked| settle(f, asked).map(|v| v.reason);
        let granted = Reason::AccessGranted;
        assert_eq!(reason(Finality::Safe, &at(granted, Some(Some(granted)))), Some(granted));
        assert_eq!(reason(Finality::Latest, &at(granted, None)), Some(granted));
        assert_eq!(
            reason(Finality::Safe, &at(granted, Some(Some(Reason::NodeNotFound)))),
            Some(Reason::NodeNotFound),
            "minted a moment ago"
        );
        assert_eq!(reason(Finality::Safe, &at(granted, Some(None))), None, "unreadable is no decision");
        assert_eq!(reason(Finality::Safe, &at(granted, None)), Some(Reason::AccessDenied), "nothing is final yet");
        assert_eq!(
            reason(Finality::Safe, &at(Reason::NodeInactive, Some(Some(granted)))),
            Some(Reason::NodeInactive),
            "a revocation counts at once"
        );
        assert_eq!(settle(Finality::Safe, &at(granted, None)).unwrap().token_id, Some(U256::from(7)));
    }

    #[test]
    fn silence_decides_nothing() {
        let row = |admitted, code: &str, decided| Row {
            node: "n".parse().unwrap(),
            key: spoke_model::key::PublicKey([1; 32]),
            admitted,
            code: code.to_owned(),
            token_id: Some("7".into()),
            owner: None,
            block: 1,
            decided,
            held_until: None,
            doubt: None,
        };
        let at = Some(Boot::from_duration(Duration::from_secs(1)));
        assert_eq!(decided(&row(false, VERIFICATION_ERROR, at)), None, "the ladder has ended");
        assert_eq!(decided(&row(false, "NODE_NOT_FOUND", None)), None, "never heard");
        assert_eq!(decided(&row(true, "ACCESS_GRANTED", at)).unwrap().token_id, Some(U256::from(7)));
        assert_eq!(decided(&row(false, "NODE_INACTIVE", at)).unwrap().reason, Reason::NodeInactive);
    }
}

//! Access by NFT: keeps the contract's decisions on the fleet's nodes in the store.
//!
//! [`spoke_chain`] watches the contract with the fleet's nodes as candidates. One control plane at a time does so, the holder
//! of the job; the others take over when its term ends. A stored decision changes only when the chain decides otherwise: an
//! outage of any length leaves it. A device lets its cached grants expire; the registry does not, because hubs that rely on
//! it verify nothing themselves, and a fleet must not vanish with an RPC provider.
//!
//! Waits for: the chain watcher's reports, changes of the fleet, the renewal timer, the stop signal.
use crate::clock::now_ms;
use crate::store::admission::{Admission, ChainProgress};
use crate::store::audit::Actor;
use crate::store::{Store, StoreError, Tx};
use spoke_chain::ledger::Directories;
use spoke_chain::reader::ChainReader;
use spoke_chain::watcher::{Deps, run};
use spoke_config::grants::{Finality, Grants};
use spoke_grants::policy::{Decision, Pair, Reason, Short, VERIFICATION_ERROR};
use spoke_grants::report::{Report, Row};
use spoke_grants::verify::PairDecision;
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::Span;
use spoke_sys::clock::SystemClock;
use spoke_sys::rpc::Http;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

/// The job's name in the store.
const JOB: &str = "follow the chain";
/// Without a renewal the job can be taken over after this time, in milliseconds.
const TERM_MS: i64 = 30_000;
/// How often the term is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// Changes of the fleet within this time are read together.
const COALESCE: Duration = Duration::from_millis(100);
/// How long an enrolment waits for the chain.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed lookup, enrolments do not ask the chain for this time.
const LOOKUP_PAUSE: Duration = Duration::from_secs(10);
/// Lookups at a time.
const MAX_LOOKUPS: usize = 8;

/// The task that keeps the contract's decisions in the store.
#[derive(Debug)]
pub struct AdmissionSync {
    /// Nodes and decisions.
    pub store: Store,
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// For the watcher's position on the chain.
    pub state_dir: PathBuf,
    /// The name of this process among the control planes on this store.
    pub name: String,
}

/// The state of one term.
struct Term {
    candidates: watch::Sender<Arc<BTreeSet<Pair>>>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    /// The stored decisions, as this process read or wrote them.
    stored: BTreeMap<Pair, Admission>,
}

impl AdmissionSync {
    /// Watches the contract while this process holds the job, until `stopping` turns true.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        loop {
            match self.run_term(&mut stopping).await {
                Ok(()) => {}
                Err(e) if e.is_transient() => {
                    tracing::warn!(error = %ErrorChain(&e), retry_in = %Span(RENEW_INTERVAL), "chain not watched")
                }
                Err(e) => {
                    tracing::error!(error = %ErrorChain(&e), retry_in = %Span(RENEW_INTERVAL), "chain not watched")
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RENEW_INTERVAL) => {}
                () = stopped(&mut stopping) => break,
            }
        }
        if let Ok(mut tx) = self.store.write().await
            && tx.release_job(JOB, &self.name).await.is_ok()
        {
            let _ = tx.commit().await;
        }
    }

    /// Returns at once if another control plane holds the job, else at the end of this one's term.
    async fn run_term(&self, stopping: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        if !tx.hold_job(JOB, &self.name, now_ms(), TERM_MS).await? {
            return Ok(());
        }
        let (first, stored) = (tx.candidates().await?, tx.admissions().await?);
        tx.commit().await?;
        tracing::info!(contract = %self.config.contract, candidates = first.len(), "chain watch started");
        let (candidates, receiver) = watch::channel(Arc::new(first));
        let (report, reports) = watch::channel(None);
        let deps = Deps {
            clock: SystemClock,
            config: self.config.clone(),
            directories: Directories { state: Some(self.state_dir.clone()), runtime: None },
            candidates: receiver,
            admitted: Arc::new(watch::Sender::new(None)),
            report: Arc::new(report),
            refresh: Arc::new(Notify::new()),
            hold: None,
        };
        let config = self.config.clone();
        let task = tokio::spawn(run(deps, move || Http::new(&config)));
        let ended = self.keep_admissions(Term { candidates, reports, stored }, task, stopping).await;
        tracing::info!("chain watch ended");
        ended
    }

    async fn keep_admissions<E: std::fmt::Display>(
        &self,
        mut term: Term,
        mut task: tokio::task::JoinHandle<Result<(), E>>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut fleet = self.store.changes();
        let mut renew = tokio::time::interval(RENEW_INTERVAL);
        let outcome = loop {
            let done = tokio::select! {
                ended = &mut task => {
                    match ended {
                        Ok(Ok(())) => {}
                        Ok(Err(e)) => tracing::error!(error = %e, "chain watcher failed"),
                        Err(e) => tracing::error!(error = %e, "chain watcher ended unexpectedly"),
                    }
                    break Ok(());
                }
                () = stopped(stopping) => break Ok(()),
                Ok(()) = term.reports.changed() => self.store_report(&mut term, false).await,
                Ok(()) = fleet.changed() => {
                    tokio::time::sleep(COALESCE).await;
                    fleet.mark_unchanged();
                    self.update_candidates(&term).await
                }
                _ = renew.tick() => self.store_report(&mut term, true).await,
            };
            match done {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                // Written with the next report, or at the next renewal.
                Err(e) if e.is_transient() => {
                    tracing::warn!(error = %ErrorChain(&e), "decisions of the chain not stored")
                }
                Err(e) => break Err(e),
            }
        };
        task.abort();
        outcome
    }

    async fn update_candidates(&self, term: &Term) -> Result<bool, StoreError> {
        let now = Arc::new(self.store.read().await?.candidates().await?);
        term.candidates.send_if_modified(|before| {
            let changed = *before != now;
            if changed {
                *before = now;
            }
            changed
        });
        Ok(true)
    }

    /// Stores new decisions. `false`: another control plane holds the job.
    async fn store_report(&self, term: &mut Term, renew: bool) -> Result<bool, StoreError> {
        let report = term.reports.borrow_and_update().clone();
        let rows = report.as_ref().map_or(&[][..], |r| &r.rows);
        let decided = rows.iter().filter_map(|row| Some(((row.node.clone(), row.key), decided(row)?)));
        let changed: Vec<(Pair, Admission)> = decided.filter(|(p, a)| term.stored.get(p) != Some(a)).collect();
        if changed.is_empty() && !renew {
            return Ok(true);
        }
        let now = now_ms();
        let mut tx = self.store.write().await?;
        if !tx.hold_job(JOB, &self.name, now, TERM_MS).await? {
            return Ok(false);
        }
        put_admissions(&mut tx, &changed, now).await?;
        if renew {
            tx.prune_admissions().await?;
        }
        tx.put_chain_progress(&self.progress(report.as_deref(), now)).await?;
        tx.commit().await?;
        let candidates = term.candidates.borrow().clone();
        term.stored.extend(changed);
        term.stored.retain(|pair, _| candidates.contains(pair));
        Ok(true)
    }

    fn progress(&self, report: Option<&Report>, now_ms: i64) -> ChainProgress {
        let now_ms = u64::try_from(now_ms).unwrap_or(0);
        let answered = |r: &Report| {
            let since = r.last_quorum.map(|at| spoke_sys::clock::Clock::now(&SystemClock).since(at))?;
            Some(now_ms.saturating_sub(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
        };
        let trouble = |r: &Report| {
            r.unreachable.as_ref().map(|a| a.reason.clone()).or_else(|| r.condition.as_ref().map(|t| t.detail.clone()))
        };
        ChainProgress {
            contract: self.config.contract.to_string(),
            chain_id: self.config.chain_id,
            follower: self.name.clone(),
            updated_ms: now_ms,
            answered_ms: report.and_then(answered),
            height: report.and_then(|r| r.height),
            trouble: report.and_then(trouble),
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|s| *s).await;
}

/// The chain's decision; `None`: it has not decided.
fn decided(row: &Row) -> Option<Admission> {
    row.decided?;
    if row.code == VERIFICATION_ERROR {
        return None;
    }
    let reason = Reason::ALL.into_iter().find(|r| r.code() == row.code)?;
    (reason.grants() == row.admitted).then_some(())?;
    Some(Admission { reason, token_id: row.token_id })
}

/// Stores decisions, and raises the generation of the hubs whose peers change.
async fn put_admissions(tx: &mut Tx, changed: &[(Pair, Admission)], now_ms: i64) -> Result<(), StoreError> {
    let mut moved = BTreeMap::new();
    for (pair, admission) in changed {
        let before = tx.admission(&pair.0, pair.1).await?.is_some_and(|a| a.reason.grants());
        tx.put_admission(pair, admission, now_ms).await?;
        if before == admission.reason.grants() {
            continue;
        }
        let action = if before { "revoke_access" } else { "grant_access" };
        let details = serde_json::json!({
            "reason": admission.reason.code(), "token_id": admission.token_id.map(|id| id.to_string()),
            "wireguard_public_key": pair.1,
        });
        tracing::info!(node = %pair.0, key = %Short(&pair.1), action, "contract changed access");
        tx.audit(now_ms, &Actor::System, action, ("node", pair.0.as_str()), details).await?;
        if let Some(node) = tx.node(&pair.0).await? {
            moved.entry(node.network.clone()).or_insert_with(Vec::new).push((node.id, pair.1));
        }
    }
    for (network, pairs) in moved {
        tx.lock_network(&network).await?;
        tx.raise_hub_generations(&network).await?;
        for (id, key) in pairs {
            let Some(mut node) = tx.node(&id).await?.filter(|n| n.next_key == Some(key)) else { continue };
            // It may switch to the key once its hubs have reported the generation that admits it.
            let own = node.next_key_hubs.into_iter().filter(|(id, _)| *id == node.id);
            let hubs = tx.hubs(&network).await?.into_iter().map(|h| (h.id, h.generation));
            node.next_key_hubs = hubs.chain(own).collect();
            tx.put_node(&node).await?;
        }
    }
    Ok(())
}

/// Asks the contract about one node at its enrolment, so that a node minted before is a peer at once.
#[derive(Debug)]
pub struct GrantLookup {
    rpc: Http,
    config: Arc<Grants>,
    permits: Semaphore,
    paused_until: Mutex<Option<Instant>>,
}

impl GrantLookup {
    /// A lookup at the endpoints in `config`; URLs kept in files are read here.
    pub fn new(config: Arc<Grants>) -> Result<Self, spoke_sys::keys::KeyError> {
        let rpc = Http::new(&config)?;
        Ok(Self { rpc, config, permits: Semaphore::new(MAX_LOOKUPS), paused_until: Mutex::default() })
    }

    /// The contract's decision; `None`: the chain did not answer in time, and [`AdmissionSync`] will store the decision later.
    pub async fn admission(&self, pair: &Pair) -> Option<Admission> {
        let paused_until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        if paused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let asked = tokio::time::timeout(LOOKUP_TIMEOUT, async {
            let _permit = self.permits.acquire().await.ok()?;
            let mut chain = ChainReader::new(self.rpc.clone(), SystemClock, self.config.clone());
            chain
                .decide(pair)
                .await
                .inspect_err(|e| tracing::warn!(error = %e, "contract not asked at an enrolment"))
                .ok()
        });
        let Ok(Some(asked)) = asked.await else {
            let until = Instant::now() + LOOKUP_PAUSE;
            *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
            return None;
        };
        settle(self.config.finality, &asked)
    }
}

/// A grant counts once the last final block has it; a denial counts in the newest block.
fn settle(finality: Finality, asked: &PairDecision) -> Option<Admission> {
    let newest = asked.newest.1?;
    let of = |reason, d: Decision| Some(Admission { reason, token_id: d.token_id });
    if !newest.reason.grants() || finality == Finality::Latest {
        return of(newest.reason, newest);
    }
    match asked.last_final {
        Some((_, Some(last))) if last == newest => of(newest.reason, newest),
        Some((_, Some(last))) if !last.reason.grants() => of(last.reason, newest),
        // Granted to another owner there, or no block is final: not granted yet, with a known token.
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
    fn grants_count_when_final_and_denials_at_once() {
        let at = |newest, last: Option<Option<Reason>>| PairDecision {
            newest: (BlockRef::default(), Some(decision(newest))),
            last_final: last.map(|l| (BlockRef::default(), l.map(decision))),
            unreadable: None,
        };
        let reason = |f, asked: &PairDecision| settle(f, asked).map(|a| a.reason);
        let granted = Reason::AccessGranted;
        assert_eq!(reason(Finality::Safe, &at(granted, Some(Some(granted)))), Some(granted));
        assert_eq!(reason(Finality::Latest, &at(granted, None)), Some(granted));
        assert_eq!(
            reason(Finality::Safe, &at(granted, Some(Some(Reason::NodeNotFound)))),
            Some(Reason::NodeNotFound),
            "minted a moment ago"
        );
        assert_eq!(reason(Finality::Safe, &at(granted, Some(None))), None, "unreadable at the final block");
        assert_eq!(reason(Finality::Safe, &at(granted, None)), Some(Reason::AccessDenied), "nothing is final yet");
        assert_eq!(
            reason(Finality::Safe, &at(Reason::NodeInactive, Some(Some(granted)))),
            Some(Reason::NodeInactive),
            "a revocation counts at once"
        );
        assert_eq!(settle(Finality::Safe, &at(granted, None)).unwrap().token_id, Some(U256::from(7)));
    }

    #[test]
    fn outage_decides_nothing() {
        let row = |admitted, code: &str, decided| Row {
            node: "n".parse().unwrap(),
            key: spoke_model::key::PublicKey([1; 32]),
            admitted,
            code: code.to_owned().into(),
            token_id: Some(U256::from(7)),
            owner: None,
            block: 1,
            decided,
            held_until: None,
            doubt: None,
        };
        let at = Some(Boot::from_duration(Duration::from_secs(1)));
        assert_eq!(decided(&row(false, VERIFICATION_ERROR, at)), None, "the cached grant has expired");
        assert_eq!(decided(&row(false, "NODE_NOT_FOUND", None)), None, "never read");
        assert_eq!(decided(&row(true, "ACCESS_GRANTED", at)).unwrap().token_id, Some(U256::from(7)));
        assert_eq!(decided(&row(false, "NODE_INACTIVE", at)).unwrap().reason, Reason::NodeInactive);
    }
}

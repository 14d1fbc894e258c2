//! Runs the watcher machine: performs its calls through the endpoints and its writes on the blocking pool, and sleeps
//! until its deadline. Waits for: replies, writes, the deadline, a refresh, new candidates.
use crate::endpoint::{endpoint_names, log_notice, send};
use crate::ledger;
use crate::ledger::{Directories, Found, Ledger};
use crate::subscription;
use crate::subscription::Wake;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use spoke_config::grants::Grants;
use spoke_grants::admission::{AdmissionTable, DecisionChange};
use spoke_grants::cache::{Cache, Settled};
use spoke_grants::ledger::{OldContent, Origin};
use spoke_grants::policy::{Pair, Short};
use spoke_grants::report::Report;
use spoke_grants::watcher::{Action, ChainWatcher, Event, Setup, Transition};
use spoke_model::log_text::Span;
use spoke_model::time::{Boot, Wall};
use spoke_net::derive::Admitted;
use spoke_sys::clock::{Clock, boot_id};
use spoke_sys::random::seed;
use spoke_sys::rpc::Rpc;
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Dependencies of the task.
#[derive(Clone, Debug)]
pub struct Deps<C> {
    /// Clocks.
    pub clock: C,
    /// `[grants]`.
    pub config: Arc<Grants>,
    /// Directories of the decisions and the cursor.
    pub directories: Directories,
    /// The peers that need a grant.
    pub candidates: watch::Receiver<Arc<BTreeSet<Pair>>>,
    /// The admitted pairs.
    pub admitted: Arc<watch::Sender<Option<Arc<Admitted>>>>,
    /// The report for status and metrics.
    pub report: Arc<watch::Sender<Option<Arc<Report>>>>,
    /// Notified to verify all candidates again at once.
    pub refresh: Arc<Notify>,
    /// Until then the peers admitted by the previous contract stay, as long as not every candidate was verified.
    pub hold: Option<Boot>,
}

/// Runs until it is cancelled; fails only if `open` fails. The stored decisions are published before `open` is called,
/// so that a missing credential does not delay admission.
pub async fn run<C: Clock, R: Rpc, E: std::error::Error + Send + Sync + 'static>(
    deps: Deps<C>,
    open: impl FnOnce() -> Result<R, E>,
) -> Result<(), E> {
    let (clock, config, wake) = (deps.clock.clone(), deps.config.clone(), Arc::new(Wake::default()));
    let mut driver = Driver::start(deps, wake.clone());
    let rpc = open()?;
    let names = endpoint_names(&rpc);
    driver.rpc = Some(rpc);
    driver.handle(Event::Opened(names));
    let mut subscription = std::pin::pin!(subscription::run(clock, &config, &wake));
    loop {
        let event = tokio::select! {
            event = driver.next_event() => event,
            never = &mut subscription => match never {},
        };
        driver.handle(event);
    }
}

/// The pairs that a run would admit at its start, by the stored decisions. Reads only the state directory.
pub fn remembered(config: &Grants, state_dir: &Path, candidates: &BTreeSet<Pair>, now: Boot) -> Admitted {
    let origin = Origin { contract: config.contract, chain_id: config.chain_id };
    let mut table = AdmissionTable::new(config, Cache::new(RandomState::new()), now);
    if let Some(stored) = ledger::peek(state_dir, origin) {
        table.restore(stored.grants, stored.reserve.as_ref(), boot_id().as_deref(), now);
    }
    table.set_candidates(candidates);
    table.admitted(now)
}

struct Driver<C, R> {
    deps: Deps<C>,
    /// `None` until the endpoints are open; the machine sends nothing before that.
    rpc: Option<R>,
    machine: ChainWatcher,
    ledger: Ledger,
    /// Calls and writes in progress.
    pending: FuturesUnordered<BoxFuture<'static, Event>>,
    wake: Arc<Wake>,
    /// The last quorum by both clocks.
    last_quorum: Option<(Boot, Wall)>,
}

impl<C: Clock, R: Rpc> Driver<C, R> {
    fn start(mut deps: Deps<C>, wake: Arc<Wake>) -> Self {
        let config = deps.config.clone();
        let origin = Origin { contract: config.contract, chain_id: config.chain_id };
        let (ledger, cursor, found) = Ledger::open(&deps.directories, origin);
        let candidates = deps.candidates.borrow_and_update().clone();
        let setup = Setup { config, boot_id: boot_id(), candidates, hold: deps.hold };
        let machine = ChainWatcher::new(deps.clock.now(), seed(), setup);
        let pending = FuturesUnordered::new();
        let mut driver = Self { deps, rpc: None, machine, ledger, pending, wake, last_quorum: None };
        let Found { stored, older } = found;
        let boxed = |grants: Option<_>| grants.map(Box::new);
        driver.handle(Event::Loaded { cursor: Box::new(cursor), stored: boxed(stored), older: boxed(older) });
        driver
    }

    async fn next_event(&mut self) -> Event {
        loop {
            let now = self.deps.clock.now();
            let wait = self.machine.deadline().map(|d| d.at.since(now));
            let deadline = async {
                match wait {
                    Some(wait) => self.deps.clock.sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.pending.next() => return event,
                () = deadline => return Event::Tick,
                () = self.deps.refresh.notified() => return Event::Refresh,
                () = self.wake.woken.notified() => return Event::Woken,
                () = self.wake.changed.notified() => {}
                Ok(()) = self.deps.candidates.changed() => {
                    return Event::Candidates(self.deps.candidates.borrow_and_update().clone());
                }
            }
            self.publish(self.deps.clock.now());
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.deps.clock.now();
        for action in self.machine.handle(now, event) {
            match action {
                Action::Send(request) => {
                    if let Some(rpc) = self.rpc.clone() {
                        let id = request.id;
                        let call = async move { Event::Replied { id, reply: send(&rpc, request).await } };
                        self.pending.push(Box::pin(call));
                    }
                }
                Action::Publish => self.publish(now),
                Action::StoreCursor(cursor) => {
                    let write = self.ledger.store_cursor(*cursor);
                    self.pending.push(Box::pin(async { Event::CursorStored(write.await.map(drop)) }));
                }
                Action::StoreDecisions { stored, revokes } => {
                    let write = self.ledger.store_decisions(*stored, revokes);
                    self.pending.push(Box::pin(async { Event::DecisionsStored(write.await) }));
                }
                Action::Report(transition) => log(transition),
            }
        }
    }

    fn publish(&mut self, now: Boot) {
        let mut report = self.machine.report(now);
        if self.last_quorum.map(|(at, _)| at) != report.last_quorum {
            self.last_quorum = report.last_quorum.map(|at| (at, self.deps.clock.wall()));
        }
        report.subscription = self.wake.status();
        report.last_quorum_wall = self.last_quorum.map(|(_, wall)| wall);
        // Published before the peers, which it explains.
        self.deps.report.send_replace(Some(Arc::new(report)));
        if let Some(admitted) = self.machine.admitted() {
            self.deps.admitted.send_if_modified(|before| {
                let differs = before.as_ref() != Some(admitted);
                if differs {
                    *before = Some(admitted.clone());
                }
                differs
            });
        }
    }
}

fn log(transition: Transition) {
    match transition {
        Transition::Endpoint(notice) => log_notice(&notice),
        Transition::Restored { decisions } => tracing::info!(decisions, "stored grants restored"),
        Transition::Unreachable { phase, reason } => {
            tracing::warn!(phase = phase.name(), %reason, "chain unreachable: no quorum of endpoints; grants unchanged");
        }
        Transition::ContractUnreadable { phase, reason } => {
            tracing::error!(phase = phase.name(), %reason, "contract unreadable; grants unchanged");
        }
        Transition::Reachable { after } => tracing::info!(after = %Span(after), "chain reachable again"),
        Transition::Reorganised { from, to } => {
            tracing::warn!(from, to, "chain reorganised; verifying later decisions again");
        }
        Transition::Decided(changes) => changes.iter().for_each(log_decision),
        Transition::CursorNotStored(error) => tracing::debug!(%error, "chain cursor not stored"),
        Transition::DecisionsNotStored(error) => match error.old {
            OldContent::Stays => tracing::error!(%error, "grants not stored: a reboot continues with the older ones"),
            OldContent::Removed => tracing::error!(
                %error,
                "revocation not stored, stored grants removed: after a reboot no peer is admitted before the chain is reachable"
            ),
            OldContent::Obsolete => tracing::error!(
                %error,
                "revocation not stored, stored grants not removed: a reboot admits the revoked peers until the chain is reachable"
            ),
        },
    }
}

fn log_decision(change: &DecisionChange) {
    let DecisionChange { node, key, decision, settled, block } = change;
    let (key, reason) = (Short(key), decision.reason.code());
    match settled {
        Settled::Granted => tracing::info!(%node, %key, reason, block, "access granted"),
        Settled::Revoked => tracing::info!(%node, %key, reason, block, "access revoked"),
        Settled::Unchanged | Settled::Outdated => tracing::info!(%node, %key, reason, block, "access denied"),
    }
}

//! The only writer of kernel network state: wait, derive, observe, plan, apply, observe again.
//!
//! Waits for: any fact, a repair, a kernel event, the resync timer.
use serde::Serialize;
use spoke_config::effective::Effective;
use spoke_model::address::HostPort;
use spoke_model::condition::{Code, Condition};
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::{Boot, Wall};
use spoke_net::advance::advance;
use spoke_net::ages::Handshakes;
use spoke_net::api_state::ApiState;
use spoke_net::derive::{Admitted, Facts, Keys, UplinkChoice, derive};
use spoke_net::drift;
use spoke_net::drift::Drifted;
use spoke_net::plan::{Plan, Repair, plan};
use spoke_net::render;
use spoke_net::state::{Desired, Memory, Observed};
use spoke_sys::clock::Clock;
use spoke_sys::kernel::{Kernel, KernelError, Retry};
use spoke_sys::notify::Notify;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest duration of drift without a kernel event.
pub const RESYNC: Duration = Duration::from_secs(30);
/// First wait before an unfinished pass is repeated; doubles up to [`RESYNC`].
const RETRY: Duration = Duration::from_secs(1);
/// Consecutive failed passes after which the process exits.
const MAX_FAILED_PASSES: u32 = 10;
/// Number of peers from which a changed fact is applied against the last observation; see [`spoke_net::advance`].
const MANY_PEERS: usize = 256;
/// Most steps that are applied that way: advancing the observation by a step is linear in the peers.
const FEW_STEPS: usize = 64;
/// Steps and drifts kept for `spoke status`.
const MAX_HISTORY: usize = 64;

/// A fact of a producer; `None` until it is published.
pub type Fact<T> = watch::Receiver<Option<Arc<T>>>;

/// The channels of the facts. The first pass waits until every present one was published once.
#[derive(Debug)]
pub struct Sources {
    /// Keys.
    pub keys: Fact<Keys>,
    /// The uplink's choice; absent without an uplink.
    pub uplink: Option<Fact<UplinkChoice>>,
    /// Addresses of peers' host names; absent if there is none.
    pub names: Option<Fact<BTreeMap<HostPort, SocketAddr>>>,
    /// Peers admitted by a grant; absent if no interface needs grants.
    pub admitted: Option<Fact<Admitted>>,
    /// State set through the agent API; absent if there is none.
    pub api_state: Option<Fact<ApiState>>,
    /// The configuration in force.
    pub effective: Fact<Effective>,
    /// Requested repairs, each carried out once; the first pass does not wait for it.
    pub repair: Option<Fact<Repair>>,
}

impl Sources {
    /// All facts, or the name of a missing one.
    fn snapshot(&mut self) -> Result<(Arc<Effective>, Facts), &'static str> {
        let effective = self.effective.borrow_and_update().clone().ok_or("control")?;
        // Not enrolled, or no hub yet: there will be no choice.
        let no_uplink = effective.uplink_interface().is_none();
        let facts = Facts {
            keys: self.keys.borrow_and_update().clone().ok_or("keys")?,
            uplink: match &mut self.uplink {
                Some(_) if no_uplink => None,
                Some(r) => Some(r.borrow_and_update().clone().ok_or("uplink")?),
                None => None,
            },
            names: latest(&mut self.names, "names")?,
            admitted: latest(&mut self.admitted, "grants")?,
            api_state: latest(&mut self.api_state, "agent")?,
        };
        Ok((effective, facts))
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = change(Some(&mut self.keys)) => {}
            () = change(self.uplink.as_mut()) => {}
            () = change(self.names.as_mut()) => {}
            () = change(self.admitted.as_mut()) => {}
            () = change(self.api_state.as_mut()) => {}
            () = change(Some(&mut self.effective)) => {}
            () = change(self.repair.as_mut()) => {}
        }
    }
}

fn latest<T: Default>(fact: &mut Option<Fact<T>>, name: &'static str) -> Result<Arc<T>, &'static str> {
    match fact {
        Some(r) => r.borrow_and_update().clone().ok_or(name),
        None => Ok(Arc::default()),
    }
}

/// Pending for ever if the producer has ended: its last fact stays.
async fn change<T>(fact: Option<&mut Fact<T>>) {
    if let Some(r) = fact
        && r.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Why a step was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The desired state changed.
    Change,
    /// The kernel differed from a state reached before.
    Drift,
}

/// One applied or refused step, for people and the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedStep {
    /// Boot clock.
    pub at: Boot,
    /// Wall clock at that time.
    pub wall: Wall,
    /// Cause.
    pub cause: Cause,
    /// The peer concerned.
    pub peer: Option<PublicKey>,
    /// The step as text, with the value it replaced.
    pub what: String,
    /// The kernel's error, if it refused.
    pub error: Option<String>,
}

/// Published after each pass.
#[derive(Clone, Debug, Default)]
pub struct NetStatus {
    /// Completed passes since start.
    pub passes: u64,
    /// When the last pass ended.
    pub at: Boot,
    /// The last pass left no difference, apart from held steps.
    pub clean: bool,
    /// Clean at least once since start.
    pub ready: bool,
    /// Desired state.
    pub desired: Arc<Desired>,
    /// Observed state at the end of the last pass.
    pub observed: Arc<Observed>,
    /// Times of the handshakes.
    pub handshakes: Arc<Handshakes>,
    /// Remaining differences: refused, held by policy, or blocked.
    pub left: Arc<Plan>,
    /// Why it is not clean.
    pub conditions: Vec<Condition>,
    /// The last steps, oldest first.
    pub history: VecDeque<AppliedStep>,
    /// Steps applied because the desired state changed.
    pub changes: u64,
    /// Steps applied against drift.
    pub repairs: u64,
    /// Steps the kernel refused.
    pub failures: u64,
    /// The API state of the last pass, applied or refused.
    pub api_state: Arc<ApiState>,
    /// Sequence number of the last repair carried out.
    pub repaired: u64,
    /// The configuration in force when the last pass began.
    pub effective: Option<Arc<Effective>>,
    /// The last drifts, oldest first.
    pub drifts: VecDeque<Drifted>,
    /// Drifts since start.
    pub drift_count: u64,
    /// Drifts held by policy.
    pub drifts_left: u64,
}

impl NetStatus {
    /// The sequence number of the configuration that the last pass began with.
    pub fn sequence(&self) -> Option<u64> {
        self.effective.as_ref().map(|e| e.sequence())
    }

    /// As [`NetStatus::sequence`], if that pass left nothing of `interface` undone.
    pub fn applied(&self, interface: &IfName) -> Option<u64> {
        let undone = self.left.steps.iter().any(|s| s.link() == interface)
            || self.left.blocked.iter().any(|b| b.link() == interface)
            || self.conditions.iter().any(|c| c.code == Code::DesiredInvalid);
        self.sequence().filter(|_| !undone)
    }
}

/// The reconciler.
#[derive(Debug)]
pub struct Reconciler<K, C, N> {
    /// The kernel; no other task writes to it.
    pub kernel: K,
    /// Clocks.
    pub clock: C,
    /// The service manager.
    pub notify: N,
    /// Facts.
    pub sources: Sources,
    /// Published after each pass.
    pub status: watch::Sender<NetStatus>,
    /// Incremented with every kernel event, for producers that depend on links, addresses and routes.
    pub events: watch::Sender<u64>,
}

impl<K: Kernel, C: Clock, N: Notify> Reconciler<K, C, N> {
    /// Reconciles until an error. Every wake-up does the same, whatever its cause: observe and repair the difference.
    ///
    /// # Errors
    /// No further pass can succeed, or `MAX_FAILED_PASSES` consecutive passes failed.
    pub async fn run(mut self) -> Result<(), KernelError> {
        let mut memory = Memory::default();
        let mut desired: Option<Arc<Desired>> = None;
        let mut failed = 0;
        let mut wait = RETRY;
        let resync = self.notify.watchdog().map_or(RESYNC, |w| RESYNC.min(w / 3));
        loop {
            match self.pass(&mut desired, &mut memory).await {
                Ok(Pass::Clean) => {
                    (failed, wait) = (0, RETRY);
                    self.sleep(resync).await;
                }
                Ok(Pass::Unfinished) => {
                    failed = 0;
                    self.sleep(wait).await;
                    wait = (wait * 2).min(resync);
                }
                Ok(Pass::Waiting) => {
                    // Waiting for a fact is not a hang.
                    self.notify.alive();
                    self.sleep(resync).await;
                }
                Err(e) => {
                    failed += 1;
                    tracing::error!(error = %ErrorChain(&e), "reconcile pass failed");
                    if e.retry() == Retry::Never || failed >= MAX_FAILED_PASSES {
                        return Err(e);
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(resync);
                }
            }
        }
    }

    async fn sleep(&mut self, longest: Duration) {
        tokio::select! {
            () = self.sources.changed() => {}
            () = self.kernel.changed() => {
                tracing::debug!("kernel event");
                self.events.send_modify(|n| *n += 1);
            }
            () = tokio::time::sleep(longest) => {}
        }
    }

    async fn pass(&mut self, desired: &mut Option<Arc<Desired>>, memory: &mut Memory) -> Result<Pass, KernelError> {
        let began = self.clock.now();
        let mut conditions = Vec::new();
        let mut changed = false;
        let (mut api_state, mut effective) = {
            let status = self.status.borrow();
            (status.api_state.clone(), status.effective.clone())
        };
        match self.sources.snapshot() {
            Err(missing) => {
                tracing::debug!(missing, "waiting for fact");
                if desired.is_none() {
                    return Ok(Pass::Waiting);
                }
            }
            Ok((config, facts)) => {
                api_state = facts.api_state.clone();
                let derived = derive(&config, &facts, desired.as_deref().unwrap_or(&Desired::default()));
                effective = Some(config);
                match derived {
                    Ok(new) => {
                        changed = desired.as_ref().is_none_or(|d| d.generation != new.generation);
                        if changed {
                            *desired = Some(Arc::new(new));
                        }
                    }
                    Err(e) => {
                        tracing::error!(error = %e, "desired state invalid; the last good state stays");
                        let detail = format!("{e}; the last good state stays");
                        conditions.push(Condition::new(Code::DesiredInvalid, began, detail));
                    }
                }
            }
        }
        let Some(desired) = desired.clone() else {
            self.publish(|s| (s.conditions, s.api_state, s.effective) = (conditions, api_state, effective));
            return Ok(Pass::Unfinished);
        };
        let wanted: BTreeSet<IfName> = desired.links.keys().cloned().collect();
        let mut applied_steps = Vec::new();
        let repair = self.sources.repair.as_mut().and_then(|r| r.borrow_and_update().clone());
        let repair = repair.filter(|r| memory.repaired < r.seq);
        if let Some(repair) = &repair {
            memory.recall(repair);
        }
        if let (true, None, Some(mut known)) = (changed, &repair, self.known()) {
            let plan = plan(&desired, &known, memory);
            if plan.steps.len() <= FEW_STEPS {
                let done = self.apply(&plan, &known, &desired, memory, Cause::Change, &mut applied_steps).await?;
                done.iter().filter_map(|i| plan.steps.get(*i)).for_each(|step| advance(&mut known, step));
                let left = self::plan(&desired, &known, memory);
                if left.steps.is_empty() && conditions.is_empty() {
                    memory.adopt(&desired, &known);
                    self.report(true, conditions, desired, known, left, applied_steps);
                    let repaired = memory.repaired;
                    self.publish(|s| (s.api_state, s.repaired, s.effective) = (api_state, repaired, effective));
                    return Ok(Pass::Clean);
                }
            }
        }
        let mut observed = self.kernel.observe(&wanted).await?;
        let mut left = plan(&desired, &observed, memory);
        let drifts = {
            let status = self.status.borrow();
            let repaired = status.clean && !changed;
            drift::found(&desired, &observed, &left, &status.left, repaired, self.clock.wall())
        };
        if let Some(repair) = repair {
            memory.repaired = repair.seq;
            left.release(&repair);
        }
        if !left.steps.is_empty() {
            let was_clean = self.status.borrow().clean;
            let cause = if was_clean && !changed { Cause::Drift } else { Cause::Change };
            self.apply(&left, &observed, &desired, memory, cause, &mut applied_steps).await?;
            observed = self.kernel.observe(&wanted).await?;
            left = plan(&desired, &observed, memory);
        }
        memory.adopt(&desired, &observed);
        observed.at = self.clock.now();
        conditions.extend(applied_steps.iter().filter_map(|d: &AppliedStep| {
            let error = d.error.as_ref()?;
            Some(Condition::new(Code::ApplyFailed, d.at, format!("{}: {error}", d.what)))
        }));
        let taken = left.blocked.iter().map(|b| Condition::new(Code::NameTaken, began, b.to_string()));
        conditions.extend(taken);
        let clean = conditions.is_empty() && left.steps.is_empty();
        self.report(clean, conditions, desired, observed, left, applied_steps);
        let repaired = memory.repaired;
        self.publish(|s| {
            (s.api_state, s.repaired, s.effective) = (api_state, repaired, effective);
            s.drift_count += drifts.len() as u64;
            s.drifts_left += drifts.iter().filter(|d| !d.repaired).count() as u64;
            s.drifts.extend(drifts);
            let excess = s.drifts.len().saturating_sub(MAX_HISTORY);
            s.drifts.drain(..excess);
        });
        Ok(if clean { Pass::Clean } else { Pass::Unfinished })
    }

    async fn apply(
        &mut self,
        plan: &Plan,
        observed: &Observed,
        desired: &Desired,
        memory: &mut Memory,
        cause: Cause,
        applied_steps: &mut Vec<AppliedStep>,
    ) -> Result<Vec<usize>, KernelError> {
        let applied = self.kernel.apply(&plan.steps).await;
        let (at, wall) = (self.clock.now(), self.clock.wall());
        let mut errors: BTreeMap<usize, String> =
            applied.failed.iter().map(|(i, e)| (*i, ErrorChain(e).to_string())).collect();
        for i in &applied.done {
            if let Some(step) = plan.steps.get(*i) {
                memory.record(step, desired);
            }
        }
        let many = plan.steps.len() > MAX_HISTORY;
        if many {
            tracing::info!(?cause, steps = plan.steps.len(), failed = errors.len(), "plan applied");
        }
        for (i, step) in plan.steps.iter().enumerate() {
            let error = errors.remove(&i);
            if many && error.is_none() && i + MAX_HISTORY < plan.steps.len() {
                // Only the last steps fit into the history.
                tracing::debug!(?cause, step = %render::step(step, observed), "step applied");
                continue;
            }
            let applied_step =
                AppliedStep { at, wall, cause, peer: step.peer().copied(), what: render::step(step, observed), error };
            match &applied_step.error {
                Some(error) => tracing::error!(?cause, step = %applied_step.what, error, "kernel refused step"),
                None if many => tracing::debug!(?cause, step = %applied_step.what, "step applied"),
                None => tracing::info!(?cause, step = %applied_step.what, "step applied"),
            }
            applied_steps.push(applied_step);
        }
        self.status.send_modify(|s| {
            let done = applied.done.len() as u64;
            match cause {
                Cause::Change => s.changes += done,
                Cause::Drift => s.repairs += done,
            }
            s.failures += applied.failed.len() as u64;
        });
        // Without the privilege or the module no further pass can succeed: the process exits with the reason.
        match applied.failed.into_iter().find(|(_, e)| e.retry() == Retry::Never) {
            Some((_, error)) => Err(error),
            None => Ok(applied.done),
        }
    }

    /// The last observation, if it is recent and clean, and a new one would be expensive.
    fn known(&self) -> Option<Observed> {
        let last = self.status.borrow();
        let peers: usize = last.observed.links.values().map(|l| l.peers.len()).sum();
        let fresh = self.clock.now().since(last.observed.at) < RESYNC;
        (last.clean && fresh && peers >= MANY_PEERS).then(|| Observed::clone(&last.observed))
    }

    fn report(
        &mut self,
        clean: bool,
        mut conditions: Vec<Condition>,
        desired: Arc<Desired>,
        observed: Observed,
        left: Plan,
        applied_steps: Vec<AppliedStep>,
    ) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let first = clean && !self.status.borrow().ready;
        self.publish(|s| {
            s.passes += 1;
            s.at = now;
            s.clean = clean;
            s.ready |= clean;
            s.desired = desired;
            Arc::make_mut(&mut s.handshakes).record(&observed, now, wall);
            s.observed = Arc::new(observed);
            s.left = Arc::new(left);
            Condition::carry_since(&mut conditions, &s.conditions);
            s.conditions = conditions;
            for applied_step in applied_steps {
                if s.history.len() >= MAX_HISTORY {
                    s.history.pop_front();
                }
                s.history.push_back(applied_step);
            }
        });
        if first {
            self.notify.ready();
        }
        self.notify.alive();
    }

    fn publish(&self, change: impl FnOnce(&mut NetStatus)) {
        self.status.send_modify(change);
    }
}

enum Pass {
    Clean,
    Unfinished,
    Waiting,
}

//! The only writer of kernel network state: wait, derive, observe, plan, apply, observe again.
//!
//! Waits for: any fact, a repair, a kernel event, the resync timer.
use spoke_config::effective::Effective;
use spoke_config::interface::TABLE_MAIN;
use spoke_model::address::HostPort;
use spoke_model::condition::{Code, Condition};
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_model::log_text::Word;
use spoke_model::time::Boot;
use spoke_net::advance::advance;
use spoke_net::api_state::ApiState;
use spoke_net::damping::Damping;
use spoke_net::derive::withdraw::withdraw;
use spoke_net::derive::{Admitted, Facts, Keys, UplinkChoice, derive};
use spoke_net::drift;
use spoke_net::duplicate::Duplicates;
use spoke_net::plan::{Plan, Repair, Step, plan};
use spoke_net::render;
use spoke_net::state::{Desired, Egress, Memory, Observed};
use spoke_sys::clock::Clock;
use spoke_sys::kernel::{Kernel, KernelError, Retry};
use spoke_sys::notify::Notify;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub mod refusal;
pub mod status;
use refusal::{Refusal, conditions, contests, duplicates, key_faults, remaining};
use status::PassSteps;
pub use status::{AppliedStep, Cause, NetStatus};

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
        let (mut memory, mut damping, mut twins) = (Memory::default(), Damping::default(), Duplicates::default());
        let mut desired: Option<Goal> = None;
        let mut failed = 0;
        let mut wait = RETRY;
        let resync = self.notify.watchdog().map_or(RESYNC, |w| RESYNC.min(w / 3));
        loop {
            match self.pass(&mut desired, &mut memory, &mut damping, &mut twins).await {
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
                    self.clock.sleep(wait).await;
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
            () = self.clock.sleep(longest) => {}
        }
    }

    async fn pass(
        &mut self,
        goal: &mut Option<Goal>,
        memory: &mut Memory,
        damping: &mut Damping,
        twins: &mut Duplicates,
    ) -> Result<Pass, KernelError> {
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
                if goal.is_none() {
                    return Ok(Pass::Waiting);
                }
            }
            Ok((config, facts)) => {
                api_state = facts.api_state.clone();
                effective = Some(config.clone());
                let last = goal.as_ref().map(|g| g.desired.clone());
                match derive(&config, &facts, last.as_deref().unwrap_or(&Desired::default())) {
                    Ok(new) => {
                        changed = last.as_ref().is_none_or(|d| d.generation != new.generation);
                        let desired = last.filter(|_| !changed).unwrap_or_else(|| Arc::new(new));
                        *goal = Some(Goal { desired, facts });
                    }
                    Err(e) => {
                        let detail = format!("{e}; the last good state stays");
                        let known = |c: &Condition| c.code == Code::DesiredInvalid && c.detail == detail;
                        if !self.status.borrow().conditions.iter().any(known) {
                            tracing::error!(error = %e, "desired state invalid; the last good state stays");
                        }
                        conditions.push(Condition::new(Code::DesiredInvalid, began, detail));
                        // Access that was taken back does not wait for a valid state.
                        if let Some(goal) = goal {
                            let left = withdraw(&goal.desired, &goal.facts, &facts, &config);
                            changed = left.generation != goal.desired.generation;
                            if changed {
                                *goal = Goal { desired: Arc::new(left), facts: goal.facts.clone() };
                            }
                        }
                    }
                }
            }
        }
        let Some(desired) = goal.as_ref().map(|g| g.desired.clone()) else {
            self.publish(|s| {
                Condition::carry_since(&mut conditions, &s.conditions);
                (s.conditions, s.api_state, s.effective) = (conditions, api_state, effective);
            });
            // The service lives and waits for a better state: being restarted would not help.
            self.notify.alive();
            return Ok(Pass::Unfinished);
        };
        conditions.extend(key_faults(&desired, began));
        let uplink = goal.as_ref().and_then(|g| g.facts.uplink.clone());
        let wanted: BTreeSet<IfName> = desired.links.keys().cloned().collect();
        let mut steps = PassSteps::default();
        let repair = self.sources.repair.as_mut().and_then(|r| r.borrow_and_update().clone());
        let repair = repair.filter(|r| memory.repaired < r.seq);
        if let Some(repair) = &repair {
            memory.recall(repair);
        }
        if let (true, None, Some(mut known)) = (changed, &repair, self.known()) {
            let plan = plan(&desired, &known, memory);
            if plan.steps.len() <= FEW_STEPS {
                let cause = (Cause::Change, &*damping);
                let (done, _) = self.apply(&plan, &known, &desired, memory, cause, &mut steps).await?;
                done.iter().filter_map(|i| plan.steps.get(*i)).for_each(|step| advance(&mut known, step));
                let left = self::plan(&desired, &known, memory);
                if left.steps.is_empty() && conditions.is_empty() {
                    memory.adopt(&desired, &known);
                    self.report(conditions, desired, known, left, Vec::new(), steps);
                    let repaired = memory.repaired;
                    self.publish(|s| (s.api_state, s.repaired, s.effective) = (api_state, repaired, effective));
                    return Ok(Pass::Clean);
                }
            }
        }
        let mut observed = self.kernel.observe(&wanted).await?;
        let mut left = plan(&desired, &observed, memory);
        // What was asked for is done at once.
        let damped = !changed && repair.is_none();
        if damped {
            damping.hold(&mut left, began);
        }
        let drifts = {
            let status = self.status.borrow();
            let repaired = status.settled && !changed;
            drift::found(&desired, &observed, &left, &status.left, repaired, self.clock.wall())
        };
        if let Some(repair) = repair {
            memory.repaired = repair.seq;
            left.release(&repair);
        }
        let mut refused = Vec::new();
        if !left.steps.is_empty() {
            let settled = self.status.borrow().settled;
            let cause = if settled && !changed { Cause::Drift } else { Cause::Change };
            let done;
            let cause = (cause, &*damping);
            (done, refused) = self.apply(&left, &observed, &desired, memory, cause, &mut steps).await?;
            if damped {
                let repaired = done.iter().filter_map(|i| left.steps.get(*i));
                repaired.for_each(|step| damping.repaired(step, began));
            }
            observed = self.kernel.observe(&wanted).await?;
            left = plan(&desired, &observed, memory);
            if damped {
                damping.hold(&mut left, began);
            }
        }
        memory.adopt(&desired, &observed);
        observed.at = self.clock.now();
        let sequence = effective.as_ref().map(|e| e.sequence());
        refused.iter_mut().for_each(|r| r.sequence = sequence);
        refused = remaining(&self.status.borrow().refused, refused, &left.steps);
        conditions.extend(self::conditions(&refused));
        conditions.extend(contests(damping));
        twins.observe(&desired, &self.status.borrow().observed, &observed, began);
        conditions.extend(duplicates(twins, effective.as_deref()));
        conditions.extend(left.overlaps.iter().map(|o| {
            Condition::new(Code::NetworkOverlap, began, o.to_string()).about(format!("{} {}", o.link, o.net))
        }));
        conditions.extend(self.bypass(&desired, &observed, uplink.as_deref(), began).await);
        let taken = left
            .blocked
            .iter()
            .map(|b| Condition::new(Code::NameTaken, began, b.to_string()).about(b.link().to_string()));
        conditions.extend(taken);
        let clean = conditions.is_empty() && left.steps.is_empty();
        self.report(conditions, desired, observed, left, refused, steps);
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
        (cause, damping): (Cause, &Damping),
        steps: &mut PassSteps,
    ) -> Result<(Vec<usize>, Vec<Refusal>), KernelError> {
        let applied = self.kernel.apply(&plan.steps).await;
        let (at, wall) = (self.clock.now(), self.clock.wall());
        let known: BTreeMap<_, String> = {
            let status = self.status.borrow();
            status.refused.iter().map(|r| (r.step.object(), r.reason.clone())).collect()
        };
        let mut refused = Vec::new();
        for (i, error) in &applied.failed {
            if let (Some(step), Retry::Later) = (plan.steps.get(*i), error.retry()) {
                if let KernelError::Refused { cause: spoke_sys::kernel::Cause::PortInUse { port, .. }, .. } = error {
                    memory.busy_ports.insert(step.link().clone(), *port);
                }
                let (code, what, reason) = (error.code(), render::step(step, observed), error.reason());
                refused.push(Refusal { step: step.clone(), code, what, reason, since: at, sequence: None });
            }
        }
        let mut errors: BTreeMap<usize, String> = applied.failed.iter().map(|(i, e)| (*i, e.reason())).collect();
        for i in &applied.done {
            if let Some(step) = plan.steps.get(*i) {
                memory.record(step, desired);
            }
        }
        let many = plan.steps.len() > MAX_HISTORY;
        if many {
            tracing::info!(cause = %Word(&cause), steps = plan.steps.len(), failed = errors.len(), "plan applied");
        }
        for (i, step) in plan.steps.iter().enumerate() {
            let error = errors.remove(&i);
            if many && error.is_none() && i + MAX_HISTORY < plan.steps.len() {
                // Only the last steps fit into the history.
                tracing::debug!(cause = %Word(&cause), step = %render::step(step, observed), "step applied");
                continue;
            }
            let before = known.get(&step.object());
            if let Some(error) = error.as_ref().filter(|e| before == Some(e)) {
                tracing::debug!(cause = %Word(&cause), step = %render::step(step, observed), error, "kernel refused step again");
                continue;
            }
            // A step that was refused before is no drift.
            let cause = if before.is_some() { Cause::Change } else { cause };
            let (contested, peer) = (damping.contested(step), step.peer().copied());
            let applied_step =
                AppliedStep { at, wall, cause, contested, peer, what: render::step(step, observed), error };
            match &applied_step.error {
                Some(error) => {
                    tracing::error!(cause = %Word(&cause), step = %applied_step.what, error, "kernel refused step")
                }
                None if many => tracing::debug!(cause = %Word(&cause), step = %applied_step.what, "step applied"),
                None => tracing::info!(cause = %Word(&cause), step = %applied_step.what, "step applied"),
            }
            steps.applied.push(applied_step);
        }
        let done = applied.done.iter().filter_map(|i| plan.steps.get(*i));
        let (late, done): (Vec<&Step>, Vec<&Step>) = done.partition(|step| known.contains_key(&step.object()));
        steps.changes += late.len() as u64;
        match cause {
            Cause::Change => steps.changes += done.len() as u64,
            Cause::Drift => steps.repairs += done.len() as u64,
        }
        steps.failures += applied.failed.len() as u64;
        // Without the privilege or the module no further pass can succeed: the process exits with the reason.
        match applied.failed.into_iter().find(|(_, e)| e.retry() == Retry::Never) {
            Some((_, error)) => Err(error),
            None => Ok((applied.done, refused)),
        }
    }

    /// The condition that the system's look-up for the hub's address does not lead into the tunnel, although a route is to
    /// lead there. The echo is bound to the interface and does not notice.
    async fn bypass(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        uplink: Option<&UplinkChoice>,
        at: Boot,
    ) -> Option<Condition> {
        let UplinkChoice { interface, active, .. } = uplink?;
        let (hub, want) = (active.hub.address, desired.links.get(interface)?);
        let routed = want.routes.iter().filter(|r| r.table == TABLE_MAIN).map(|r| r.to).chain(want.addresses.clone());
        if !want.up || !observed.links.get(interface)?.up || !routed.into_iter().any(|net| net.contains(&hub)) {
            return None;
        }
        let leads = match self.kernel.egress(hub).await {
            Egress::Unknown => return None,
            Egress::Link(link) if link == interface.as_str() => return None,
            Egress::Link(link) => format!("into {link}"),
            Egress::Unreachable => "nowhere".to_owned(),
        };
        let detail = format!("the route to the hub's address {hub} leads {leads}, not into {interface}");
        Some(Condition::new(Code::TunnelBypassed, at, detail).about(hub.to_string()))
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
        mut conditions: Vec<Condition>,
        desired: Arc<Desired>,
        observed: Observed,
        left: Plan,
        refused: Vec<Refusal>,
        steps: PassSteps,
    ) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let (first, clean) = (!self.status.borrow().ready, conditions.is_empty() && left.steps.is_empty());
        if first {
            for (interface, have) in observed.links.iter().filter(|(_, l)| l.wireguard && !l.ours) {
                let (mtu, peers) = (have.mtu, have.peers.len());
                tracing::warn!(%interface, mtu, peers, "interface was made by another program: what is not configured is kept");
            }
        }
        self.publish(|s| {
            s.ready = true;
            s.settled = refused.len() == left.steps.len();
            s.refused = refused;
            Arc::make_mut(&mut s.handshakes).record(&observed, now, wall);
            s.observe(now, clean, desired, Arc::new(observed));
            s.left = Arc::new(left);
            Condition::carry_since(&mut conditions, &s.conditions);
            log_changes(&s.conditions, &conditions);
            s.conditions = conditions;
            s.record(steps);
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

/// Logs the beginning and the end of the conditions that no step of a pass is logged for.
fn log_changes(before: &[Condition], after: &[Condition]) {
    let unlogged = |c: &&Condition| {
        matches!(
            c.code,
            Code::NameTaken | Code::NetworkOverlap | Code::TunnelBypassed | Code::Contested | Code::DuplicateIdentity
        )
    };
    let holds = |all: &[Condition], c: &Condition| all.iter().any(|o| o.code == c.code && o.object == c.object);
    for c in after.iter().filter(unlogged).filter(|c| !holds(before, c)) {
        tracing::error!(code = %c.code, detail = c.detail, remedy = c.code.remedy(), "condition began");
    }
    for c in before.iter().filter(unlogged).filter(|c| !holds(after, c)) {
        tracing::info!(code = %c.code, detail = c.detail, "condition ended");
    }
}

/// The state to be reached.
struct Goal {
    desired: Arc<Desired>,
    /// What it was derived from.
    facts: Facts,
}

enum Pass {
    Clean,
    Unfinished,
    Waiting,
}

#[cfg(test)]
mod tests;

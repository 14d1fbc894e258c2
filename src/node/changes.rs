//! The ledger of changes: validates one change at a time, publishes it as a fact, waits until the kernel has it, stores it.
//! A refused change is reverted and leaves no trace but the audit trail. Waits for requests, deadlines of confirmations and
//! the reconciler's status.
pub mod declared;
pub mod history;
pub mod requests;
mod settle;
use crate::audit::Audit;
use crate::changes::history::Store;
use crate::changes::requests::{Changes, Command, FRESH, QUEUE, refresh};
use crate::reconciler::NetStatus;
use spoke_change::audit::Actor;
use spoke_change::declared::Revision;
use spoke_change::edit::{Context, Edit};
use spoke_change::history::deadline;
use spoke_change::messages;
use spoke_change::record::{GenerationRecord, StateChange, without_revoked};
use spoke_change::request::{AppliedChange, ChangeRefused, RepairRequest, RepairResult};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::clock::Anchor;
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_net::api_state::ApiState;
use spoke_net::drift::{DriftReport, Names, report};
use spoke_net::plan::{Repair, Step, Unknown};
use spoke_sys::clock::{Clock, boot_id};
use spoke_sys::disk::DiskError;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// First and longest wait before a failed reversion is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Facts for the reconcile task.
pub type Facts = (watch::Receiver<Option<Arc<ApiState>>>, watch::Receiver<Option<Arc<Repair>>>);

/// The task that makes changes.
#[derive(Debug)]
pub struct Ledger<C> {
    pub(super) clock: C,
    pub(super) own: Arc<Effective>,
    pub(super) net: watch::Receiver<NetStatus>,
    trusted: watch::Receiver<Option<Anchor>>,
    audit: Audit,
    api_state: watch::Sender<Option<Arc<ApiState>>>,
    repair: watch::Sender<Option<Arc<Repair>>>,
    commands: mpsc::Receiver<Command>,
    pub(super) store: Store,
    boot_id: String,
    repairs: u64,
    reverting: Option<Reverting>,
    /// A revocation that could not be stored.
    pub(super) unstored: Option<Unstored>,
    /// The sequence number of the configuration that was last compared with the history.
    pub(super) compared: Option<u64>,
}

/// A revocation that is in force and not stored: a restart before it is would take it back.
#[derive(Debug)]
pub(super) struct Unstored {
    /// The state in force.
    state: Arc<ApiState>,
    actor: Actor,
    what: String,
    /// When the write is tried again.
    again: Boot,
}

/// What a change is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged<'a> {
    /// Its interfaces.
    pub(super) links: &'a BTreeSet<IfName>,
    /// Steps that were left before it, which are not its own.
    pub(super) foreign: &'a [Step],
    /// It only takes access away.
    pub(super) revokes_only: bool,
}

impl Default for Judged<'_> {
    fn default() -> Self {
        static NONE: BTreeSet<IfName> = BTreeSet::new();
        Self { links: &NONE, foreign: &[], revokes_only: false }
    }
}

/// A reversion that has failed so far.
#[derive(Debug)]
struct Reverting {
    again: Boot,
    wait: Duration,
    problem: String,
    /// Steps left before its first attempt.
    foreign: Vec<Step>,
}

impl<C: Clock> Ledger<C> {
    /// Opens the store in the state directory and publishes the API state. Blocks.
    pub fn open(
        dir: &Path,
        config: Arc<Config>,
        clock: C,
        net: watch::Receiver<NetStatus>,
        trusted: watch::Receiver<Option<Anchor>>,
        audit: Audit,
    ) -> (Self, Changes, Facts) {
        let boot_id = boot_id().unwrap_or_default();
        let store = Store::open(dir, config.agent.keep_generations as usize, &boot_id, clock.now());
        let (api_state, facts) = watch::channel(Some(store.history().state().clone()));
        // A previous process was killed during a change: the peers it had added are removed.
        let unfinished = store.history().unfinished().clone();
        let first = (!unfinished.is_empty()).then(|| {
            let peers: usize = unfinished.values().map(BTreeSet::len).sum();
            tracing::warn!(peers, "reverting a change interrupted by the restart");
            Arc::new(Repair { seq: 1, unknown: Unknown::Ours(unfinished), ..Repair::default() })
        });
        let (seq, (repair, repairs)) = (u64::from(first.is_some()), watch::channel(first));
        let (tx, commands) = mpsc::channel(QUEUE);
        let changes = Changes::new(tx, repair.clone());
        let ledger = Self {
            clock,
            own: Arc::new(Effective::of(config)),
            net,
            trusted,
            audit,
            api_state,
            repair,
            commands,
            store,
            boot_id,
            repairs: seq,
            reverting: None,
            unstored: None,
            compared: None,
        };
        (ledger, changes, (facts, repairs))
    }

    /// Makes changes until every [`Changes`] is dropped.
    pub async fn run(mut self) -> Result<(), DiskError> {
        loop {
            self.compare().await;
            let unfinished = !self.store.history().unfinished().is_empty();
            if unfinished && self.is_reverted() {
                self.abandon().await;
            }
            let again = self.reverting.as_ref().map(|r| r.again).unwrap_or_default();
            let due = self.store.history().pending().map(|p| p.deadline.max(again));
            let wait = due.map(|due| due.since(self.clock.now()));
            let store = self.unstored.as_ref().map(|u| u.again.since(self.clock.now()));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.serve(command).await,
                    None => return Ok(()),
                },
                () = sleep(&self.clock, wait) => self.revert().await,
                () = sleep(&self.clock, store) => self.store_revocation().await,
                Ok(()) = self.net.changed() => {}
            }
        }
    }

    async fn serve(&mut self, command: Command) {
        match command {
            Command::Edit(edit, actor, confirm, reply) => {
                let what = edit.describe();
                let done = self.edit(*edit, &actor, confirm).await;
                self.report(&actor, &what, &done);
                let _ = reply.send(done);
            }
            Command::Confirm(generation, actor, reply) => {
                let done = self.confirm(generation).await;
                let which = generation.or(done.as_ref().ok().map(|d| d.generation));
                let what = which.map_or_else(|| "confirm".to_owned(), |n| format!("confirm generation {n}"));
                self.report(&actor, &what, &done);
                let _ = reply.send(done);
            }
            Command::Rollback(to, actor, reply) => {
                let wanted = to.or(self.store.history().previous()).unwrap_or(self.store.history().current());
                let what = format!("roll back to generation {wanted}");
                let done = self.rollback(wanted, &actor, &what).await;
                self.report(&actor, &what, &done);
                let _ = reply.send(done);
            }
            Command::Reconcile(what, actor, reply) => {
                let done = self.reconcile(what).await;
                if !what.dry_run {
                    self.report_repair(&actor, &done);
                }
                let _ = reply.send(done);
            }
            Command::History(reply) => {
                drop(reply.send(Ok(messages::generations(self.store.history(), self.clock.now()))));
            }
            Command::Diff(a, b, reply) => drop(reply.send(messages::differences(self.store.history(), a, b))),
        }
    }

    pub(super) fn report(&self, actor: &Actor, what: &str, done: &Result<AppliedChange, ChangeRefused>) {
        match done {
            Ok(done) => tracing::info!(%actor, what, generation = done.generation, "change applied"),
            Err(error) => tracing::warn!(%actor, what, %error, "change refused"),
        }
        self.audit.record(actor, messages::change(what, done), done.as_ref().map(drop).map_err(|e| e as &dyn Display));
    }

    fn report_repair(&self, actor: &Actor, done: &Result<RepairResult, ChangeRefused>) {
        let (what, result) = messages::repair(done);
        match &result {
            Ok(()) => tracing::info!(%actor, what, "drift repaired"),
            Err(error) => tracing::warn!(%actor, what, %error, "drift not repaired"),
        }
        self.audit.record(actor, what, result.as_ref().map(drop).map_err(|e| e as &dyn Display));
    }

    async fn edit(
        &mut self,
        edit: Edit,
        actor: &Actor,
        confirm: Option<Duration>,
    ) -> Result<AppliedChange, ChangeRefused> {
        if let Some(pending) = self.store.history().pending() {
            return Err(ChangeRefused::Unconfirmed(pending.generation));
        }
        if keeps_undeclared(&self.net.borrow(), edit.link()) {
            // The kernel sends no event for peers that another program sets.
            refresh(&self.repair, self.net.clone(), &self.clock, FRESH).await;
        }
        let (mut edited, found) = {
            let status = self.net.borrow().clone();
            let on = self.context(&status);
            let found = on.undeclared_peers(&edit, &kept(&status, edit.link()));
            let base = (!found.is_empty()).then(|| (on.adopt(edit.link(), &found), found.len()));
            (edit.carry_out(&on)?, base)
        };
        if let Some((base, count)) = found {
            // Adopted first as they are, so that a rollback restores them.
            let what = format!("take over {count} peers found on {}", edited.link);
            self.change(base, [edited.link.clone()].into(), actor, &what, None, None).await?;
            let status = self.net.borrow().clone();
            edited.state = edit.carry_out(&self.context(&status))?.state;
        }
        let what = edit.describe();
        // Thousands of peers take megabytes, which are not needed any longer.
        drop(edit);
        let link = edited.link.clone();
        let mut done = self.change(edited.state, [edited.link].into(), actor, &what, confirm, None).await?;
        if !done.changed
            && let Some(pending) = self.pending_removal(&link)
        {
            return Err(ChangeRefused::Revoked(pending));
        }
        done.was_up = edited.was_up;
        Ok(done)
    }

    /// The API state in force.
    fn state(&self) -> &Arc<ApiState> {
        self.unstored.as_ref().map_or(self.store.history().state(), |u| &u.state)
    }

    /// A removal on the interface that the kernel refuses.
    fn pending_removal(&self, link: &IfName) -> Option<String> {
        let status = self.net.borrow();
        let removes = |s: &Step| matches!(s, Step::RemovePeer { .. } | Step::DeleteLink { .. });
        let refused = status.refused.iter().find(|r| r.step.link() == link && removes(&r.step))?;
        Some(format!("{}: {}", refused.what, refused.reason))
    }

    fn context<'a>(&'a self, status: &'a NetStatus) -> Context<'a> {
        Context {
            config: status.effective.as_ref().unwrap_or(&self.own),
            state: self.state(),
            desired: &status.desired,
            observed: &status.observed,
        }
    }

    /// Publishes a state, waits for the kernel, stores it; `restores` is the generation it is of, if any. All or nothing, except for what it takes away: that stays in force
    /// whatever becomes of the rest.
    async fn change(
        &mut self,
        state: ApiState,
        links: BTreeSet<IfName>,
        actor: &Actor,
        what: &str,
        confirm: Option<Duration>,
        restores: Option<u64>,
    ) -> Result<AppliedChange, ChangeRefused> {
        let before = self.state().clone();
        let foreign = self.net.borrow().left.steps.clone();
        let mut record = self.record(&state, actor, what);
        if record.change == StateChange::default() {
            return Ok(self.done(false, Vec::new()));
        }
        let lines = record.change.lines(&before);
        let due = confirm.map(|t| self.clock.now() + t);
        record.confirm = due.map(|at| deadline(&self.boot_id, at));
        record.restores = restores;
        let intent = {
            // Where undeclared peers are kept, a peer of ours would look like one after a restart.
            let status = self.net.borrow();
            let there = |link: &IfName, key: &PublicKey| {
                status.observed.links.get(link).is_some_and(|l| l.peers.contains_key(key))
            };
            record.change.new_peers(&before, |link, key| keeps_undeclared(&status, link) && !there(link, key))
        };
        if !intent.is_empty() {
            self.store.intend(intent).await.map_err(|e| ChangeRefused::Storage(ErrorChain(&e).to_string()))?;
        }
        let kept = Arc::new(without_revoked(&before, &state));
        let state = Arc::new(state);
        let judged = Judged { links: &links, foreign: &foreign, revokes_only: kept == state };
        if let Err(problem) = self.settle(&state, None, judged).await {
            if kept == before {
                self.restore(&before, judged).await;
                return Err(problem);
            }
            return Err(self.keep_revocation(kept, judged, actor, what, &problem).await);
        }
        if let Err(error) = self.store.commit(record, state, due).await {
            self.restore(&kept, judged).await;
            if kept != before {
                self.keep_unstored(kept, actor, what, &error);
            }
            return Err(ChangeRefused::Storage(ErrorChain(&error).to_string()));
        }
        self.unstored = None;
        self.reverting = None;
        Ok(self.done(true, lines))
    }

    pub(super) fn record(&self, state: &ApiState, actor: &Actor, what: &str) -> GenerationRecord {
        let blank = GenerationRecord {
            generation: 0,
            wall: self.clock.wall(),
            trusted: self.trusted.borrow().is_some(),
            actor: actor.clone(),
            what: what.to_owned(),
            confirm: None,
            restores: None,
            change: StateChange::default(),
            revision: Revision::default(),
        };
        self.store.history().next(state, blank)
    }

    pub(super) fn done(&self, changed: bool, lines: Vec<String>) -> AppliedChange {
        let (now, history) = (self.clock.now(), self.store.history());
        let confirm_within = history.pending().map(|p| p.deadline.since(now).as_secs());
        AppliedChange { generation: history.current(), changed, was_up: false, confirm_within, lines }
    }

    /// Whether the kernel was observed without peers of an unfinished change, except desired ones.
    fn is_reverted(&self) -> bool {
        let status = self.net.borrow();
        let gone = |(link, keys): (&IfName, &BTreeSet<PublicKey>)| {
            let wanted = status.desired.links.get(link);
            let left = |key: &&PublicKey| !wanted.is_some_and(|w| w.peers.contains_key(*key));
            let seen = status.observed.links.get(link);
            !seen.is_some_and(|seen| keys.iter().filter(left).any(|key| seen.peers.contains_key(key)))
        };
        status.passes > 0 && self.store.history().unfinished().iter().all(gone)
    }

    async fn abandon(&mut self) {
        if let Err(error) = self.store.abandon().await {
            tracing::warn!(error = %ErrorChain(&error), "revert of an interrupted change not stored; the next start repeats it");
        }
    }

    async fn confirm(&mut self, generation: Option<u64>) -> Result<AppliedChange, ChangeRefused> {
        let waiting = self.store.history().pending().map(|p| p.generation);
        let wanted = generation.or(waiting).unwrap_or(self.store.history().current());
        if waiting != Some(wanted) {
            return Err(ChangeRefused::NothingToConfirm(wanted));
        }
        self.store.confirm(wanted).await.map_err(|e| ChangeRefused::Storage(ErrorChain(&e).to_string()))?;
        if self.reverting.take().is_some() {
            // Confirmed while a refused reversion was pending: it is cancelled.
            self.api_state.send_replace(Some(self.store.history().state().clone()));
        }
        Ok(self.done(true, Vec::new()))
    }

    /// Reverts an unconfirmed generation. Unlike other changes a refused reversion is not undone but repeated for ever: the
    /// unconfirmed state may have disconnected the node.
    async fn revert(&mut self) {
        let Some(pending) = self.store.history().pending().cloned() else { return };
        let what = format!("generation {} was not confirmed: back to {}", pending.generation, pending.back_to);
        let Some(state) = self.store.history().at(pending.back_to).map(Arc::new) else { return };
        let mut record = self.record(&state, &Actor::TimeOut, &what);
        record.restores = Some(pending.back_to);
        let links = touched(&record.change);
        let lines = record.change.lines(self.store.history().state());
        let foreign = match &self.reverting {
            Some(reverting) => reverting.foreign.clone(),
            None => self.net.borrow().left.steps.clone(),
        };
        let judged = Judged { links: &links, foreign: &foreign, revokes_only: false };
        let done = match self.settle(&state, None, judged).await {
            Ok(()) => self
                .store
                .commit(record, state, None)
                .await
                .map_err(|e| ChangeRefused::Storage(ErrorChain(&e).to_string())),
            Err(problem) => Err(problem),
        };
        let done = done.map(|()| self.done(true, lines));
        let Some(problem) = done.as_ref().err().map(ToString::to_string) else {
            self.reverting = None;
            return self.report(&Actor::TimeOut, &what, &done);
        };
        let last = self.reverting.take();
        // Recorded once per problem: the trail is bounded, and flash wears out.
        if last.as_ref().is_none_or(|l| l.problem != problem) {
            self.report(&Actor::TimeOut, &what, &done);
        }
        let wait = last.map_or(RETRY.0, |l| (l.wait * 2).min(RETRY.1));
        self.reverting = Some(Reverting { again: self.clock.now() + wait, wait, problem, foreign });
    }

    async fn rollback(&mut self, wanted: u64, actor: &Actor, what: &str) -> Result<AppliedChange, ChangeRefused> {
        let history = self.store.history();
        let (oldest, newest) = (history.oldest(), history.current());
        let state = history.at(wanted).ok_or(ChangeRefused::NoGeneration { wanted, oldest, newest })?;
        let links = touched(&StateChange::between(history.state(), &state));
        let remaining = messages::not_restored(history, wanted);
        let mut done = self.change(state, links, actor, what, None, Some(wanted)).await?;
        done.lines.extend(remaining);
        Ok(done)
    }

    async fn reconcile(&mut self, what: RepairRequest) -> Result<RepairResult, ChangeRefused> {
        refresh(&self.repair, self.net.clone(), &self.clock, Duration::ZERO).await;
        let before = self.drift();
        if what.dry_run {
            return Ok(RepairResult::between(&before, &DriftReport::default(), &what, |_| String::new()));
        }
        self.repairs += 1;
        let repair = Repair {
            seq: self.repairs,
            links: BTreeSet::new(),
            missing: what.reconcile_missing,
            mismatched: what.reconcile_mismatched,
            unknown: if what.remove_unknown { Unknown::All } else { Unknown::Keep },
        };
        // Steps before this moment belong to another request.
        let since = self.clock.now();
        let state = self.api_state.borrow().clone().unwrap_or_default();
        let problem = self.settle(&state, Some(repair), Judged::default()).await.err().map(|p| p.to_string());
        let after = self.drift();
        let status = self.net.borrow();
        let why = |key: PublicKey| {
            let mut steps = status.history.iter().rev().take_while(|s| s.at >= since);
            let error = steps.find_map(|s| s.error.clone().filter(|_| s.peer == Some(key)));
            let refused = status.refused.iter().find(|r| r.step.peer() == Some(&key));
            error
                .or_else(|| refused.map(|r| r.reason.clone()))
                .or_else(|| problem.clone())
                .unwrap_or_else(|| "it still differs".to_owned())
        };
        Ok(RepairResult::between(&before, &after, &what, why))
    }

    fn drift(&self) -> DriftReport {
        let status = self.net.borrow();
        let seen = self.clock.wall().before(self.clock.now().since(status.observed.at));
        report(&status.desired, &status.observed, &Names::new(), None, seen)
    }
}

async fn sleep(clock: &impl Clock, wait: Option<Duration>) {
    match wait {
        Some(wait) => clock.sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn touched(change: &StateChange) -> BTreeSet<IfName> {
    change.0.keys().cloned().collect()
}

/// Whether policy keeps undeclared peers on the interface.
fn keeps_undeclared(status: &NetStatus, link: &IfName) -> bool {
    let ours = status.observed.links.get(link).is_none_or(|l| l.ours);
    status.desired.links.get(link).is_some_and(|l| !l.remove_unknown.unwrap_or(ours))
}

/// Undeclared peers of the interface that policy keeps.
fn kept(status: &NetStatus, link: &IfName) -> BTreeSet<PublicKey> {
    let held = status.left.held.iter().filter(|s| s.link() == link);
    held.filter_map(|s| if let Step::RemovePeer { peer, .. } = s { Some(*peer) } else { None }).collect()
}

#[cfg(test)]
mod tests;

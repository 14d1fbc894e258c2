//! One change at a time: judge it, publish it as a fact, wait until the kernel has it, write it down. What the kernel does
//! not take is taken back, and nobody finds a trace of it but the audit trail.
use super::edit::{Conflict, Context, Edit};
use super::history::{BadHistory, History, deadline};
use super::record::{Change, Line, Record};
use crate::audit::record::Actor;
use crate::audit::task::Audit;
use crate::clock::Anchor;
use crate::config::Config;
use crate::net::drift::{Names, Report, report};
use crate::net::imperative::Imperative;
use crate::net::plan::{Repair, Unknown};
use crate::net::render;
use crate::net::state::IfName;
use crate::net::task::Status;
use crate::sys::clock::{Clock, boot_id};
use crate::sys::disk::DiskError;
use crate::sys::journal::Journal;
use crate::time::Boot;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// File name in the state directory.
pub const FILE: &str = "changes.journal";
/// Changes that may wait for their turn.
const QUEUE: usize = 64;
/// How long a change may take to get into the kernel.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of changes after which the store is written anew even if few generations are in it.
const MAX_BYTES: u64 = 8 << 20;

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Somebody else has it, or it is not there.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The kernel did not take it; all is as it was.
    #[error("The kernel refused it, and the previous state is back: {0}")]
    Kernel(String),
    /// It could not be written down; all is as it was.
    #[error("It could not be written down, and the previous state is back: {0}")]
    Storage(String),
    /// An earlier change waits for its confirmation.
    #[error("Generation {0} awaits its confirmation: confirm it, or wait until it reverts")]
    Unconfirmed(u64),
    /// There is nothing to confirm.
    #[error("Generation {0} awaits no confirmation")]
    NothingToConfirm(u64),
    /// That generation is not kept.
    #[error("Generation {wanted} is not kept: there are {oldest} to {newest}")]
    NoGeneration {
        /// The one asked for.
        wanted: u64,
        /// The oldest kept.
        oldest: u64,
        /// The present one.
        newest: u64,
    },
    /// Too many changes wait, or the task is not running.
    #[error("The node is busy: try again")]
    Busy,
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The generation in force.
    pub generation: u64,
    /// Whether anything had to be changed.
    pub changed: bool,
    /// Whether the interface was up before.
    pub was_up: bool,
    /// Seconds left to confirm it.
    pub confirm_within: Option<u64>,
    /// What changed, for people.
    pub lines: Vec<String>,
}

/// What a rollback led to, as the command line shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolled {
    /// The generation in force.
    pub generation: u64,
    /// What changed.
    pub lines: Vec<String>,
}

/// What to repair once, whatever the policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reconcile {
    /// Add missing peers.
    pub reconcile_missing: bool,
    /// Restore what differs.
    pub reconcile_mismatched: bool,
    /// Remove unknown peers.
    pub remove_unknown: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { reconcile_missing: true, reconcile_mismatched: true, remove_unknown: false, dry_run: false }
    }
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    /// Keys of peers added.
    pub added: Vec<String>,
    /// Keys of peers restored.
    pub updated: Vec<String>,
    /// Keys of peers removed.
    pub removed: Vec<String>,
    /// What could not be done.
    pub errors: Vec<ReconcileError>,
}

/// A peer that could not be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileError {
    /// Its key.
    pub peer: String,
    /// `add`, `update` or `remove`.
    pub action: String,
    /// Why.
    pub error: String,
}

/// A generation as `spoke config history` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// RFC 3339, as the clock stood.
    pub time: String,
    /// Whether that clock was believed.
    pub trusted: bool,
    /// Who.
    pub actor: String,
    /// What.
    pub what: String,
    /// In force.
    pub current: bool,
    /// The one a rollback without a number goes to.
    pub previous: bool,
    /// Seconds until it reverts unless confirmed.
    pub confirm_within: Option<u64>,
}

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

#[derive(Debug)]
enum Command {
    Edit(Box<Edit>, Actor, Option<Duration>, Reply<Done>),
    Confirm(u64, Actor, Reply<Done>),
    Rollback(Option<u64>, Actor, Reply<Done>),
    Reconcile(Reconcile, Actor, Reply<Reconciled>),
    History(Reply<Vec<Generation>>),
    Diff(u64, u64, Reply<Vec<String>>),
}

/// Asks for changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Changes {
    commands: mpsc::Sender<Command>,
    wake: watch::Sender<Option<Arc<Repair>>>,
}

impl Changes {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| Refused::Busy)?;
        answer.await.map_err(|_| Refused::Busy)?
    }

    /// Has the reconcile task look at the kernel again.
    pub fn look(&self) {
        self.wake.send_modify(|_| {});
    }

    /// Makes a change; with `confirm` it reverts after that time unless confirmed.
    pub async fn edit(&self, edit: Edit, actor: Actor, confirm: Option<Duration>) -> Result<Done, Refused> {
        self.ask(|reply| Command::Edit(Box::new(edit), actor, confirm, reply)).await
    }

    /// Confirms a generation.
    pub async fn confirm(&self, generation: u64, actor: Actor) -> Result<Done, Refused> {
        self.ask(|reply| Command::Confirm(generation, actor, reply)).await
    }

    /// Goes back to a generation, or to the previous one. It becomes a new generation with the old content.
    pub async fn rollback(&self, to: Option<u64>, actor: Actor) -> Result<Done, Refused> {
        self.ask(|reply| Command::Rollback(to, actor, reply)).await
    }

    /// Repairs drift once.
    pub async fn reconcile(&self, what: Reconcile, actor: Actor) -> Result<Reconciled, Refused> {
        self.ask(|reply| Command::Reconcile(what, actor, reply)).await
    }

    /// The generations kept, newest first.
    pub async fn history(&self) -> Result<Vec<Generation>, Refused> {
        self.ask(Command::History).await
    }

    /// What differs between two generations, as lines for people.
    pub async fn diff(&self, a: u64, b: u64) -> Result<Vec<String>, Refused> {
        self.ask(|reply| Command::Diff(a, b, reply)).await
    }
}

/// Facts for the reconcile task.
pub type Facts = (watch::Receiver<Option<Arc<Imperative>>>, watch::Receiver<Option<Arc<Repair>>>);

/// The one who makes changes.
#[derive(Debug)]
pub struct Ledger<C> {
    clock: C,
    config: Arc<Config>,
    net: watch::Receiver<Status>,
    trusted: watch::Receiver<Option<Anchor>>,
    audit: Audit,
    imperative: watch::Sender<Option<Arc<Imperative>>>,
    repair: watch::Sender<Option<Arc<Repair>>>,
    commands: mpsc::Receiver<Command>,
    journal: Journal,
    history: History,
    boot_id: String,
    repairs: u64,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A line that checks out and cannot be understood: written by another version.
    #[error(
        "the store of changes cannot be understood; was it written by a newer version? Move {path} aside to go on without it"
    )]
    Foreign {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Its lines do not follow from each other.
    #[error("the store of changes is out of order; move {path} aside to go on without it")]
    Order {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        #[source]
        source: BadHistory,
    },
}

impl<C: Clock> Ledger<C> {
    /// Opens the store in the state directory and publishes what is set. Blocks.
    pub fn open(
        dir: &Path,
        config: Arc<Config>,
        clock: C,
        net: watch::Receiver<Status>,
        trusted: watch::Receiver<Option<Anchor>>,
        audit: Audit,
    ) -> Result<(Self, Changes, Facts), OpenError> {
        let path = dir.join(FILE);
        let (journal, found) = Journal::open(path.clone())?;
        if found.dropped > 0 {
            tracing::warn!(bytes = found.dropped, "the last change was cut off by a power cut and is not in force");
        }
        let lines: Result<Vec<Line>, _> = found.lines.iter().map(|l| serde_json::from_slice(l)).collect();
        let lines = lines.map_err(|source| OpenError::Foreign { path: path.clone(), source })?;
        let boot_id = boot_id().unwrap_or_default();
        let keep = config.agent.keep_generations as usize;
        let history =
            History::load(lines, keep, &boot_id, clock.now()).map_err(|source| OpenError::Order { path, source })?;
        let (imperative, facts) = watch::channel(Some(history.state().clone()));
        let (repair, repairs) = watch::channel(None);
        let (tx, commands) = mpsc::channel(QUEUE);
        let changes = Changes { commands: tx, wake: repair.clone() };
        let ledger = Self {
            clock,
            config,
            net,
            trusted,
            audit,
            imperative,
            repair,
            commands,
            journal,
            history,
            boot_id,
            repairs: 0,
        };
        Ok((ledger, changes, (facts, repairs)))
    }

    /// Makes changes until nobody can ask for any.
    pub async fn run(mut self) -> Result<(), DiskError> {
        loop {
            let wait = self.history.pending().map(|p| p.deadline.since(self.clock.now()));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.serve(command).await,
                    None => return Ok(()),
                },
                () = sleep(wait) => self.revert().await,
            }
        }
    }

    async fn serve(&mut self, command: Command) {
        match command {
            Command::Edit(edit, actor, confirm, reply) => {
                let what = edit.describe();
                let done = self.edit(&edit, &actor, confirm).await;
                self.report(&actor, &what, &done);
                let _ = reply.send(done);
            }
            Command::Confirm(generation, actor, reply) => {
                let done = self.confirm(generation).await;
                self.report(&actor, &format!("confirm generation {generation}"), &done);
                let _ = reply.send(done);
            }
            Command::Rollback(to, actor, reply) => {
                let what = to.map_or_else(|| "roll back".to_owned(), |n| format!("roll back to generation {n}"));
                let done = self.rollback(to, &actor, &what).await;
                self.report(&actor, &what, &done);
                let _ = reply.send(done);
            }
            Command::Reconcile(what, actor, reply) => {
                let done = self.reconcile(what).await;
                if !what.dry_run {
                    self.report(&actor, "repair drift", &done);
                }
                let _ = reply.send(done);
            }
            Command::History(reply) => drop(reply.send(Ok(self.generations()))),
            Command::Diff(a, b, reply) => drop(reply.send(self.diff(a, b))),
        }
    }

    fn report<T>(&self, actor: &Actor, what: &str, done: &Result<T, Refused>) {
        match done {
            Ok(_) => tracing::info!(%actor, what, "changed"),
            Err(error) => tracing::warn!(%actor, what, %error, "change refused"),
        }
        self.audit.record(actor, what, done.as_ref().map(drop).map_err(ToString::to_string));
    }

    async fn edit(&mut self, edit: &Edit, actor: &Actor, confirm: Option<Duration>) -> Result<Done, Refused> {
        if let Some(pending) = self.history.pending() {
            return Err(Refused::Unconfirmed(pending.generation));
        }
        let status = self.net.borrow().clone();
        let on = Context {
            config: &self.config,
            state: self.history.state(),
            desired: &status.desired,
            observed: &status.observed,
        };
        let edited = edit.carry_out(&on)?;
        let unknown = self.unknown(&status, &edited.link, edited.unknown);
        let links: BTreeSet<IfName> = [edited.link].into();
        let mut done = self.change(edited.state, links, unknown, actor, &edit.describe(), confirm).await?;
        done.was_up = edited.was_up;
        Ok(done)
    }

    /// What of the unknown peers is really there: mostly nothing, and then no repair is needed.
    fn unknown(&self, status: &Status, link: &IfName, asked: Unknown) -> Unknown {
        let wanted = |key| status.desired.links.get(link).is_some_and(|l| l.peers.contains_key(key));
        let there = status.observed.links.get(link).into_iter().flat_map(|l| l.peers.keys());
        let strangers: BTreeSet<_> = match &asked {
            Unknown::Keep => return asked,
            Unknown::Only(keys) => there.filter(|k| keys.contains(*k) && !wanted(*k)).copied().collect(),
            Unknown::All => there.filter(|k| !wanted(*k)).copied().collect(),
        };
        if strangers.is_empty() { Unknown::Keep } else { Unknown::Only(strangers) }
    }

    /// Publishes a state, waits for the kernel, writes it down. Everything or nothing.
    async fn change(
        &mut self,
        state: Imperative,
        links: BTreeSet<IfName>,
        unknown: Unknown,
        actor: &Actor,
        what: &str,
        confirm: Option<Duration>,
    ) -> Result<Done, Refused> {
        let before = self.history.state().clone();
        let blank = Record {
            generation: 0,
            wall: self.clock.wall(),
            trusted: self.trusted.borrow().is_some(),
            actor: actor.to_string(),
            what: what.to_owned(),
            confirm: None,
            change: Change::default(),
        };
        let mut record = self.history.next(&state, blank);
        let lines = record.change.lines(&before);
        let changed = record.change != Change::default();
        if !changed && unknown == Unknown::Keep {
            return Ok(self.done(false, Vec::new()));
        }
        let due = confirm.map(|t| self.clock.now() + t).filter(|_| changed);
        record.confirm = due.map(|at| deadline(&self.boot_id, at));
        let state = if changed { Arc::new(state) } else { before.clone() };
        let repair = (unknown != Unknown::Keep).then(|| self.next_repair(links.clone(), unknown));
        if let Err(problem) = self.settle(&state, &links, repair).await {
            self.take_back(&before, &links).await;
            return Err(Refused::Kernel(problem));
        }
        if changed && let Err(problem) = self.write(record, state, due).await {
            self.take_back(&before, &links).await;
            return Err(Refused::Storage(problem));
        }
        Ok(self.done(true, lines))
    }

    fn done(&self, changed: bool, lines: Vec<String>) -> Done {
        let now = self.clock.now();
        let confirm_within = self.history.pending().map(|p| p.deadline.since(now).as_secs());
        Done { generation: self.history.current(), changed, was_up: false, confirm_within, lines }
    }

    fn next_repair(&mut self, links: BTreeSet<IfName>, unknown: Unknown) -> Repair {
        self.repairs += 1;
        Repair { seq: self.repairs, links, missing: false, mismatched: false, unknown }
    }

    /// Publishes the facts and waits for the pass that has dealt with them. `Err` says what the kernel did not take.
    async fn settle(
        &mut self,
        state: &Arc<Imperative>,
        links: &BTreeSet<IfName>,
        repair: Option<Repair>,
    ) -> Result<(), String> {
        let seq = repair.as_ref().map_or(0, |r| r.seq);
        if let Some(repair) = repair {
            self.repair.send_replace(Some(Arc::new(repair)));
        }
        if !self.imperative.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, state)) {
            self.imperative.send_replace(Some(state.clone()));
        }
        let settled = async {
            loop {
                {
                    let status = self.net.borrow_and_update();
                    if Arc::ptr_eq(&status.imperative, state) && status.repaired >= seq {
                        return failure(&status, links);
                    }
                }
                if self.net.changed().await.is_err() {
                    return Some("the reconcile task is gone".to_owned());
                }
            }
        };
        match tokio::time::timeout(PATIENCE, settled).await {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(problem),
            Err(_) => Err(format!("no pass over the network within {} s", PATIENCE.as_secs())),
        }
    }

    async fn take_back(&mut self, before: &Arc<Imperative>, links: &BTreeSet<IfName>) {
        if let Err(problem) = self.settle(before, links, None).await {
            tracing::error!(problem, "the previous state is not back yet; the reconcile task goes on trying");
        }
    }

    async fn write(&mut self, record: Record, state: Arc<Imperative>, due: Option<Boot>) -> Result<(), String> {
        let text = |line: &Line| serde_json::to_vec(line).map_err(|e| e.to_string());
        if self.journal.is_empty() {
            let lines: Result<Vec<_>, _> = self.history.lines().iter().map(text).collect();
            self.journal.replace(lines?).await.map_err(|e| chain(&e))?;
        }
        let line = text(&Line::Change(record.clone()))?;
        self.journal.append(&line, true).await.map_err(|e| chain(&e))?;
        self.history.commit(record, state, due);
        // Writing it all anew costs more than a line, so it is done once for several generations.
        if self.history.is_long_by(4) || (self.journal.len() > MAX_BYTES && self.history.is_long_by(1)) {
            self.history.shorten();
            let lines: Result<Vec<_>, _> = self.history.lines().iter().map(text).collect();
            if let Err(error) = self.journal.replace(lines?).await {
                tracing::warn!(error = %chain(&error), "old generations could not be dropped; trying again later");
            }
        }
        Ok(())
    }

    async fn confirm(&mut self, generation: u64) -> Result<Done, Refused> {
        if self.history.pending().is_none_or(|p| p.generation != generation) {
            return Err(Refused::NothingToConfirm(generation));
        }
        let line = serde_json::to_vec(&Line::Confirmed { generation }).map_err(|e| Refused::Storage(e.to_string()))?;
        self.journal.append(&line, true).await.map_err(|e| Refused::Storage(chain(&e)))?;
        self.history.confirm(generation);
        Ok(self.done(true, Vec::new()))
    }

    /// Goes back because nobody confirmed. What cannot be done is tried again: the node must become reachable.
    async fn revert(&mut self) {
        let Some(pending) = self.history.pending().cloned() else { return };
        let what = format!("generation {} was not confirmed: back to {}", pending.generation, pending.back_to);
        let done = self.go_back(pending.back_to, &Actor::TimeOut, &what).await;
        self.report(&Actor::TimeOut, &what, &done);
        if done.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn rollback(&mut self, to: Option<u64>, actor: &Actor, what: &str) -> Result<Done, Refused> {
        let newest = self.history.current();
        let wanted = to.or(self.history.previous()).unwrap_or(newest);
        self.go_back(wanted, actor, what).await
    }

    async fn go_back(&mut self, wanted: u64, actor: &Actor, what: &str) -> Result<Done, Refused> {
        let state = self.history.at(wanted).ok_or_else(|| Refused::NoGeneration {
            wanted,
            oldest: self.history.oldest(),
            newest: self.history.current(),
        })?;
        let links = state.links.keys().chain(self.history.state().links.keys()).cloned().collect();
        self.change(state, links, Unknown::Keep, actor, what, None).await
    }

    async fn reconcile(&mut self, what: Reconcile) -> Result<Reconciled, Refused> {
        let before = self.drift();
        if what.dry_run {
            return Ok(outcome(&before, &Report::default(), &what, &BTreeMap::new()));
        }
        self.repairs += 1;
        let repair = Repair {
            seq: self.repairs,
            links: BTreeSet::new(),
            missing: what.reconcile_missing,
            mismatched: what.reconcile_mismatched,
            unknown: if what.remove_unknown { Unknown::All } else { Unknown::Keep },
        };
        let state = self.history.state().clone();
        let problem = self.settle(&state, &BTreeSet::new(), Some(repair)).await.err();
        let said = self.net.borrow().troubles.iter().map(|t| t.detail.clone()).next().or(problem);
        let errors = said.into_iter().map(|s| (String::new(), s)).collect();
        Ok(outcome(&before, &self.drift(), &what, &errors))
    }

    fn drift(&self) -> Report {
        let status = self.net.borrow();
        report(&status.desired, &status.observed, &Names::new(), None, self.clock.wall())
    }

    fn generations(&self) -> Vec<Generation> {
        let (current, previous, now) = (self.history.current(), self.history.previous(), self.clock.now());
        let pending = self.history.pending();
        let show = |r: &Record| Generation {
            generation: r.generation,
            time: r.wall.to_string(),
            trusted: r.trusted,
            actor: r.actor.clone(),
            what: r.what.clone(),
            current: r.generation == current,
            previous: Some(r.generation) == previous,
            confirm_within: pending.filter(|p| p.generation == r.generation).map(|p| p.deadline.since(now).as_secs()),
        };
        let mut out: Vec<Generation> = self.history.records().map(show).collect();
        out.reverse();
        out
    }

    fn diff(&self, a: u64, b: u64) -> Result<Vec<String>, Refused> {
        let (oldest, newest) = (self.history.oldest(), self.history.current());
        let at = |wanted| self.history.at(wanted).ok_or(Refused::NoGeneration { wanted, oldest, newest });
        let (a, b) = (at(a)?, at(b)?);
        Ok(Change::between(&a, &b).lines(&a))
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// What is left undone on these interfaces, as one line.
fn failure(status: &Status, links: &BTreeSet<IfName>) -> Option<String> {
    if let Some(trouble) = status.troubles.iter().find(|t| t.code == "desired_invalid") {
        return Some(trouble.detail.clone());
    }
    let step = status.left.steps.iter().find(|s| links.contains(s.link()))?;
    let text = render::step(step, &status.observed);
    let error = status.history.iter().rev().find_map(|d| d.error.clone());
    Some(error.map_or(text.clone(), |e| format!("{text}: {e}")))
}

/// What was found before and is gone after was done; the rest failed.
fn outcome(before: &Report, after: &Report, what: &Reconcile, errors: &BTreeMap<String, String>) -> Reconciled {
    let mut out = Reconciled::default();
    let why = errors.values().next().cloned().unwrap_or_else(|| "the difference is still there".to_owned());
    let mut sort = |keys: Vec<String>, left: BTreeSet<String>, action: &str| -> Vec<String> {
        let (failed, done) = keys.into_iter().partition::<Vec<_>, _>(|k| left.contains(k));
        let failed = failed.into_iter().map(|peer| ReconcileError { peer, action: action.into(), error: why.clone() });
        out.errors.extend(failed);
        done
    };
    let missing = |r: &Report| r.missing_peers.iter().map(|p| p.peer_id.clone()).collect::<Vec<_>>();
    let mismatched = |r: &Report| r.mismatched_peers.iter().map(|p| p.peer_id.clone()).collect::<Vec<_>>();
    let unknown = |r: &Report| r.unknown_peers.iter().map(|p| p.public_key.to_string()).collect::<Vec<_>>();
    let (mut added, mut updated, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    if what.reconcile_missing {
        added = sort(missing(before), missing(after).into_iter().collect(), "add");
    }
    if what.reconcile_mismatched {
        updated = sort(mismatched(before), mismatched(after).into_iter().collect(), "update");
    }
    if what.remove_unknown {
        removed = sort(unknown(before), unknown(after).into_iter().collect(), "remove");
    }
    (out.added, out.updated, out.removed) = (added, updated, removed);
    out
}

/// An error with its sources, in one line.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text.push_str(": ");
        text.push_str(&s.to_string());
        source = s.source();
    }
    text
}

//! The handle for requests to the ledger of changes.
use crate::reconciler::NetStatus;
use spoke_change::audit::Actor;
use spoke_change::edit::Edit;
use spoke_change::request::{AppliedChange, ChangeRefused, Generation, RepairRequest, RepairResult};
use spoke_net::plan::Repair;
use spoke_sys::clock::Clock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait.
pub const QUEUE: usize = 64;
/// Observed state younger than this needs no new pass for a polling panel.
pub const FRESH: Duration = Duration::from_secs(1);
/// Timeout of a requested pass; the state observed before is used then.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a result goes.
pub type Reply<T> = oneshot::Sender<Result<T, ChangeRefused>>;

/// A request to the ledger.
#[derive(Debug)]
#[expect(missing_docs, reason = "see the methods of `Changes`")]
pub enum Command {
    Edit(Box<Edit>, Actor, Option<Duration>, Reply<AppliedChange>),
    Confirm(Option<u64>, Actor, Reply<AppliedChange>),
    Rollback(Option<u64>, Actor, Reply<AppliedChange>),
    Reconcile(RepairRequest, Actor, Reply<RepairResult>),
    History(Reply<Vec<Generation>>),
    Diff(u64, u64, Reply<Vec<String>>),
}

/// Sends requests to the ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Changes {
    commands: mpsc::Sender<Command>,
    wake: watch::Sender<Option<Arc<Repair>>>,
}

impl Changes {
    /// A handle that sends to `commands`; `wake` starts a reconcile pass.
    pub const fn new(commands: mpsc::Sender<Command>, wake: watch::Sender<Option<Arc<Repair>>>) -> Self {
        Self { commands, wake }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ChangeRefused> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| ChangeRefused::Busy)?;
        answer.await.map_err(|_| ChangeRefused::Busy)?
    }

    /// Observes the kernel again unless that was done within `fresh`; see [`refresh`].
    pub async fn refresh(&self, net: &watch::Receiver<NetStatus>, clock: &impl Clock, fresh: Duration) {
        refresh(&self.wake, net.clone(), clock, fresh).await;
    }

    /// Applies an edit; with `confirm` it reverts after that time unless confirmed.
    pub async fn edit(
        &self,
        edit: Edit,
        actor: Actor,
        confirm: Option<Duration>,
    ) -> Result<AppliedChange, ChangeRefused> {
        self.ask(|reply| Command::Edit(Box::new(edit), actor, confirm, reply)).await
    }

    /// Confirms a generation; `None`: the pending one.
    pub async fn confirm(&self, generation: Option<u64>, actor: Actor) -> Result<AppliedChange, ChangeRefused> {
        self.ask(|reply| Command::Confirm(generation, actor, reply)).await
    }

    /// Rolls back to a generation; `None`: the previous one. Creates a new generation with the old state.
    pub async fn rollback(&self, to: Option<u64>, actor: Actor) -> Result<AppliedChange, ChangeRefused> {
        self.ask(|reply| Command::Rollback(to, actor, reply)).await
    }

    /// Repairs drift once.
    pub async fn reconcile(&self, what: RepairRequest, actor: Actor) -> Result<RepairResult, ChangeRefused> {
        self.ask(|reply| Command::Reconcile(what, actor, reply)).await
    }

    /// The generations kept, newest first.
    pub async fn history(&self) -> Result<Vec<Generation>, ChangeRefused> {
        self.ask(Command::History).await
    }

    /// The differences between two generations, one line each.
    pub async fn diff(&self, a: u64, b: u64) -> Result<Vec<String>, ChangeRefused> {
        self.ask(|reply| Command::Diff(a, b, reply)).await
    }
}

/// Observes the kernel again unless that was done within `fresh`; concurrent requests share one pass. Peers set by another
/// program cause no event and are found this way only.
pub async fn refresh(
    wake: &watch::Sender<Option<Arc<Repair>>>,
    mut net: watch::Receiver<NetStatus>,
    clock: &impl Clock,
    fresh: Duration,
) {
    let (passes, at) = {
        let status = net.borrow_and_update();
        (status.passes, status.observed.at)
    };
    if passes > 0 && clock.now().since(at) < fresh {
        return;
    }
    wake.send_modify(|_| {});
    let newer = async { while net.borrow_and_update().passes == passes && net.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(REFRESH_TIMEOUT, newer).await;
}

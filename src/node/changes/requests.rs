//! The handle that changes are asked for with, and the questions it carries to the ledger.
use crate::reconciler::NetStatus;
use spoke_change::audit::Actor;
use spoke_change::edit::Edit;
use spoke_change::request::{AppliedChange, ChangeRefused, Generation, RepairRequest, RepairResult};
use spoke_net::plan::Repair;
use spoke_sys::clock::Clock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Changes that may wait for their turn.
pub const QUEUE: usize = 64;
/// A look at the kernel that is younger is good enough for a panel that polls.
pub const FRESH: Duration = Duration::from_secs(1);
/// How long a look at the kernel may take before the one before is shown.
const LOOK: Duration = Duration::from_secs(2);

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, ChangeRefused>>;

/// A question to the ledger.
#[derive(Debug)]
#[expect(missing_docs, reason = "as the methods of `Changes` say")]
pub enum Command {
    Edit(Box<Edit>, Actor, Option<Duration>, Reply<AppliedChange>),
    Confirm(Option<u64>, Actor, Reply<AppliedChange>),
    Rollback(Option<u64>, Actor, Reply<AppliedChange>),
    Reconcile(RepairRequest, Actor, Reply<RepairResult>),
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
    /// A handle that sends to `commands`; `wake` has the reconcile task look at the kernel.
    pub const fn new(commands: mpsc::Sender<Command>, wake: watch::Sender<Option<Arc<Repair>>>) -> Self {
        Self { commands, wake }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ChangeRefused> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| ChangeRefused::Busy)?;
        answer.await.map_err(|_| ChangeRefused::Busy)?
    }

    /// Has the kernel looked at again unless that was done within `fresh`; see [`look`].
    pub async fn look(&self, net: &watch::Receiver<NetStatus>, clock: &impl Clock, fresh: Duration) {
        look(&self.wake, net.clone(), clock, fresh).await;
    }

    /// Makes a change; with `confirm` it reverts after that time unless confirmed.
    pub async fn edit(
        &self,
        edit: Edit,
        actor: Actor,
        confirm: Option<Duration>,
    ) -> Result<AppliedChange, ChangeRefused> {
        self.ask(|reply| Command::Edit(Box::new(edit), actor, confirm, reply)).await
    }

    /// Confirms a generation, or the one that waits for it.
    pub async fn confirm(&self, generation: Option<u64>, actor: Actor) -> Result<AppliedChange, ChangeRefused> {
        self.ask(|reply| Command::Confirm(generation, actor, reply)).await
    }

    /// Goes back to a generation, or to the previous one. It becomes a new generation with the old content.
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

    /// What differs between two generations, as lines for people.
    pub async fn diff(&self, a: u64, b: u64) -> Result<Vec<String>, ChangeRefused> {
        self.ask(|reply| Command::Diff(a, b, reply)).await
    }
}

/// Has the kernel looked at again unless that was done within `fresh`; many who ask at once share one look. What the kernel
/// does not announce (peers set by another program) is seen by a look alone.
pub async fn look(
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
    let _ = tokio::time::timeout(LOOK, newer).await;
}

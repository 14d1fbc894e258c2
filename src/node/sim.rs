//! A node for tests: reconciler, ledger of changes and audit trail over the fake kernel, on a real state directory.
use crate::audit::Trail;
use crate::changes::Ledger;
use crate::changes::requests::Changes;
use crate::reconciler::{NetStatus, Reconciler, Sources};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::key::SecretKey;
use spoke_net::derive::Keys;
use spoke_sys::notify::Notify;
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::kernel::{FakeKernel, Handle};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A service manager that ignores notifications.
#[derive(Debug)]
pub(crate) struct NoNotify;

impl Notify for NoNotify {
    fn ready(&mut self) {}
    fn alive(&mut self) {}
    fn status(&mut self, _: &str) {}
    fn stopping(&mut self) {}
    fn watchdog(&self) -> Option<Duration> {
        None
    }
}

/// The node.
pub(crate) struct Node {
    /// Requests of changes.
    pub(crate) changes: Changes,
    /// Changes by other processes.
    pub(crate) kernel: Handle,
    /// Status of the reconciler.
    pub(crate) net: watch::Receiver<NetStatus>,
    /// The configuration in force.
    pub(crate) effective: watch::Sender<Option<Arc<Effective>>>,
    tasks: JoinSet<()>,
}

impl Node {
    /// Starts it and waits for its first pass. `wanted` is the configuration in force.
    pub(crate) async fn start(
        dir: &Path,
        config: Arc<Config>,
        wanted: Arc<Effective>,
        kernel: FakeKernel,
        clock: SimClock,
    ) -> Self {
        let handle = kernel.handle();
        let private = [("wg0".parse().unwrap(), SecretKey::clamped([9; 32]))].into();
        let (keep, keys) = watch::channel(Some(Arc::new(Keys { private, ..Keys::default() })));
        let (status, net) = watch::channel(NetStatus::default());
        let (effective, in_force) = watch::channel(Some(wanted));
        let mut tasks = JoinSet::new();
        let (trail, audit) = Trail::open(dir, clock.clone(), watch::channel(None).1);
        tasks.spawn(async move { drop(trail.run().await) });
        let (ledger, changes, (api_state, repair)) =
            Ledger::open(dir, config, clock.clone(), net.clone(), watch::channel(None).1, audit);
        tasks.spawn(async move { drop(ledger.run().await) });
        let sources = Sources {
            keys,
            uplink: None,
            names: None,
            admitted: None,
            effective: in_force,
            api_state: Some(api_state),
            repair: Some(repair),
        };
        let (events, _) = watch::channel(0);
        let reconciler = Reconciler { kernel, clock, notify: NoNotify, sources, status, events };
        tasks.spawn(async move {
            let _keep = keep;
            drop(reconciler.run().await);
        });
        net.clone().wait_for(|s| s.passes > 0).await.unwrap();
        Self { changes, kernel: handle, net, effective, tasks }
    }

    /// Aborts all tasks like a crash; the kernel stays.
    pub(crate) async fn kill(&mut self) {
        self.tasks.shutdown().await;
        // A blocking write may still be running and would write into the next node's file; simulated time advances when it ends.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

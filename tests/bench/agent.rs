//! The agent API on a kernel in memory: the cost of our code without WireGuard's system calls. Run by
//! `scripts/bench-agent`.
#![allow(clippy::expect_used, reason = "a measurement fails by panicking")]

use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::key::SecretKey;
use spoke_net::derive::Keys;
use spoke_node::agent::{Deps, run};
use spoke_node::audit::Trail;
use spoke_node::changes::Ledger;
use spoke_node::reconciler::{NetStatus, Reconciler, Sources};
use spoke_node::supervise::Supervisor;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::notify::Systemd;
use spoke_sys::sim::kernel::FakeKernel;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

fn main() {
    let config = std::env::args().nth(1).expect("the configuration's path");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(Path::new(&config)));
}

/// Wired as in `spoke run`, without the uplink.
async fn serve(path: &Path) {
    let clock = SystemClock;
    let config = Arc::new(Config::load(Some(path), []).expect("a configuration"));
    let dir = config.node.state_dir.clone();
    std::fs::create_dir_all(&dir).expect("a directory");
    let private = config.interfaces.iter().map(|i| (i.name.clone(), SecretKey::clamped([9; 32]))).collect();
    let (_keys, keys) = watch::channel(Some(Arc::new(Keys { private, ..Keys::default() })));
    let (status, net) = watch::channel(NetStatus::default());
    let (_trusted, trusted) = watch::channel(None);
    let (trail, audit) = Trail::open(&dir, clock, trusted.clone());
    let (ledger, changes, (api_state, repair)) = Ledger::open(&dir, config.clone(), clock, net.clone(), trusted, audit);
    let (_stop, stop) = watch::channel(false);
    let (events, _wake) = watch::channel(0);
    let sources = Sources {
        keys,
        uplink: None,
        names: None,
        admitted: None,
        effective: watch::channel(Some(Arc::new(Effective::of(config.clone())))).1,
        api_state: Some(api_state),
        repair: Some(repair),
    };
    let deps =
        Deps { clock, started: clock.now(), config: config.clone(), net, changes, responses: Arc::default(), stop };
    let reconciler = Reconciler { kernel: FakeKernel::new(), clock, notify: Systemd, sources, status, events };
    let mut tasks = Supervisor::default();
    tasks.vital("audit", trail.run());
    tasks.vital("agent", run(deps));
    let start = |tasks: &mut Supervisor| {
        spoke_sys::priority::lower_thread_priority();
        tasks.vital("changes", ledger.run());
        tasks.vital("net", reconciler.run());
    };
    tasks.spawn_thread("reconciling", spoke_command::runtime, start).expect("a thread");
    tasks.run(std::future::pending()).await.expect("runs until killed");
}

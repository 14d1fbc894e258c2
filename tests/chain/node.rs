//! The grants task of a node on its own thread, with its candidates and its report.
#![allow(dead_code, reason = "shared by several test programs, of which none uses all of it")]

use spoke_chain::ledger::Directories;
use spoke_chain::watcher::{Deps, run};
use spoke_config::Config;
use spoke_config::grants::Grants;
use spoke_grants::policy::Pair;
use spoke_grants::report::Report;
use spoke_model::key::PublicKey;
use spoke_net::derive::Admitted;
use spoke_sys::clock::SystemClock;
use spoke_sys::rpc::Http;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// Longest wait for any condition: many times what an idle machine takes, and longer than an endpoint is left alone after a
/// claim that its quorum refutes. anvil makes one when it mines a block while it executes a call in the one before.
const LIMIT: Duration = Duration::from_secs(180);

/// A `[grants]` section.
pub(crate) fn config(contract: alloy_primitives::Address, endpoints: &[String], more: &str) -> Arc<Grants> {
    let endpoints = endpoints.iter().map(|e| format!("\"{e}\"")).collect::<Vec<_>>().join(",");
    let mut text = format!(
        "[grants]\ncontract = \"{contract}\"\nchain_id = {}\nendpoints = [{endpoints}]\n",
        super::anvil::CHAIN_ID
    );
    for default in ["poll = \"200ms\"", "timeout = \"5s\"", "fresh = \"1s\""] {
        if !more.lines().any(|l| l.split(" =").next() == default.split(" =").next()) {
            text.push_str(default);
            text.push('\n');
        }
    }
    text.push_str(more);
    Arc::new(Config::from_text(Some(("test", &text)), []).expect("a configuration").grants.expect("a section"))
}

/// A pair of node and key by number.
pub(crate) fn pair(n: u16) -> Pair {
    let mut key = [0xa5; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    (format!("node-{n}").parse().expect("a node id"), PublicKey(key))
}

/// Whether a pair has ever been admitted.
pub(crate) struct Watch(Arc<AtomicBool>);

impl Watch {
    /// Whether the pair has been admitted.
    pub(crate) fn seen(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A running grants task.
pub(crate) struct Node {
    /// Pairs that request access.
    pub(crate) candidates: watch::Sender<Arc<BTreeSet<Pair>>>,
    admitted: watch::Receiver<Option<Arc<Admitted>>>,
    report: watch::Receiver<Option<Arc<Report>>>,
    refresh: Arc<Notify>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    waiter: tokio::runtime::Runtime,
}

impl Node {
    /// Starts the task with the first `n` pairs as candidates; grants are kept in `dir`'s `state` and `run`.
    pub(crate) fn start(config: Arc<Grants>, dir: Option<&Path>, n: u16) -> Self {
        for name in ["state", "run"] {
            if let Some(dir) = dir {
                std::fs::create_dir_all(dir.join(name)).expect("a directory");
            }
        }
        let (candidates, wanted) = watch::channel(Arc::new((0..n).map(pair).collect()));
        let (admitted, admitted_seen) = watch::channel(None);
        let (report, report_seen) = watch::channel(None);
        let refresh = Arc::new(Notify::new());
        let (stop, stopped) = oneshot::channel::<()>();
        let deps = Deps {
            clock: SystemClock,
            config: config.clone(),
            directories: Directories { state: dir.map(|d| d.join("state")), runtime: dir.map(|d| d.join("run")) },
            candidates: wanted,
            admitted: Arc::new(admitted),
            report: Arc::new(report),
            refresh: refresh.clone(),
            hold: None,
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let thread = std::thread::spawn(move || {
            let runtime = runtime();
            runtime.block_on(async {
                tokio::select! {
                    _ = run(deps, || Http::new(&config)) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        let mut node = Self {
            candidates,
            admitted: admitted_seen,
            report: report_seen,
            refresh,
            stop: Some(stop),
            thread: Some(thread),
            waiter: runtime(),
        };
        node.until("running", |_| true);
        node
    }

    /// Whether pair `n` is admitted.
    pub(crate) fn admits(&self, n: u16) -> bool {
        self.admitted.borrow().as_ref().is_some_and(|a| a.0.contains(&pair(n)))
    }

    /// Records from now on whether pair `n` is ever admitted, however briefly.
    pub(crate) fn watch_for(&self, n: u16) -> Watch {
        let (mut admitted, seen) = (self.admitted.clone(), Arc::new(AtomicBool::new(false)));
        let note = seen.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                loop {
                    if admitted.borrow_and_update().as_ref().is_some_and(|a| a.0.contains(&pair(n))) {
                        note.store(true, Ordering::Relaxed);
                    }
                    if admitted.changed().await.is_err() {
                        return;
                    }
                }
            });
        });
        Watch(seen)
    }

    /// The current report.
    pub(crate) fn report(&self) -> Arc<Report> {
        self.report.borrow().clone().expect("a report")
    }

    /// The reason code of pair `n`.
    pub(crate) fn code(&self, n: u16) -> String {
        let report = self.report();
        report.rows.iter().find(|r| (r.node.clone(), r.key) == pair(n)).map_or("?".into(), |r| r.code.to_string())
    }

    /// Requests a new verification of all pairs.
    pub(crate) fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Waits until pair `n` is admitted, or is not if `yes` is false; returns the time it took.
    pub(crate) fn until_admits(&mut self, n: u16, yes: bool) -> Duration {
        let started = Instant::now();
        let wait = self.admitted.wait_for(|a| a.as_ref().is_some_and(|a| a.0.contains(&pair(n))) == yes);
        let found = self.waiter.block_on(async { tokio::time::timeout(LIMIT, wait).await.is_ok() });
        assert!(found, "pair {n} should {}be admitted; {:#?}", if yes { "" } else { "not " }, self.report());
        started.elapsed()
    }

    /// Waits until the report satisfies `matches`.
    pub(crate) fn until(&mut self, what: &str, matches: impl Fn(&Report) -> bool) -> Arc<Report> {
        let wait = self.report.wait_for(|r| r.as_ref().is_some_and(|r| matches(r)));
        let found = self.waiter.block_on(async {
            match tokio::time::timeout(LIMIT, wait).await {
                Ok(Ok(r)) => r.clone(),
                Ok(Err(_)) | Err(_) => None,
            }
        });
        found.unwrap_or_else(|| panic!("timed out waiting for: {what}; {:#?}", self.report.borrow()))
    }

    /// Waits for `more` further polls of the chain.
    pub(crate) fn looks(&mut self, more: u64) -> Arc<Report> {
        let now = self.report().counts.polls;
        self.until("further polls", |r| r.counts.polls >= now + more)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! Runs the grants task if an interface has `access = "nft"`, restarts it when the control plane names another
//! contract, and publishes its report for the local endpoints.
use super::control;
use crate::reconciler::Fact;
use crate::socket::GrantsView;
use crate::supervise::Supervisor;
use spoke_api::health::summary::{Access, Component, ComponentStatus, Components};
use spoke_chain::ledger::Directories;
use spoke_chain::watcher::{Deps, run};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_config::grants::Grants;
use spoke_config::interface::Access as Kind;
use spoke_grants::ladder::Phase;
use spoke_grants::policy::Pair;
use spoke_grants::report::Report;
use spoke_model::time::Boot;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::random::seed;
use spoke_sys::rpc::Http;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};

/// Access to the running grants task.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// The admitted peers.
    pub(super) admitted: Fact<spoke_net::derive::Admitted>,
    report: watch::Receiver<Option<Arc<Report>>>,
    refresh: Arc<Notify>,
}

impl Running {
    /// For the control socket.
    pub(super) fn view(&self) -> GrantsView {
        GrantsView { report: self.report.clone(), refresh: self.refresh.clone() }
    }
}

/// Starts the tasks. `None`: no interface has `access = "nft"`.
pub(super) fn start(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    effective: &Fact<Effective>,
    components: &watch::Sender<Components>,
    clock: SystemClock,
) -> Option<Running> {
    if !config.interfaces.iter().any(|i| i.access == Kind::Nft) {
        return None;
    }
    let (candidates_tx, candidates_rx) = watch::channel(Arc::new(candidates(&Effective::of(config.clone()))));
    let (own, in_force, candidates_tx) = (config.clone(), effective.clone(), Arc::new(candidates_tx));
    tasks.restarting("candidates", seed, move || {
        publish_candidates(own.clone(), in_force.clone(), candidates_tx.clone())
    });
    let (admitted_tx, admitted_rx) = watch::channel(None);
    let (report_tx, report_rx) = watch::channel(None);
    let (admitted_tx, report_tx, refresh) = (Arc::new(admitted_tx), Arc::new(report_tx), Arc::new(Notify::new()));
    let (admitted, refresh_requested) = (admitted_tx.clone(), refresh.clone());
    let directories =
        Directories { state: Some(config.node.state_dir.clone()), runtime: Some(config.node.runtime_dir.clone()) };
    let deps = Arc::new(move |grants: Arc<Grants>, hold| Deps {
        clock,
        config: grants,
        directories: directories.clone(),
        candidates: candidates_rx.clone(),
        admitted: admitted.clone(),
        report: report_tx.clone(),
        refresh: refresh_requested.clone(),
        hold,
    });
    let (effective, previous) = (effective.clone(), Arc::new(Mutex::new(None)));
    tasks.restarting("grants", seed, move || {
        let (deps, previous, admitted_tx) = (deps.clone(), previous.clone(), admitted_tx.clone());
        control::following(effective.clone(), contract_of, "access contract", move |grants| {
            let hold = grants.as_ref().and_then(|g| hold(&previous, g, clock.now()));
            let (deps, admitted_tx) = (grants.map(|grants| deps(grants, hold)), admitted_tx.clone());
            async move {
                if let Some(deps) = deps {
                    let grants = deps.config.clone();
                    return run(deps, move || Http::new(&grants)).await;
                }
                // Not enrolled yet: no contract is known, so no peer is admitted.
                admitted_tx.send_if_modified(|known| {
                    let first = known.is_none();
                    known.get_or_insert_default();
                    first
                });
                std::future::pending().await
            }
        })
    });
    let (report, components) = (report_rx.clone(), components.clone());
    tasks.restarting("access", seed, move || publish_report(report.clone(), components.clone(), clock));
    Some(Running { admitted: admitted_rx, report: report_rx, refresh })
}

/// The contract that decides; the inner `None`: no contract is known yet.
fn contract_of(config: &Effective) -> Option<Option<Arc<Grants>>> {
    Some(config.grants().cloned().map(Arc::new))
}

/// The previous contract, and until when its admitted peers are held.
type Previous = Mutex<Option<(Arc<Grants>, Option<Boot>)>>;

/// Until when admitted peers stay admitted while the state of `next` is unknown: without it a change of the contract
/// would begin by removing every peer. At most as long as grants of the previous contract last without a quorum.
fn hold(previous: &Previous, next: &Arc<Grants>, now: Boot) -> Option<Boot> {
    let mut previous = previous.lock().unwrap_or_else(PoisonError::into_inner);
    let hold = match previous.as_ref() {
        None => None,
        Some((last, hold)) if (last.contract, last.chain_id) == (next.contract, next.chain_id) => *hold,
        Some((last, _)) => Some(now + last.fresh + last.stale + last.grace),
    };
    *previous = Some((next.clone(), hold));
    hold
}

/// Publishes the peers that need a grant, again after each change by the control plane. `derive` filters the same
/// configuration.
async fn publish_candidates(
    own: Arc<Config>,
    mut effective: Fact<Effective>,
    published: Arc<watch::Sender<Arc<BTreeSet<Pair>>>>,
) -> Result<(), Infallible> {
    loop {
        let in_force = effective.borrow_and_update().clone();
        let wanted = Arc::new(candidates(&in_force.unwrap_or_else(|| Arc::new(Effective::of(own.clone())))));
        published.send_if_modified(|current| {
            let changed = *current != wanted;
            if changed {
                *current = wanted;
            }
            changed
        });
        if effective.changed().await.is_err() {
            // Keeps the sender: the grants task goes on with the last candidates.
            std::future::pending().await
        }
    }
}

/// The peers that need a grant.
pub(crate) fn candidates(config: &Effective) -> BTreeSet<Pair> {
    let nft = config.interfaces().filter(|i| i.own().access == Kind::Nft);
    nft.flat_map(|i| i.peers()).filter_map(|p| Some((p.node_id.clone()?, p.public_key))).collect()
}

async fn publish_report(
    mut report: watch::Receiver<Option<Arc<Report>>>,
    components: watch::Sender<Components>,
    clock: SystemClock,
) -> Result<(), Infallible> {
    let started = clock.now();
    loop {
        let current = report.borrow_and_update().clone();
        if let Some(r) = current {
            components.send_modify(|v| {
                v.access = Some(summary(&r));
                v.status.insert(Component::Contract, contract(&r, started));
                v.status.insert(Component::AccessControl, own(&r, started));
                v.grants = Some(r);
            });
        }
        if report.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn summary(r: &Report) -> Access {
    let c = &r.counts;
    let granted = c.by_reason().filter(|(reason, _)| reason.grants()).map(|(_, n)| n).sum();
    let denied = c.by_reason().filter(|(reason, _)| !reason.grants()).map(|(_, n)| n).sum();
    Access {
        total_requests: c.cache_hits + c.cache_misses,
        granted,
        denied,
        errors: c.verification_errors,
        cache_size: c.cache_size,
        cache_max: c.cache_max,
        cache_hits: c.cache_hits,
        cache_misses: c.cache_misses,
        last_sync: r.last_quorum_wall,
        syncing: r.polling,
        sync_errors: c.failed_polls,
        last_error: r.unreachable.as_ref().map(|a| a.reason.clone()),
    }
}

fn contract(r: &Report, started: Boot) -> ComponentStatus {
    match &r.unreachable {
        None => ComponentStatus { healthy: true, since: r.last_quorum.unwrap_or(started), detail: None },
        Some(outage) => {
            let means = match r.phase {
                Phase::Fresh | Phase::Stale => "every grant still holds",
                Phase::Grace => "peers stay, no new ones are admitted",
                Phase::Expired => "no peer is admitted until there is one",
            };
            let (what, remedy) = if outage.contract {
                ("contract unreadable", "check grants.contract and grants.chain_id with `spoke doctor`")
            } else {
                ("no quorum of chain endpoints", "see `spoke doctor` and [grants] endpoints")
            };
            let detail = format!("VERIFICATION_ERROR: {what} ({}); {means}: {remedy}", outage.reason);
            ComponentStatus { healthy: false, since: outage.since, detail: Some(detail) }
        }
    }
}

fn own(r: &Report, started: Boot) -> ComponentStatus {
    match &r.condition {
        None => ComponentStatus { healthy: true, since: started, detail: None },
        Some(c) => ComponentStatus { healthy: false, since: c.since, detail: Some(c.detail.clone()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(peers: &[(&str, u8)]) -> Config {
        let mut text = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://x\"]\n[[interface]]\nname = \"wg0\"\naccess = \"nft\"\n".to_owned();
        for (node, n) in peers {
            let key = spoke_model::key::PublicKey([*n; 32]);
            text += &format!(
                "[[interface.peer]]\nnode_id = \"{node}\"\npublic_key = \"{key}\"\nallowed_ips = [\"10.0.0.{n}/32\"]\n"
            );
        }
        text += "[[interface]]\nname = \"wg1\"\n[[interface.peer]]\npublic_key = \"b3BlbiBhY2Nlc3MgbmVlZHMgbm8gdG9rZW4gYXQgYWw=\"\nallowed_ips = [\"10.1.0.1/32\"]\n";
        Config::from_text(Some(("x", &text)), []).unwrap()
    }

    #[test]
    fn contract_change_holds_peers_for_a_limited_time() {
        let grants = |chain_id| Arc::new(Grants { chain_id, ..config(&[]).grants.unwrap() });
        let (previous, now) = (Previous::default(), Boot::from_secs(1000));
        let lasts = {
            let g = grants(1);
            g.fresh + g.stale + g.grace
        };
        assert_eq!(hold(&previous, &grants(1), now), None, "at the start only stored decisions apply");
        assert_eq!(hold(&previous, &grants(1), now), None, "the task was restarted");
        let until = Some(now + lasts);
        assert_eq!(hold(&previous, &grants(2), now), until);
        assert_eq!(hold(&previous, &grants(2), now + lasts), until, "a restart does not extend it");
    }

    #[tokio::test]
    async fn peers_from_the_control_plane_are_candidates() {
        let base = Arc::new(config(&[("here", 1)]));
        let (candidates_tx, mut published) = watch::channel(Arc::new(BTreeSet::new()));
        let (control, completed) = watch::channel(None);
        let next = |peers: &[_]| Some(Arc::new(Effective::of(Arc::new(config(peers)))));
        let names = |c: &BTreeSet<Pair>| c.iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>();
        let publishing = tokio::spawn(publish_candidates(base, completed, Arc::new(candidates_tx)));
        let first = names(&published.wait_for(|c| !c.is_empty()).await.unwrap());
        assert_eq!(first, ["here"], "no peer of an open interface");
        control.send_replace(next(&[("here", 1), ("there", 2)]));
        assert_eq!(names(&published.wait_for(|c| c.len() == 2).await.unwrap()), ["here", "there"]);
        control.send_replace(next(&[("there", 2)]));
        assert_eq!(names(&published.wait_for(|c| c.len() == 1).await.unwrap()), ["there"]);
        drop(control);
        tokio::task::yield_now().await;
        assert!(published.has_changed().is_ok(), "the last candidates stay when the control task ends");
        publishing.abort();
    }
}

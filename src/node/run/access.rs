//! Starts the grants task where an interface asks for it, begins it anew when the control plane names another contract, and
//! tells the local endpoints what it says.
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

/// The grants task, seen from outside.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// Who is admitted.
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

/// Starts it. `None`: no interface asks for grants.
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
    let (candidates, wanting) = watch::channel(Arc::new(candidates(&Effective::of(config.clone()))));
    let (own, in_force, candidates) = (config.clone(), effective.clone(), Arc::new(candidates));
    tasks.restarting("candidates", seed, move || follow(own.clone(), in_force.clone(), candidates.clone()));
    let (admitted, admissions) = watch::channel(None);
    let (report, reports) = watch::channel(None);
    let (admitted, report, refresh) = (Arc::new(admitted), Arc::new(report), Arc::new(Notify::new()));
    let (nobody, rung) = (admitted.clone(), refresh.clone());
    let directories =
        Directories { state: Some(config.node.state_dir.clone()), runtime: Some(config.node.runtime_dir.clone()) };
    let deps = Arc::new(move |grants: Arc<Grants>, hold| Deps {
        clock,
        config: grants,
        directories: directories.clone(),
        candidates: wanting.clone(),
        admitted: admitted.clone(),
        report: report.clone(),
        refresh: rung.clone(),
        hold,
    });
    let (effective, before) = (effective.clone(), Arc::new(Mutex::new(None)));
    tasks.restarting("grants", seed, move || {
        let (deps, before, nobody) = (deps.clone(), before.clone(), nobody.clone());
        control::following(effective.clone(), contract_of, "access contract", move |grants| {
            let hold = grants.as_ref().and_then(|g| hold(&before, g, clock.now()));
            let (deps, nobody) = (grants.map(|grants| deps(grants, hold)), nobody.clone());
            async move {
                if let Some(deps) = deps {
                    let grants = deps.config.clone();
                    return run(deps, move || Http::new(&grants.endpoints, grants.timeout)).await;
                }
                // Not enrolled yet: nobody has named a contract.
                nobody.send_if_modified(|known| {
                    let first = known.is_none();
                    known.get_or_insert_default();
                    first
                });
                std::future::pending().await
            }
        })
    });
    let (view, components) = (reports.clone(), components.clone());
    tasks.restarting("access", seed, move || tell(view.clone(), components.clone(), clock));
    Some(Running { admitted: admissions, report: reports, refresh })
}

/// Which contract decides; `None` within: none is named yet.
fn contract_of(config: &Effective) -> Option<Option<Arc<Grants>>> {
    Some(config.grants().cloned().map(Arc::new))
}

/// The contract followed last, and until when its word is held.
type Before = Mutex<Option<(Arc<Grants>, Option<Boot>)>>;

/// Until when whoever is admitted stays so while `next` has not been heard: another contract than the one before would else
/// begin by shutting everybody out. No longer than the grants of the one before would have lasted without a word.
fn hold(before: &Before, next: &Arc<Grants>, now: Boot) -> Option<Boot> {
    let mut before = before.lock().unwrap_or_else(PoisonError::into_inner);
    let hold = match before.as_ref() {
        None => None,
        Some((last, hold)) if (last.contract, last.chain_id) == (next.contract, next.chain_id) => *hold,
        Some((last, _)) => Some(now + last.fresh + last.stale + last.grace),
    };
    *before = Some((next.clone(), hold));
    hold
}

/// Tells the grants task who wants to be a peer, and again whenever the control plane names others. `derive` filters the
/// same configuration.
async fn follow(
    own: Arc<Config>,
    mut effective: Fact<Effective>,
    told: Arc<watch::Sender<Arc<BTreeSet<Pair>>>>,
) -> Result<(), Infallible> {
    loop {
        let in_force = effective.borrow_and_update().clone();
        let wanted = Arc::new(candidates(&in_force.unwrap_or_else(|| Arc::new(Effective::of(own.clone())))));
        told.send_if_modified(|before| {
            let new = *before != wanted;
            if new {
                *before = wanted;
            }
            new
        });
        if effective.changed().await.is_err() {
            // The last word stays, and the sender with it, so that the grants task is never without.
            std::future::pending().await
        }
    }
}

/// The peers that need a grant.
pub(crate) fn candidates(config: &Effective) -> BTreeSet<Pair> {
    let nft = config.interfaces().filter(|i| i.own().access == Kind::Nft);
    nft.flat_map(|i| i.peers()).filter_map(|p| Some((p.node_id.clone()?, p.public_key))).collect()
}

async fn tell(
    mut report: watch::Receiver<Option<Arc<Report>>>,
    components: watch::Sender<Components>,
    clock: SystemClock,
) -> Result<(), Infallible> {
    let started = clock.now();
    loop {
        let seen = report.borrow_and_update().clone();
        if let Some(r) = seen {
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
        Some(away) => {
            let means = match r.phase {
                Phase::Fresh | Phase::Stale => "every grant still holds",
                Phase::Grace => "peers stay, no new ones are admitted",
                Phase::Expired => "no peer is admitted until there is one",
            };
            let detail = format!(
                "VERIFICATION_ERROR: no quorum of chain endpoints ({}); {means}: see `spoke doctor` and [grants] endpoints",
                away.reason
            );
            ComponentStatus { healthy: false, since: away.since, detail: Some(detail) }
        }
    }
}

fn own(r: &Report, started: Boot) -> ComponentStatus {
    match &r.condition {
        None => ComponentStatus { healthy: true, since: started, detail: None },
        Some(t) => ComponentStatus { healthy: false, since: t.since, detail: Some(t.detail.clone()) },
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
    fn another_contract_is_heard_before_it_shuts_anybody_out_and_not_for_ever() {
        let grants = |chain_id| Arc::new(Grants { chain_id, ..config(&[]).grants.unwrap() });
        let (before, now) = (Before::default(), Boot::from_secs(1000));
        let lasts = {
            let g = grants(1);
            g.fresh + g.stale + g.grace
        };
        assert_eq!(hold(&before, &grants(1), now), None, "at the start there is only what the disk remembers");
        assert_eq!(hold(&before, &grants(1), now), None, "the task is begun anew");
        let until = Some(now + lasts);
        assert_eq!(hold(&before, &grants(2), now), until);
        assert_eq!(hold(&before, &grants(2), now + lasts), until, "begun anew, it has no more time than before");
    }

    #[tokio::test]
    async fn whom_the_control_plane_names_is_a_candidate_too() {
        let base = Arc::new(config(&[("here", 1)]));
        let (candidates_out, mut told) = watch::channel(Arc::new(BTreeSet::new()));
        let (control, completed) = watch::channel(None);
        let next = |peers: &[_]| Some(Arc::new(Effective::of(Arc::new(config(peers)))));
        let names = |c: &BTreeSet<Pair>| c.iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>();
        let following = tokio::spawn(follow(base, completed, Arc::new(candidates_out)));
        assert_eq!(names(&told.wait_for(|c| !c.is_empty()).await.unwrap()), ["here"], "nobody of an open interface");
        control.send_replace(next(&[("here", 1), ("there", 2)]));
        assert_eq!(names(&told.wait_for(|c| c.len() == 2).await.unwrap()), ["here", "there"]);
        control.send_replace(next(&[("there", 2)]));
        assert_eq!(names(&told.wait_for(|c| c.len() == 1).await.unwrap()), ["there"]);
        drop(control);
        tokio::task::yield_now().await;
        assert!(told.has_changed().is_ok(), "the last word of a control plane that is gone stays");
        following.abort();
    }
}

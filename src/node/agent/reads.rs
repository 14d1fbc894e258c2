//! Calls that read: peers, the interface, drift.
use super::{Agent, MANY_PEERS, names, run_sized};
use crate::reconciler::NetStatus;
use spoke_api::agent::answer;
use spoke_api::http::Response;
use spoke_config::effective::Effective;
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_net::drift::report;
use spoke_net::state::Observed;
use spoke_sys::clock::Clock;
use spoke_sys::kernel::{Kernel as _, Netlink};
use std::sync::Arc;

impl<C: Clock> Agent<C> {
    pub(super) async fn dump(&self, link: IfName) -> Result<Response, Response> {
        self.refresh().await;
        let (mut observed, found, repairs) = {
            let status = self.deps.net.borrow();
            let repaired = status.drifts.iter().filter(|d| d.repaired && d.interface == link).count();
            (status.observed.clone(), is_undeclared(&status, &link), repaired)
        };
        if found {
            observed = look(&link).await?;
        }
        let reveal = self.deps.config.agent.reveal_keys;
        let peers = observed.links.get(&link).filter(|l| l.wireguard).ok_or_else(|| not_found(&link))?.peers.len();
        let write = move || match observed.links.get(&link) {
            Some(l) => answer::dump(&link, l, repairs, reveal),
            None => not_found(&link),
        };
        run_sized(peers > MANY_PEERS, write).await
    }

    pub(super) async fn config(&self, link: IfName) -> Result<Response, Response> {
        let status = self.deps.net.borrow().clone();
        let reveal = self.deps.config.agent.reveal_keys;
        if is_undeclared(&status, &link) {
            let observed = look(&link).await?;
            let seen = observed.links.get(&link).filter(|l| l.wireguard).ok_or_else(|| not_found(&link))?;
            return Ok(Response::json(200, &answer::found_config(&link, seen, reveal)));
        }
        let peers = status.desired.links.get(&link).map_or(0, |l| l.peers.len());
        let write = move || {
            let set = status.api_state.links.get(&link);
            let shown = answer::config(&link, &status.desired, &status.observed, set, reveal);
            shown.map_or_else(|| not_found(&link), |v| Response::json(200, &v))
        };
        run_sized(peers > MANY_PEERS, write).await
    }

    pub(super) async fn drift(&self) -> Result<Response, Response> {
        self.refresh().await;
        let status = self.deps.net.borrow().clone();
        let node = self.deps.config.node.id.as_ref().map(ToString::to_string);
        let (names, clock) = (names(&Effective::of(self.deps.config.clone())), &self.deps.clock);
        let seen = clock.wall().before(clock.now().since(status.observed.at));
        let peers: usize = status.desired.links.values().map(|l| l.peers.len()).sum();
        let write = move || {
            let mut report = report(&status.desired, &status.observed, &names, node, seen);
            report.history = status.drifts.into();
            Response::json(200, &report)
        };
        run_sized(peers > MANY_PEERS, write).await
    }
}

/// Whether another program created the interface, and nothing declares it.
fn is_undeclared(status: &NetStatus, link: &IfName) -> bool {
    !status.desired.links.contains_key(link) && status.observed.foreign.contains(link)
}

/// An interface that the reconciler does not observe, as the kernel has it.
async fn look(link: &IfName) -> Result<Arc<Observed>, Response> {
    let observed = async { Netlink::open()?.observe(&[link.clone()].into()).await };
    observed.await.map(Arc::new).map_err(|e| Response::error(503, &ErrorChain(&e).to_string()))
}

fn not_found(link: &IfName) -> Response {
    Response::error(404, &format!("Interface {link} not found"))
}

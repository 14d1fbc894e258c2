//! `spoke plan`: what `run` would change in the kernel now.
use super::{Outcome, load, print};
use crate::config::Config;
use crate::net::derive::{Admitted, Facts, HubPeer, UplinkChoice, derive};
use crate::net::plan::plan;
use crate::net::render;
use crate::net::state::{Desired, Endpoint, Memory, Observed};
use crate::sys::kernel::{Kernel as _, Netlink};
use crate::sys::keys::{self, IfMissing};
use std::path::Path;
use std::sync::Arc;

/// `spoke plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit with 1 if there is anything to do
    #[arg(long)]
    pub exit_code: bool,
}

/// Prints the plan; reads the kernel and changes nothing.
pub fn run(config: &Path, args: &Args) -> Outcome {
    let config = load(config)?;
    let keys = keys::load(&config, IfMissing::Fail)?;
    let wanted = config.interfaces.iter().map(|i| i.name.clone()).collect();
    let observed = super::block_on(async {
        let mut kernel = Netlink::open()?;
        kernel.observe(&wanted).await
    })??;
    let facts = Facts {
        keys: Arc::new(keys),
        uplink: uplink(&config, &observed).map(Arc::new),
        names: Arc::default(),
        admitted: Arc::new(Admitted::default()),
        imperative: Arc::default(),
        control: None,
    };
    let desired = derive(&config, &facts, &Desired::default())?;
    let plan = plan(&desired, &observed, &Memory::default());
    print(&render::plan(&plan, &observed));
    if args.exit_code && !plan.is_clean() { Err(super::Failure::Silent) } else { Ok(()) }
}

/// The hub that the kernel already has, else the best one; where to reach it is found out by `run`, unless it is written
/// as an address.
fn uplink(config: &Config, observed: &Observed) -> Option<UplinkChoice> {
    let uplink = config.uplink.as_ref()?;
    let link = observed.links.get(&uplink.interface);
    let present = uplink.hubs.iter().find(|h| link.is_some_and(|l| l.peers.contains_key(&h.public_key)));
    let hub = present.or_else(|| uplink.hubs.first())?;
    let known = link.and_then(|l| l.peers.get(&hub.public_key)).and_then(|p| p.endpoint);
    let endpoint = known.or_else(|| hub.endpoint.literal()).map(|addr| Endpoint { addr, attempt: 0 });
    let active = HubPeer { hub: Arc::new(hub.clone()), endpoint };
    Some(UplinkChoice { interface: uplink.interface.clone(), active, standby: None, port_epoch: 0, rebuild: 0 })
}

//! The steps of a plan, in order: one socket's steps in a row go out together.
use super::super::conversation::Conversation;
use super::super::route;
use super::super::route::{Change, errno};
use super::Netlink;
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_net::plan::Step;
use spoke_net::state::Route;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Which socket a step is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Creates or deletes a link; sent alone, because later steps depend on it.
    Link,
    /// WireGuard.
    Device,
    /// Existing links, addresses, routes.
    Route,
    /// A connected route: several requests that depend on each other.
    Connected,
    /// nftables.
    Filter,
}

impl Kind {
    pub(super) const fn of(step: &Step) -> Self {
        match step {
            Step::DeleteLink { .. } | Step::CreateLink { .. } => Self::Link,
            Step::SetForwarding { .. } => Self::Filter,
            Step::SetDevice { .. } | Step::RemovePeer { .. } | Step::SetPeer { .. } => Self::Device,
            Step::AddConnected { .. } | Step::RemoveConnected { .. } => Self::Connected,
            Step::SetMtu { .. }
            | Step::RemoveRoute { .. }
            | Step::RemoveAddress { .. }
            | Step::AddAddress { .. }
            | Step::SetUp { .. }
            | Step::AddRoute { .. } => Self::Route,
        }
    }
}

/// One application of a plan.
pub(super) struct Pass<'a> {
    pub(super) kernel: &'a mut Netlink,
    /// Results of the steps so far.
    pub(super) results: Vec<io::Result<()>>,
    /// Links that could not be created: their other steps fail with the same error.
    pub(super) failed_links: BTreeMap<IfName, io::Error>,
}

impl Pass<'_> {
    pub(super) async fn link(&mut self, step: &Step) {
        let result = match step {
            Step::CreateLink { link, mtu } => {
                let result = route::create_link(&mut self.kernel.routes, link, *mtu).await;
                if let Err(error) = &result {
                    self.failed_links.insert(link.clone(), copy(error));
                }
                result
            }
            other => route::delete_link(&mut self.kernel.routes, other.link()).await,
        };
        self.results.push(result);
    }

    pub(super) async fn filter(&mut self, step: &Step) {
        let result = match step {
            Step::SetForwarding { link, forwarding } => {
                self.kernel.filter.get_or_insert_default().write(link, forwarding.as_ref()).await
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        self.results.push(result);
    }

    pub(super) async fn connected(&mut self, step: &Step) {
        let kernel = &mut self.kernel.routes;
        let result = match (route::link(kernel, step.link().as_str()).await, step) {
            (Ok(Some(link)), Step::AddConnected { address, .. }) => {
                route::add_connected(kernel, link.index, *address).await
            }
            (Ok(Some(link)), Step::RemoveConnected { address, .. }) => {
                route::remove_connected(kernel, link.index, *address).await
            }
            (Ok(_), Step::RemoveConnected { .. }) => Ok(()),
            (Ok(_), _) => Err(Errno::NODEV.into()),
            (Err(error), _) => Err(error),
        };
        self.results.push(result);
    }

    pub(super) async fn device(&mut self, group: &[Step]) {
        let Some(first) = group.first() else { return };
        if let Some(error) = self.failed_links.get(first.link()) {
            self.results.extend(group.iter().map(|_| Err(copy(error))));
            return;
        }
        let steps: Vec<&Step> = group.iter().collect();
        let results = self.kernel.devices.write(first.link(), &steps).await;
        self.results.extend(results.into_iter().zip(group).map(gone_with_its_link));
    }

    pub(super) async fn route(&mut self, group: &[Step]) {
        let mut indices: BTreeMap<IfName, io::Result<u32>> = BTreeMap::new();
        for name in group.iter().map(Step::link).collect::<BTreeSet<_>>() {
            let index = match self.failed_links.get(name) {
                Some(error) => Err(copy(error)),
                None => match route::link(&mut self.kernel.routes, name.as_str()).await {
                    Ok(Some(link)) => Ok(link.index),
                    Ok(None) => Err(Errno::NODEV.into()),
                    Err(error) => Err(error),
                },
            };
            indices.insert(name.clone(), index);
        }
        let kernel = &mut self.kernel.routes;
        let before = collateral(kernel, group, &indices).await;
        let changes: Vec<io::Result<Change<'_>>> = group
            .iter()
            .map(|step| match indices.get(step.link()) {
                Some(Ok(index)) => change(step, *index).ok_or_else(|| io::ErrorKind::InvalidInput.into()),
                Some(Err(error)) => Err(copy(error)),
                None => Err(Errno::NODEV.into()),
            })
            .collect();
        let mut results = submit(kernel, &changes).await;
        if results.iter().any(|r| r.as_ref().is_err_and(|e| errno(e) == Some(Errno::EXIST))) {
            confirm(kernel, &changes, &mut results).await;
        }
        if let Err(error) = restore(kernel, &before, group, &indices).await {
            // The next observation finds the drift.
            tracing::warn!(%error, "cannot look after what went with a removed address");
        }
        self.results.extend(results.into_iter().zip(group).map(gone_with_its_link));
    }
}

/// A removal succeeds if the link is gone: peers, addresses and routes are removed with it.
fn gone_with_its_link((result, step): (io::Result<()>, &Step)) -> io::Result<()> {
    let removes = matches!(step, Step::RemovePeer { .. } | Step::RemoveAddress { .. } | Step::RemoveRoute { .. });
    result.or_else(|error| if removes && errno(&error) == Some(Errno::NODEV) { Ok(()) } else { Err(error) })
}

fn change(step: &Step, index: u32) -> Option<Change<'_>> {
    Some(match step {
        Step::SetMtu { link, mtu } => Change::Mtu(link, *mtu),
        Step::SetUp { link, up } => Change::Up(link, *up),
        Step::AddAddress { address, .. } => Change::AddAddress(index, *address),
        Step::RemoveAddress { address, .. } => Change::RemoveAddress(index, *address),
        Step::AddRoute { route, .. } => Change::AddRoute(index, *route),
        Step::RemoveRoute { route, .. } => Change::RemoveRoute(index, *route),
        Step::DeleteLink { .. }
        | Step::CreateLink { .. }
        | Step::SetDevice { .. }
        | Step::RemovePeer { .. }
        | Step::SetForwarding { .. }
        | Step::AddConnected { .. }
        | Step::RemoveConnected { .. }
        | Step::SetPeer { .. } => return None,
    })
}

/// Submits the valid changes in order.
async fn submit(kernel: &mut Conversation, changes: &[io::Result<Change<'_>>]) -> Vec<io::Result<()>> {
    let requests: Vec<_> = changes.iter().flatten().map(Change::request).collect();
    let mut answers = match kernel.submit(&requests).await {
        Ok(answers) => answers.into_iter().map(|a| a.map_err(io::Error::from)).collect::<Vec<_>>().into_iter(),
        Err(error) => changes.iter().flatten().map(|_| Err(copy(&error))).collect::<Vec<_>>().into_iter(),
    };
    changes
        .iter()
        .map(|change| match change {
            Err(error) => Err(copy(error)),
            Ok(change) => match answers.next() {
                Some(Err(error)) if errno(&error).is_some_and(|e| change.is_moot(e)) => Ok(()),
                Some(answer) => answer,
                None => Err(io::ErrorKind::TimedOut.into()),
            },
        })
        .collect()
}

/// `EEXIST` counts as added if the identical address or route is there: the kernel also returns it for another
/// protocol's route to the same network.
async fn confirm(kernel: &mut Conversation, changes: &[io::Result<Change<'_>>], results: &mut [io::Result<()>]) {
    let routes = route::routes(kernel).await.unwrap_or_default();
    for (change, result) in changes.iter().zip(results) {
        if !result.as_ref().is_err_and(|e| errno(e) == Some(Errno::EXIST)) {
            continue;
        }
        let present = match change {
            Ok(Change::AddRoute(index, route)) => routes.get(index).is_some_and(|r| r.contains(route)),
            Ok(Change::AddAddress(index, address)) => {
                route::addresses(kernel, *index).await.is_ok_and(|a| a.contains(address))
            }
            Ok(_) | Err(_) => false,
        };
        if present {
            *result = Ok(());
        }
    }
}

/// What a link has before one of its IPv4 addresses is removed.
struct Before {
    addresses: BTreeSet<IpNet>,
    routes: BTreeSet<Route>,
}

/// State of the links that lose an IPv4 address: the kernel removes further addresses of the same network with it, and
/// all IPv4 routes with the last one, while a step must remove one address only.
async fn collateral(
    kernel: &mut Conversation,
    group: &[Step],
    indices: &BTreeMap<IfName, io::Result<u32>>,
) -> BTreeMap<u32, Before> {
    let mut all = BTreeMap::new();
    for step in group {
        if let Step::RemoveAddress { link, address: IpNet::V4(_) } = step
            && let Some(Ok(index)) = indices.get(link)
            && !all.contains_key(index)
            && let Ok(addresses) = route::addresses(kernel, *index).await
            && let Ok(mut routes) = route::routes(kernel).await
        {
            all.insert(*index, Before { addresses, routes: routes.remove(index).unwrap_or_default() });
        }
    }
    all
}

/// Restores what the kernel removed together with an address.
async fn restore(
    kernel: &mut Conversation,
    before: &BTreeMap<u32, Before>,
    group: &[Step],
    indices: &BTreeMap<IfName, io::Result<u32>>,
) -> io::Result<()> {
    for (index, before) in before {
        let mut addresses = before.addresses.clone();
        let mut routes = before.routes.clone();
        for step in group.iter().filter(|s| indices.get(s.link()).is_some_and(|i| matches!(i, Ok(i) if i == index))) {
            match step {
                Step::RemoveAddress { address, .. } => drop(addresses.remove(address)),
                Step::RemoveRoute { route, .. } => drop(routes.remove(route)),
                Step::SetUp { up: false, .. } => routes.clear(),
                _ => {}
            }
        }
        let there = route::addresses(kernel, *index).await?;
        let routes_there = route::routes(kernel).await?.remove(index).unwrap_or_default();
        let again: Vec<_> = addresses
            .difference(&there)
            .map(|a| Change::AddAddress(*index, *a))
            .chain(routes.difference(&routes_there).map(|r| Change::AddRoute(*index, *r)))
            .map(Ok)
            .collect();
        for result in submit(kernel, &again).await {
            result?;
        }
    }
    Ok(())
}

/// A copy of an error that fails several steps.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

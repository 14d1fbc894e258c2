//! The way to an address, by rtnetlink: the system's own route look-up, and the link it leads to.
use super::conversation::{Conversation, Message, Request};
use super::route::errno;
use super::rtnetlink::*;
use super::{KernelError, ReadPath};
use rustix::io::Errno;
use spoke_uplink::path::Path;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// Looks up routes, for packets with WireGuard's mark.
pub struct PathSocket {
    kernel: Conversation,
    mark: u32,
}

impl PathSocket {
    /// Opens the socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The process may not open sockets.
    pub fn open(mark: u32) -> Result<Self, KernelError> {
        let kernel = Conversation::open(netlink_sys::protocols::NETLINK_ROUTE).map_err(unreadable)?;
        Ok(Self { kernel, mark })
    }

    async fn look_up(&mut self, to: IpAddr) -> io::Result<Path> {
        let question = look_up(to, 0);
        let question = if self.mark == 0 { question } else { question.word(RTA_MARK, self.mark) };
        let request = Request::new(RTM_GETROUTE, 0, &question);
        let route = match self.kernel.ask(&request, |m| read_route(m.payload)).await {
            Ok(route) => route,
            // ENETUNREACH: no route; the others: a route of the types unreachable, prohibit, blackhole.
            Err(e)
                if matches!(errno(&e), Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL)) =>
            {
                return self.why_none(to).await;
            }
            Err(e) => return Err(e),
        };
        let through = route.link.unwrap_or(0);
        let links = self.links(Some(through)).await?;
        let link = links.first().copied().unwrap_or_default();
        let (carrier, carrier_changes) = (link.carrier, link.carrier_changes);
        Ok(Path::Via { link: through, carrier, carrier_changes, source: route.source, gateway: route.gateway })
    }

    /// What is missing when there is no route.
    async fn why_none(&mut self, to: IpAddr) -> io::Result<Path> {
        let links = self.links(None).await?;
        let carriers: BTreeSet<u32> = links.iter().filter(|l| l.outside && l.carrier).map(|l| l.index).collect();
        if carriers.is_empty() {
            return Ok(Path::NoCarrier);
        }
        let request = Request::new(RTM_GETADDR, 0, &address_head(family(to), 0));
        let addressed = self
            .kernel
            .dump(
                &request,
                || false,
                |found, m| {
                    // Of `struct ifaddrmsg`: the scope, the index.
                    let scope = m.payload.get(3).copied();
                    let index = m.payload.get(4..8).and_then(word);
                    *found |= m.kind == RTM_NEWADDR
                        && scope == Some(RT_SCOPE_UNIVERSE)
                        && index.is_some_and(|i| carriers.contains(&i));
                    Ok(())
                },
            )
            .await?;
        Ok(if addressed { Path::NoRoute } else { Path::NoAddress })
    }

    async fn links(&mut self, index: Option<u32>) -> io::Result<Vec<Link>> {
        let request = Request::new(RTM_GETLINK, 0, &link_head(index.unwrap_or(0), 0, 0).without_stats());
        match index {
            Some(_) => Ok(vec![self.kernel.ask(&request, |m| read_link(&m)).await?]),
            None => {
                self.kernel
                    .dump(&request, Vec::new, |links, m| {
                        if m.kind == RTM_NEWLINK {
                            links.push(read_link(&m)?);
                        }
                        Ok(())
                    })
                    .await
            }
        }
    }
}

impl ReadPath for PathSocket {
    async fn path(&mut self, to: IpAddr) -> Result<Path, KernelError> {
        self.look_up(to).await.map_err(unreadable)
    }
}

fn unreadable(source: io::Error) -> KernelError {
    KernelError::Observe { what: "the route to the hub".to_owned(), source }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    index: u32,
    carrier: bool,
    carrier_changes: u32,
    /// It may lead out of the machine.
    outside: bool,
}

pub(super) fn read_link(message: &Message<'_>) -> io::Result<Link> {
    let (index, flags, rest) = link_parts(message.payload)?;
    let outside = flags & IFF_LOOPBACK == 0;
    let mut link = Link { index, carrier: flags & IFF_LOWER_UP != 0, carrier_changes: 0, outside };
    for attribute in attributes(rest) {
        match attribute? {
            (IFLA_CARRIER_CHANGES, value) => link.carrier_changes = word(value).unwrap_or(0),
            (IFLA_LINKINFO, value) => {
                for info in attributes(value) {
                    let (kind, value) = info?;
                    let inside = value.starts_with(b"wireguard") || value.starts_with(b"dummy");
                    link.outside &= kind != IFLA_INFO_KIND || !inside;
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

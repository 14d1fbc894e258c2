//! Change notifications for links, addresses and routes: a wake-up without payload.
use super::rtnetlink::*;
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;
use spoke_net::state::ROUTE_PROTOCOL;
use std::future::poll_fn;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

/// A burst of changes ends after this long without a change.
const QUIET: Duration = Duration::from_millis(50);

/// A burst that lasts longer is reported before it ends.
const LONGEST: Duration = Duration::from_millis(500);

/// Delay before a broken socket is reopened.
const REOPEN: Duration = Duration::from_secs(1);

const INBOX: usize = 32 * 1024;

/// The socket of the multicast groups.
pub(super) struct Events {
    socket: TokioSocket,
    inbox: Vec<u8>,
    /// Start of the burst that is not reported yet. Stored here, so that a cancelled wait loses nothing.
    since: Option<Instant>,
}

impl Events {
    /// Subscribes. Must be called within a runtime.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { socket: subscribe()?, inbox: Vec::with_capacity(INBOX), since: None })
    }

    /// Resolves at the end of a burst of changes.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some(since) = self.since else {
                self.receive().await;
                continue;
            };
            let end = (Instant::now() + QUIET).min(since + LONGEST);
            if tokio::time::timeout_at(end, self.receive()).await.is_err() || Instant::now() >= since + LONGEST {
                self.since = None;
                return;
            }
        }
    }

    /// Reads events until a relevant one.
    async fn receive(&mut self) {
        loop {
            self.inbox.clear();
            let received = poll_fn(|cx| self.socket.poll_recv(cx, &mut self.inbox)).await;
            let relevant = match received {
                Ok(()) => is_relevant(&self.inbox),
                // The receive buffer overflowed: anything may have changed.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => true,
                Err(error) => {
                    tracing::warn!(%error, "kernel notifications lost; subscribing again");
                    tokio::time::sleep(REOPEN).await;
                    if let Ok(socket) = subscribe() {
                        self.socket = socket;
                    }
                    true
                }
            };
            if relevant {
                self.since.get_or_insert_with(Instant::now);
                return;
            }
        }
    }
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE];
    let options = socket.socket_mut();
    options.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        options.add_membership(group)?;
    }
    Ok(socket)
}

/// Whether a datagram reports a change that we observe or depend on. Of routes only our own, connected and default routes count: a
/// router with the Internet's full table would otherwise wake us for each of them.
pub(super) fn is_relevant(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let payload = message.payload();
        let is_route = matches!(message.message_type(), RTM_NEWROUTE | RTM_DELROUTE);
        // Of `struct rtmsg`: the length of the destination, the protocol.
        let (default, protocol) = (payload.get(1) == Some(&0), payload.get(5).copied());
        let watched = matches!(protocol, Some(ROUTE_PROTOCOL | RTPROT_KERNEL));
        if !is_route || default || watched {
            return true;
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        rest = length.checked_next_multiple_of(4).and_then(|l| rest.get(l..)).unwrap_or_default();
    }
    false
}

//! ICMP echo through one interface: proves that the far end of a tunnel is alive.
use rustix::net::{SendFlags, netdevice};
use socket2::{Domain, Protocol, Socket, Type};
use spoke_model::interface_name::IfName;
use spoke_uplink::wire;
use spoke_uplink::wire::{ECHO_LEN, Family};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::UdpSocket;

/// Why an echo could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum EchoError {
    /// Neither kind of socket is allowed.
    #[error(
        "not allowed to send ICMP echo: give the process CAP_NET_RAW, or its group a place in net.ipv4.ping_group_range"
    )]
    NoPrivilege(#[source] io::Error),
    /// The interface does not exist.
    #[error("there is no interface {0}")]
    NoInterface(IfName),
    /// The machine would answer itself, which proves nothing about the hub.
    #[error("{0} is an address of this machine: uplink.hub.address must be the hub's")]
    OwnAddress(IpAddr),
    /// The kernel did not take it: no address, no route, interface down.
    #[error("cannot send an echo to {to} through {link}")]
    Send {
        /// Interface.
        link: IfName,
        /// Destination.
        to: IpAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Sends echoes through an interface and receives the replies that arrive through the same interface.
pub trait Echo: Send + 'static {
    /// Sends one; never waits for the network.
    fn send(&mut self, link: &IfName, to: IpAddr, seq: u16) -> impl Future<Output = Result<(), EchoError>> + Send;

    /// Source and sequence number of the next reply to an echo of ours. Dropping the future loses nothing.
    fn answer(&mut self) -> impl Future<Output = (IpAddr, u16)> + Send;
}

/// Kernel sockets, opened at first use and bound to the interface: a reply through another one is not received.
///
/// A ping socket where `net.ipv4.ping_group_range` allows it, else a raw one.
#[derive(Debug)]
pub struct IcmpEcho {
    mark: u32,
    id: u16,
    v4: Option<Bound>,
    v6: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    /// A datagram socket to the runtime; the protocol is ICMP. Used for readiness and packets only.
    socket: UdpSocket,
    family: Family,
    raw: bool,
    link: IfName,
    /// The index the socket is bound to: a recreated interface of the same name has another one.
    index: u32,
}

impl IcmpEcho {
    /// No socket yet. `seed` marks the echoes of this process.
    pub const fn new(seed: u64) -> Self {
        let b = seed.to_le_bytes();
        Self {
            mark: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            id: u16::from_le_bytes([b[4], b[5]]),
            v4: None,
            v6: None,
        }
    }

    fn try_send(&mut self, link: &IfName, to: IpAddr, seq: u16) -> Result<(), EchoError> {
        if is_own(to) {
            return Err(EchoError::OwnAddress(to));
        }
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let slot = if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let stale = slot.as_ref().is_none_or(|b| b.link != *link || b.index_now() != Some(b.index));
        if stale {
            *slot = None;
        }
        let bound = match slot {
            Some(bound) => bound,
            None => slot.insert(Bound::open(family, link)?),
        };
        let message = wire::encode(family, wire::Echo { id: self.id, seq, mark: self.mark });
        match rustix::net::sendto(&bound.socket, &message, SendFlags::DONTWAIT, &SocketAddr::new(to, 0)) {
            Ok(_) => Ok(()),
            Err(e) => Err(EchoError::Send { link: link.clone(), to, source: e.into() }),
        }
    }
}

/// Whether the address is one of this machine: to such a one, and to no other, the kernel sends from that address.
/// Connecting a datagram socket sends nothing; the port is discard (RFC 863).
fn is_own(address: IpAddr) -> bool {
    let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let source = std::net::UdpSocket::bind((any, 0)).and_then(|s| {
        s.connect((address, 9))?;
        s.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

impl Bound {
    fn open(family: Family, link: &IfName) -> Result<Self, EchoError> {
        let (domain, protocol) = match family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6),
        };
        let (socket, raw) = match Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol)) {
            Ok(socket) => (socket, false),
            Err(_) => (
                Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))
                    .map_err(EchoError::NoPrivilege)?,
                true,
            ),
        };
        let index =
            netdevice::name_to_index(&socket, link.as_str()).map_err(|_| EchoError::NoInterface(link.clone()))?;
        socket.bind_device(Some(link.as_str().as_bytes())).map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => EchoError::NoPrivilege(e),
            _ => EchoError::NoInterface(link.clone()),
        })?;
        let socket = UdpSocket::from_std(socket.into()).map_err(EchoError::NoPrivilege)?;
        Ok(Self { socket, family, raw, link: link.clone(), index })
    }

    fn index_now(&self) -> Option<u32> {
        netdevice::name_to_index(&self.socket, self.link.as_str()).ok()
    }

    async fn answer(&self, mark: u32) -> (IpAddr, u16) {
        loop {
            if self.socket.readable().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(answer) = self.receive(mark) {
                return answer;
            }
            // One packet each time round: a flood of foreign ICMP must not keep the rest of the task from running.
            tokio::task::yield_now().await;
        }
    }

    /// The answer in the next packet. An ICMP error queued on the socket is none: what is missing is noticed by its absence.
    fn receive(&self, mark: u32) -> Option<(IpAddr, u16)> {
        // The longest IPv4 header, the message, and one byte more, so that a longer message is seen to be longer.
        let mut buffer = [0; 60 + ECHO_LEN + 1];
        let (n, from) = self.socket.try_recv_from(&mut buffer).ok()?;
        let packet = buffer.get(..n)?;
        let message = match (self.family, self.raw) {
            (Family::V4, true) => wire::strip_ipv4(packet)?,
            (Family::V4, false) | (Family::V6, _) => packet,
        };
        let echo = wire::decode(self.family, message).filter(|e| e.mark == mark)?;
        Some((from.ip(), echo.seq))
    }
}

async fn answer_of(bound: Option<&Bound>, mark: u32) -> (IpAddr, u16) {
    match bound {
        Some(bound) => bound.answer(mark).await,
        None => std::future::pending().await,
    }
}

impl Echo for IcmpEcho {
    async fn send(&mut self, link: &IfName, to: IpAddr, seq: u16) -> Result<(), EchoError> {
        self.try_send(link, to, seq)
    }

    async fn answer(&mut self) -> (IpAddr, u16) {
        tokio::select! {
            answer = answer_of(self.v4.as_ref(), self.mark) => answer,
            answer = answer_of(self.v6.as_ref(), self.mark) => answer,
        }
    }
}

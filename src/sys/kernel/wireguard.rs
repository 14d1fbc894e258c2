//! WireGuard devices over generic netlink: one socket, and one look-up of the family's number.
use super::body::Body;
use super::conversation::{Conversation, Message, Request, invalid};
use super::route::errno;
use ipnet::IpNet;
use netlink_packet_core::{NLA_TYPE_MASK, Nla, NlaBuffer, NlasIterator};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_net::plan::{AllowedIps, PeerChange, Step};
use spoke_net::state::ObservedPeer;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;
use zeroize::Zeroize;

const GENL_ID_CTRL: u16 = 16;
pub(super) const GENL_HEADER: usize = 4;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const WG_CMD_GET_DEVICE: u8 = 0;

const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_IFNAME: u16 = 2;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_FWMARK: u16 = 7;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_PRESHARED_KEY: u16 = 2;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_KEEPALIVE: u16 = 5;
const WGPEER_A_LAST_HANDSHAKE: u16 = 6;
const WGPEER_A_RX_BYTES: u16 = 7;
const WGPEER_A_TX_BYTES: u16 = 8;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Bytes of peers in one request. The kernel processes a request inside `sendmsg`: one of this size blocks the
/// runtime's thread for about 20 ms if all its peers are new. Larger requests are not faster.
const REQUEST_BYTES: usize = 16 * 1024;

/// Steps encoded at a time: a request takes ten times the memory of its content.
const REQUESTED_STEPS: usize = 1024;

/// Allowed-ips of one peer in one request.
const REQUEST_ALLOWED_IPS: usize = 256;

/// A WireGuard device as its netlink family reports it.
#[derive(Debug, Default)]
pub(super) struct DeviceState {
    pub(super) index: u32,
    pub(super) public_key: Option<PublicKey>,
    pub(super) private_key: Option<SecretKey>,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
    pub(super) peers: BTreeMap<PublicKey, ObservedPeer>,
}

/// What to read of the peers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Everything.
    Whole,
    /// Counters and endpoint.
    Counters,
    /// Counters and endpoint, and the private key of the interface.
    PrivateKey,
}

/// Whether the kernel has WireGuard. The query loads the module, if there is one.
///
/// # Errors
/// The process may not open the socket, or the kernel does not answer.
pub async fn has_wireguard() -> io::Result<bool> {
    match Devices::open()?.family().await {
        Ok(_) => Ok(true),
        Err(error) if errno(&error) == Some(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `struct genlmsghdr` (command, version), then attributes: which number the family has.
fn family_question() -> Body {
    Body::new(&[CTRL_CMD_GETFAMILY, 2, 0, 0]).text(CTRL_ATTR_FAMILY_NAME, "wireguard")
}

fn device_question(name: &IfName) -> Body {
    Body::new(&[WG_CMD_GET_DEVICE, 1, 0, 0]).text(WGDEVICE_A_IFNAME, name.as_str())
}

/// The generic netlink socket.
pub(super) struct Devices {
    kernel: Conversation,
    family: Option<u16>,
}

impl Devices {
    /// Opens the socket. Must be called within a runtime.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { kernel: Conversation::open(netlink_sys::protocols::NETLINK_GENERIC)?, family: None })
    }

    /// Whether the kernel knows WireGuard.
    pub(super) async fn is_known(&mut self) -> bool {
        !matches!(self.family().await, Err(error) if errno(&error) == Some(Errno::NOENT))
    }

    /// The family's number. The look-up makes the kernel load the module.
    async fn family(&mut self) -> io::Result<u16> {
        if let Some(family) = self.family {
            return Ok(family);
        }
        let ask = family_question();
        let read = |message: Message<'_>| {
            NlasIterator::new(message.payload.get(GENL_HEADER..).unwrap_or_default())
                .flatten()
                .find(|a| a.kind() & NLA_TYPE_MASK == CTRL_ATTR_FAMILY_ID)
                .and_then(|a| a.value().first_chunk().map(|b| u16::from_ne_bytes(*b)))
                .ok_or_else(|| invalid("a family without number"))
        };
        let family = self.kernel.ask(&Request::new(GENL_ID_CTRL, 0, &ask), read).await?;
        self.family = Some(family);
        Ok(family)
    }

    /// Reads a device; `None`: there is none of that name, or it is not WireGuard.
    pub(super) async fn read(&mut self, name: &IfName, depth: Depth) -> io::Result<Option<DeviceState>> {
        let get = device_question(name);
        let mut looked_up_again = false;
        loop {
            let family = self.family().await?;
            let read = |device: &mut DeviceState, message: Message<'_>| {
                if message.kind == family {
                    read_device(device, message.payload.get(GENL_HEADER..).unwrap_or_default(), depth)?;
                }
                Ok(())
            };
            let result = self.kernel.dump(&Request::new(family, 0, &get), DeviceState::default, read).await;
            self.kernel.wipe();
            return match result {
                Ok(device) => Ok(Some(device)),
                Err(error) => match errno(&error) {
                    Some(Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
                    // The module was reloaded since the look-up.
                    Some(Errno::NOENT) if !looked_up_again => {
                        self.family = None;
                        looked_up_again = true;
                        continue;
                    }
                    _ => Err(error),
                },
            };
        }
    }

    /// Sends the WireGuard steps of one interface; returns the result of each. Steps are batched; the steps of a failed
    /// request are sent again one by one, so that each failing step is known and the others are applied.
    pub(super) async fn write(&mut self, name: &IfName, steps: &[&Step]) -> Vec<io::Result<()>> {
        let mut results: Vec<io::Result<()>> = steps.iter().map(|_| Ok(())).collect();
        for (steps, results) in steps.chunks(REQUESTED_STEPS).zip(results.chunks_mut(REQUESTED_STEPS)) {
            for batch in batches(steps) {
                if let Err(error) = self.set(name, batch.attributes).await {
                    if batch.steps.len() == 1 && batch.whole {
                        results[batch.steps[0]] = Err(error);
                        continue;
                    }
                    for index in batch.steps {
                        results[index] = self.write_alone(name, steps[index]).await;
                    }
                }
            }
        }
        results
    }

    async fn write_alone(&mut self, name: &IfName, step: &Step) -> io::Result<()> {
        for batch in batches(&[step]) {
            self.set(name, batch.attributes).await?;
        }
        Ok(())
    }

    async fn set(&mut self, name: &IfName, mut attributes: Vec<WireguardAttribute>) -> io::Result<()> {
        attributes.push(WireguardAttribute::IfName(name.as_str().to_owned()));
        let mut set = GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
        let result = match self.send(&set).await {
            Err(error) if errno(&error) == Some(Errno::NOENT) => {
                self.family = None;
                self.send(&set).await
            }
            result => result,
        };
        set.payload.attributes.iter_mut().for_each(wipe);
        result
    }

    async fn send(&mut self, set: &GenlMessage<WireguardMessage>) -> io::Result<()> {
        let family = self.family().await?;
        match self.kernel.submit(&[Request::new(family, 0, set)]).await?.pop() {
            Some(Err(errno)) => Err(errno.into()),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// Overwrites the secrets of an attribute that was sent.
fn wipe(attribute: &mut WireguardAttribute) {
    match attribute {
        WireguardAttribute::PrivateKey(key) => key.zeroize(),
        WireguardAttribute::Peers(peers) => {
            for attribute in peers.iter_mut().flat_map(|p| &mut p.0) {
                if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                    key.zeroize();
                }
            }
        }
        _ => {}
    }
}

/// Steps that go into one request.
#[derive(Default)]
struct Batch {
    /// Indices of the steps.
    steps: Vec<usize>,
    attributes: Vec<WireguardAttribute>,
    peers: Vec<WireguardPeer>,
    bytes: usize,
    /// No step is split over several requests.
    whole: bool,
}

/// Cuts steps into requests, in order.
fn batches(steps: &[&Step]) -> Vec<Batch> {
    let mut all = Vec::new();
    let mut batch = Batch { whole: true, ..Batch::default() };
    for (index, step) in steps.iter().enumerate() {
        let pieces = match step {
            Step::SetDevice { private_key, listen_port, fwmark, .. } => {
                // The kernel applies a request's device values before its peers: earlier peers go out first.
                if !batch.steps.is_empty() {
                    finish(&mut batch, &mut all);
                }
                batch.attributes.extend(private_key.as_ref().map(|k| WireguardAttribute::PrivateKey(*k.reveal())));
                batch.attributes.extend(listen_port.map(WireguardAttribute::ListenPort));
                batch.attributes.extend(fwmark.map(WireguardAttribute::Fwmark));
                batch.steps.push(index);
                continue;
            }
            Step::RemovePeer { peer, .. } => vec![removal(*peer)],
            Step::SetPeer { peer, change, .. } => change_pieces(*peer, change),
            _ => continue,
        };
        let split = pieces.len() > 1;
        for piece in pieces {
            let bytes = Nla::value_len(&piece) + 4;
            if batch.bytes + bytes > REQUEST_BYTES {
                finish(&mut batch, &mut all);
            }
            batch.bytes += bytes;
            batch.peers.push(piece);
            batch.whole &= !split;
            if batch.steps.last() != Some(&index) {
                batch.steps.push(index);
            }
        }
    }
    finish(&mut batch, &mut all);
    all
}

fn finish(batch: &mut Batch, all: &mut Vec<Batch>) {
    let mut done = std::mem::replace(batch, Batch { whole: true, ..Batch::default() });
    if !done.steps.is_empty() {
        if !done.peers.is_empty() {
            done.attributes.push(WireguardAttribute::Peers(std::mem::take(&mut done.peers)));
        }
        all.push(done);
    }
}

fn removal(peer: PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(peer.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly),
    ])
}

/// A peer's change in one piece, or several if it has many allowed-ips. Only the first may create the peer or replace
/// its allowed-ips; the others add to them.
fn change_pieces(key: PublicKey, change: &PeerChange) -> Vec<WireguardPeer> {
    let (nets, replace) = match &change.allowed_ips {
        AllowedIps::Keep => (None, false),
        AllowedIps::Add(nets) => (Some(nets), false),
        AllowedIps::Replace(nets) => (Some(nets), true),
    };
    let nets: Vec<WireguardAllowedIp> = nets.into_iter().flatten().map(|n| allowed_ip(*n)).collect();
    let mut chunks = nets.chunks(REQUEST_ALLOWED_IPS);
    let mut flags = WireguardPeerFlags::empty();
    flags.set(WireguardPeerFlags::UpdateOnly, !change.create);
    flags.set(WireguardPeerFlags::ReplaceAllowedIps, replace);
    // Large enough: growing would leave a copy of the key behind.
    let mut first = Vec::with_capacity(6);
    first.push(WireguardPeerAttribute::PublicKey(key.0));
    first.push(WireguardPeerAttribute::Flags(flags));
    if let Some(preshared) = &change.preshared_key {
        // All zeros mean no key.
        first.push(WireguardPeerAttribute::PresharedKey(preshared.as_ref().map_or([0; 32], |k| *k.reveal())));
    }
    first.extend(change.endpoint.map(|e| WireguardPeerAttribute::Endpoint(e.addr)));
    first.extend(change.keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    first.extend(chunks.next().map(|c| WireguardPeerAttribute::AllowedIps(c.to_vec())));
    let later = chunks.map(|chunk| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::AllowedIps(chunk.to_vec()),
        ])
    });
    std::iter::once(WireguardPeer(first)).chain(later).collect()
}

fn allowed_ip(net: IpNet) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

/// Merges one message of a dump into the earlier ones: a device with many peers, and a peer with many allowed-ips, take
/// several messages; each attribute is sent once.
pub(super) fn read_device(device: &mut DeviceState, attributes: &[u8], depth: Depth) -> io::Result<()> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(invalid)?;
        let value = attribute.value();
        match attribute.kind() & NLA_TYPE_MASK {
            WGDEVICE_A_IFINDEX => device.index = value.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)),
            WGDEVICE_A_PUBLIC_KEY => device.public_key = value.first_chunk().map(|k| PublicKey(*k)),
            WGDEVICE_A_LISTEN_PORT => device.listen_port = value.first_chunk().map_or(0, |b| u16::from_ne_bytes(*b)),
            WGDEVICE_A_FWMARK => device.fwmark = value.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)),
            WGDEVICE_A_PEERS => {
                for peer in NlasIterator::new(value) {
                    read_peer(&mut device.peers, peer.map_err(invalid)?.value(), depth)?;
                }
            }
            // Read to take it over only: otherwise public keys are compared.
            WGDEVICE_A_PRIVATE_KEY if depth == Depth::PrivateKey => {
                let key = value.first_chunk::<32>().filter(|k| k.iter().any(|b| *b != 0));
                device.private_key = key.map(|k| SecretKey::from_bytes(*k));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_peer(peers: &mut BTreeMap<PublicKey, ObservedPeer>, attributes: &[u8], depth: Depth) -> io::Result<()> {
    let find = |kind: u16| NlasIterator::new(attributes).flatten().find(|a| a.kind() & NLA_TYPE_MASK == kind);
    let key = find(WGPEER_A_PUBLIC_KEY).and_then(|a| a.value().first_chunk().copied());
    let peer = peers.entry(PublicKey(key.ok_or_else(|| invalid("a peer without key"))?)).or_default();
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<_> = attribute.map_err(invalid)?;
        let kind = attribute.kind() & NLA_TYPE_MASK;
        if kind == WGPEER_A_PRESHARED_KEY {
            // Not read by the packet crate, whose copy could not be wiped.
            if let Some(key) = attribute.value().first_chunk::<32>()
                && depth == Depth::Whole
                && key.iter().any(|b| *b != 0)
            {
                peer.preshared_key = Some(PresharedKey::from_bytes(*key));
            }
            continue;
        }
        // Not by the packet crate either, which panics on an empty attribute.
        let value = attribute.value();
        match kind {
            WGPEER_A_ENDPOINT => peer.endpoint = socket_address(value).map(plain),
            WGPEER_A_KEEPALIVE => peer.keepalive = value.first_chunk().map_or(0, |b| u16::from_ne_bytes(*b)),
            WGPEER_A_LAST_HANDSHAKE => {
                if let Some((seconds, rest)) = value.split_first_chunk()
                    && let Some(nanos) = rest.first_chunk()
                {
                    let (seconds, nanos) = (i64::from_ne_bytes(*seconds), i64::from_ne_bytes(*nanos));
                    peer.counters.last_handshake = since_epoch(seconds, nanos);
                }
            }
            WGPEER_A_RX_BYTES => peer.counters.rx = value.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b)),
            WGPEER_A_TX_BYTES => peer.counters.tx = value.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b)),
            WGPEER_A_ALLOWEDIPS if depth == Depth::Whole => {
                let nets = NlasIterator::new(value).map(|net| read_allowed_ip(net.map_err(invalid)?.value()));
                let more: Nets = nets.collect::<Result<_, _>>()?;
                peer.allowed_ips = if peer.allowed_ips.is_empty() { more } else { peer.allowed_ips.and(&more) };
            }
            _ => {}
        }
    }
    Ok(())
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk().map(|(b, rest)| (u16::from_ne_bytes(*b), rest))?;
    let (port, rest) = rest.split_first_chunk().map(|(b, rest)| (u16::from_be_bytes(*b), rest))?;
    if family == AF_INET {
        return Some((Ipv4Addr::from(*rest.first_chunk::<4>()?), port).into());
    }
    let (flow, rest) = rest.split_first_chunk()?;
    let (address, rest) = rest.split_first_chunk::<16>()?;
    let (flow, scope) = (u32::from_be_bytes(*flow), u32::from_ne_bytes(*rest.first_chunk()?));
    (family == AF_INET6).then(|| SocketAddrV6::new((*address).into(), port, flow, scope).into())
}

/// An endpoint without flow information, as the configuration writes it.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            v6.into()
        }
    }
}

fn since_epoch(seconds: i64, nanos: i64) -> Option<Duration> {
    // `Duration::new` carries, and panics where that overflows.
    let nanos = u32::try_from(nanos).ok().filter(|n| *n < 1_000_000_000)?;
    let at = Duration::new(u64::try_from(seconds).ok()?, nanos);
    (!at.is_zero()).then_some(at)
}

fn read_allowed_ip(attributes: &[u8]) -> io::Result<IpNet> {
    let (mut address, mut length) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<_> = attribute.map_err(invalid)?;
        let value = attribute.value();
        match attribute.kind() & NLA_TYPE_MASK {
            WGALLOWEDIP_A_IPADDR => {
                let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                address = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
            }
            WGALLOWEDIP_A_CIDR_MASK => length = value.first().copied(),
            _ => {}
        }
    }
    let (Some(address), Some(length)) = (address, length) else { return Err(invalid("an allowed-ip without address")) };
    IpNet::new(address, length).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
    use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut out = vec![0; message.buffer_len()];
        message.emit(&mut out);
        out
    }

    #[test]
    fn questions_equal_the_librarys() {
        let family = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        assert_eq!(bytes(&family_question()), bytes(&family));
        for name in ["a", "wg0", "wireguard-0"] {
            let device = GenlMessage::from_payload(WireguardMessage {
                cmd: WireguardCmd::GetDevice,
                attributes: vec![WireguardAttribute::IfName(name.to_owned())],
            });
            assert_eq!(bytes(&device_question(&name.parse().unwrap())), bytes(&device));
        }
    }
}

//! What may pass between the peers of an interface, as an nftables table of our own: `inet spoke-IFACE`.
//!
//! ```text
//! table inet spoke-wg0 {                                        # closed: one rule
//!   set isolated4 { type ipv4_addr; flags interval; }           # open: two sets, four rules
//!   set isolated6 { type ipv6_addr; flags interval; }
//!   chain forward { type filter hook forward priority filter; policy accept;
//!     iifname "wg0" oifname "wg0" ip saddr @isolated4 drop comment "spoke: from isolated IPv4"
//!     … }
//! }
//! ```
//! A rule is known again by its comment, which `nft` shows and loses when anybody else replaces the rule. A table is
//! replaced as a whole in one transaction; one with so many isolated networks that a socket would not take it at once is
//! closed first and opened last, so that nobody is let through meanwhile who should not be.
use super::conversation::{Conversation, Message, Request, invalid};
use super::route::errno;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netlink_packet_core::{Emitable, NLA_TYPE_MASK, NlasIterator};
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_net::state::Forwarding;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PREFIX: &str = "spoke-";
const CHAIN: &str = "forward";
const SETS: [(&str, u32, u32); 2] = [("isolated4", 7, 4), ("isolated6", 8, 16)];
/// Rules while peers may not reach each other, by their comments.
const CLOSED: [&str; 1] = ["spoke: peers may not reach each other"];
/// Rules while they may.
const OPEN: [&str; 4] =
    ["spoke: from isolated IPv4", "spoke: to isolated IPv4", "spoke: from isolated IPv6", "spoke: to isolated IPv6"];

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;

const INET: u8 = 1;
const IPV4: u32 = 2;
const IPV6: u32 = 10;
const F_ACK: u16 = 0x4;
const F_CREATE: u16 = 0x400;
const F_APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const INTERVAL: u32 = 4;
const INTERVAL_END: u32 = 1;
const REGISTER: u32 = 1;

/// Elements in one message, whose list must stay below 64 KiB.
const ELEMENTS: usize = 500;
/// Bytes of one transaction, below the least send buffer a kernel is configured with (208 KiB).
const TRANSACTION: usize = 128 * 1024;

/// Bytes of a message after its netlink header.
struct Body(Vec<u8>);

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl Body {
    fn new(family: u8, resource: u16) -> Self {
        let [a, b] = resource.to_be_bytes();
        Self(vec![family, 0, a, b])
    }

    fn raw(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(self, kind: u16, text: &str) -> Self {
        self.raw(kind, &[text.as_bytes(), &[0]].concat())
    }

    fn number(self, kind: u16, n: u32) -> Self {
        self.raw(kind, &n.to_be_bytes())
    }

    fn nest(self, kind: u16, inner: Self) -> Self {
        self.raw(kind | NESTED, &inner.0)
    }
}

/// Attributes without a message's head.
const fn attributes() -> Body {
    Body(Vec::new())
}

fn message(kind: u16, flags: u16, body: &Body) -> Request {
    Request::new(SUBSYSTEM << 8 | kind, flags, body)
}

fn table_name(link: &IfName) -> String {
    format!("{PREFIX}{link}")
}

/// The socket that nftables is spoken on, opened when it is first needed.
#[derive(Default)]
pub(super) struct Filter(Option<Conversation>);

impl Filter {
    fn kernel(&mut self) -> io::Result<&mut Conversation> {
        match &mut self.0 {
            Some(open) => Ok(open),
            none => Ok(none.insert(Conversation::open(netlink_sys::protocols::NETLINK_NETFILTER)?)),
        }
    }

    /// Our tables. A kernel without nftables has none.
    pub(super) async fn read(&mut self) -> io::Result<BTreeMap<IfName, Option<Forwarding>>> {
        let ask = message(GET_TABLE, 0, &Body::new(INET, 0));
        let read = |tables: &mut Vec<(IfName, bool)>, m: Message<'_>| {
            let attributes = parse(m.payload.get(4..).unwrap_or_default());
            let name = attributes.get(&1).and_then(|v| string(v)).unwrap_or_default();
            let asleep = attributes.get(&2).and_then(|v| number(v)).unwrap_or(0) & 1 != 0;
            if let Some(link) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok()) {
                tables.push((link, asleep));
            }
            Ok(())
        };
        let tables = match self.kernel() {
            Ok(kernel) => kernel.dump(&ask, Vec::new, read).await,
            Err(e) => Err(e),
        };
        let tables = match tables {
            Ok(tables) => tables,
            Err(e) if missing(&e) => return Ok(BTreeMap::new()),
            Err(e) => return Err(e),
        };
        let mut out = BTreeMap::new();
        for (link, asleep) in tables {
            let seen = self.read_table(&table_name(&link)).await?;
            out.insert(link, seen.filter(|_| !asleep));
        }
        Ok(out)
    }

    async fn read_table(&mut self, table: &str) -> io::Result<Option<Forwarding>> {
        let kernel = self.kernel()?;
        let ask = message(GET_RULE, 0, &Body::new(INET, 0).text(1, table));
        let read = |rules: &mut Vec<String>, m: Message<'_>| {
            let attributes = parse(m.payload.get(4..).unwrap_or_default());
            if attributes.get(&1).and_then(|v| string(v)) == Some(table) {
                rules.push(attributes.get(&7).and_then(|v| comment(v)).unwrap_or_default().to_owned());
            }
            Ok(())
        };
        let rules: Vec<String> = kernel.dump(&ask, Vec::new, read).await?;
        if rules == CLOSED {
            return Ok(Some(Forwarding::default()));
        }
        if rules != OPEN {
            return Ok(None);
        }
        let mut isolated = BTreeSet::new();
        for (set, _, _) in SETS {
            let ask = message(GET_ELEMENTS, 0, &Body::new(INET, 0).text(1, table).text(2, set));
            let read = |bounds: &mut BTreeSet<(Vec<u8>, bool)>, m: Message<'_>| {
                let attributes = parse(m.payload.get(4..).unwrap_or_default());
                for element in NlasIterator::new(attributes.get(&3).copied().unwrap_or_default()).flatten() {
                    let element = parse(element.value());
                    let key = element.get(&1).map(|k| parse(k)).and_then(|k| k.get(&1).map(|v| v.to_vec()));
                    let start = element.get(&3).and_then(|v| number(v)).unwrap_or(0) & INTERVAL_END == 0;
                    bounds.extend(key.map(|k| (k, start)));
                }
                Ok(())
            };
            match kernel.dump(&ask, BTreeSet::new, read).await {
                Ok(bounds) => match networks(&bounds) {
                    Some(nets) => isolated.extend(nets),
                    None => return Ok(None),
                },
                Err(e) if errno(&e) == Some(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(Some(Forwarding { open: true, isolated }))
    }

    /// Replaces the table of `link`, or takes it away.
    pub(super) async fn write(&mut self, link: &IfName, forwarding: Option<&Forwarding>) -> io::Result<()> {
        let kernel = self.kernel().map_err(no_nftables)?;
        let table = table_name(link);
        let own = || Body::new(INET, 0).text(1, &table);
        // Created first, so that deleting never fails.
        let mut steps = vec![message(NEW_TABLE, F_CREATE, &own()), message(DEL_TABLE, 0, &own())];
        let Some(forwarding) = forwarding else { return transact(kernel, steps).await.map_err(no_nftables) };
        let hook = attributes().number(1, 2).number(2, 0);
        steps.push(message(NEW_TABLE, F_CREATE, &own()));
        steps.push(message(NEW_CHAIN, F_CREATE, &own().text(3, CHAIN).nest(4, hook).text(7, "filter")));
        let rules = |open: bool| -> Vec<Request> {
            let comments: &[&str] = if open { &OPEN } else { &CLOSED };
            let rule = |(i, comment): (usize, &&str)| {
                let body = own().text(2, CHAIN).nest(4, expressions(link, open.then_some(i)));
                message(NEW_RULE, F_CREATE | F_APPEND, &body.raw(7, &userdata(comment)))
            };
            comments.iter().enumerate().map(rule).collect()
        };
        if !forwarding.open {
            steps.extend(rules(false));
            return transact(kernel, steps).await.map_err(no_nftables);
        }
        for (i, (set, kind, length)) in (1..).zip(SETS) {
            let body = own().text(2, set).number(3, INTERVAL).number(4, kind).number(5, length).number(10, i);
            steps.push(message(NEW_SET, F_CREATE, &body));
        }
        let mut elements = Vec::new();
        for (set, _, length) in SETS {
            let bounds: Vec<_> = forwarding.isolated.iter().filter(|n| bits(n) == length * 8).flat_map(ends).collect();
            for some in bounds.chunks(ELEMENTS) {
                let list = some.iter().fold(attributes(), |list, (key, start)| {
                    let element = attributes().nest(1, attributes().raw(1, key));
                    list.nest(1, if *start { element } else { element.number(3, INTERVAL_END) })
                });
                elements.push(message(NEW_ELEMENTS, F_CREATE, &own().text(2, set).nest(3, list)));
            }
        }
        let size = |all: &[Request]| all.iter().map(Request::len).sum::<usize>();
        if size(&steps) + size(&elements) < TRANSACTION {
            steps.extend(elements);
            steps.extend(rules(true));
            return transact(kernel, steps).await.map_err(no_nftables);
        }
        steps.extend(rules(false));
        transact(kernel, steps).await.map_err(no_nftables)?;
        let mut rest = elements.into_iter().peekable();
        while rest.peek().is_some() {
            let mut some = Vec::new();
            while let Some(next) = rest.next_if(|next| some.is_empty() || size(&some) + next.len() < TRANSACTION) {
                some.push(next);
            }
            transact(kernel, some).await?;
        }
        let mut last = vec![message(DEL_RULE, 0, &own().text(2, CHAIN))];
        last.extend(rules(true));
        transact(kernel, last).await
    }
}

/// All or nothing.
async fn transact(kernel: &mut Conversation, steps: Vec<Request>) -> io::Result<()> {
    let mark = |kind| Request::new(kind, 0, &Body::new(0, SUBSYSTEM));
    let mut all = vec![mark(BATCH_BEGIN)];
    let count = steps.len();
    all.extend(steps.into_iter().enumerate().map(|(i, s)| if i + 1 == count { s.with_flags(F_ACK) } else { s }));
    all.push(mark(BATCH_END));
    kernel.transact(&all).await
}

/// What a rule does: `None` is the one of a closed table, else the index among [`OPEN`].
fn expressions(link: &IfName, index: Option<usize>) -> Body {
    let one = |name: &str, data: Body| attributes().text(1, name).nest(2, data);
    let load = |key: u32| one("meta", attributes().number(1, REGISTER).number(2, key));
    let equal =
        |value: &[u8]| one("cmp", attributes().number(1, REGISTER).number(2, 0).nest(3, attributes().raw(1, value)));
    let mut name = [0; 16];
    name[..link.as_str().len()].copy_from_slice(link.as_str().as_bytes());
    let (iifname, oifname, protocol) = (6, 7, 15);
    let mut all = vec![load(iifname), equal(&name), load(oifname), equal(&name)];
    if let Some(index) = index {
        let (six, to) = (index >= 2, index % 2 == 1);
        let (set, _, length) = SETS[usize::from(six)];
        let family = if six { IPV6 } else { IPV4 };
        let offset = match (six, to) {
            (false, false) => 12,
            (false, true) => 16,
            (true, false) => 8,
            (true, true) => 24,
        };
        let network_header = 1;
        all.push(load(protocol));
        all.push(equal(&[u8::try_from(family).unwrap_or_default()]));
        let from = attributes().number(1, REGISTER).number(2, network_header).number(3, offset).number(4, length);
        all.push(one("payload", from));
        all.push(one("lookup", attributes().text(1, set).number(2, REGISTER)));
    }
    let drop = attributes().nest(2, attributes().number(1, 0));
    all.push(one("immediate", attributes().number(1, 0).nest(2, drop)));
    all.into_iter().fold(attributes(), |list, e| list.nest(1, e))
}

/// A comment the way `nft` keeps it: type, length, text with its terminator.
fn userdata(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], comment.as_bytes(), &[0]].concat()
}

fn comment(userdata: &[u8]) -> Option<&str> {
    let [0, length, rest @ ..] = userdata else { return None };
    string(rest.get(..usize::from(*length))?)
}

fn parse(bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    let mut out = BTreeMap::new();
    let mut rest = bytes;
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = rest.get(4..length) else { break };
        out.insert(u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().map(|t| t.trim_end_matches('\0'))
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_be_bytes(*b))
}

fn bits(net: &IpNet) -> u32 {
    u32::from(net.max_prefix_len())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Where an interval begins and where it is over; the last one of all has no end.
fn ends(net: &IpNet) -> Vec<(Vec<u8>, bool)> {
    let after = match net.broadcast() {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(n.into())),
    };
    let mut out = vec![(octets(net.network()), true)];
    out.extend(after.map(|a| (octets(a), false)));
    out
}

/// The networks between the bounds; `None` if they are not what we write.
fn networks(bounds: &BTreeSet<(Vec<u8>, bool)>) -> Option<Vec<IpNet>> {
    let mut out = Vec::new();
    let mut from: Option<&[u8]> = None;
    // At the same place an end sorts before a start.
    for (key, start) in bounds {
        match (start, from) {
            (true, None) => from = Some(key),
            (false, Some(first)) => {
                out.extend(between(first, Some(key))?);
                from = None;
            }
            // The kernel closes the gap before the first interval with an end of its own at zero.
            (false, None) if key.iter().all(|b| *b == 0) => {}
            (true, Some(_)) | (false, None) => return None,
        }
    }
    if let Some(first) = from {
        out.extend(between(first, None)?);
    }
    Some(IpNet::aggregate(&out))
}

fn between(first: &[u8], after: Option<&[u8]>) -> Option<Vec<IpNet>> {
    if let Ok(first) = <[u8; 4]>::try_from(first) {
        let last = match after {
            Some(after) => u32::from_be_bytes(after.try_into().ok()?).checked_sub(1)?,
            None => u32::MAX,
        };
        return Some(Ipv4Subnets::new(first.into(), Ipv4Addr::from(last), 0).map(IpNet::V4).collect());
    }
    let first = <[u8; 16]>::try_from(first).ok()?;
    let last = match after {
        Some(after) => u128::from_be_bytes(after.try_into().ok()?).checked_sub(1)?,
        None => u128::MAX,
    };
    Some(Ipv6Subnets::new(first.into(), Ipv6Addr::from(last), 0).map(IpNet::V6).collect())
}

/// The kernel knows no nftables.
fn missing(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::NOENT))
}

fn no_nftables(error: io::Error) -> io::Error {
    if matches!(errno(&error), Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT)) {
        return invalid(format!("{error}: does this kernel have nftables (modprobe nf_tables, with inet tables)?"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net() -> impl Strategy<Value = IpNet> {
        let four = (any::<u32>(), 0u8..=32).prop_map(|(a, p)| IpNet::new(Ipv4Addr::from(a).into(), p).unwrap().trunc());
        let near = (0u32..64, 24u8..=32).prop_map(|(a, p)| IpNet::new(Ipv4Addr::from(a).into(), p).unwrap().trunc());
        let six =
            (any::<u128>(), 0u8..=128).prop_map(|(a, p)| IpNet::new(Ipv6Addr::from(a).into(), p).unwrap().trunc());
        prop_oneof![four, near, six]
    }

    proptest! {
        #[test]
        fn intervals_read_back_as_the_networks_they_were(nets in prop::collection::vec(net(), 0..30)) {
            let wanted: BTreeSet<IpNet> = IpNet::aggregate(&nets).into_iter().collect();
            let mut read = BTreeSet::new();
            for length in [32, 128] {
                let bounds: BTreeSet<_> = wanted.iter().filter(|n| bits(n) == length).flat_map(ends).collect();
                read.extend(networks(&bounds).unwrap());
            }
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn no_answer_panics(bytes: Vec<u8>) {
            let _ = (parse(&bytes), comment(&bytes), string(&bytes), number(&bytes));
        }
    }

    #[test]
    fn comments_read_back() {
        for text in CLOSED.iter().chain(&OPEN) {
            assert_eq!(comment(&userdata(text)), Some(*text));
        }
    }
}

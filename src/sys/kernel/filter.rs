//! Forwarding between the peers of an interface, as an nftables table of our own: `inet spoke-IFACE`.
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
//! A rule is identified by its comment, which `nft` shows and which is lost when another program replaces the rule. A
//! table is replaced as a whole in one transaction. One with more isolated networks than one transaction holds is
//! closed first and opened last: no isolated peer is let through in between.
use super::body::Body;
use super::conversation::{Conversation, Message, Request, invalid};
use super::nftables::*;
use super::route::errno;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netlink_packet_core::{NLA_TYPE_MASK, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NlasIterator};
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_net::state::Forwarding;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PREFIX: &str = "spoke-";
const CHAIN: &str = "forward";
/// Name, type of its keys, bytes of a key.
const SETS: [(&str, u32, u32); 2] = [("isolated4", TYPE_IPADDR, 4), ("isolated6", TYPE_IP6ADDR, 16)];
/// Rules of a closed table, by their comments.
const CLOSED: [&str; 1] = ["spoke: peers may not reach each other"];
/// Rules of an open table.
const OPEN: [&str; 4] =
    ["spoke: from isolated IPv4", "spoke: to isolated IPv4", "spoke: from isolated IPv6", "spoke: to isolated IPv6"];

/// Elements in one message, whose list must stay below 64 KiB.
const ELEMENTS: usize = 500;
/// Bytes of one transaction, below the least send buffer a kernel is configured with (208 KiB).
const TRANSACTION: usize = 128 * 1024;

/// Bytes of `struct nfgenmsg`, which every message begins with.
const HEAD: usize = 4;

/// A body that begins with `struct nfgenmsg`.
fn body(family: u8, resource: u16) -> Body {
    let [a, b] = resource.to_be_bytes();
    Body::new(&[family, 0, a, b])
}

/// Attributes without a message's head.
fn attributes() -> Body {
    Body::default()
}

fn message(kind: u16, flags: u16, body: &Body) -> Request {
    Request::new(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body)
}

fn table_name(link: &IfName) -> String {
    format!("{PREFIX}{link}")
}

/// The nftables socket, opened on first use.
#[derive(Default)]
pub(super) struct Filter(Option<Conversation>);

impl Filter {
    fn kernel(&mut self) -> io::Result<&mut Conversation> {
        match &mut self.0 {
            Some(open) => Ok(open),
            none => Ok(none.insert(Conversation::open(netlink_sys::protocols::NETLINK_NETFILTER)?)),
        }
    }

    /// Our tables; none if the kernel has no nftables.
    pub(super) async fn read(&mut self) -> io::Result<BTreeMap<IfName, Option<Forwarding>>> {
        let ask = message(NFT_MSG_GETTABLE, 0, &body(NFPROTO_INET, 0));
        let read = |tables: &mut Vec<(IfName, bool)>, m: Message<'_>| {
            let attributes = parse(m.payload.get(HEAD..).unwrap_or_default());
            let name = attributes.get(&NFTA_TABLE_NAME).and_then(|v| string(v)).unwrap_or_default();
            let flags = attributes.get(&NFTA_TABLE_FLAGS).and_then(|v| number(v)).unwrap_or(0);
            if let Some(link) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok()) {
                tables.push((link, flags & NFT_TABLE_F_DORMANT != 0));
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
        for (link, dormant) in tables {
            let seen = self.read_table(&table_name(&link)).await?;
            out.insert(link, seen.filter(|_| !dormant));
        }
        Ok(out)
    }

    async fn read_table(&mut self, table: &str) -> io::Result<Option<Forwarding>> {
        let kernel = self.kernel()?;
        let ask = message(NFT_MSG_GETRULE, 0, &body(NFPROTO_INET, 0).text(NFTA_RULE_TABLE, table));
        let read = |rules: &mut Vec<String>, m: Message<'_>| {
            let attributes = parse(m.payload.get(HEAD..).unwrap_or_default());
            if attributes.get(&NFTA_RULE_TABLE).and_then(|v| string(v)) == Some(table) {
                rules.push(attributes.get(&NFTA_RULE_USERDATA).and_then(|v| comment(v)).unwrap_or_default().to_owned());
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
            let list = body(NFPROTO_INET, 0).text(NFTA_SET_ELEM_LIST_TABLE, table).text(NFTA_SET_ELEM_LIST_SET, set);
            let ask = message(NFT_MSG_GETSETELEM, 0, &list);
            let read = |bounds: &mut BTreeSet<(Vec<u8>, bool)>, m: Message<'_>| {
                let attributes = parse(m.payload.get(HEAD..).unwrap_or_default());
                for element in
                    NlasIterator::new(attributes.get(&NFTA_SET_ELEM_LIST_ELEMENTS).copied().unwrap_or_default())
                        .flatten()
                {
                    let element = parse(element.value());
                    let key = element
                        .get(&NFTA_SET_ELEM_KEY)
                        .and_then(|k| parse(k).get(&NFTA_DATA_VALUE).map(|v| v.to_vec()));
                    let flags = element.get(&NFTA_SET_ELEM_FLAGS).and_then(|v| number(v)).unwrap_or(0);
                    bounds.extend(key.map(|k| (k, flags & NFT_SET_ELEM_INTERVAL_END == 0)));
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

    /// Replaces the table of `link`; `None` removes it.
    pub(super) async fn write(&mut self, link: &IfName, forwarding: Option<&Forwarding>) -> io::Result<()> {
        let kernel = self.kernel().map_err(no_nftables)?;
        let table = table_name(link);
        // Attribute 1 of a table, chain, rule, set and element list alike is the name of the table.
        let own = || body(NFPROTO_INET, 0).text(NFTA_TABLE_NAME, &table);
        // Created first, so that deleting it cannot fail.
        let mut steps = vec![message(NFT_MSG_NEWTABLE, NLM_F_CREATE, &own()), message(NFT_MSG_DELTABLE, 0, &own())];
        let Some(forwarding) = forwarding else { return transact(kernel, steps).await.map_err(no_nftables) };
        let hook = attributes().number(NFTA_HOOK_HOOKNUM, NF_INET_FORWARD).number(NFTA_HOOK_PRIORITY, NF_IP_PRI_FILTER);
        steps.push(message(NFT_MSG_NEWTABLE, NLM_F_CREATE, &own()));
        let chain = own().text(NFTA_CHAIN_NAME, CHAIN).nest(NFTA_CHAIN_HOOK, hook).text(NFTA_CHAIN_TYPE, "filter");
        steps.push(message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &chain));
        let rules = |open: bool| -> Vec<Request> {
            let comments: &[&str] = if open { &OPEN } else { &CLOSED };
            let rule = |(i, comment): (usize, &&str)| {
                let list = expressions(link, open.then_some(i));
                let body = own().text(NFTA_RULE_CHAIN, CHAIN).nest(NFTA_RULE_EXPRESSIONS, list);
                message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &body.raw(NFTA_RULE_USERDATA, &userdata(comment)))
            };
            comments.iter().enumerate().map(rule).collect()
        };
        if !forwarding.open {
            steps.extend(rules(false));
            return transact(kernel, steps).await.map_err(no_nftables);
        }
        for (i, (set, kind, length)) in (1..).zip(SETS) {
            let key = own().text(NFTA_SET_NAME, set).number(NFTA_SET_KEY_TYPE, kind).number(NFTA_SET_KEY_LEN, length);
            let body = key.number(NFTA_SET_FLAGS, NFT_SET_INTERVAL).number(NFTA_SET_ID, i);
            steps.push(message(NFT_MSG_NEWSET, NLM_F_CREATE, &body));
        }
        let mut elements = Vec::new();
        for (set, _, length) in SETS {
            let bounds: Vec<_> = forwarding.isolated.iter().filter(|n| bits(n) == length * 8).flat_map(ends).collect();
            for some in bounds.chunks(ELEMENTS) {
                let list = some.iter().fold(attributes(), |list, (key, start)| {
                    let element = attributes().nest(NFTA_SET_ELEM_KEY, attributes().raw(NFTA_DATA_VALUE, key));
                    let end = |e: Body| e.number(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                    list.nest(NFTA_LIST_ELEM, if *start { element } else { end(element) })
                });
                let body = own().text(NFTA_SET_ELEM_LIST_SET, set).nest(NFTA_SET_ELEM_LIST_ELEMENTS, list);
                elements.push(message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, &body));
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
        let mut last = vec![message(NFT_MSG_DELRULE, 0, &own().text(NFTA_RULE_CHAIN, CHAIN))];
        last.extend(rules(true));
        transact(kernel, last).await
    }
}

/// Sends a transaction: all of it is applied or nothing.
async fn transact(kernel: &mut Conversation, steps: Vec<Request>) -> io::Result<()> {
    let mark = |kind| Request::new(kind, 0, &body(0, NFNL_SUBSYS_NFTABLES));
    let mut all = vec![mark(NFNL_MSG_BATCH_BEGIN)];
    let count = steps.len();
    all.extend(steps.into_iter().enumerate().map(|(i, s)| if i + 1 == count { s.with_flags(NLM_F_ACK) } else { s }));
    all.push(mark(NFNL_MSG_BATCH_END));
    kernel.transact(&all).await
}

/// The expressions of a rule: `None` is the rule of a closed table, else the index in [`OPEN`].
fn expressions(link: &IfName, index: Option<usize>) -> Body {
    let one = |name: &str, data: Body| attributes().text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data);
    let load = |key: u32| one("meta", attributes().number(NFTA_META_DREG, NFT_REG_1).number(NFTA_META_KEY, key));
    let equal = |value: &[u8]| {
        let compare = attributes().number(NFTA_CMP_SREG, NFT_REG_1).number(NFTA_CMP_OP, NFT_CMP_EQ);
        one("cmp", compare.nest(NFTA_CMP_DATA, attributes().raw(NFTA_DATA_VALUE, value)))
    };
    let mut name = [0; 16];
    name[..link.as_str().len()].copy_from_slice(link.as_str().as_bytes());
    let mut all = vec![load(NFT_META_IIFNAME), equal(&name), load(NFT_META_OIFNAME), equal(&name)];
    if let Some(index) = index {
        let (six, to) = (index >= 2, index % 2 == 1);
        let (set, _, length) = SETS[usize::from(six)];
        // Offsets of source and destination in the header: RFC 791 section 3.1, RFC 8200 section 3.
        let (protocol, offset) = match (six, to) {
            (false, false) => (NFPROTO_IPV4, 12),
            (false, true) => (NFPROTO_IPV4, 16),
            (true, false) => (NFPROTO_IPV6, 8),
            (true, true) => (NFPROTO_IPV6, 24),
        };
        all.push(load(NFT_META_NFPROTO));
        all.push(equal(&[protocol]));
        let from =
            attributes().number(NFTA_PAYLOAD_DREG, NFT_REG_1).number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
        all.push(one("payload", from.number(NFTA_PAYLOAD_OFFSET, offset).number(NFTA_PAYLOAD_LEN, length)));
        all.push(one("lookup", attributes().text(NFTA_LOOKUP_SET, set).number(NFTA_LOOKUP_SREG, NFT_REG_1)));
    }
    let drop = attributes().nest(NFTA_DATA_VERDICT, attributes().number(NFTA_VERDICT_CODE, NF_DROP));
    let verdict = attributes().number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT).nest(NFTA_IMMEDIATE_DATA, drop);
    all.push(one("immediate", verdict));
    all.into_iter().fold(attributes(), |list, e| list.nest(NFTA_LIST_ELEM, e))
}

/// A comment in the format of `nft`: type, length, text with terminator.
fn userdata(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[NFTNL_UDATA_RULE_COMMENT, length], comment.as_bytes(), &[0]].concat()
}

fn comment(userdata: &[u8]) -> Option<&str> {
    let [NFTNL_UDATA_RULE_COMMENT, length, rest @ ..] = userdata else { return None };
    string(rest.get(..usize::from(*length))?)
}

/// Reads a message as a table, a rule and a list of elements.
#[cfg(feature = "sim")]
pub(super) fn read_any(payload: &[u8]) {
    let attributes = parse(payload.get(HEAD..).unwrap_or_default());
    let mut bounds = BTreeSet::new();
    for value in attributes.values() {
        let _ = (string(value), number(value), comment(value));
        for element in NlasIterator::new(value).flatten() {
            let element = parse(element.value());
            let key = element.get(&NFTA_SET_ELEM_KEY).and_then(|k| parse(k).get(&NFTA_DATA_VALUE).map(|v| v.to_vec()));
            bounds.extend(key.map(|k| (k, element.contains_key(&NFTA_SET_ELEM_FLAGS))));
        }
    }
    let _ = networks(&bounds);
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

/// Start and end of an interval; the interval that reaches the last address has no end.
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
    // At the same address an end sorts before a start.
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

/// Whether the error means that the kernel has no nftables.
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
        fn networks_survive_intervals(nets in prop::collection::vec(net(), 0..30)) {
            let wanted: BTreeSet<IpNet> = IpNet::aggregate(&nets).into_iter().collect();
            let mut read = BTreeSet::new();
            for length in [32, 128] {
                let bounds: BTreeSet<_> = wanted.iter().filter(|n| bits(n) == length).flat_map(ends).collect();
                read.extend(networks(&bounds).unwrap());
            }
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn any_message_is_parsed_without_panic(bytes: Vec<u8>) {
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

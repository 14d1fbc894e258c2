//! Edits of an interface's own values.
use super::{Context, Edited};
use crate::conflict::Conflict;
use ipnet::IpNet;
use spoke_config::interface::{MIN_MTU_V6, TABLE_MAIN};
use spoke_model::interface_name::IfName;
use spoke_model::key::SecretKey;
use spoke_net::api_state::{Device, Table};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Values of an interface; `None` leaves a value unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceValues {
    /// Private key.
    pub private_key: SecretKey,
    /// UDP port; 0 is a random one.
    pub listen_port: Option<u16>,
    /// Addresses with their prefix length.
    pub addresses: Option<BTreeSet<IpNet>>,
    /// Bytes; 0 is the default.
    pub mtu: Option<u32>,
    /// Resolvers and search domains.
    pub dns: Option<(Vec<IpAddr>, Vec<String>)>,
    /// Table of the routes to the peers.
    pub table: Option<Table>,
    /// Whether a peer's network may lie inside another peer's.
    pub nested_allowed_ips: Option<bool>,
}

impl DeviceValues {
    /// The device these values make of `old`.
    fn onto(&self, old: Option<&Device>) -> Device {
        let mut out = old.cloned().unwrap_or_else(|| Device {
            private_key: self.private_key.clone(),
            listen_port: None,
            fwmark: 0,
            addresses: BTreeSet::new(),
            mtu: None,
            dns: Vec::new(),
            dns_search: Vec::new(),
            table: Table::default(),
            nested_allowed_ips: false,
        });
        out.private_key = self.private_key.clone();
        if let Some(port) = self.listen_port {
            out.listen_port = (port != 0).then_some(port);
        }
        if let Some(addresses) = &self.addresses {
            out.addresses.clone_from(addresses);
        }
        if let Some(mtu) = self.mtu {
            out.mtu = (mtu != 0).then_some(mtu);
        }
        if let Some((dns, search)) = &self.dns {
            out.dns.clone_from(dns);
            out.dns_search.clone_from(search);
        }
        out.table = self.table.unwrap_or(out.table);
        out.nested_allowed_ips = self.nested_allowed_ips.unwrap_or(out.nested_allowed_ips);
        out
    }
}

/// Values of the interface in a `wg` file; `None`: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnValues {
    /// Private key.
    pub private_key: Option<SecretKey>,
    /// UDP port; 0 is a random one.
    pub listen_port: Option<u16>,
    /// Firewall mark; 0 is none.
    pub fwmark: Option<u32>,
}

/// The `[Interface]` section of a `wg` file: set on an interface created through the API, compared on a declared one.
pub(super) fn set_own(on: &Context<'_>, out: &mut Edited, own: &OwnValues) -> Result<(), Conflict> {
    let link = out.link.clone();
    if let Some(device) = on.state.links.get(&link).and_then(|l| l.device.as_ref()) {
        let mut device = (**device).clone();
        if let Some(key) = &own.private_key {
            device.private_key = key.clone();
        }
        if let Some(port) = own.listen_port {
            device.listen_port = (port != 0).then_some(port);
        }
        device.fwmark = own.fwmark.unwrap_or(device.fwmark);
        out.state.links.entry(link).or_default().device = Some(Arc::new(device));
        return Ok(());
    }
    let Some(want) = on.desired.links.get(&link) else { return Ok(()) };
    let same = [
        ("PrivateKey", own.private_key.as_ref().is_none_or(|k| k.public() == want.private_key.public())),
        ("ListenPort", own.listen_port.is_none_or(|p| on.same_port(&link, want, p))),
        ("FwMark", own.fwmark.is_none_or(|m| m == want.fwmark)),
    ];
    on.same(&link, same)
}

/// Values of a declared interface: accepted if they are those in force.
fn same_device(on: &Context<'_>, link: &IfName, values: &DeviceValues) -> Result<(), Conflict> {
    let (Some(want), Some(interface)) = (on.desired.links.get(link), on.config.interface(link)) else {
        return on.not_configured(link);
    };
    let own = interface.own();
    let table = match values.table {
        None => true,
        Some(Table::Auto) => own.routes && own.table == TABLE_MAIN,
        Some(Table::Off) => !own.routes,
        Some(Table::Number(n)) => own.routes && own.table == n,
    };
    let same = [
        ("PrivateKey", values.private_key.public() == want.private_key.public()),
        ("ListenPort", values.listen_port.is_none_or(|p| on.same_port(link, want, p))),
        ("Address", values.addresses.as_ref().is_none_or(|a| *a == want.addresses)),
        ("MTU", values.mtu.is_none_or(|m| m == 0 || m == want.mtu)),
        ("DNS", values.dns.as_ref().is_none_or(|(dns, search)| *dns == want.dns && search.is_empty())),
        ("Table", table),
        ("nested_allowed_ips", values.nested_allowed_ips.is_none_or(|n| n == own.nested_allowed_ips)),
    ];
    on.same(link, same)
}

pub(super) fn set_device(on: &Context<'_>, out: &mut Edited, values: &DeviceValues) -> Result<(), Conflict> {
    let link = out.link.clone();
    if on.is_configured(&link) {
        return same_device(on, &link, values);
    }
    on.not_foreign(&link)?;
    let device = values.onto(on.state.links.get(&link).and_then(|l| l.device.as_deref()));
    if let Some(small) = device.mtu.filter(|m| *m < MIN_MTU_V6 && device.addresses.iter().any(|a| a.addr().is_ipv6())) {
        return Err(Conflict::SmallMtu(small));
    }
    if let Some(port) = device.listen_port {
        let taken = on.observed.links.iter().find(|(name, l)| **name != link && l.up && l.listen_port == port);
        if let Some((holder, _)) = taken {
            return Err(Conflict::PortTaken { port, holder: holder.clone() });
        }
    }
    let entry = out.state.links.entry(link).or_default();
    if entry.peers.contains_key(&device.private_key.public()) {
        return Err(Conflict::OwnKey(device.private_key.public()));
    }
    entry.device = Some(Arc::new(device));
    Ok(())
}

//! Conditions: what keeps a node from being healthy, as a stable code, the moment it began and a text for people.
use crate::time::Boot;
use serde::Serialize;
use std::fmt;

/// A condition that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Its reason.
    pub code: Code,
    /// When it began, on the boot clock.
    pub since: Boot,
    /// For people: what differs or failed, and with which error.
    pub detail: String,
    /// What it is about, where several conditions of one code may hold: an interface with its address, route or peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

impl Condition {
    /// A condition that begins at `since`.
    pub fn new(code: Code, since: Boot, detail: impl Into<String>) -> Self {
        Self { code, since, detail: detail.into(), object: None }
    }

    /// The same condition about `object`.
    #[must_use]
    pub fn about(self, object: impl Into<String>) -> Self {
        Self { object: Some(object.into()), ..self }
    }

    /// Keeps the beginning of conditions that held before: their detail may change, their age does not.
    pub fn carry_since(conditions: &mut [Self], before: &[Self]) {
        for condition in conditions {
            if let Some(known) = before.iter().find(|b| b.code == condition.code && b.object == condition.object) {
                condition.since = known.since;
            }
        }
    }
}

/// The reason of a condition. Monitors and alert rules match its text, so that text never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No settings were found on the boot partition.
    NotProvisioned,
    /// No session with a hub.
    NoTunnel,
    /// The hub does not answer echo requests through the tunnel.
    HubSilent,
    /// The newest handshake is older than WireGuard lets a session live.
    HandshakeStale,
    /// A desired interface is not up on a node without an uplink.
    InterfaceDown,
    /// No reconcile pass was completed since the process started.
    Starting,
    /// Configuration and facts do not make a valid desired state; the last valid one stays in force.
    DesiredInvalid,
    /// The kernel refused a step.
    ApplyFailed,
    /// An IPv6 address or route is refused because IPv6 is disabled; the IPv4 ones are in force.
    Ipv6Disabled,
    /// A route is missing because another interface or program has one to the same network.
    RouteConflict,
    /// A network of the tunnel overlaps one that is connected to another interface, which has precedence.
    NetworkOverlap,
    /// The fixed UDP port of an interface is in use by another program.
    PortInUse,
    /// A private or preshared key cannot be read; its interface or peer is not set up.
    KeyUnreadable,
    /// The system's route to the hub's tunnel address does not lead into the tunnel.
    TunnelBypassed,
    /// An interface that is not WireGuard has a desired interface's name.
    NameTaken,
    /// Another program undoes a repair again and again.
    Contested,
    /// Two devices use one key or identity.
    DuplicateIdentity,
    /// The control plane's state was reverted, or cannot be kept on disk.
    ConfigDegraded,
    /// The control plane does not answer, or its state is not accepted.
    ControlAway,
    /// The control plane has removed the node from the fleet.
    Removed,
    /// The control plane does not accept the enrolment token, or there is none.
    TokenRefused,
    /// An operator has yet to approve the node.
    ApprovalPending,
    /// An operator has disabled the node: the hubs do not have it as a peer.
    Disabled,
    /// No chain endpoint gives a verified answer.
    ContractAway,
    /// Grants are checked with restrictions: an endpoint of another chain, or more candidates than fit.
    AccessControlDegraded,
    /// The disk takes no writes, or has no usable state partition: changes are lost at the next start.
    FlashReadonly,
    /// The boot partition cannot be read: no settings are taken from it and no update can be installed.
    BootUnreadable,
}

/// How urgent a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It ends by itself, or the node works around it.
    Warning,
    /// Part of the configuration is not in force: an operator must act.
    Error,
    /// The node carries no traffic.
    Critical,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 27] = [
        Self::NotProvisioned,
        Self::NoTunnel,
        Self::HubSilent,
        Self::HandshakeStale,
        Self::InterfaceDown,
        Self::Starting,
        Self::DesiredInvalid,
        Self::ApplyFailed,
        Self::Ipv6Disabled,
        Self::RouteConflict,
        Self::NetworkOverlap,
        Self::PortInUse,
        Self::KeyUnreadable,
        Self::TunnelBypassed,
        Self::NameTaken,
        Self::Contested,
        Self::DuplicateIdentity,
        Self::ConfigDegraded,
        Self::ControlAway,
        Self::Removed,
        Self::TokenRefused,
        Self::ApprovalPending,
        Self::Disabled,
        Self::ContractAway,
        Self::AccessControlDegraded,
        Self::FlashReadonly,
        Self::BootUnreadable,
    ];

    /// The text in JSON, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotProvisioned => "not_provisioned",
            Self::NoTunnel => "no_tunnel",
            Self::HubSilent => "hub_silent",
            Self::HandshakeStale => "handshake_stale",
            Self::InterfaceDown => "interface_down",
            Self::Starting => "starting",
            Self::DesiredInvalid => "desired_invalid",
            Self::ApplyFailed => "apply_failed",
            Self::Ipv6Disabled => "ipv6_disabled",
            Self::RouteConflict => "route_conflict",
            Self::NetworkOverlap => "network_overlap",
            Self::PortInUse => "port_in_use",
            Self::KeyUnreadable => "key_unreadable",
            Self::TunnelBypassed => "tunnel_bypassed",
            Self::NameTaken => "name_taken",
            Self::Contested => "contested",
            Self::DuplicateIdentity => "duplicate_identity",
            Self::ConfigDegraded => "config_degraded",
            Self::ControlAway => "control_away",
            Self::Removed => "removed",
            Self::TokenRefused => "token_refused",
            Self::ApprovalPending => "approval_pending",
            Self::Disabled => "disabled",
            Self::ContractAway => "contract_away",
            Self::AccessControlDegraded => "access_control_degraded",
            Self::FlashReadonly => "flash_readonly",
            Self::BootUnreadable => "boot_unreadable",
        }
    }

    /// How urgent it is.
    pub const fn severity(self) -> Severity {
        match self {
            Self::NotProvisioned | Self::NoTunnel | Self::HubSilent | Self::InterfaceDown => Severity::Critical,
            Self::DesiredInvalid
            | Self::ApplyFailed
            | Self::Ipv6Disabled
            | Self::RouteConflict
            | Self::NetworkOverlap
            | Self::PortInUse
            | Self::KeyUnreadable
            | Self::TunnelBypassed
            | Self::NameTaken
            | Self::Contested
            | Self::DuplicateIdentity
            | Self::ConfigDegraded
            | Self::Removed
            | Self::TokenRefused
            | Self::ApprovalPending
            | Self::Disabled
            | Self::AccessControlDegraded
            | Self::FlashReadonly
            | Self::BootUnreadable => Severity::Error,
            Self::Starting | Self::HandshakeStale | Self::ControlAway | Self::ContractAway => Severity::Warning,
        }
    }

    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NotProvisioned => "put spoke.toml on the boot partition and restart the device",
            Self::NoTunnel => "run `spoke doctor`: it checks the WAN, the hub's endpoint, the port and the keys",
            Self::HubSilent => {
                "check that the hub answers ICMP echo at its tunnel address and that its allowed-ips for this node are right"
            }
            Self::HandshakeStale => "wait for the next handshake; if it stays, check the keys and the clock of the hub",
            Self::InterfaceDown => "run `spoke plan` and `spoke drift` to see what keeps the interface down",
            Self::Starting => {
                "wait a few seconds; if it stays, see the log for the fact that is missing (journalctl -u spoke)"
            }
            Self::DesiredInvalid => "correct the setting the detail names, in the file or at the control plane",
            Self::ApplyFailed => "act on the kernel's error in the detail; the step is tried again with every pass",
            Self::Ipv6Disabled => {
                "enable IPv6 on the interface (sysctl net.ipv6.conf.IFACE.disable_ipv6=0), or remove the IPv6 networks from the configuration"
            }
            Self::RouteConflict => "remove the other route, or the network from the peer's allowed-ips",
            Self::NetworkOverlap => {
                "renumber one of the two networks, or remove the tunnel's network from addresses and allowed-ips"
            }
            Self::PortInUse => "stop the program the detail names, or set another listen_port",
            Self::KeyUnreadable => {
                "put the key into the file that the detail names, or its backup: it is read every five seconds"
            }
            Self::TunnelBypassed => {
                "see `ip route get ADDRESS` for the hub's address: remove the route or rule that captures it"
            }
            Self::NameTaken => "rename the other interface, or choose another name in the configuration",
            Self::Contested => {
                "stop the other program, or give both the same value (`spoke drift` shows the difference): until then it is repaired ever more rarely"
            }
            Self::DuplicateIdentity => {
                "give one of the two devices keys and a name of its own (a copied card: `spoke-image flash` it again); a single device changes its WAN to and fro"
            }
            Self::ConfigDegraded => {
                "see the reason in the detail: correct the node's state at the control plane, or free disk space"
            }
            Self::ControlAway => {
                "nothing for the tunnel: the last good state stays in force; check control.url, DNS and the control plane"
            }
            Self::Removed => {
                "enrol again: `spoke-control token create --node ID`, put the token in control.token, then `spoke enrol --again`"
            }
            Self::TokenRefused => {
                "make another token (`spoke-control token create`) and put it in control.token; it is read again with each try"
            }
            Self::ApprovalPending => "approve it on the control plane: `spoke-control node approve ID`",
            Self::Disabled => "enable it on the control plane: `spoke-control node enable ID`",
            Self::ContractAway => "check grants.endpoints with `spoke doctor`; add endpoints of another operator",
            Self::AccessControlDegraded => {
                "correct grants.endpoints or grants.chain_id, or reduce the number of candidates"
            }
            Self::FlashReadonly => "replace the card or disk: the tunnel works on, changes are lost at the next start",
            Self::BootUnreadable => {
                "flash the device again with `spoke-image flash --keep-state`; do not restart it before: it may not start"
            }
        }
    }

    /// Whether the control plane cannot be used. An update is not committed under such a condition: a system that
    /// cannot reach its control plane could not be updated again.
    pub const fn concerns_control_plane(self) -> bool {
        match self {
            Self::ControlAway | Self::Removed | Self::TokenRefused | Self::ApprovalPending => true,
            Self::NotProvisioned
            | Self::NoTunnel
            | Self::HubSilent
            | Self::HandshakeStale
            | Self::InterfaceDown
            | Self::Starting
            | Self::DesiredInvalid
            | Self::ApplyFailed
            | Self::Ipv6Disabled
            | Self::RouteConflict
            | Self::NetworkOverlap
            | Self::PortInUse
            | Self::KeyUnreadable
            | Self::TunnelBypassed
            | Self::NameTaken
            | Self::Contested
            | Self::DuplicateIdentity
            | Self::ConfigDegraded
            | Self::Disabled
            | Self::ContractAway
            | Self::AccessControlDegraded
            | Self::FlashReadonly
            | Self::BootUnreadable => false,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_serialised_as_its_text() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert_eq!(code.to_string(), code.as_str());
        }
    }

    #[test]
    fn all_codes_are_listed_once_with_a_remedy() {
        let texts: std::collections::BTreeSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| !c.remedy().is_empty()));
    }

    #[test]
    fn documentation_lists_all_codes() {
        let page = include_str!("../../docs/operate-and-troubleshoot.md");
        for code in Code::ALL {
            let severity = serde_json::to_value(code.severity()).unwrap();
            let row = format!("| `{code}` | {} |", severity.as_str().unwrap());
            let line = page.lines().find(|l| l.starts_with(&row)).unwrap_or_else(|| panic!("no row {row}"));
            assert!(line.ends_with(&format!("| {} |", code.remedy())), "{line}");
        }
    }

    #[test]
    fn lasting_condition_keeps_its_beginning() {
        let before = [Condition::new(Code::ApplyFailed, Boot::from_secs(5), "a")];
        let mut after = [
            Condition::new(Code::ApplyFailed, Boot::from_secs(9), "b"),
            Condition::new(Code::NameTaken, Boot::from_secs(9), "c"),
        ];
        Condition::carry_since(&mut after, &before);
        assert_eq!(after.map(|c| c.since), [Boot::from_secs(5), Boot::from_secs(9)]);
    }

    #[test]
    fn conditions_of_one_code_age_by_their_object() {
        let at = |secs, object| Condition::new(Code::ApplyFailed, Boot::from_secs(secs), "").about(object);
        let mut after = [at(9, "a"), at(9, "b")];
        Condition::carry_since(&mut after, &[at(5, "a")]);
        assert_eq!(after.map(|c| c.since), [Boot::from_secs(5), Boot::from_secs(9)]);
    }

    #[test]
    fn docs_list_every_code_with_its_remedy() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operate-and-troubleshoot.md");
        let page = std::fs::read_to_string(page).unwrap();
        let table = page.split("## ").find(|s| s.starts_with("Conditions\n")).unwrap();
        let rows: Vec<&str> = table.lines().filter(|l| l.starts_with("| `")).collect();
        for (i, code) in Code::ALL.into_iter().enumerate() {
            let severity = serde_json::to_value(code.severity()).unwrap();
            let (start, end) =
                (format!("| `{code}` | {} | ", severity.as_str().unwrap()), format!(" | {} |", code.remedy()));
            let row = rows.get(i).copied().unwrap_or_default();
            assert!(row.starts_with(&start) && row.ends_with(&end), "row {i} is {row:?}, not \"{start}…{end}\"");
        }
        assert_eq!(rows.len(), Code::ALL.len());
    }
}

//! Evaluates a hub's forwarding and the control plane.
use super::finding::Finding;
use super::probe::control::{ControlProbeError, ForwardingFamily};
use spoke_config::effective::Effective;
use spoke_model::address::HostPort;
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_sys::http::HttpError;

/// The interfaces whose peers may reach each other, with the families that need forwarding.
pub fn forwarding_interfaces(config: &Effective) -> Vec<(&IfName, Vec<ForwardingFamily>)> {
    let forwarding = config.interfaces().filter(|i| i.forwarding());
    let families = forwarding.map(|i| {
        let v6 = i.addresses().iter().any(|a| a.0.addr().is_ipv6());
        let v6 = v6.then_some(ForwardingFamily::V6);
        (&i.own().name, std::iter::once(ForwardingFamily::V4).chain(v6).collect())
    });
    families.collect()
}

/// Whether the machine forwards; `enabled` is `None` if the setting cannot be read.
pub fn forwarding(interface: &IfName, family: ForwardingFamily, enabled: Option<bool>) -> Finding {
    let (what, sysctl) = (format!("forwarding on {interface}"), family.sysctl());
    match enabled {
        Some(false) => Finding::warn(
            what,
            format!("peers may reach each other, but {sysctl} is 0"),
            format!("sysctl -w {sysctl}=1, and the same line in /etc/sysctl.d"),
        ),
        Some(true) | None => Finding::ok(what, format!("{sysctl} is on")),
    }
}

/// Whether the control plane at `url` answers and is the expected one. The tunnel works without it.
///
/// Any HTTP status counts as an answer, since the request is not authenticated.
pub fn control_plane(url: &HostPort, probe: &Result<u16, ControlProbeError>) -> Finding {
    let what = "control plane";
    match probe {
        Ok(status) => Finding::ok(what, format!("{url} answers (status {status})")),
        Err(ControlProbeError::Trust(e)) => Finding::fail(what, ErrorChain(e).to_string(), "correct control.ca"),
        Err(ControlProbeError::Ca(e)) => Finding::fail(what, ErrorChain(e).to_string(), "correct control.ca"),
        Err(ControlProbeError::Http(e @ HttpError::Untrusted(_))) => Finding::fail(
            what,
            format!("{url}: {}", ErrorChain(e)),
            "compare control.pin with what `spoke-control serve` prints, or control.ca with its certificate",
        ),
        Err(ControlProbeError::Http(e)) => Finding::fail(
            what,
            format!("{url}: {}", ErrorChain(e)),
            "check control.url and the route to it; the last good state stays in force meanwhile",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn disabled_forwarding_is_a_warning() {
        let name: IfName = "wg0".parse().unwrap();
        let off = forwarding(&name, ForwardingFamily::V6, Some(false));
        assert!(off.level == Level::Warn && off.remedy.unwrap().contains("net.ipv6.conf.all.forwarding=1"));
        for enabled in [Some(true), None] {
            assert_eq!(forwarding(&name, ForwardingFamily::V4, enabled).level, Level::Ok);
        }
    }

    #[test]
    fn any_status_of_the_control_plane_is_an_answer() {
        let url: HostPort = "c.example.net:8443".parse().unwrap();
        assert_eq!(control_plane(&url, &Ok(401)).level, Level::Ok);
        let unreachable = ControlProbeError::Http(HttpError::Timeout(std::time::Duration::from_secs(15)));
        assert_eq!(control_plane(&url, &Err(unreachable)).level, Level::Fail);
    }
}

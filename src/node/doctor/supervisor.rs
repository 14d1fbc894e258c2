//! Evaluates what the supervisor answers: whether it runs, its conditions, and the tunnel to the hub.
use super::finding::{Finding, Level};
use serde_json::Value;
use spoke_api::socket::{ConditionReport, PeerReport, StatusReport};
use spoke_config::effective::Effective;
use spoke_config::uplink::Hub;
use spoke_model::condition::{Code, Severity};
use spoke_model::error_chain::ErrorChain;
use spoke_sys::socket::CallError;

/// Differences that are listed one by one.
const MAX_LINES: usize = 5;

/// The faults of a configuration, one a line; the last line is their number.
pub fn faulty(faults: &str) -> Vec<Finding> {
    let remedy = "correct it, and test it with `spoke check`; a running supervisor keeps what it has";
    let listed = faults.rsplit_once('\n').map_or(faults, |(listed, _)| listed);
    listed.lines().map(|fault| Finding::fail("configuration", fault, remedy)).collect()
}

/// Whether the supervisor answers.
pub fn answer(report: &Result<StatusReport, CallError>) -> Finding {
    let what = "supervisor";
    match report {
        Ok(r) => Finding::ok(what, format!("version {}, up {} s", r.version, r.uptime_seconds as u64)),
        Err(e @ CallError::NotAllowed { .. }) => {
            Finding::warn(what, e.to_string(), "run `spoke doctor` as root, so that it can ask the supervisor")
        }
        Err(e @ CallError::NotRunning { .. }) => Finding::fail(
            what,
            format!("it does not run: {}", ErrorChain(e)),
            "systemctl start spoke; `journalctl -u spoke` has the reason why it ended",
        ),
        Err(e) => Finding::fail(what, ErrorChain(e).to_string(), "see `journalctl -u spoke`; systemctl restart spoke"),
    }
}

/// Whether the configuration file differs from what is in force.
pub fn edited(lines: &[String]) -> Option<Finding> {
    let first = lines.get(..MAX_LINES).unwrap_or(lines).join("; ");
    let more = match lines.len().saturating_sub(MAX_LINES) {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    let detail = format!("the file was edited and is not in force: {first}{more}");
    (!lines.is_empty()).then(|| Finding::fail("configuration", detail, "take it into force with `spoke reload`"))
}

/// The conditions and the tunnel of a supervisor that runs.
pub fn running(report: &StatusReport, config: &Effective) -> Vec<Finding> {
    let enrolled = report.control.as_ref().is_none_or(|c| c["enrolled"] == true);
    let mut out: Vec<Finding> = report.conditions.iter().filter_map(|c| condition(c, enrolled)).collect();
    out.extend(report.uplink.as_ref().and_then(|uplink| tunnel(uplink, report, config)));
    out
}

/// `None`: [`tunnel`] has more to say about it.
fn condition(c: &ConditionReport, enrolled: bool) -> Option<Finding> {
    let Some(code) = Code::ALL.into_iter().find(|code| code.as_str() == c.code) else {
        return Some(Finding::warn(&c.code, &c.detail, "see `spoke status`: it is of a later version"));
    };
    if matches!(code, Code::NoTunnel | Code::HubSilent) {
        return None;
    }
    let mut finding = Finding::fail(&c.code, &c.detail, code.remedy());
    if code.severity() == Severity::Warning && (enrolled || !code.concerns_control_plane()) {
        finding.level = Level::Warn;
    }
    Some(finding)
}

/// The tunnel to the active hub.
fn tunnel(uplink: &Value, report: &StatusReport, config: &Effective) -> Option<Finding> {
    let text = |key: &str| uplink[key].as_str();
    let name = text("hub")?;
    let hub = config.hubs().iter().find(|h| h.name == name)?;
    let what = format!("tunnel to {name}");
    let link = report.interfaces.iter().find(|l| Some(&l.name) == config.uplink_interface());
    let peer = link.and_then(|l| l.peers.iter().find(|p| p.public_key == hub.public_key));
    let age = peer.and_then(|p| p.handshake_age);
    if text("state") == Some("up") && uplink["hub_answers"] == true {
        let age = age.map_or(String::new(), |s| format!("; last handshake {s} s ago"));
        return Some(Finding::ok(what, format!("{} answers through it{age}", hub.address)));
    }
    let Some(reason) = text("last_error") else {
        let detail = format!("not up yet, {} s after the start", report.uptime_seconds as u64);
        return Some(Finding::warn(what, detail, "wait some seconds and run `spoke doctor` again"));
    };
    let endpoint = text("endpoint").unwrap_or("an unknown address");
    let ours = link.and_then(|l| l.public_key).map_or("(none yet)".to_owned(), |key| key.to_string());
    Some(match age {
        Some(age) => no_echo(what, age, reason, hub),
        None => {
            let detail = format!("no handshake with {endpoint}{}: {reason}", counters(peer));
            let remedy = format!(
                "on the hub, `wg show` must list the peer {ours}, and its own public key must be {}; then check uplink.hub.endpoint and that UDP gets there",
                hub.public_key
            );
            Finding::fail(what, detail, remedy)
        }
    })
}

fn counters(peer: Option<&PeerReport>) -> String {
    peer.map_or(String::new(), |p| format!(", {} B sent and {} B received", p.tx, p.rx))
}

fn no_echo(what: String, age: u64, reason: &str, hub: &Hub) -> Finding {
    let detail = format!("handshake {age} s ago, and no answer of {} through it: {reason}", hub.address);
    let remedy = format!(
        "on the hub, `ip addr` must show {} (uplink.hub.address), and the allowed-ips of this node's peer its addresses",
        hub.address
    );
    Finding::fail(what, detail, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_the_configuration_is_a_finding() {
        let found = faulty("a.toml: x: no; y\na.toml: z: no; y\n2 faults");
        assert_eq!(
            found.iter().map(|f| f.detail.as_str()).collect::<Vec<_>>(),
            ["a.toml: x: no; y", "a.toml: z: no; y"]
        );
        assert_eq!(faulty("the environment: X: unset it").len(), 1);
    }

    #[test]
    fn differences_of_the_file_are_limited() {
        assert!(edited(&[]).is_none());
        let lines: Vec<String> = (0..7).map(|n| format!("k{n}: 1 → 2")).collect();
        let found = edited(&lines).unwrap();
        assert!(found.level == Level::Fail && found.detail.ends_with("k4: 1 → 2; and 2 more"), "{found:?}");
    }

    #[test]
    fn severity_decides_except_for_a_node_without_enrolment() {
        let of = |code: Code, enrolled| {
            let report = ConditionReport { code: code.to_string(), seconds: 1, detail: "x".into() };
            condition(&report, enrolled).map(|f| f.level)
        };
        assert_eq!(of(Code::PortInUse, true), Some(Level::Fail));
        assert_eq!(of(Code::ControlAway, true), Some(Level::Warn));
        assert_eq!(of(Code::ControlAway, false), Some(Level::Fail));
        assert_eq!(of(Code::ContractAway, false), Some(Level::Warn));
        assert_eq!(of(Code::NoTunnel, true), None);
    }
}

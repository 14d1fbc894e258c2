//! `spoke status`: the status of the running supervisor, as a table or as JSON.
use crate::config_file::{faulty_socket, load, socket};
use spoke_api::socket::{LinkReport, Readiness, SocketRequest, StatusReport};
use spoke_command::text::Lines;
use spoke_command::{Failure, Outcome, print};
use spoke_config::health::Health;
use spoke_model::tree::Tree;
use spoke_sys::fetch::local;
use spoke_sys::socket::call;
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

/// `spoke status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print again every two seconds until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Only ask /ready: exit code 0 while the last pass was clean and the tunnel is up (the health check of a container)
    #[arg(long, conflicts_with = "watch")]
    pub ready: bool,
}

/// Prints the status; exit code 1 if the supervisor does not answer. Interrupting a watch is its normal end.
pub fn run(config: &Path, args: &Args, json: bool) -> Outcome {
    if args.ready {
        return ready(config, json);
    }
    let socket = socket(config)?;
    // Clears a terminal only; in a file or a pipe the reports follow one another.
    let clear = if args.watch && std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    loop {
        if json {
            let report: serde_json::Value = call(&socket, &SocketRequest::Status)?;
            // One report per line in watch mode, so that readers can split them.
            print(&if args.watch { format!("{report}\n") } else { format!("{report:#}\n") });
        } else {
            let report: StatusReport = call(&socket, &SocketRequest::Status)?;
            print(&format!("{clear}{}", table(&report)));
        }
        if !args.watch {
            return Ok(());
        }
        let interrupted = spoke_command::block_on(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => true,
                () = tokio::time::sleep(Duration::from_secs(2)) => false,
            }
        })?;
        if interrupted {
            return Ok(());
        }
    }
}

/// Prints the response of /ready; exit code 1 unless ready. While the configuration has faults the supervisor is asked
/// through its socket: it keeps what it has.
fn ready(file: &Path, json: bool) -> Outcome {
    let (is_ready, text) = match load(file) {
        Ok(config) => served(&config.health)?,
        Err(faults) => match call::<Readiness>(&faulty_socket(file), &SocketRequest::Readiness) {
            Ok(Readiness { ready: true, .. }) => (true, "ready".to_owned()),
            Ok(_) => (false, "not ready: see `spoke status`".to_owned()),
            Err(_) => return Err(faults),
        },
    };
    if json {
        let entries = vec![("ready", Tree::Bool(is_ready)), ("detail", Tree::Text(text))];
        print(&super::document(super::object(entries))?);
    } else {
        print(&format!("{text}\n"));
    }
    if is_ready { Ok(()) } else { Err(Failure::Silent) }
}

fn served(health: &Health) -> Result<(bool, String), Failure> {
    let address = health
        .listen
        .first()
        .filter(|_| health.enabled)
        .ok_or_else(|| Failure::BadInput("health.enabled is false: /ready is not served".into()))?;
    let (status, body) = local(*address, "/ready")
        .map_err(|e| anyhow::Error::from(e).context(format!("no supervisor answers at {address}")))?;
    Ok((status == 200, body.trim_end().to_owned()))
}

/// The report as text.
pub fn table(r: &StatusReport) -> String {
    let mut out = Lines::default();
    let state = if r.clean { "in sync" } else { "OUT OF SYNC" };
    let node = r.node_id.as_deref().unwrap_or("(not enrolled)");
    let verdict = if r.status.is_empty() { "-" } else { &r.status };
    let _ = writeln!(out, "spoke {}  node {node}  {verdict}  up {}", r.version, age(r.uptime_seconds as u64));
    let _ = writeln!(
        out,
        "kernel: {state}, revision {}, pass {} {} ago; {} changes, {} repairs, {} refusals",
        r.generation,
        r.passes,
        age(r.last_pass_seconds as u64),
        r.changes,
        r.repairs,
        r.failures
    );
    if let Some(u) = &r.uplink {
        uplink(&mut out, u);
    }
    if let Some(control) = &r.control {
        self::control(&mut out, control);
    }
    for t in &r.conditions {
        let _ = writeln!(out, "! {} for {}: {}", t.code, age(t.seconds), t.detail);
    }
    for left in &r.left {
        let _ = writeln!(out, "  left: {left}");
    }
    for link in &r.interfaces {
        interface(&mut out, link);
    }
    if !r.history.is_empty() {
        out.blank();
        let _ = writeln!(out, "last steps");
        for d in r.history.iter().rev().take(10) {
            let failed = d.error.as_ref().map(|e| format!("  REFUSED: {e}")).unwrap_or_default();
            let _ = writeln!(out, "  {:>8} ago  {:<6}  {}{failed}", age(d.seconds_ago), d.cause, d.what);
        }
    }
    out.into()
}

/// The uplink: state, endpoint, quality, next attempt.
fn uplink(out: &mut Lines, u: &serde_json::Value) {
    let text = |k: &str| u.get(k).and_then(serde_json::Value::as_str);
    let number = |k: &str| u.get(k).and_then(serde_json::Value::as_u64);
    let _ = write!(out, "uplink: {} via {}", text("state").unwrap_or("-"), text("hub").unwrap_or("-"));
    if let Some(endpoint) = text("endpoint") {
        let _ = write!(out, " at {endpoint}");
    }
    let seconds =
        [("connected_seconds", "for"), ("handshake_age", "handshake"), ("next_attempt_seconds", "next attempt in")];
    for (key, words) in seconds {
        if let Some(s) = number(key) {
            let _ = write!(out, ", {words} {}", age(s));
        }
    }
    if let Some(ms) = u.get("rtt_ms").and_then(serde_json::Value::as_f64) {
        let _ = write!(out, ", echo {ms:.1} ms");
    }
    out.blank();
    let (attempts, sessions) = (number("attempts").unwrap_or(0), number("sessions").unwrap_or(0));
    let _ = writeln!(out, "        {attempts} attempts, {sessions} sessions");
    if let Some(rungs) = u.get("rungs").and_then(serde_json::Value::as_object).filter(|r| !r.is_empty()) {
        let taken: Vec<String> = rungs.iter().map(|(rung, n)| format!("{rung} {n}×")).collect();
        let _ = writeln!(out, "        recovery: {}", taken.join(", "));
    }
    if let Some(hub) = u.get("standby").and_then(|s| s.get("hub")).and_then(serde_json::Value::as_str) {
        let _ = writeln!(out, "        watching {hub}, to move back to it");
    }
    if let Some(error) = text("last_error") {
        let _ = writeln!(out, "        last error: {error}");
    }
}

/// The control plane.
fn control(out: &mut Lines, control: &serde_json::Value) {
    let text = |pointer: &str| control.pointer(pointer).and_then(serde_json::Value::as_str);
    let number = |pointer: &str| control.pointer(pointer).and_then(serde_json::Value::as_u64);
    let enrolled = control["enrolled"] == true;
    let state = match (enrolled, number("/generation")) {
        (false, _) => "not enrolled".to_owned(),
        (true, Some(0) | None) => "no state yet".to_owned(),
        (true, Some(n)) => format!("state {n} {}", text("/outcome").unwrap_or("-")),
    };
    let answer = match (text("/away/why"), number("/away/seconds"), number("/heard_seconds_ago")) {
        (Some(why), Some(s), _) => match text("/away/code") {
            Some("removed") => format!("REMOVED from the fleet, known for {}: {why}", age(s)),
            Some("token_refused") => format!("TOKEN REFUSED for {}: {why}", age(s)),
            Some("approval_pending") => format!("WAITS FOR APPROVAL for {}: {why}", age(s)),
            _ => format!("UNREACHABLE for {}: {why}", age(s)),
        },
        _ if control["disabled"] == true => "DISABLED by an operator".to_owned(),
        (_, _, Some(s)) => format!("last answer {} ago", age(s)),
        _ => "no answer yet".to_owned(),
    };
    let _ = writeln!(out, "control: {state}; {answer}");
    for what in ["/reason", "/unsaved", "/key_changed/error"] {
        if let Some(why) = text(what) {
            let _ = writeln!(out, "         {}: {why}", what.trim_start_matches('/').replace('/', " "));
        }
    }
    if let Some(phase) = text("/key_change") {
        let _ = writeln!(out, "         a new WireGuard key is being put in use: {phase}");
    }
}

fn interface(out: &mut Lines, link: &LinkReport) {
    let addresses: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
    out.blank();
    let _ = writeln!(
        out,
        "{}  {}  port {}  mtu {}  {}",
        link.name,
        if link.up { "up" } else { "DOWN" },
        link.listen_port,
        link.mtu,
        addresses.join(" ")
    );
    if let Some(key) = link.public_key {
        let _ = writeln!(out, "  public key {key}");
    }
    if link.peers.is_empty() {
        return;
    }
    let _ =
        writeln!(out, "  {:<16} {:<24} {:>10} {:>10} {:>10}  ALLOWED IPS", "PEER", "ENDPOINT", "HANDSHAKE", "RX", "TX");
    for p in &link.peers {
        let name = p.name.clone().unwrap_or_else(|| p.public_key.short());
        let nets: Vec<String> = p.allowed_ips.iter().take(3).map(ToString::to_string).collect();
        let more = if p.allowed_ips.len() > 3 { format!(" +{}", p.allowed_ips.len() - 3) } else { String::new() };
        let _ = writeln!(
            out,
            "  {:<16} {:<24} {:>10} {:>10} {:>10}  {}{more}",
            clip(&name, 16),
            p.endpoint.map_or_else(|| "-".to_owned(), |e| e.to_string()),
            p.handshake_age.map_or_else(|| "never".to_owned(), age),
            bytes(p.rx),
            bytes(p.tx),
            nets.join(" ")
        );
    }
}

fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width { text.to_owned() } else { text.chars().take(width - 1).chain(['…']).collect() }
}

/// A duration in seconds, as text.
pub fn age(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_conditions_and_repairs() {
        let report = StatusReport {
            version: "1".into(),
            conditions: vec![spoke_api::socket::ConditionReport {
                code: "name_taken".into(),
                seconds: 5,
                detail: "wg0 …".into(),
            }],
            history: vec![spoke_api::socket::AppliedStepReport {
                seconds_ago: 61,
                time: "1970-01-01T00:00:00Z".into(),
                cause: "drift".into(),
                what: "wg0: add address 10.0.0.2/24".into(),
                error: None,
            }],
            ..StatusReport::default()
        };
        let text = table(&report);
        assert!(text.contains("OUT OF SYNC") && text.contains("! name_taken for 5s"), "{text}");
        assert!(text.contains("1m01s ago  drift   wg0: add address"), "{text}");
        let uplink = serde_json::json!({
            "state": "waiting", "hub": "hub-a", "endpoint": "192.0.2.1:51820", "next_attempt_seconds": 61,
            "attempts": 7, "sessions": 1, "rungs": {"port": 2}, "last_error": "hub hub-a: no handshake",
        });
        let text = table(&StatusReport { uplink: Some(uplink), ..StatusReport::default() });
        assert!(text.contains("waiting via hub-a at 192.0.2.1:51820, next attempt in 1m01s"), "{text}");
        assert!(text.contains("recovery: port 2×") && text.contains("last error: hub hub-a"), "{text}");
        // What the control plane, a hub or another process sent forges no line.
        let detail = "x\n! all_well: \u{202e}\u{200b}\x1b[2J".to_owned();
        let condition = spoke_api::socket::ConditionReport { code: "hub_silent".into(), seconds: 0, detail };
        let control = serde_json::json!({"enrolled": true, "generation": 3, "reason": "no\ncontrol: fine"});
        let report = StatusReport { conditions: vec![condition], control: Some(control), ..StatusReport::default() };
        let text = table(&report);
        assert!(text.contains("\n! hub_silent for 0s: x\\n! all_well: \\u{202e}\\u{200b}\\u{1b}[2J\n"), "{text}");
        assert!(text.contains("reason: no\\ncontrol: fine\n"), "{text}");
        assert_eq!((bytes(1023), bytes(1536), age(90_000)), ("1023 B".into(), "1.5 KiB".into(), "1d01h".into()));
    }
}

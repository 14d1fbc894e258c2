//! What other programs of the field make of our output: `promtool` and wireguard-tools. Run by scripts/test-host, which
//! installs them.
#![allow(clippy::unwrap_used, clippy::panic)]
use spoke_api::health::fold::Moment;
use spoke_api::health::metrics::metrics;
use spoke_api::health::summary::{Component, ComponentStatus, Components, Link, Net, Snapshot, Uplink};
use spoke_grants::ladder::Phase;
use spoke_grants::report::Report;
use spoke_model::condition::{Code, Condition};
use spoke_model::time::{Boot, Wall};
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

fn run(program: &str, args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is missing ({e}): run scripts/test-host, which installs it"));
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A snapshot with every metric family: an interface, an uplink, grants, components, and a code that occurs twice.
fn every_metric() -> Snapshot {
    let at = Boot::from_secs(100);
    let grants = Report {
        at,
        phase: Phase::Grace,
        last_quorum: Some(at),
        last_quorum_wall: None,
        subscription: None,
        height: Some(7),
        head: Some(8),
        admitted: 1,
        polling: false,
        unreachable: None,
        condition: None,
        counts: Default::default(),
        verify: Default::default(),
        endpoints: Vec::new(),
        rows: Vec::new(),
    };
    let refused = Condition::new(Code::ApplyFailed, at, "\"quoted\"\nand broken");
    let degraded = ComponentStatus { healthy: false, since: at, detail: None };
    let components = [Component::Contract, Component::Control, Component::Config, Component::AccessControl];
    Snapshot {
        net: Net {
            passes: 1,
            at,
            conditions: vec![refused.clone(), refused],
            links: vec![Link { name: "wg0".into(), wanted_peers: 1, peers: 1, up: true, ..Link::default() }],
            ..Net::default()
        },
        components: Components {
            uplink: Some(Uplink { connected: true, hub_answers: true, last_handshake: Some(at), ..Uplink::default() }),
            clock_trusted: true,
            grants: Some(Arc::new(grants)),
            status: components.map(|component| (component, degraded.clone())).into(),
            ..Components::default()
        },
    }
}

#[test]
fn promtool_accepts_the_metrics() {
    let at =
        Moment { now: Boot::from_secs(101), wall: Wall(1_700_000_000), trusted: true, started: Boot::from_secs(1) };
    let sent = metrics(&every_metric(), &at).unwrap();
    let checked = run("promtool", &["check", "metrics"], &sent);
    let printed = format!("{}{}", text(&checked.stdout), text(&checked.stderr));
    assert!(checked.status.success() && printed.is_empty(), "{printed}\n{sent}");
}

#[test]
fn public_keys_are_those_of_wireguard_tools() {
    let spoke = env!("CARGO_BIN_EXE_spoke");
    let private = run(spoke, &["key", "generate"], "");
    let ours = run(spoke, &["key", "public"], text(&private.stdout));
    let theirs = run("wg", &["pubkey"], text(&private.stdout));
    assert!(ours.status.success() && theirs.status.success(), "{ours:?} {theirs:?}");
    assert_eq!(text(&ours.stdout), text(&theirs.stdout));
}

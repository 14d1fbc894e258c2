//! Metrics, alerts and dashboard: what `promtool` makes of them, and that each names what exists.
use crate::{run, text};
use spoke_api::agent::answer::HostLoad;
use spoke_api::exposition::Process;
use spoke_api::health::fold::Moment;
use spoke_api::health::metrics::{Scrape, metrics};
use spoke_api::health::summary::{Component, ComponentStatus, Components, Interfaces, Link, Net, Snapshot, Uplink};
use spoke_api::responses::ResponseCounts;
use spoke_config::interface::DriftPolicy;
use spoke_config::layout::Verification;
use spoke_config::node::Role;
use spoke_enroll::status::ControlStatus;
use spoke_grants::ladder::Phase;
use spoke_grants::report::{EndpointRow, Report};
use spoke_model::condition::{Code, Condition, Severity};
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::time::{Boot, Wall};
use spoke_net::ages::Handshakes;
use spoke_net::state::{Counters, Desired, Link as Wanted, ListenPort, Observed, ObservedLink, ObservedPeer, Peer};
use spoke_update::notice::Notice;
use spoke_update::slot::Slot;
use spoke_uplink::status::UplinkStatus;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A snapshot with every metric family: an interface, an uplink, grants, components, and a code that occurs twice.
fn every_metric() -> Snapshot {
    let at = Boot::from_secs(100);
    let endpoint = EndpointRow {
        name: "https://rpc.example.net".into(),
        latency_ms: Some(80.0),
        height: Some(8),
        failures: 0,
        other_chain: None,
        answers: 1,
        errors: 0,
        dissents: 0,
        refuted: None,
    };
    let grants = Report {
        at,
        phase: Phase::Grace,
        last_quorum: Some(at),
        last_quorum_wall: None,
        subscription: None,
        height: Some(7),
        head: Some(8),
        verify: Verification::Calls,
        admitted: 1,
        polling: false,
        unreachable: None,
        condition: None,
        counts: Default::default(),
        endpoints: vec![endpoint],
        rows: Vec::new(),
    };
    let refused = Condition::new(Code::ApplyFailed, at, "\"quoted\"\nand broken");
    let degraded = ComponentStatus { healthy: false, since: at, detail: None };
    let components = [Component::Contract, Component::Control, Component::Config, Component::AccessControl];
    let uplink = Uplink {
        hub: Some("hub \"a\"".into()),
        connected: true,
        hub_answers: true,
        last_handshake: Some(at),
        connected_since: Some(at),
        ..Uplink::default()
    };
    Snapshot {
        net: Net {
            passes: 1,
            at,
            conditions: vec![refused.clone(), refused],
            links: vec![Link { name: "wg0".into(), wanted_peers: 1, peers: 1, up: true, ..Link::default() }],
            ..Net::default()
        },
        components: Components {
            node_id: Some("edge-17".parse().unwrap()),
            uplink: Some(uplink),
            session: Some(Arc::new(UplinkStatus { rtt: Some(Duration::from_millis(30)), ..UplinkStatus::default() })),
            control: Some(Arc::new(ControlStatus {
                enrolled: true,
                last_answer: Some(at),
                ..ControlStatus::default()
            })),
            clock_trusted: true,
            grants: Some(Arc::new(grants)),
            update: Some(Notice { slot: Slot::B, version: "0.1.0".into(), trial: None, last: None, held: None }),
            status: components.map(|component| (component, degraded.clone())).into(),
            space: Some((100, 50)),
            certificates: [("agent", Wall(2_000_000_000))].into(),
            ..Components::default()
        },
    }
}

/// An interface with one peer, as it is desired.
fn wanted(peer: PublicKey) -> Wanted {
    Wanted {
        private_key: SecretKey::clamped([1; 32]),
        listen_port: ListenPort::default(),
        port_fallback: false,
        fwmark: 0,
        mtu: 1280,
        defaults: (false, false),
        addresses: BTreeSet::new(),
        peers: [(peer, Peer::default())].into(),
        routes: BTreeSet::new(),
        up: true,
        policy: DriftPolicy::Enforce,
        remove_unknown: None,
        dns: Vec::new(),
        rebuild: 0,
    }
}

/// The text of a device that has everything, with a series of each peer.
fn device_metrics() -> String {
    let at =
        Moment { now: Boot::from_secs(101), wall: Wall(1_700_000_000), trusted: true, started: Boot::from_secs(1) };
    let (interface, key): (IfName, _) = ("wg0".parse().unwrap(), PublicKey([7; 32]));
    let counters = Counters { last_handshake: Some(Duration::from_secs(1_699_999_990)), rx: 1, tx: 2 };
    let peers = [(key, ObservedPeer { counters, ..ObservedPeer::default() })].into();
    let link = ObservedLink { wireguard: true, up: true, peers, ..ObservedLink::default() };
    let observed = Observed { links: [(interface, link)].into(), ..Observed::default() };
    let mut ages = Handshakes::default();
    ages.record(&observed, at.now, at.wall);
    let desired = Desired { links: [("wg0".parse().unwrap(), wanted(key))].into(), ..Desired::default() };
    let interfaces = Interfaces::new(desired.into(), observed.into(), ages.into(), (at.now, at.wall));
    let process = Process {
        resident_bytes: Some(1),
        virtual_bytes: Some(2),
        threads: Some(3),
        open_fds: Some(4),
        max_fds: Some(5),
        ..Process::default()
    };
    metrics(&Scrape {
        snapshot: &every_metric(),
        at,
        role: Role::Node,
        process: Some(process),
        agent: Some(&ResponseCounts::default()),
        peers: Some(&interfaces),
    })
}

fn agent_metrics() -> String {
    let link = Link { name: "wg0".into(), wanted_peers: 1, peers: 1, up: true, ..Link::default() };
    spoke_api::agent::answer::metrics(&HostLoad::default(), &[link], &ResponseCounts::default())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn file(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What `promtool check metrics` has to say: nothing, as a rule.
fn checked(text: &str) -> String {
    let checked = run("promtool", &["check", "metrics"], text);
    format!("{}{}", self::text(&checked.stdout), self::text(&checked.stderr))
}

/// The families of a text, by name.
fn families(text: &str) -> BTreeSet<String> {
    let named = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next());
    named.map(str::to_owned).collect()
}

/// The names in the tables of docs/monitoring.md below a heading: in backticks at the start of a row.
fn documented(heading: &str) -> BTreeSet<String> {
    let page = file("docs/monitoring.md");
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let section = rest.split("\n## ").next().unwrap_or_default();
    let names = section.lines().filter_map(|l| l.strip_prefix("| `")?.split(['`', '{']).next());
    names.map(str::to_owned).collect()
}

#[test]
fn promtool_accepts_the_metrics() {
    let sent = device_metrics();
    assert!(checked(&sent).is_empty(), "{}\n{sent}", checked(&sent));
    let control = file("tests/golden/control.metrics");
    assert!(checked(&control).is_empty(), "{}\n{control}", checked(&control));
}

#[test]
fn agent_metrics_break_rules_by_names_of_the_fork_alone() {
    let sent = agent_metrics();
    let forced = ["wireguard_interface_count", "wireguard_peers_total"];
    let beside = ["wireguard_interfaces", "wireguard_peers"];
    let all = families(&sent);
    assert!(forced.iter().chain(&beside).all(|name| all.contains(*name)), "{sent}");
    let complaints = checked(&sent);
    let named: BTreeSet<_> = complaints.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(named, forced.into(), "{complaints}");
}

#[test]
fn every_metric_is_documented() {
    assert_eq!(families(&device_metrics()), documented("Metrics of a device"));
    assert_eq!(families(&file("tests/golden/control.metrics")), documented("Metrics of the control plane"));
    let more: BTreeSet<_> = families(&agent_metrics()).difference(&families(&device_metrics())).cloned().collect();
    assert_eq!(more, documented("Metrics of the agent API"));
}

/// The metrics that a query names, and `up`, which Prometheus makes.
fn queried(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = ["spoke_", "wireguard_", "wgdashboard_", "process_"];
    words.filter(|w| prefixes.iter().any(|p| w.starts_with(p))).map(str::to_owned).collect()
}

fn known() -> BTreeSet<String> {
    [device_metrics(), agent_metrics(), file("tests/golden/control.metrics")].iter().flat_map(|t| families(t)).collect()
}

#[test]
fn dashboard_asks_for_metrics_that_exist() {
    let board: serde_json::Value = serde_json::from_str(&file("packaging/monitoring/dashboard.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let targets: Vec<_> = panels.iter().flat_map(|p| p["targets"].as_array().into_iter().flatten()).collect();
    let expressions: Vec<_> = targets.iter().map(|t| t["expr"].as_str().unwrap()).collect();
    assert!(expressions.len() > 30, "{}", expressions.len());
    let variables = board["templating"]["list"].as_array().unwrap();
    let asked = variables.iter().filter_map(|v| v["definition"].as_str()).chain(expressions.iter().copied());
    let asked: BTreeSet<String> = asked.flat_map(queried).collect();
    let missing: Vec<_> = asked.difference(&known()).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Each query is one that Prometheus parses.
    let rules: Vec<_> = expressions
        .iter()
        .enumerate()
        .map(|(n, e)| serde_json::json!({"record": format!("panel:{n}"), "expr": e.replace("$instance", "edge-17:8080")}))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queries.yml");
    std::fs::write(&path, serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    let parsed = run("promtool", &["check", "rules", path.to_str().unwrap()], "");
    assert!(parsed.status.success(), "{}{}", text(&parsed.stdout), text(&parsed.stderr));
    let mut ids: Vec<_> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    ids.dedup();
    assert_eq!(ids.len(), panels.len(), "an id twice");
}

/// The values of `key: value` lines, unquoted.
fn values<'a>(yaml: &'a str, key: &str) -> Vec<&'a str> {
    let prefix = format!("{key}: ");
    let lines = yaml.lines().map(|l| l.trim_start().trim_start_matches("- "));
    lines.filter_map(|l| l.strip_prefix(&prefix)).map(|v| v.trim_matches('\'')).collect()
}

#[test]
fn alerts_ask_for_metrics_that_exist_and_name_a_remedy() {
    let rules = file("packaging/monitoring/alerts.yml");
    let asked: BTreeSet<String> = values(&rules, "expr").into_iter().flat_map(queried).collect();
    assert!(asked.is_subset(&known()), "{:?}", asked.difference(&known()));
    let (alerts, runbooks) = (values(&rules, "alert"), values(&rules, "runbook"));
    assert!(alerts.len() > 20 && runbooks.len() == alerts.len() && runbooks.iter().all(|r| r.len() > 20));
    // A command of ours that a runbook names exists.
    let commands = runbooks.iter().flat_map(|r| r.split('`').skip(1).step_by(2)).filter(|c| c.starts_with("spoke "));
    for command in commands.collect::<BTreeSet<_>>() {
        let words: Vec<_> = command.split(' ').skip(1).chain(["--help"]).collect();
        let helped = run(env!("CARGO_BIN_EXE_spoke"), &words, "");
        assert!(helped.status.success(), "{command}: {}", text(&helped.stderr));
    }
    let table = file("docs/monitoring.md");
    for alert in alerts {
        assert!(table.contains(&format!("| `{alert}` |")), "{alert} is not in docs/monitoring.md");
    }
}

/// An operator is called for every condition that needs one.
#[test]
fn alert_of_conditions_has_every_code_of_an_error() {
    let rules = file("packaging/monitoring/alerts.yml");
    let (_, rest) = rules.split_once("spoke_health_reason{code=~\"").unwrap();
    let listed: BTreeSet<_> = rest.split('"').next().unwrap().split('|').collect();
    let errors = Code::ALL.into_iter().filter(|c| c.severity() == Severity::Error).map(Code::as_str);
    assert_eq!(listed, errors.collect());
}

#[test]
fn each_alert_is_raised_and_is_quiet_on_recorded_series() {
    let rules = root().join("packaging/monitoring/alerts.yml");
    let checked = run("promtool", &["check", "rules", rules.to_str().unwrap()], "");
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    let series = root().join("tests/monitoring/alerts.test.yml");
    let tested = run("promtool", &["test", "rules", series.to_str().unwrap()], "");
    assert!(tested.status.success(), "{}{}", text(&tested.stdout), text(&tested.stderr));
    let names = std::fs::read_to_string(series).unwrap();
    for alert in values(&std::fs::read_to_string(rules).unwrap(), "alert") {
        for what in ["raised", "quiet"] {
            assert!(names.contains(&format!("- name: {alert} {what}\n")), "{alert} {what} is not tested");
        }
    }
}

//! The states of a device that the page is looked at in.
use crate::health::fold::Moment;
use crate::health::page::facts::{Details, Facts, PastStep, Query};
use crate::health::page::page;
use crate::health::summary::{Component, ComponentStatus, Components, Link, Net, Snapshot, Uplink};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_config::interface::DriftPolicy;
use spoke_enroll::status::{ControlOutage, ControlStatus, OutageCause};
use spoke_enroll::wire::Outcome;
use spoke_grants::ladder::Phase;
use spoke_grants::report::{EndpointRow, Report, Row};
use spoke_model::condition::{Code, Condition};
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::time::{Boot, Wall};
use spoke_net::ages::Handshakes;
use spoke_net::plan::{Plan, Step};
use spoke_net::state::{Counters, Desired, Link as Wanted, ListenPort, Observed, ObservedLink, ObservedPeer};
use spoke_update::machine::{RejectReason, Stage};
use spoke_update::notice::{Notice, TrialNotice};
use spoke_update::record::Ended;
use spoke_update::slot::Slot;
use spoke_uplink::ladder::Rung;
use spoke_uplink::path::Path;
use spoke_uplink::status::{Code as Fault, State as Session, Transition, UplinkFault, UplinkStatus};
use std::sync::Arc;
use std::time::Duration;

/// Seconds since boot, in every scene.
const NOW: u64 = 100_000;
const WALL: u64 = 1_796_000_000;

/// A device at one moment.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) snapshot: Snapshot,
    pub(super) details: Details,
    trusted: bool,
}

impl Scene {
    /// The page.
    pub(super) fn page(&self, query: &str) -> String {
        let started = Boot::from_secs(NOW - 86_400);
        let at = Moment { now: Boot::from_secs(NOW), wall: Wall(WALL), trusted: self.trusted, started };
        page(&Facts::new(&self.snapshot, &at, &self.details, Query::parse(Some(query))))
    }

    pub(super) fn session(&mut self) -> &mut UplinkStatus {
        Arc::make_mut(self.snapshot.components.session.as_mut().unwrap())
    }

    fn control(&mut self) -> &mut ControlStatus {
        Arc::make_mut(self.snapshot.components.control.as_mut().unwrap())
    }

    fn degrade(&mut self, component: Component, since: u64, detail: &str) {
        let status = ComponentStatus { healthy: false, since: ago(since), detail: Some(detail.into()) };
        self.snapshot.components.status.insert(component, status);
    }

    /// The session has no tunnel for this reason.
    fn fail(&mut self, code: Fault, since: u64) {
        let detail = code.detail();
        let uplink = self.snapshot.components.uplink.as_mut().unwrap();
        *uplink = Uplink {
            connected: false,
            hub_answers: false,
            since: ago(since),
            last_error: Some(detail.into()),
            ..uplink.clone()
        };
        let mut observed = (*self.details.observed).clone();
        let handshake = Some(Duration::from_secs(WALL - since - 30));
        observed
            .links
            .values_mut()
            .flat_map(|l| l.peers.values_mut())
            .for_each(|p| p.counters.last_handshake = handshake);
        let mut handshakes = Handshakes::default();
        handshakes.record(&observed, Boot::from_secs(NOW), Wall(WALL));
        (self.details.observed, self.details.handshakes) = (Arc::new(observed), Arc::new(handshakes));
        self.details.before = None;
        let session = self.session();
        session.state = Session::Waiting;
        session.hub_answers = false;
        session.next_attempt = Some(Boot::from_secs(NOW + 24));
        session.handshake_at = session.handshake_at.map(|_| ago(since + 30));
        session.fault = Some(UplinkFault { since: ago(since), code, detail: detail.into() });
        (session.attempts, session.failures) = (session.attempts + 9, 8);
        for (at, from, to, code, rung) in [
            (since, Session::Up, Session::Connecting, Fault::Silent, None),
            (since - 15, Session::Connecting, Session::Waiting, code, None),
            (since - 40, Session::Waiting, Session::Connecting, Fault::Attempt, Some(Rung::Port)),
            (20, Session::Connecting, Session::Waiting, code, None),
        ] {
            session.history.push_back(Transition { at: ago(at), from, to, hub: "hub-a".into(), code, rung });
        }
    }
}

fn ago(secs: u64) -> Boot {
    Boot::from_secs(NOW - secs)
}

fn key(n: u64) -> PublicKey {
    let mut bytes = [0x5a; 32];
    for (i, b) in bytes.iter_mut().enumerate() {
        let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(u32::try_from(i).unwrap() * 7);
        *b = n.to_le_bytes()[i % 8];
    }
    PublicKey(bytes)
}

const DEVICE: &str = r#"
[node]
id = "edge-17"
[control]
url = "https://control.example.net:8443"
pin = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
token = "file:/etc/spoke/token"
[[interface]]
name = "wg0"
addresses = ["10.8.0.17/24"]
[uplink]
interface = "wg0"
"#;

/// A configuration with named peers, and what the kernel shows of them: name, seconds since the handshake, bytes, bits/s.
fn scene(head: &str, hub: bool, peers: &[(&str, Option<u64>, u64, u64)]) -> Scene {
    use std::fmt::Write as _;
    let mut text = head.to_owned();
    let (mut now, mut before) = (ObservedLink::default(), ObservedLink::default());
    (now.wireguard, now.up, now.mtu, now.listen_port) = (true, true, 1420, 51820);
    now.public_key = Some(key(1));
    now.addresses = [if hub { "10.8.0.1/24" } else { "10.8.0.17/24" }.parse().unwrap()].into();
    for (i, (name, age, bytes, rate)) in (2_u64..).zip(peers) {
        let third = i / 250;
        let net = if hub { format!("10.8.{third}.{}/32", i % 250) } else { "10.8.0.0/24".to_owned() };
        let key = key(i);
        if hub {
            let _ = write!(text, "[[interface.peer]]\npublic_key = \"{key}\"\nallowed_ips = [\"{net}\"]\n");
            if !name.is_empty() {
                let _ = writeln!(text, "name = \"{name}\"");
            }
        } else {
            let _ = write!(
                text,
                "[[uplink.hub]]\nname = \"{name}\"\npublic_key = \"{key}\"\nendpoint = \"192.0.2.{i}:51820\"\naddress = \"10.8.0.1\"\nallowed_ips = [\"{net}\"]\n"
            );
        }
        let counters = |back: u64| Counters {
            last_handshake: age.map(|a| Duration::from_secs(WALL - a)),
            rx: bytes - rate * back / 8,
            tx: (bytes - rate * back / 8) / 3,
        };
        let peer = |back| ObservedPeer {
            allowed_ips: [net.parse().unwrap()].into(),
            endpoint: age.map(|_| format!("192.0.2.{}:51820", i % 250).parse().unwrap()),
            counters: counters(back),
            ..ObservedPeer::default()
        };
        now.traffic.0 += counters(0).rx;
        now.traffic.1 += counters(0).tx;
        before.traffic.0 += counters(10).rx;
        before.traffic.1 += counters(10).tx;
        now.peers.insert(key, peer(0));
        before.peers.insert(key, peer(10));
    }
    let wg0: spoke_model::interface_name::IfName = "wg0".parse().unwrap();
    let observed = Observed { at: ago(2), links: [(wg0.clone(), now)].into(), ..Observed::default() };
    let before = Observed { at: ago(12), links: [(wg0.clone(), before)].into(), ..Observed::default() };
    let mut handshakes = Handshakes::default();
    handshakes.record(&observed, Boot::from_secs(NOW), Wall(WALL));
    let wanted = Wanted {
        private_key: SecretKey::clamped([1; 32]),
        listen_port: ListenPort::Fixed(51820),
        port_fallback: false,
        fwmark: 0,
        mtu: 1420,
        defaults: (false, false),
        addresses: Default::default(),
        peers: Default::default(),
        routes: Default::default(),
        up: true,
        policy: DriftPolicy::Enforce,
        remove_unknown: None,
        dns: Vec::new(),
        rebuild: 0,
    };
    let desired = Desired { links: [(wg0, wanted)].into(), ..Desired::default() };
    let config = Config::from_text(Some(("test", &text)), []).unwrap_or_else(|e| panic!("{e:?}"));
    let net = Net {
        passes: 2880,
        at: ago(2),
        observed_at: ago(2),
        clean: true,
        links: Link::all(&desired, &observed, &handshakes, Boot::from_secs(NOW)),
        ..Net::default()
    };
    let components = Components { node_id: config.node.id.clone(), clock_trusted: true, ..Components::default() };
    Scene {
        snapshot: Snapshot { net, components },
        details: Details {
            effective: Some(Arc::new(Effective::of(Arc::new(config)))),
            desired: Arc::new(desired),
            observed: Arc::new(observed),
            before: Some(Arc::new(before)),
            handshakes: Arc::new(handshakes),
            left: Arc::default(),
            steps: Vec::new(),
        },
        trusted: true,
    }
}

/// A device in the fleet, connected.
pub(super) fn healthy() -> Scene {
    let mut scene = scene(DEVICE, false, &[("hub-a", Some(41), 734_003_200, 312_000)]);
    let established = |at, code| Transition {
        at: ago(at),
        from: Session::Connecting,
        to: Session::Up,
        hub: "hub-a".into(),
        code,
        rung: None,
    };
    let source = Some("192.168.1.23".parse().unwrap());
    let gateway = Some("192.168.1.1".parse().unwrap());
    let c = &mut scene.snapshot.components;
    c.uplink = Some(Uplink {
        hub: Some("hub-a".into()),
        connected: true,
        hub_answers: true,
        since: ago(7300),
        last_handshake: Some(ago(41)),
        connected_since: Some(ago(7300)),
        attempts: 2,
        ..Uplink::default()
    });
    c.session = Some(Arc::new(UplinkStatus {
        state: Session::Up,
        hub: Some("hub-a".into()),
        endpoint: Some("192.0.2.2:51820".parse().unwrap()),
        connected_since: Some(ago(7300)),
        hub_answers: true,
        handshake_at: Some(ago(41)),
        path: Some(Path::Via { link: 2, carrier: true, carrier_changes: 1, source, gateway }),
        rtt: Some(Duration::from_millis(24)),
        attempts: 2,
        history: [established(86_000, Fault::Adopted), established(7300, Fault::Established)].into(),
        ..UplinkStatus::default()
    }));
    c.control = Some(Arc::new(ControlStatus {
        enrolled: true,
        generation: 18,
        outcome: Some(Outcome::Applied),
        last_answer: Some(ago(19)),
        ..ControlStatus::default()
    }));
    scene
}

/// The same without a handshake.
fn peers_never_seen(details: &Details) -> Details {
    let mut observed = (*details.observed).clone();
    for link in observed.links.values_mut() {
        link.traffic = (0, 14_800);
        for peer in link.peers.values_mut() {
            peer.counters = Counters { tx: 14_800, ..Counters::default() };
        }
    }
    Details { observed: Arc::new(observed), handshakes: Arc::default(), before: None, ..details.clone() }
}

/// A hub with these peers.
fn hub(peers: &[(&str, Option<u64>, u64, u64)]) -> Scene {
    let head = "[node]\nid = \"hub-a\"\nrole = \"hub\"\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.1/24\"]\nlisten_port = 51820\n";
    let head = if peers.len() > 200 { head.replace("10.8.0.1/24", "10.8.0.1/16") } else { head.to_owned() };
    scene(&head, true, peers)
}

/// A hub with many peers, most of them active.
pub(super) fn many(count: u64) -> Scene {
    let sites = ["berlin", "lyon", "oslo", "porto", "turin"];
    let peers: Vec<_> = (0..count)
        .map(|i| {
            let name = if i % 13 == 0 { String::new() } else { format!("edge-{i}-{}", sites[(i % 5) as usize]) };
            let age = if i % 20 == 3 { None } else { Some(if i % 9 == 1 { 9000 + i } else { i % 130 }) };
            (name, age, 40_000_000 + i * 7919, if i % 7 == 0 { 64_000 + i * 37 } else { 0 })
        })
        .collect();
    let peers: Vec<_> = peers.iter().map(|(n, a, b, r)| (n.as_str(), *a, *b, *r)).collect();
    hub(&peers)
}

fn grants() -> Report {
    let row = |node: &str, admitted, code: &'static str| Row {
        node: node.parse().unwrap(),
        key: key(9),
        admitted,
        code: code.into(),
        token_id: None,
        owner: None,
        block: 21_004_511,
        decided: Some(ago(50)),
        held_until: None,
        doubt: None,
    };
    let endpoint = |name: &str, failures| EndpointRow {
        name: name.into(),
        latency_ms: Some(48.0),
        height: Some(21_004_513),
        failures,
        other_chain: None,
        answers: 100,
        errors: failures.into(),
        dissents: 0,
        refuted: None,
    };
    Report {
        at: ago(3),
        phase: Phase::Stale,
        last_quorum: Some(ago(412)),
        last_quorum_wall: Some(Wall(WALL - 412)),
        subscription: None,
        height: Some(21_004_511),
        head: Some(21_004_513),
        verify: Default::default(),
        admitted: 2,
        polling: false,
        unreachable: None,
        condition: None,
        counts: Default::default(),
        endpoints: vec![endpoint("https://rpc-a.example", 4), endpoint("https://rpc-b.example", 4)],
        rows: vec![
            row("client-1", true, "ACCESS_GRANTED"),
            row("client-2", true, "ACCESS_GRANTED"),
            row("client-3", false, "NO_TOKEN"),
        ],
    }
}

/// Every state with its name.
pub(super) fn all() -> Vec<(&'static str, Scene)> {
    let mut down = healthy();
    down.fail(Fault::NoHandshake, 260);

    let mut never_up = healthy();
    never_up.session().history.clear();
    never_up.fail(Fault::NoCarrier, 86_000);
    never_up.details = peers_never_seen(&never_up.details);
    {
        let session = never_up.session();
        session.handshake_at = None;
        session.path = Some(Path::NoCarrier);
        session.history.retain(|t| t.rung.is_none() && t.code != Fault::Silent);
        let uplink = never_up.snapshot.components.uplink.as_mut().unwrap();
        (uplink.last_handshake, uplink.connected_since) = (None, None);
    }
    never_up.control().last_answer = None;
    never_up.control().generation = 0;
    never_up.control().outage = Some(ControlOutage {
        since: ago(86_300),
        reason: "control.example.net: the name cannot be looked up".into(),
        cause: OutageCause::Unreachable,
    });
    never_up.degrade(Component::Control, 86_300, "not enrolled yet: control.example.net: the name cannot be looked up");

    let mut silent = healthy();
    silent.snapshot.components.uplink.as_mut().unwrap().hub_answers = false;
    silent.snapshot.components.uplink.as_mut().unwrap().since = ago(95);
    silent.session().hub_answers = false;
    let fault = UplinkFault { since: ago(95), code: Fault::NoEcho, detail: Fault::NoEcho.detail().into() };
    silent.session().fault = Some(fault);

    let mut degraded = healthy();
    degraded.snapshot.components.grants = Some(Arc::new(grants()));
    degraded.control().outage = Some(ControlOutage {
        since: ago(240),
        reason: "https://control.example.net:8443: connection refused".into(),
        cause: OutageCause::Unreachable,
    });
    let why = "control plane unreachable, the last good state stays in force: connection refused";
    degraded.degrade(Component::Control, 240, why);
    degraded.degrade(Component::Contract, 412, "0 of 2 endpoints agree: https://rpc-a.example: HTTP 503");
    degraded.snapshot.net.repairs = 3;
    degraded.details.steps =
        vec![PastStep { at: ago(900), repair: true, text: "wg0: mtu 1500 → 1420".into(), refused: false }];

    let mut revoked = healthy();
    revoked.fail(Fault::NoHandshake, 3600);
    let why = "the node was removed from the fleet by an operator";
    revoked.control().outage =
        Some(ControlOutage { since: ago(3620), reason: why.into(), cause: OutageCause::Removed });
    revoked.snapshot.components.control_code = Code::Removed;
    revoked.degrade(Component::Control, 3620, &format!("{why}; the last good state stays in force"));

    let mut trial = healthy();
    trial.control().outcome = Some(Outcome::Trial);
    trial.control().generation = 19;
    trial.snapshot.components.update = Some(Notice {
        slot: Slot::B,
        version: "1.5.0".into(),
        trial: Some(TrialNotice { version: "1.5.0".into(), slot: Slot::B, stage: Stage::Trial }),
        last: None,
        held: None,
    });

    let mut pending = healthy();
    pending.snapshot.components.update = Some(Notice {
        slot: Slot::A,
        version: "1.4.2".into(),
        trial: None,
        last: Some(Ended {
            version: "1.5.0".into(),
            sequence: 5,
            slot: Slot::B,
            reason: Some(RejectReason::NotHealthy),
            detail: RejectReason::NotHealthy.text().into(),
        }),
        held: Some("1.5.0 was given up here; spoke update retry tries it again".into()),
    });

    let mut clock = healthy();
    clock.trusted = false;
    clock.snapshot.components.clock_trusted = false;

    let mut alone = healthy();
    let mut config = (**alone.details.effective.as_ref().unwrap().own()).clone();
    config.control = None;
    alone.details.effective = Some(Arc::new(Effective::of(Arc::new(config))));
    alone.snapshot.components.control = None;

    let mut drift = healthy();
    let wg0: spoke_model::interface_name::IfName = "wg0".parse().unwrap();
    drift.details.left = Arc::new(Plan {
        held: vec![Step::SetMtu { link: wg0.clone(), mtu: 1420 }, Step::RemovePeer { link: wg0, peer: key(77) }],
        ..Plan::default()
    });
    let detail = "wg0 address 10.8.0.17/24: the kernel refused it: Permission denied";
    drift.snapshot.net.conditions = vec![Condition::new(Code::ApplyFailed, ago(1200), detail)];
    (drift.snapshot.net.clean, drift.snapshot.net.failures) = (false, 40);

    let mut unprovisioned = Scene { snapshot: Snapshot::default(), details: Details::default(), trusted: false };
    unprovisioned.snapshot.components.unprovisioned = Some("no spoke.toml on the boot partition".into());

    let mut starting = Scene { snapshot: Snapshot::default(), trusted: false, ..healthy() };
    starting.details = Details { effective: starting.details.effective, ..Details::default() };
    starting.snapshot.components.node_id = Some("edge-17".parse().unwrap());

    let mut fresh = hub(&[]);
    fresh.snapshot.net.links[0].up = true;

    let mut stale = healthy();
    stale.snapshot.net.observed_at = ago(400);
    let mut observed = (*stale.details.observed).clone();
    observed.at = ago(400);
    stale.details.observed = Arc::new(observed);

    vec![
        ("healthy", healthy()),
        ("down", down),
        ("never-up", never_up),
        ("hub-silent", silent),
        ("degraded", degraded),
        ("revoked", revoked),
        ("on-trial", trial),
        ("update-pending", pending),
        ("clock-distrusted", clock),
        ("no-control-plane", alone),
        ("drift", drift),
        ("unprovisioned", unprovisioned),
        ("starting", starting),
        ("fresh-hub", fresh),
        ("hub-5000", many(5000)),
        ("stale", stale),
    ]
}

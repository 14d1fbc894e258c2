//! The endpoints on real sockets.
use super::*;
use spoke_api::health::summary::Component;
use spoke_config::interface::DriftPolicy;
use spoke_model::condition::{Code, Condition};
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_net::state::{Desired, Link as Wanted, ListenPort, Observed, ObservedLink, ObservedPeer, Peer};
use spoke_sys::clock::SystemClock;
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn config(port: u16) -> Arc<Config> {
    let text = format!(
        "[node]\nid = \"edge-1\"\n[health]\nlisten = [\"127.0.0.1:{port}\"]\n[[interface]]\nname = \"wg0\"\naddresses = [\"127.9.9.9/8\"]\n"
    );
    Arc::new(Config::from_text(Some(("test", &text)), []).unwrap())
}

fn status() -> NetStatus {
    let name: IfName = "wg0".parse().unwrap();
    let key = PublicKey([7; 32]);
    let want = Wanted {
        private_key: SecretKey::clamped([1; 32]),
        listen_port: ListenPort::Fixed(51820),
        fwmark: 0,
        mtu: 1280,
        defaults: (false, false),
        addresses: ["127.9.9.9/8".parse().unwrap()].into(),
        peers: [(key, Peer::default())].into(),
        routes: BTreeSet::new(),
        up: true,
        policy: DriftPolicy::Enforce,
        remove_unknown: Some(false),
        dns: Vec::new(),
        rebuild: 0,
        port_fallback: false,
    };
    let have = ObservedLink {
        wireguard: true,
        up: true,
        peers: [(key, ObservedPeer::default())].into(),
        ..Default::default()
    };
    NetStatus {
        passes: 1,
        clean: true,
        ready: true,
        at: SystemClock.now(),
        desired: Arc::new(Desired { generation: 1, links: [(name.clone(), want)].into(), ..Desired::default() }),
        observed: Arc::new(Observed { links: [(name, have)].into(), ..Observed::default() }),
        ..NetStatus::default()
    }
}

fn grants() -> spoke_grants::report::Report {
    spoke_grants::report::Report {
        at: SystemClock.now(),
        phase: spoke_grants::ladder::Phase::Grace,
        last_quorum: Some(SystemClock.now()),
        last_quorum_wall: None,
        subscription: None,
        height: Some(7),
        head: Some(8),
        verify: spoke_config::layout::Verification::Calls,
        admitted: 1,
        polling: false,
        unreachable: None,
        condition: None,
        counts: Default::default(),
        endpoints: Vec::new(),
        rows: Vec::new(),
    }
}

/// A free port; the listener retries if another process takes it first.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn get(addr: &str, path: &str) -> (u16, String) {
    let mut stream = loop {
        match TcpStream::connect(addr).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn endpoints_follow_the_status_until_the_stop() {
    let port = free_port();
    let (net, net_rx) = watch::channel(NetStatus::default());
    let (components, components_rx) = watch::channel(Components::default());
    let (stop, stop_rx) = watch::channel(false);
    let deps = Deps {
        clock: SystemClock,
        started: SystemClock.now(),
        config: config(port),
        net: net_rx,
        components: components_rx,
        changes: None,
        agent: None,
        stop: stop_rx,
    };
    let task = tokio::spawn(run(deps));
    let local = format!("127.0.0.1:{port}");
    assert_eq!(get(&local, "/ready").await.0, 503);
    net.send(status()).unwrap();
    // The interface's address is served once the desired state has it.
    let (code, body) = get(&format!("127.9.9.9:{port}"), "/ready").await;
    assert_eq!(code, 200, "{body}");
    let health: Value = serde_json::from_str(&get(&local, "/health").await.1).unwrap();
    assert_eq!((&health["status"], &health["peerRegistry"]["totalPeers"]), (&json!("healthy"), &json!(1)));
    let wg: Value = serde_json::from_str(&get(&local, "/wireguard").await.1).unwrap();
    assert_eq!(wg["interfaces"][0]["peers"][0]["public_key"], PublicKey([7; 32]).to_string());
    let shown = get(&local, "/config").await.1;
    assert!(shown.contains("edge-1"), "{shown}");
    components.send_modify(|v| v.node_id = Some("edge-1".parse().unwrap()));
    loop {
        let health: Value = serde_json::from_str(&get(&local, "/health").await.1).unwrap();
        if health["node_id"] == "edge-1" {
            break;
        }
    }
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(5), task).await.expect("it stops").unwrap().unwrap();
}

#[tokio::test]
async fn metrics_have_the_phase_and_each_code_once() {
    let deps = Deps {
        clock: SystemClock,
        started: SystemClock.now(),
        config: config(1),
        net: watch::channel(NetStatus::default()).1,
        components: watch::channel(Components::default()).1,
        changes: None,
        agent: None,
        stop: watch::channel(false).1,
    };
    let endpoints = Endpoints::new(&deps);
    let uplink = spoke_api::health::summary::Uplink {
        connected: true,
        hub_answers: true,
        last_handshake: Some(SystemClock.now()),
        ..Default::default()
    };
    // All metrics, and all conditions at once.
    let degraded =
        spoke_api::health::summary::ComponentStatus { healthy: false, since: SystemClock.now(), detail: None };
    let components = [Component::Contract, Component::Control, Component::Config, Component::AccessControl]
        .map(|c| (c, degraded.clone()));
    let components = Components {
        uplink: Some(uplink),
        clock_trusted: true,
        grants: Some(Arc::new(grants())),
        status: components.into(),
        ..Components::default()
    };
    let refused = Condition::new(Code::ApplyFailed, SystemClock.now(), "\"quoted\"\nand broken");
    let degraded_net = NetStatus { conditions: vec![refused.clone(), refused], clean: false, ..status() };
    endpoints.take(&degraded_net, &components);
    let request = Request {
        method: "GET".into(),
        path: "/metrics".into(),
        query: None,
        host: None,
        headers: Vec::new(),
        body: Vec::new(),
        source: "127.0.0.1:1".parse().unwrap(),
    };
    let response = Shared(Arc::new(endpoints)).call(request).await;
    let lines = String::from_utf8_lossy(response.body.bytes());
    for sample in ["spoke_grants_phase{phase=\"grace\"} 1", "spoke_health_reason{code=\"apply_failed\"} 1"] {
        assert!(lines.contains(sample), "{sample} in\n{lines}");
    }
}

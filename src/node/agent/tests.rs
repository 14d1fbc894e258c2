//! The agent with a kernel in memory: signed requests, restarts, refusals, time-outs.
use super::*;
use crate::sim as node;
use rustix::io::Errno;
use spoke_config::effective::Effective;
use spoke_model::key::SecretKey;
use spoke_model::time::Wall;
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::kernel::{FakeKernel, Handle};
use std::path::Path;

mod replay;

const SECRET: &str = "k7GqP2vXc9LmR4tZw8BnY1sDf6HjA3eU";
const NOW: u64 = 1_800_000_000;
const KEY: &str = "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=";
const OTHER: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// A node in memory: reconciler, ledger, audit trail and agent, on a state directory that outlives it.
struct Node {
    agent: Agent<SimClock>,
    clock: SimClock,
    kernel: Handle,
    node: node::Node,
}

impl Node {
    async fn start(dir: &Path, kernel: FakeKernel, clock: SimClock) -> Self {
        let text = format!(
            "[node]\nrole = \"hub\"\nstate_dir = \"{}\"\n[agent]\nenabled = true\nsecret = \"file:{}/secret\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\naddresses = [\"10.0.0.1/16\"]\nremove_unknown = false\n",
            dir.display(),
            dir.display()
        );
        let config = Arc::new(Config::from_text(Some(("test", &text)), []).unwrap());
        spoke_sys::disk::write_atomic(&dir.join("secret"), SECRET.as_bytes(), true).unwrap();
        let node =
            node::Node::start(dir, config.clone(), Arc::new(Effective::of(config.clone())), kernel, clock.clone())
                .await;
        let (net, changes, kernel) = (node.net.clone(), node.changes.clone(), node.kernel.clone());
        net.clone().wait_for(|s| s.ready).await.unwrap();
        let memory = ReplayRecord::open(dir, &clock);
        let deps = Deps {
            clock: clock.clone(),
            started: clock.now(),
            config,
            net,
            changes,
            responses: Arc::default(),
            stop: watch::channel(false).1,
        };
        let agent = Agent {
            verifier: Verifier::unchecked(SECRET.as_bytes()),
            replays: tokio::sync::Mutex::new(memory),
            host: Mutex::default(),
            proven: Mutex::default(),
            resolver: SystemResolver::default(),
            unresolved: Arc::default(),
            deps,
        };
        Self { agent, clock, kernel, node }
    }

    /// Ends all tasks, as a crash would.
    async fn kill(mut self) {
        self.node.kill().await;
    }

    fn request(&self, method: &str, path: &str, body: &str, nonce: Option<&str>) -> Request {
        let time = self.clock.wall().secs().to_string();
        let signature = self.agent.verifier.sign(method, &decode_path(path).unwrap(), body.as_bytes(), &time, nonce);
        let mut headers = vec![("x-signature", signature), ("x-timestamp", time)];
        headers.extend(nonce.map(|n| ("x-nonce", n.to_owned())));
        Request {
            method: method.into(),
            path: path.into(),
            query: None,
            host: None,
            headers: headers.into_iter().map(|(n, v)| (n.to_owned(), v.into_bytes())).collect(),
            body: body.as_bytes().to_vec(),
            source: "192.0.2.9:1".parse().unwrap(),
        }
    }

    /// Signs and sends a request with a unique nonce.
    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let nonce = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(self.request(method, path, &body, Some(&nonce))).await
    }

    async fn send(&self, request: Request) -> (u16, Value) {
        let response = self.agent.call(request).await;
        let body = serde_json::from_slice(response.body.bytes()).unwrap_or(Value::Null);
        (response.status, body)
    }

    fn peers(&self) -> Vec<String> {
        self.kernel.peers("wg0").keys().map(ToString::to_string).collect()
    }
}

fn clock() -> SimClock {
    SimClock::new(Wall(NOW))
}

fn file(peers: impl IntoIterator<Item = (u16, &'static str)>) -> Value {
    use base64::Engine as _;
    let text: String = peers
        .into_iter()
        .map(|(id, more)| {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&id.to_be_bytes());
            let nets = format!("10.0.{}.{}/32", id >> 8, id & 255);
            format!("[Peer]\nPublicKey = {}\nAllowedIPs = {nets}\n{more}\n", PublicKey(key))
        })
        .collect();
    json!({ "config": base64::engine::general_purpose::STANDARD.encode(text) })
}

#[tokio::test(start_paused = true)]
async fn calls_give_the_documented_responses() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let peer =
        json!({"public_key": KEY, "allowed_ips": ["10.0.1.2/32"], "preshared_key": OTHER, "persistent_keepalive": 25});
    let added = json!({"status": "success", "message": "Peer added successfully", "peer": {"public_key": KEY, "allowed_ips": ["10.0.1.2/32"]}});
    assert_eq!(node.ask("POST", "/v1/wg/wg0/peers", peer).await, (200, added));
    let (code, dump) = node.ask("GET", "/v1/wg/wg0/dump", Value::Null).await;
    let shown = json!({"public_key": KEY, "preshared_key": null, "endpoint": null, "allowed_ips": ["10.0.1.2/32"], "latest_handshake": null, "transfer_rx": 0, "transfer_tx": 0, "persistent_keepalive": 25});
    let shown = json!({"interface": "wg0", "peers": [shown], "recent_repairs": 0});
    assert_eq!((code, dump), (200, shown), "the preshared key is redacted");
    let put = format!("/v1/wg/wg0/peers/{KEY}");
    let updated = json!({"status": "success", "message": "Peer updated successfully"});
    assert_eq!(node.ask("PUT", &put, json!({"allowed_ips": []})).await, (200, updated));
    let (_, dump) = node.ask("GET", "/v1/wg/wg0/dump", Value::Null).await;
    assert_eq!((&dump["peers"][0]["allowed_ips"], &dump["peers"][0]["persistent_keepalive"]), (&json!([]), &json!(25)));
    let removed = (200, json!({"status": "success", "message": "Peer removed successfully"}));
    assert_eq!(node.ask("DELETE", &put.replace("/s=", "%2Fs%3D"), Value::Null).await, removed);
    assert_eq!(node.ask("DELETE", &put, Value::Null).await, removed, "an absent key too");
    assert!(node.peers().is_empty());
    let done = (200, json!({"status": "success", "message": "Configuration synchronized successfully"}));
    assert_eq!(node.ask("POST", "/v1/wg/wg0/syncconf", file([(1, ""), (2, "")])).await, done);
    assert_eq!(node.peers().len(), 2);
    assert_eq!(node.ask("POST", "/v1/wg/wg0/syncconf", file([])).await, done, "an empty file removes all");
    assert!(node.peers().is_empty());
    let (code, status) = node.ask("GET", "/v1/status", Value::Null).await;
    assert_eq!((code, &status["wireguard"]["interfaces"]["wg0"]["status"]), (200, &json!("up")));
    assert!(status["system"]["memory"]["total"].as_u64().unwrap() > 0);
    let (code, down) = node.ask("POST", "/v1/wg/wg0/disable", Value::Null).await;
    assert_eq!((code, &down["was_up"]), (200, &json!(true)));
    let (code, up) = node.ask("POST", "/v1/wg/wg0/enable", Value::Null).await;
    assert_eq!((code, &up["was_down"]), (200, &json!(true)));
    let (code, config) = node.ask("GET", "/v1/wg/wg0/config", Value::Null).await;
    assert_eq!(
        (code, &config["config"]["private_key"], &config["config"]["listen_port"]),
        (200, &Value::Null, &json!(51820))
    );
    assert!(!config.to_string().contains(SecretKey::clamped([9; 32]).reveal_base64().as_str()));
    assert_eq!(node.ask("DELETE", "/v1/wg/wg0", Value::Null).await.0, 409, "declared in the configuration");
    let device = json!({"private_key": OTHER, "listen_port": 6000, "address": "10.9.0.1/24"});
    let (code, made) = node.ask("PUT", "/v1/wg/wg7/config", device).await;
    assert_eq!((code, &made["reloaded"]), (200, &json!(true)), "{made}");
    assert!(node.kernel.links().contains_key("wg7"));
    let deleted = (200, json!({"status": "success", "message": "Interface wg7 deleted successfully"}));
    assert_eq!(node.ask("DELETE", "/v1/wg/wg7", Value::Null).await, deleted);
    assert_eq!(node.ask("DELETE", "/v1/wg/wg7", Value::Null).await, deleted, "idempotent");
    assert!(!node.kernel.links().contains_key("wg7"));
    assert_eq!(node.ask("GET", "/v1/wg/wg7/dump", Value::Null).await.0, 404);
    assert_eq!(node.ask("GET", "/v1/wg/wg%2F..%2F/dump", Value::Null).await.0, 404);
    assert_eq!(node.ask("PUT", "/v1/wg/wg0/peers/short", json!({})).await.0, 400);
}

#[tokio::test(start_paused = true)]
async fn refused_change_leaves_the_state_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    assert_eq!(node.ask("POST", "/v1/wg/wg0/syncconf", file([(1, ""), (2, ""), (3, "")])).await.0, 200);
    let before = node.kernel.peers("wg0");
    // One refused peer refuses the whole change.
    let mut key = [0; 32];
    key[1] = 77;
    node.kernel.refuse(move |step| match step {
        spoke_net::plan::Step::SetPeer { peer, .. } if peer.0 == key => Some(Errno::NOMEM),
        _ => None,
    });
    let (code, response) = node.ask("POST", "/v1/wg/wg0/syncconf", file((1..4).chain(70..90).map(|i| (i, "")))).await;
    assert_eq!(code, 503, "{response}");
    assert!(response["error"].as_str().unwrap().contains("previous state is restored"), "{response}");
    assert_eq!(node.kernel.peers("wg0").keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    node.kernel.refuse_nothing();
    let (_, history) = node.ask("GET", "/v1/history", Value::Null).await;
    assert_eq!(history["generations"].as_array().unwrap().len(), 1, "a failure is no generation");
    // Simulated time advances when the trail is written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.kill().await;
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    assert_eq!(node.peers().len(), 3, "a restart restores the state");
    let trail = crate::audit::entries(dir.path()).unwrap().0;
    assert!(trail.iter().any(|e| e.actor == "panel 192.0.2.9" && e.result.contains("refused")), "{trail:?}");
    assert!(spoke_change::audit::verify(&trail).is_ok());
}

#[tokio::test(start_paused = true)]
async fn conflict_names_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let one = json!({"public_key": KEY, "allowed_ips": ["10.0.5.0/24"]});
    assert_eq!(node.ask("POST", "/v1/wg/wg0/peers", one.clone()).await.0, 200);
    assert_eq!(node.ask("POST", "/v1/wg/wg0/peers", one).await.0, 200, "an upsert");
    let thief = json!({"public_key": OTHER, "allowed_ips": ["10.0.5.0/24"]});
    let (code, response) = node.ask("POST", "/v1/wg/wg0/peers", thief).await;
    assert!(code == 409 && response["error"].as_str().unwrap().contains(KEY), "{code} {response}");
    assert_eq!(node.peers(), [KEY]);
}

#[tokio::test(start_paused = true)]
async fn foreign_interface_is_neither_taken_nor_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let undeclared: PublicKey = OTHER.parse().unwrap();
    node.kernel.add_link("wg8", true);
    node.kernel.add_link("eth0", false);
    node.kernel.set_peer("wg8", undeclared, spoke_net::state::ObservedPeer::default());
    // The next periodic pass observes them.
    tokio::time::sleep(Duration::from_secs(31)).await;
    let device = json!({"private_key": OTHER, "listen_port": 6000});
    for (method, path, body, part) in [
        ("PUT", "/v1/wg/wg8/config", device.clone(), "not declared"),
        ("POST", "/v1/wg/wg8/peers", json!({"public_key": OTHER}), "not declared"),
        ("POST", "/v1/wg/wg8/disable", Value::Null, "not declared"),
        ("DELETE", "/v1/wg/wg8", Value::Null, "not declared"),
        ("PUT", "/v1/wg/eth0/config", device, "another program"),
    ] {
        let (code, response) = node.ask(method, path, body).await;
        assert!(code == 409 && response["error"].as_str().unwrap().contains(part), "{method} {path}: {response}");
    }
    assert_eq!(node.kernel.peers("wg8").keys().collect::<Vec<_>>(), [&undeclared]);
    assert!(node.kernel.links().contains_key("eth0"));
}

#[tokio::test(start_paused = true)]
async fn unconfirmed_change_reverts_confirmed_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let peer = |key: &str| json!({"public_key": key, "confirm_within": 30});
    let (code, response) = node.ask("POST", "/v1/wg/wg0/peers", peer(KEY)).await;
    assert_eq!((code, &response["generation"], &response["confirm_within"]), (200, &json!(1), &json!(30)));
    assert_eq!(node.ask("POST", "/v1/wg/wg0/peers", peer(OTHER)).await.0, 409, "one at a time");
    assert_eq!(node.peers(), [KEY]);
    tokio::time::sleep(Duration::from_secs(31)).await;
    let mut net = node.agent.deps.net.clone();
    net.wait_for(|s| s.observed.links.values().all(|l| l.peers.is_empty())).await.unwrap();
    assert!(node.peers().is_empty(), "reverted by itself");
    let (_, response) = node.ask("POST", "/v1/wg/wg0/peers", peer(OTHER)).await;
    assert_eq!(node.ask("POST", "/v1/confirm", json!({"generation": response["generation"]})).await.0, 200);
    assert_eq!(node.ask("POST", "/v1/confirm", json!({"generation": response["generation"]})).await.0, 409);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(node.peers(), [OTHER], "confirmed");
    let (code, _) = node.ask("POST", "/v1/rollback", Value::Null).await;
    assert_eq!((code, node.peers().len()), (200, 0));
    let (code, _) = node.ask("POST", "/v1/rollback", Value::Null).await;
    assert_eq!((code, node.peers().len()), (200, 0), "further back, past the unconfirmed change");
}

#[tokio::test(start_paused = true)]
async fn drift_is_reported_and_repaired_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let undeclared: PublicKey = OTHER.parse().unwrap();
    node.kernel.set_peer("wg0", undeclared, spoke_net::state::ObservedPeer::default());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (code, drift) = node.ask("GET", "/v1/drift", Value::Null).await;
    assert_eq!((code, &drift["summary"]["unknown_count"]), (200, &json!(1)), "{drift}");
    assert_eq!(drift["unknown_peers"][0]["public_key"], OTHER);
    let dry = json!({"remove_unknown": true, "dry_run": true});
    let (_, response) = node.ask("POST", "/v1/drift/reconcile", dry).await;
    assert_eq!((&response["removed"], node.peers().len()), (&json!([OTHER]), 1));
    let (_, response) = node.ask("POST", "/v1/drift/reconcile", json!({})).await;
    assert_eq!((&response["removed"], node.peers().len()), (&json!([]), 1), "unknown peers are kept unless asked");
    let (_, response) = node.ask("POST", "/v1/drift/reconcile", json!({"remove_unknown": true})).await;
    assert_eq!((&response["removed"], &response["errors"], node.peers().len()), (&json!([OTHER]), &json!([]), 0));
    node.kernel.set_peer("wg0", undeclared, spoke_net::state::ObservedPeer::default());
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(node.ask("DELETE", &format!("/v1/wg/wg0/peers/{OTHER}"), Value::Null).await.0, 200);
    assert!(node.peers().is_empty(), "an undeclared peer named in a request is removed");
}

#[tokio::test(start_paused = true)]
async fn unsigned_request_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    for (method, path) in [
        ("GET", "/v1/status"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/wg/wg0/peers"),
        ("GET", "/v1/history"),
    ] {
        let mut request = node.request(method, path, "", None);
        request.headers.clear();
        assert!(node.agent.admit(&request).is_err(), "before its body is read");
        let response = (401, json!({"error": "Missing X-Signature or X-Timestamp header"}));
        assert_eq!(node.send(request).await, response, "{method} {path}");
    }
    for path in ["/health", "/v1/metrics"] {
        let mut request = node.request("GET", path, "", None);
        request.headers.clear();
        assert!(node.agent.admit(&request).is_ok());
        assert_eq!(node.send(request).await.0, 200, "{path}");
    }
}

/// Resolves `late.example.net` once its flag is set.
#[derive(Clone, Default)]
struct LateName(Arc<std::sync::atomic::AtomicBool>);

impl spoke_sys::resolve::Resolve for LateName {
    fn resolve(
        &self,
        name: &HostPort,
        _: Duration,
    ) -> impl Future<Output = Result<Vec<std::net::SocketAddr>, spoke_sys::resolve::ResolveError>> + Send + 'static
    {
        let known = self.0.load(std::sync::atomic::Ordering::Relaxed) && name.host == "late.example.net";
        std::future::ready(match known {
            true => Ok(vec!["192.0.2.7:51820".parse().unwrap()]),
            false => Err(spoke_sys::resolve::ResolveError::Empty(name.clone())),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn name_without_an_address_holds_back_no_other_peer() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let peers = [
        (2, "Endpoint = no-such-host.invalid:51820"),
        (3, "Endpoint = 192.0.2.3:51820"),
        (4, "AllowedIPs = 10.1.0.9/24"),
    ];
    let (status, answer) = node.ask("POST", "/v1/wg/wg0/syncconf", file(peers)).await;
    assert_eq!((status, node.peers().len()), (200, 3), "{answer}");
    let warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert_eq!(warnings.len(), 2, "{answer}");
    assert!(warnings[0].contains("AllowedIPs 10.1.0.9/24 is taken as 10.1.0.0/24"), "{answer}");
    assert!(warnings[1].contains("no-such-host.invalid:51820") && warnings[1].contains("tried again"), "{answer}");
    let endpoints = node.kernel.peers("wg0").values().filter_map(|p| p.endpoint).count();
    assert_eq!(endpoints, 1);
    let (_, answer) = node.ask("POST", "/v1/wg/wg0/syncconf", file([(3, "")])).await;
    assert!(answer.get("warnings").is_none() && node.agent.unresolved.is_empty(), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn name_is_tried_again_until_it_has_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    node.ask("POST", "/v1/wg/wg0/syncconf", file([(2, ""), (3, "Endpoint = 192.0.2.3:51820")])).await;
    let keys: Vec<PublicKey> = node.kernel.peers("wg0").keys().copied().collect();
    let name: HostPort = "late.example.net:51820".parse().unwrap();
    let waiting = || keys.iter().map(|key| (*key, name.clone())).collect();
    let (unresolved, resolver) = (Unresolved::default(), LateName::default());
    unresolved.set(&"wg0".parse().unwrap(), waiting());
    let retry = async || unresolved.retry(&resolver, &node.agent.deps.changes, &node.agent.deps.net).await;
    let endpoint = |n: usize| node.kernel.peers("wg0")[&keys[n]].endpoint.map(|e| e.to_string());
    retry().await;
    assert!(!unresolved.is_empty() && endpoint(0).is_none());
    resolver.0.store(true, std::sync::atomic::Ordering::Relaxed);
    retry().await;
    assert!(unresolved.is_empty());
    assert_eq!(endpoint(0).as_deref(), Some("192.0.2.7:51820"));
    assert_eq!(endpoint(1).as_deref(), Some("192.0.2.3:51820"), "a peer that has one keeps it");
}

#[tokio::test(start_paused = true)]
async fn address_of_a_pool_is_one_host() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let peer = |key: &str, net: &str| json!({"public_key": key, "allowed_ips": [net]});
    let (status, answer) = node.ask("POST", "/v1/wg/wg0/peers", peer(KEY, "10.0.7.9/24")).await;
    assert_eq!((status, &answer["peer"]["allowed_ips"][0]), (200, &"10.0.7.9/32".into()), "{answer}");
    assert!(answer["warnings"][0].as_str().unwrap().contains("taken as the host 10.0.7.9/32"), "{answer}");
    let (status, answer) = node.ask("POST", "/v1/wg/wg0/peers", peer(OTHER, "10.0.7.8/24")).await;
    assert_eq!(status, 200, "the next address of the same pool: {answer}");
    let put = format!("/v1/wg/wg0/peers/{KEY}");
    let (_, before) = node.ask("GET", "/v1/history", Value::Null).await;
    assert_eq!(node.ask("PUT", &put, json!({"allowed_ips": ["10.0.7.9/24"]})).await.0, 200);
    assert_eq!(node.ask("GET", "/v1/history", Value::Null).await.1, before, "no change");
    let (status, answer) = node.ask("PUT", &put, json!({"allowed_ips": ["10.0.7.8/24"]})).await;
    assert!(status == 409 && answer.to_string().contains(OTHER), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn head_decides_how_long_a_body_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    let admitted =
        |method: &str, path: &str| node.agent.admit(&node.request(method, path, "", None)).map_err(|r| r.status);
    for path in ["/health", "/v1/metrics", "/%68ealth"] {
        assert_eq!(admitted("POST", path), Ok(0), "{path}");
    }
    assert_eq!(admitted("GET", "/v1/status"), Ok(SMALL_BODY));
    assert_eq!(admitted("POST", "/v1/no-such-call"), Ok(SMALL_BODY));
    assert_eq!(admitted("POST", "/v1/wg/wg0/syncconf"), Ok(usize::MAX));
    let unsigned = Request { headers: Vec::new(), ..node.request("POST", "/v1/wg/wg0/syncconf", "", None) };
    assert_eq!(node.agent.admit(&unsigned).map_err(|r| r.status), Err(401));
    // Only a signature makes a source proven.
    let source = unsigned.source.ip();
    let _ = node.agent.call(unsigned).await;
    assert!(!node.agent.is_proven(source));
    let _ = node.agent.call(node.request("GET", "/v1/status", "", None)).await;
    assert!(node.agent.is_proven(source));
}

#[tokio::test(start_paused = true)]
async fn metrics_are_not_for_foreign_host_names() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), FakeKernel::new(), clock()).await;
    for (host, code) in [("evil.example:8081", 421), ("10.0.0.1:8081", 200), ("localhost", 200)] {
        let open =
            Request { host: Some(host.into()), headers: Vec::new(), ..node.request("GET", "/v1/metrics", "", None) };
        assert_eq!(node.agent.call(open).await.status, code, "{host}");
    }
}

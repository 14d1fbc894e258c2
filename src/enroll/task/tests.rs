//! The follower whole, against a control plane in memory and a kernel in memory: what is kept, what is refused, what a
//! restart without any network finds.
use super::*;
use crate::config::node::Role;
use crate::enroll::document::{MAX_BYTES, StateDocument, VERSION, WantedInterface, WantedPeer};
use crate::enroll::request::{Asked, Proof, TimeAnswer};
use crate::enroll::rotation::Which;
use crate::enroll::wire::{Outcome, Problem, ProblemCode, ProblemDetail, Report};
use crate::net::key::{PublicKey, SecretKey};
use crate::net::task::{Reconciler, Sources};
use crate::sim::clock::SimClock;
use crate::sim::kernel::{FakeKernel, Handle};
use crate::sim::node::Silent;
use crate::sys::echo::EchoError;
use crate::sys::http::{Answer, HttpError};
use crate::time::Wall;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex as Lock;
use tokio::sync::Notify as Bell;
use tokio::task::JoinSet;

/// By the control plane's clock; the device's own says 1970 in most tests.
const SERVER_MS: u64 = 1_800_000_000_000;

fn signer(n: u8) -> SignKey {
    SignKey::from_seed(&[n; 32]).unwrap()
}

fn peer(n: u8) -> WantedPeer {
    WantedPeer {
        node_id: format!("edge-{n}").parse().unwrap(),
        public_key: PublicKey([n; 32]),
        allowed_ips: vec![IpAddr::from([10, 8, 1, n]).into()],
        keepalive: 0,
        isolated: false,
    }
}

/// A hub's state with so many peers.
fn document(generation: u64, peers: u8) -> StateDocument {
    StateDocument {
        version: VERSION,
        node_id: "hub-1".parse().unwrap(),
        generation,
        role: Role::Hub,
        signing_keys: vec![signer(1).public()],
        release: None,
        grants: None,
        interfaces: vec![WantedInterface {
            name: "wg0".parse().unwrap(),
            addresses: vec!["10.8.0.1/16".parse().unwrap()],
            listen_port: Some(51820),
            mtu: None,
            dns: vec![],
            hubs: vec![],
            peers: (1..=peers).map(peer).collect(),
            forwarding: false,
            next_key: None,
            overrides: Default::default(),
        }],
    }
}

#[derive(Default)]
struct Plane {
    state: Option<(u64, Vec<u8>)>,
    down: bool,
    /// Milliseconds its clock is ahead of the requests it takes; it then tells its time.
    strict_clock: bool,
    /// Signs the time it tells.
    time_key: u8,
    told: Vec<(String, serde_json::Value)>,
    enrolled: u32,
    /// The device's token cannot be read.
    tokenless: bool,
}

/// The control plane in memory.
#[derive(Clone, Default)]
struct Server(Arc<(Lock<Plane>, Bell)>);

impl Server {
    fn change(&self, change: impl FnOnce(&mut Plane)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_waiters();
    }

    fn offer(&self, document: &StateDocument, keys: &[SignKey]) {
        let body = serde_json::to_vec(&document.sign(keys).unwrap()).unwrap();
        self.change(|p| p.state = Some((document.generation, body)));
    }

    /// The last report.
    fn report(&self) -> Option<Report> {
        let plane = self.0.0.lock().unwrap();
        plane
            .told
            .iter()
            .rev()
            .find(|(p, _)| p == wire::REPORT)
            .map(|(_, b)| serde_json::from_value(b.clone()).unwrap())
    }
}

impl Http for Server {
    async fn send(&mut self, request: Request) -> Result<Answer, HttpError> {
        let proof = Proof::from_headers(|n| request.headers.iter().find(|(h, _)| *h == n).map(|(_, v)| v.as_str()));
        let proof = proof.unwrap();
        let asked = Asked { method: request.method, path: &request.path, body: &request.body };
        assert!(proof.verify(&asked, &signer(9).public()), "every request carries its proof");
        loop {
            let bell = self.0.1.notified();
            {
                let mut plane = self.0.0.lock().unwrap();
                if plane.down {
                    return Err(HttpError::Unreachable(std::io::ErrorKind::ConnectionRefused.into()));
                }
                let off = proof.timestamp_ms.abs_diff(SERVER_MS) > 600_000_000;
                if plane.strict_clock && off {
                    let time = Some(TimeAnswer::sign(&signer(plane.time_key), SERVER_MS, proof.nonce));
                    let message = "your clock is off".into();
                    let detail = ProblemDetail { code: ProblemCode::ClockSkew, message, existing_config: None, time };
                    return Ok(Answer { status: 401, body: serde_json::to_vec(&Problem { detail }).unwrap() });
                }
                if request.method == "POST" {
                    let body = serde_json::from_slice(&request.body).unwrap();
                    plane.told.push((request.path.clone(), body));
                    if request.path != wire::PROVISION {
                        return Ok(Answer { status: 204, body: vec![] });
                    }
                    plane.enrolled += 1;
                    let config = serde_json::json!({"node_id": "hub-1", "assigned_ip": "10.8.0.1", "subnet_mask": "255.255.0.0",
                        "allowed_ips": [], "persistent_keepalive": 25, "dns_servers": [], "provisioned_at": "2027-01-15T08:00:00Z",
                        "interface": "wg0", "signing_keys": [signer(1).public()]});
                    let body = serde_json::json!({"status": "success", "config": config, "message": ""});
                    return Ok(Answer { status: 200, body: serde_json::to_vec(&body).unwrap() });
                }
                let after =
                    request.path.split_once("after=").and_then(|(_, t)| t.split('&').next()?.parse::<u64>().ok());
                if let Some((generation, body)) = &plane.state
                    && *generation > after.unwrap()
                {
                    return match body.len() > request.max {
                        true => Err(HttpError::TooLarge(request.max)),
                        false => Ok(Answer { status: 200, body: body.clone() }),
                    };
                }
            }
            bell.await;
        }
    }
}

struct NoEcho;

impl Echo for NoEcho {
    async fn send(&mut self, _: &crate::net::state::IfName, _: IpAddr, _: u16) -> Result<(), EchoError> {
        Ok(())
    }

    async fn answer(&mut self) -> (IpAddr, u16) {
        std::future::pending().await
    }
}

struct OneKey;

impl TunnelKeys for OneKey {
    fn current(&mut self) -> Result<PublicKey, KeyError> {
        Ok(SecretKey::clamped([9; 32]).public())
    }
    fn pending(&mut self) -> Result<Option<(PublicKey, bool)>, KeyError> {
        Ok(None)
    }
    fn make(&mut self) -> Result<PublicKey, KeyError> {
        self.current()
    }
    fn remember(&mut self) -> Result<(), KeyError> {
        Ok(())
    }
    fn secret(&mut self, _: Which) -> Result<SecretKey, KeyError> {
        Ok(SecretKey::clamped([9; 32]))
    }
    fn finish(&mut self) -> Result<(), KeyError> {
        Ok(())
    }
    fn abandon(&mut self) -> Result<(), KeyError> {
        Ok(())
    }
}

fn random() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Follower and reconciler on a state directory that outlives them.
struct Node {
    kernel: Handle,
    net: watch::Receiver<Net>,
    status: watch::Receiver<Status>,
    tasks: JoinSet<()>,
}

impl Node {
    fn start(dir: &Path, server: &Server, kernel: FakeKernel, clock: SimClock) -> Self {
        let text = format!(
            "[node]\nid = \"hub-1\"\nrole = \"hub\"\nstate_dir = \"{}\"\n[control]\nurl = \"https://c.example.net\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\n",
            dir.display()
        );
        let base = Arc::new(Config::from_text(Some(("test", &text)), []).unwrap());
        let handle = kernel.handle();
        let private = [("wg0".parse().unwrap(), SecretKey::clamped([9; 32]))].into();
        let (secrets, keys) = watch::channel(Some(Arc::new(Keys { private, ..Keys::default() })));
        let (net_out, net) = watch::channel(Net::default());
        let (publish, control) = watch::channel(None);
        let (status_out, status) = watch::channel(Status::default());
        let (_, rotate) = mpsc::channel(1);
        let follower = Follower {
            http: (server.clone(), server.clone()),
            echo: NoEcho,
            clock: clock.clone(),
            random,
            base: base.clone(),
            control: base.control.clone().unwrap(),
            node: "hub-1".parse().unwrap(),
            identity: signer(9),
            keys: OneKey,
            secrets,
            token: {
                let server = server.clone();
                Arc::new(move || match server.0.0.lock().unwrap().tokenless {
                    true => Err("control.token: cannot read /etc/spoke/token".to_owned()),
                    false => Ok(Secret::new("token".to_owned())),
                })
            },
            capabilities: Capabilities { cpu_cores: 1, memory_mb: 64, arch: None },
            kept: Kept {
                enrolment: Document::new(dir.join("enrolment.json"), 1),
                state: Document::new(dir.join("state.json"), 1),
                rejected: Document::new(dir.join("rejected.json"), 1),
            },
            publish,
            net: net.clone(),
            uplink: watch::channel(Uplink::default()).1,
            choice: None,
            vitals: watch::channel(Vitals::default()).1,
            health: {
                // Whoever asks under a guard of the status waits for ever.
                let writer = net_out.clone();
                Arc::new(move || {
                    writer.send_if_modified(|_| false);
                    (true, serde_json::json!({"status": "healthy"}))
                })
            },
            update: watch::channel(None).1,
            rotate: Arc::new(Mutex::new(rotate)),
            status: status_out,
        };
        let sources = Sources {
            keys,
            uplink: None,
            names: None,
            admitted: None,
            control: Some(control),
            imperative: None,
            repair: None,
        };
        let (events, _) = watch::channel(0);
        let reconciler = Reconciler { kernel, clock, notify: Silent, config: base, sources, status: net_out, events };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(reconciler.run().await) });
        tasks.spawn(async move { follower.run().await.unwrap() });
        Self { kernel: handle, net, status, tasks }
    }

    async fn peers(&mut self, count: usize) {
        let wanted = |n: &Net| n.clean && n.observed.links.values().map(|l| l.peers.len()).sum::<usize>() == count;
        self.net.wait_for(wanted).await.unwrap();
    }

    async fn says(&mut self, what: impl FnMut(&Status) -> bool) -> Status {
        self.status.wait_for(what).await.unwrap().clone()
    }

    /// The end of the process; the kernel stays.
    async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

fn clock() -> SimClock {
    SimClock::new(Wall(0))
}

#[tokio::test(start_paused = true)]
async fn a_board_of_1970_enrols_follows_and_boots_without_any_network() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.change(|p| (p.strict_clock, p.time_key) = (true, 1));
    server.offer(&document(3, 2), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(2).await;
    node.says(|s| s.generation == 3 && s.outcome == Some(Outcome::Applied)).await;
    node.stop().await;

    server.change(|p| p.down = true);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(2).await;
    let status = node.says(|s| s.away.is_some()).await;
    assert_eq!((status.enrolled, status.generation), (true, 3));
    assert_eq!(server.0.0.lock().unwrap().enrolled, 1, "it is not enrolled anew");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_read_is_told_and_needs_no_restart_once_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.change(|p| p.tokenless = true);
    server.offer(&document(3, 2), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    let away = node.says(|s| s.away.is_some()).await.away.unwrap();
    assert_eq!(away.why, "control.token: cannot read /etc/spoke/token");
    server.change(|p| p.tokenless = false);
    node.says(|s| s.generation == 3).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_acceptable_is_refused_reported_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&document(3, 2), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(2).await;
    node.says(|s| s.generation == 3).await;
    let kept = std::fs::read(dir.path().join("state.json")).unwrap();

    let other_node = StateDocument { node_id: "hub-2".parse().unwrap(), ..document(5, 0) };
    let mut twice = document(6, 2);
    twice.interfaces[0].peers[1].allowed_ips = twice.interfaces[0].peers[0].allowed_ips.clone();
    let as_node = StateDocument { role: Role::Node, ..document(7, 0) };
    let cases: [(&str, StateDocument, u8); 4] = [
        ("signed", document(4, 0), 2),
        ("for node hub-2", other_node, 1),
        ("is claimed by", twice, 1),
        ("node.role", as_node, 1),
    ];
    for (why, document, key) in cases {
        server.offer(&document, &[signer(key)]);
        let said = node.says(|s| s.reason.as_ref().is_some_and(|r| r.contains(why))).await;
        assert_eq!((said.outcome, said.generation), (Some(Outcome::Refused), 3), "{why}");
    }
    server.change(|p| p.state = Some((8, vec![b' '; MAX_BYTES + 1])));
    node.says(|s| s.reason.as_ref().is_some_and(|r| r.contains("at most"))).await;
    node.peers(2).await;
    assert_eq!(std::fs::read(dir.path().join("state.json")).unwrap(), kept);
    let began = tokio::time::Instant::now();
    while server.report().is_none_or(|r| r.outcome != Outcome::Refused) {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The next good one is taken all the same.
    server.offer(&document(9, 4), &[signer(1)]);
    node.peers(4).await;
    node.says(|s| s.generation == 9 && s.reason.is_none()).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_state_the_kernel_refuses_is_not_kept_and_the_previous_one_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&document(3, 2), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(2).await;
    node.says(|s| s.generation == 3).await;
    let kept = std::fs::read(dir.path().join("state.json")).unwrap();
    let bad = PublicKey([3; 32]);
    node.kernel.refuse(move |step| {
        matches!(step, crate::net::plan::Step::SetPeer { peer, .. } if *peer == bad).then_some(rustix::io::Errno::NOMEM)
    });
    server.offer(&document(4, 3), &[signer(1)]);
    let said = node.says(|s| s.outcome == Some(Outcome::Reverted)).await;
    assert!(said.reason.as_ref().is_some_and(|r| r.contains("could not be applied")), "{said:?}");
    node.peers(2).await;
    assert_eq!(std::fs::read(dir.path().join("state.json")).unwrap(), kept);
    node.stop().await;
    // Nor is it tried again by the next process.
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    let said = node.says(|s| s.generation == 3).await;
    assert_eq!(said.outcome, Some(Outcome::Reverted));
    node.peers(2).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rotation_of_the_signing_key_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&document(3, 1), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(1).await;
    let both = StateDocument { signing_keys: vec![signer(1).public(), signer(2).public()], ..document(4, 2) };
    server.offer(&both, &[signer(1), signer(2)]);
    node.says(|s| s.generation == 4).await;
    let new = StateDocument { signing_keys: vec![signer(2).public()], ..document(5, 3) };
    server.offer(&new, &[signer(2)]);
    node.says(|s| s.generation == 5).await;
    server.offer(&document(6, 1), &[signer(1)]);
    let said = node.says(|s| s.outcome == Some(Outcome::Refused)).await;
    assert!(said.reason.unwrap().contains("signed"), "the old key's word is worth nothing any more");
    node.stop().await;
    server.change(|p| p.down = true);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(3).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_time_that_no_pinned_key_has_signed_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&document(3, 1), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.says(|s| s.generation == 3).await;
    server.change(|p| (p.strict_clock, p.time_key) = (true, 5));
    server.offer(&document(4, 2), &[signer(1)]);
    node.stop().await;
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    let said = node.says(|s| s.away.is_some()).await;
    assert!(said.away.unwrap().why.contains("no pinned key"), "forgery is told from a wrong clock");
    assert_eq!(said.generation, 3);
    server.change(|p| p.time_key = 1);
    node.says(|s| s.generation == 4).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_kernel_keeps_what_it_has_when_all_that_was_kept_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&document(3, 2), &[signer(1)]);
    let kernel = FakeKernel::new();
    let handle = kernel.handle();
    let mut node = Node::start(dir.path(), &server, kernel, clock());
    node.peers(2).await;
    node.says(|s| s.generation == 3).await;
    node.stop().await;
    for file in ["state.json", "state.json.prev"] {
        let path = dir.path().join(file);
        if path.exists() {
            std::fs::write(path, b"{").unwrap();
        }
    }
    server.change(|p| p.down = true);
    let node = Node::start(dir.path(), &server, handle.kernel(), clock());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(handle.peers("wg0").len(), 2, "an hour without a state and without a control plane");
    server.change(|p| p.down = false);
    let mut node = node;
    server.offer(&document(4, 3), &[signer(1)]);
    node.peers(3).await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hub_takes_thousands_of_peers_and_one_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    let mut many = document(3, 0);
    let peer = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let allowed_ips = vec![IpAddr::from([10, 8 + a, b, c]).into()];
        WantedPeer {
            node_id: format!("n-{n}").parse().unwrap(),
            public_key: PublicKey(key),
            allowed_ips,
            ..self::peer(1)
        }
    };
    many.interfaces[0].peers = (2..5_002).map(peer).collect();
    server.offer(&many, &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(5_000).await;
    node.says(|s| s.generation == 3).await;
    let _ = node.kernel.take_steps();
    many.generation = 4;
    many.interfaces[0].peers.push(peer(5_002));
    server.offer(&many, &[signer(1)]);
    node.peers(5_001).await;
    assert_eq!(node.kernel.take_steps().len(), 1, "nobody else is touched");
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_record_of_the_enrolment_is_made_anew_from_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&document(3, 2), &[signer(1)]);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.says(|s| s.generation == 3).await;
    node.stop().await;
    for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("enrolment") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    server.change(|p| p.down = true);
    let mut node = Node::start(dir.path(), &server, FakeKernel::new(), clock());
    node.peers(2).await;
    assert!(node.says(|s| s.enrolled).await.enrolled);
    node.stop().await;
}

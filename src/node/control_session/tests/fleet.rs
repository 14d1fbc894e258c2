//! A control plane in memory, and a node of control session and reconciler on a kernel in memory.
use super::super::*;
use crate::enrolment::TokenError;
use crate::reconciler::{Reconciler, Sources};
use crate::sim::NoNotify;
use spoke_config::node::Role;
use spoke_enroll::document::{StateDocument, VERSION, WantedInterface, WantedPeer};
use spoke_enroll::events::KeySlot;
use spoke_enroll::request::{KEY_PROOF, RemovalAnswer, RequestParts, RequestProof, TimeAnswer};
use spoke_enroll::wire;
use spoke_enroll::wire::{NodeReport, Problem, ProblemCode, ProblemDetail};
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::key_proof::KeyProof;
use spoke_model::signature::SignKey;
use spoke_model::time::Wall;
use spoke_net::derive::HubPeer;
use spoke_sys::disk::Document;
use spoke_sys::echo::EchoError;
use spoke_sys::http::{Answer, HttpError, Request};
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::kernel::{FakeKernel, Handle};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex as Lock;
use tokio::sync::Notify as Bell;
use tokio::task::JoinSet;

/// The control plane's clock; the device's reads 1970.
pub(super) const SERVER_MS: u64 = 1_800_000_000_000;

pub(super) fn signer(n: u8) -> SignKey {
    SignKey::from_seed(&[n; 32]).unwrap()
}

pub(super) fn peer(n: u8) -> WantedPeer {
    WantedPeer {
        node_id: format!("edge-{n}").parse().unwrap(),
        public_key: PublicKey([n; 32]),
        allowed_ips: vec![IpAddr::from([10, 8, 1, n]).into()],
        keepalive: 0,
        isolated: false,
        preshared_key: None,
    }
}

/// State of a hub with so many peers.
pub(super) fn document(generation: u64, peers: u8) -> StateDocument {
    StateDocument {
        version: VERSION,
        node_id: "hub-1".parse().unwrap(),
        supersedes: None,
        generation,
        role: Role::Hub,
        signing_keys: vec![signer(1).public()],
        release: None,
        rollout: Default::default(),
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
pub(super) struct Plane {
    pub(super) state: Option<(u64, Vec<u8>)>,
    pub(super) down: bool,
    /// Requests whose time is off are answered with its own time.
    pub(super) strict_clock: bool,
    /// Number of the key that signs its time.
    pub(super) time_key: u8,
    pub(super) received: Vec<(String, serde_json::Value)>,
    pub(super) enrolled: u32,
    /// The device has no enrolment token.
    pub(super) tokenless: bool,
    /// Number of the key that signs the removal of the node.
    pub(super) removed_by: Option<u8>,
    /// Digests of erased tokens, each with whether the enrolment was on disk.
    pub(super) erased: Vec<(String, bool)>,
    /// An enrolment must prove the WireGuard key to it.
    pub(super) verifier: Option<SecretKey>,
}

/// The control plane in memory.
#[derive(Clone, Default)]
pub(super) struct Server(pub(super) Arc<(Lock<Plane>, Bell)>);

impl Server {
    pub(super) fn change(&self, change: impl FnOnce(&mut Plane)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_waiters();
    }

    pub(super) fn offer(&self, document: &StateDocument, keys: &[SignKey]) {
        let body = serde_json::to_vec(&document.sign(keys).unwrap()).unwrap();
        self.change(|p| p.state = Some((document.generation, body)));
    }

    /// Run and number of every report.
    pub(super) fn report_places(&self) -> Vec<(String, u64)> {
        let plane = self.0.0.lock().unwrap();
        let place = |path: &str| {
            let (run, number) = path.strip_prefix(wire::REPORT)?.strip_prefix("?run=")?.split_once("&number=")?;
            let number = number.split('&').next()?;
            Some((run.to_owned(), number.parse().ok()?))
        };
        plane.received.iter().filter(|(p, _)| p.starts_with(wire::REPORT)).map(|(p, _)| place(p).unwrap()).collect()
    }

    /// Whether a node has announced a new key.
    pub(super) fn announces_a_key(&self) -> bool {
        self.0.0.lock().unwrap().received.iter().any(|(p, _)| p == wire::KEY)
    }

    /// The last report.
    pub(super) fn report(&self) -> Option<NodeReport> {
        let plane = self.0.0.lock().unwrap();
        plane
            .received
            .iter()
            .rev()
            .find(|(p, _)| p.starts_with(wire::REPORT))
            .map(|(_, b)| serde_json::from_value(b.clone()).unwrap())
    }
}

impl Http for Server {
    async fn send(&mut self, request: Request) -> Result<Answer, HttpError> {
        let proof =
            RequestProof::from_headers(|n| request.headers.iter().find(|(h, _)| *h == n).map(|(_, v)| v.as_str()));
        let proof = proof.unwrap();
        let asked = RequestParts { method: request.method, path: &request.path, body: &request.body };
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
                    let (code, existing_config, key_verifier) = (ProblemCode::ClockSkew, None, None);
                    let detail = ProblemDetail { code, message, existing_config, time, key_verifier, removal: None };
                    return Ok(Answer { status: 401, body: serde_json::to_vec(&Problem { detail }).unwrap() });
                }
                let path = request.path.split('?').next().unwrap_or_default();
                let header = |n| request.headers.iter().find(|(h, _)| *h == n).map(|(_, v)| v.as_str());
                let key_proof = header(KEY_PROOF).and_then(|p| p.parse::<KeyProof>().ok());
                let own = SecretKey::clamped([9; 32]).public();
                let message = proof.signature.to_string();
                if let Some(verifier) = plane.verifier.as_ref().filter(|_| path == wire::PROVISION)
                    && !key_proof.is_some_and(|p| p.verify(verifier, own, message.as_bytes()))
                {
                    let (code, message, key_verifier) = (ProblemCode::BadProof, String::new(), Some(verifier.public()));
                    let (existing_config, time, removal) = (None, None, None);
                    let detail = ProblemDetail { code, message, existing_config, time, key_verifier, removal };
                    return Ok(Answer { status: 401, body: serde_json::to_vec(&Problem { detail }).unwrap() });
                }
                if request.method == "POST" {
                    let body = serde_json::from_slice(&request.body).unwrap();
                    let enrols = path == wire::PROVISION;
                    plane.received.push((if enrols { path.to_owned() } else { request.path.clone() }, body));
                    if !enrols {
                        return Ok(Answer { status: 204, body: vec![] });
                    }
                    plane.enrolled += 1;
                    let config = serde_json::json!({"node_id": "hub-1", "assigned_ip": "10.8.0.1", "subnet_mask": "255.255.0.0",
                        "allowed_ips": [], "persistent_keepalive": 25, "dns_servers": [], "provisioned_at": "2027-01-15T08:00:00Z",
                        "interface": "wg0", "signing_keys": [signer(1).public()]});
                    let body = serde_json::json!({"status": "success", "config": config, "message": ""});
                    return Ok(Answer { status: 200, body: serde_json::to_vec(&body).unwrap() });
                }
                if let Some(key) = plane.removed_by {
                    let removal = Some(RemovalAnswer::sign(&signer(key), &proof.node, proof.nonce));
                    let (code, message) = (ProblemCode::Revoked, "the node was removed from the fleet".to_owned());
                    let (existing_config, time, key_verifier) = (None, None, None);
                    let detail = ProblemDetail { code, message, existing_config, time, key_verifier, removal };
                    return Ok(Answer { status: 403, body: serde_json::to_vec(&Problem { detail }).unwrap() });
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

pub(super) struct NoEcho;

impl Echo for NoEcho {
    async fn send(&mut self, _: &spoke_model::interface_name::IfName, _: IpAddr, _: u16) -> Result<(), EchoError> {
        Ok(())
    }

    async fn answer(&mut self) -> (IpAddr, u16) {
        std::future::pending().await
    }
}

pub(super) struct OneKey;

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
    fn secret(&mut self, _: KeySlot) -> Result<SecretKey, KeyError> {
        Ok(SecretKey::clamped([9; 32]))
    }
    fn finish(&mut self) -> Result<(), KeyError> {
        Ok(())
    }
    fn abandon(&mut self) -> Result<(), KeyError> {
        Ok(())
    }
}

pub(super) fn random() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The hubs 10.8.0.N that answer echoes.
pub(super) struct HubEcho {
    alive: Vec<u8>,
    sent: mpsc::UnboundedSender<(IpAddr, u16)>,
    replies: mpsc::UnboundedReceiver<(IpAddr, u16)>,
}

impl Echo for HubEcho {
    async fn send(&mut self, _: &spoke_model::interface_name::IfName, to: IpAddr, seq: u16) -> Result<(), EchoError> {
        if self.alive.iter().any(|n| to == IpAddr::from([10, 8, 0, *n])) {
            let _ = self.sent.send((to, seq));
        }
        Ok(())
    }

    async fn answer(&mut self) -> (IpAddr, u16) {
        match self.replies.recv().await {
            Some(reply) => reply,
            None => std::future::pending().await,
        }
    }
}

/// A hub session in 3 s per connection and 20 s per round of the ladder.
async fn follow_hub(
    mut effective: Fact<Effective>,
    alive: Vec<u8>,
    choice: watch::Sender<Option<Arc<UplinkChoice>>>,
    status: watch::Sender<UplinkStatus>,
    clock: SimClock,
) {
    loop {
        let hub = effective.borrow_and_update().as_ref().and_then(|e| e.hubs().first().cloned());
        let session = async {
            let Some(hub) = hub else { return std::future::pending().await };
            let name = hub.name.clone();
            let answers = alive.iter().any(|n| hub.address == IpAddr::from([10, 8, 0, *n]));
            let active = HubPeer { hub: Arc::new(hub), endpoint: None };
            let interface = "wg0".parse().unwrap();
            choice.send_replace(Some(Arc::new(UplinkChoice {
                interface,
                active,
                standby: None,
                port_epoch: 0,
                rebuild: 0,
            })));
            status.send_replace(UplinkStatus { hub: Some(name), ..UplinkStatus::default() });
            tokio::time::sleep(Duration::from_secs(3)).await;
            if !answers {
                loop {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    status.send_modify(|s| *s.rungs.entry(spoke_uplink::ladder::Rung::Again).or_default() += 1);
                }
            }
            let (state, connected_since) = (spoke_uplink::status::State::Up, Some(clock.now()));
            status.send_modify(|s| (s.state, s.connected_since) = (state, connected_since));
            std::future::pending().await
        };
        tokio::select! {
            () = session => {}
            changed = effective.changed() => if changed.is_err() { return },
        }
    }
}

/// Control session and reconciler; the state directory outlives them.
pub(super) struct Node {
    pub(super) kernel: Handle,
    pub(super) net: watch::Receiver<NetStatus>,
    pub(super) status: watch::Receiver<ControlStatus>,
    pub(super) tasks: JoinSet<()>,
    uplink: watch::Receiver<UplinkStatus>,
    pub(super) requests: mpsc::Sender<SessionRequest>,
    pub(super) confirmed: watch::Receiver<Option<Anchor>>,
    pub(super) stamps: watch::Sender<Option<Wall>>,
    effective: Fact<Effective>,
}

impl Node {
    /// A hub.
    pub(super) fn start(dir: &Path, server: &Server, kernel: FakeKernel) -> Self {
        Self::start_as("hub", dir, server, kernel, NoEcho, &[])
    }

    /// A node; the hubs 10.8.0.N answer for each N of `alive`.
    pub(super) fn start_at_hubs(dir: &Path, server: &Server, kernel: FakeKernel, alive: &[u8]) -> Self {
        let (sent, replies) = mpsc::unbounded_channel();
        let echo = HubEcho { alive: alive.to_vec(), sent, replies };
        Self::start_as("node", dir, server, kernel, echo, alive)
    }

    /// `role`: as the configuration names it, or nothing.
    pub(super) fn start_as(
        role: &str,
        dir: &Path,
        server: &Server,
        kernel: FakeKernel,
        echo: impl Echo,
        alive: &[u8],
    ) -> Self {
        // A board without a battery.
        let clock = SimClock::new(Wall(0));
        let named = if role.is_empty() { String::new() } else { format!("role = \"{role}\"\n") };
        let text = format!(
            "[node]\nid = \"hub-1\"\n{named}state_dir = \"{}\"\n[control]\nurl = \"https://c.example.net\"\n[[interface]]\nname = \"wg0\"\n{}",
            dir.display(),
            if role == "hub" { "listen_port = 51820\n" } else { "" }
        );
        let own = Arc::new(Config::from_text(Some(("test", &text)), []).unwrap());
        let handle = kernel.handle();
        let private = [("wg0".parse().unwrap(), SecretKey::clamped([9; 32]))].into();
        let (secrets, keys) = watch::channel(Some(Arc::new(Keys { private, ..Keys::default() })));
        let (net_out, net) = watch::channel(NetStatus::default());
        let (publish, in_force) = watch::channel(None);
        let (status_out, status) = watch::channel(ControlStatus::default());
        let (requests, session_requests) = mpsc::channel(1);
        let (confirmed_out, confirmed) = watch::channel(None);
        let (stamps, _) = watch::channel(None);
        let (uplink_out, uplink) = watch::channel(UplinkStatus::default());
        let (choice_out, choice) = watch::channel(None);
        let choice = (role != "hub").then_some(choice);
        let control = ControlTask {
            http: (server.clone(), server.clone(), server.clone()),
            echo,
            clock: clock.clone(),
            control: own.control.clone().unwrap(),
            own,
            signer: Signer { key: signer(9), node: "hub-1".parse().unwrap(), random },
            keys: OneKey,
            secrets,
            token: {
                let server = server.clone();
                Arc::new(move || match server.0.0.lock().unwrap().tokenless {
                    true => Err(TokenError::NotConfigured),
                    false => Ok(spoke_model::secret::Secret::new("token".to_owned())),
                })
            },
            erase_token: {
                let (server, enrolment) = (server.clone(), dir.join("enrolment.json"));
                Arc::new(move |sha256: &str| {
                    server.0.0.lock().unwrap().erased.push((sha256.to_owned(), enrolment.exists()));
                })
            },
            capabilities: Capabilities { cpu_cores: 1, memory_mb: 64, arch: None },
            files: StateFiles {
                enrolment: Document::new(dir.join("enrolment.json"), 1),
                state: Document::new(dir.join("state.json"), 1),
                rejected: Document::new(dir.join("rejected.json"), 1),
                trial: Document::new(dir.join("trial.json"), 1),
            },
            publish,
            net: net.clone(),
            uplink: uplink.clone(),
            choice: choice.clone(),
            components: watch::channel(Components::default()).1,
            health: {
                // Deadlocks if it is called under a guard of the status.
                let writer = net_out.clone();
                Arc::new(move || {
                    writer.send_if_modified(|_| false);
                    (true, serde_json::json!({"status": "healthy"}))
                })
            },
            update: watch::channel(None).1,
            requests: Arc::new(Mutex::new(session_requests)),
            status: status_out,
            confirm: confirmed_out,
            stamped_until: stamps.clone(),
            restart: {
                let mark = dir.join("restarted");
                Arc::new(move || std::fs::write(&mark, "").unwrap())
            },
        };
        let sources = Sources {
            keys,
            uplink: choice,
            names: None,
            admitted: None,
            effective: in_force.clone(),
            api_state: None,
            repair: None,
        };
        let (events, _) = watch::channel(0);
        let effective = in_force.clone();
        let session = follow_hub(in_force, alive.to_vec(), choice_out, uplink_out, clock.clone());
        let reconciler = Reconciler { kernel, clock, notify: NoNotify, sources, status: net_out, events };
        let mut tasks = JoinSet::new();
        tasks.spawn(session);
        tasks.spawn(async move { drop(reconciler.run().await) });
        tasks.spawn(async move { control.run().await.unwrap() });
        Self { kernel: handle, net, status, tasks, uplink, requests, confirmed, stamps, effective }
    }

    /// Version of the release that the updater is to install.
    pub(super) fn release(&self) -> Option<String> {
        self.effective.borrow().as_ref()?.wanted_release().map(|r| r.version.clone())
    }

    /// Number of the hub that the session is at.
    pub(super) fn hub(&self) -> Option<u8> {
        self.uplink.borrow().hub.as_ref()?.strip_prefix("hub-")?.parse().ok()
    }

    /// Waits until the tunnel to this hub is up.
    pub(super) async fn connects_to(&mut self, hub: u8) {
        let name = format!("hub-{hub}");
        let up = |s: &UplinkStatus| s.state == spoke_uplink::status::State::Up && s.hub.as_ref() == Some(&name);
        self.uplink.wait_for(up).await.unwrap();
    }

    pub(super) async fn has_peers(&mut self, count: usize) {
        let wanted =
            |n: &NetStatus| n.clean && n.observed.links.values().map(|l| l.peers.len()).sum::<usize>() == count;
        self.net.wait_for(wanted).await.unwrap();
    }

    pub(super) async fn reports(&mut self, what: impl FnMut(&ControlStatus) -> bool) -> ControlStatus {
        self.status.wait_for(what).await.unwrap().clone()
    }

    /// Ends the process; the kernel stays.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

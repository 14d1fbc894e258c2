//! The control session with a control plane and a kernel in memory.
use super::*;
use spoke_config::node::Role;
use spoke_enroll::document::{MAX_BYTES, StateDocument, WantedPeer};
use spoke_enroll::wire::Outcome;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_sys::sim::kernel::FakeKernel;
use std::net::IpAddr;

mod fleet;
mod trial;
use fleet::*;

/// A control plane with generation 3, and a node on a state directory that outlives it.
struct Setup {
    dir: tempfile::TempDir,
    server: Server,
    node: Node,
}

impl Setup {
    /// The node has not enrolled yet. `prepare` changes the control plane before the node starts.
    fn new(peers: u8, prepare: impl FnOnce(&mut Plane)) -> Self {
        let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
        server.change(prepare);
        server.offer(&document(3, peers), &[signer(1)]);
        let node = Node::start(dir.path(), &server, FakeKernel::new());
        Self { dir, server, node }
    }

    /// The node is enrolled, and generation 3 is in the kernel and on disk.
    async fn following(peers: u8) -> Self {
        let mut setup = Self::new(peers, |_| {});
        setup.node.has_peers(peers.into()).await;
        setup.node.reports(|s| s.generation == 3).await;
        setup
    }

    /// Restarts the process, with an empty kernel.
    async fn restart(self) -> Self {
        self.restart_with(FakeKernel::new(), |_, _| {}).await
    }

    /// Restarts the process on `kernel`; `between` runs while it is stopped.
    async fn restart_with(self, kernel: FakeKernel, between: impl FnOnce(&std::path::Path, &Server)) -> Self {
        let Self { dir, server, node } = self;
        node.stop().await;
        between(dir.path(), &server);
        let node = Node::start(dir.path(), &server, kernel);
        Self { dir, server, node }
    }

    fn state_file(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("state.json")).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn node_of_1970_enrols_and_boots_offline() {
    let mut setup = Setup::new(2, |p| (p.strict_clock, p.time_key) = (true, 1));
    setup.node.has_peers(2).await;
    setup.node.reports(|s| s.generation == 3 && s.outcome == Some(Outcome::Applied)).await;
    let mut setup = setup.restart_with(FakeKernel::new(), |_, server| server.change(|p| p.down = true)).await;
    setup.node.has_peers(2).await;
    let status = setup.node.reports(|s| s.outage.is_some()).await;
    assert_eq!((status.enrolled, status.generation), (true, 3));
    assert_eq!(setup.server.0.0.lock().unwrap().enrolled, 1, "enrolled once");
}

#[tokio::test(start_paused = true)]
async fn device_proves_its_wireguard_key_when_asked() {
    let verifier = SecretKey::clamped([77; 32]);
    let mut setup = Setup::new(2, |p| p.verifier = Some(verifier));
    setup.node.reports(|s| s.generation == 3).await;
    assert_eq!(setup.server.0.0.lock().unwrap().enrolled, 1);
}

#[tokio::test(start_paused = true)]
async fn missing_token_is_reported_and_needs_no_restart() {
    let mut setup = Setup::new(2, |p| p.tokenless = true);
    let outage = setup.node.reports(|s| s.outage.is_some()).await.outage.unwrap();
    assert_eq!(outage.reason, "there is no enrolment token: set control.token");
    setup.server.change(|p| p.tokenless = false);
    setup.node.reports(|s| s.generation == 3).await;
}

#[tokio::test(start_paused = true)]
async fn unnamed_role_is_the_control_planes() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::default());
    server.offer(&document(3, 2), &[signer(1)]);
    let start = || Node::start_as("", dir.path(), &server, FakeKernel::new(), NoEcho, &[]);
    let restarted = async |node: Node| {
        let mark = dir.path().join("restarted");
        let began = tokio::time::Instant::now();
        while !mark.exists() {
            assert!(began.elapsed() < Duration::from_secs(600));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        node.stop().await;
        std::fs::remove_file(mark).unwrap();
        let record: spoke_enroll::identity::Enrolment =
            spoke_sys::disk::Document::new(dir.path().join("enrolment.json"), 1).peek().unwrap();
        assert_eq!(record.role, Some(Role::Hub));
    };
    restarted(start()).await;
    // The hub that starts then keeps the state; its record is lost.
    let mut hub = Node::start(dir.path(), &server, FakeKernel::new());
    hub.reports(|s| s.generation == 3).await;
    hub.stop().await;
    for name in ["enrolment.json", "enrolment.json.prev"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    server.change(|p| p.tokenless = true);
    restarted(start()).await;
}

#[tokio::test(start_paused = true)]
async fn unacceptable_state_is_refused_and_never_stored() {
    let mut setup = Setup::following(2).await;
    let stored = setup.state_file();
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
        setup.server.offer(&document, &[signer(key)]);
        let status = setup.node.reports(|s| s.reason.as_ref().is_some_and(|r| r.contains(why))).await;
        assert_eq!((status.outcome, status.generation), (Some(Outcome::Refused), 3), "{why}");
    }
    setup.server.change(|p| p.state = Some((8, vec![b' '; MAX_BYTES + 1])));
    setup.node.reports(|s| s.reason.as_ref().is_some_and(|r| r.contains("at most"))).await;
    setup.node.has_peers(2).await;
    assert_eq!(setup.state_file(), stored);
    let began = tokio::time::Instant::now();
    while setup.server.report().is_none_or(|r| r.outcome != Outcome::Refused) {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    setup.server.offer(&document(9, 4), &[signer(1)]);
    setup.node.has_peers(4).await;
    setup.node.reports(|s| s.generation == 9 && s.reason.is_none()).await;
}

/// The state with another port, which the kernel refuses after [`refuse_another_port`].
fn on_another_port(mut document: StateDocument) -> StateDocument {
    document.interfaces[0].listen_port = Some(51_999);
    document
}

fn refuse_another_port(setup: &Setup) {
    use spoke_net::plan::Step;
    let refused = |step: &Step| matches!(step, Step::SetDevice { listen_port: Some(51_999), .. });
    setup.node.kernel.refuse(move |step| refused(step).then_some(rustix::io::Errno::ADDRINUSE));
}

#[tokio::test(start_paused = true)]
async fn state_with_a_refused_peer_is_kept() {
    let mut setup = Setup::following(2).await;
    let bad = PublicKey([3; 32]);
    setup.node.kernel.refuse(move |step| {
        matches!(step, spoke_net::plan::Step::SetPeer { peer, .. } if *peer == bad).then_some(rustix::io::Errno::NOMEM)
    });
    setup.server.offer(&document(4, 3), &[signer(1)]);
    setup.node.reports(|s| s.generation == 4).await;
    setup.node.kernel.refuse_nothing();
    setup.node.has_peers(3).await;
}

#[tokio::test(start_paused = true)]
async fn state_the_kernel_refuses_is_reverted() {
    let mut setup = Setup::following(2).await;
    let stored = setup.state_file();
    refuse_another_port(&setup);
    setup.server.offer(&on_another_port(document(4, 3)), &[signer(1)]);
    let status = setup.node.reports(|s| s.outcome == Some(Outcome::Reverted)).await;
    assert!(status.reason.as_ref().is_some_and(|r| r.contains("could not be applied")), "{status:?}");
    setup.node.has_peers(2).await;
    assert_eq!(setup.state_file(), stored);
    // The next process does not try it again either.
    let mut setup = setup.restart().await;
    let status = setup.node.reports(|s| s.generation == 3).await;
    assert_eq!(status.outcome, Some(Outcome::Reverted));
    setup.node.has_peers(2).await;
}

#[tokio::test(start_paused = true)]
async fn signing_key_rotation_is_followed() {
    let mut setup = Setup::following(1).await;
    let both = StateDocument { signing_keys: vec![signer(1).public(), signer(2).public()], ..document(4, 2) };
    setup.server.offer(&both, &[signer(1), signer(2)]);
    setup.node.reports(|s| s.generation == 4).await;
    let new = StateDocument { signing_keys: vec![signer(2).public()], ..document(5, 3) };
    setup.server.offer(&new, &[signer(2)]);
    setup.node.reports(|s| s.generation == 5).await;
    setup.server.offer(&document(6, 1), &[signer(1)]);
    let status = setup.node.reports(|s| s.outcome == Some(Outcome::Refused)).await;
    assert!(status.reason.unwrap().contains("signed"), "the old key is no longer trusted");
    let mut setup = setup.restart_with(FakeKernel::new(), |_, server| server.change(|p| p.down = true)).await;
    setup.node.has_peers(3).await;
}

#[tokio::test(start_paused = true)]
async fn signing_key_of_a_reverted_state_is_trusted() {
    let mut setup = Setup::following(1).await;
    refuse_another_port(&setup);
    let both = StateDocument { signing_keys: vec![signer(1).public(), signer(2).public()], ..document(4, 3) };
    setup.server.offer(&on_another_port(both), &[signer(1), signer(2)]);
    setup.node.reports(|s| s.outcome == Some(Outcome::Reverted)).await;
    let mut setup = setup.restart().await;
    let new = StateDocument { signing_keys: vec![signer(2).public()], ..document(5, 2) };
    setup.server.offer(&new, &[signer(2)]);
    setup.node.reports(|s| s.generation == 5).await;
    setup.server.offer(&document(6, 1), &[signer(1)]);
    let status = setup.node.reports(|s| s.outcome == Some(Outcome::Refused)).await;
    assert!(status.reason.unwrap().contains("signed"), "the retired key is no longer trusted");
}

#[tokio::test(start_paused = true)]
async fn reports_are_numbered_within_a_run() {
    let setup = Setup::following(1).await;
    let mut setup = setup.restart().await;
    setup.node.reports(|s| s.generation == 3).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let places = setup.server.report_places();
    let runs: std::collections::BTreeSet<_> = places.iter().map(|(run, _)| run.clone()).collect();
    assert_eq!(runs.len(), 2, "{places:?}");
    for run in runs {
        let numbers: Vec<u64> = places.iter().filter(|(r, _)| *r == run).map(|(_, n)| *n).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn server_time_needs_a_pinned_key() {
    let setup = Setup::following(1).await;
    setup.server.change(|p| (p.strict_clock, p.time_key) = (true, 5));
    setup.server.offer(&document(4, 2), &[signer(1)]);
    let mut setup = setup.restart().await;
    let status = setup.node.reports(|s| s.outage.is_some()).await;
    assert!(status.outage.unwrap().reason.contains("no pinned key"));
    assert_eq!(*setup.node.confirmed.borrow(), None, "nor does it confirm our clock");
    assert_eq!(status.generation, 3);
    setup.server.change(|p| p.time_key = 1);
    setup.node.reports(|s| s.generation == 4).await;
    let confirmed = setup.node.confirmed.borrow().unwrap();
    assert!(confirmed.wall.0.abs_diff(SERVER_MS / 1000) < 5, "{confirmed:?}");
}

#[tokio::test(start_paused = true)]
async fn kernel_keeps_its_peers_when_all_files_are_damaged() {
    let setup = Setup::following(2).await;
    let kernel = setup.node.kernel.clone();
    let damage = |dir: &std::path::Path, server: &Server| {
        for path in ["state.json", "state.json.prev"].map(|f| dir.join(f)).iter().filter(|p| p.exists()) {
            std::fs::write(path, b"{").unwrap();
        }
        server.change(|p| p.down = true);
    };
    let mut setup = setup.restart_with(kernel.kernel(), damage).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(kernel.peers("wg0").len(), 2, "an hour without a state and without a control plane");
    setup.server.change(|p| p.down = false);
    setup.server.offer(&document(4, 3), &[signer(1)]);
    setup.node.has_peers(3).await;
}

#[tokio::test(start_paused = true)]
async fn one_more_of_thousands_of_peers_is_one_step() {
    let mut setup = Setup::following(0).await;
    let mut many = document(4, 0);
    let peer = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let allowed_ips = vec![IpAddr::from([10, 8 + a, b, c]).into()];
        WantedPeer {
            node_id: format!("n-{n}").parse().unwrap(),
            public_key: PublicKey(key),
            allowed_ips,
            ..fleet::peer(1)
        }
    };
    many.interfaces[0].peers = (2..5_002).map(peer).collect();
    setup.server.offer(&many, &[signer(1)]);
    setup.node.has_peers(5_000).await;
    setup.node.reports(|s| s.generation == 4).await;
    let _ = setup.node.kernel.take_steps();
    many.generation = 5;
    many.interfaces[0].peers.push(peer(5_002));
    setup.server.offer(&many, &[signer(1)]);
    setup.node.has_peers(5_001).await;
    assert_eq!(setup.node.kernel.take_steps().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn removed_node_forgets_by_a_signed_answer_only() {
    let mut setup = Setup::following(2).await;
    setup.server.change(|p| p.removed_by = Some(2));
    let outage = setup.node.reports(|s| s.outage.is_some()).await.outage.unwrap();
    assert!(outage.reason.contains("removed"), "{}", outage.reason);
    setup.node.has_peers(2).await;
    let mut setup = setup.restart().await;
    setup.node.has_peers(2).await;

    setup.server.change(|p| p.removed_by = Some(1));
    setup.node.reports(|s| s.removed).await;
    setup.node.has_peers(0).await;
    let mut setup = setup
        .restart_with(FakeKernel::new(), |dir, server| {
            for name in ["state.json", "state.json.prev", "enrolment.json.prev"] {
                assert!(!dir.join(name).exists(), "{name}");
            }
            server.change(|p| p.down = true);
        })
        .await;
    setup.node.reports(|s| s.removed && s.outage.is_some()).await;
    setup.node.has_peers(0).await;
    // The control plane was restored from a backup of before the removal.
    setup.server.change(|p| (p.down, p.removed_by) = (false, None));
    setup.node.has_peers(2).await;
    setup.node.reports(|s| !s.removed && s.generation == 3).await;
    let mut setup = setup.restart_with(FakeKernel::new(), |_, server| server.change(|p| p.down = true)).await;
    setup.node.has_peers(2).await;
    assert_eq!(setup.server.0.0.lock().unwrap().enrolled, 1);
}

#[tokio::test(start_paused = true)]
async fn token_is_erased_once_the_enrolment_is_on_disk() {
    let setup = Setup::following(2).await;
    let expected = (spoke_model::signature::sha256_hex(b"token"), true);
    assert_eq!(setup.server.0.0.lock().unwrap().erased, vec![expected.clone()]);
    // A power cut before it was erased.
    let mut setup = setup.restart().await;
    setup.node.reports(|s| s.generation == 3).await;
    assert_eq!(setup.server.0.0.lock().unwrap().erased, [expected.clone(), expected]);
}

/// Enrols again; what the command prints.
async fn enrol_again(node: &Node) -> Result<(), String> {
    let (reply, replied) = oneshot::channel();
    node.requests.send(SessionRequest::EnrolAgain(None, reply)).await.unwrap();
    replied.await.unwrap().map_err(|e| e.to_string())
}

#[tokio::test(start_paused = true)]
async fn second_enrolment_forgets_the_first() {
    let mut setup = Setup::following(2).await;
    for generation in 4..6 {
        setup.server.offer(&document(generation, 2), &[signer(1)]);
        setup.node.reports(|s| s.generation == generation).await;
    }
    // Refused or unanswered: nothing has changed.
    for broken in [|p: &mut Plane| p.tokenless = true, |p: &mut Plane| p.down = true] {
        setup.server.change(broken);
        let error = enrol_again(&setup.node).await.unwrap_err();
        assert!(error.contains("stays enrolled as it is"), "{error}");
        setup.server.change(|p| (p.tokenless, p.down) = (false, false));
    }
    let mut setup = setup.restart().await;
    setup.node.has_peers(2).await;
    setup.node.reports(|s| s.generation == 5).await;
    // The control plane was set up again: it counts from one. The state before is in force until that one arrives.
    setup.server.change(|p| p.state = None);
    assert_eq!(enrol_again(&setup.node).await, Ok(()));
    assert_eq!(setup.node.kernel.peers("wg0").len(), 2);
    let begin_anew = |dir: &std::path::Path, server: &Server| {
        assert!(!dir.join("enrolment.json.prev").exists());
        server.offer(&document(1, 3), &[signer(1)]);
    };
    let mut setup = setup.restart_with(FakeKernel::new(), begin_anew).await;
    setup.node.has_peers(3).await;
    let status = setup.node.reports(|s| s.generation == 1).await;
    assert_eq!(status.outcome, Some(Outcome::Applied));
    let mut setup = setup.restart_with(FakeKernel::new(), |_, server| server.change(|p| p.down = true)).await;
    setup.node.has_peers(3).await;
}

#[tokio::test(start_paused = true)]
async fn removed_files_do_not_come_back() {
    let mut setup = Setup::following(1).await;
    for generation in 4..7 {
        setup.server.offer(&document(generation, 2), &[signer(1)]);
        setup.node.reports(|s| s.generation == generation).await;
    }
    let remove = |dir: &std::path::Path, server: &Server| {
        for name in ["enrolment.json", "state.json", "rejected.json"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        server.change(|p| p.state = None);
        server.offer(&document(1, 3), &[signer(1)]);
    };
    let mut setup = setup.restart_with(FakeKernel::new(), remove).await;
    setup.node.has_peers(3).await;
    setup.node.reports(|s| s.generation == 1 && s.outcome == Some(Outcome::Applied)).await;
    assert_eq!(setup.server.0.0.lock().unwrap().enrolled, 2, "enrolled again");
}

#[tokio::test(start_paused = true)]
async fn lost_enrolment_record_is_recovered_from_the_state() {
    let setup = Setup::following(2).await;
    let lose_record = |dir: &std::path::Path, server: &Server| {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("enrolment") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        server.change(|p| p.down = true);
    };
    let mut setup = setup.restart_with(FakeKernel::new(), lose_record).await;
    setup.node.has_peers(2).await;
    assert!(setup.node.reports(|s| s.enrolled).await.enrolled);
}

//! The follower whole, against a control plane in memory and a kernel in memory: what is kept, what is refused, what a
//! restart without any network finds.
use super::*;
use spoke_config::node::Role;
use spoke_enroll::document::{MAX_BYTES, StateDocument, WantedPeer};
use spoke_enroll::wire::Outcome;
use spoke_model::key::PublicKey;
use spoke_sys::sim::kernel::FakeKernel;
use std::net::IpAddr;

mod world;
use world::*;

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
    let status = node.says(|s| s.outage.is_some()).await;
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
    let away = node.says(|s| s.outage.is_some()).await.outage.unwrap();
    assert_eq!(away.reason, "control.token: cannot read /etc/spoke/token");
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
        matches!(step, spoke_net::plan::Step::SetPeer { peer, .. } if *peer == bad).then_some(rustix::io::Errno::NOMEM)
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
    let said = node.says(|s| s.outage.is_some()).await;
    assert!(said.outage.unwrap().reason.contains("no pinned key"), "forgery is told from a wrong clock");
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

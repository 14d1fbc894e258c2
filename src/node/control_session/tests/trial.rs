//! The power is cut at every write, every sync and every change of names of a trial: the next start has a state that was
//! proved, and never tries one twice that was not.
use super::fleet::*;
use super::*;
use spoke_enroll::confirm::TrialRecord;
use spoke_enroll::document::{Envelope, WantedHub};
use spoke_model::time::Wall;
use spoke_sys::disk::Document;
use spoke_sys::disk::recorded::{self, Operation, power_cuts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A node's document whose hub number `hub` is at 10.8.0.`hub`.
fn with_hub(generation: u64, hub: u8) -> StateDocument {
    let mut document = document(generation, 0);
    document.role = Role::Node;
    let address = IpAddr::from([10, 8, 0, hub]);
    document.interfaces[0].addresses = vec!["10.8.0.9/16".parse().unwrap()];
    document.interfaces[0].listen_port = None;
    document.interfaces[0].hubs = vec![WantedHub {
        node_id: format!("hub-{hub}").parse().unwrap(),
        public_key: PublicKey([hub; 32]),
        endpoint: format!("192.0.2.{hub}:51820").parse().unwrap(),
        address,
        allowed_ips: vec![address.into()],
        keepalive: 25,
        preshared_keys: vec![],
    }];
    document
}

fn with_release(generation: u64, hub: u8, version: &str) -> StateDocument {
    let release =
        spoke_model::release::WantedRelease { version: version.into(), source: None, rollout: Default::default() };
    StateDocument { release: Some(release), ..with_hub(generation, hub) }
}

/// A node at hub 1, which answers; its long-poll brings generation 4, at hub `hub`.
struct Trial {
    directory: tempfile::TempDir,
    server: Server,
    node: Node,
}

const ALIVE: [u8; 2] = [1, 2];
const DEAD: u8 = 3;

impl Trial {
    async fn begin(hub: u8) -> Self {
        let (directory, server) = (tempfile::tempdir().unwrap(), Server::default());
        server.offer(&with_hub(3, 1), &[signer(1)]);
        let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
        node.reports(|s| s.generation == 3 && s.outcome == Some(Outcome::Applied)).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!directory.path().join("trial.json").exists(), "proved");
        recorded::begin();
        server.offer(&with_hub(4, hub), &[signer(1)]);
        Self { directory, server, node }
    }

    fn stored(directory: &Path) -> Option<u64> {
        let mut file = Document::<Envelope>::new(directory.join("state.json"), 1);
        let envelope = file.load().unwrap()?;
        Some(envelope.verify(&"hub-1".parse().unwrap(), &[signer(1).public()]).unwrap().generation)
    }
}

/// Starts a node on what each power cut leaves; calls `check` with it and its directory after `wait`.
async fn after_each_power_cut(
    before: &BTreeMap<PathBuf, Vec<u8>>,
    operations: &[Operation],
    server: &Server,
    mut check: impl AsyncFnMut(&mut Node, &Path),
) {
    let cuts = power_cuts(operations);
    assert!(cuts.len() > 20, "{operations:?}");
    for cut in cuts {
        let directory = tempfile::tempdir().unwrap();
        cut.leave(before, operations, directory.path());
        let mut node = Node::start_at_hubs(directory.path(), server, FakeKernel::new(), &ALIVE);
        check(&mut node, directory.path()).await;
        node.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn power_cut_during_a_trial_leaves_the_proved_state() {
    let mut trial = Trial::begin(DEAD).await;
    let before = recorded::files_of(trial.directory.path());
    trial.node.reports(|s| s.outcome == Some(Outcome::Trial)).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let on_trial = recorded::end();
    assert!(Path::new(&trial.directory.path().join("trial.json")).exists());
    assert_eq!(Trial::stored(trial.directory.path()), Some(3), "not stored");
    trial.node.stop().await;
    let server = trial.server.clone();
    after_each_power_cut(&before, &on_trial, &server, async |node, directory| {
        // The power cut may have come before the record: then it is a first trial, which is reverted.
        let status = node.reports(|s| s.generation == 3 && s.outcome == Some(Outcome::Reverted)).await;
        assert!(status.reason.is_some_and(|r| r.contains("generation 4")));
        node.connects_to(1).await;
        assert_eq!(Trial::stored(directory), Some(3));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!((node.hub(), Trial::stored(directory)), (Some(1), Some(3)), "not tried again");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn power_cut_while_a_state_is_stored_leaves_one_of_the_two() {
    let mut trial = Trial::begin(2).await;
    let before = recorded::files_of(trial.directory.path());
    trial.node.reports(|s| s.generation == 4 && s.outcome == Some(Outcome::Applied)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let operations = recorded::end();
    assert!(!trial.directory.path().join("trial.json").exists(), "proved");
    assert_eq!(Trial::stored(trial.directory.path()), Some(4));
    trial.node.stop().await;
    // The control plane is unreachable: what is on disk decides.
    trial.server.change(|p| p.down = true);
    let server = trial.server.clone();
    let mut seen = std::collections::BTreeSet::new();
    after_each_power_cut(&before, &operations, &server, async |node, directory| {
        let stored = Trial::stored(directory);
        assert!(matches!(stored, Some(3 | 4)), "{stored:?}");
        seen.extend(stored);
        node.connects_to(if stored == Some(4) { 2 } else { 1 }).await;
        assert!(node.reports(|s| s.enrolled).await.enrolled);
    })
    .await;
    assert_eq!(seen, [3, 4].into(), "the cut decides");
}

#[tokio::test(start_paused = true)]
async fn refused_handshakes_of_the_future_need_no_hub() {
    let (directory, server) = (tempfile::tempdir().unwrap(), Server::default());
    server.offer(&with_hub(3, DEAD), &[signer(1)]);
    let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
    node.reports(|s| s.generation == 3).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!server.announces_a_key(), "an ordinary outage");
    node.stamps.send_replace(Some(Wall(u64::MAX)));
    let began = tokio::time::Instant::now();
    while !server.announces_a_key() {
        assert!(began.elapsed() < Duration::from_secs(120));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn reboot_is_no_confirmation() {
    // The state arrives before the first connection of this boot.
    let directory = tempfile::tempdir().unwrap();
    let server = Server::default();
    server.offer(&with_hub(3, 1), &[signer(1)]);
    let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
    node.reports(|s| s.generation == 3 && s.outcome == Some(Outcome::Applied)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.stop().await;
    server.offer(&with_hub(4, DEAD), &[signer(1)]);
    let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
    node.reports(|s| s.outcome == Some(Outcome::Reverted)).await;
    node.connects_to(1).await;
    assert_eq!(Trial::stored(directory.path()), Some(3));
    let record = Document::<TrialRecord>::new(directory.path().join("trial.json"), 1).load().unwrap();
    assert_eq!(record, None);
}

#[tokio::test(start_paused = true)]
async fn release_of_a_state_on_trial_is_not_installed() {
    let (directory, server) = (tempfile::tempdir().unwrap(), Server::default());
    let stays = async |node: &Node, version: Option<&str>, seconds: u32| {
        for _ in 0..seconds {
            assert_eq!(node.release().as_deref(), version);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    // The first state, stored although the hub does not answer.
    server.offer(&with_release(3, DEAD, "3"), &[signer(1)]);
    let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
    node.reports(|s| s.generation == 3).await;
    stays(&node, None, 300).await;
    node.stop().await;
    let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
    node.reports(|s| s.generation == 3).await;
    stays(&node, None, 300).await;

    server.offer(&with_release(4, 1, "4"), &[signer(1)]);
    node.reports(|s| s.generation == 4 && s.outcome == Some(Outcome::Applied)).await;
    node.connects_to(1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.release().as_deref(), Some("4"), "the hub has answered through it");

    server.offer(&with_release(5, DEAD, "5"), &[signer(1)]);
    node.reports(|s| s.outcome == Some(Outcome::Trial)).await;
    stays(&node, Some("4"), 20).await;
    node.stop().await;
    let mut node = Node::start_at_hubs(directory.path(), &server, FakeKernel::new(), &ALIVE);
    node.reports(|s| s.outcome == Some(Outcome::Reverted)).await;
    stays(&node, Some("4"), 300).await;

    server.offer(&with_release(6, 2, "6"), &[signer(1)]);
    node.reports(|s| s.generation == 6 && s.outcome == Some(Outcome::Applied)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.release().as_deref(), Some("6"));
}

//! The ledger with the reconciler and a kernel in memory, on a state directory that outlives them.
use super::*;
use crate::audit::entries;
use crate::sim as node;
use proptest::prelude::*;
use rustix::io::Errno;
use spoke_change::conflict::Conflict;
use spoke_change::edit::{OwnValues, PeerValues};
use spoke_change::request::Generation;
use spoke_config::effective::{DocumentSettings, InterfaceSettings};
use spoke_model::condition::Code;
use spoke_model::key::PresharedKey;
use spoke_model::time::Wall;
use spoke_net::api_state::ApiStatePeer;
use spoke_net::state::ObservedPeer;
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::kernel::FakeKernel;
use std::collections::BTreeMap;

struct Node(node::Node);

impl std::ops::Deref for Node {
    type Target = node::Node;
    fn deref(&self) -> &node::Node {
        &self.0
    }
}

fn config(dir: &Path) -> Arc<Config> {
    let text = format!(
        "[node]\nrole = \"hub\"\nstate_dir = \"{}\"\n[agent]\nkeep_generations = 4\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\nremove_unknown = false\n",
        dir.display()
    );
    Arc::new(Config::from_text(Some(("test", &text)), []).unwrap())
}

impl Node {
    async fn start(dir: &Path, kernel: FakeKernel, clock: SimClock) -> Self {
        Self::with(dir, kernel, clock, Arc::new(Effective::of(config(dir)))).await
    }

    async fn with(dir: &Path, kernel: FakeKernel, clock: SimClock, wanted: Arc<Effective>) -> Self {
        let node = node::Node::start(dir, config(dir), wanted, kernel, clock).await;
        // Until the declared values are stored. Simulated time advances when no thread is writing.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Self(node)
    }

    /// Ends all tasks, as a crash would; the kernel stays.
    async fn restart(mut self, dir: &Path, clock: &SimClock) -> Self {
        self.0.kill().await;
        let wanted = self.effective.borrow().clone().unwrap();
        Self::with(dir, self.kernel.kernel(), clock.clone(), wanted).await
    }

    /// The control plane sends another state, and the reconciler applies it.
    async fn declare(&self, mtu: u32) {
        let sequence = self.set_mtu(mtu);
        let taken = |s: &NetStatus| s.clean && s.sequence() == Some(sequence);
        self.net.clone().wait_for(taken).await.unwrap();
        // Until all tasks have received it.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    fn set_mtu(&self, mtu: u32) -> u64 {
        let interface = InterfaceSettings { mtu: Some(mtu), ..InterfaceSettings::inherited("wg0".parse().unwrap()) };
        let document = DocumentSettings { interface: Some(interface), ..DocumentSettings::default() };
        let wanted = self.effective.borrow().as_ref().unwrap().with_document(Some(document));
        let sequence = wanted.sequence();
        self.effective.send_replace(Some(Arc::new(wanted)));
        sequence
    }

    /// The control plane sends a state that cannot be derived.
    async fn declare_own_key(&self) {
        let peer = spoke_config::interface::Peer {
            name: None,
            node_id: None,
            public_key: spoke_model::key::SecretKey::clamped([9; 32]).public(),
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            keepalive: 0,
            isolated: false,
        };
        let interface = InterfaceSettings {
            peers: [(peer.public_key, peer)].into(),
            ..InterfaceSettings::inherited("wg0".parse().unwrap())
        };
        let document = DocumentSettings { interface: Some(interface), ..DocumentSettings::default() };
        let wanted = self.effective.borrow().as_ref().unwrap().with_document(Some(document));
        self.effective.send_replace(Some(Arc::new(wanted)));
        let invalid = |s: &NetStatus| s.conditions.iter().any(|c| c.code == Code::DesiredInvalid);
        self.net.clone().wait_for(invalid).await.unwrap();
    }

    async fn edit(&self, edit: Edit, confirm: Option<u64>) -> Result<AppliedChange, ChangeRefused> {
        self.changes.edit(edit, Actor::User(0), confirm.map(Duration::from_secs)).await
    }

    /// Keepalives by the first byte of the key.
    fn peers(&self) -> BTreeMap<u8, u16> {
        self.kernel.peers("wg0").iter().map(|(k, p)| (k.0[0], p.keepalive)).collect()
    }
}

fn set(peer: u8, keepalive: u16) -> Edit {
    let values = PeerValues { keepalive: Some(keepalive), ..PeerValues::default() };
    Edit::SetPeer { link: "wg0".parse().unwrap(), peer: PublicKey([peer; 32]), values }
}

fn none() -> Edit {
    Edit::SetPeers { link: "wg0".parse().unwrap(), peers: BTreeMap::new(), own: OwnValues::default() }
}

fn these(peers: &BTreeMap<u8, u16>) -> Edit {
    let peer = |keepalive| Arc::new(ApiStatePeer { keepalive, ..ApiStatePeer::default() });
    let peers = peers.iter().map(|(n, keepalive)| (PublicKey([*n; 32]), peer(*keepalive))).collect();
    Edit::SetPeers { link: "wg0".parse().unwrap(), peers, own: OwnValues::default() }
}

fn undeclared(n: u8) -> (PublicKey, ObservedPeer) {
    let peer = ObservedPeer {
        preshared_key: Some(PresharedKey::from_bytes([n; 32])),
        allowed_ips: [format!("10.0.{n}.0/24").parse().unwrap()].into(),
        keepalive: u16::from(n),
        endpoint: Some("192.0.2.7:51820".parse().unwrap()),
        ..ObservedPeer::default()
    };
    (PublicKey([n; 32]), peer)
}

/// Another program sets peers, and the reconciler observes them.
async fn appear(node: &Node, undeclared_peers: &[u8]) {
    for (key, peer) in undeclared_peers.iter().map(|n| undeclared(*n)) {
        node.kernel.set_peer("wg0", key, peer);
    }
    tokio::time::sleep(Duration::from_secs(31)).await;
}

fn refuse_removing(node: &Node, peer: u8) {
    node.kernel.refuse(move |step| match step {
        Step::RemovePeer { peer: p, .. } if p.0 == [peer; 32] => Some(Errno::NOMEM),
        _ => None,
    });
}

#[tokio::test(start_paused = true)]
async fn undeclared_peers_are_restored_by_a_rollback() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    appear(&node, &[1, 2, 3]).await;
    let before = node.kernel.peers("wg0");
    let there = |node: &Node| node.kernel.peers("wg0");
    node.edit(none(), None).await.unwrap();
    assert!(node.peers().is_empty());
    let node = node.restart(dir.path(), &clock).await;
    node.changes.rollback(None, Actor::User(0)).await.unwrap();
    assert_eq!(there(&node), before);

    // A changed one is restored, not deleted.
    appear(&node, &[5]).await;
    node.edit(set(5, 99), None).await.unwrap();
    assert_eq!(node.peers()[&5], 99);
    node.changes.rollback(None, Actor::User(0)).await.unwrap();
    assert_eq!(node.peers()[&5], 5);
}

#[tokio::test(start_paused = true)]
async fn revocation_stays_in_force_when_a_step_is_refused() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    node.edit(these(&[(1, 1), (2, 2), (3, 3)].into()), None).await.unwrap();
    // One of two removals is refused, and so is a new peer.
    node.kernel.refuse(|step| match step {
        Step::RemovePeer { peer, .. } if peer.0 == [2; 32] => Some(Errno::NOMEM),
        Step::SetPeer { peer, .. } if peer.0 == [4; 32] => Some(Errno::INVAL),
        _ => None,
    });
    let refused = node.edit(these(&[(3, 3), (4, 4)].into()), None).await;
    assert!(matches!(&refused, Err(ChangeRefused::Revoked(_))), "{refused:?}");
    assert_eq!(node.peers(), [(2, 2), (3, 3)].into());
    let again = node.edit(Edit::RemovePeer { link: "wg0".parse().unwrap(), peer: PublicKey([2; 32]) }, None).await;
    assert!(matches!(&again, Err(ChangeRefused::Revoked(why)) if why.contains("remove peer")), "{again:?}");
    node.kernel.refuse_nothing();
    let mut net = node.net.clone();
    net.wait_for(|s| s.clean).await.unwrap();
    assert_eq!(node.peers(), [(3, 3)].into(), "the removal is tried again");
    let node = node.restart(dir.path(), &clock).await;
    assert_eq!(node.peers(), [(3, 3)].into(), "it is stored");
}

fn refuse_a_route(node: &Node) {
    node.kernel.refuse(|step| matches!(step, Step::AddRoute { .. }).then_some(Errno::EXIST));
}

/// A peer with a network that no address of the interface covers, so that it needs a route.
fn routed(peer: u8) -> Edit {
    let allowed_ips = Some([format!("10.{peer}.0.0/16").parse().unwrap()].into());
    let values = PeerValues { allowed_ips, ..PeerValues::default() };
    Edit::SetPeer { link: "wg0".parse().unwrap(), peer: PublicKey([peer; 32]), values }
}

#[tokio::test(start_paused = true)]
async fn change_is_judged_by_its_own_steps() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    node.edit(routed(1), None).await.unwrap();
    let route = spoke_net::state::Route { to: "10.1.0.0/16".parse().unwrap(), table: 254, metric: 0 };
    refuse_a_route(&node);
    node.kernel.remove_route("wg0", route);
    let mut net = node.net.clone();
    net.wait_for(|s| s.conditions.iter().any(|c| c.code == Code::RouteConflict)).await.unwrap();
    assert!(node.net.borrow().ready && !node.net.borrow().clean);
    // Changes that have nothing to do with the route, and a state of the control plane.
    node.edit(set(2, 2), None).await.unwrap();
    node.edit(Edit::RemovePeer { link: "wg0".parse().unwrap(), peer: PublicKey([2; 32]) }, None).await.unwrap();
    let sequence = node.set_mtu(1400);
    let wg0 = "wg0".parse().unwrap();
    net.wait_for(|s| s.applied(&wg0) == Some(sequence)).await.unwrap();
    // A change whose own route is refused is not made.
    let refused = node.edit(routed(3), None).await;
    assert!(matches!(&refused, Err(ChangeRefused::Kernel(why)) if why.contains("10.3.0.0/16")), "{refused:?}");
    assert_eq!(node.peers(), [(1, 0)].into());
    // Drift beside it is still repaired as drift.
    let before = node.net.borrow().repairs;
    node.kernel.set_mtu("wg0", 1300);
    net.wait_for(|s| s.repairs > before).await.unwrap();
    node.kernel.refuse_nothing();
    net.wait_for(|s| s.clean).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn revocation_does_not_wait_for_a_valid_state() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    node.edit(these(&[(1, 1), (2, 2)].into()), None).await.unwrap();
    // The control plane's state declares the interface's own key as a peer.
    node.declare_own_key().await;
    node.edit(Edit::RemovePeer { link: "wg0".parse().unwrap(), peer: PublicKey([1; 32]) }, None).await.unwrap();
    assert_eq!(node.peers(), [(2, 2)].into());
    let refused = node.edit(set(3, 3), None).await;
    assert!(matches!(&refused, Err(ChangeRefused::Invalid(why)) if why.contains("own public key")), "{refused:?}");
    assert_eq!(node.peers(), [(2, 2)].into());
}

#[tokio::test(start_paused = true)]
async fn refused_reversion_is_retried_and_recorded_once() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    node.edit(set(1, 1), None).await.unwrap();
    node.edit(set(2, 2), Some(10)).await.unwrap();
    refuse_removing(&node, 2);
    tokio::time::sleep(Duration::from_secs(1800)).await;
    let recorded = |entries: &[spoke_change::audit::AuditEntry]| {
        entries.iter().filter(|e| e.what.contains("was not confirmed")).map(|e| e.result.clone()).collect::<Vec<_>>()
    };
    let trail = recorded(&entries(dir.path()).unwrap().0);
    assert!(trail.len() == 1 && trail[0].contains("refused"), "{trail:?}");
    let busy = node.edit(set(3, 3), None).await;
    assert_eq!(busy, Err(ChangeRefused::Unconfirmed(2)), "no change on top of it");
    node.kernel.refuse_nothing();
    let mut net = node.net.clone();
    net.wait_for(|s| s.observed.links.values().all(|l| l.peers.len() == 1)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(node.changes.history().await.unwrap()[0].generation, 3);
    assert_eq!(recorded(&entries(dir.path()).unwrap().0).last().unwrap(), "done");
    assert_eq!(node.peers(), [(1, 1)].into());
}

#[tokio::test(start_paused = true)]
async fn interrupted_change_is_reverted_after_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    node.edit(these(&[(1, 1), (2, 2)].into()), None).await.unwrap();
    appear(&node, &[9]).await;
    // Killed after some of the steps.
    node.kernel.hang_after(Some(4));
    let next = [(2, 2), (3, 3), (4, 4), (5, 5)].into();
    let cut = tokio::time::timeout(Duration::from_secs(5), node.edit(these(&next), None)).await;
    let left = node.peers();
    assert!(
        cut.is_err() && !left.contains_key(&1) && left.contains_key(&3) && !left.contains_key(&5),
        "{cut:?}: {left:?}"
    );
    node.kernel.hang_after(None);
    // Also if the kernel refuses to remove one at first.
    refuse_removing(&node, 3);
    let node = node.restart(dir.path(), &clock).await;
    assert_eq!(node.peers(), [(1, 1), (2, 2), (3, 3), (9, 9)].into());
    node.kernel.refuse_nothing();
    let mut net = node.net.clone();
    net.wait_for(|s| s.clean).await.unwrap();
    assert_eq!(node.peers(), [(1, 1), (2, 2), (9, 9)].into());
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Later the same key set by another program is an undeclared peer.
    let node = node.restart(dir.path(), &clock).await;
    appear(&node, &[3]).await;
    let node = node.restart(dir.path(), &clock).await;
    appear(&node, &[]).await;
    assert_eq!(node.peers(), [(1, 1), (2, 2), (3, 3), (9, 9)].into());
}

#[tokio::test(start_paused = true)]
async fn declared_change_is_a_generation_and_not_rolled_back() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    let file = || std::fs::read(dir.path().join("changes.journal")).unwrap();
    node.edit(set(1, 1), None).await.unwrap();
    node.edit(set(1, 2), None).await.unwrap();
    let before = file();
    let node = node.restart(dir.path(), &clock).await;
    node.declare(1280).await;
    assert_eq!(file(), before, "no write without a difference");

    node.declare(1400).await;
    let history = node.changes.history().await.unwrap();
    let generations: Vec<_> = history.iter().map(|g| (g.generation, g.actor.as_str(), g.what.as_str())).collect();
    assert_eq!(generations[0], (3, "control plane", "the control plane's state: 1 value changed"), "{generations:?}");
    assert!(history[0].current && history.iter().find(|g| g.previous).unwrap().generation == 1);
    let differ = node.changes.diff(1, 3).await.unwrap();
    assert_eq!(differ.len(), 2, "the API state and declared values: {differ:?}");
    assert_eq!(differ[1], "~ interface.wg0.mtu = 1400, instead of 1280");

    // The rollback reports what it does not restore and where to change that.
    let done = node.changes.rollback(None, Actor::User(0)).await.unwrap();
    assert_eq!((done.generation, node.peers()), (4, [(1, 1)].into()));
    let stays =
        "! 1 value not set through the API left as now (spoke config diff 3 1): change that at the control plane";
    assert_eq!(done.lines.last().unwrap(), stays);
    assert_eq!(node.net.borrow().observed.links.values().next().unwrap().mtu, 1400);

    // A difference at the start comes from the configuration file.
    node.set_mtu(1300);
    let node = node.restart(dir.path(), &clock).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let newest = node.changes.history().await.unwrap()[0].clone();
    assert_eq!((newest.generation, newest.actor.as_str()), (5, "configuration"), "{newest:?}");
    // The trail is written by a thread that simulated time does not wait for.
    let recorded = || entries(dir.path()).unwrap().0;
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while !recorded().iter().any(|e| e.actor == "configuration" && e.what.contains("mtu = 1300")) {
        assert!(std::time::Instant::now() < until, "{:?}", recorded());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let done = node.changes.rollback(Some(3), Actor::User(0)).await.unwrap();
    let recorded = done.lines.last().unwrap();
    assert!(recorded.contains("change that in the configuration file, then restart spoke"), "{recorded}");
}

#[tokio::test(start_paused = true)]
async fn repair_names_each_peer_that_failed() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock).await;
    appear(&node, &[1, 2]).await;
    refuse_removing(&node, 2);
    let what = RepairRequest { remove_unknown: true, ..RepairRequest::default() };
    let done = node.changes.reconcile(what, Actor::User(0)).await.unwrap();
    assert_eq!(done.removed, [PublicKey([1; 32]).to_string()]);
    let [error] = &done.errors[..] else { panic!("{done:?}") };
    assert_eq!((error.peer.clone(), error.action.as_str()), (PublicKey([2; 32]).to_string(), "remove"));
    assert!(error.error.to_lowercase().contains("memory"), "{error:?}");
}

#[derive(Clone, Debug)]
enum Op {
    Apply {
        peer: u8,
        keepalive: u16,
        confirm: bool,
    },
    /// The kernel refuses it.
    Fail {
        peer: u8,
        keepalive: u16,
    },
    /// The process is killed after so many steps.
    Killed {
        peers: [u8; 2],
        keepalive: u16,
        after: u32,
    },
    /// The edit conflicts.
    Conflict,
    /// The control plane sets the MTU.
    Declare {
        mtu: u32,
    },
    Confirm,
    TimeOut,
    Rollback {
        back: Option<u8>,
    },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u8..6, 1u16..4, any::<bool>()).prop_map(|(peer, keepalive, c)| Op::Apply { peer, keepalive, confirm: c }),
        2 => (1u8..6, 4u16..6).prop_map(|(peer, keepalive)| Op::Fail { peer, keepalive }),
        2 => ([1u8..6, 4u8..9], 1u16..4, 0u32..5).prop_map(|(peers, keepalive, after)| Op::Killed { peers, keepalive, after }),
        2 => (1280u32..1283).prop_map(|mtu| Op::Declare { mtu }),
        1 => Just(Op::Conflict),
        1 => Just(Op::Confirm),
        1 => Just(Op::TimeOut),
        2 => proptest::option::of(1u8..4).prop_map(|back| Op::Rollback { back }),
        2 => Just(Op::Restart),
    ]
}

type Peers = BTreeMap<u8, u16>;

/// Where a rollback without a number leads to.
fn walk(kept: &[Generation], theirs: &BTreeSet<usize>, restored: &BTreeMap<u64, u64>) -> Option<u64> {
    let ours = |g: &&Generation| !theirs.contains(&usize::try_from(g.generation).unwrap());
    let before = |newest| kept.iter().filter(ours).map(|g| g.generation).find(|g| *g <= newest);
    let mut last = before(u64::MAX)?;
    while let Some(target) = restored.get(&last) {
        last = before(*target)?;
    }
    Some(last - 1)
}

async fn follow(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let mut node = Node::start(dir.path(), FakeKernel::new(), clock.clone()).await;
    // Applied states; and the one a pending confirmation reverts to.
    let mut good: Vec<Peers> = vec![Peers::new()];
    let mut outstanding: Option<usize> = None;
    // Generations of the control plane repeat the API state.
    let (mut theirs, mut mtu) = (BTreeSet::new(), 1280);
    // Generations that restored another.
    let mut restored: BTreeMap<u64, u64> = BTreeMap::new();
    for op in ops {
        let last = good.last().cloned().unwrap_or_default();
        match op {
            Op::Apply { peer, keepalive, confirm } => {
                let done = node.edit(set(peer, keepalive), confirm.then_some(30)).await;
                if outstanding.is_some() {
                    prop_assert!(matches!(done, Err(ChangeRefused::Unconfirmed(_))));
                } else if last.get(&peer) == Some(&keepalive) {
                    prop_assert!(!done.unwrap().changed);
                } else {
                    prop_assert!(done.unwrap().changed);
                    outstanding = confirm.then_some(good.len() - 1);
                    good.push(last.into_iter().chain([(peer, keepalive)]).collect());
                }
            }
            Op::Fail { peer, keepalive } => {
                node.kernel.refuse(move |step| match step {
                    Step::SetPeer { peer: p, .. } if p.0 == [peer; 32] => Some(Errno::NOBUFS),
                    _ => None,
                });
                prop_assert!(node.edit(set(peer, keepalive), None).await.is_err());
                node.kernel.refuse_nothing();
            }
            Op::Killed { peers, keepalive, after } => {
                let wanted: Peers = peers.into_iter().map(|p| (p, keepalive)).collect();
                node.kernel.hang_after(Some(after));
                tokio::select! {
                    done = node.edit(these(&wanted), None) => match done {
                        Ok(done) if done.changed => good.push(wanted),
                        Ok(_) => prop_assert_eq!(wanted, last),
                        Err(_) => prop_assert!(outstanding.is_some()),
                    },
                    () = tokio::time::sleep(Duration::from_secs(9)) => {}
                }
                node.kernel.hang_after(None);
                node = node.restart(dir.path(), &clock).await;
            }
            Op::Declare { mtu: new } => {
                node.declare(new).await;
                if new != std::mem::replace(&mut mtu, new) {
                    theirs.insert(good.len());
                    good.push(last);
                }
            }
            Op::Conflict => {
                let link: IfName = "wg7".parse().unwrap();
                let edit = Edit::RemovePeer { link: link.clone(), peer: PublicKey([1; 32]) };
                let refused = node.edit(edit, None).await.unwrap_err();
                prop_assert!(refused == ChangeRefused::Conflict(Conflict::NoLink(link)) || outstanding.is_some());
            }
            Op::Confirm => {
                let done = node.changes.confirm(None, Actor::User(0)).await;
                prop_assert_eq!(done.is_ok(), outstanding.take().is_some());
            }
            Op::TimeOut => {
                tokio::time::sleep(Duration::from_secs(40)).await;
                if let Some(back) = outstanding.take() {
                    restored.insert(good.len() as u64, back as u64);
                    good.push(good[back].clone());
                }
            }
            Op::Rollback { back } => {
                let to = back.map(|b| (good.len() as u64 - 1).saturating_sub(u64::from(b)));
                let kept = node.changes.history().await.unwrap();
                let before = walk(&kept, &theirs, &restored).unwrap_or(good.len() as u64 - 1);
                let target = to.unwrap_or(before);
                match node.changes.rollback(to, Actor::User(0)).await {
                    Ok(done) => {
                        let wanted = good[usize::try_from(target).unwrap()].clone();
                        prop_assert_eq!(done.changed, wanted != last);
                        if done.changed {
                            outstanding = None;
                            restored.insert(good.len() as u64, target);
                            good.push(wanted);
                        }
                    }
                    Err(e) => {
                        let gone = matches!(e, ChangeRefused::NoGeneration { .. });
                        prop_assert!(gone && good.len() > 4, "{}", e);
                    }
                }
            }
            Op::Restart => {
                // A pending confirmation stays pending.
                node = node.restart(dir.path(), &clock).await;
            }
        }
        let mut net = node.net.clone();
        net.wait_for(|s| s.clean).await.unwrap();
        prop_assert_eq!(&node.peers(), good.last().unwrap());
        let history = node.changes.history().await.unwrap();
        prop_assert_eq!(history.first().map_or(0, |g| g.generation), good.len() as u64 - 1);
        let previous = history.iter().find(|g| g.previous).map(|g| g.generation);
        // The oldest generation has no record.
        prop_assert!(previous.is_none() || previous == walk(&history, &theirs, &restored));
        for g in &history {
            let by = if theirs.contains(&usize::try_from(g.generation).unwrap()) { "control plane" } else { "user 0" };
            prop_assert!(g.actor == by || g.actor == "confirmation time-out" && by == "user 0", "{:?}", g);
        }
        prop_assert!(history.len() < 4 + 5, "bounded");
        prop_assert_eq!(history.iter().any(|g| g.confirm_within.is_some()), outstanding.is_some());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn kernel_and_history_agree_after_any_sequence(ops in proptest::collection::vec(op(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(follow(ops))?;
    }
}

/// Simulated time stands still while any task can run: a lost wake-up would show as the resync interval.
#[tokio::test(start_paused = true)]
async fn a_large_change_settles_without_the_periodic_pass() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), SimClock::new(Wall(1_800_000_000)));
    let node = Node::start(dir.path(), FakeKernel::new(), clock).await;
    let start = tokio::time::Instant::now();
    let peers = |round: u8| -> BTreeMap<PublicKey, Arc<ApiStatePeer>> {
        let peer = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let mut key = [round; 32];
            key[..2].copy_from_slice(&[high, low]);
            let net = format!("10.{round}.{high}.{low}/32").parse().unwrap();
            (PublicKey(key), Arc::new(ApiStatePeer { allowed_ips: [net].into(), ..ApiStatePeer::default() }))
        };
        (0..1000).map(peer).collect()
    };
    // From nothing, replaced as a whole, one peer changed against the last observation, and back to nothing.
    for (edit, count) in [
        (Edit::SetPeers { link: "wg0".parse().unwrap(), peers: peers(1), own: OwnValues::default() }, 1000),
        (Edit::SetPeers { link: "wg0".parse().unwrap(), peers: peers(2), own: OwnValues::default() }, 1000),
        (set(3, 7), 1001),
        (none(), 0),
    ] {
        node.edit(edit, None).await.unwrap();
        assert_eq!(node.kernel.peers("wg0").len(), count);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

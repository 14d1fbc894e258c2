//! Invariants of `plan`, of applying a plan, and of planning against the advanced observation.
use crate::world::{FOREIGN, Mess, World, any_desired, any_mess, name, net, orphan, peer_key, peers_of, unlike, world};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::io::Errno;
use spoke_config::interface::DriftPolicy;
use spoke_net::advance::advance;
use spoke_net::plan::{AllowedIps, Step};
use spoke_net::render;
use spoke_net::state::{Desired, ListenPort, Memory, Observed, ObservedPeer};
use std::collections::BTreeSet;

fn messes() -> impl Strategy<Value = Vec<Mess>> {
    vec(any_mess(), 0..12)
}

/// Without the values that an observation has and an acknowledgement does not.
fn comparable(mut observed: Observed) -> Observed {
    for link in observed.links.values_mut() {
        link.listen_port = 0;
        link.index = 0;
    }
    observed
}

/// Without names taken by links of another kind, which can be neither read nor repaired.
fn reachable(desired: &Desired, world: &mut World) -> Desired {
    let seen = world.observe(desired);
    let mut desired = desired.clone();
    desired.links.retain(|n, _| seen.links.get(n).is_none_or(|l| l.wireguard));
    desired
}

/// Whether a step only sets the endpoint that its peer has.
fn sets_current_endpoint(step: &Step, observed: &Observed) -> bool {
    let Step::SetPeer { link, peer, change } = step else { return false };
    let endpoint_only = !change.create
        && change.allowed_ips == AllowedIps::Keep
        && change.keepalive.is_none()
        && change.preshared_key.is_none();
    let current = observed.links.get(link).and_then(|l| l.peers.get(peer)).and_then(|p| p.endpoint);
    endpoint_only && current.is_some() && change.endpoint.map(|e| e.addr) == current
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn one_pass_reaches_the_desired_state(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        let (plan, applied) = world.pass(&want);
        prop_assert!(applied.failed.is_empty(), "{:?}\n{:#?}", applied.failed, plan.steps);
        let observed = world.observe(&want);
        prop_assert_eq!(unlike(&want, &observed), Vec::<String>::new(), "{:#?}", plan.steps);
    }

    #[test]
    fn second_pass_has_no_steps(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        world.pass(&want);
        let plan = world.plan(&want);
        prop_assert_eq!(plan.steps, vec![]);
        prop_assert_eq!(plan.held, vec![]);
    }

    #[test]
    fn interrupted_pass_is_completed_by_the_next(
        first in any_desired(), mess in messes(), want in any_desired(), after in 0usize..40, killed: bool,
    ) {
        let mut world = world(&first, &mess);
        world.cut_off(&want, after, killed);
        world.pass(&want);
        let observed = world.observe(&want);
        prop_assert_eq!(unlike(&want, &observed), Vec::<String>::new());
        prop_assert_eq!(world.plan(&want).steps, vec![]);
    }

    #[test]
    fn refused_steps_are_reported_and_retried(
        first in any_desired(), mess in messes(), want in any_desired(), every in 2usize..5,
    ) {
        let mut world = world(&first, &mess);
        let mut count = 0;
        world.others.refuse(move |_| {
            count += 1;
            (count % every == 0).then_some(Errno::BUSY)
        });
        let (plan, applied) = world.pass(&want);
        let mut reported: Vec<_> = applied.done.iter().copied().chain(applied.failed.iter().map(|f| f.0)).collect();
        reported.sort_unstable();
        prop_assert_eq!(reported, (0..plan.steps.len()).collect::<Vec<_>>());
        prop_assert!(plan.steps.len() < every || !applied.failed.is_empty());
        world.others.refuse_nothing();
        world.pass(&want);
        let observed = world.observe(&want);
        prop_assert_eq!(unlike(&want, &observed), Vec::<String>::new());
    }

    #[test]
    fn access_is_removed_before_it_is_added(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        let plan = world.plan(&want);
        let last_removed = plan.steps.iter().rposition(|s| matches!(s, Step::RemovePeer { .. }));
        let first_set = plan.steps.iter().position(|s| matches!(s, Step::SetPeer { .. } | Step::SetDevice { .. }));
        if let (Some(removed), Some(set)) = (last_removed, first_set) {
            prop_assert!(removed < set);
        }
        // A network is removed from one peer before it is added to another.
        let have = world.observe(&want);
        let mut extended = BTreeSet::new();
        for step in &plan.steps {
            let Step::SetPeer { link, peer, change } = step else { continue };
            let (AllowedIps::Add(nets) | AllowedIps::Replace(nets)) = &change.allowed_ips else { continue };
            let before = have.links.get(link).and_then(|l| l.peers.get(peer)).map(|p| p.allowed_ips.clone());
            let before = before.unwrap_or_default();
            let shrinks = nets.is_subset(&before) && *nets != before;
            prop_assert!(!shrinks || !extended.contains(link), "{:#?}", plan.steps);
            if !shrinks {
                extended.insert(link.clone());
            }
        }
    }

    #[test]
    fn foreign_objects_are_never_changed(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        orphan(&world, "old0");
        let (before, routes) = world.everything();
        world.pass(&want);
        let (after, routes_after) = world.everything();
        for (link, have) in &before.links {
            if !have.ours && (!want.links.contains_key(link) || !have.wireguard) {
                prop_assert_eq!(Some(have), after.links.get(link));
            }
        }
        prop_assert!(before.links.contains_key(&name(FOREIGN)), "no foreign link to check");
        let lost: Vec<_> = routes.difference(&routes_after).filter(|(link, _)| link == FOREIGN).collect();
        prop_assert!(lost.is_empty(), "{lost:?}");
        prop_assert!(!after.links.contains_key(&name("old0")), "our unwanted link was kept");
    }

    #[test]
    fn steps_are_effective_and_unique(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        let plan = world.plan(&want);
        for (i, step) in plan.steps.iter().enumerate() {
            prop_assert!(!plan.steps[..i].contains(step), "duplicate: {:?}", step);
            let before = world.everything();
            let applied = world.apply(std::slice::from_ref(step));
            prop_assert!(applied.failed.is_empty(), "{:?}", applied.failed);
            // A configured endpoint that changed is set, though the peer may have roamed there already.
            if !sets_current_endpoint(step, &before.0) {
                prop_assert_ne!(world.everything(), before, "no effect: {:?} in {:#?}", step, plan.steps);
            }
        }
    }

    #[test]
    fn observe_policy_writes_nothing(
        first in any_desired(), mess in messes(), want in any_desired(), watched in 0usize..3,
    ) {
        let mut want = want;
        let watched = name(crate::world::NAMES[watched]);
        if let Some(link) = want.links.get_mut(&watched) {
            link.policy = DriftPolicy::Observe;
        }
        let mut world = world(&first, &mess);
        let plan = world.plan(&want);
        if want.links.contains_key(&watched) {
            prop_assert!(plan.steps.iter().all(|s| *s.link() != watched));
            // The held steps are exactly those that enforcing would apply.
            let mut enforced = want.clone();
            enforced.links.values_mut().for_each(|l| l.policy = DriftPolicy::Enforce);
            let mut steps: Vec<_> = world.plan(&enforced).steps.into_iter().filter(|s| *s.link() == watched).collect();
            let mut held = plan.held.clone();
            steps.sort_by_key(|s| format!("{s:?}"));
            held.sort_by_key(|s| format!("{s:?}"));
            prop_assert_eq!(held, steps);
        }
    }

    #[test]
    fn unknown_peers_are_kept_if_configured(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut want = want;
        want.links.values_mut().for_each(|l| l.remove_unknown = Some(false));
        let mut world = world(&first, &mess);
        let want = reachable(&want, &mut world);
        let before = world.observe(&want);
        let owned = world.memory.owned.clone();
        let (plan, _) = world.pass(&want);
        let after = peers_of(&world.observe(&want));
        for (link, peers) in peers_of(&before) {
            let Some(wanted) = want.links.get(&link) else { continue };
            let ours = owned.get(&link).cloned().unwrap_or_default();
            for peer in peers {
                let expected = wanted.peers.contains_key(&peer) || !ours.contains(&peer);
                prop_assert_eq!(after[&link].contains(&peer), expected, "{:?} of {}\n{:#?}", peer, link, plan);
            }
        }
        prop_assert_eq!(world.plan(&want).steps, vec![]);
    }

    #[test]
    fn roamed_endpoint_is_not_drift(want in any_desired(), roamed in vec((0u8..3, 0u8..6, 0u8..9), 1..6)) {
        let mut world = World::new();
        world.pass(&want);
        let moves: Vec<_> = roamed.iter().map(|(l, p, e)| {
            Mess::Roam(*l, *p, spoke_net::state::Endpoint { addr: ([198, 51, 100, *e], 7).into(), attempt: 0 })
        }).collect();
        world.mess(&moves);
        prop_assert!(world.plan(&want).is_clean());
    }

    #[test]
    fn restart_only_resets_endpoints(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        let want = reachable(&want, &mut world);
        world.pass(&want);
        world.memory = Memory::default();
        let plan = world.plan(&want);
        // The only permitted step sets the configured endpoint of a peer that has roamed.
        for step in &plan.steps {
            let permitted = matches!(step, Step::SetPeer { change, .. } if change.endpoint.is_some() && !change.create
                && change.allowed_ips == AllowedIps::Keep && change.keepalive.is_none() && change.preshared_key.is_none());
            prop_assert!(permitted, "{:?}", step);
        }
        world.pass(&want);
        prop_assert_eq!(world.plan(&want).steps, vec![]);
    }

    #[test]
    fn advance_matches_the_kernel(
        first in any_desired(), mess in messes(), want in any_desired(), every in 1usize..6,
    ) {
        let mut world = world(&first, &mess);
        let mut known = world.observe(&want);
        let plan = world.plan(&want);
        let mut count = 0;
        world.others.refuse(move |_| {
            count += 1;
            (count % every == 0 && every > 1).then_some(Errno::BUSY)
        });
        let applied = world.apply(&plan.steps);
        applied.done.iter().for_each(|i| advance(&mut known, &plan.steps[*i]));
        prop_assert_eq!(comparable(known), comparable(world.observe(&want)), "{:#?}", plan.steps);
    }

    #[test]
    fn rendered_plan_has_no_secrets(first in any_desired(), mess in messes(), want in any_desired()) {
        let mut world = world(&first, &mess);
        let observed = world.observe(&want);
        let text = format!("{}{:?}", render::plan(&world.plan(&want), &observed), world.plan(&want));
        for link in want.links.values() {
            let secrets = link.peers.values().filter_map(|p| p.preshared_key.as_ref()).map(|k| k.reveal_base64());
            for secret in secrets.chain([link.private_key.reveal_base64()]) {
                prop_assert!(!text.contains(&secret[..12]));
            }
        }
    }
}

fn one_link() -> Desired {
    let peer = spoke_net::state::Peer {
        allowed_ips: [net("10.1.0.0/16")].into(),
        endpoint: Some(spoke_net::state::Endpoint { addr: ([192, 0, 2, 1], 51820).into(), attempt: 0 }),
        ..spoke_net::state::Peer::default()
    };
    let link = spoke_net::state::Link {
        private_key: crate::world::secret(0),
        listen_port: ListenPort::Random { epoch: 0 },
        fwmark: 0,
        mtu: 1420,
        defaults: (false, false),
        addresses: [net("10.8.0.2/24"), net("fd00:8::2/64")].into(),
        peers: [(peer_key(1), peer)].into(),
        routes: [spoke_net::state::Route { to: net("10.1.0.0/16"), table: 254, metric: 0 }].into(),
        up: true,
        policy: DriftPolicy::Enforce,
        remove_unknown: Some(true),
        dns: Vec::new(),
        rebuild: 0,
        port_fallback: false,
    };
    Desired { generation: 1, links: [(name("wg0"), link)].into(), ..Desired::default() }
}

#[test]
fn raised_attempt_sets_a_roamed_endpoint_once() {
    let mut world = World::new();
    let mut want = one_link();
    world.pass(&want);
    world.others.roam("wg0", &peer_key(1), ([198, 51, 100, 1], 9).into());
    assert!(world.plan(&want).is_clean());
    let peers = &mut want.links.get_mut(&name("wg0")).unwrap().peers;
    peers.get_mut(&peer_key(1)).unwrap().endpoint.as_mut().unwrap().attempt = 1;
    let (plan, _) = world.pass(&want);
    assert_eq!(plan.steps.len(), 1);
    assert!(world.plan(&want).is_clean());
}

/// A handshake begins with the new private key at once, and ends with the preshared key that is set by then.
#[test]
fn preshared_key_is_set_before_the_private_key_it_belongs_to() {
    let mut world = World::new();
    let mut want = one_link();
    world.pass(&want);
    let link = want.links.get_mut(&name("wg0")).unwrap();
    link.private_key = crate::world::secret(1);
    let peer = link.peers.get_mut(&peer_key(1)).unwrap();
    peer.preshared_key = Some(spoke_model::key::PresharedKey::from_bytes([5; 32]));
    peer.keepalive = 25;
    let (plan, _) = world.pass(&want);
    let kinds: Vec<_> = plan
        .steps
        .iter()
        .map(|s| match s {
            Step::SetPeer { change, .. } => {
                if change.preshared_key.is_some() {
                    "preshared"
                } else {
                    "rest"
                }
            }
            Step::SetDevice { .. } => "private",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["preshared", "private", "rest"]);
    assert!(world.plan(&want).is_clean());
}

#[test]
fn raised_port_epoch_changes_the_port_once() {
    let mut world = World::new();
    let mut want = one_link();
    world.pass(&want);
    let before = world.observe(&want).links[&name("wg0")].listen_port;
    want.links.get_mut(&name("wg0")).unwrap().listen_port = ListenPort::Random { epoch: 1 };
    let (plan, _) = world.pass(&want);
    assert_eq!(plan.steps.len(), 1);
    assert_ne!(world.observe(&want).links[&name("wg0")].listen_port, before);
    assert!(world.plan(&want).is_clean());
}

#[test]
fn raised_rebuild_recreates_the_interface_once() {
    let mut world = World::new();
    let mut want = one_link();
    world.pass(&want);
    let before = world.observe(&want).links[&name("wg0")].index;
    want.links.get_mut(&name("wg0")).unwrap().rebuild = 1;
    world.pass(&want);
    let after = world.observe(&want);
    assert_ne!(after.links[&name("wg0")].index, before);
    assert_eq!(unlike(&want, &after), Vec::<String>::new());
    assert!(world.plan(&want).is_clean());
}

#[test]
fn adopted_interface_is_never_rebuilt_or_deleted() {
    let mut world = World::new();
    world.others.add_link("wg0", true);
    let mut want = one_link();
    want.links.get_mut(&name("wg0")).unwrap().rebuild = 1;
    let before = world.observe(&want).links[&name("wg0")].index;
    world.pass(&want);
    assert_eq!(world.observe(&want).links[&name("wg0")].index, before);
    let (plan, _) = world.pass(&Desired::default());
    assert!(plan.is_clean(), "{plan:?}");
}

#[test]
fn recreated_peer_gets_its_endpoint_again() {
    let mut world = World::new();
    let want = one_link();
    world.pass(&want);
    let allowed_ips = [net("10.1.0.0/16")].into();
    world.others.set_peer("wg0", peer_key(1), ObservedPeer { allowed_ips, ..ObservedPeer::default() });
    world.pass(&want);
    let observed = world.observe(&want);
    assert_eq!(unlike(&want, &observed), Vec::<String>::new());
}

#[test]
fn taken_name_blocks_only_its_interface() {
    let mut world = World::new();
    world.others.add_link("wg0", false);
    let mut want = one_link();
    let second = want.links[&name("wg0")].clone();
    want.links.insert(name("wg1"), second);
    let (plan, applied) = world.pass(&want);
    assert_eq!((plan.blocked.len(), applied.failed.len()), (1, 0));
    assert!(!world.observe(&want).links[&name("wg0")].up);
    assert_eq!(world.observe(&want).links[&name("wg1")].peers.len(), 1);
}

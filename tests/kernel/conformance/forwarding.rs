//! Forwarding between the peers of an interface.
use super::*;
use spoke_net::state::Forwarding;

fn set(link: &str, forwarding: Option<&Forwarding>) -> Step {
    Step::SetForwarding { link: name(link), forwarding: forwarding.cloned() }
}

fn open(isolated: &[&str]) -> Forwarding {
    Forwarding { open: true, isolated: nets(isolated) }
}

async fn seen(kernel: &mut impl Kernel) -> BTreeMap<IfName, Option<Forwarding>> {
    observe(kernel, &[]).await.forwarding
}

pub(crate) async fn forwarding_is_set_and_removed<W: World>(_: &W, kernel: &mut W::Kernel) {
    let (closed, all) = (Forwarding::default(), open(&[]));
    let some = open(&["10.8.0.7/32", "10.8.0.8/29", "10.8.0.16/32", "255.255.255.0/24", "fd00::7/128", "fd01::/64"]);
    for wanted in [&closed, &all, &some, &closed, &some] {
        apply(kernel, &[set("wg0", Some(wanted)), set("wg1", Some(&all))]).await;
        assert_eq!(seen(kernel).await, [(name("wg0"), Some(wanted.clone())), (name("wg1"), Some(all.clone()))].into());
    }
    // Removing it twice succeeds.
    apply(kernel, &[set("wg0", None), set("wg1", None), set("wg0", None)]).await;
    assert_eq!(seen(kernel).await, BTreeMap::new());
}

pub(crate) async fn foreign_forwarding_change_is_detected<W: World>(world: &W, kernel: &mut W::Kernel) {
    for wanted in [Forwarding::default(), open(&["10.8.0.7/32"])] {
        apply(kernel, &[set("wg0", Some(&wanted))]).await;
        world.change_forwarding("wg0");
        assert_eq!(seen(kernel).await, [(name("wg0"), None)].into());
        apply(kernel, &[set("wg0", Some(&wanted))]).await;
        assert_eq!(seen(kernel).await, [(name("wg0"), Some(wanted))].into());
    }
}

pub(crate) async fn five_thousand_peers_are_isolated<W: World>(_: &W, kernel: &mut W::Kernel) {
    let mut wanted = Forwarding { open: true, isolated: BTreeSet::new() };
    // Every second address, so that no two can be merged into one range.
    for n in 0..5_000u32 {
        let [_, _, a, b] = (2 * n).to_be_bytes();
        wanted.isolated.insert(net(&format!("10.8.{a}.{b}/32")));
        wanted.isolated.insert(net(&format!("fd00::{:x}/128", 2 * n)));
    }
    apply(kernel, &[set("wg0", Some(&wanted))]).await;
    assert_eq!(seen(kernel).await, [(name("wg0"), Some(wanted))].into());
}

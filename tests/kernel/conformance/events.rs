//! Change notifications: a burst of changes wakes the waiter once, and none is lost.
use super::*;
use std::time::Duration;
use tokio::time::timeout;

/// Far longer than the time within which changes are merged into one burst.
const SOON: Duration = Duration::from_secs(5);

async fn wakes(kernel: &mut impl Kernel) -> bool {
    timeout(SOON, kernel.changed()).await.is_ok()
}

/// Consumes all pending notifications.
async fn settle(kernel: &mut impl Kernel) {
    while timeout(Duration::from_millis(700), kernel.changed()).await.is_ok() {}
}

pub(crate) async fn foreign_change_wakes<W: World>(world: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.push(Step::AddAddress { link: name("wg0"), address: net("10.0.0.1/24") });
    steps.push(Step::AddRoute { link: name("wg0"), route: route("10.7.0.0/16", 1000) });
    apply(kernel, &steps).await;
    settle(kernel).await;
    let changes: [(&str, &(dyn Fn() + Sync)); 5] = [
        ("a removed route", &|| world.remove_route("wg0", "10.7.0.0/16", 1000)),
        ("a removed address", &|| world.remove_address("wg0", "10.0.0.1/24")),
        ("a link set down", &|| world.set_up("wg0", false)),
        ("a deleted link", &|| world.delete_link("wg0")),
        ("another link", &|| world.add_link("dummy0", "dummy")),
    ];
    for (what, change) in changes {
        change();
        assert!(wakes(kernel).await, "{what} does not wake");
        settle(kernel).await;
    }
}

pub(crate) async fn observing_does_not_wake<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    settle(kernel).await;
    see(kernel, "wg0").await;
    assert!(timeout(Duration::from_millis(700), kernel.changed()).await.is_err(), "observing wakes");
}

pub(crate) async fn change_before_the_wait_is_not_lost<W: World>(world: &W, kernel: &mut W::Kernel) {
    settle(kernel).await;
    world.add_link("wg0", "wireguard");
    see(kernel, "wg0").await;
    assert!(wakes(kernel).await);
}

pub(crate) async fn cancelled_wait_loses_no_change<W: World>(world: &W, kernel: &mut W::Kernel) {
    settle(kernel).await;
    world.add_link("wg0", "wireguard");
    // The first wait reads the notification; all are cancelled before the burst ends.
    for _ in 0..3 {
        let _ = timeout(Duration::from_millis(1), kernel.changed()).await;
    }
    assert!(wakes(kernel).await);
}

pub(crate) async fn our_own_changes_settle<W: World>(_: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.push(Step::AddRoute { link: name("wg0"), route: route("10.7.0.0/16", 1000) });
    steps.extend((0..50).map(|i| add_peer("wg0", peer(i), Nets::default())));
    apply(kernel, &steps).await;
    let mut wakes = 0;
    while timeout(Duration::from_millis(700), kernel.changed()).await.is_ok() {
        wakes += 1;
        see(kernel, "wg0").await;
        apply(kernel, &[]).await;
        assert!(wakes < 3, "a pass that changes nothing wakes the next one");
    }
}

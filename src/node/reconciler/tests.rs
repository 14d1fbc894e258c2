//! The reconciler over the kernel in memory.
use super::*;
use spoke_config::Config;
use spoke_model::key::SecretKey;
use spoke_model::time::Wall;
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::kernel::FakeKernel;
use std::sync::Mutex;

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<&'static str>>>);

impl Notify for Heard {
    fn ready(&mut self) {
        self.0.lock().unwrap().push("ready");
    }
    fn alive(&mut self) {
        self.0.lock().unwrap().push("alive");
    }
    fn status(&mut self, _: &str) {}
    fn stopping(&mut self) {}
    fn watchdog(&self) -> Option<Duration> {
        None
    }
}

/// Of one interface, wg0, without peers.
fn reconciler(
    kernel: FakeKernel,
    notify: Heard,
    keys: watch::Receiver<Option<Arc<Keys>>>,
    status: watch::Sender<NetStatus>,
) -> Reconciler<FakeKernel, SimClock, Heard> {
    let config = Arc::new(Config::from_text(Some(("test", "[[interface]]\nname = \"wg0\"\n")), []).unwrap());
    Reconciler {
        kernel,
        clock: SimClock::new(Wall(1_800_000_000)),
        notify,
        sources: Sources {
            keys,
            uplink: None,
            names: None,
            admitted: None,
            api_state: None,
            effective: watch::channel(Some(Arc::new(Effective::of(config)))).1,
            repair: None,
        },
        status,
        events: watch::channel(0).0,
    }
}

fn wg0_key() -> Arc<Keys> {
    let private = [("wg0".parse().unwrap(), SecretKey::clamped([9; 32]))].into();
    Arc::new(Keys { private, ..Keys::default() })
}

/// The audit trail is written from the steps of the repairs counted since its last look.
#[tokio::test(start_paused = true)]
async fn counted_repairs_are_in_the_history() {
    let kernel = FakeKernel::new();
    let others = kernel.handle();
    let (status, mut net) = watch::channel(NetStatus::default());
    let keys = watch::channel(Some(wg0_key())).1;
    let task = tokio::spawn(reconciler(kernel, Heard::default(), keys, status).run());
    net.wait_for(|s| s.clean).await.unwrap();
    others.set_up("wg0", false);
    loop {
        net.changed().await.unwrap();
        let now = net.borrow_and_update();
        let steps = now.history.iter().filter(|s| s.cause == Cause::Drift).count();
        assert_eq!(now.repairs, steps as u64, "{:?}", now.history);
        if now.repairs > 0 {
            break;
        }
    }
    task.abort();
}

/// Without a private key no state can be derived.
#[tokio::test(start_paused = true)]
async fn invalid_first_state_extends_the_start() {
    let (heard, kernel) = (Heard::default(), FakeKernel::new());
    let (keep, keys) = watch::channel(Some(Arc::new(Keys::default())));
    let (status, net) = watch::channel(NetStatus::default());
    let reconciler = reconciler(kernel, heard.clone(), keys, status);
    let task = tokio::spawn(reconciler.run());
    tokio::time::sleep(Duration::from_secs(300)).await;
    let alive = heard.0.lock().unwrap().iter().filter(|h| **h == "alive").count();
    assert!(alive >= 300 / 30, "systemd kills the service 90 s after the last of {alive} extensions");
    assert!(!heard.0.lock().unwrap().contains(&"ready"));
    assert_eq!(net.borrow().conditions[0].code, Code::DesiredInvalid);
    keep.send_replace(Some(wg0_key()));
    net.clone().wait_for(|s| s.clean).await.unwrap();
    assert!(heard.0.lock().unwrap().contains(&"ready"));
    task.abort();
}

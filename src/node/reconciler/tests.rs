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

/// Without a private key no state can be derived.
#[tokio::test(start_paused = true)]
async fn invalid_first_state_extends_the_start() {
    let text = "[[interface]]\nname = \"wg0\"\n";
    let config = Arc::new(Config::from_text(Some(("test", text)), []).unwrap());
    let (heard, kernel) = (Heard::default(), FakeKernel::new());
    let (keep, keys) = watch::channel(Some(Arc::new(Keys::default())));
    let (status, net) = watch::channel(NetStatus::default());
    let reconciler = Reconciler {
        kernel,
        clock: SimClock::new(Wall(1_800_000_000)),
        notify: heard.clone(),
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
    };
    let task = tokio::spawn(reconciler.run());
    tokio::time::sleep(Duration::from_secs(300)).await;
    let alive = heard.0.lock().unwrap().iter().filter(|h| **h == "alive").count();
    assert!(alive >= 300 / 30, "systemd kills the service 90 s after the last of {alive} extensions");
    assert!(!heard.0.lock().unwrap().contains(&"ready"));
    assert_eq!(net.borrow().conditions[0].code, Code::DesiredInvalid);
    let private = [("wg0".parse().unwrap(), SecretKey::clamped([9; 32]))].into();
    keep.send_replace(Some(Arc::new(Keys { private, ..Keys::default() })));
    net.clone().wait_for(|s| s.clean).await.unwrap();
    assert!(heard.0.lock().unwrap().contains(&"ready"));
    task.abort();
}

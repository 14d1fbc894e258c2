//! A device with its configuration, its hubs, and the tasks that run on the device.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed setup fails the test")]
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::time::{Boot, Wall};
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_node::reconciler::{Reconciler, Sources};
use spoke_node::uplink::Uplink;
use spoke_sys::clock::Clock as _;
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::world::{SimCounters, SimEcho, SimNotify, SimPath, SimResolver, World};
use spoke_uplink::session;
use spoke_uplink::status::{State, UplinkStatus};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn hub_key(n: u8) -> PublicKey {
    SecretKey::from_bytes([100 + n; 32]).public()
}

pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) clock: SimClock,
    config: Arc<Config>,
    status: watch::Receiver<UplinkStatus>,
    process: JoinSet<()>,
    others: JoinSet<()>,
    seed: u64,
}

impl Scene {
    pub(crate) async fn start(hubs: u8, extra: &str) -> Self {
        Self::start_with(hubs, extra, |_| {}).await
    }

    /// `prepare` changes the world before the device boots.
    pub(crate) async fn start_with(hubs: u8, extra: &str, prepare: impl FnOnce(&World)) -> Self {
        let clock = SimClock::new(Wall(1_760_000_000));
        let (world, echo) = World::new(clock.clone());
        let mut text = format!("[uplink]\ninterface = \"wg0\"\n{extra}\n");
        for n in 0..hubs {
            let (key, last) = (hub_key(n), n + 1);
            text += &format!(
                "[[uplink.hub]]\nname = \"hub{n}\"\npublic_key = \"{key}\"\nendpoint = \"hub{n}.example.net:51820\"\naddress = \"10.8.{n}.1\"\nallowed_ips = [\"10.8.{n}.0/24\"]\n"
            );
            world.add_hub(key, format!("10.8.{n}.1").parse().unwrap(), [addr(&format!("192.0.2.{last}:51820"))]);
            world.state().names.insert(format!("hub{n}.example.net"), vec![format!("192.0.2.{last}").parse().unwrap()]);
        }
        text += "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.200.2/24\"]\n";
        let config = Arc::new(Config::from_text(Some(("scene", &text)), []).unwrap());
        prepare(&world);
        let (_, status) = watch::channel(UplinkStatus::default());
        let mut others = JoinSet::new();
        others.spawn(world.clone().run());
        let mut scene = Self { world, clock, config, status, process: JoinSet::new(), others, seed: 7 };
        scene.boot(echo);
        tokio::task::yield_now().await;
        scene
    }

    fn boot(&mut self, echo: SimEcho) {
        let mut keys = Keys::default();
        keys.private.insert("wg0".parse().unwrap(), SecretKey::clamped([9; 32]));
        let (_, keys) = watch::channel(Some(Arc::new(keys)));
        let (choice, uplink) = watch::channel::<Option<Arc<UplinkChoice>>>(None);
        let (net_status, _) = watch::channel(spoke_node::reconciler::NetStatus::default());
        let (events, wake) = watch::channel(0);
        let (status, seen) = watch::channel(UplinkStatus::default());
        self.status = seen;
        let reconciler = Reconciler {
            kernel: self.world.clone(),
            clock: self.clock.clone(),
            notify: SimNotify::default(),
            sources: Sources {
                keys,
                uplink: Some(uplink),
                names: None,
                admitted: None,
                api_state: None,
                effective: watch::channel(Some(Arc::new(Effective::of(self.config.clone())))).1,
                repair: None,
            },
            status: net_status,
            events,
        };
        let uplink = Uplink {
            config: session::Config {
                uplink: Arc::new(self.config.uplink.clone().unwrap()),
                fixed_port: false,
                mark: 0,
                edited: Default::default(),
            },
            seed: self.seed,
            counters: SimCounters(self.world.clone()),
            path: SimPath(self.world.clone()),
            echo,
            resolver: SimResolver(self.world.clone()),
            clock: self.clock.clone(),
            choice,
            status,
            wake,
        };
        self.process = JoinSet::new();
        self.process.spawn(async move {
            let end = reconciler.run().await;
            panic!("the reconciler ended: {end:?}");
        });
        self.process.spawn(async move {
            let _ = uplink.run().await;
        });
    }

    /// Kills the process and starts it again; the kernel keeps its state.
    pub(crate) async fn restart(&mut self) {
        self.process.shutdown().await;
        self.seed += 1;
        let echo = SimEcho::reopen(&self.world);
        self.boot(echo);
        tokio::task::yield_now().await;
    }

    pub(crate) fn status(&self) -> UplinkStatus {
        self.status.borrow().clone()
    }

    pub(crate) fn now(&self) -> Boot {
        self.clock.now()
    }

    pub(crate) async fn pass(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
        if let Some(end) = self.process.try_join_next() {
            panic!("a task ended: {end:?}");
        }
    }

    /// Waits until the status satisfies `wanted`; returns the time it took.
    pub(crate) async fn until(&mut self, longest: Duration, wanted: impl FnMut(&UplinkStatus) -> bool) -> Duration {
        let start = self.now();
        let found = tokio::time::timeout(longest, self.status.wait_for(wanted)).await.is_ok_and(|r| r.is_ok());
        assert!(found, "timed out after {longest:?}: {:#?}", self.status());
        self.now().since(start)
    }

    pub(crate) async fn until_up(&mut self, longest: Duration) -> Duration {
        self.until(longest, |s| s.state == State::Up).await
    }

    /// Sends a packet to the first hub each second for a minute.
    pub(crate) fn chatter(&mut self) {
        let (world, hub) = (self.world.clone(), self.world.state().hubs[0].tunnel);
        self.others.spawn(async move {
            let name: IfName = "wg0".parse().unwrap();
            for _ in 0..60 {
                world.send_packet(&name, hub);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    fn link<T>(&self, read: impl FnOnce(&spoke_sys::sim::world::Interface) -> T) -> T {
        let name: IfName = "wg0".parse().unwrap();
        let state = self.world.state();
        read(state.links.get(&name).expect("wg0"))
    }

    /// Suspends the machine: hubs and their timers go on, the tasks of the device do not.
    pub(crate) async fn suspend(&mut self, time: Duration) {
        self.clock.suspend(time);
        tokio::task::yield_now().await;
    }

    pub(crate) fn index(&self) -> u32 {
        self.link(|l| l.index)
    }

    pub(crate) fn port(&self) -> u16 {
        self.link(|l| l.port)
    }

    pub(crate) fn has_peer(&self, key: PublicKey) -> bool {
        self.link(|l| l.peers.contains_key(&key))
    }

    pub(crate) fn peer(&self, key: PublicKey) -> spoke_sys::sim::world::Peer {
        self.link(|l| l.peers[&key].clone())
    }
}

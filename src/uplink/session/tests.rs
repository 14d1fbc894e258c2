//! Invariants of the session under arbitrary outages, over a million ticks.
use super::super::ladder::Rung;
use super::*;
use spoke_config::Config as Whole;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use std::collections::BTreeMap;

fn config(hubs: usize, extra: &str) -> Config {
    let mut text = format!("[uplink]\ninterface = \"wg0\"\n{extra}\n");
    for h in 0..hubs {
        let key = spoke_model::key::SecretKey::from_bytes([u8::try_from(h).unwrap() + 1; 32]).public();
        text += &format!(
            "[[uplink.hub]]\nname = \"hub{h}\"\npublic_key = \"{key}\"\nendpoint = \"hub{h}.example.net:51820\"\naddress = \"10.8.0.{}\"\n",
            h + 1
        );
    }
    text += "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.100/24\"]\n";
    let whole = Whole::from_text(Some(("test", &text)), []).unwrap();
    Config { uplink: Arc::new(whole.uplink.unwrap()), fixed_port: false, mark: 0, edited: BTreeSet::new() }
}

/// A random network and kernel, with the state the invariants refer to.
struct World {
    session: Session,
    config: Config,
    rng: JitterRng,
    now: Boot,
    link: u32,
    /// Counts changes of the path.
    path: u32,
    kernel: Vec<Option<Seen>>,
    wall: u64,
    /// Probability of success, in 256ths.
    success: u64,
    published: Option<UplinkChoice>,
    /// When each hub's handshake value last changed.
    handshaken: Vec<Option<Boot>>,
    /// Echoes sent in this attempt.
    asked: BTreeMap<u16, IpAddr>,
    answered: bool,
    handshake_in_attempt: bool,
    waits: u64,
    ups: u64,
    attempts_at: Boot,
    rungs: Vec<Rung>,
    failures: u32,
    up_since: Option<Boot>,
}

impl World {
    fn new(hubs: usize, seed: u64, extra: &str) -> Self {
        let config = config(hubs, extra);
        let now = Boot::from_secs(seed % 1000);
        Self {
            session: Session::new(now, seed, config.clone()),
            config,
            rng: JitterRng::new(seed ^ 0xABCD),
            now,
            link: 1,
            path: 0,
            kernel: vec![None; hubs],
            wall: 1_700_000_000,
            success: 128,
            published: None,
            handshaken: vec![None; hubs],
            asked: BTreeMap::new(),
            answered: false,
            handshake_in_attempt: false,
            waits: 0,
            ups: 0,
            attempts_at: now,
            rungs: Vec::new(),
            failures: 0,
            up_since: None,
        }
    }

    fn succeeds(&mut self) -> bool {
        self.rng.next_u64() % 256 < self.success
    }

    fn handle(&mut self, event: SessionEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let before = self.session.state();
            if let SessionEvent::Sampled(sample) = &event {
                for (hub, seen) in sample.hubs.iter().enumerate() {
                    let value = seen.and_then(|s| s.counters.last_handshake);
                    let same = sample.link == self.session.link;
                    let known = self.session.seen[hub].counters().filter(|_| same).map(|c| c.last_handshake);
                    if value.is_some() && known.is_none_or(|k| k != value) {
                        self.handshaken[hub] = Some(self.now);
                        self.handshake_in_attempt |= hub == self.session.active;
                    }
                }
            }
            let actions = self.session.handle(self.now, event);
            let after = self.session.state();
            if before != State::Up && after == State::Up {
                self.check_up();
            }
            if before == State::Up && after != State::Up {
                self.check_lost();
            }
            for action in actions {
                self.act(action, &mut events);
            }
            let deadline = self.session.deadline().expect("every state has a deadline").at;
            assert!(deadline <= self.now + Duration::from_secs(600), "waits longer than ten minutes: {deadline:?}");
        }
    }

    fn check_up(&mut self) {
        self.ups += 1;
        assert!(self.answered, "up without an echo of the hub");
        let recent = self.handshaken[self.session.active].is_some_and(|at| self.now.since(at) < REJECT_AFTER_TIME);
        // Only the first attempt may adopt.
        let adopted = self.session.status.history.back().unwrap().code == Code::Adopted;
        assert!(
            self.handshake_in_attempt || recent || (adopted && self.session.status.attempts == 1),
            "up without a handshake"
        );
        self.up_since = Some(self.now);
        self.failures = self.session.status.failures;
    }

    fn check_lost(&mut self) {
        let held = self.up_since.take().map(|at| self.now.since(at)).unwrap();
        if held < self.config.uplink.stable_after {
            assert!(self.session.backoff.failures() >= self.failures, "reset after {held:?}");
        }
    }

    fn act(&mut self, action: SessionAction, events: &mut Vec<SessionEvent>) {
        match action {
            SessionAction::Publish => {
                let choice = self.session.choice().unwrap();
                assert_eq!(choice.interface.as_str(), "wg0");
                if let Some(old) = &self.published {
                    assert!(choice.port_epoch >= old.port_epoch && choice.rebuild >= old.rebuild, "epochs decrease");
                }
                self.published = Some(choice);
            }
            SessionAction::Resolve(hub) => {
                let n = self.rng.next_u64() % 5;
                let addresses = (0..n)
                    .map(|i| match self.rng.next_u64() % 2 {
                        0 => SocketAddr::from(([192, 0, 2, u8::try_from(i).unwrap()], 51820)),
                        _ => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::try_from(i).unwrap()], 51820)),
                    })
                    .collect();
                if self.succeeds() {
                    events.push(SessionEvent::Resolved { hub, addresses });
                }
            }
            SessionAction::Sample => {
                if self.rng.next_u64().is_multiple_of(16) {
                    events.push(SessionEvent::Unsampled);
                } else {
                    events.push(SessionEvent::Sampled(Sample { link: Some(self.link), hubs: self.kernel.clone() }));
                }
            }
            SessionAction::Echo { to, seq } => {
                self.asked.insert(seq, to);
                let hub = self.session.hubs.iter().position(|h| h.address == to).unwrap();
                if self.rng.next_u64().is_multiple_of(16) {
                    events.push(SessionEvent::Unsent { seq });
                } else if self.rng.next_u64().is_multiple_of(8) {
                    // Answered by this machine: the hub's peer receives nothing.
                    events.push(SessionEvent::Answered { from: to, seq });
                } else if self.succeeds()
                    && let Some(peer) = &mut self.kernel[hub]
                {
                    peer.counters.rx += 64;
                    self.answered |= hub == self.session.active;
                    events.push(SessionEvent::Answered { from: to, seq });
                } else if self.rng.next_u64().is_multiple_of(8) {
                    // A foreign address, and a sequence number that was not sent.
                    events.push(SessionEvent::Answered { from: IpAddr::from([8, 8, 8, 8]), seq });
                    events.push(SessionEvent::Answered { from: to, seq: seq.wrapping_add(999) });
                }
            }
            SessionAction::Look => events.push(self.look()),
            SessionAction::Report(t) => {
                if let Some(rung) = t.rung {
                    self.rungs.push(rung);
                }
                match t.to {
                    State::Waiting => {
                        self.waits += 1;
                        let (initial, max) = (self.config.uplink.backoff_initial, self.config.uplink.backoff_max);
                        let until = self.session.status.next_attempt.unwrap_or(self.now);
                        let wait = self.session.status.backoff.unwrap();
                        assert!(wait.is_zero() || (wait >= initial / 2 && wait <= max * 3 / 2), "{wait:?}");
                        assert!(until <= self.now + max * 3 / 2);
                    }
                    State::Connecting => {
                        self.attempts_at = self.now;
                        self.asked.clear();
                        self.answered = false;
                        self.handshake_in_attempt = t.code == Code::Heard;
                    }
                    State::Starting | State::Resolving | State::Up => {}
                }
            }
        }
    }

    fn look(&self) -> SessionEvent {
        let path = match self.path % 8 {
            0 => Path::NoRoute,
            n => Path::Via { link: 2, carrier: n != 1, carrier_changes: self.path, source: None, gateway: None },
        };
        SessionEvent::Path { to: self.session.path_target(), path }
    }

    /// Random changes of kernel and network, then time advances to the next deadline.
    fn tick(&mut self) {
        if self.rng.next_u64().is_multiple_of(512) {
            // Recreated between two samples.
            self.link += 1;
            self.kernel.iter_mut().flatten().for_each(|seen| seen.counters = Counters::default());
        }
        for hub in 0..self.kernel.len() {
            if self.rng.next_u64().is_multiple_of(64) {
                self.kernel[hub] = None;
            } else if self.rng.next_u64().is_multiple_of(8) {
                let works = self.succeeds();
                let jump = self.rng.next_u64().is_multiple_of(8);
                let peer = self.kernel[hub].get_or_insert_default();
                peer.counters.tx += 64;
                peer.endpoint = Some(SocketAddr::from(([192, 0, 2, 9], 51820)));
                if works {
                    // A handshake and a keepalive.
                    peer.counters.rx += 92 + 32;
                    // The wall clock may jump by fifty years either way.
                    self.wall = if jump { self.rng.next_u64() % 3_300_000_000 } else { self.wall + 1 };
                    peer.counters.last_handshake = Some(Duration::from_secs(self.wall));
                }
            }
        }
        if self.rng.next_u64().is_multiple_of(4096) {
            self.success = [0, 0, 8, 128, 255, 255][usize::try_from(self.rng.next_u64() % 6).unwrap()];
        }
        if self.rng.next_u64().is_multiple_of(64) {
            self.path += u32::from(!self.rng.next_u64().is_multiple_of(4));
            self.handle(self.look());
        }
        let deadline = self.session.deadline().unwrap().at;
        self.now = self.now.max(deadline);
        if self.rng.next_u64().is_multiple_of(256) {
            self.now += Duration::from_secs(self.rng.next_u64() % 4000);
        }
        self.handle(SessionEvent::Tick);
    }
}

#[test]
fn proof_precedes_up_over_a_million_ticks() {
    let (mut ups, mut waits, mut rungs) = (0, 0, BTreeMap::new());
    for seed in 0..20 {
        let extra = if seed % 2 == 0 { "" } else { "stable_after = \"10s\"\nfailback_after = \"20s\"" };
        let mut world = World::new(1 + usize::try_from(seed % 4).unwrap(), seed, extra);
        for _ in 0..50_000 {
            let before = world.now;
            world.tick();
            assert!(world.now >= before);
        }
        assert!(world.session.status.attempts > 100, "attempts continue");
        ups += world.ups;
        waits += world.waits;
        for rung in world.rungs {
            *rungs.entry(rung).or_insert(0) += 1;
        }
    }
    assert!(ups > 1000 && waits > 1000, "success and failure both occur: {ups} ups, {waits} waits");
    assert!(Rung::ALL.iter().all(|r| rungs.contains_key(r)), "every rung was taken: {rungs:?}");
}

#[test]
fn deadlines_advance() {
    for success in [0, 255] {
        let mut world = World::new(2, 5, "");
        world.success = success;
        let start = world.now;
        for _ in 0..5_000 {
            world.handle(SessionEvent::Tick);
            let deadline = world.session.deadline().unwrap().at;
            if deadline <= world.now {
                world.handle(SessionEvent::Tick);
                let again = world.session.deadline().unwrap().at;
                assert!(again > world.now, "stuck in {:?} at {deadline:?}", world.session.phase);
            }
            world.now = world.now.max(world.session.deadline().unwrap().at);
        }
        assert!(world.now.since(start) > Duration::from_secs(1000), "{:?}", world.now.since(start));
    }
}

/// Runs a session for a time with a kernel that is given by `sample` and a network without replies; returns the rungs with
/// their time.
fn without_replies(config: Config, time: u64, path: Path, mut sample: impl FnMut(Boot) -> Sample) -> Vec<(Boot, Rung)> {
    let mut session = Session::new(Boot::default(), 1, config);
    let mut now = Boot::default();
    let mut rungs = Vec::new();
    let mut event = Some(SessionEvent::Tick);
    while now < Boot::from_secs(time) {
        let mut queue: Vec<SessionEvent> = event.take().into_iter().collect();
        while let Some(e) = queue.pop() {
            for action in session.handle(now, e) {
                match action {
                    SessionAction::Resolve(hub) => queue.push(SessionEvent::Resolved {
                        hub,
                        addresses: vec![
                            "[2001:db8::1]:1".parse().unwrap(),
                            "192.0.2.1:1".parse().unwrap(),
                            "192.0.2.2:1".parse().unwrap(),
                        ],
                    }),
                    SessionAction::Sample => queue.push(SessionEvent::Sampled(sample(now))),
                    SessionAction::Look => queue.push(SessionEvent::Path { to: session.path_target(), path }),
                    SessionAction::Report(t) => rungs.extend(t.rung.map(|r| (now, r))),
                    SessionAction::Publish | SessionAction::Echo { .. } => {}
                }
            }
        }
        now = session.deadline().unwrap().at;
        event = Some(SessionEvent::Tick);
    }
    rungs
}

const OPEN: Path = Path::Via { link: 2, carrier: true, carrier_changes: 0, source: None, gateway: None };

/// An interface that sends handshakes, as one with an open path does.
fn sending(now: Boot) -> Sample {
    let counters = Counters { tx: now.since(Boot::default()).as_secs() * 30, ..Counters::default() };
    Sample { link: Some(1), hubs: vec![Some(Seen { counters, endpoint: None }); 2] }
}

#[test]
fn rungs_follow_the_documented_order_without_replies() {
    use Rung::{Again, Family, Hub, Port};
    let rungs: Vec<_> = without_replies(config(2, ""), 2 * 3600, OPEN, sending).into_iter().map(|(_, r)| r).collect();
    // The second IPv4 address is of another family than the first address tried.
    let round = [Family, Hub, Family, Hub, Hub, Port, Family, Hub, Family];
    let mut expected = round.to_vec();
    expected.push(Again);
    expected.extend(&round);
    assert_eq!(rungs[..expected.len()], expected[..]);
    assert!(!rungs.contains(&Rung::Rebuild), "without evidence, within two hours");
}

#[test]
fn rebuild_needs_evidence_or_hours() {
    let rebuilt = |path, sample: fn(Boot) -> Sample| -> Vec<u64> {
        let rungs = without_replies(config(2, ""), 24 * 3600, path, sample);
        let at = rungs.iter().filter(|(_, r)| *r == Rung::Rebuild);
        at.map(|(at, _)| at.since(Boot::default()).as_secs() / 60).collect()
    };
    let hours = rebuilt(OPEN, sending);
    assert!((360..400).contains(&hours[0]) && hours.len() <= 4, "minutes: {hours:?}");
    assert_eq!(rebuilt(Path::NoRoute, sending), Vec::<u64>::new(), "nothing can be learnt about the interface");
    let mute = rebuilt(OPEN, |_| Sample { link: Some(1), hubs: vec![Some(Seen::default()); 2] });
    assert!(mute[0] < 20 && mute.len() <= 4, "minutes: {mute:?}");
}

/// A hub that was heard just before the address was lost: its missing echo is not its fault.
#[test]
fn echo_missing_without_a_path_is_not_the_hubs_fault() {
    let mut session = Session::new(Boot::default(), 1, config(1, ""));
    session.known[0].echo_fault = true;
    for (path, code) in [(OPEN, Code::NoEcho), (Path::NoAddress, Code::NoAddress), (Path::NoCarrier, Code::NoCarrier)] {
        session.path = Some((None, path));
        assert_eq!(session.blame(Code::NoEcho), code);
    }
}

/// However often the network changes, a good hub is not kept waiting by a dead one.
#[test]
fn network_changes_do_not_hold_the_ladder_at_a_dead_hub() {
    for period in [1, 5, 13, 65] {
        let mut session = Session::new(Boot::default(), 1, config(3, ""));
        let mut changes = 0;
        let (mut now, mut next) = (Boot::default(), Boot::from_secs(period));
        let mut tried = BTreeMap::new();
        let mut event = SessionEvent::Tick;
        while now < Boot::from_secs(3600) {
            let mut queue = vec![event];
            while let Some(e) = queue.pop() {
                for action in session.handle(now, e) {
                    match action {
                        SessionAction::Resolve(hub) => {
                            queue.push(SessionEvent::Resolved { hub, addresses: vec!["192.0.2.1:1".parse().unwrap()] });
                        }
                        SessionAction::Sample => queue.push(SessionEvent::Sampled(sending(now))),
                        SessionAction::Echo { .. } => {
                            let last = tried.insert(session.active, now).unwrap_or_default();
                            // A round: a sweep, and a port stage with three waits of up to 90 s.
                            assert!(
                                now.since(last) < Duration::from_secs(420),
                                "every {period} s: hub {}",
                                session.active
                            );
                        }
                        SessionAction::Look | SessionAction::Publish | SessionAction::Report(_) => {}
                    }
                }
            }
            let deadline = session.deadline().unwrap().at.max(now);
            now = deadline.min(next);
            event = SessionEvent::Tick;
            if now == next {
                next += Duration::from_secs(period);
                changes += 1;
                let path = Path::Via { link: 2, carrier: true, carrier_changes: changes, source: None, gateway: None };
                event = SessionEvent::Path { to: None, path };
            }
        }
        assert_eq!(tried.len(), 3, "every {period} s: {tried:?}");
    }
}

/// The counters of the recreated interface already show a handshake: only its index differs.
#[test]
fn recreated_interface_needs_new_proof() {
    let mut session = Session::new(Boot::default(), 1, config(1, ""));
    let step =
        |link: u32, handshake: u64, received: &mut u64, session: &mut Session, now: Boot, event: SessionEvent| {
            let mut queue = vec![event];
            while let Some(e) = queue.pop() {
                for action in session.handle(now, e) {
                    match action {
                        SessionAction::Resolve(hub) => {
                            queue.push(SessionEvent::Resolved { hub, addresses: vec!["192.0.2.1:1".parse().unwrap()] });
                        }
                        SessionAction::Sample => {
                            *received += 64;
                            let counters = Counters {
                                last_handshake: Some(Duration::from_secs(handshake)),
                                rx: *received,
                                tx: 148,
                            };
                            let seen = Seen { counters, endpoint: Some("192.0.2.1:1".parse().unwrap()) };
                            queue.push(SessionEvent::Sampled(Sample { link: Some(link), hubs: vec![Some(seen)] }));
                        }
                        SessionAction::Echo { to, seq } => queue.push(SessionEvent::Answered { from: to, seq }),
                        SessionAction::Look | SessionAction::Publish | SessionAction::Report(_) => {}
                    }
                }
            }
        };
    let mut received = 92;
    let mut now = Boot::default();
    for (link, handshake) in [(1, 7), (2, 8)] {
        for _ in 0..20 {
            step(link, handshake, &mut received, &mut session, now, SessionEvent::Tick);
            now = session.deadline().unwrap().at;
        }
        assert_eq!(session.status.sessions, u64::from(link), "{:?}", session.status.history);
    }
    assert!(session.status.history.iter().any(|t| t.code == Code::InterfaceGone));
}

/// The kernel's session is of the configuration before, whose endpoint was edited since.
#[test]
fn edited_endpoint_is_used_at_once_by_the_session_of_before() {
    let now = Boot::from_secs(100);
    let mut config = config(1, "");
    let new: SocketAddr = "192.0.2.9:51820".parse().unwrap();
    Arc::make_mut(&mut config.uplink).hubs[0].endpoint = new.to_string().parse().unwrap();
    let counters = Counters { last_handshake: Some(Duration::from_secs(1)), rx: 1, tx: 1 };
    let seen = Seen { counters, endpoint: Some("192.0.2.1:51820".parse().unwrap()) };
    let sample = || SessionEvent::Sampled(Sample { link: Some(1), hubs: vec![Some(seen)] });
    let endpoint = |edited: BTreeSet<usize>| {
        let mut session = Session::new(now, 1, Config { edited, ..config.clone() });
        let _ = session.handle(now, SessionEvent::Tick);
        let published = session.handle(now, sample()).contains(&SessionAction::Publish);
        let Phase::Connecting(attempt) = session.phase else { panic!("{:?}", session.phase) };
        assert!(published && attempt.prior.is_some(), "an echo is the proof");
        session.choice().unwrap().active.endpoint.unwrap().addr
    };
    assert_eq!(endpoint([0].into()), new);
    assert_eq!(endpoint(BTreeSet::new()), seen.endpoint.unwrap(), "a hub that has moved is kept");
}

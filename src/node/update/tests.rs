//! Devices on simulated time: boots, trials, outages, power losses; the boot loader is a fake with a counter.
use super::*;
use crate::audit::Trail;
use crate::outlook;
use crate::sim::Node;
use crate::socket::Answers;
use spoke_api::health::summary::Components;
use spoke_api::socket::SOCKET;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::time::Wall;
use spoke_sys::sim::clock::SimClock;
use spoke_sys::sim::kernel::FakeKernel;
use spoke_sys::slots::Room;
use spoke_sys::socket::Listener;
use spoke_update::kept::Kept;
use spoke_update::manifest::{Accepted, Known, Manifest, Part};
use spoke_update::slot::{Slot, Starts, TRIES, Trust};
use std::io::Read;
use std::sync::Arc;

/// Both slots and the boot loader's state.
#[derive(Clone)]
struct FakeSlots {
    running: Slot,
    first: Slot,
    trust: [Trust; 2],
    starts: Starts,
    /// This slot's starts were used up before its first process.
    unstarted: Option<Slot>,
    /// The next change of this kind fails, like a power loss just before it.
    cut: Option<&'static str>,
}

const fn at(slot: Slot) -> usize {
    match slot {
        Slot::A => 0,
        Slot::B => 1,
    }
}

impl FakeSlots {
    fn new() -> Self {
        let trust = [Trust::Good, Trust::Trying(0)];
        Self { running: Slot::A, first: Slot::A, trust, starts: Starts::default(), unstarted: None, cut: None }
    }

    /// Power on: the boot loader selects a slot and counts.
    fn start(&mut self) -> Slot {
        let usable = |s: &Slot| self.trust[at(*s)] != Trust::Trying(0);
        self.running = [self.first, self.first.other()].into_iter().find(usable).unwrap_or(Slot::A);
        if let Trust::Trying(n) = self.trust[at(self.running)] {
            self.trust[at(self.running)] = Trust::Trying(n - 1);
        }
        self.starts = self.starts.begun();
        self.running
    }

    fn change(&mut self, what: &'static str) -> Result<(), SlotError> {
        if self.cut == Some(what) {
            self.cut = None;
            return Err(SlotError::NoSlots);
        }
        Ok(())
    }
}

impl Slots for FakeSlots {
    fn standing(&mut self) -> Result<Standing, SlotError> {
        let trust = |s: Slot| Some(self.trust[at(s)]);
        Ok(Standing {
            running: self.running,
            trust: trust(self.running),
            other: trust(self.running.other()),
            other_unstarted: self.unstarted == Some(self.running.other()),
        })
    }
    fn room(&mut self, _: u64, _: &str) -> Result<Room, SlotError> {
        Ok(Room { at: 0, size: 0, have: 0 })
    }
    fn keep(&mut self, _: &mut dyn Read, _: u64, _: u64) -> Result<(), SlotError> {
        Ok(())
    }
    fn mark(&mut self, _: &Kept) -> Result<(), SlotError> {
        Ok(())
    }
    fn kept(&mut self, _: u64) -> Result<Box<dyn Read>, SlotError> {
        Ok(Box::new(std::io::empty()))
    }
    fn vacate(&mut self) -> Result<(), SlotError> {
        self.trust[at(self.running.other())] = Trust::Trying(0);
        Ok(())
    }
    fn write_root(&mut self, _: &mut dyn Read, _: u64) -> Result<(), SlotError> {
        Ok(())
    }
    fn stage_kernel(&mut self, _: &mut dyn Read, _: u64) -> Result<(), SlotError> {
        Ok(())
    }
    fn try_staged(&mut self) -> Result<(), SlotError> {
        self.try_other()
    }
    fn commit(&mut self) -> Result<(), SlotError> {
        self.change("commit")?;
        (self.trust[at(self.running)], self.first) = (Trust::Good, self.running);
        Ok(())
    }
    fn condemn(&mut self) -> Result<(), SlotError> {
        self.change("condemn")?;
        self.trust[at(self.running)] = Trust::Trying(0);
        Ok(())
    }
    fn try_other(&mut self) -> Result<(), SlotError> {
        self.change("try_other")?;
        let other = self.running.other();
        (self.trust[at(other)], self.first, self.unstarted) = (Trust::Trying(TRIES), other, None);
        Ok(())
    }
    fn clear_starts(&mut self) -> Result<(), SlotError> {
        self.starts = Starts::default();
        Ok(())
    }
    fn start_failed(&mut self) -> Result<(), SlotError> {
        self.starts = self.starts.lived();
        Ok(())
    }
}

/// The state partition, and how often it was written.
#[derive(Clone, Default)]
struct FakeStore {
    record: Option<UpdateRecord>,
    writes: usize,
    full: bool,
    /// Another process has the lock for this many attempts to take it.
    busy: usize,
    /// What that process stores before it releases it.
    theirs: Option<UpdateRecord>,
}

impl RecordStore for FakeStore {
    fn committed(&mut self, _: &UpdateRecord) {}
    fn store(&mut self, record: &UpdateRecord) -> Result<(), DiskError> {
        if self.full {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(DiskError::Write { path: "/state".into(), remedy: "free some space", source });
        }
        self.record = Some(record.clone());
        assert_eq!(self.busy, 0, "another process has the lock");
        self.writes += 1;
        Ok(())
    }
    fn exclusively(&mut self) -> Result<Option<Held>, SlotError> {
        if self.busy > 0 {
            self.busy -= 1;
            return Ok(None);
        }
        if let Some(theirs) = self.theirs.take() {
            self.record = Some(theirs);
        }
        Ok(Some(Held { lock: None, record: self.record.clone() }))
    }
}

const HEALTHY: ProbeResult = ProbeResult { connected: true, clean: true, passes: true, outside: true };
/// The hub is unreachable, the way out works.
const OUTSIDE: ProbeResult = ProbeResult { connected: false, clean: true, passes: true, outside: true };
const NOTHING: ProbeResult = ProbeResult { connected: false, clean: true, passes: true, outside: false };

/// No supervisor.
const DEAD: ProbeResult = ProbeResult { connected: false, clean: false, passes: false, outside: true };

/// A device with version 2 just installed in slot b.
fn installed() -> (FakeSlots, FakeStore) {
    let part = Part { size: 1, sha256: String::new() };
    let manifest = Manifest {
        board: "x".into(),
        version: "2".into(),
        sequence: 2,
        floor: 0,
        expires: None,
        root: part.clone(),
        kernel: part,
    };
    let learned = Known { board: "x".into(), serial: 1, floor: 0 };
    let mut record = UpdateRecord::new("x".into());
    record.begin(Accepted { manifest, learned }, Slot::B);
    record.trial.as_mut().unwrap().armed = true;
    let mut slots = FakeSlots::new();
    slots.try_other().unwrap();
    (slots, FakeStore { record: Some(record), ..FakeStore::default() })
}

/// One boot: started and watched; `sees` gets the slot and the seconds since the boot.
async fn live(
    slots: &mut FakeSlots,
    kept: &mut FakeStore,
    sees: impl Fn(Slot, u64) -> ProbeResult,
) -> Result<Next, WatchError> {
    let slot = slots.start();
    let clock = SimClock::new(Wall(0));
    let began = clock.elapsed();
    let mut record = kept.record.clone().unwrap_or_else(|| UpdateRecord::new("x".into()));
    let probe = async || sees(slot, (clock.elapsed() - began).as_secs());
    watch(&clock, slots, kept, &mut record, Rules::default(), probe).await
}

fn last(kept: &FakeStore) -> (String, Option<RejectReason>) {
    let last = kept.record.as_ref().unwrap().last.clone().unwrap();
    (last.version, last.reason)
}

#[tokio::test(start_paused = true)]
async fn good_update_is_committed() {
    let (mut slots, mut kept) = installed();
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, slots.trust[1], last(&kept)), (Slot::B, Trust::Good, ("2".into(), None)));
    assert_eq!(slots.starts, Starts::default(), "the boot counter is cleared");
    let writes = kept.writes;
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, kept.writes), (Slot::B, writes), "a settled boot writes nothing");
}

#[tokio::test(start_paused = true)]
async fn commit_waits_for_another_process() {
    let (mut slots, mut kept) = installed();
    kept.busy = 50;
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.trust[1], last(&kept), kept.busy), (Trust::Good, ("2".into(), None), 0));
}

#[tokio::test(start_paused = true)]
async fn trial_that_another_process_ended_is_not_committed() {
    let (mut slots, kept) = installed();
    slots.start();
    let clock = SimClock::new(Wall(0));
    let mut record = kept.record.clone().unwrap();
    // When: a person rolls the trial back just before the commit.
    let store = std::cell::RefCell::new(kept);
    let probe = async || {
        if clock.now() >= Boot::from_secs(115) && store.borrow().record.as_ref().is_some_and(|r| r.trial.is_some()) {
            let mut theirs = store.borrow().record.clone().unwrap();
            theirs.end(Some(RejectReason::ByHand));
            store.borrow_mut().record = Some(theirs);
        }
        HEALTHY
    };
    struct Shared<'a>(&'a std::cell::RefCell<FakeStore>);
    impl RecordStore for Shared<'_> {
        fn committed(&mut self, record: &UpdateRecord) {
            self.0.borrow_mut().committed(record);
        }
        fn store(&mut self, record: &UpdateRecord) -> Result<(), DiskError> {
            self.0.borrow_mut().store(record)
        }
        fn exclusively(&mut self) -> Result<Option<Held>, SlotError> {
            self.0.borrow_mut().exclusively()
        }
    }
    let mut shared = Shared(&store);
    let watched = watch(&clock, &mut slots, &mut shared, &mut record, Rules::default(), probe);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(130), watched).await;
    // Then
    let kept = store.into_inner();
    assert_eq!(last(&kept), ("2".into(), Some(RejectReason::ByHand)));
}

#[tokio::test(start_paused = true)]
async fn bad_update_is_rejected_with_its_reason() {
    let (mut slots, mut kept) = installed();
    let sees = |slot, _| if slot == Slot::B { OUTSIDE } else { HEALTHY };
    // The old system is healthy where the new one is not, twice.
    for slot in [Slot::B, Slot::A, Slot::B] {
        assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Restart);
        assert_eq!(slots.running, slot);
    }
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, last(&kept)), (Slot::A, ("2".into(), Some(RejectReason::NotHealthy))));
}

#[tokio::test(start_paused = true)]
async fn update_that_never_boots_falls_back() {
    let (mut slots, mut kept) = installed();
    for _ in 0..TRIES {
        assert_eq!(slots.start(), Slot::B);
    }
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, last(&kept)), (Slot::A, ("2".into(), Some(RejectReason::DidNotStart))));
}

#[tokio::test(start_paused = true)]
async fn long_outage_rejects_no_update() {
    let (mut slots, mut kept) = installed();
    assert_eq!(live(&mut slots, &mut kept, |_, _| NOTHING).await.unwrap(), Next::Restart);
    let sees = |_, at| if at < 3 * 86_400 { NOTHING } else { HEALTHY };
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Restart);
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, slots.trust[1], last(&kept)), (Slot::B, Trust::Good, ("2".into(), None)));
}

/// The hub fails while every node of a fleet runs the update on trial, for this many minutes: no node rejects it.
async fn hub_outage(minutes: u64) {
    let (mut slots, mut kept) = installed();
    let mut passed = 0;
    let mut boots = 0;
    loop {
        let clock_at = std::cell::Cell::new(0);
        let sees = |_, at| {
            clock_at.set(at);
            if passed + at < minutes * 60 { OUTSIDE } else { HEALTHY }
        };
        let next = live(&mut slots, &mut kept, sees).await.unwrap();
        boots += 1;
        passed += clock_at.get() + 30;
        if next == Next::Settled && slots.trust[1] == Trust::Good {
            break;
        }
        assert!(boots < 8, "it alternates: {:?}", kept.record);
    }
    assert_eq!((slots.running, last(&kept)), (Slot::B, ("2".into(), None)), "{minutes} minutes");
    assert!(!kept.record.unwrap().is_rejected("2"));
}

#[tokio::test(start_paused = true)]
async fn hub_outage_rejects_no_update() {
    for minutes in [5, 9, 10, 11, 12, 19, 25, 60, 600, 6000] {
        hub_outage(minutes).await;
    }
}

#[tokio::test(start_paused = true)]
async fn wan_outage_with_power_cycles_changes_no_slot() {
    let (mut slots, mut kept) = installed();
    live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap();
    // The supervisor completes passes, and nothing beyond the board answers.
    let away = ProbeResult { clean: false, ..NOTHING };
    for _ in 0..20 {
        assert_eq!(live(&mut slots, &mut kept, |_, _| away).await.unwrap(), Next::Settled);
        assert_eq!((slots.running, slots.starts), (Slot::B, Starts::default()));
    }
}

#[tokio::test(start_paused = true)]
async fn system_without_passes_counts_its_starts() {
    let (mut slots, mut kept) = installed();
    live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap();
    for n in 1..=6 {
        let watching = live(&mut slots, &mut kept, |_, _| DEAD);
        tokio::time::timeout(Duration::from_secs(200), watching).await.unwrap_err();
        assert_eq!(slots.starts, Starts { failed: n, early: 0 });
    }
    assert!(slots.starts.exhausted());
}

#[tokio::test(start_paused = true)]
async fn committed_system_that_did_not_start_is_tried_again_once() {
    let (mut slots, mut kept) = installed();
    live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap();
    // As the boot loader leaves it after power cuts within seconds, or with a damaged kernel.
    (slots.trust[1], slots.unstarted) = (Trust::Trying(0), Some(Slot::B));
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Restart);
    assert_eq!(slots.running, Slot::A);
    let (mut damaged, mut kept_damaged) = (slots.clone(), kept.clone());
    // Power was the cause.
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, slots.trust[1], last(&kept)), (Slot::B, Trust::Good, ("2".into(), None)));
    // The kernel is damaged.
    for _ in 0..TRIES {
        assert_eq!(damaged.start(), Slot::B);
    }
    for _ in 0..2 {
        assert_eq!(live(&mut damaged, &mut kept_damaged, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    }
    assert_eq!((damaged.running, last(&kept_damaged)), (Slot::A, ("2".into(), Some(RejectReason::DidNotStart))));
}

#[tokio::test(start_paused = true)]
async fn update_without_way_out_is_rejected() {
    let (mut slots, mut kept) = installed();
    let sees = |slot, _| if slot == Slot::B { NOTHING } else { HEALTHY };
    for _ in 0..3 {
        assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Restart);
    }
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, last(&kept)), (Slot::A, ("2".into(), Some(RejectReason::NoWayOut))));
}

#[tokio::test(start_paused = true)]
async fn power_loss_between_commit_and_record_commits_again() {
    let (mut slots, mut kept) = installed();
    kept.full = true;
    live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap_err();
    kept.full = false;
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, slots.trust[1], last(&kept)), (Slot::B, Trust::Good, ("2".into(), None)));
}

#[tokio::test(start_paused = true)]
async fn power_loss_before_condemn_still_rejects() {
    let (mut slots, mut kept) = installed();
    slots.cut = Some("condemn");
    let sees = |slot, _| if slot == Slot::B { DEAD } else { HEALTHY };
    live(&mut slots, &mut kept, sees).await.unwrap_err();
    // Watched again without a record, and rejected again.
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Restart);
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, last(&kept)), (Slot::A, ("2".into(), Some(RejectReason::NotHealthy))));
}

#[tokio::test(start_paused = true)]
async fn failing_committed_system_is_recorded_after_fallback() {
    let (mut slots, mut kept) = installed();
    live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap();
    // As the slot's first process does after too many boots without a clean pass.
    slots.start();
    slots.condemn().unwrap();
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, last(&kept)), (Slot::A, ("2".into(), Some(RejectReason::KeptFailing))));
}

#[tokio::test(start_paused = true)]
async fn update_commits_with_health_endpoint_disabled() {
    let (mut slots, mut kept) = installed();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[node]\nruntime_dir = \"{0}\"\nstate_dir = \"{0}\"\n[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\n",
        dir.path().display()
    );
    let config = Arc::new(Config::from_text(Some(("test", &text)), []).unwrap());
    let clock = SimClock::new(Wall(0));
    let node = Node::start(
        dir.path(),
        config.clone(),
        Arc::new(Effective::of(config.clone())),
        FakeKernel::default(),
        clock.clone(),
    )
    .await;
    let socket = dir.path().join(SOCKET);
    let (_trail, audit) = Trail::open(dir.path(), clock.clone(), tokio::sync::watch::channel(None).1);
    let answers = Answers {
        clock: clock.clone(),
        started: clock.now(),
        config: config.clone(),
        net: node.net.clone(),
        components: tokio::sync::watch::channel(Components::default()).1,
        uplink: Arc::new(|| None),
        grants: None,
        changes: node.changes.clone(),
        audit,
        control: None,
        reload: Arc::new(crate::reload::Reload::new(dir.path().join("spoke.toml"), config)),
    };
    let serving = tokio::spawn(crate::socket::run(Listener::bind(&socket).unwrap(), answers));

    assert_eq!(slots.start(), Slot::B);
    let mut record = kept.record.clone().unwrap();
    let probe = async || {
        let socket = socket.clone();
        tokio::task::spawn_blocking(move || outlook::probe(&socket, &[])).await.unwrap()
    };
    let next = watch(&clock, &mut slots, &mut kept, &mut record, Rules::default(), probe).await;

    assert_eq!((next.unwrap(), slots.trust[1], last(&kept)), (Next::Settled, Trust::Good, ("2".into(), None)));
    serving.abort();
}

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
use spoke_sys::socket::Listener;
use spoke_update::manifest::{Accepted, Known, Manifest, Part};
use spoke_update::slot::{Slot, TRIES, Trust};
use std::io::Read;
use std::sync::Arc;

/// Both slots and the boot loader's state.
struct FakeSlots {
    running: Slot,
    first: Slot,
    trust: [Trust; 2],
    starts: u8,
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
        Self { running: Slot::A, first: Slot::A, trust, starts: 0, cut: None }
    }

    /// Power on: the boot loader selects a slot and counts.
    fn start(&mut self) -> Slot {
        let usable = |s: &Slot| self.trust[at(*s)] != Trust::Trying(0);
        self.running = [self.first, self.first.other()].into_iter().find(usable).unwrap_or(Slot::A);
        if let Trust::Trying(n) = self.trust[at(self.running)] {
            self.trust[at(self.running)] = Trust::Trying(n - 1);
        }
        self.starts += 1;
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
        Ok(Standing { running: self.running, trust: trust(self.running), other: trust(self.running.other()) })
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
        (self.trust[at(other)], self.first) = (Trust::Trying(TRIES), other);
        Ok(())
    }
    fn clear_starts(&mut self) -> Result<(), SlotError> {
        self.starts = 0;
        Ok(())
    }
}

/// The state partition, and how often it was written.
#[derive(Default)]
struct FakeStore {
    record: Option<UpdateRecord>,
    writes: usize,
    full: bool,
}

impl RecordStore for FakeStore {
    fn store(&mut self, record: &UpdateRecord) -> Result<(), DiskError> {
        if self.full {
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(DiskError::Write { path: "/state".into(), remedy: "free some space", source });
        }
        self.record = Some(record.clone());
        self.writes += 1;
        Ok(())
    }
}

const HEALTHY: ProbeResult = ProbeResult { connected: true, clean: true, outside: true };
/// The hub is unreachable, the way out works.
const OUTSIDE: ProbeResult = ProbeResult { connected: false, clean: true, outside: true };
const NOTHING: ProbeResult = ProbeResult { connected: false, clean: true, outside: false };

/// A device with version 2 just installed in slot b.
fn installed() -> (FakeSlots, FakeStore) {
    let part = Part { size: 1, sha256: String::new() };
    let manifest =
        Manifest { board: "x".into(), version: "2".into(), sequence: 2, floor: 0, root: part.clone(), kernel: part };
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
    assert_eq!(slots.starts, 0, "the boot counter is cleared");
    let writes = kept.writes;
    assert_eq!(live(&mut slots, &mut kept, |_, _| HEALTHY).await.unwrap(), Next::Settled);
    assert_eq!((slots.running, kept.writes), (Slot::B, writes), "a settled boot writes nothing");
}

#[tokio::test(start_paused = true)]
async fn bad_update_is_rejected_with_its_reason() {
    let (mut slots, mut kept) = installed();
    let sees = |slot, _| if slot == Slot::B { OUTSIDE } else { HEALTHY };
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Restart);
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

#[tokio::test(start_paused = true)]
async fn update_without_way_out_is_rejected() {
    let (mut slots, mut kept) = installed();
    let sees = |slot, _| if slot == Slot::B { NOTHING } else { HEALTHY };
    assert_eq!(live(&mut slots, &mut kept, sees).await.unwrap(), Next::Restart);
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
    let sees = |slot, _| if slot == Slot::B { OUTSIDE } else { HEALTHY };
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
    let (_trail, audit) = Trail::open(dir.path(), clock.clone(), tokio::sync::watch::channel(None).1).unwrap();
    let answers = Answers {
        clock: clock.clone(),
        started: clock.now(),
        config,
        net: node.net.clone(),
        components: tokio::sync::watch::channel(Components::default()).1,
        uplink: Arc::new(|| None),
        grants: None,
        changes: node.changes.clone(),
        audit,
        control: None,
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

//! Trials in simulated time.
use super::*;
use proptest::prelude::*;

const HEALTHY: ProbeResult = ProbeResult { connected: true, clean: true, passes: true, outside: true };
const OUTSIDE: ProbeResult = ProbeResult { connected: false, clean: true, passes: true, outside: true };
const NOTHING: ProbeResult = ProbeResult { connected: false, clean: true, passes: true, outside: false };

/// Runs a trial that is given `probe(second)` every 5 s; the first action and its second.
fn run(stage: Stage, resumes: u8, probe: impl Fn(u64) -> ProbeResult) -> Option<(u64, TrialAction)> {
    run_with(stage, resumes, false, probe)
}

fn run_with(
    stage: Stage,
    resumes: u8,
    compare: bool,
    probe: impl Fn(u64) -> ProbeResult,
) -> Option<(u64, TrialAction)> {
    let mut trial = Trial::new(Boot::from_secs(10), Rules::default(), stage, resumes, compare);
    for second in (0..20_000).step_by(5) {
        let now = Boot::from_secs(10 + second);
        if let Some(action) = trial.handle(now, TrialEvent::Probed(probe(second))).first() {
            assert_eq!(trial.deadline(), None);
            return Some((second, *action));
        }
        if let Some(deadline) = trial.deadline() {
            assert!(deadline.at > now, "{deadline:?} has passed without an action");
        }
    }
    None
}

#[test]
fn healthy_system_is_committed_after_settle() {
    assert_eq!(run(Stage::Trial, 0, |_| HEALTHY), Some((120, TrialAction::Commit)));
    // A gap restarts the time.
    assert_eq!(run(Stage::Trial, 0, |s| if s == 60 { OUTSIDE } else { HEALTHY }), Some((185, TrialAction::Commit)));
}

#[test]
fn system_without_passes_is_rejected_while_online() {
    let dead = ProbeResult { passes: false, clean: false, ..OUTSIDE };
    assert_eq!(run(Stage::Trial, 0, |_| dead), Some((600, TrialAction::Reject(RejectReason::NotHealthy))));
}

#[test]
fn unhealthy_system_is_compared_with_the_old_one() {
    let dirty = ProbeResult { clean: false, ..HEALTHY };
    for probe in [OUTSIDE, dirty] {
        assert_eq!(run(Stage::Trial, 0, |_| probe), Some((600, TrialAction::Compare)));
    }
    // The first time it may have been the end of the outage.
    let compare =
        |resumes, back: u64| run_with(Stage::Retreated, resumes, true, |s| if s < back { OUTSIDE } else { HEALTHY });
    assert_eq!(compare(0, 60), Some((60, TrialAction::Resume)));
    assert_eq!(compare(1, 60), Some((60, TrialAction::Reject(RejectReason::NotHealthy))));
    // The old system is not healthy either: the hub is down.
    assert_eq!(run_with(Stage::Retreated, 0, true, |_| OUTSIDE), None);
    assert_eq!(compare(1, 3600), Some((3600, TrialAction::Resume)));
    assert_eq!(compare(3, 3600), Some((3600, TrialAction::Reject(RejectReason::TooManyOutages))));
}

#[test]
fn outage_shorter_than_an_hour_changes_nothing() {
    assert_eq!(run(Stage::Trial, 0, |s| if s < 3000 { NOTHING } else { HEALTHY }), Some((3120, TrialAction::Commit)));
}

#[test]
fn long_outage_costs_one_reboot_and_no_rejection() {
    assert_eq!(run(Stage::Trial, 0, |_| NOTHING), Some((3600, TrialAction::Retreat)));
    assert_eq!(run(Stage::Retreated, 0, |_| NOTHING), None, "the old system waits without limit");
    assert_eq!(
        run(Stage::Retreated, 0, |s| if s < 7200 { NOTHING } else { HEALTHY }),
        Some((7200, TrialAction::Resume))
    );
    assert_eq!(
        run(Stage::Retreated, 3, |s| if s < 7200 { NOTHING } else { HEALTHY }),
        Some((7200, TrialAction::Reject(RejectReason::TooManyOutages)))
    );
}

#[test]
fn old_system_online_twice_rejects_the_new_one() {
    assert_eq!(run(Stage::Retreated, 0, |s| if s < 30 { NOTHING } else { HEALTHY }), Some((30, TrialAction::Resume)));
    assert_eq!(
        run(Stage::Retreated, 1, |s| if s < 30 { NOTHING } else { HEALTHY }),
        Some((30, TrialAction::Reject(RejectReason::NoWayOut)))
    );
}

proptest! {
    #[test]
    fn commit_needs_settle_time(probes in proptest::collection::vec((0u8..16, 1u64..100), 1..200)) {
        let mut trial = Trial::new(Boot::from_secs(0), Rules::default(), Stage::Trial, 0, false);
        let (mut now, mut healthy_since) = (0, None);
        for (bits, step) in probes {
            let probe = ProbeResult { connected: bits & 1 != 0, clean: bits & 2 != 0, passes: bits & 8 != 0, outside: bits & 4 != 0 };
            healthy_since = if probe.connected && probe.clean { healthy_since.or(Some(now)) } else { None };
            for action in trial.handle(Boot::from_secs(now), TrialEvent::Probed(probe)) {
                if action == TrialAction::Commit {
                    prop_assert!(now - healthy_since.unwrap() >= 120);
                }
                prop_assert!(action != TrialAction::Resume, "resumed by the new system");
            }
            now += step;
        }
    }

    #[test]
    fn trial_acts_once(probes in proptest::collection::vec(0u8..16, 1..2000), retreated in any::<bool>()) {
        let stage = if retreated { Stage::Retreated } else { Stage::Trial };
        let mut trial = Trial::new(Boot::from_secs(0), Rules::default(), stage, 0, false);
        let actions: usize = probes.iter().enumerate().map(|(i, bits)| {
            let probe = ProbeResult { connected: bits & 1 != 0, clean: bits & 2 != 0, passes: bits & 8 != 0, outside: bits & 4 != 0 };
            trial.handle(Boot::from_secs(i as u64 * 5), TrialEvent::Probed(probe)).len()
        }).sum();
        prop_assert!(actions <= 1);
    }
}

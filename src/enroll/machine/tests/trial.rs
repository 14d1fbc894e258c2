//! A state on trial over restarts and outages.
use super::*;

fn rejected(actions: &Actions) -> Option<&RejectedState> {
    actions.iter().find_map(|a| if let Action::Reject(r) = a { Some(r) } else { None })
}

#[test]
fn trial_is_recorded_before_its_first_step() {
    let mut m = settled(3);
    let out = m.handle(at(10), offered(4));
    let recorded = Action::RecordTrial { generation: 4, before: Before::Up, attempts: 1, unproved_before: false };
    assert!(
        matches!(&out[..2], [first, Action::Publish(_)] if format!("{first:?}") == format!("{recorded:?}")),
        "{out:?}"
    );
}

#[test]
fn restart_during_a_trial_is_a_failed_trial() {
    for before in [Before::Up, Before::Unknown] {
        let mut m = machine(Some(state(3, 1)));
        let out = m.resume_trial(at(0), TrialRecord { before, ..RECORD });
        assert!(rejected(&out).is_some_and(|r| r.generation == 4 && r.reason.contains("restarted")), "{out:?}");
        assert!(matches!(out.last(), Some(Action::ForgetTrial)), "after the rejection: {out:?}");
        assert_eq!(polls(&m.handle(at(0), Event::Tick)), Some(4), "not asked for again");
        assert_eq!(m.status().outcome, Some(Outcome::Reverted));
    }
    // With the hub down before it, a power cut says nothing, until it repeats.
    let mut m = resumed(3, TrialRecord { before: Before::Down, ..RECORD });
    assert_eq!(polls(&m.handle(at(0), Event::Tick)), Some(3));
    let out = m.handle(at(1), offered(4));
    assert!(out.iter().any(|a| matches!(a, Action::RecordTrial { attempts: 2, .. })), "{out:?}");
    let mut m = machine(Some(state(3, 1)));
    assert!(rejected(&m.resume_trial(at(0), TrialRecord { before: Before::Down, attempts: 3, ..RECORD })).is_some());
    // Kept before the power cut, or no state to go back to.
    for mut m in [machine(Some(state(5, 1))), machine(None)] {
        let out = m.resume_trial(at(0), RECORD);
        assert!(matches!(&out[..], [Action::ForgetTrial]), "{out:?}");
    }
}

#[test]
fn state_received_before_the_first_connection_needs_an_answer() {
    let mut m = machine(Some(state(3, 1)));
    m.handle(at(0), Event::Tick);
    m.handle(at(1), seen(down(0)));
    assert_eq!(published(&m.handle(at(2), offered(4))), Some(4));
    let out = m.handle(at(3), seen(down(0)));
    assert!(kept(&out).is_none() && !out.iter().any(|a| matches!(a, Action::Adopt(_))), "{out:?}");
    assert_eq!(published(&m.handle(at(300), Event::Tick)), None, "no whole round yet");
    // The round in progress at the change does not count.
    assert_eq!(published(&m.handle(at(301), seen(down(1)))), None);
    assert_eq!(published(&m.handle(at(302), seen(down(2)))), Some(3));
}

#[test]
fn hub_down_under_both_states_rejects_neither() {
    let mut m = settled(3);
    m.handle(at(10), offered(4));
    m.handle(at(11), seen(down(0)));
    let out = m.handle(at(71), seen(down(1)));
    assert!(rejected(&out).is_some_and(|r| r.unanswered) && published(&out) == Some(3), "{out:?}");
    let out = m.handle(at(72), seen(down(1)));
    assert_eq!(published(&out), None);
    // It does not answer through the previous one either: a new session counts from zero.
    m.handle(at(73), seen(down(0)));
    let out = m.handle(at(130), seen(down(1)));
    assert!(out.iter().any(|a| matches!(a, Action::LiftRejection)) && published(&out) == Some(4), "{out:?}");
    m.handle(at(131), seen(down(1)));
    assert_eq!((m.status().outcome, m.status().generation), (Some(Outcome::Applied), 4), "in force, unproved");
    let out = m.handle(at(132), seen(up()));
    let (to, seq) = echoes(&out)[0];
    assert_eq!(kept(&m.handle(at(132), Event::EchoReply { from: to, seq })), Some(4));
}

#[test]
fn rejection_stands_once_the_previous_state_is_up() {
    let mut m = settled(3);
    m.handle(at(10), offered(4));
    m.handle(at(11), seen(down(0)));
    assert!(rejected(&m.handle(at(71), seen(down(1)))).is_some_and(|r| r.unanswered));
    let out = m.handle(at(75), seen(up()));
    let confirmed = |a: &Action| matches!(a, Action::ConfirmRejection(r) if !r.unanswered);
    assert!(out.iter().any(confirmed), "{out:?}");
    for rounds in 1..200 {
        let out = m.handle(at(75 + rounds), seen(down(rounds)));
        assert_eq!(published(&out), None, "a later outage lifts nothing");
    }
}

#[test]
fn outage_gives_each_state_its_turn_and_stores_none() {
    let mut m = machine(Some(state(3, 1)));
    m.handle(at(0), Event::Tick);
    m.handle(at(1), seen(down(0)));
    m.handle(at(2), seen(down(1)));
    m.handle(at(3), offered(4));
    let (mut writes, mut tried) = (0, std::collections::BTreeSet::new());
    for n in 2..3_000 {
        let out = m.handle(at(n * 60), seen(down(n)));
        assert!(!out.iter().any(|a| matches!(a, Action::Keep(_) | Action::Adopt(_))), "{out:?}");
        writes += out.iter().filter(|a| matches!(a, Action::RecordTrial { .. })).count();
        tried.extend(published(&out));
    }
    assert_eq!(tried, [3, 4].into());
    assert!(writes < 40, "{writes} turns in two days");
}

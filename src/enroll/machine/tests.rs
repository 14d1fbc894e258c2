//! The control client without a network: new states, refusals, outages, reverts and changes of keys.
use super::*;
use crate::confirm::Before;
use crate::confirm::TrialRecord;
use crate::document::WantedHub;
use crate::document::{StateDocument, VERSION, WantedInterface};
use crate::events::{KeySlot, Message, SendResult};
use crate::status::OutageCause;
use crate::wire::KeyStep;
use proptest::prelude::*;
use spoke_config::node::Role;
use spoke_model::signature::SignKey;
use spoke_model::time::Wall;

mod trial;

const KEY: PublicKey = PublicKey([7; 32]);
const TIMES: ControlTimes = ControlTimes {
    report_every: Duration::from_secs(900),
    confirm_within: Duration::from_secs(60),
    spread: Duration::from_secs(60),
};

fn at(secs: u64) -> Boot {
    Boot::from_secs(secs)
}

fn hub(n: u8) -> WantedHub {
    WantedHub {
        node_id: format!("hub-{n}").parse().unwrap(),
        public_key: PublicKey([100 + n; 32]),
        endpoint: format!("192.0.2.{n}:51820").parse().unwrap(),
        address: [10, 8, 0, n].into(),
        allowed_ips: vec![IpAddr::from([10, 8, 0, n]).into()],
        keepalive: 25,
        preshared_keys: vec![],
    }
}

fn state(generation: u64, hubs: u8) -> SignedState {
    let key = SignKey::from_seed(&[1; 32]).unwrap();
    let document = StateDocument {
        version: VERSION,
        node_id: "edge-1".parse().unwrap(),
        supersedes: None,
        generation,
        role: Role::Node,
        signing_keys: vec![key.public()],
        release: None,
        rollout: Default::default(),
        grants: None,
        interfaces: vec![WantedInterface {
            name: "wg0".parse().unwrap(),
            addresses: vec!["10.8.0.9/16".parse().unwrap()],
            listen_port: None,
            mtu: None,
            dns: vec![],
            hubs: (1..=hubs).map(hub).collect(),
            peers: vec![],
            forwarding: false,
            next_key: None,
            overrides: Default::default(),
        }],
    };
    SignedState { envelope: document.sign([&key]).unwrap(), document }
}

fn machine(have: Option<SignedState>) -> ControlClient {
    ControlClient::new(at(0), 1, TIMES, have, None, KEY)
}

fn up() -> NodeObservation {
    NodeObservation {
        up: true,
        connected_since: Some(at(1)),
        hub: Some("hub-1".into()),
        applied: true,
        healthy: true,
        key: Some(KEY),
        ..NodeObservation::default()
    }
}

fn seen(seen: NodeObservation) -> Event {
    Event::Observed(Box::new(seen))
}

fn offered(generation: u64) -> Event {
    Event::PollEnded(PollResult::State(Box::new(state(generation, 1))))
}

fn polls(actions: &Actions) -> Option<u64> {
    actions.iter().find_map(|a| if let Action::Poll { after, .. } = a { Some(*after) } else { None })
}

fn sent(actions: &Actions) -> Option<&Message> {
    actions.iter().find_map(|a| if let Action::Send(m) = a { Some(m) } else { None })
}

fn published(actions: &Actions) -> Option<u64> {
    actions.iter().find_map(|a| if let Action::Publish(c) = a { Some(c.document.generation) } else { None })
}

fn kept(actions: &Actions) -> Option<u64> {
    actions.iter().find_map(|a| if let Action::Keep(c) = a { Some(c.document.generation) } else { None })
}

fn echoes(actions: &Actions) -> Vec<(IpAddr, u16)> {
    actions.iter().filter_map(|a| if let Action::Echo { to, seq } = a { Some((*to, *seq)) } else { None }).collect()
}

/// A node that is connected, registered and reported, with its long-poll out.
fn settled(generation: u64) -> ControlClient {
    let mut m = machine(Some(state(generation, 1)));
    m.handle(at(0), Event::Tick);
    m.handle(at(0), Event::SendEnded(SendResult::Taken));
    let out = m.handle(at(1), seen(up()));
    assert!(matches!(sent(&out), Some(Message::Register { .. })), "{out:?}");
    let out = m.handle(at(1), Event::SendEnded(SendResult::Taken));
    assert!(matches!(sent(&out), Some(Message::Report { .. })), "{out:?}");
    m.handle(at(1), Event::SendEnded(SendResult::Taken));
    m
}

const RECORD: TrialRecord =
    TrialRecord { generation: 4, since: Wall(0), before: Before::Up, attempts: 1, unproved_before: false };

/// A machine whose process found this record.
fn resumed(in_force: u64, record: TrialRecord) -> ControlClient {
    let mut m = machine(Some(state(in_force, 1)));
    let out = m.resume_trial(at(0), record);
    assert!(out.iter().all(|a| !matches!(a, Action::Keep(_) | Action::Adopt(_))), "{out:?}");
    m
}

fn down(rounds: u64) -> NodeObservation {
    NodeObservation { up: false, connected_since: None, rounds, ..up() }
}

#[test]
fn state_is_kept_after_the_hub_answered_through_it() {
    let mut m = settled(3);
    let out = m.handle(at(10), offered(4));
    assert_eq!((published(&out), kept(&out), polls(&out)), (Some(4), None, Some(4)), "the next poll goes out at once");
    let out = m.handle(at(10), seen(NodeObservation { applied: false, ..up() }));
    assert_eq!(kept(&out), None);
    assert!(echoes(&out).is_empty(), "nothing is proven before it is applied");
    let out = m.handle(at(11), seen(up()));
    assert_eq!(kept(&out), None, "applied is not enough where the hub was up");
    let (to, seq) = echoes(&out)[0];
    m.handle(at(11), Event::EchoReply { from: to, seq: seq.wrapping_sub(1) });
    let out = m.handle(at(11), Event::EchoReply { from: [10, 8, 0, 99].into(), seq });
    assert_eq!(kept(&out), None, "neither a reply to an older echo nor one from another address");
    let out = m.handle(at(11), Event::EchoReply { from: to, seq });
    assert_eq!(kept(&out), Some(4));
    let Some(Message::Report { generation: 4, outcome: Outcome::Applied, .. }) = sent(&out) else { panic!("{out:?}") };
}

#[test]
fn any_hub_of_several_proves_a_state() {
    let mut m = settled(3);
    m.handle(at(10), Event::PollEnded(PollResult::State(Box::new(state(4, 3)))));
    let out = m.handle(at(11), seen(up()));
    let asked = echoes(&out);
    assert_eq!(asked.len(), 3, "the first may be down");
    let out = m.handle(at(11), Event::EchoReply { from: asked[2].0, seq: asked[2].1 });
    assert_eq!(kept(&out), Some(4));
}

#[test]
fn state_that_loses_the_hub_is_reverted_for_good() {
    let mut m = settled(3);
    m.handle(at(10), offered(4));
    m.handle(at(11), seen(up()));
    let out = m.handle(at(70), Event::Tick);
    let rejected = out.iter().find_map(|a| if let Action::Reject(r) = a { Some(r.clone()) } else { None }).unwrap();
    assert_eq!((rejected.generation, published(&out)), (4, Some(3)));
    let Some(Message::Report { generation: 3, outcome: Outcome::Reverted, reason: Some(why), .. }) = sent(&out) else {
        panic!("{out:?}")
    };
    assert!(why.contains("generation 4") && why.contains("did not answer"), "{why}");
    // The same generation again, also after a restart.
    let out = m.handle(at(71), offered(4));
    assert_eq!(published(&out), None);
    let mut m = ControlClient::new(at(0), 1, TIMES, Some(state(3, 1)), Some(rejected), KEY);
    assert_eq!(polls(&m.handle(at(0), Event::Tick)), Some(4), "only newer than the rejected one");
    assert_eq!(published(&m.handle(at(1), offered(4))), None);
    assert_eq!(published(&m.handle(at(2), offered(5))), Some(5));
}

#[test]
fn superseding_state_inherits_the_unproven_trial() {
    let mut m = settled(3);
    m.handle(at(10), offered(4));
    // The hub session restarts with the new hubs.
    m.handle(at(11), seen(NodeObservation { up: false, ..up() }));
    m.handle(at(12), offered(5));
    let out = m.handle(at(13), seen(NodeObservation { up: false, ..up() }));
    assert_eq!(kept(&out), None, "the hub was up before and has to answer");
    assert_eq!(published(&m.handle(at(72), Event::Tick)), None, "the ladder is at work");
    let out = m.handle(at(73), seen(NodeObservation { up: false, rounds: 2, ..up() }));
    assert_eq!(published(&out), Some(3));
}

#[test]
fn refused_states_change_nothing_and_back_off() {
    let mut m = settled(3);
    let mut now = at(10);
    let mut waits = Vec::new();
    for refused in [offered(3), offered(2), Event::PollEnded(PollResult::Refused(Refusal::Malformed(String::new())))]
        .into_iter()
        .chain((0..10).map(|_| Event::PollEnded(PollResult::Refused(Refusal::Malformed(String::new())))))
    {
        let out = m.handle(now, refused);
        assert_eq!((published(&out), kept(&out), polls(&out)), (None, None, None));
        let Poll::At(next) = m.poll else { panic!() };
        waits.push(next.since(now));
        now = next;
        m.handle(now, Event::SendEnded(SendResult::Taken));
        assert!(matches!(m.poll, Poll::Out | Poll::At(_)));
        m.handle(now, Event::Tick);
    }
    assert!(waits[0] < Duration::from_secs(10) && waits[12] > Duration::from_secs(400), "{waits:?}");
    assert_eq!(m.status().outcome, Some(Outcome::Refused));
    assert_eq!(m.status().generation, 3);
}

#[test]
fn outage_changes_nothing_and_polls_are_bounded() {
    let mut m = settled(3);
    let (mut now, mut asked) = (at(10), 0u32);
    m.handle(now, Event::PollEnded(PollResult::Failed("gone".into(), OutageCause::default())));
    // One day.
    while now < at(10 + 86_400) {
        now = m.deadline().unwrap().at.max(now + Duration::from_millis(1));
        let out = m.handle(now, Event::Tick);
        assert_eq!((published(&out), kept(&out)), (None, None));
        if polls(&out).is_some() {
            asked += 1;
            m.handle(now, Event::PollEnded(PollResult::Failed("gone".into(), OutageCause::default())));
        }
        if sent(&out).is_some() {
            asked += 1;
            m.handle(now, Event::SendEnded(SendResult::Unsent("gone".into())));
        }
    }
    assert!((500..3_000).contains(&asked), "{asked} requests in a day");
    assert_eq!(m.status().outage.unwrap().since, at(10));
    // The first answer ends the outage.
    let out = m.handle(now, Event::PollEnded(PollResult::Nothing));
    assert_eq!(m.status().outage, None);
    drop(out);
    now += Duration::from_secs(300);
    let out = m.handle(now, Event::Tick);
    assert!(matches!(sent(&out), Some(Message::Report { generation: 3, .. })), "reports resume: {out:?}");
}

#[test]
fn accepted_report_ends_the_poll_backoff() {
    let mut m = settled(3);
    m.handle(at(10), Event::PollEnded(PollResult::Failed("gone".into(), OutageCause::default())));
    let mut now = at(10);
    let out = loop {
        now += Duration::from_secs(1);
        let out = m.handle(now, seen(NodeObservation { healthy: false, ..up() }));
        if sent(&out).is_some() {
            break m.handle(now, Event::SendEnded(SendResult::Taken));
        }
    };
    assert_eq!(polls(&out), Some(3));
}

#[test]
fn answered_poll_ends_the_wait_of_a_failed_report() {
    let mut m = settled(3);
    let mut now = at(10);
    // Reports fail for ten minutes while the poll is held open.
    while now < at(600) {
        now = m.deadline().unwrap().at.max(now + Duration::from_millis(1));
        if sent(&m.handle(now, Event::Tick)).is_some() {
            m.handle(now, Event::SendEnded(SendResult::Failed("timeout".into())));
        }
    }
    let answered = now;
    m.handle(now, Event::PollEnded(PollResult::Nothing));
    while sent(&m.handle(now, Event::Tick)).is_none() {
        now += Duration::from_millis(100);
    }
    assert!(now <= answered + Duration::from_secs(1), "{:?} after the answer", now.since(answered));
    // Reports that fail on their own go on waiting.
    m.handle(now, Event::SendEnded(SendResult::Failed("500".into())));
    assert!(sent(&m.handle(now + Duration::from_secs(20), Event::Tick)).is_none());
}

#[test]
fn poll_and_message_are_independent() {
    let mut m = machine(Some(state(3, 1)));
    let out = m.handle(at(0), Event::Tick);
    assert!(polls(&out).is_some() && sent(&out).is_some());
    // The report is still out: a new state is applied, proven and kept.
    m.handle(at(1), seen(up()));
    assert_eq!(published(&m.handle(at(2), offered(4))), Some(4));
    let out = m.handle(at(2), seen(up()));
    let (to, seq) = echoes(&out)[0];
    assert_eq!(kept(&m.handle(at(2), Event::EchoReply { from: to, seq })), Some(4));
}

#[test]
fn each_connection_is_registered_with_its_hub() {
    let mut m = machine(Some(state(3, 2)));
    m.handle(at(0), Event::Tick);
    m.handle(at(0), Event::SendEnded(SendResult::Taken));
    let out = m.handle(at(2), seen(NodeObservation { hub: Some("hub-2".into()), ..up() }));
    assert_eq!(sent(&out), Some(&Message::Register { hub_endpoint: "192.0.2.2:51820".into() }));
    let out = m.handle(at(2), Event::SendEnded(SendResult::Failed("cut".into())));
    assert!(!matches!(sent(&out), Some(Message::Register { .. })), "not in a loop");
    m.handle(at(2), Event::SendEnded(SendResult::Taken));
    let out = m.handle(at(20), Event::Tick);
    assert!(matches!(sent(&out), Some(Message::Register { .. })));
    m.handle(at(20), Event::SendEnded(SendResult::Taken));
    assert!(!matches!(sent(&m.handle(at(30), Event::Tick)), Some(Message::Register { .. })), "once");
    let again = NodeObservation { connected_since: Some(at(31)), ..up() };
    assert!(matches!(sent(&m.handle(at(31), seen(again))), Some(Message::Register { .. })));
}

#[test]
fn first_state_is_adopted_once_applied_and_proved_later() {
    let mut m = machine(None);
    let out = m.handle(at(0), Event::Tick);
    assert_eq!((polls(&out), sent(&out)), (Some(0), None), "no report without a state");
    m.handle(at(1), offered(1));
    let out = m.handle(at(1), seen(NodeObservation { applied: true, ..NodeObservation::default() }));
    assert!(out.iter().any(|a| matches!(a, Action::Adopt(s) if s.document.generation == 1)), "{out:?}");
    assert_eq!((kept(&out), m.status().outcome, m.status().generation), (None, Some(Outcome::Applied), 1));
    // The next process has no proof either until the hub answers.
    for mut m in [m, resumed(1, TrialRecord { generation: 1, ..RECORD })] {
        let out = m.handle(at(9), seen(up()));
        let (to, seq) = echoes(&out).into_iter().chain(echoes(&m.handle(at(80), Event::Tick))).next().unwrap();
        let out = m.handle(at(80), Event::EchoReply { from: to, seq });
        assert!(out.iter().any(|a| matches!(a, Action::ForgetTrial)) && kept(&out).is_none(), "{out:?}");
        assert!(echoes(&m.handle(at(400), Event::Tick)).is_empty());
    }
}

#[test]
fn key_change_runs_all_steps_and_registers() {
    let new = PublicKey([8; 32]);
    let mut m = settled(3);
    assert_eq!(m.check_rotation(), Ok(()));
    let out = m.handle(at(10), Event::Rotate(new));
    assert_eq!(sent(&out), Some(&Message::Key(KeyStep::Announce, new)));
    assert_eq!(m.check_rotation(), Err(RotationRefused::InProgress));
    let out = m.handle(at(10), Event::SendEnded(SendResult::Ready(true)));
    assert!(matches!(out[..], [Action::RecordSwitch]), "{out:?}");
    let out = m.handle(at(10), Event::SwitchRecorded(Ok(())));
    assert_eq!(sent(&out), Some(&Message::Key(KeyStep::Switch, new)));
    let out = m.handle(at(10), Event::SendEnded(SendResult::Ready(true)));
    assert!(out.iter().any(|a| matches!(a, Action::UseKey(KeySlot::New))), "{out:?}");
    let out = m.handle(at(10), seen(NodeObservation { key: Some(new), ..up() }));
    let more = if echoes(&out).is_empty() { m.handle(at(11), Event::Tick) } else { out };
    let (to, seq) = echoes(&more)[0];
    let out = m.handle(at(11), Event::EchoReply { from: to, seq });
    assert!(out.iter().any(|a| matches!(a, Action::FinishKey)), "{out:?}");
    assert!(matches!(sent(&out), Some(Message::Register { .. })), "{out:?}");
    assert_eq!((m.key(), m.status().key_changed), (new, Some(KeyChange::Changed(new))));
}

#[test]
fn refused_stamps_get_a_new_key_without_the_hub() {
    let refused = |rounds| NodeObservation { stamps_ahead: true, ..down(rounds) };
    let renews = |out: &Actions| out.iter().any(|a| matches!(a, Action::RenewKey));
    let mut m = settled(3);
    m.handle(at(2), Event::PollEnded(PollResult::Nothing));
    assert!(!renews(&m.handle(at(9), seen(NodeObservation { stamps_ahead: true, ..up() }))), "the hub answers");
    assert!(!renews(&m.handle(at(10), seen(refused(0)))), "no whole round yet");
    assert!(!renews(&m.handle(at(11), seen(down(1)))), "an ordinary outage");
    assert!(renews(&m.handle(at(12), seen(refused(1)))));
    assert!(!renews(&m.handle(at(13), seen(refused(2)))), "one at a time");
    let new = PublicKey([8; 32]);
    let out = m.handle(at(13), Event::Rotate(new));
    assert_eq!(sent(&out), Some(&Message::Key(KeyStep::Announce, new)), "through the control plane");
    // Abandoned, because a hub was late: again soon, then less and less often.
    let (mut renewals, mut now) = (vec![], at(13));
    while now < at(13 + 86_400) {
        m.handle(now, seen(refused(2)));
        m.handle(now, Event::SendEnded(SendResult::Ready(false)));
        now += Duration::from_secs(1);
        if renews(&m.handle(now, seen(refused(2)))) {
            renewals.push(now);
            m.handle(now, Event::Rotate(new));
        }
    }
    assert!(renewals[0] < at(13 + 60 + 46), "{renewals:?}");
    assert!((30..90).contains(&renewals.len()), "{} renewals in a day", renewals.len());
    // Without it there is no way to announce one.
    let mut m = settled(3);
    m.handle(at(2), Event::PollEnded(PollResult::Failed("gone".into(), OutageCause::default())));
    assert!(!renews(&m.handle(at(12), seen(refused(1)))));
}

#[test]
fn unprovable_key_change_is_refused() {
    assert_eq!(machine(None).check_rotation(), Err(RotationRefused::NoState));
    assert_eq!(machine(Some(state(3, 0))).check_rotation(), Err(RotationRefused::NoHub));
    assert_eq!(machine(Some(state(3, 1))).check_rotation(), Err(RotationRefused::HubUnreachable));
}

fn event() -> impl Strategy<Value = Event> {
    let observed = (any::<bool>(), any::<bool>(), any::<bool>(), 0u64..9).prop_map(|(up, applied, healthy, rounds)| {
        seen(NodeObservation { up, applied, healthy, rounds, ..self::up() })
    });
    prop_oneof![
        3 => Just(()).prop_map(|()| Event::Tick),
        3 => observed,
        2 => any::<u16>().prop_map(|seq| Event::EchoReply { from: [10, 8, 0, 1].into(), seq: seq % 50 }),
        1 => (0u64..12).prop_map(offered),
        1 => Just(()).prop_map(|()| Event::PollEnded(PollResult::Nothing)),
        1 => Just(()).prop_map(|()| Event::PollEnded(PollResult::Removed)),
        1 => Just(()).prop_map(|()| Event::PollEnded(PollResult::Failed("x".into(), OutageCause::default()))),
        1 => Just(()).prop_map(|()| Event::PollEnded(PollResult::Refused(Refusal::Malformed(String::new())))),
        1 => Just(()).prop_map(|()| Event::SendEnded(SendResult::Taken)),
        1 => Just(()).prop_map(|()| Event::SendEnded(SendResult::Ready(true))),
        1 => Just(()).prop_map(|()| Event::SendEnded(SendResult::Failed("x".into()))),
        1 => Just(()).prop_map(|()| Event::Rotate(PublicKey([8; 32]))),
        1 => Just(()).prop_map(|()| Event::SwitchRecorded(Ok(()))),
    ]
}

proptest! {
    #[test]
    fn generations_grow_and_unapplied_is_never_kept(
        events in prop::collection::vec((0u64..30, event()), 1..120),
    ) {
        let mut m = machine(Some(state(3, 1)));
        let (mut now, mut applied, mut newest) = (at(0), false, 3);
        let (mut last_published, mut recorded) = (3, None);
        for (wait, event) in events {
            now += Duration::from_secs(wait);
            if let Event::Observed(seen) = &event {
                applied = seen.applied;
            }
            let out = m.handle(now, event);
            for action in &out {
                match action {
                    Action::RecordTrial { generation, .. } => recorded = Some(*generation),
                    Action::ForgetTrial => recorded = None,
                    Action::Adopt(_) => prop_assert!(false, "there is a proved state"),
                    Action::Publish(c) => {
                        last_published = c.document.generation;
                        prop_assert!(last_published == newest || recorded == Some(last_published), "not recorded");
                        applied = false;
                    }
                    Action::Keep(c) => {
                        prop_assert!(applied && c.document.generation == last_published);
                        prop_assert!(c.document.generation > newest);
                        newest = c.document.generation;
                    }
                    _ => {}
                }
            }
            prop_assert!(!out.is_full(), "an action may have been lost");
        }
    }
}

#[test]
fn generation_of_an_attacker_is_taken_back() {
    let mut m = settled(3);
    m.handle(at(10), offered(u64::MAX));
    assert!(m.status().reason.is_some_and(|r| r.contains("too far")), "it does not block the node");
    let out = m.handle(at(11), offered(4));
    assert_eq!(published(&out), Some(4));

    // One signed before there was a bound.
    let mut m = settled(u64::MAX);
    let out = m.handle(at(10), offered(4));
    assert_eq!(published(&out), None);
    let mut back = state(4, 1);
    back.document.supersedes = Some(u64::MAX);
    let out = m.handle(at(11), Event::PollEnded(PollResult::State(Box::new(back.clone()))));
    assert_eq!((published(&out), polls(&out)), (Some(4), Some(4)), "it asks for later ones than this");
    let out = m.handle(at(12), seen(up()));
    let (to, seq) = echoes(&out)[0];
    let out = m.handle(at(12), Event::EchoReply { from: to, seq });
    assert_eq!(kept(&out), Some(4));
    m.handle(at(13), Event::PollEnded(PollResult::State(Box::new(back))));
    assert_eq!(m.in_force().map(|s| s.document.generation), Some(4), "a replay changes nothing");
    let out = m.handle(at(2000), offered(5));
    assert_eq!(published(&out), Some(5));
}

//! Arbitrary sequences of operations against a plain list of applied states.
use super::super::declared::Revision;
use super::super::record::StateChange;
use super::*;
use proptest::prelude::*;
use spoke_model::key::PublicKey;
use spoke_model::time::Wall;
use spoke_net::api_state::{ApiStateLink, ApiStatePeer};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    /// A change the kernel accepts, with or without a confirmation.
    Apply {
        peer: u8,
        keepalive: u16,
        confirm: bool,
    },
    /// A change the kernel refuses: nothing is stored.
    Fail {
        peer: u8,
    },
    /// The process is killed during a change.
    Cut {
        peer: u8,
    },
    /// Another source declares a value.
    Declare {
        value: u8,
    },
    Confirm,
    /// The deadline passes.
    TimeOut,
    Rollback {
        back: u8,
    },
    /// With or without a reboot.
    Restart {
        reboot: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u8..6, 1u16..5, any::<bool>()).prop_map(|(peer, keepalive, confirm)| Op::Apply { peer, keepalive, confirm }),
        1 => (0u8..6).prop_map(|peer| Op::Fail { peer }),
        1 => (0u8..6).prop_map(|peer| Op::Cut { peer }),
        2 => (0u8..3).prop_map(|value| Op::Declare { value }),
        1 => Just(Op::Confirm),
        1 => Just(Op::TimeOut),
        2 => (1u8..4).prop_map(|back| Op::Rollback { back }),
        2 => any::<bool>().prop_map(|reboot| Op::Restart { reboot }),
    ]
}

fn with(state: &ApiState, peer: u8, keepalive: u16) -> ApiState {
    let mut new = state.clone();
    let link: &mut ApiStateLink = new.links.entry("wg0".parse().unwrap()).or_default();
    // A peer that exists is removed, so that every kind of difference occurs.
    if link.peers.remove(&PublicKey([peer; 32])).is_none() {
        let fresh = ApiStatePeer { keepalive, ..ApiStatePeer::default() };
        link.peers.insert(PublicKey([peer; 32]), Arc::new(fresh));
    }
    if link.is_empty() {
        new.links.clear();
    }
    new
}

fn declared(value: u8) -> Declared {
    serde_json::from_value(serde_json::json!({ "interface.wg0.mtu": value.to_string() })).unwrap()
}

/// Where a rollback leads to, by the generations of the API after `oldest`.
fn walk(restored: &BTreeMap<usize, Option<usize>>, oldest: usize) -> Option<usize> {
    let before = |newest: usize| restored.range(oldest + 1..=newest.max(oldest + 1)).rfind(|(g, _)| **g <= newest);
    let mut last = before(usize::MAX)?;
    while let Some(target) = last.1 {
        last = before(*target)?;
    }
    Some(last.0 - 1)
}

/// One more generation of the API: declared values stay.
fn more(mut declared_by_generation: Vec<Declared>, mut by_api: Vec<bool>) -> (Vec<Declared>, Vec<bool>) {
    declared_by_generation.push(declared_by_generation.last().unwrap().clone());
    by_api.push(true);
    (declared_by_generation, by_api)
}

fn record(confirm: Option<Deadline>) -> GenerationRecord {
    GenerationRecord {
        generation: 0,
        wall: Wall(0),
        trusted: true,
        actor: Actor::Node,
        what: String::new(),
        confirm,
        restores: None,
        change: StateChange::default(),
        revision: Revision::default(),
    }
}

/// The store as the task keeps it: lines on disk and the history in memory.
struct Store {
    disk: Vec<HistoryLine>,
    history: History,
    boot: u32,
}

impl Store {
    fn apply(&mut self, to: ApiState, confirm: bool, restores: Option<u64>) {
        let due = confirm.then(|| Boot::from_secs(100));
        let record = record(due.map(|d| deadline(&self.boot.to_string(), d)));
        let record = self.history.next(&to, GenerationRecord { restores, ..record });
        if self.disk.is_empty() {
            self.disk = self.history.lines().collect();
        }
        self.disk.push(HistoryLine::Change(record.clone()));
        self.history.commit(record, Arc::new(to), due);
        assert!(self.history.unfinished().is_empty(), "an applied state has all of it");
        if self.history.is_long_by(1) {
            self.history.shorten();
            self.disk = self.history.lines().collect();
        }
    }

    fn declare(&mut self, to: &Declared) -> bool {
        let before = self.history.declared_at(self.history.current()).unwrap();
        let revision = before.until(to);
        if revision.is_empty() {
            return false;
        }
        let state = self.history.state().clone();
        let record = self.history.next(&state, GenerationRecord { revision, ..record(None) });
        if self.disk.is_empty() {
            self.disk = self.history.lines().collect();
        }
        self.disk.push(HistoryLine::Change(record.clone()));
        self.history.declare(record);
        if self.history.is_long_by(1) {
            self.history.shorten();
            self.disk = self.history.lines().collect();
        }
        true
    }

    fn intend(&mut self, peers: NewPeers) {
        if self.disk.is_empty() {
            self.disk = self.history.lines().collect();
        }
        self.disk.push(HistoryLine::Intent { peers: peers.clone() });
        self.history.intend(peers);
    }

    fn restart(&mut self, reboot: bool) {
        self.boot += u32::from(reboot);
        let text: Vec<String> = self.disk.iter().map(|l| serde_json::to_string(l).unwrap()).collect();
        let lines = text.iter().map(|t| serde_json::from_str(t).unwrap());
        self.history = History::load(lines, 3, &self.boot.to_string(), Boot::from_secs(7)).unwrap();
    }
}

proptest! {
    #[test]
    fn history_matches_a_list_of_applied_states(ops in proptest::collection::vec(op(), 1..40)) {
        let mut store = Store { disk: Vec::new(), history: History::new(3), boot: 0 };
        store.history.begin(declared(0));
        store.disk = store.history.lines().collect();
        // Declared values of each generation, and whether the API made it.
        let (mut declared_by_generation, mut by_api) = (vec![declared(0)], vec![false]);
        // Applied states by generation; and the generation a pending confirmation reverts to.
        let mut good = vec![ApiState::default()];
        let mut outstanding: Option<usize> = None;
        // By generation of the API: the one it restored.
        let mut restored: BTreeMap<usize, Option<usize>> = BTreeMap::new();
        for op in ops {
            let before = store.history.records().count();
            match op {
                Op::Apply { .. } | Op::Rollback { .. } if outstanding.is_some() => {}
                Op::Apply { peer, keepalive, confirm } => {
                    let to = with(good.last().unwrap(), peer, keepalive);
                    outstanding = confirm.then_some(good.len() - 1);
                    store.apply(to.clone(), confirm, None);
                    restored.insert(good.len(), None);
                    good.push(to);
                    (declared_by_generation, by_api) = more(declared_by_generation, by_api);
                }
                // The fact was published and withdrawn; no generation was stored.
                Op::Fail { peer } => {
                    let failed = with(good.last().unwrap(), peer, 9);
                    let peers = StateChange::between(good.last().unwrap(), &failed).new_peers(good.last().unwrap(), |_, _| true);
                    store.intend(peers);
                    store.disk.push(HistoryLine::Abandoned);
                    store.history.abandon();
                }
                // The intent is known after a restart, until the next applied state.
                Op::Cut { peer } => {
                    let cut = with(good.last().unwrap(), peer, 9);
                    let peers = StateChange::between(good.last().unwrap(), &cut).new_peers(good.last().unwrap(), |_, _| true);
                    let known = store.history.unfinished().values().flatten().count();
                    store.intend(peers.clone());
                    store.restart(false);
                    let unfinished = store.history.unfinished();
                    for (link, keys) in &peers {
                        prop_assert!(unfinished.get(link).is_some_and(|u| keys.is_subset(u)), "{:?}", unfinished);
                    }
                    prop_assert!(unfinished.values().flatten().count() <= known + peers.values().flatten().count());
                }
                Op::Confirm => {
                    if outstanding.take().is_some() {
                        let generation = store.history.pending().unwrap().generation;
                        store.disk.push(HistoryLine::Confirmed { generation });
                        store.history.confirm(generation);
                    }
                }
                Op::TimeOut => {
                    if let Some(back) = outstanding.take() {
                        let pending = store.history.pending().cloned().unwrap();
                        prop_assert_eq!(pending.back_to, back as u64);
                        let to = store.history.at(pending.back_to).unwrap();
                        prop_assert_eq!(&to, &good[back]);
                        store.apply(to.clone(), false, Some(back as u64));
                        restored.insert(good.len(), Some(back));
                        good.push(to);
                        (declared_by_generation, by_api) = more(declared_by_generation, by_api);
                    }
                }
                Op::Rollback { back } => {
                    let target = store.history.current().saturating_sub(u64::from(back));
                    if let Some(to) = store.history.at(target) {
                        prop_assert_eq!(&to, &good[usize::try_from(target).unwrap()]);
                        store.apply(to.clone(), false, Some(target));
                        restored.insert(good.len(), Some(usize::try_from(target).unwrap()));
                        good.push(to);
                        (declared_by_generation, by_api) = more(declared_by_generation, by_api);
                    } else {
                        prop_assert!(target < store.history.oldest());
                    }
                }
                Op::Declare { value } => {
                    let to = declared(value);
                    prop_assert_eq!(store.declare(&to), *declared_by_generation.last().unwrap() != to, "only what differs");
                    if *declared_by_generation.last().unwrap() != to {
                        good.push(good.last().unwrap().clone());
                        declared_by_generation.push(to);
                        by_api.push(false);
                    }
                }
                Op::Restart { reboot } => {
                    store.restart(reboot);
                    let due = store.history.pending().map(|p| p.deadline);
                    prop_assert_eq!(due.is_some(), outstanding.is_some());
                    // Due at once: the deadline belongs to another boot.
                    if reboot && due.is_some() {
                        prop_assert_eq!(due, Some(Boot::from_secs(7)));
                    }
                }
            }
            let history = &store.history;
            prop_assert_eq!(history.current() as usize, good.len() - 1);
            prop_assert_eq!(&**history.state(), good.last().unwrap());
            prop_assert_eq!(&history.at(history.current()).unwrap(), good.last().unwrap());
            // The state before the API's last change that is in force, whatever other sources declared in between.
            let previous = walk(&restored, usize::try_from(history.oldest()).unwrap());
            prop_assert_eq!(history.previous(), previous.map(|i| i as u64));
            if let Some(previous) = previous {
                prop_assert_eq!(&history.at(previous as u64).unwrap(), &good[previous]);
            }
            for kept in history.oldest()..=history.current() {
                let i = usize::try_from(kept).unwrap();
                let (set, values) = (history.at(kept).unwrap(), history.declared_at(kept).unwrap());
                prop_assert!(set == good[i] && values == declared_by_generation[i], "generation {}", kept);
            }
            // Generations kept for a pending confirmation are dropped with the next change.
            let count = history.records().count();
            prop_assert!(count <= 3 || outstanding.is_some() || count <= before, "{} after {}", count, before);
            prop_assert_eq!(history.pending().is_some(), outstanding.is_some());
        }
    }

    #[test]
    fn change_leads_from_one_state_to_the_other(a in proptest::collection::vec(0u8..6, 0..8), b in proptest::collection::vec(0u8..6, 0..8)) {
        let build = |peers: &[u8]| peers.iter().fold(ApiState::default(), |s, p| with(&s, *p, u16::from(*p) + 1));
        let (from, to) = (build(&a), build(&b));
        let change = StateChange::between(&from, &to);
        let mut state = from.clone();
        change.apply(&mut state);
        prop_assert_eq!(&state, &to);
        prop_assert_eq!(change == StateChange::default(), from == to);
    }
}

#[test]
fn history_with_a_gap_or_without_base_is_refused() {
    let base = HistoryLine::Base { generation: 4, change: StateChange::default(), declared: None };
    let late = HistoryLine::Change(GenerationRecord { generation: 6, ..record(None) });
    assert_eq!(
        History::load([base, late.clone()], 3, "", Boot::from_secs(0)).unwrap_err(),
        BadHistory::Order { expected: 5, found: 6 }
    );
    assert_eq!(History::load([late], 3, "", Boot::from_secs(0)).unwrap_err(), BadHistory::NoBase);
}

/// Keepalives of the one peer, by generation.
fn rolled_back(records: &[(u16, Actor, Option<u64>)]) -> Option<u64> {
    let mut history = History::new(10);
    for (keepalive, actor, restores) in records {
        let to = with(&ApiState::default(), 1, *keepalive);
        let record = GenerationRecord { actor: actor.clone(), restores: *restores, ..record(None) };
        let record = history.next(&to, record);
        history.commit(record, Arc::new(to), None);
    }
    history.previous()
}

#[test]
fn rollbacks_in_a_row_go_further_back() {
    let user = || Actor::User(0);
    let mut records = vec![(1, user(), None), (2, user(), None), (3, user(), None)];
    assert_eq!(rolled_back(&records), Some(2));
    records.push((2, user(), Some(2)));
    assert_eq!(rolled_back(&records), Some(1), "not to the bad change");
    records.push((1, user(), Some(1)));
    assert_eq!(rolled_back(&records), Some(0));
    records.push((7, user(), None));
    assert_eq!(rolled_back(&records), Some(5), "the state that the new change was made on");
}

#[test]
fn rollback_does_not_lead_to_an_unconfirmed_change() {
    for restores in [Some(1), None] {
        // The third was not confirmed; earlier versions did not record what the reversion restored.
        let records = [(1, Actor::User(0), None), (2, Actor::User(0), None), (1, Actor::TimeOut, restores)];
        assert_eq!(rolled_back(&records), Some(0), "{restores:?}");
    }
}

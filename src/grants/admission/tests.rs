//! Tests of the admission table during changes, reorganisations and outages of the chain.
use super::*;
use crate::jsonrpc::BlockRef;
use alloy_primitives::{Address, B256, U256};
use proptest::prelude::*;
use std::hash::RandomState;

fn config() -> Grants {
    let text = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://x\"]\npoll = \"10s\"\nfresh = \"100s\"\nstale = \"500s\"\ngrace = \"900s\"\n";
    spoke_config::Config::from_text(Some(("t", text)), []).unwrap().grants.unwrap()
}

fn pair(n: u8) -> Pair {
    (format!("n{n}").parse().unwrap(), PublicKey([n; 32]))
}

fn table_of(pairs: &[u8]) -> AdmissionTable<RandomState> {
    let mut b = AdmissionTable::new(&config(), Cache::bounded(RandomState::new(), 64), Boot::default());
    b.set_candidates(&pairs.iter().map(|n| pair(*n)).collect());
    b
}

fn decision(reason: Reason, n: u8) -> Decision {
    Decision { reason, token_id: Some(U256::from(n)), owner: Some(Address::repeat_byte(n)) }
}

fn one(b: &mut AdmissionTable<RandomState>, n: u8) -> (Pair, super::super::cache::Ticket) {
    b.begin(vec![pair(n)]).pop().unwrap()
}

fn grant(b: &mut AdmissionTable<RandomState>, n: u8, block: u64, now: Boot) {
    let t = one(b, n);
    let d = decision(Reason::AccessGranted, n);
    b.settle_final(t, Some(d), Some(d), block, now).unwrap();
    b.confirm(now);
}

fn change(number: u64, subject: Subject) -> GrantEvent {
    GrantEvent { block: BlockRef { number, hash: B256::repeat_byte(1) }, subject }
}

fn at(secs: u64) -> Boot {
    Boot::from_secs(secs)
}

#[test]
fn no_peer_is_admitted_before_the_first_quorum() {
    let mut b = table_of(&[1]);
    assert!(b.admitted(at(0)).0.is_empty());
    assert_eq!(b.admission(&pair(1).0, &pair(1).1, at(0)).code(), VERIFICATION_ERROR);
    assert_eq!(b.waiting(at(0), None), [pair(1)]);
}

#[test]
fn grant_waits_for_finality_and_revocation_does_not() {
    let mut b = table_of(&[1]);
    let (new, old) = (decision(Reason::AccessGranted, 1), decision(Reason::NodeNotFound, 1));
    let t = one(&mut b, 1);
    b.settle_final(t, Some(new), Some(old), 50, at(1));
    b.confirm(at(1));
    assert!(b.admitted(at(1)).0.is_empty());
    assert_eq!(b.admission(&pair(1).0, &pair(1).1, at(1)).code(), "NODE_NOT_FOUND");
    assert!(b.needs_final(at(1)) && b.waiting(at(1), Some(49)).is_empty());
    assert_eq!(b.waiting(at(2), Some(50)), [pair(1)]);
    let t = one(&mut b, 1);
    b.settle_final(t, Some(new), Some(new), 55, at(2));
    assert_eq!(b.admitted(at(2)).0.len(), 1);
    b.note(&[change(56, Subject::Token(U256::from(1)))], u64::MAX, at(3));
    assert_eq!(b.doubted(at(3)), [pair(1)]);
    let t = one(&mut b, 1);
    let change = b.settle_newest(t, Some(decision(Reason::NodeInactive, 1)), 56, at(3)).unwrap();
    assert_eq!(change.settled, Settled::Revoked);
    assert!(b.admitted(at(3)).0.is_empty());
}

#[test]
fn events_cause_verification_of_the_named_pairs() {
    let node = |n: u8| Subject::Node { node: pair(n).0, token_id: U256::from(n) };
    for (subject, doubted) in [
        (node(1), vec![1]),
        (Subject::Token(U256::from(2)), vec![2]),
        (Subject::Owner(Address::repeat_byte(2)), vec![2]),
        (Subject::Owner(Address::repeat_byte(9)), vec![]),
        (Subject::Anyone, vec![1, 2]),
    ] {
        let mut b = table_of(&[1, 2]);
        grant(&mut b, 1, 10, at(1));
        grant(&mut b, 2, 10, at(1));
        b.note(&[change(10, subject.clone())], u64::MAX, at(2));
        assert!(b.doubted(at(2)).is_empty(), "already verified at that block");
        b.note(&[change(11, subject)], u64::MAX, at(2));
        assert_eq!(b.doubted(at(2)), doubted.into_iter().map(pair).collect::<Vec<_>>());
    }
}

#[test]
fn unverifiable_doubt_ends_only_its_own_grant() {
    let mut b = table_of(&[1, 2]);
    grant(&mut b, 1, 10, at(1));
    grant(&mut b, 2, 10, at(1));
    assert_eq!(b.admitted(at(1)).0.len(), 2);
    b.note(&[change(11, Subject::Token(U256::from(1)))], u64::MAX, at(2));
    for s in (2..1700).step_by(10) {
        let t = one(&mut b, 1);
        assert!(b.settle_newest(t, None, 20, at(s)).is_none());
        b.confirm(at(s));
    }
    let left: Vec<_> = b.admitted(at(1700)).0.into_iter().collect();
    assert_eq!(left, [pair(2)]);
    assert_eq!(b.admission(&pair(1).0, &pair(1).1, at(1700)).code(), VERIFICATION_ERROR);
}

#[test]
fn grace_keeps_peers_and_admits_no_new_ones() {
    let mut b = table_of(&[1]);
    grant(&mut b, 1, 10, at(0));
    grant_unpublished(&mut b);
    assert_eq!(b.admitted(at(0)).0.len(), 1);
    // A candidate with a known grant that was no peer when the outage began.
    b.set_candidates(&[pair(1), pair(2)].into());
    let only_first: BTreeSet<Pair> = [pair(1)].into();
    assert_eq!(b.admitted(at(700)).0, only_first);
    assert_eq!(b.admission(&pair(2).0, &pair(2).1, at(700)), Admission::Unverified(Phase::Grace));
    assert!(b.admitted(at(1600)).0.is_empty());
    // A quorum confirms the decisions after the outage.
    b.confirm(at(1700));
    assert_eq!(b.admitted(at(1700)).0.len(), 2);
}

fn grant_unpublished(b: &mut AdmissionTable<RandomState>) {
    b.set_candidates(&[pair(1), pair(2)].into());
    grant(b, 2, 10, at(0));
    b.set_candidates(&[pair(1)].into());
}

#[test]
fn restart_keeps_decisions_and_verifies_them_again() {
    let mut b = table_of(&[1, 2]);
    grant(&mut b, 1, 10, at(1));
    b.admitted(at(1));
    let (kept, reserve) = (b.kept(at(1)), b.ladder.record(at(1), Some("boot")));
    assert_eq!(kept.len(), 1, "a pair without a decision is not stored");
    let mut after = table_of(&[]);
    after.restore(kept, reserve.as_ref(), Some("other boot"), at(3));
    after.set_candidates(&[pair(1), pair(2)].into());
    assert_eq!(after.admitted(at(3)).0, [pair(1)].into());
    assert_eq!((after.doubted(at(3)), after.waiting(at(3), None)), (vec![pair(1)], vec![pair(2)]));
}

#[test]
fn reorganisation_marks_grants_of_replaced_blocks() {
    let mut b = table_of(&[1, 2]);
    grant(&mut b, 1, 10, at(1));
    grant(&mut b, 2, 20, at(1));
    b.reorganised(15, at(2));
    assert_eq!(b.doubted(at(2)), [pair(2)]);
    // A decision for height 18 of the new chain counts, although the replaced one was for 20.
    let t = one(&mut b, 2);
    assert!(b.settle_newest(t, Some(decision(Reason::NodeInactive, 2)), 18, at(2)).is_some());
}

#[test]
fn change_in_a_block_of_one_endpoint_delays_no_pair() {
    let mut b = table_of(&[1, 2]);
    grant(&mut b, 1, 10, at(1));
    // One of three endpoints reports a revocation and a new grant in a block that only it has.
    let subject = |n: u8| Subject::Node { node: pair(n).0, token_id: U256::from(n) };
    b.note(&[change(u64::MAX, subject(1)), change(u64::MAX, subject(2))], 11, at(2));
    assert_eq!(b.doubted(at(2)), [pair(1)]);
    // The decision of a quorum at a common block settles the doubt.
    let t = one(&mut b, 1);
    b.settle_newest(t, Some(decision(Reason::AccessGranted, 1)), 11, at(3));
    assert!(b.doubted(at(3)).is_empty());
    assert_eq!(b.waiting(at(3), Some(12)), [pair(2)]);
}

#[test]
fn later_event_of_the_same_look_holds_back_no_grant() {
    let mut b = table_of(&[1]);
    let (t, denied) = (one(&mut b, 1), Some(decision(Reason::NodeNotFound, 1)));
    b.settle_final(t, denied, denied, 10, at(1));
    // Minted at 20; one endpoint reports an event of no known kind in the newest block as well, as it may in every look.
    let minted = Subject::Node { node: pair(1).0, token_id: U256::from(1) };
    b.note(&[change(20, minted), change(39, Subject::Anyone)], 40, at(2));
    assert!(b.waiting(at(2), Some(19)).is_empty());
    assert_eq!(b.waiting(at(2), Some(20)), [pair(1)]);
}

#[test]
fn denial_voids_a_grant_that_only_the_disk_has() {
    let mut first = table_of(&[1]);
    grant(&mut first, 1, 10, at(1));
    let on_disk = first.kept(at(1));
    let denied = Some(decision(Reason::NodeInactive, 1));
    // After a restart with a later document from the runtime directory, in which the pair is not, or is denied.
    for known in [false, true] {
        let mut b = table_of(&[1]);
        if known {
            let t = one(&mut b, 1);
            b.settle_newest(t, denied, 15, at(1));
        }
        b.note_grants_on_disk(&on_disk);
        assert_eq!(b.revoked_edition, 0);
        let t = one(&mut b, 1);
        b.settle_newest(t, denied, 20, at(2));
        assert!(b.revoked_edition > 0 && b.revoked_edition == b.edition, "known {known}: the disk's grant stays");
    }
}

#[test]
fn grant_for_a_block_before_the_change_admits_no_peer() {
    let mut b = table_of(&[1]);
    b.note(&[change(12, Subject::Anyone)], 12, at(1));
    let (t, d) = (one(&mut b, 1), Some(decision(Reason::AccessGranted, 1)));
    assert!(b.settle_final(t, d, d, 11, at(1)).is_none());
    b.confirm(at(1));
    assert!(b.admitted(at(1)).0.is_empty());
    let t = one(&mut b, 1);
    b.settle_final(t, d, d, 12, at(1));
    assert_eq!(b.admitted(at(1)).0.len(), 1);
}

#[test]
fn denial_before_the_change_is_verified_again() {
    let mut b = table_of(&[1]);
    grant(&mut b, 1, 10, at(1));
    b.note(&[change(20, Subject::Token(U256::from(1)))], 20, at(2));
    let t = one(&mut b, 1);
    b.settle_newest(t, Some(decision(Reason::NodeInactive, 1)), 15, at(2));
    assert!(b.waiting(at(2), Some(19)).is_empty(), "the change was at 20");
    assert_eq!(b.waiting(at(2), Some(20)), [pair(1)]);
}

#[test]
fn many_changes_are_applied_to_many_candidates() {
    let pairs: BTreeSet<Pair> = (0..1000u16).map(|n| (format!("n{n}").parse().unwrap(), PublicKey([1; 32]))).collect();
    let mut b = AdmissionTable::new(&config(), Cache::bounded(RandomState::new(), 2000), Boot::default());
    b.set_candidates(&pairs);
    let d = |n: usize| Decision { token_id: Some(U256::from(n)), ..decision(Reason::AccessGranted, 0) };
    for (n, begun) in b.begin(pairs.iter().cloned().collect()).into_iter().enumerate() {
        b.settle_final(begun, Some(d(n)), Some(d(n)), 1, at(1));
    }
    let changes: Vec<_> = (0..10_000).map(|n| change(2 + n % 7, Subject::Token(U256::from(2 * n)))).collect();
    b.note(&changes, 8, at(2));
    assert_eq!(b.doubted(at(2)).len(), 500, "every second candidate");
}

/// Stores the table; returns the documents on disk.
fn store(b: &mut AdmissionTable<RandomState>, boot: &str, now: Boot) -> (Vec<StoredDecision>, Option<Reserve>) {
    let reserve = b.ladder.record(now, Some(boot));
    b.ladder.reserved(reserve.as_ref().unwrap());
    b.stored(b.edition, now);
    (b.kept(now), reserve)
}

proptest! {
    /// An unverifiable change ends a grant after the ladder's length of powered time, despite restarts, reboots and a
    /// quorum in every poll.
    #[test]
    fn restarts_do_not_extend_a_doubt(runs in proptest::collection::vec((1u64..400, any::<bool>()), 1..30)) {
        let total = config().rungs().total();
        let (mut boot, mut now) = (0, at(50));
        let mut b = table_of(&[1]);
        grant(&mut b, 1, 10, now);
        b.note(&[change(11, Subject::Anyone)], 11, now);
        let mut truly = Duration::ZERO;
        b.admitted(now);
        let mut disk = store(&mut b, "0", now);
        for (secs, reboot) in runs {
            for _ in 0..secs.div_ceil(5) {
                now += Duration::from_secs(5);
                truly += Duration::from_secs(5);
                let t = one(&mut b, 1);
                prop_assert!(b.settle_newest(t, None, 20, now).is_none());
                b.confirm(now);
                let admitted = b.admitted(now).0;
                prop_assert!(admitted.is_empty() || truly < total, "after {truly:?}");
                if b.must_keep_doubts(now) || b.ladder.to_reserve(now, Some(&boot.to_string())).is_some() {
                    disk = store(&mut b, &boot.to_string(), now);
                }
            }
            if reboot {
                boot += 1;
                now = at(3);
                truly += Duration::from_secs(3);
            }
            b = table_of(&[]);
            b.restore(disk.0.clone(), disk.1.as_ref(), Some(&boot.to_string()), now);
            b.set_candidates(&[pair(1)].into());
            b.admitted(now);
            disk = store(&mut b, &boot.to_string(), now);
        }
    }
}

/// An operation on the table.
#[derive(Clone, Debug)]
enum Op {
    Event(u8),
    Newest(u8, Option<bool>),
    Final(u8, Option<bool>, Option<bool>),
    Outage(u16),
    Quorum,
    Reorg(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let maybe = || proptest::option::of(any::<bool>());
    prop_oneof![
        (1u8..4).prop_map(Op::Event),
        (1u8..4, maybe()).prop_map(|(n, d)| Op::Newest(n, d)),
        (1u8..4, maybe(), maybe()).prop_map(|(n, a, b)| Op::Final(n, a, b)),
        (1u16..2000).prop_map(Op::Outage),
        Just(Op::Quorum),
        (0u8..100).prop_map(Op::Reorg),
    ]
}

proptest! {
    /// A pair is admitted only if its last decision grants, an outage neither grants nor revokes, and after the ladder
    /// no pair is admitted.
    #[test]
    fn outage_is_neither_grant_nor_revocation(ops in proptest::collection::vec(op(), 1..60)) {
        let mut b = table_of(&[1, 2, 3]);
        let (mut now, mut block, mut last_quorum) = (at(1), 1u64, None::<Boot>);
        for op in ops {
            block += 1;
            let before = b.admitted(now).0;
            let reason = |grants: bool| if grants { Reason::AccessGranted } else { Reason::NodeInactive };
            let decided = |grants: bool, n| decision(reason(grants), n);
            match op {
                Op::Event(n) => b.note(&[change(block, Subject::Token(U256::from(n)))], u64::MAX, now),
                Op::Newest(n, d) => {
                    let granted = b.cache().peek(&pair(n).0, &pair(n).1).is_some_and(Entry::grants);
                    let t = one(&mut b, n);
                    if granted {
                        b.settle_newest(t, d.map(|g| decided(g, n)), block, now);
                        let revoked = d == Some(false);
                        prop_assert!(!revoked || !b.admitted(now).0.contains(&pair(n)), "a revocation counts at once");
                    } else {
                        b.abandon(vec![t]);
                    }
                }
                Op::Final(n, newest, last) => {
                    let t = one(&mut b, n);
                    b.settle_final(t, newest.map(|g| decided(g, n)), last.map(|g| decided(g, n)), block, now);
                    let admitted = !before.contains(&pair(n)) && b.admitted(now).0.contains(&pair(n));
                    prop_assert!(!admitted || (newest, last) == (Some(true), Some(true)));
                }
                Op::Outage(s) => now += Duration::from_secs(u64::from(s)),
                Op::Quorum => { b.confirm(now); last_quorum = Some(now); }
                Op::Reorg(h) => b.reorganised(u64::from(h), now),
            }
            let admitted = b.admitted(now).0;
            for p in &admitted {
                prop_assert!(b.cache().peek(&p.0, &p.1).is_some_and(Entry::grants));
            }
            let expired = last_quorum.is_none_or(|h| now.since(h) >= config().rungs().total());
            prop_assert!(!expired || admitted.is_empty());
        }
    }
}

#[test]
fn returning_candidate_is_verified_before_admission() {
    let mut table = table_of(&[1, 2]);
    grant(&mut table, 1, 10, at(1));
    let only_the_other: BTreeSet<Pair> = [pair(2)].into();
    let both: BTreeSet<Pair> = [pair(1), pair(2)].into();
    table.set_candidates(&only_the_other);
    table.set_candidates(&both);
    assert!(table.admission(&pair(1).0, &pair(1).1, at(2)).granted(), "no event was missed");
    table.set_candidates(&only_the_other);
    table.note(&[change(11, Subject::Token(U256::from(1)))], u64::MAX, at(3));
    table.set_candidates(&both);
    assert!(!table.admission(&pair(1).0, &pair(1).1, at(4)).granted(), "revoked while it was no candidate");
    assert_eq!(table.waiting(at(4), None), [pair(1), pair(2)]);
}

/// A table of `max` decisions in which these pairs are granted.
fn full(max: usize, pairs: &[u8]) -> AdmissionTable<RandomState> {
    let mut b = AdmissionTable::new(&config(), Cache::bounded(RandomState::new(), max), Boot::default());
    b.set_candidates(&set(pairs));
    pairs.iter().for_each(|n| grant(&mut b, *n, 50, at(1)));
    assert_eq!(b.admitted(at(1)).0, set(pairs));
    b
}

fn set(pairs: &[u8]) -> BTreeSet<Pair> {
    pairs.iter().map(|n| pair(*n)).collect()
}

#[test]
fn new_candidate_evicts_no_candidate_of_a_full_cache() {
    for (left, new) in [(3, 1), (4, 1), (2, 5), (3, 5), (4, 5)] {
        let mut b = full(3, &[2, 3, 4]);
        let stay: Vec<u8> = [2, 3, 4].into_iter().filter(|n| *n != left).collect();
        b.set_candidates(&set(&[&stay[..], &[new]].concat()));
        assert_eq!(b.admitted(at(2)).0, set(&stay), "{new} for {left}");
    }
}

#[test]
fn evicted_grant_is_still_known_to_be_on_disk() {
    let mut b = full(2, &[1, 2]);
    b.stored(b.edition, at(1));
    b.set_candidates(&set(&[2, 3]));
    let evicted = b.edition;
    b.set_candidates(&set(&[1, 2]));
    let t = one(&mut b, 1);
    let denied = decision(Reason::NodeInactive, 1);
    b.settle_final(t, Some(denied), Some(denied), 60, at(2));
    assert_eq!(b.revoked_edition, b.edition, "a write that fails now has to void the disk's grants");
    // The disk took a copy without it.
    b.stored(evicted, at(3));
    b.stored(b.edition, at(3));
    let revoked = b.revoked_edition;
    b.set_candidates(&set(&[2, 4]));
    let t = one(&mut b, 4);
    b.settle_final(t, Some(denied), Some(denied), 60, at(4));
    assert_eq!(b.revoked_edition, revoked, "never granted");
}

#[test]
fn decisions_of_former_candidates_are_not_stored() {
    let mut b = full(8, &[1, 2]);
    b.note(&[], 60, at(2));
    let before = b.edition;
    b.set_candidates(&set(&[2]));
    let kept = b.kept(at(3));
    assert!(kept.iter().all(|k| k.node == pair(2).0) && b.edition > before, "{kept:?}");
    // Left while no process ran, and revoked before it returns.
    let mut stored = full(8, &[1, 2]).kept(at(3));
    let mut next = AdmissionTable::new(&config(), Cache::bounded(RandomState::new(), 8), at(4));
    next.restore(std::mem::take(&mut stored), None, None, at(4));
    next.set_candidates(&set(&[2]));
    assert_eq!(next.kept(at(4)).len(), 2, "the candidates may not be complete yet");
    let before = next.edition;
    next.note(&[], 60, at(5));
    assert!(next.kept(at(5)).iter().all(|k| k.node == pair(2).0) && next.edition > before);
}

#[test]
fn note_of_the_disk_evicts_no_restored_decision() {
    let kept = full(2, &[1, 2]).kept(at(1));
    let mut b = AdmissionTable::new(&config(), Cache::bounded(RandomState::new(), 2), at(2));
    b.restore(kept, None, None, at(2));
    b.note_grants_on_disk(&full(2, &[3, 4]).kept(at(1)));
    b.set_candidates(&set(&[1, 2]));
    b.confirm(at(2));
    assert_eq!(b.admitted(at(2)).0, set(&[1, 2]));
    b.set_candidates(&set(&[1, 3]));
    let t = one(&mut b, 3);
    let denied = decision(Reason::NodeInactive, 3);
    b.settle_final(t, Some(denied), Some(denied), 60, at(3));
    assert_eq!(b.revoked_edition, b.edition);
}

//! The cache of decisions.
use super::*;
use crate::policy::Reason;
use proptest::prelude::*;
use std::hash::RandomState;

fn node(n: u16) -> NodeId {
    format!("n{n}").parse().unwrap()
}

fn key(n: u16) -> PublicKey {
    PublicKey([u8::try_from(n % 251).unwrap(); 32])
}

fn decision(reason: Reason) -> Decision {
    Decision { reason, token_id: None, owner: None }
}

fn verify<S: BuildHasher>(c: &mut Cache<S>, n: u16, reason: Reason, block: u64) -> Settled {
    let t = c.begin(&node(n), &key(n)).unwrap();
    c.settle(&node(n), &key(n), t, decision(reason), block, Boot::default())
}

#[test]
fn entries_are_found_while_the_buckets_grow() {
    let mut c = Cache::new(RandomState::new());
    for n in 0..3_000 {
        verify(&mut c, n, Reason::AccessGranted, 1);
        assert!(c.peek(&node(n / 2), &key(n / 2)).is_some(), "{n}");
    }
    assert!((0..3_000).all(|n| c.get(&node(n), &key(n)).is_some()));
    assert_eq!((c.len(), c.evictions), (3_000, 0));
    assert!(c.iter().map(|(n, _, _)| n.clone()).eq((0..3_000).rev().map(node)), "order of use");
}

#[test]
fn grant_in_progress_never_overrides_a_seen_change() {
    let mut c = Cache::new(RandomState::new());
    assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 10), Settled::Granted);
    let ticket = c.begin(&node(1), &key(1)).unwrap();
    assert!(c.begin(&node(1), &key(1)).is_none(), "one verification per key");
    let doubt = Doubt::new(Boot::default());
    c.change(&node(1), &key(1), |e| {
        e.changed(11);
        e.doubt = Some(doubt);
    });
    let settled = c.settle(&node(1), &key(1), ticket, decision(Reason::AccessGranted), 12, Boot::default());
    assert_eq!(settled, Settled::Outdated);
    assert_eq!(c.peek(&node(1), &key(1)).unwrap().doubt, Some(doubt), "even for a later block");
    // A revocation in progress takes effect: it admits no peer.
    let ticket = c.begin(&node(1), &key(1)).unwrap();
    c.change(&node(1), &key(1), |e| e.changed(13));
    let settled = c.settle(&node(1), &key(1), ticket, decision(Reason::NodeInactive), 12, Boot::default());
    assert_eq!(settled, Settled::Revoked);
    // A grant takes effect if its verification began after the change.
    assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 13), Settled::Granted);
}

#[test]
fn grant_for_a_block_before_the_change_keeps_doubt() {
    let mut c = Cache::new(RandomState::new());
    verify(&mut c, 1, Reason::AccessGranted, 10);
    let doubt = Doubt::new(Boot::from_secs(3));
    c.change(&node(1), &key(1), |e| {
        e.changed(20);
        e.doubt = Some(doubt);
    });
    assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 19), Settled::Unchanged);
    assert_eq!(c.peek(&node(1), &key(1)).unwrap().doubt, Some(doubt));
    assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 20), Settled::Unchanged);
    assert_eq!(c.peek(&node(1), &key(1)).unwrap().doubt, None);
}

#[test]
fn decision_for_an_earlier_block_is_ignored() {
    let mut c = Cache::new(RandomState::new());
    verify(&mut c, 1, Reason::NodeInactive, 10);
    assert_eq!(verify(&mut c, 1, Reason::AccessGranted, 9), Settled::Outdated);
    assert_eq!(c.peek(&node(1), &key(1)).unwrap().decision, Some(decision(Reason::NodeInactive)));
}

#[test]
fn abandoned_verification_changes_nothing() {
    let mut c = Cache::new(RandomState::new());
    verify(&mut c, 1, Reason::AccessGranted, 10);
    let before = c.peek(&node(1), &key(1)).unwrap().clone();
    let t = c.begin(&node(1), &key(1)).unwrap();
    c.abandon(&node(1), &key(1), t);
    assert_eq!(c.peek(&node(1), &key(1)), Some(&before));
}

/// Every key hashes to the same bucket, so that only closing gaps keeps them reachable.
#[derive(Clone, Default)]
struct OneBucket;
struct Zero;
impl std::hash::Hasher for Zero {
    fn finish(&self) -> u64 {
        BUCKETS as u64 - 2
    }
    fn write(&mut self, _: &[u8]) {}
}
impl BuildHasher for OneBucket {
    type Hasher = Zero;
    fn build_hasher(&self) -> Zero {
        Zero
    }
}

fn compare_with_model<S: BuildHasher>(hasher: S, ops: &[(u16, bool)], max: usize) {
    let mut c = Cache::bounded(hasher, max);
    let mut model: Vec<u16> = Vec::new();
    for (n, insert) in ops {
        if *insert {
            let known = model.contains(n);
            if let Some(t) = c.begin(&node(*n), &key(*n)) {
                let _ = c.settle(&node(*n), &key(*n), t, decision(Reason::AccessGranted), 1, Boot::default());
            }
            if !known {
                if model.len() == max {
                    model.pop();
                }
                model.insert(0, *n);
            }
        } else {
            let found = c.get(&node(*n), &key(*n)).is_some();
            assert_eq!(found, model.contains(n));
            if found {
                model.retain(|m| m != n);
                model.insert(0, *n);
            }
        }
        let order: Vec<_> = c.iter().map(|(id, _, _)| id.clone()).collect();
        assert_eq!(order, model.iter().map(|n| node(*n)).collect::<Vec<_>>());
        assert!(model.iter().all(|n| c.peek(&node(*n), &key(*n)).is_some()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn least_recently_used_is_evicted(
        ops in proptest::collection::vec((0u16..20, any::<bool>()), 1..120),
        max in 1usize..9,
    ) {
        compare_with_model(OneBucket, &ops, max);
        compare_with_model(RandomState::new(), &ops, max);
    }
}

#[test]
fn size_is_limited_to_the_capacity() {
    let mut c = Cache::new(RandomState::new());
    let entry = |n: usize| (format!("n{n}").parse().unwrap(), PublicKey([u8::try_from(n % 251).unwrap(); 32]));
    let all: Vec<(NodeId, PublicKey)> = (0..CAPACITY + 20).map(entry).collect();
    for (node, key) in &all {
        c.restore(node, key, Entry::default());
    }
    assert_eq!((c.len(), c.evictions), (CAPACITY, 20));
    let knows = |(node, key): &(NodeId, PublicKey)| c.peek(node, key).is_some();
    assert!(!all[..20].iter().any(knows) && all[20..].iter().all(knows));
}

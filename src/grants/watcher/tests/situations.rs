//! Single situations in the model, in which nothing else changes.
use super::super::model::{Lie, Mode, pair};
use super::{PAIRS, Simulation, machine};
use std::sync::Arc;
use std::time::Duration;

/// Milliseconds in addition to the poll interval: one retry and its exchanges.
const AFTER_OUTAGE: u64 = 4_000;

/// A world in which nothing changes by itself: 3 endpoints, `quorum = 2`, node 0 admitted, polls every `poll` seconds.
fn settled(seed: u64, poll: u64) -> Simulation {
    let mut s = (0..).map(|n| Simulation::new(seed + 1_000 * n, &Lie::ALL)).find(|s| s.modes.len() == 3).unwrap();
    s.next_change = u64::MAX;
    let config = Arc::make_mut(&mut s.config);
    (config.poll, config.stale) = (Duration::from_secs(poll), Duration::from_secs(100_000));
    s.events.clear();
    s.machine = machine(&s.config, s.clock(s.now), 0, &[true; PAIRS], seed);
    s.load();
    s.chain.grant(0);
    s.chain.mine(20);
    s.note();
    run(&mut s, 60_000);
    run(&mut s, 2_000 * poll);
    assert!(admits(&s), "seed {seed}: granted, and not admitted");
    s
}

fn run(s: &mut Simulation, ms: u64) {
    let until = s.now + ms;
    while s.now < until {
        s.step();
    }
}

fn admits(s: &Simulation) -> bool {
    s.machine.admitted().is_some_and(|a| a.0.contains(&pair(0)))
}

#[test]
fn revocation_after_an_outage_waits_for_no_backoff() {
    // Retries of many seconds: some endpoints are due by then, others are in their backoff.
    for (poll, outage) in [(4, 30_000), (60, 600_000)] {
        for seed in 0..40 {
            let mut s = settled(seed, poll);
            // Down one after the other, and one of them for good.
            for i in [vec![0, 1, 2], vec![1, 2], vec![2, 0, 1]][s.random.index(3)].clone() {
                s.modes[i] = Mode::Down;
                let more = outage + s.random.below(outage);
                run(&mut s, more);
            }
            s.chain.revoke(0);
            s.note();
            let dead = s.random.index(3);
            for i in (0..3).filter(|i| *i != dead) {
                s.modes[i] = Mode::Good;
            }
            assert!(admits(&s), "poll {poll} s, seed {seed}: removed by the outage");
            let back = s.now;
            while admits(&s) && s.now < back + 1_000_000 {
                s.step();
            }
            let late = s.now - back;
            let bound = 1_000 * poll + AFTER_OUTAGE;
            assert!(late <= bound, "poll {poll} s, seed {seed}: revoked, and in for {late} ms after the outage");
        }
    }
}

#[test]
fn revocation_in_the_newest_block_counts_at_the_first_start() {
    for seed in 0..40 {
        let mut s = settled(seed, 3_600);
        s.chain.grant(1);
        s.chain.mine(20);
        s.chain.revoke(1);
        s.note();
        (s.memory, s.disk, s.substitute) = Default::default();
        s.events.clear();
        s.machine = machine(&s.config, s.clock(s.now), 1, &[true; PAIRS], seed);
        s.load();
        let until = s.now + 60_000;
        while s.now < until {
            s.step();
            let admits = s.machine.admitted().is_some_and(|a| a.0.contains(&pair(1)));
            assert!(!admits, "seed {seed}: revoked in the newest block, and admitted until the next poll");
        }
        assert!(s.denies(&pair(1)), "seed {seed}: no decision");
    }
}

#[test]
fn stored_height_above_the_head_keeps_no_revoked_peer() {
    for seed in 0..20 {
        let mut s = settled(seed, 4);
        let disk = s.disk.as_mut().expect("stored grants");
        // Written by a release that believed one endpoint about heights.
        disk.grants.iter_mut().for_each(|g| g.block = 1 << 40);
        (s.memory, s.substitute) = Default::default();
        s.chain.revoke(0);
        s.note();
        s.events.clear();
        s.machine = machine(&s.config, s.clock(s.now), 1, &[true; PAIRS], seed);
        s.ghosts[0].was_admitted = true;
        s.load();
        run(&mut s, 30_000);
        assert!(!admits(&s), "seed {seed}: kept by a height that the chain has not");
    }
}

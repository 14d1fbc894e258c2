//! Single situations in the model, in which nothing else changes.
use super::super::Event;
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

fn wake_each_second(s: &mut Simulation, seconds: u64) {
    s.events.extend((0..seconds).map(|n| (s.now + 1_000 * n, Event::Woken)));
}

/// Milliseconds until a revocation is out after a wake-up: two seconds between attempts, the spread of a fleet, the exchanges.
const AFTER_WAKE: u64 = 4_000;

#[test]
fn revocation_after_a_wake_up_waits_for_no_poll() {
    for poll in [60, 3_600] {
        for seed in 0..40 {
            let mut s = settled(seed, poll);
            let pause = s.random.below(500 * poll);
            run(&mut s, pause);
            s.chain.revoke(0);
            s.chain.mine(1);
            s.note();
            // The endpoints of the quorum have the block a little later than the subscription's.
            let late = s.random.one_in(2);
            s.modes.fill(if late { Mode::Behind(2) } else { Mode::Good });
            s.handle(Event::Woken);
            run(&mut s, if late { 1_500 } else { 0 });
            s.modes.fill(Mode::Good);
            let known = s.now;
            while admits(&s) && s.now < known + 1_000 * poll {
                s.step();
            }
            let took = s.now - known;
            assert!(took <= AFTER_WAKE, "poll {poll} s, seed {seed}: revoked, and in for {took} ms");
        }
    }
}

#[test]
fn lying_subscription_costs_a_poll_for_each_interval() {
    for seed in 0..10 {
        let mut s = settled(seed, 120);
        let polls = s.machine.counts.polls;
        wake_each_second(&mut s, 3_600);
        run(&mut s, 3_600_000);
        let more = s.machine.counts.polls - polls;
        assert!((45..=75).contains(&more), "seed {seed}: {more} polls in an hour, 30 of them due");
        assert!(admits(&s), "seed {seed}");
    }
}

#[test]
fn wake_up_hastens_no_retry_without_a_quorum() {
    let polls = |woken: bool| {
        let mut s = settled(1, 120);
        s.modes.fill(Mode::Down);
        run(&mut s, 300_000);
        let before = s.machine.counts.polls;
        if woken {
            wake_each_second(&mut s, 600);
        }
        run(&mut s, 600_000);
        s.machine.counts.polls - before
    };
    assert_eq!(polls(true), polls(false));
}

#[test]
fn unknown_final_tag_hides_no_revocation() {
    for seed in 0..20 {
        let mut s = settled(seed, 4);
        s.modes.fill(Mode::NoFinals);
        // A peer to be admitted, for which the final block is asked.
        s.chain.grant(1);
        s.note();
        run(&mut s, 60_000);
        assert!(admits(&s), "seed {seed}: expelled by an unknown tag");
        s.chain.revoke(0);
        s.chain.mine(1);
        s.note();
        run(&mut s, 12_000);
        assert!(!admits(&s), "seed {seed}: revoked, and in");
    }
}

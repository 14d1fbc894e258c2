//! The machine against the model over a million random ticks: safety invariants and time limits.
use super::model::{Chain, Contract, Lie, MAX_LAG, Mode, PAIRS, Random, START, pair, reply};
use super::{Action, ChainWatcher, Event, Setup};
use crate::cursor::ChainCursor;
use crate::exchange::{RpcFailure, RpcReply};
use crate::ladder::Phase;
use crate::ledger::{OldContent, StoreError, StoredGrants};
use crate::policy::Pair;
use spoke_config::grants::{Finality, Grants};
use spoke_model::time::Boot;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

mod situations;

/// Milliseconds between polls.
const POLL: u64 = 4_000;
/// Milliseconds until the machine has caught up with an undisturbed chain: backoffs of at most 90 s have ended.
const WARM_UP: u64 = 150_000;
/// Milliseconds in addition to the poll interval until a revocation takes effect: exchanges in up to three waves each,
/// and the writes.
const SLACK: u64 = 12_000;
/// Maximum number of blocks until a change is seen.
const SEEN_LATE: u64 = 12;
/// Maximum ticks at one time of the clock; more are a loop.
const MAX_TICKS_AT_ONCE: u32 = 200;

fn config(endpoints: usize, quorum: usize, finality: Finality) -> Arc<Grants> {
    let urls = (0..endpoints).map(|i| format!("\"http://{i}.example.net\"")).collect::<Vec<_>>().join(",");
    let finality = if finality == Finality::Latest { "latest" } else { "safe" };
    let text = format!(
        "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [{urls}]\nquorum = {quorum}\nfinality = \"{finality}\"\npoll = \"4s\"\nstall = \"0s\"\ntimeout = \"2s\"\nfresh = \"60s\"\nstale = \"300s\"\ngrace = \"600s\"\npositive_ttl = \"900s\"\nnegative_ttl = \"200s\"\n"
    );
    Arc::new(spoke_config::Config::from_text(Some(("t", &text)), []).unwrap().grants.unwrap())
}

const fn at(ms: u64) -> Boot {
    Boot::from_duration(Duration::from_millis(ms))
}

/// Whether a condition holds, and when it last held.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    holds: bool,
    last: Option<u64>,
    /// Time of the last change.
    since: u64,
}

impl Held {
    fn note(&mut self, now: u64, holds: bool) {
        if self.holds {
            self.last = Some(now);
        }
        if holds != self.holds {
            self.since = now;
        }
        self.holds = holds;
    }

    /// Whether it held at any time from `since` on.
    fn held_since(&self, since: u64) -> bool {
        self.holds || self.last.is_some_and(|last| last >= since)
    }
}

/// What honest endpoints may have reported about one pair.
#[derive(Clone, Copy, Debug, Default)]
struct Ghost {
    /// Granted at the newest block, or at one that an endpoint slightly behind reports.
    granted: Held,
    /// Granted at the newest final block.
    granted_final: Held,
    denied: Held,
    /// Denied at the newest block of the chain and the one before.
    denied_at_head: Held,
    /// Granted at the newest block of the chain, and unchanged since well before the newest final one.
    granted_for_good: Held,
    candidate: bool,
    candidate_since: u64,
    was_admitted: bool,
    /// In the stored grants at the last start, and not verified since.
    restored: bool,
}

struct Simulation {
    random: Random,
    chain: Chain,
    modes: Vec<Mode>,
    liars: usize,
    lies: &'static [Lie],
    quorum: usize,
    finality: Finality,
    config: Arc<Grants>,
    now: u64,
    machine: ChainWatcher,
    /// Replies and results of writes, with their times.
    events: Vec<(u64, Event)>,
    memory: ChainCursor,
    disk: Option<StoredGrants>,
    /// The decisions in the runtime directory, while the disk is full.
    substitute: Option<StoredGrants>,
    disk_full: bool,
    /// The control plane has none.
    has_runtime: bool,
    boot: u64,
    /// Simulated time of the board's start, in milliseconds.
    booted_at: u64,
    ghosts: [Ghost; PAIRS],
    /// Whether the contract can be read at the newest blocks.
    readable: Held,
    next_change: u64,
    /// Start of the current undisturbed period.
    calm_since: Option<u64>,
    calm_until: u64,
    poll_began: u64,
    polls: u64,
    ticks: u64,
    at_once: u32,
    seed: u64,
}

impl Simulation {
    fn new(seed: u64, lies: &'static [Lie]) -> Self {
        let mut random = Random::new(seed);
        let (endpoints, quorum) = [(1, 1), (3, 2), (3, 2), (4, 3), (5, 3), (5, 2)][random.index(6)];
        let finality = if random.one_in(2) { Finality::Latest } else { Finality::Safe };
        let config = config(endpoints, quorum, finality);
        let mut simulation = Self {
            chain: Chain::new(START),
            modes: vec![Mode::Good; endpoints],
            liars: match lies {
                // A proxy or a wrong DNS record can affect all of them.
                [Lie::OtherChain] => endpoints,
                [_] | [_, _] => quorum - 1,
                _ => random.index(quorum),
            },
            lies,
            quorum,
            finality,
            now: 10_000,
            machine: machine(&config, at(10_000), 0, &[true; PAIRS], seed),
            config,
            events: Vec::new(),
            memory: ChainCursor::default(),
            disk: None,
            substitute: None,
            disk_full: false,
            has_runtime: random.one_in(2),
            boot: 0,
            booted_at: 0,
            ghosts: [Ghost { candidate: true, ..Ghost::default() }; PAIRS],
            readable: Held::default(),
            next_change: 10_000,
            calm_since: None,
            calm_until: 0,
            poll_began: 10_000,
            polls: 0,
            ticks: 0,
            at_once: 0,
            seed,
            random,
        };
        simulation.note();
        simulation.load();
        simulation
    }

    /// The boot clock at a simulated time.
    const fn clock(&self, ms: u64) -> Boot {
        at(ms - self.booted_at)
    }

    fn load(&mut self) {
        let stored = self.substitute.clone().or_else(|| self.disk.clone()).map(Box::new);
        let older = self.substitute.as_ref().and(self.disk.clone()).map(Box::new);
        let event = Event::Loaded { cursor: Box::new(self.memory.clone()), stored, older };
        self.handle(event);
        self.handle(Event::Opened((0..self.modes.len()).map(|i| format!("endpoint {i}")).collect()));
    }

    /// Runs the next event: a tick, a reply, a write, or an external change.
    fn step(&mut self) {
        let deadline = self.machine.deadline().expect("a deadline in every state").at;
        let deadline = u64::try_from(deadline.since_boot().as_nanos().div_ceil(1_000_000)).unwrap() + self.booted_at;
        let next_event = self.events.iter().map(|(at, _)| *at).min().unwrap_or(u64::MAX);
        let then = deadline.min(next_event).min(self.next_change).max(self.now);
        if then > self.now {
            self.at_once = 0;
        }
        self.at_once += 1;
        assert!(
            self.at_once < MAX_TICKS_AT_ONCE,
            "seed {}: a loop at {}: {:?}",
            self.seed,
            self.now,
            self.machine.state
        );
        self.now = then;
        if self.next_change <= then {
            self.change();
        } else if next_event <= then {
            let i = self.events.iter().position(|(at, _)| *at == next_event).unwrap();
            let (_, event) = self.events.swap_remove(i);
            self.handle(event);
        } else {
            self.handle(Event::Tick);
        }
    }

    fn handle(&mut self, event: Event) {
        let actions = self.machine.handle(self.clock(self.now), event);
        self.ticks += 1;
        for action in actions {
            match action {
                Action::Send(request) => {
                    let mode = self.modes[request.endpoint];
                    if let Some((after, reply)) = reply(&self.chain, mode, &request.calls, &mut self.random) {
                        let reply: Result<RpcReply, RpcFailure> = reply;
                        self.events.push((self.now + after, Event::Replied { id: request.id, reply }));
                    }
                }
                Action::StoreCursor(cursor) => {
                    self.memory = *cursor;
                    self.events.push((self.now + 1, Event::CursorStored(Ok(()))));
                }
                Action::StoreDecisions { stored, revokes } => {
                    let after = 1 + self.random.below(50);
                    let result = self.write(*stored, revokes);
                    self.events.push((self.now + after, Event::DecisionsStored(result)));
                }
                Action::Publish | Action::Report(_) => {}
            }
        }
        // Check against the start of the poll that ended with this event.
        self.check();
        if self.machine.counts.polls != self.polls {
            self.polls = self.machine.counts.polls;
            self.poll_began = self.now;
        }
    }

    /// Writes as the driver does.
    fn write(&mut self, stored: StoredGrants, revokes: bool) -> Result<bool, StoreError> {
        if !self.disk_full {
            (self.disk, self.substitute) = (Some(stored), None);
            return Ok(true);
        }
        self.substitute = self.has_runtime.then_some(stored);
        if revokes {
            self.disk = None;
        }
        let old = if revokes { OldContent::Removed } else { OldContent::Stays };
        Err(StoreError { error: "no space left".to_owned(), old })
    }

    fn change(&mut self) {
        let calm = self.calm_since.is_some();
        if calm && self.now >= self.calm_until {
            self.calm_since = None;
        } else if !calm && self.random.one_in(150) {
            self.calm();
        }
        self.next_change = self.now + 200 + self.random.below(3_000);
        if self.random.one_in(8) {
            self.chain.stranger();
        }
        match self.random.below(24) {
            0..=5 => self.chain.change(&mut self.random),
            6..=15 => {
                let blocks = 1 + self.random.below(3);
                self.chain.mine(blocks);
            }
            _ if self.calm_since.is_some() => {}
            16 => self.chain.reorganise(&mut self.random),
            17 | 18 => {
                let i = self.random.index(self.modes.len());
                self.modes[i] = self.mode(i);
            }
            19 if self.random.one_in(10) => {
                let blocks = [300, 3_000, 30_000][self.random.index(3)];
                self.chain.mine(blocks);
            }
            20 => {
                let n = self.random.index(PAIRS);
                self.ghosts[n].candidate ^= true;
                self.ghosts[n].candidate_since = self.now;
                let candidates = Arc::new(self.candidates());
                self.handle(Event::Candidates(candidates));
            }
            21 if self.random.one_in(3) => self.handle(Event::Refresh),
            21 => self.handle(Event::Woken),
            22 if self.random.one_in(3) => self.restart(),
            23 if self.random.one_in(3) => self.disk_full ^= true,
            23 if self.random.one_in(3) => {
                let bad = self.chain.contract(self.chain.head) != Contract::Good;
                let next = if bad { Contract::Good } else { Contract::BAD[self.random.index(3)] };
                self.chain.replace_contract(next);
            }
            _ => {}
        }
        self.note();
    }

    fn mode(&mut self, endpoint: usize) -> Mode {
        if endpoint < self.liars && !self.random.one_in(4) {
            return Mode::Liar(self.lies[self.random.index(self.lies.len())]);
        }
        match self.random.below(16) {
            0 => Mode::Down,
            1 => Mode::Unresponsive,
            2 => Mode::Slow(1_000 + self.random.below(1_500)),
            3 => Mode::RateLimited,
            4 | 5 => Mode::Behind(1 + self.random.below(MAX_LAG)),
            6 | 7 => Mode::Limited(1 + self.random.below(3_000)),
            8 => Mode::Broken,
            9 => Mode::NoFinals,
            _ => Mode::Good,
        }
    }

    /// Begins an undisturbed period: a quorum is honest and answers; the other endpoints behave at random.
    fn calm(&mut self) {
        self.calm_since = Some(self.now);
        self.calm_until = self.now + 400_000;
        for i in 0..self.modes.len() {
            let good = i >= self.modes.len() - self.quorum;
            self.modes[i] = if good { Mode::Good } else { self.mode(i) };
        }
        self.chain.replace_contract(Contract::Good);
        // An endpoint on another chain is not asked for an hour, except after a refresh.
        self.handle(Event::Refresh);
    }

    fn candidates(&self) -> BTreeSet<Pair> {
        (0..PAIRS).filter(|n| self.ghosts[*n].candidate).map(pair).collect()
    }

    /// Restarts the process or the board between two events, unless a write is in progress.
    fn restart(&mut self) {
        if self.machine.writes.cursor || self.machine.writes.decisions.is_some() {
            return;
        }
        if self.random.one_in(3) {
            self.boot += 1;
            self.booted_at = self.now - 1_000 * self.random.below(9);
            self.memory = ChainCursor::default();
            self.substitute = None;
        }
        let denied: Vec<Pair> = (0..PAIRS).map(pair).filter(|p| self.denies(p)).collect();
        self.events.clear();
        let candidates = self.ghosts.map(|g| g.candidate);
        let seed = self.random.below(u64::MAX);
        self.machine = machine(&self.config, self.clock(self.now), self.boot, &candidates, seed);
        self.polls = 0;
        for (n, ghost) in self.ghosts.iter_mut().enumerate() {
            let stored = self.substitute.as_ref().or(self.disk.as_ref());
            let kept = stored.into_iter().flat_map(|d| &d.grants).find(|k| (k.node.clone(), k.key) == pair(n));
            ghost.restored = kept.is_some_and(|k| k.decision.reason.grants());
            // A grant that a full disk did not take is found again on the chain.
            ghost.was_admitted &= ghost.restored && kept.is_some_and(|k| k.peer);
        }
        self.load();
        let admitted = self.machine.admitted().cloned().unwrap_or_default();
        for denied in denied {
            assert!(!admitted.0.contains(&denied), "seed {}: revoked, back after a restart: {denied:?}", self.seed);
        }
    }

    fn denies(&self, (node, key): &Pair) -> bool {
        let decision = self.machine.table.cache().peek(node, key).and_then(|e| e.decision);
        decision.is_some_and(|d| !d.reason.grants())
    }

    fn note(&mut self) {
        let (head, last_final) = (self.chain.head, self.chain.last_final);
        let good = |height| self.chain.contract(height) == Contract::Good;
        self.readable.note(self.now, (head - MAX_LAG - 1..=head).all(good));
        for (n, ghost) in self.ghosts.iter_mut().enumerate() {
            // While the contract cannot be read, the last answers are those of the block before: no token changes.
            let grants = |height| self.chain.token(n, height).grants();
            let denies = |height| !self.chain.token(n, height).grants();
            // The block below the head, and `MAX_LAG` more for an endpoint that is behind.
            let mut recent = head - MAX_LAG - 1..=head;
            ghost.granted.note(self.now, recent.clone().any(grants));
            ghost.denied.note(self.now, recent.any(denies));
            ghost.granted_final.note(self.now, (last_final - MAX_LAG - 1..=last_final).any(grants));
            // A block's hash is read from the next one.
            ghost.denied_at_head.note(self.now, (head - 1..=head).all(|h| denies(h) && good(h)));
            // A grant waits until the block where it was first seen is final; the block below the final one is
            // requested.
            let newest = self.chain.token(n, head);
            let unchanged = (last_final - SEEN_LATE..head).all(|height| self.chain.token(n, height) == newest)
                && (last_final - SEEN_LATE..=head).all(good);
            ghost.granted_for_good.note(self.now, newest.grants() && unchanged);
        }
    }

    fn check(&mut self) {
        let admitted = self.machine.admitted().cloned().unwrap_or_default();
        let phase = self.machine.table.ladder.phase(self.clock(self.now));
        let since = self.poll_began;
        let calm = self.calm_since;
        for n in 0..PAIRS {
            let (now, ghost) = (self.now, self.ghosts[n]);
            let is = admitted.0.contains(&pair(n));
            let entry = || self.machine.table.cache().peek(&pair(n).0, &pair(n).1);
            let context = || {
                format!(
                    "seed {}, {} ms, pair {n}: {ghost:?}, {:?}, final {}, modes {:?}, {:?}",
                    self.seed,
                    self.now,
                    entry(),
                    self.chain.last_final,
                    self.modes,
                    self.machine.unreachable
                )
            };
            // It returned before any event was read without it, or with a refresh: as if it had stayed a candidate.
            let stayed =
                self.machine.table.cache().peek(&pair(n).0, &pair(n).1).is_some_and(|e| {
                    e.left + 1 >= self.machine.table.events_read && ghost.candidate_since + POLL > now
                });
            if is && !ghost.was_admitted && !ghost.restored && !stayed {
                assert!(ghost.granted.held_since(since), "admitted, and not granted: {}", context());
                let is_final = self.finality == Finality::Latest || ghost.granted_final.held_since(since);
                assert!(is_final, "admitted, and not final: {}", context());
            }
            if !is && ghost.was_admitted && ghost.candidate && ghost.candidate_since < since {
                let expired = phase == Phase::Expired || doubt_expired(&self.machine, n, self.clock(now));
                assert!(expired || ghost.denied.held_since(since), "removed, and granted: {}", context());
            }
            if let Some(calm) = calm.filter(|c| now > c + WARM_UP) {
                let late = |since: u64, bound: u64| now > since.max(calm + WARM_UP) + bound;
                if ghost.denied_at_head.holds && late(ghost.denied_at_head.since, POLL + POLL / 10 + SLACK) {
                    assert!(!is, "revoked, and still admitted: {}", context());
                }
                let settled = ghost.granted_for_good;
                let since = settled.since.max(ghost.candidate_since);
                if settled.holds && ghost.candidate && late(since, 2 * POLL + SLACK) {
                    assert!(is, "granted, and not admitted: {}", context());
                }
            }
            let ghost = &mut self.ghosts[n];
            ghost.was_admitted = is;
            ghost.restored &= self.machine.last_quorum.is_none();
        }
        if let Some(calm) = calm.filter(|c| self.now > (*c).max(self.readable.since) + WARM_UP) {
            let bound = Duration::from_millis(POLL + POLL / 10 + SLACK);
            let polled = self.machine.last_quorum.is_some_and(|q| self.clock(self.now).since(q) < bound);
            assert!(
                polled,
                "seed {}: no poll in time at {}, calm since {calm}: {:?}",
                self.seed, self.now, self.machine.unreachable
            );
        }
    }
}

fn doubt_expired(machine: &ChainWatcher, n: usize, now: Boot) -> bool {
    let (node, key) = pair(n);
    let doubt = machine.table.cache().peek(&node, &key).and_then(|e| e.doubt);
    doubt.is_some_and(|d| d.age(now) >= machine.config.rungs().total())
}

fn machine(config: &Arc<Grants>, now: Boot, boot: u64, candidates: &[bool; PAIRS], seed: u64) -> ChainWatcher {
    let candidates = candidates.iter().enumerate().filter(|(_, is)| **is).map(|(n, _)| pair(n)).collect();
    let setup =
        Setup { config: config.clone(), boot_id: Some(boot.to_string()), candidates: Arc::new(candidates), hold: None };
    ChainWatcher::new(now, seed, setup)
}

/// Runs simulations with every second seed for `ticks` ticks in total; `SPOKE_TEST_SEED` sets the first seed.
fn tick(ticks: u64, offset: u64) {
    let first = std::env::var("SPOKE_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (mut done, mut polls, mut seed) = (0, 0, first + offset);
    while done < ticks {
        let mut simulation = Simulation::new(seed, &Lie::ALL);
        while simulation.ticks < 20_000 {
            simulation.step();
        }
        done += simulation.ticks;
        polls += simulation.polls;
        seed += 2;
    }
    assert!(polls > ticks / 1_000, "{polls} polls: the machine was busy");
}

#[test]
fn million_ticks_violate_no_invariant() {
    std::thread::scope(|threads| {
        threads.spawn(|| tick(500_000, 0));
        tick(500_000, 1);
    });
}

fn run_with(lies: &'static [Lie]) {
    for seed in 1..=6 {
        let mut simulation = Simulation::new(seed, lies);
        while simulation.ticks < 15_000 {
            simulation.step();
        }
    }
}

#[test]
fn false_heights_change_no_peer() {
    run_with(&[Lie::RaisesHeights, Lie::RepeatsOldBlocks]);
}

#[test]
fn single_endpoint_cannot_finalise_a_block() {
    run_with(&[Lie::HastensFinality, Lie::CallsHeadFinal]);
}

#[test]
fn foreign_account_cannot_hold_back_admission() {
    run_with(&[Lie::StopsFinality, Lie::InventsEvents]);
    run_with(&[Lie::InventsNodeEvents]);
    run_with(&[Lie::InventsFinals]);
    run_with(&[Lie::Creeps]);
}

#[test]
fn unreadable_contract_removes_no_peer() {
    run_with(&[Lie::NoContract]);
}

#[test]
fn other_chain_behind_the_url_changes_no_peer() {
    run_with(&[Lie::OtherChain]);
}

//! No request is accepted twice, whatever clock, power and process do; and no client is locked out for long.
use super::*;
use proptest::prelude::*;

fn proof(id: u16, timestamp: u64) -> Proof {
    let mut digest = [0; 16];
    digest[..2].copy_from_slice(&id.to_be_bytes());
    // The timestamp is signed, so the digest depends on it.
    digest[2..10].copy_from_slice(&timestamp.to_be_bytes());
    Proof { timestamp, digest }
}

/// A record with its file; a power loss keeps the lines up to the last sync at least.
#[derive(Default)]
struct Disk {
    lines: Vec<Line>,
    synced: usize,
    replays: Replays,
}

impl Disk {
    fn accept(&mut self, proof: Proof, now: Wall) -> ReplayVerdict {
        let verdict = self.replays.accept(proof, now);
        if verdict == ReplayVerdict::New {
            if let Some(line) = self.replays.reserve(proof.timestamp) {
                self.lines.push(line);
                self.synced = self.lines.len();
            }
            self.lines.push(Line::Accepted(proof));
        }
        verdict
    }

    /// As the task does when the file is long.
    fn rewrite(&mut self) {
        self.lines = self.replays.lines().collect();
        self.synced = self.lines.len();
    }

    fn restart(&mut self, kept: Option<usize>) {
        if let Some(kept) = kept {
            self.lines.truncate(self.synced + kept % (self.lines.len() - self.synced + 1));
        }
        let read = self.lines.iter().map(|l| Line::parse(l.to_string().as_bytes()).unwrap());
        self.replays = Replays::load(read.collect::<Vec<_>>(), kept.is_none());
        self.rewrite();
    }
}

proptest! {
    /// The clock jumps both ways, the process restarts, power fails, requests are repeated at any time.
    #[test]
    fn no_request_is_accepted_twice(
        steps in proptest::collection::vec((0u16..6, 0u64..4000, -600i64..600, 0usize..12, any::<bool>()), 1..300),
    ) {
        let mut disk = Disk::default();
        let mut accepted = HashSet::new();
        for (id, wall, skew, event, rewrite) in steps {
            let timestamp = wall.saturating_add_signed(skew) / 50 * 50;
            let p = proof(id, timestamp);
            if wall.abs_diff(timestamp) <= WINDOW && disk.accept(p, Wall(wall)) == ReplayVerdict::New {
                prop_assert!(accepted.insert(p.digest), "accepted twice");
            }
            match event {
                0 => disk.restart(None),
                1..4 => disk.restart(Some(usize::from(id))),
                _ if rewrite => disk.rewrite(),
                _ => {}
            }
        }
    }

    #[test]
    fn arbitrary_lines_do_not_panic(bytes: Vec<u8>, text in "(forgotten|reserved|[0-9]{1,22}) [0-9a-f]{0,34}( [0-9]{0,22})?") {
        let _ = (Line::parse(&bytes), Line::parse(text.as_bytes()));
    }

    #[test]
    fn intervals_stay_few_and_complete(times in proptest::collection::vec((0u64..100_000, 0u64..500), 1..60)) {
        let mut all = Intervals::default();
        for (from, length) in &times {
            all.add(*from, from + length);
            prop_assert!(all.0.len() <= INTERVALS);
            prop_assert!(all.0.windows(2).all(|w| w[0].1 < w[1].0), "ordered and disjoint");
        }
        for (from, length) in times {
            prop_assert!(all.contains(from) && all.contains(from + length));
        }
    }
}

#[test]
fn new_request_is_accepted_with_a_steady_clock() {
    let mut replays = Replays::default();
    for now in 1000..2000 {
        for id in 0..5 {
            assert_eq!(replays.accept(proof(id, now), Wall(now)), ReplayVerdict::New);
            assert_eq!(replays.accept(proof(id, now), Wall(now)), ReplayVerdict::Used, "repeated at once");
        }
    }
    assert!(replays.len() <= 5 * 302, "{}", replays.len());
}

#[test]
fn flood_is_bounded_and_reopens_no_replay() {
    let mut replays = Replays::default();
    let first = proof(0, 1000);
    assert_eq!(replays.accept(first, Wall(1000)), ReplayVerdict::New);
    for id in 0..20_000u16 {
        replays.accept(proof(id, 1001 + u64::from(id / 1000)), Wall(1001));
    }
    assert!(replays.len() <= CAPACITY);
    assert_eq!(replays.accept(first, Wall(1000)), ReplayVerdict::Forgotten, "dropped for space, still refused");
}

#[test]
fn clock_years_ahead_locks_no_client_out() {
    let (now, later) = (1_800_000_000, 2_100_000_000);
    let mut disk = Disk::default();
    assert_eq!(disk.accept(proof(0, now), Wall(now)), ReplayVerdict::New);
    // An hour with a wrong clock on panel and node, then more requests than fit.
    for t in 0..3600 {
        assert_eq!(disk.accept(proof(1, later + t), Wall(later + t)), ReplayVerdict::New);
    }
    for id in 0..10_000 {
        disk.accept(proof(id, later + 3600), Wall(later + 3600));
    }
    assert_eq!(disk.accept(proof(1, now + 1), Wall(now + 1)), ReplayVerdict::New, "the clock is correct again");
    assert_eq!(disk.accept(proof(0, now), Wall(now + 1)), ReplayVerdict::Forgotten);
    disk.restart(Some(0));
    assert_eq!(disk.accept(proof(2, now + 2), Wall(now + 2)), ReplayVerdict::Forgotten, "a minute after a power loss");
    assert_eq!(disk.accept(proof(2, now + 2 + ROOM), Wall(now + 2 + ROOM)), ReplayVerdict::New);
}

#[test]
fn one_line_is_synced_per_minute() {
    let mut replays = Replays::default();
    let synced = (0..600).filter(|s| replays.reserve(1_800_000_000 + s).is_some()).count();
    assert_eq!(synced, 10);
}

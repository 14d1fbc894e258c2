//! The fuzz target on thousands of mutations of recorded responses, without a fuzzer. `scripts/fuzz` runs it under coverage.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "fuzz/body.rs"]
mod body;

use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

/// The seeds of the fuzzer: responses of a real chain.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let seeds: Vec<_> = names.iter().map(|n| std::fs::read(n).unwrap()).collect();
    assert!(seeds.len() >= 10, "seeds are missing");
    seeds
});

/// A mutation.
#[derive(Clone, Debug)]
enum Damage {
    /// Replaces a byte.
    Set(usize, u8),
    /// Truncates.
    Cut(usize),
    /// Duplicates a range.
    Again(usize, usize),
    /// Removes a range.
    Gone(usize, usize),
    /// Overwrites with a token that endpoints send.
    Word(usize, usize),
}

const WORDS: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "NaN",
    "\"0x\"",
    "\"0xffffffffffffffffffffffffffffffff\"",
    "[]",
    "{}",
    "\"\\ud800\"",
    "\u{0}",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "\"id\":1,",
    "\"error\":{\"code\":3},",
    "\"result\":",
];

fn damage() -> impl Strategy<Value = Damage> {
    let at = || 0usize..12_000;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(a, b)| Damage::Set(a, b)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), 1usize..300).prop_map(|(a, n)| Damage::Again(a, n)),
        1 => (at(), 1usize..300).prop_map(|(a, n)| Damage::Gone(a, n)),
        2 => (at(), 0..WORDS.len()).prop_map(|(a, w)| Damage::Word(a, w)),
    ]
}

fn damaged(mut bytes: Vec<u8>, by: &[Damage]) -> Vec<u8> {
    for one in by {
        let len = bytes.len().max(1);
        match *one {
            Damage::Set(at, to) => bytes.get_mut(at % len).map(|b| *b = to).unwrap_or_default(),
            Damage::Cut(at) => bytes.truncate(at % len),
            Damage::Again(at, n) => {
                let at = at % len;
                let part = bytes[at.min(bytes.len())..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at.min(bytes.len())..at.min(bytes.len()), part);
            }
            Damage::Gone(at, n) => drop(bytes.drain((at % len).min(bytes.len())..(at % len + n).min(bytes.len()))),
            Damage::Word(at, w) => {
                let at = (at % len).min(bytes.len());
                let end = (at + WORDS[w].len()).min(bytes.len());
                bytes.splice(at..end, WORDS[w].bytes());
            }
        }
    }
    bytes
}

#[test]
fn seeds_decode() {
    for seed in SEEDS.iter() {
        body::consume(seed);
    }
    let granted = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/reads-granted")).unwrap();
    let reads = spoke_grants::abi::decode_reads(&granted[1..], 1).unwrap();
    let key = spoke_model::key::PublicKey([7; 32]);
    let decided = spoke_grants::policy::decide(&reads[0], "edge-1", &key).unwrap();
    assert!(decided.reason.grants(), "the seed must grant");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn mutated_responses_are_decoded_or_refused(which in 0usize..10, by in proptest::collection::vec(damage(), 1..6)) {
        body::consume(&damaged(SEEDS[which % SEEDS.len()].clone(), &by));
    }

    #[test]
    fn random_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        body::consume(&bytes);
    }
}

//! The fuzz targets on thousands of mutations of their corpus, without a fuzzer. `scripts/fuzz` runs them under coverage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "fuzz/body.rs"]
mod body;
#[path = "fuzz/consume/bundle.rs"]
mod bundle;
#[path = "fuzz/consume/document.rs"]
mod document;
#[path = "fuzz/consume/messages.rs"]
mod messages;
#[path = "fuzz/consume/netlink.rs"]
mod netlink;
#[path = "fuzz/consume/provisioning.rs"]
mod provisioning;

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

/// A target: its name, whether it accepts an input, and words of its format.
type Target = (&'static str, fn(&[u8]) -> bool, &'static [&'static str]);

const TARGETS: [Target; 5] = [
    (
        "document",
        document::consume,
        &["\"10.8.0.0/16\"", "\"node\"", "\"hub\"", "18446744073709551615", "\"preshared_keys\":", "\"supersedes\":"],
    ),
    (
        "messages",
        messages::consume,
        &["\"announce\"", "4294967295", "\"trial\"", "\"2026-01-01T00:00:00Z\"", "\\u0000"],
    ),
    ("bundle", bundle::consume, &["SPOKEUP1", "\0\0\0\0", "18446744073709551615", "\"board\":\"x\"", "SPKSEAL1"]),
    ("provisioning", provisioning::consume, &["[appliance]\n", "[[interface]]\n", "[uplink]\n", "= \"", "\u{feff}"]),
    ("netlink", netlink::consume, &["\u{4}\0", "\0\0", "\u{8}\0\u{8}\0", "\u{10}\0\0\0"]),
];

/// Inputs by file name.
type Corpus = Vec<(String, Vec<u8>)>;

/// The corpus of a target.
fn corpus(target: &str) -> Corpus {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().map(|f| (f.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(f).unwrap())).collect()
}

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

fn damaged(mut bytes: Vec<u8>, by: &[Damage], words: &[&str]) -> Vec<u8> {
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
                let word = words[w % words.len()];
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.bytes());
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
    let facts = spoke_grants::policy::Facts::of(&reads[0]);
    let decided = spoke_grants::policy::decide(&facts, "edge-1", &key).unwrap();
    assert!(decided.reason.grants(), "the seed must grant");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn mutated_responses_are_decoded_or_refused(which in 0usize..10, by in proptest::collection::vec(damage(), 1..6)) {
        body::consume(&damaged(SEEDS[which % SEEDS.len()].clone(), &by, WORDS));
    }

    #[test]
    fn random_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        body::consume(&bytes);
    }

    #[test]
    fn mutated_inputs_are_read_or_refused(which: u16, by in proptest::collection::vec(damage(), 1..6)) {
        static ALL: LazyLock<Vec<Corpus>> =
            LazyLock::new(|| TARGETS.iter().map(|(name, _, _)| corpus(name)).collect());
        for ((_, consume, words), seeds) in TARGETS.iter().zip(ALL.iter()) {
            consume(&damaged(seeds[usize::from(which) % seeds.len()].1.clone(), &by, words));
        }
    }

    #[test]
    fn random_inputs_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, consume, _) in TARGETS {
            consume(&bytes);
        }
    }
}

/// The corpus reaches what is behind the first check: all but the inputs that attack it are accepted.
#[test]
fn corpus_is_accepted() {
    for (target, consume, _) in TARGETS {
        let seeds = corpus(target).into_iter();
        let refused: Vec<_> = seeds.filter(|(_, seed)| !consume(seed)).map(|(name, _)| name).collect();
        let expected: &[&str] = match target {
            "document" => &["unsigned"],
            "bundle" => &["header"],
            "netlink" => &["status"],
            _ => &[],
        };
        assert_eq!(refused, expected, "{target}");
    }
}

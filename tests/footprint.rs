//! Allocation limits: cached decisions, events, a full cache.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "bench/allocations.rs"]
mod allocations;
#[path = "bench/load.rs"]
mod load;

use allocations::{bytes, count};
use load::{candidate, events, full_table};
use spoke_config::Config;
use spoke_config::grants::Grants;
use spoke_grants::cache::CAPACITY;
use spoke_grants::jsonrpc::{Answer, Subject, decode};
use spoke_model::time::Boot;

const MIB: i64 = 1 << 20;

fn settings() -> Grants {
    let text = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://x\"]\n";
    Config::from_text(Some(("defaults", text)), []).expect("a configuration").grants.expect("a section")
}

#[test]
fn cached_decisions_allocate_nothing() {
    let (mut table, pairs) = full_table(&settings(), 1000);
    let (unknown, now) = (candidate(1001), Boot::from_secs(2));
    let (granted, allocations) = count(|| {
        let mut granted = 0;
        for (node, key) in pairs.iter().rev().chain([&unknown]) {
            granted += u32::from(table.admission(node, key, now).granted());
        }
        granted
    });
    assert_eq!((granted, allocations), (1000, 0));
}

#[test]
fn ten_thousand_events_decode_in_8_mib() {
    let (ask, text) = events();
    let (answers, peak, _) = bytes(|| decode(text.as_bytes(), &[ask]).expect("events"));
    let Some(Some(Answer::Events(changes))) = answers.first() else { panic!("no events") };
    assert_eq!(changes.len(), 10_000);
    assert!(matches!(&changes[9999].subject, Subject::Node { node, .. } if node.as_str() == "node-9999"));
    assert!(peak <= 8 * MIB, "{peak} bytes for {} of JSON", text.len());
}

#[test]
fn full_cache_memory_is_bounded() {
    let settings = settings();
    let ((mut table, pairs), _, held) = bytes(|| full_table(&settings, CAPACITY));
    drop(pairs);
    assert_eq!(table.cache().len(), CAPACITY);
    // The cache and the set of candidates: they grow with use.
    assert!(held < 24 * MIB, "{held} bytes");
    let (few, _, held) = bytes(|| full_table(&settings, 5_000).0);
    assert!(held < 2 * MIB, "{held} bytes for 5,000");
    drop(few);
    // Candidates beyond the capacity are counted and use no memory.
    let more = (0..CAPACITY + 10).map(candidate).collect();
    let ((), _, grown) = bytes(|| table.set_candidates(&more));
    assert_eq!((table.cache().len(), table.overflow), (CAPACITY, 10));
    assert!(grown < MIB, "{grown} bytes more");
}

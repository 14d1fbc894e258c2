//! Figures of grants, as a table: decisions, batches against a real local chain, memory, traffic. `scripts/bench-grants`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a figure that cannot be taken ends the run"
)]
#![allow(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "real time is what is measured")]
#![allow(unsafe_code, reason = "an allocator that counts has to be one")]

#[path = "../chain/anvil.rs"]
mod anvil;
#[path = "../chain/node.rs"]
mod node;
#[path = "../chain/proxy.rs"]
mod proxy;

use anvil::{Anvil, Contract};
use node::{Node, config, pair};
use proxy::Proxy;
use spoke::config::grants::Grants;
use spoke::grants::book::Book;
use spoke::grants::cache::{CAPACITY, Cache};
use spoke::grants::chain::Pair;
use spoke::grants::chain::task::Chain;
use spoke::grants::follow::Follow;
use spoke::grants::jsonrpc::{Answer, Ask, decode};
use spoke::grants::policy::{Decision, Reason};
use spoke::sys::clock::SystemClock;
use spoke::sys::rpc::Http;
use spoke::time::Boot;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counts what is allocated, and how much of it at most at once.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

fn note(bytes: i64) {
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        note(i64::try_from(layout.size()).unwrap_or(0));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-i64::try_from(layout.size()).unwrap_or(0));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn row(what: &str, figure: &str, aim: &str) {
    println!("{what:<58} {figure:>30}   {aim}");
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// Extra memory that `work` held at most, in bytes.
fn peak<T>(work: impl FnOnce() -> T) -> (T, i64) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let out = work();
    (out, PEAK.load(Relaxed) - before)
}

fn granted() -> Decision {
    Decision { reason: Reason::AccessGranted, token_id: None, owner: None }
}

fn full_book(settings: &Grants, n: usize) -> (Book<RandomState>, Vec<Pair>) {
    let pairs: Vec<Pair> = (0..n).map(|i| pair(u16::try_from(i).expect("a few"))).collect();
    let now = Boot::from_secs(1);
    let mut book = Book::new(settings, Cache::new(RandomState::new()), now);
    book.set_candidates(&pairs.iter().cloned().collect::<BTreeSet<_>>());
    for begun in book.begin(pairs.clone()) {
        book.settle_final(begun, Some(granted()), Some(granted()), 1, now);
    }
    book.confirm(now);
    (book, pairs)
}

fn cached(settings: &Grants) {
    let (mut book, pairs) = full_book(settings, 10_000);
    let now = Boot::from_secs(2);
    let rounds = 100;
    let mut yes = 0u64;
    let (allocations, started) = (COUNT.load(Relaxed), Instant::now());
    for round in 0..rounds {
        // In another order than they came in.
        for i in 0..pairs.len() {
            let (node, key) = &pairs[(i * 7919 + round) % pairs.len()];
            yes += u64::from(book.admission(node, key, now).granted());
        }
    }
    let n = (rounds * pairs.len()) as u64;
    let took = started.elapsed().as_nanos() as f64 / n as f64;
    assert_eq!(yes, n, "every one is granted");
    row("cached decision, 10,000 cached", &format!("{took:.0} ns"), "< 1,000 ns");
    row("allocations in 1,000,000 of them", &(COUNT.load(Relaxed) - allocations).to_string(), "0");
}

fn memory(settings: &Grants) {
    let ((book, _pairs), _) = peak(|| full_book(settings, 1));
    drop(book);
    let before = HELD.load(Relaxed);
    let (book, pairs) = full_book(settings, CAPACITY);
    drop(pairs);
    let held = HELD.load(Relaxed) - before;
    row(
        &format!("memory with a full cache ({CAPACITY} decisions)"),
        &format!("{:.2} MB", held as f64 / 1e6),
        "bounded",
    );
    drop(book);
}

fn events() {
    let word = |n: u64| format!("0x{n:064x}");
    let mut text = String::from("[{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[");
    let address = "0x37d2106badb01dd5be1926e45d172cb4203c4186";
    for n in 0..10_000u64 {
        let comma = if n == 0 { "" } else { "," };
        let data = format!("{:064x}{:064x}{:064x}{:064x}{:064x}{:0<128}", 64, 128, 6, 44, 0, "00");
        text.push_str(&format!(
            "{comma}{{\"address\":\"{address}\",\"topics\":[\"0x9a71852b5ff3e6dcfff28eaeb177387d7be860dcf63f02bc0c74d796d373a22c\",\"{}\",\"{}\"],\"data\":\"0x{data}\",\"blockHash\":\"{}\",\"blockNumber\":\"{n:#x}\",\"transactionHash\":\"{}\",\"transactionIndex\":\"0x0\",\"logIndex\":\"0x0\",\"removed\":false}}",
            word(n), word(1), word(n), word(n)
        ));
    }
    text.push_str("]}]");
    let asks = [Ask::Logs { contract: address.parse().expect("an address"), from: 0, to: None }];
    let started = Instant::now();
    let (answers, extra) = peak(|| decode(text.as_bytes(), &asks).expect("events"));
    let took = started.elapsed();
    let Some(Some(Answer::Changes(changes))) = answers.first() else { panic!("no events") };
    assert_eq!(changes.len(), 10_000);
    let figure =
        format!("{:.1} MB JSON, {:.2} MiB, {:.0} ms", text.len() as f64 / 1e6, extra as f64 / 1048576.0, ms(took));
    row("10,000 events read as a stream, extra memory", &figure, "≤ 8 MiB");
}

fn chain_figures() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "1"]);
    let contract = Contract::deploy(&chain, false, false);
    let all: Vec<Pair> = (0..10_000).map(pair).collect();
    contract.mint_many(chain.account(1), all[..1000].iter().map(|(n, k)| (n.to_string(), k.to_string())));
    chain.mine(3);
    let settings = config(contract.address, &[chain.url()], "finality = \"latest\"\nbatch = 300\ntimeout = \"30s\"");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let rpc = Http::new(&settings.endpoints, settings.timeout).expect("endpoints");
    let mut asked = Chain::new(rpc, SystemClock, settings, || 0);
    let pin = runtime.block_on(asked.look(&Follow::default(), false)).expect("a chain").pins[0];
    let mut took: Vec<Duration> = (0..300)
        .map(|i| {
            let started = Instant::now();
            runtime.block_on(asked.verify(&[pin], &all[i..=i])).expect("a decision");
            started.elapsed()
        })
        .collect();
    took.sort();
    let figure = format!("p50 {:.2} ms, p99 {:.2} ms", ms(took[150]), ms(took[297]));
    row("uncached decision: all reads of a node in 1 eth_call", &figure, "");
    for (n, aim) in [(1000, "< 100 ms"), (10_000, "")] {
        let mut best = Duration::MAX;
        let (mut calls, mut requests) = (0, 0);
        for _ in 0..5 {
            let before = asked.traffic;
            let started = Instant::now();
            let decided = runtime.block_on(asked.verify(&[pin], &all[..n])).expect("decisions");
            best = best.min(started.elapsed());
            assert!(decided[0].iter().all(Option::is_some));
            calls = asked.traffic.verifications - before.verifications;
            requests = asked.traffic.requests - before.requests;
        }
        row(
            &format!("{n} keys verified ({calls} eth_calls in {requests} requests), best of 5"),
            &format!("{:.0} ms", ms(best)),
            aim,
        );
    }
}

fn revocations() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let mut took = Vec::new();
    let settings = config(contract.address, &[chain.url()], "finality = \"latest\"\npoll = \"1s\"\nfresh = \"10s\"");
    let mut node = Node::start(settings, None, 20);
    for n in 10..18 {
        let token = contract.mint(chain.account(2), &pair(n).0.to_string(), &pair(n).1.to_string());
        node.until_admits(n, true);
        let calls = node.report().counts.verifications;
        contract.revoke(token);
        took.push(node.until_admits(n, false));
        assert!(node.report().counts.verifications - calls <= 1, "one eth_call a changed token");
    }
    took.sort();
    let figure = format!("p50 {:.0} ms, max {:.0} ms", ms(took[4]), ms(took[7]));
    row("block with the revocation → not admitted, poll 1 s", &figure, "< 2,000 ms (kernel: test-kernel)");
}

fn traffic() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    contract.mint(chain.account(1), &pair(0).0.to_string(), &pair(0).1.to_string());
    chain.mine(40);
    let proxy = Proxy::new(chain.port());
    let mut node = Node::start(config(contract.address, &[proxy.url()], ""), None, 5);
    node.until_admits(0, true);
    node.until("all decided", |r| r.rows.iter().all(|r| r.code != "VERIFICATION_ERROR"));
    node.looks(3);
    let (bytes, requests, looks) = (proxy.bytes(), proxy.requests(), node.report().counts.looks);
    // A chain that goes on, with nothing in it that matters.
    for _ in 0..10 {
        chain.mine(5);
        node.looks(2);
    }
    let looks = node.report().counts.looks - looks;
    let (bytes, requests) = (proxy.bytes() - bytes, proxy.requests() - requests);
    let each = bytes as f64 / looks as f64;
    let day = 86_400.0 / Config::poll();
    row(
        "one idle look: HTTP with headers, both ways",
        &format!("{each:.0} B, {:.2} requests", requests as f64 / looks as f64),
        "",
    );
    row(
        &format!("a day idle at default settings ({day:.0} looks): HTTP"),
        &format!("{:.0} kB", each * day / 1000.0),
        "< 1,000 kB",
    );
    // Per look: 4 segments and acknowledgements of 52 B, 2 TLS records of 22 B; a provider's headers instead of the local chain's.
    let wire = each + 4.0 * 52.0 + 2.0 * 22.0;
    row("the same with TCP/IP and TLS records (computed)", &format!("{:.0} kB", wire * day / 1000.0), "< 1,000 kB");
    row(
        "… and 350 B more headers of a big provider (computed)",
        &format!("{:.0} kB", (wire + 350.0) * day / 1000.0),
        "< 1,000 kB",
    );
}

struct Config;

impl Config {
    /// The default poll of a device, in seconds.
    fn poll() -> f64 {
        let text = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 8453\nendpoints = [\"https://x\"]\n";
        let config = spoke::config::Config::from_text(Some(("defaults", text)), []).expect("defaults");
        config.grants.expect("a section").poll.as_secs_f64()
    }
}

fn main() {
    let settings: Arc<Grants> = config(alloy_primitives::Address::repeat_byte(1), &["http://127.0.0.1:1".into()], "");
    println!("{:<58} {:>30}   aim", "figure", "measured");
    cached(&settings);
    memory(&settings);
    events();
    chain_figures();
    revocations();
    traffic();
}

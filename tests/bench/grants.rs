//! Figures of grants: decisions, batches against a local chain, memory, traffic. Run by `scripts/bench-grants`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed measurement ends the run")]
#![allow(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "measures real time")]

#[path = "allocations.rs"]
mod allocations;
#[path = "../chain/anvil.rs"]
mod anvil;
#[path = "load.rs"]
mod load;
#[path = "../chain/node.rs"]
mod node;
#[path = "../chain/proxy.rs"]
mod proxy;

use allocations::{bytes, count};
use anvil::{Anvil, Contract};
use load::full_table;
use node::{Node, config, pair};
use proxy::Proxy;
use spoke_chain::reader::ChainReader;
use spoke_config::grants::Grants;
use spoke_grants::cache::CAPACITY;
use spoke_grants::jsonrpc::{Answer, At, decode};
use spoke_grants::policy::Pair;
use spoke_model::time::Boot;
use spoke_sys::clock::SystemClock;
use spoke_sys::rpc::Http;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn row(what: &str, figure: &str, aim: &str) {
    println!("{what:<58} {figure:>30}   {aim}");
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

fn cached(settings: &Grants) {
    let (mut table, pairs) = full_table(settings, 10_000);
    let now = Boot::from_secs(2);
    let rounds = 100;
    let started = Instant::now();
    let (granted, allocations) = count(|| {
        let mut granted = 0u64;
        for round in 0..rounds {
            // Not in the order of insertion.
            for i in 0..pairs.len() {
                let (node, key) = &pairs[(i * 7919 + round) % pairs.len()];
                granted += u64::from(table.admission(node, key, now).granted());
            }
        }
        granted
    });
    let n = (rounds * pairs.len()) as u64;
    let took = started.elapsed().as_nanos() as f64 / n as f64;
    assert_eq!(granted, n, "not all are granted");
    row("cached decision, 10,000 cached", &format!("{took:.0} ns"), "< 1,000 ns");
    row("allocations in 1,000,000 of them", &allocations.to_string(), "0");
}

fn memory(settings: &Grants) {
    let (table, _, held) = bytes(|| full_table(settings, CAPACITY).0);
    let figure = format!("{:.2} MB", held as f64 / 1e6);
    row(
        &format!("memory with a full cache ({CAPACITY} decisions and candidates)"),
        &figure,
        "< 24 MiB, tests/footprint",
    );
    drop(table);
}

fn events() {
    let (ask, text) = load::events();
    let started = Instant::now();
    let (answers, extra, _) = bytes(|| decode(text.as_bytes(), &[ask]).expect("events"));
    let took = started.elapsed();
    let Some(Some(Answer::Events(changes))) = answers.first() else { panic!("no events") };
    assert_eq!(changes.len(), 10_000);
    let figure =
        format!("{:.1} MB JSON, {:.2} MiB, {:.0} ms", text.len() as f64 / 1e6, extra as f64 / 1048576.0, ms(took));
    row("10,000 events read as a stream, extra memory", &figure, "≤ 8 MiB");
}

fn chain_figures() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "1"]);
    let contract = Contract::deploy(&chain, false, false);
    let all: Vec<Pair> = (0..10_000).map(pair).collect();
    contract.mint_many(all[..1000].iter().map(|(n, k)| (chain.account(1), n.to_string(), k.to_string())));
    chain.mine(3);
    let settings = config(contract.address, &[chain.url()], "finality = \"latest\"\nbatch = 100\ntimeout = \"30s\"");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let rpc = Http::new(&settings).expect("endpoints");
    let mut reader = ChainReader::new(rpc, SystemClock, settings);
    let pin = runtime.block_on(reader.find_block(At::Latest)).expect("a chain").expect("a block");
    let mut took: Vec<Duration> = (0..300)
        .map(|i| {
            let started = Instant::now();
            runtime.block_on(reader.verify(pin, &all[i..=i])).expect("a decision");
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
            let before = reader.traffic();
            let started = Instant::now();
            let decided = runtime.block_on(reader.verify(pin, &all[..n])).expect("decisions").decisions.remove(0);
            best = best.min(started.elapsed());
            assert!(decided.iter().all(Option::is_some));
            calls = reader.traffic().verifications - before.verifications;
            requests = reader.traffic().requests - before.requests;
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
        assert!(node.report().counts.verifications - calls <= 1, "more than one eth_call per changed token");
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
    let (bytes, requests, polls) = (proxy.bytes(), proxy.requests(), node.report().counts.polls);
    // New blocks without events.
    for _ in 0..10 {
        chain.mine(5);
        node.looks(2);
    }
    let polls = node.report().counts.polls - polls;
    let (bytes, requests) = (proxy.bytes() - bytes, proxy.requests() - requests);
    let each = bytes as f64 / polls as f64;
    let day = 86_400.0 / Config::poll();
    row(
        "one idle look: HTTP with headers, both ways",
        &format!("{each:.0} B, {:.2} requests", requests as f64 / polls as f64),
        "",
    );
    row(
        &format!("a day idle at default settings ({day:.0} looks): HTTP"),
        &format!("{:.0} kB", each * day / 1000.0),
        "< 1,000 kB",
    );
    // Per poll: 4 segments and acknowledgements of 52 B, 2 TLS records of 22 B.
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
        let config = spoke_config::Config::from_text(Some(("defaults", text)), []).expect("defaults");
        config.grants.expect("a section").poll.as_secs_f64()
    }
}

/// Memory of this process in kB: resident now, and at most so far.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).expect("a field");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("kB")
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// A grants task in a process of its own, so that its peak is not that of other figures: verifies `n` candidates, follows a
/// revocation, verifies all again. Prints the growth of the process in kB: held, and at most.
fn task_of(url: &str, contract: &str, n: u16) {
    let settings = config(
        contract.parse().expect("an address"),
        &[url.to_owned()],
        "finality = \"latest\"\npoll = \"1s\"\nfresh = \"10s\"\ntimeout = \"30s\"",
    );
    let (before, _) = resident();
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(settings, Some(dir.path()), n);
    node.until("all are admitted", |r| r.admitted == usize::from(n));
    node.looks(3);
    node.refresh();
    node.looks(3);
    let (now, most) = resident();
    println!("{} {}", now - before, most - before);
}

fn tasks() {
    let chain = Anvil::with(&["--slots-in-an-epoch", "1", "--gas-limit", "1000000000"]);
    let contract = Contract::deploy(&chain, false, false);
    let mut minted = 0;
    for n in [100, 5_000, 20_000] {
        let holder = |i: u16| alloy_primitives::Address::left_padding_from(&(u64::from(i) + 1_000).to_be_bytes());
        contract.mint_many((minted..n).map(|i| (holder(i), pair(i).0.to_string(), pair(i).1.to_string())));
        minted = n;
        let itself = std::env::current_exe().expect("a path");
        let (url, address) = (chain.url(), contract.address.to_string());
        let o = std::process::Command::new(itself).args(["--task", &url, &address, &n.to_string()]).output();
        let o = o.expect("a process");
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        let text = String::from_utf8(o.stdout).expect("text");
        let (held, most) = text.trim().split_once(' ').expect("two figures");
        let mb = |kb: &str| kb.parse::<f64>().expect("a figure") / 1e3;
        let figure = format!("{:.1} MB, at most {:.1} MB", mb(held), mb(most));
        row(&format!("memory of the grants task, {n} candidates"), &figure, "< 12 MB at 5,000");
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, task, url, contract, n] = arguments.as_slice()
        && task == "--task"
    {
        return task_of(url, contract, n.parse().expect("a number"));
    }
    let settings: Arc<Grants> = config(alloy_primitives::Address::repeat_byte(1), &["http://127.0.0.1:1".into()], "");
    println!("{:<58} {:>30}   aim", "figure", "measured");
    cached(&settings);
    memory(&settings);
    tasks();
    events();
    chain_figures();
    revocations();
    traffic();
}

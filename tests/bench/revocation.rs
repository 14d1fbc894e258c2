//! Latency from a block with a grant or revocation to the kernel's peers. Run by `scripts/bench-grants`.
#![allow(clippy::expect_used, clippy::panic, reason = "a failed measurement ends the run")]
#![allow(clippy::disallowed_methods, reason = "measures real time")]

#[path = "../chain/anvil.rs"]
mod anvil;
#[path = "../kernel/gate.rs"]
#[expect(dead_code, reason = "shared with the kernel tier, which uses more of it")]
mod gate;
#[path = "../kernel/netns.rs"]
#[expect(dead_code, reason = "shared with the kernel tier, which uses more of it")]
mod netns;

use anvil::{Anvil, Contract};
use gate::{Gate, OPEN_PEER};
use netns::{Namespace, wait_until};
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    for poll in [1, 2, 5] {
        at(poll);
    }
}

/// Figures with a poll every `poll` seconds: half a poll is waited for at the median, and at most a whole one.
fn at(poll: u64) {
    let hub = Namespace::new(&format!("gate{poll}"));
    let chain = hub.enter(|| Anvil::with(&["--slots-in-an-epoch", "1"]));
    let contract = hub.enter(|| Contract::deploy(&chain, false, false));
    let keys: Vec<String> = (0..ROUNDS)
        .map(|n| spoke_model::key::PublicKey([0x40 + u8::try_from(n).expect("a few"); 32]).to_string())
        .collect();
    let nodes: Vec<(String, String)> =
        (0..ROUNDS).map(|n| (format!("node-{n}"), format!("10.9.0.{}/32", n + 2))).collect();
    let peers: Vec<(&str, &str, &str)> =
        nodes.iter().zip(&keys).map(|((node, net), key)| (node.as_str(), key.as_str(), net.as_str())).collect();
    let dir = tempfile::tempdir().expect("a directory");
    let gate = Gate::polling(poll, &hub, dir.path().to_owned(), &contract, &peers);
    wait_until(LIMIT, "the gate", || gate.has("wg1", OPEN_PEER));
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for (node, key, _) in &peers {
        let token = hub.enter(|| contract.mint(chain.account(1), node, key));
        let started = Instant::now();
        wait_until(LIMIT, "the granted peer", || gate.has("wg0", key));
        added.push(started.elapsed());
        // At any time between two polls, as outside.
        let pause = Duration::from_millis(1000 * poll * removed.len() as u64 / ROUNDS as u64);
        std::thread::sleep(pause);
        hub.enter(|| contract.revoke(token));
        let started = Instant::now();
        wait_until(LIMIT, "removal of the revoked peer", || !gate.has("wg0", key));
        removed.push(started.elapsed());
    }
    let aim = format!("median < {} ms", 1000 * poll + 50);
    for (what, mut took) in [("grant → peer in the kernel", added), ("revocation → peer gone from the kernel", removed)]
    {
        took.sort();
        let figure = format!("p50 {} ms, max {} ms", took[ROUNDS / 2].as_millis(), took[ROUNDS - 1].as_millis());
        println!("{:<58} {figure:>30}   {aim}", format!("block with the {what}, poll {poll} s"));
    }
}

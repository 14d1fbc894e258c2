//! Cost of WireGuard configuration by our netlink code relative to wireguard-tools. Run by `scripts/bench-kernel`.
#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "measures real time and fails by panicking")]

use ipnet::IpNet;
use spoke_config::interface::DriftPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_net::advance::advance;
use spoke_net::plan::plan;
use spoke_net::state::{Desired, Link, ListenPort, Memory, Observed, Peer};
use spoke_sys::kernel::{Kernel, Netlink};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;

/// Configured by our code.
const OURS: &str = "spoke0";
/// Configured by `wg`.
const THEIRS: &str = "wg0";

fn main() {
    assert!(
        std::env::var_os("SPOKE_TEST_KERNEL_KIND").is_some(),
        "not in a test kernel: run scripts/bench-kernel, which finds or builds one"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!(
            "median of {ROUNDS}, in ms; wireguard-tools' times hold the start of a process ({:.1})",
            ms(idle_process())
        );
        println!("| what | spoke | wireguard-tools | ratio | aim |");
        println!("|---|---|---|---|---|");
        for count in [1_000, 10_000] {
            compare(count).await;
        }
    });
    println!(
        "peak memory of this process: {} KiB (two copies of the wanted state and of the last look included)",
        peak()
    );
}

async fn compare(count: u32) {
    let conf = |changed: bool| write_conf(count, changed);
    let (plain, changed) = (conf(false), conf(true));
    let (want, other) = (wanted(count, false), wanted(count, true));
    let mut kernel = Netlink::open().expect("netlink");
    let names: BTreeSet<IfName> = [name(OURS)].into();

    let mut theirs = Vec::new();
    let mut ours = Vec::new();
    for _ in 0..ROUNDS {
        fresh(THEIRS);
        theirs.push(time(|| run("wg", &["setconf", THEIRS, &plain])));
        fresh(OURS);
        let start = Instant::now();
        pass(&mut kernel, &names, &want, &mut Memory::default()).await;
        ours.push(start.elapsed());
    }
    row(&format!("{count} peers from nothing, whole pass | `wg setconf`"), &ours, &theirs, "≤ 1.2");

    // Both interfaces have the same peers from here.
    let mut memory = Memory::default();
    pass(&mut kernel, &names, &want, &mut memory).await;
    let (mut theirs, mut whole, mut against_known, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut noop_ours = Vec::new();
    let mut noop_theirs = Vec::new();
    let mut observations = Vec::new();
    let mut show = Vec::new();
    for _ in 0..ROUNDS {
        theirs.push(time(|| run("wg", &["syncconf", THEIRS, &changed])));
        noop_theirs.push(time(|| run("wg", &["syncconf", THEIRS, &changed])));
        show.push(time(|| run("wg", &["show", THEIRS, "dump"])));
        run("wg", &["syncconf", THEIRS, &plain]);

        // As the reconciler does: against the last observation, advanced by the acknowledged steps.
        let mut known = observe(&mut kernel, &names).await;
        let start = Instant::now();
        let steps = plan(&other, &known, &memory).steps;
        let planned = Instant::now();
        let applied = kernel.apply(&steps).await;
        alone.push(planned.elapsed());
        assert_eq!((steps.len(), applied.done.len()), (1, 1), "one peer changed");
        advance(&mut known, &steps[0]);
        memory.record(&steps[0], &other);
        assert!(plan(&other, &known, &memory).is_clean());
        against_known.push(start.elapsed());

        // With a new observation.
        let start = Instant::now();
        pass(&mut kernel, &names, &want, &mut memory).await;
        whole.push(start.elapsed());

        let start = Instant::now();
        let seen = observe(&mut kernel, &names).await;
        observations.push(start.elapsed());
        assert!(plan(&want, &seen, &memory).is_clean());
        noop_ours.push(start.elapsed());
    }
    row(
        &format!("one of {count} changed, plan against the last look | `wg syncconf`"),
        &against_known,
        &theirs,
        "≤ 0.05",
    );
    row(&format!("one of {count} changed, apply alone | `wg syncconf`"), &alone, &theirs, "≤ 0.05");
    row(&format!("one of {count} changed, with a new look | `wg syncconf`"), &whole, &theirs, "≤ 0.05");
    row(&format!("nothing of {count} changed, look and plan | `wg syncconf`"), &noop_ours, &noop_theirs, "");
    row(&format!("look at {count} | `wg show dump`"), &observations, &show, "");
    delete(OURS);
    delete(THEIRS);
}

/// Observes, plans, applies and records.
async fn pass(kernel: &mut Netlink, names: &BTreeSet<IfName>, want: &Desired, memory: &mut Memory) {
    let seen = observe(kernel, names).await;
    let steps = plan(want, &seen, memory).steps;
    let applied = kernel.apply(&steps).await;
    assert!(applied.failed.is_empty(), "{:?}", applied.failed);
    for step in &steps {
        memory.record(step, want);
    }
}

async fn observe(kernel: &mut Netlink, names: &BTreeSet<IfName>) -> Observed {
    kernel.observe(names).await.expect("an observation")
}

fn peer(i: u32) -> PublicKey {
    let mut key = [0xa5; 32];
    key[..4].copy_from_slice(&i.to_be_bytes());
    PublicKey(key)
}

fn net(i: u32) -> IpNet {
    IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i)))
}

fn wanted(count: u32, changed: bool) -> Desired {
    let one = |i: u32| {
        let moved = changed && i == count / 2;
        (peer(i), Peer { allowed_ips: [net(if moved { count } else { i })].into(), ..Peer::default() })
    };
    let link = Link {
        private_key: SecretKey::clamped([7; 32]),
        listen_port: ListenPort::Random { epoch: 0 },
        fwmark: 0,
        mtu: 1420,
        defaults: (false, false),
        addresses: BTreeSet::new(),
        peers: (0..count).map(one).collect(),
        routes: BTreeSet::new(),
        up: false,
        policy: DriftPolicy::Enforce,
        remove_unknown: Some(true),
        dns: Vec::new(),
        rebuild: 0,
        port_fallback: false,
    };
    Desired { generation: 1, links: BTreeMap::from([(name(OURS), link)]), ..Desired::default() }
}

fn write_conf(count: u32, changed: bool) -> String {
    let mut text = format!("[Interface]\nPrivateKey = {}\n", *SecretKey::clamped([8; 32]).reveal_base64());
    for (key, peer) in &wanted(count, changed).links[&name(OURS)].peers {
        let nets: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let _ = write!(text, "[Peer]\nPublicKey = {key}\nAllowedIPs = {}\n", nets.join(","));
    }
    let path = std::env::temp_dir().join(format!("{count}-{changed}.conf"));
    std::fs::write(&path, text).expect("a file");
    path.to_string_lossy().into_owned()
}

fn name(text: &str) -> IfName {
    text.parse().expect("a name")
}

fn fresh(link: &str) {
    delete(link);
    run("ip", &["link", "add", link, "type", "wireguard"]);
}

fn delete(link: &str) {
    // It may not exist.
    let _ = Command::new("ip").args(["link", "del", link]).output();
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("a program that can be started");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Duration of starting a process.
fn idle_process() -> Duration {
    median(&(0..ROUNDS).map(|_| time(|| run("wg", &["--version"]))).collect::<Vec<_>>())
}

fn median(all: &[Duration]) -> Duration {
    let mut all = all.to_vec();
    all.sort_unstable();
    all[all.len() / 2]
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// `what` is our name and the tool's, separated by a bar.
fn row(what: &str, ours: &[Duration], theirs: &[Duration], aim: &str) {
    let (ours, theirs) = (ms(median(ours)), ms(median(theirs)));
    let (what, tool) = what.split_once(" | ").unwrap_or((what, ""));
    println!("| {what} | {ours:.1} | {tool} {theirs:.1} | {:.3} | {aim} |", ours / theirs);
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

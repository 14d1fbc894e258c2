//! Access by NFT with a real chain, the real program and a real kernel.

use crate::anvil::{Anvil, Contract};
use crate::gate::{Gate, OPEN_PEER};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn revocation_removes_the_peer_and_an_outage_does_not() {
    let (hub, client) = (Namespace::new("gate"), Namespace::new("client"));
    wire((&hub, "wan", "192.0.2.1/24"), (&client, "wan", "192.0.2.2/24"));
    let peer = PlainWireGuard::new(&client, "wg0", 51821, "10.9.0.2/24");
    // The chain runs in the hub's namespace, on its loopback.
    let chain = hub.enter(|| Anvil::with(&["--slots-in-an-epoch", "1"]));
    let contract = hub.enter(|| Contract::deploy(&chain, false, false));
    let dir = tempfile::tempdir().expect("a directory");
    let peers = [("client", peer.public_key.as_str(), "10.9.0.2/32")];
    let start = || Gate::start(&hub, dir.path().to_owned(), &contract, &peers);
    let gate = start();
    let admitted = || gate.has("wg0", &peer.public_key);
    wait_until(LIMIT, "the open interface and its peer", || gate.has("wg1", OPEN_PEER));
    assert!(!admitted(), "no peer without a grant\n{}", gate.log());

    let token = hub.enter(|| contract.mint(chain.account(1), "client", &peer.public_key));
    wait_until(LIMIT, "the granted peer", admitted);
    let key = hub.run("wg show wg0 public-key").trim().to_owned();
    peer.peer(&key, "allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820 persistent-keepalive 5");
    client.run("ping -c 3 -i 0.2 -W 5 10.9.0.1");

    // A new process knows the grant from the disk alone.
    wait_until(LIMIT, "the grant to be stored", || gate.spoke("plan") == "nothing to do\n");

    // Outage: the peer stays, traffic flows, health has the reason.
    chain.halt();
    wait_until(LIMIT, "health to report contract_away", || gate.get("/health").contains("contract_away"));
    let health = gate.get("/health");
    assert!(health.contains("\"degraded\"") && health.contains("VERIFICATION_ERROR"), "{health}");
    client.run("ping -c 2 -i 0.2 -W 5 10.9.0.1");
    assert!(admitted());
    chain.go_on();
    wait_until(LIMIT, "the condition to clear", || !gate.get("/health").contains("contract_away"));

    let shown = gate.spoke("grants show client");
    assert!(shown.contains("admitted yes") && shown.contains("token    1"), "{shown}");
    hub.enter(|| contract.revoke(token));
    gate.spoke("grants refresh");
    wait_until(LIMIT, "the revoked peer to go", || !admitted());
    let listed = gate.spoke("grants list");
    assert!(listed.contains("NODE_INACTIVE") && listed.contains(&chain.url()), "{listed}\n{}", gate.log());
    assert!(gate.has("wg1", OPEN_PEER), "the open interface is unchanged");
    let stats = gate.get("/stats");
    assert!(stats.contains("\"accessControl\"") && stats.contains("\"hitRate\""), "{stats}");
    let metrics = gate.get("/metrics");
    for line in [
        "spoke_grants_decisions_total{reason=\"NODE_INACTIVE\"} 1",
        "spoke_grants_revocations_total 1",
        "spoke_grants_verification_errors_total 0",
        &format!("spoke_grants_endpoint_up{{endpoint=\"{}\"}} 1", chain.url()),
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let log = gate.log();
    let short = format!("{}…", &peer.public_key[..8]);
    for line in ["access granted", "access revoked", "reason=\"NODE_INACTIVE\"", &short] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(gate.file("run/grants-height.json").exists() && gate.file("state/grants.json").exists());

    // A restart during an outage: the revoked peer stays out.
    drop(gate);
    chain.halt();
    let gate = start();
    wait_until(LIMIT, "health to report contract_away again", || gate.get("/health").contains("contract_away"));
    assert!(gate.has("wg1", OPEN_PEER) && !gate.has("wg0", &peer.public_key), "{}", gate.log());
    chain.go_on();
}

fn mount(arguments: &[&str], at: &Path) {
    assert!(Command::new("mount").args(arguments).arg(at).status().expect("mount").success());
}

fn full_disk(state: &Path) {
    let dd = Command::new("dd")
        .args(["if=/dev/zero", "bs=1k"])
        .args(["oflag=append", "conv=notrunc"])
        .arg(format!("of={}/other", state.display()))
        .output()
        .expect("dd");
    assert!(!dd.status.success(), "the disk is full");
}

/// Revocations that the disk does not take: a restart without the chain must not bring the peers back.
#[test]
fn full_disk_brings_no_revoked_peer_back() {
    let hub = Namespace::new("gate");
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).expect("a directory");
    mount(&["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"], &state);
    let chain = hub.enter(|| Anvil::with(&["--slots-in-an-epoch", "1"]));
    let contract = hub.enter(|| Contract::deploy(&chain, false, false));
    let [revoked, later, stays] = ["c", "d", "e"].map(|c| OPEN_PEER.replace('b', c));
    let peers = [
        ("revoked", revoked.as_str(), "10.9.0.2/32"),
        ("later", later.as_str(), "10.9.0.3/32"),
        ("stays", stays.as_str(), "10.9.0.4/32"),
    ];
    let start = || Gate::start(&hub, dir.path().to_owned(), &contract, &peers);
    let gate = start();
    let mint = |n, node, key: &str| hub.enter(|| contract.mint(chain.account(n), node, key));
    let (first, second) = (mint(1, "revoked", &revoked), mint(2, "later", &later));
    mint(3, "stays", &stays);
    wait_until(LIMIT, "the peers", || [&revoked, &later, &stays].into_iter().all(|key| gate.has("wg0", key)));
    wait_until(LIMIT, "the grants to be stored", || gate.spoke("plan") == "nothing to do\n");
    full_disk(&state);
    hub.enter(|| contract.revoke(first));
    wait_until(LIMIT, "the revoked peer to go", || !gate.has("wg0", &revoked));
    // The previous copy made room for it, and holds no grant either.
    let on_disk = |name: &str| std::fs::read_to_string(state.join(name)).unwrap_or_default();
    wait_until(LIMIT, "the revocation to be stored", || on_disk("grants.json").contains("NODE_INACTIVE"));
    assert_eq!(on_disk("grants.json.prev"), "");
    // No room for the next one.
    full_disk(&state);
    hub.enter(|| contract.revoke(second));
    wait_until(LIMIT, "the second revoked peer to go", || !gate.has("wg0", &later));
    wait_until(LIMIT, "the write to fail", || gate.log().contains("revocation not stored, stored grants removed"));
    drop(gate);
    chain.halt();
    let gate = start();
    wait_until(LIMIT, "the grant that stays", || gate.has("wg0", &stays) && gate.has("wg1", OPEN_PEER));
    wait_until(LIMIT, "health to report contract_away", || gate.get("/health").contains("contract_away"));
    assert!(!gate.has("wg0", &revoked) && !gate.has("wg0", &later), "back after a kill\n{}", gate.log());
    drop(gate);
    // A reboot clears the runtime directory.
    std::fs::remove_dir_all(dir.path().join("run")).expect("removed");
    let gate = start();
    wait_until(LIMIT, "health to report contract_away", || gate.get("/health").contains("contract_away"));
    assert!(!gate.has("wg0", &revoked) && !gate.has("wg0", &later), "back after a reboot\n{}", gate.log());
    chain.go_on();
    wait_until(LIMIT, "the grant that stays", || gate.has("wg0", &stays));
    assert!(!gate.has("wg0", &revoked) && !gate.has("wg0", &later), "{}", gate.log());
    drop(gate);
    assert!(Command::new("umount").arg(&state).status().expect("umount").success());
}

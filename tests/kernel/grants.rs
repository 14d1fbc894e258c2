//! Access by NFT with nothing simulated: a real chain, the real program, the real kernel, in one boot.

use crate::anvil::{Anvil, Contract};
use crate::gate::{Gate, OPEN_PEER};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn revoked_on_chain_is_gone_from_the_kernel_and_a_silent_chain_takes_nobody_away() {
    let (hub, client) = (Namespace::new("gate"), Namespace::new("client"));
    wire((&hub, "wan", "192.0.2.1/24"), (&client, "wan", "192.0.2.2/24"));
    let peer = PlainWireGuard::new(&client, "wg0", 51821, "10.9.0.2/24");
    // The chain runs beside the hub and answers on its loopback.
    let chain = hub.enter(|| Anvil::with(&["--slots-in-an-epoch", "1"]));
    let contract = hub.enter(|| Contract::deploy(&chain, false, false));
    let dir = tempfile::tempdir().expect("a directory");
    let peers = [("client", peer.public_key.as_str(), "10.9.0.2/32")];
    let start = || Gate::start(&hub, dir.path().to_owned(), &contract, &peers);
    let gate = start();
    let admitted = || gate.has("wg0", &peer.public_key);
    wait_until(LIMIT, "the open interface and its peer", || gate.has("wg1", OPEN_PEER));
    assert!(!admitted(), "nobody is a peer without a grant\n{}", gate.log());

    let token = hub.enter(|| contract.mint(chain.account(1), "client", &peer.public_key));
    wait_until(LIMIT, "the granted peer", admitted);
    let key = hub.run("wg show wg0 public-key").trim().to_owned();
    peer.peer(&key, "allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820 persistent-keepalive 5");
    client.run("ping -c 3 -i 0.2 -W 5 10.9.0.1");

    // What a run started now would do knows of the grant, from the disk alone.
    wait_until(LIMIT, "the grant to be on disk", || gate.spoke("plan") == "nothing to do\n");

    // Silent: the peer stays, traffic flows, health says why.
    chain.halt();
    wait_until(LIMIT, "health to speak of the chain", || gate.get("/health").contains("contract_away"));
    let said = gate.get("/health");
    assert!(said.contains("\"degraded\"") && said.contains("VERIFICATION_ERROR"), "{said}");
    client.run("ping -c 2 -i 0.2 -W 5 10.9.0.1");
    assert!(admitted());
    chain.go_on();
    wait_until(LIMIT, "health to be content again", || !gate.get("/health").contains("contract_away"));

    let shown = gate.spoke("grants show client");
    assert!(shown.contains("admitted yes") && shown.contains("token    1"), "{shown}");
    hub.enter(|| contract.revoke(token));
    gate.spoke("grants refresh");
    wait_until(LIMIT, "the revoked peer to go", || !admitted());
    let listed = gate.spoke("grants list");
    assert!(listed.contains("NODE_INACTIVE") && listed.contains(&chain.url()), "{listed}\n{}", gate.log());
    assert!(gate.has("wg1", OPEN_PEER), "open interfaces do not care");
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
    for line in ["access granted", "access taken away", "reason=\"NODE_INACTIVE\"", &short] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(gate.file("run/grants-height.json").exists() && gate.file("state/grants.json").exists());

    // Killed and started again while the chain is silent: who was revoked stays out, although nobody can be asked.
    drop(gate);
    chain.halt();
    let gate = start();
    wait_until(LIMIT, "health to speak of the chain again", || gate.get("/health").contains("contract_away"));
    assert!(gate.has("wg1", OPEN_PEER) && !gate.has("wg0", &peer.public_key), "{}", gate.log());
    chain.go_on();
}

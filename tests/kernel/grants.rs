//! Access by NFT with a real chain, the real program and a real kernel.

use crate::anvil::{Anvil, Contract};
use crate::gate::{Gate, OPEN_PEER};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
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

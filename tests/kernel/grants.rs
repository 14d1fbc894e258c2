//! Access by NFT with nothing simulated: a real chain, the real program, the real kernel, in one boot.

use crate::anvil::{Anvil, CHAIN_ID, Contract};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// `spoke run` in a namespace, ended when dropped.
struct Spoke(Child);

impl Drop for Spoke {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const LIMIT: Duration = Duration::from_secs(30);

#[test]
#[allow(clippy::disallowed_methods, reason = "the time that a revocation takes is real")]
fn revoked_on_chain_is_gone_from_the_kernel_and_a_silent_chain_takes_nobody_away() {
    let (hub, client) = (Namespace::new("gate"), Namespace::new("client"));
    wire((&hub, "wan", "192.0.2.1/24"), (&client, "wan", "192.0.2.2/24"));
    let peer = PlainWireGuard::new(&client, "wg0", 51821, "10.9.0.2/24");
    // The chain runs beside the hub and answers on its loopback.
    let chain = hub.enter(|| Anvil::with(&["--slots-in-an-epoch", "1"]));
    let contract = hub.enter(|| Contract::deploy(&chain, false, false));

    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("spoke.toml");
    let state = dir.path().display();
    let other = "b3BlbiBhY2Nlc3MgbmVlZHMgbm8gdG9rZW4gYXQgYWw=";
    let text = format!(
        r#"
[node]
id = "gate"
role = "hub"
state_dir = "{state}/state"
runtime_dir = "{state}/run"

[grants]
contract = "{}"
chain_id = {CHAIN_ID}
endpoints = ["{}"]
poll = "1s"
fresh = "5s"
timeout = "2s"
finality = "latest"

[[interface]]
name = "wg0"
listen_port = 51820
addresses = ["10.9.0.1/24"]
access = "nft"

[[interface.peer]]
node_id = "client"
public_key = "{}"
allowed_ips = ["10.9.0.2/32"]

[[interface]]
name = "wg1"
listen_port = 51822
addresses = ["10.10.0.1/24"]

[[interface.peer]]
public_key = "{other}"
allowed_ips = ["10.10.0.2/32"]
"#,
        contract.address,
        chain.url(),
        peer.public_key
    );
    std::fs::write(&config, text).expect("its configuration");
    let log = std::fs::File::create(dir.path().join("log")).expect("a log");
    let program = env!("CARGO_BIN_EXE_spoke");
    let mut command = hub.command(&format!("{program} --config {} run", config.display()));
    let _spoke = Spoke(command.stdout(Stdio::null()).stderr(log).spawn().expect("spoke"));
    let show_log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();

    let peers = |name: &str| -> String {
        let output = hub.command(&format!("wg show {name} peers")).output().expect("wg");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let health = || hub.run("curl -s http://127.0.0.1:8080/health");
    wait_until(LIMIT, "the open interface and its peer", || peers("wg1").contains(other));
    assert!(!peers("wg0").contains(&peer.public_key), "nobody is a peer without a grant\n{}", show_log());

    let token = hub.enter(|| contract.mint(chain.account(1), "client", &peer.public_key));
    let started = Instant::now();
    wait_until(LIMIT, "the granted peer", || peers("wg0").contains(&peer.public_key));
    eprintln!("mint → peer in the kernel: {:?}", started.elapsed());
    let key = hub.run("wg show wg0 public-key").trim().to_owned();
    peer.peer(&key, "allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820 persistent-keepalive 5");
    client.run("ping -c 3 -i 0.2 -W 5 10.9.0.1");

    // Silent: the peer stays, traffic flows, health says why.
    chain.halt();
    wait_until(LIMIT, "health to speak of the chain", || health().contains("contract_away"));
    let said = health();
    assert!(said.contains("\"degraded\"") && said.contains("VERIFICATION_ERROR"), "{said}");
    client.run("ping -c 2 -i 0.2 -W 5 10.9.0.1");
    assert!(peers("wg0").contains(&peer.public_key));
    chain.go_on();
    wait_until(LIMIT, "health to be content again", || !health().contains("contract_away"));

    hub.enter(|| contract.revoke(token));
    let revoked = Instant::now();
    wait_until(LIMIT, "the revoked peer to go", || !peers("wg0").contains(&peer.public_key));
    let took = revoked.elapsed();
    eprintln!("block with the revocation → peer gone from the kernel: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let listed = hub.run(&format!("{program} --config {} grants list", config.display()));
    assert!(listed.contains("NODE_INACTIVE"), "{listed}\n{}", show_log());
    assert!(peers("wg1").contains(other), "open interfaces do not care");
    let stats = hub.run("curl -s http://127.0.0.1:8080/stats");
    assert!(stats.contains("\"accessControl\""), "{stats}");
    let metrics = hub.run("curl -s http://127.0.0.1:8080/metrics");
    assert!(metrics.contains("spoke_grants_decisions_total{reason=\"NODE_INACTIVE\"} 1"), "{metrics}");
}

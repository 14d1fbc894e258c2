//! Access by NFT through the whole control plane: a local chain with the contract, and the served API over it.
use crate::anvil::{Anvil, CHAIN_ID, Contract};
use crate::database::{Kind, fresh};
use crate::fixture::request;
use crate::server::{ControlPlane, Device, Settings, wait_until};
use alloy_primitives::Address;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

crate::on_both_databases![only_granted_nodes_are_peers_through_outages];

const STATE: &str = "/api/v1/nodes/self/state";

/// `[grants]` with cached grants that expire at once: on a device every peer would be lost after a second of outage.
fn settings(contract: &Contract<'_>) -> Settings {
    let sections = format!(
        "[grants]\ncontract = \"{}\"\nchain_id = {CHAIN_ID}\nendpoints = [\"{}\"]\npoll = \"200ms\"\ntimeout = \"4s\"\nfresh = \"1s\"\nstale = \"0s\"\ngrace = \"0s\"\n",
        contract.address,
        contract.chain.url()
    );
    Settings { sections, ..Settings::default() }
}

/// A new address at each call: the contract allows an owner one key.
fn owner() -> Address {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    Address::repeat_byte(COUNT.fetch_add(1, Ordering::Relaxed))
}

fn key(id: &str) -> String {
    request(id).wireguard_public_key.to_string()
}

/// The peers in a hub's document.
fn peers_of(document: &serde_json::Value) -> Vec<String> {
    let peers = document["document"]["interfaces"][0]["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().map(|p| p["node_id"].as_str().unwrap().to_owned()).collect()
}

/// The hub's peers and its generation.
async fn poll(hub: &mut Device) -> (Vec<String>, u64) {
    let (status, document) = hub.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!(status, 200, "{document}");
    (peers_of(&document), document["document"]["generation"].as_u64().unwrap())
}

/// Long-polls until the hub's peers are `expected`.
async fn wait_for_peers(hub: &mut Device, expected: &[&str]) {
    let began = std::time::Instant::now();
    let (mut peers, mut generation) = poll(hub).await;
    while peers != expected {
        assert!(began.elapsed() < Duration::from_secs(60), "{peers:?} instead of {expected:?}");
        let (status, document) = hub.ask("GET", &format!("{STATE}?after={generation}&wait=30"), "").await;
        if status == 200 {
            (peers, generation) = (peers_of(&document), document["document"]["generation"].as_u64().unwrap());
        }
    }
}

async fn access(server: &ControlPlane, id: &str) -> String {
    server.cli_json(&["node", "show", id]).await["access"].as_str().unwrap_or("none").to_owned()
}

async fn wait_for_access(server: &ControlPlane, id: &str, expected: &str) {
    wait_until(expected, async || (access(server, id).await == expected).then_some(())).await;
}

/// Whether `server` reads the chain, by the status that all control planes share.
async fn reads_chain(server: &ControlPlane) -> bool {
    let status = server.status().await;
    status["chain"]["follower"].as_str().is_some_and(|f| f.ends_with(&format!("/{}", server.pid())))
}

async fn only_granted_nodes_are_peers_through_outages(kind: Kind) {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    let mut server = ControlPlane::start_as(fresh(kind).await, settings(&contract)).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24", "--access", "nft"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field", "--uses", "100"]).await;
    let add = ["hub", "add", "hub-1", "--network", "field", "--endpoint", "192.0.2.1:51820", "--address", "10.8.0.254"];
    let hub_token = server.cli_ok(&add).await;
    let mut hub = server.device("hub-1");
    assert_eq!(hub.enrol(&hub_token).await.0, 200);

    // Minted before its enrolment: a peer at once, at the address its token prefers.
    for i in 0..4 {
        contract.mint(owner(), &format!("filler-{i}"), &key(&format!("filler-{i}")));
    }
    let early_token = contract.mint(owner(), "early", &key("early"));
    contract.mint(owner(), "thief", &key("early"));
    chain.mine(2);
    let mut early = server.device("early");
    let (status, answer) = early.enrol(&token).await;
    assert_eq!((status, &answer["config"]["assigned_ip"]), (200, &"10.8.0.5".into()), "token {early_token}: {answer}");
    assert_eq!(poll(&mut hub).await.0, ["early"], "without a wait");

    // Minted with another key, and not minted: nodes, but no peers.
    let (mut thief, mut late) = (server.device("thief"), server.device("late"));
    assert_eq!(thief.enrol(&token).await.0, 200);
    assert_eq!(late.enrol(&token).await.0, 200);
    wait_for_access(&server, "thief", "PUBLIC_KEY_MISMATCH").await;
    wait_for_access(&server, "late", "NODE_NOT_FOUND").await;
    let register = serde_json::json!({
        "wireguard_address": "10.8.0.9", "wireguard_public_key": key("late"), "interface_name": "wg0",
        "hub_endpoint": "192.0.2.1:51820", "registered_at": "2026-01-01T00:00:00Z",
    });
    let (status, answer) = late.ask("POST", "/api/v1/nodes/register", &register.to_string()).await;
    assert_eq!((status, answer["detail"]["code"].as_str()), (403, Some("not_granted")), "{answer}");
    assert_eq!(poll(&mut hub).await.0, ["early"]);
    let (_, listed) = hub.ask("GET", "/api/v1/wireguard/peers", "").await;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "the hub and early: {listed}");

    // Minted after its enrolment: a peer by the contract's event.
    contract.mint(owner(), "late", &key("late"));
    chain.mine(2);
    wait_for_peers(&mut hub, &["early", "late"]).await;
    assert_eq!(late.ask("POST", "/api/v1/nodes/register", &register.to_string()).await.0, 200);

    // An outage longer than any device's cached grants, with a restart of the control plane: no peer is lost.
    chain.halt();
    let reason = async || server.status().await["chain"]["trouble"].as_str().map(str::to_owned);
    let reason = wait_until("the outage is reported", reason).await;
    assert!(server.cli_ok(&["status"]).await.contains("! "), "{reason}");
    let mut third = server.device("third");
    assert_eq!(third.enrol(&token).await.0, 200, "devices still enrol");
    assert_eq!(access(&server, "third").await, "VERIFICATION_ERROR");
    let during = poll(&mut hub).await;
    assert_eq!(during.0, ["early", "late"]);
    server.stop().await;
    server.start_again().await;
    wait_until("the new process reports the outage", async || {
        let reported = server.status().await["chain"]["trouble"].is_string();
        (reported && reads_chain(&server).await).then_some(())
    })
    .await;
    assert_eq!(poll(&mut hub).await, during, "the hub's generation is unchanged");

    // The chain answers again: decisions made meanwhile are stored, revocations among them.
    chain.go_on();
    contract.mint(owner(), "third", &key("third"));
    contract.revoke(early_token);
    chain.mine(2);
    wait_for_peers(&mut hub, &["late", "third"]).await;
    assert_eq!(access(&server, "early").await, "NODE_INACTIVE");
    let (_, audit) = server.operator("GET", "/api/audit-logs?entity_id=early&action=revoke_access", "").await;
    assert_eq!(audit["data"][0]["details"]["reason"], "NODE_INACTIVE", "{audit}");
    assert_eq!(audit["data"][0]["user"], "system");
    server.cli_ok(&["node", "remove", "late", "--yes"]).await;
    wait_for_peers(&mut hub, &["third"]).await;
}

/// Two control planes on one database: either may read the chain, and the other takes over when that one stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_control_plane_takes_over() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    let database = fresh(Kind::Postgres).await;
    let url = database.url.clone();
    let first = ControlPlane::start_as(database, settings(&contract)).await;
    let replica_of = Some(first.dir.path().to_owned());
    let second = ControlPlane::start_on(&url, None, Settings { replica_of, ..settings(&contract) }).await;
    first.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24", "--access", "nft"]).await;
    let token = first.cli_ok(&["token", "create", "--network", "field", "--uses", "100"]).await;
    let hub_token = first.cli_ok(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "192.0.2.1:51820"]).await;
    let first_reads = wait_until("one of them reads the chain", async || {
        if reads_chain(&first).await {
            return Some(true);
        }
        reads_chain(&second).await.then_some(false)
    })
    .await;
    let (mut reader, mut other) = if first_reads { (first, second) } else { (second, first) };
    let mut hub = other.device("hub-1");
    assert_eq!(hub.enrol(&hub_token).await.0, 200);
    assert_eq!(other.device("edge-1").enrol(&token).await.0, 200);
    assert_eq!(other.device("edge-2").enrol(&token).await.0, 200);
    contract.mint(owner(), "edge-1", &key("edge-1"));
    chain.mine(2);
    wait_for_peers(&mut hub, &["edge-1"]).await;
    reader.stop().await;
    wait_until("the other one reads the chain", async || reads_chain(&other).await.then_some(())).await;
    contract.mint(owner(), "edge-2", &key("edge-2"));
    chain.mine(2);
    wait_for_peers(&mut hub, &["edge-1", "edge-2"]).await;
    other.stop().await;
}

//! Access by NFT through the whole control plane: a real local chain, its contract, and the served API over it.
use crate::anvil::{Anvil, CHAIN_ID, Contract};
use crate::db::{Kind, fresh};
use crate::serving::{Device, Serving, Setup, until};
use crate::world::request;
use alloy_primitives::Address;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

crate::on_both![only_who_is_granted_is_a_peer_and_silence_changes_nothing];

const STATE: &str = "/api/v1/nodes/self/state";

/// A ladder that ends at once: on a device nobody would be left after a second of silence.
fn setup(contract: &Contract<'_>) -> Setup {
    let sections = format!(
        "[grants]\ncontract = \"{}\"\nchain_id = {CHAIN_ID}\nendpoints = [\"{}\"]\npoll = \"200ms\"\ntimeout = \"1s\"\nfresh = \"1s\"\nstale = \"0s\"\ngrace = \"0s\"\n",
        contract.address,
        contract.chain.url()
    );
    Setup { sections, ..Setup::default() }
}

/// Somebody new each time: an owner has one key on the contract.
fn owner() -> Address {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    Address::repeat_byte(COUNT.fetch_add(1, Ordering::Relaxed))
}

fn key(id: &str) -> String {
    request(id).wireguard_public_key.to_string()
}

/// The peers in a hub's document.
fn peers(document: &serde_json::Value) -> Vec<String> {
    let peers = document["document"]["interfaces"][0]["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().map(|p| p["node_id"].as_str().unwrap().to_owned()).collect()
}

/// The hub's peers now, and its generation.
async fn now(hub: &mut Device) -> (Vec<String>, u64) {
    let (status, document) = hub.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!(status, 200, "{document}");
    (peers(&document), document["document"]["generation"].as_u64().unwrap())
}

/// Waits by long-poll until the hub's peers are `wanted`.
async fn hears(hub: &mut Device, wanted: &[&str]) {
    let began = std::time::Instant::now();
    let (mut have, mut generation) = now(hub).await;
    while have != wanted {
        assert!(began.elapsed() < Duration::from_secs(60), "{have:?} instead of {wanted:?}");
        let (status, document) = hub.ask("GET", &format!("{STATE}?after={generation}&wait=30"), "").await;
        if status == 200 {
            (have, generation) = (peers(&document), document["document"]["generation"].as_u64().unwrap());
        }
    }
}

async fn access(serving: &Serving, id: &str) -> String {
    serving.json(&["node", "show", id]).await["access"].as_str().unwrap_or("none").to_owned()
}

async fn only_who_is_granted_is_a_peer_and_silence_changes_nothing(kind: Kind) {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    let mut serving = Serving::start_as(fresh(kind).await, setup(&contract)).await;
    serving.done(&["network", "create", "field", "--pool4", "10.8.0.0/24", "--access", "nft"]).await;
    let token = serving.done(&["token", "create", "--network", "field", "--uses", "100"]).await;
    let add = ["hub", "add", "hub-1", "--network", "field", "--endpoint", "192.0.2.1:51820", "--address", "10.8.0.254"];
    let hub_token = serving.done(&add).await;
    let mut hub = serving.device("hub-1");
    assert_eq!(hub.enrol(&hub_token).await.0, 200);

    // Minted before it enrols: a peer at once, at the address its token prefers.
    for i in 0..4 {
        contract.mint(owner(), &format!("filler-{i}"), &key(&format!("filler-{i}")));
    }
    let early_token = contract.mint(owner(), "early", &key("early"));
    contract.mint(owner(), "thief", &key("early"));
    chain.mine(2);
    let mut early = serving.device("early");
    let (status, answer) = early.enrol(&token).await;
    assert_eq!((status, &answer["config"]["assigned_ip"]), (200, &"10.8.0.5".into()), "token {early_token}: {answer}");
    assert_eq!(now(&mut hub).await.0, ["early"], "before anybody waits for anything");

    // Minted with another key, and not at all: nodes, and no peers.
    let (mut thief, mut late) = (serving.device("thief"), serving.device("late"));
    assert_eq!(thief.enrol(&token).await.0, 200);
    assert_eq!(late.enrol(&token).await.0, 200);
    assert_eq!(access(&serving, "thief").await, "PUBLIC_KEY_MISMATCH");
    assert_eq!(access(&serving, "late").await, "NODE_NOT_FOUND");
    let register = serde_json::json!({
        "wireguard_address": "10.8.0.9", "wireguard_public_key": key("late"), "interface_name": "wg0",
        "hub_endpoint": "192.0.2.1:51820", "registered_at": "2026-01-01T00:00:00Z",
    });
    let (status, answer) = late.ask("POST", "/api/v1/nodes/register", &register.to_string()).await;
    assert_eq!((status, answer["detail"]["code"].as_str()), (403, Some("not_granted")), "{answer}");
    assert_eq!(now(&mut hub).await.0, ["early"]);
    let (_, listed) = hub.ask("GET", "/api/v1/wireguard/peers", "").await;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "the hub and early: {listed}");

    // Minted later: the events tell.
    contract.mint(owner(), "late", &key("late"));
    chain.mine(2);
    hears(&mut hub, &["early", "late"]).await;
    assert_eq!(late.ask("POST", "/api/v1/nodes/register", &register.to_string()).await.0, 200);

    // The chain goes silent for longer than any device would bear. Nobody is lost, not even by a restart meanwhile.
    chain.halt();
    let trouble = async || serving.status().await["chain"]["trouble"].as_str().map(str::to_owned);
    let said = until("the silence is told", trouble).await;
    assert!(said.contains("in time") || said.contains("reach"), "{said}");
    assert!(serving.done(&["status"]).await.contains(&said));
    let mut third = serving.device("third");
    assert_eq!(third.enrol(&token).await.0, 200, "enrolment goes on");
    assert_eq!(access(&serving, "third").await, "VERIFICATION_ERROR");
    let during = now(&mut hub).await;
    assert_eq!(during.0, ["early", "late"]);
    serving.stop().await;
    serving.start_again().await;
    until("the new process has met the silence", async || {
        let chain = serving.status().await["chain"].take();
        let mine = chain["follower"].as_str().is_some_and(|f| f.ends_with(&format!("/{}", serving.pid())));
        (mine && chain["trouble"].is_string()).then_some(())
    })
    .await;
    assert_eq!(now(&mut hub).await, during, "not a word to the hub about all of this");

    // It is heard again: what happened meanwhile is made up for, and a revocation counts.
    chain.go_on();
    contract.mint(owner(), "third", &key("third"));
    contract.revoke(early_token);
    chain.mine(2);
    hears(&mut hub, &["late", "third"]).await;
    assert_eq!(access(&serving, "early").await, "NODE_INACTIVE");
    let (_, audit) = serving.operator("GET", "/api/audit-logs?entity_id=early&action=revoke_access", "").await;
    assert_eq!(audit["data"][0]["details"]["reason"], "NODE_INACTIVE", "{audit}");
    assert_eq!(audit["data"][0]["user"], "system");
    serving.done(&["node", "remove", "late", "--yes"]).await;
    hears(&mut hub, &["third"]).await;
}

/// Two control planes on one database: one follows the chain, and the other takes over when the first is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_control_plane_takes_over() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, true);
    let database = fresh(Kind::Postgres).await;
    let url = database.url.clone();
    let mut first = Serving::start_as(database, setup(&contract)).await;
    let like = Some(first.dir.path().to_owned());
    let mut second = Serving::start_on(&url, None, Setup { like, ..setup(&contract) }).await;
    first.done(&["network", "create", "field", "--pool4", "10.8.0.0/24", "--access", "nft"]).await;
    let token = first.done(&["token", "create", "--network", "field", "--uses", "100"]).await;
    let hub_token = first.done(&["hub", "add", "hub-1", "--network", "field", "--endpoint", "192.0.2.1:51820"]).await;
    let mut hub = second.device("hub-1");
    assert_eq!(hub.enrol(&hub_token).await.0, 200);
    assert_eq!(second.device("edge-1").enrol(&token).await.0, 200);
    assert_eq!(second.device("edge-2").enrol(&token).await.0, 200);
    let follows = async |s: &Serving| {
        let view = s.status().await;
        view["chain"]["follower"].as_str().is_some_and(|f| f.ends_with(&format!("/{}", s.pid()))).then_some(())
    };
    until("the first one follows the chain", async || follows(&first).await).await;
    contract.mint(owner(), "edge-1", &key("edge-1"));
    chain.mine(2);
    hears(&mut hub, &["edge-1"]).await;
    first.stop().await;
    until("the second one follows the chain", async || follows(&second).await).await;
    contract.mint(owner(), "edge-2", &key("edge-2"));
    chain.mine(2);
    hears(&mut hub, &["edge-1", "edge-2"]).await;
    second.stop().await;
}

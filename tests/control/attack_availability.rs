//! Attacks on the availability of the control plane: unauthenticated requests, idle connections, wrong tokens.
use crate::database::{Kind, fresh};
use crate::fixture::identity;
use crate::server::{ControlPlane, OPERATOR, Settings, free_port, plain};
use spoke_sys::http::{Http as _, HttpsClient, Trust};
use std::time::{Duration, Instant};

const STATE: &str = "/api/v1/nodes/self/state?after=0";

async fn start(server: &str, limits: &str) -> ControlPlane {
    let settings = Settings { server: server.to_owned(), limits: limits.to_owned(), ..Settings::default() };
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, settings).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_for_unauthenticated_clients() {
    let server = start("", "per_address = 100000\n").await;
    let token = server.cli_ok(&["token", "create", "--network", "field", "--uses", "2"]).await;
    let mut edge = server.device("edge-1");
    assert_eq!(edge.enrol(&token).await.0, 200);
    assert_eq!(edge.ask("GET", STATE, "").await.0, 200);
    let before = server.status().await["nonces"].as_u64().unwrap();
    assert!(before >= 1, "those of nodes are remembered");
    for n in 0..20 {
        let mut stranger = server.device(&format!("stranger-{n}"));
        assert_eq!(stranger.enrol("spk_000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await.0, 401);
        assert_eq!(stranger.ask("GET", STATE, "").await.0, 401);
        let mut impostor = server.device("edge-1");
        impostor.key = identity("impostor");
        assert_eq!(impostor.ask("GET", STATE, "").await.0, 401);
    }
    assert_eq!(server.status().await["nonces"].as_u64().unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_node_beyond_its_limit_are_not_remembered() {
    let server = start("", "per_address = 100000\nper_node = 1\n").await;
    let token = server.cli_ok(&["token", "create", "--network", "field"]).await;
    let mut loud = server.device("loud");
    assert_eq!(loud.enrol(&token).await.0, 200);
    let mut refused = 0;
    for _ in 0..100 {
        refused += u64::from(loud.ask("GET", "/api/v1/nodes/self/state?after=999", "").await.0 == 429);
    }
    let kept = server.status().await["nonces"].as_u64().unwrap();
    assert!(refused > 0 && kept <= 100 - refused, "{kept} of {refused} refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_shut_out_a_device() {
    let server = start("patience = \"60s\"\nconnections = 16\n", "per_address = 100000\n").await;
    let token = server.cli_ok(&["token", "create", "--network", "field"]).await;
    let mut edge = server.device("edge-1");
    assert_eq!(edge.enrol(&token).await.0, 200);
    let (_, state) = edge.ask("GET", STATE, "").await;
    let generation = state["document"]["generation"].as_u64().unwrap();
    let polling = tokio::spawn(async move {
        let answer = edge.ask("GET", &format!("/api/v1/nodes/self/state?after={generation}&wait=60"), "").await;
        (answer, edge)
    });
    server.wait_for_polls(1).await;
    let began = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
    }
    let mut other = server.device("edge-1");
    assert_eq!(other.ask("GET", STATE, "").await.0, 200, "a new connection has a place");
    assert!(began.elapsed() < Duration::from_secs(30), "before the idle ones time out: {:?}", began.elapsed());
    assert_eq!(server.status().await["connected"], 1);
    server.cli_ok(&["node", "override", "edge-1", "--mtu", "1300"]).await;
    let ((status, _), _) = polling.await.unwrap();
    assert_eq!(status, 200, "the long-poll of a node is not closed for them");
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_holds_few_long_polls() {
    let server = start("", "per_address = 100000\nper_node = 1000\n").await;
    let token = server.cli_ok(&["token", "create", "--network", "field"]).await;
    assert_eq!(server.device("edge-1").enrol(&token).await.0, 200);
    let mut polls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut edge = server.device("edge-1");
        polls.spawn(async move { edge.ask("GET", "/api/v1/nodes/self/state?after=999&wait=5", "").await.0 });
    }
    let statuses = polls.join_all().await;
    let held = statuses.iter().filter(|s| **s == 204).count();
    assert!(held == 8 && statuses.iter().filter(|s| **s == 429).count() == 12, "{statuses:?}");
    assert_eq!(server.device("edge-1").ask("GET", STATE, "").await.0, 200, "the places are given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_never_stop_a_right_one() {
    let limits = "per_address = 100000\nguesses_per_address = 3\nenrolments_per_address = 1\n";
    let server = start("", limits).await;
    let good = server.cli_ok(&["token", "create", "--network", "field", "--uses", "9"]).await;
    let wrong = format!("{}{}", &good[..good.len() - 1], if good.ends_with('A') { 'B' } else { 'A' });
    let mut client = server.client();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..30 {
        // With the id of the right token, without a token's form, and at the operators' API.
        seen.insert(server.device("guesser").enrol(&wrong).await.0);
        seen.insert(server.device("guesser").enrol("spk_x").await.0);
        seen.insert(client.send(plain("GET", "/api/nodes", "", Some("guess"))).await.unwrap().status);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [401, 429]);
    assert_eq!(server.device("edge-1").enrol(&good).await.0, 200, "the right token");
    let answer = client.send(plain("GET", "/api/nodes", "", Some(OPERATOR))).await.unwrap();
    assert_eq!(answer.status, 200, "the right operator token");
    server.wait_for_audited_tokens(90).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_operator_token_opens_nothing() {
    let mut server = ControlPlane::start(fresh(Kind::Sqlite).await).await;
    server.status().await;
    server.stop().await;
    std::fs::write(server.dir.path().join("operator"), "x").unwrap();
    server.start_again().await;
    let answer = server.client().send(plain("GET", "/api/nodes", "", Some("x"))).await.unwrap();
    assert_eq!(answer.status, 404, "without a token, operators are not served where devices are");
    assert!(server.log().contains("operator token is too weak"), "{}", server.log());
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field"]).await;
    assert_eq!(server.device("edge-1").enrol(&token).await.0, 200, "devices are served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_are_not_served_where_devices_are() {
    let port = free_port();
    let api = format!("listen = [\"127.0.0.1:{port}\"]");
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { api, ..Settings::default() }).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field"]).await;
    assert_eq!(server.device("edge-1").enrol(&token).await.0, 200);
    let mut operators =
        HttpsClient::new(format!("localhost:{port}").parse().unwrap(), &Trust::Pin(server.pin)).unwrap();
    for (path, for_devices) in [
        ("/api/nodes", 404),
        ("/api/tokens", 404),
        ("/api/status", 404),
        ("/api/v1/wireguard/peers", 401),
        ("/api/v1/wireguard/pool/stats", 401),
    ] {
        let request = plain("GET", path, "", Some(OPERATOR));
        assert_eq!(server.client().send(request.clone()).await.unwrap().status, for_devices, "{path}");
        assert_eq!(operators.send(request).await.unwrap().status, 200, "{path}");
    }
    let remove = plain("DELETE", "/api/v1/wireguard/peers/edge-1", "", Some(OPERATOR));
    assert_eq!(server.client().send(remove).await.unwrap().status, 401);
    let mut edge = server.device("edge-1");
    edge.http = operators;
    assert_eq!(edge.ask("GET", STATE, "").await.0, 404, "no devices are served here");
}

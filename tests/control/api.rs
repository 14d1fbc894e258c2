//! The served API over TLS: enrolment, proofs, long-polls, bad input.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, nonce, plain, wait_until};
use spoke_enroll::document::Envelope;
use spoke_enroll::request::{Nonce, TimeAnswer};
use spoke_model::signature::VerifyKey;
use spoke_sys::http::{Http as _, HttpError, HttpsClient, Trust};
use std::time::{Duration, Instant};

crate::on_both_databases![
    fleet_lifecycle_from_network_to_removal,
    change_ends_a_long_poll,
    new_signing_key_signs_its_own_generation,
    node_test_probes_the_long_poll,
    exhausted_pool_is_503_with_reason,
    requests_need_a_valid_proof,
    bad_requests_get_code_and_reason,
    restart_keeps_state_and_refuses_replays,
];

const STATE: &str = "/api/v1/nodes/self/state";

async fn setup(kind: Kind) -> (ControlPlane, String) {
    ControlPlane::start_with_network(kind, "10.8.0.0/24").await
}

fn code(answer: &serde_json::Value) -> &str {
    answer["detail"]["code"].as_str().unwrap_or("none")
}

async fn fleet_lifecycle_from_network_to_removal(kind: Kind) {
    let (server, token) = setup(kind).await;
    let hub_token = server
        .cli_ok(&[
            "hub",
            "add",
            "hub-1",
            "--network",
            "field",
            "--endpoint",
            "hub.example.net:51820",
            "--address",
            "10.8.0.1",
        ])
        .await;
    let (mut hub, mut edge) = (server.device("hub-1"), server.device("edge-1"));
    let (status, answer) = hub.enrol(&hub_token).await;
    assert_eq!((status, &answer["config"]["assigned_ip"]), (200, &"10.8.0.1".into()), "{answer}");
    let (status, answer) = edge.enrol(&token).await;
    assert_eq!(status, 200, "{answer}");
    let config = &answer["config"];
    assert_eq!(config["hub_endpoint"], "hub.example.net:51820");
    assert_eq!((&config["subnet_mask"], &config["persistent_keepalive"]), (&"255.255.255.0".into(), &25.into()));
    let pinned: Vec<VerifyKey> = serde_json::from_value(config["signing_keys"].clone()).unwrap();

    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    let answer = edge.http.send(request).await.unwrap();
    let (_, document) = Envelope::open(&answer.body, &edge.id, &pinned).unwrap();
    assert_eq!(document.interfaces[0].hubs[0].node_id.as_str(), "hub-1");
    assert!(Envelope::open(&answer.body, &hub.id, &pinned).is_err(), "it is for another node");

    let report = format!(
        r#"{{"generation": {}, "outcome": "reverted", "reason": "the hub was lost", "healthy": false, "drift": 2, "version": "0.1.0"}}"#,
        document.generation
    );
    assert_eq!(edge.ask("POST", "/api/v1/nodes/self/report", &report).await.0, 204);
    let register = serde_json::json!({
        "wireguard_address": "10.8.0.2", "wireguard_public_key": crate::fixture::request("edge-1").wireguard_public_key,
        "interface_name": "wg0", "hub_endpoint": "hub.example.net:51820", "registered_at": "2026-01-01T00:00:00Z",
    });
    let (status, answer) = edge.ask("POST", "/api/v1/nodes/register", &register.to_string()).await;
    assert_eq!((status, &answer["node_id"]), (200, &"edge-1".into()));

    let view = wait_until("the report is stored", async || {
        let (status, view) = server.operator("GET", "/api/nodes/edge-1", "").await;
        assert_eq!(status, 200);
        (view["data"]["outcome"] == "reverted").then_some(view)
    })
    .await;
    assert_eq!(view["data"]["reason"], "the hub was lost");
    let list = server.cli_ok(&["node", "list"]).await;
    assert!(list.contains("edge-1") && list.contains("reverted") && list.contains("hub-1"), "{list}");
    let (_, stats) = server.operator("GET", "/api/v1/wireguard/pool/stats", "").await;
    assert_eq!((&stats["total_addresses"], &stats["allocated_addresses"]), (&254.into(), &2.into()), "{stats}");
    let (status, peers) = hub.ask("GET", "/api/v1/wireguard/peers", "").await;
    assert_eq!((status, peers.as_array().map(Vec::len)), (200, Some(2)), "{peers}");
    assert_eq!(edge.ask("GET", "/api/v1/wireguard/peers", "").await.0, 401, "not for nodes");

    assert_eq!(server.cli(&["node", "remove", "edge-1"]).await.0, 2, "not confirmed");
    server.cli_ok(&["node", "remove", "edge-1", "--yes"]).await;
    let (status, answer) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!((status, code(&answer)), (403, "revoked"));
    let (_, audit) = server.operator("GET", "/api/audit-logs?entity_id=edge-1", "").await;
    let actions: Vec<_> = audit["data"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["remove", "state_not_kept", "enrol"]);
    let (_, openapi) = server.operator("GET", "/api/openapi.json", "").await;
    for path in [STATE, "/api/v1/wireguard/provision", "/api/nodes/{id}", "/api/audit-logs"] {
        assert!(openapi["paths"][path].is_object(), "{path} is described");
    }
}

async fn change_ends_a_long_poll(kind: Kind) {
    let (mut server, token) = setup(kind).await;
    let mut edge = server.device("edge-1");
    edge.enrol(&token).await;
    let (_, first) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let generation = first["document"]["generation"].as_u64().unwrap();
    let waiting = format!("{STATE}?after={generation}&wait=60");
    let (status, _) = edge.ask("GET", &format!("{STATE}?after={generation}&wait=0"), "").await;
    assert_eq!(status, 204);

    let polling = tokio::spawn(async move {
        let got = edge.ask("GET", &waiting, "").await;
        (Instant::now(), got, edge)
    });
    server.wait_for_polls(1).await;
    let body = r#"{"overrides": {"override_mtu": 1300}}"#;
    let began = Instant::now();
    let (status, _) = server.operator("PUT", "/api/nodes/edge-1", body).await;
    assert_eq!(status, 200);
    let (came, (status, document), mut edge) = polling.await.unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1300.into()));
    // Before the poll's own end; the latency is measured by the bench.
    assert!(came - began < Duration::from_secs(20), "{:?}", came - began);

    // A change by the command line, which is another process.
    let generation = document["document"]["generation"].as_u64().unwrap();
    let polling = tokio::spawn(async move {
        let got = edge.ask("GET", &format!("{STATE}?after={generation}&wait=60"), "").await;
        (got, edge)
    });
    server.cli_ok(&["node", "override", "edge-1", "--mtu", "1310"]).await;
    let ((status, document), mut edge) = polling.await.unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1310.into()));

    let generation = document["document"]["generation"].as_u64().unwrap();
    let polling =
        tokio::spawn(async move { edge.ask("GET", &format!("{STATE}?after={generation}&wait=60"), "").await });
    server.wait_for_polls(1).await;
    server.stop().await;
    let (status, answer) = polling.await.unwrap();
    assert_eq!((status, code(&answer)), (503, "unavailable"), "a stop ends a long-poll with an error");
}

/// A waiting node is woken within milliseconds and keeps that document: it must name the new key.
async fn new_signing_key_signs_its_own_generation(kind: Kind) {
    let (server, token) = setup(kind).await;
    let mut edge = server.device("edge-1");
    let (_, answer) = edge.enrol(&token).await;
    let first: Vec<VerifyKey> = serde_json::from_value(answer["config"]["signing_keys"].clone()).unwrap();
    let (_, mut state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let mut keys = vec![first[0].to_string()];
    // Repeated, because the server may have reloaded its keys just before.
    for _ in 0..3 {
        let generation = state["document"]["generation"].as_u64().unwrap();
        let polling = tokio::spawn(async move {
            let got = edge.ask("GET", &format!("{STATE}?after={generation}&wait=60"), "").await;
            (got, edge)
        });
        server.wait_for_polls(1).await;
        keys.push(server.cli_ok(&["signing-key", "add"]).await);
        let got = polling.await.unwrap();
        state = got.0.1;
        edge = got.1;
        let listed: Vec<String> = serde_json::from_value(state["document"]["signing_keys"].clone()).unwrap();
        let signed: Vec<_> = state["signatures"].as_array().unwrap().iter().map(|s| s["key"].clone()).collect();
        assert_eq!((&listed, signed.len()), (&keys, keys.len()), "{signed:?}");
    }

    // A board in 1970 that missed all of them still verifies the server's time.
    edge.offset_ms = -spoke_control::clock::now_ms() + 5_000;
    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    let sent = Nonce::from_hex(&request.headers.iter().find(|h| h.0 == "spoke-nonce").unwrap().1).unwrap();
    let answer = edge.http.send(request).await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let time: TimeAnswer = serde_json::from_value(problem["detail"]["time"].clone()).unwrap();
    assert!(time.verify(sent, &first).is_some(), "{problem}");
}

async fn node_test_probes_the_long_poll(kind: Kind) {
    let (server, token) = setup(kind).await;
    assert_eq!(server.operator("POST", "/api/nodes/edge-1/test", "").await.0, 404);
    assert_eq!(server.operator("POST", "/api/nodes", r#"{"node_id": "edge-2", "network": "field"}"#).await.0, 200);
    let (status, answer) = server.operator("POST", "/api/nodes/edge-2/test", "").await;
    assert_eq!(
        (status, &answer["status"], &answer["data"]["reachable"]),
        (409, &false.into(), &false.into()),
        "{answer}"
    );

    let mut edge = server.device("edge-1");
    edge.enrol(&token).await;
    let (_, state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let generation = state["document"]["generation"].as_u64().unwrap();
    let absent = server.operator("POST", "/api/nodes/edge-1/test", "").await;
    assert_eq!((absent.0, &absent.1["data"]["reachable"]), (503, &false.into()), "{}", absent.1);
    assert!(absent.1["message"].as_str().unwrap().contains("did not come back"), "{}", absent.1);
    assert_eq!(server.cli(&["node", "test", "edge-1"]).await.0, 1);

    // Like a device: polls forever.
    let polling = tokio::spawn(async move {
        loop {
            let (status, _) = edge.ask("GET", &format!("{STATE}?after={generation}&wait=50"), "").await;
            assert_eq!(status, 204, "a probe brings no document");
        }
    });
    server.wait_for_polls(1).await;
    // Repeated, because a loaded machine may take longer than the test's five seconds.
    let answer = wait_until("the node passes", async || {
        let (status, answer) = server.operator("POST", "/api/nodes/edge-1/test", "").await;
        (status == 200).then_some(answer)
    })
    .await;
    assert_eq!((&answer["status"], &answer["data"]["reachable"]), (&true.into(), &true.into()), "{answer}");
    assert!(answer["data"]["took_ms"].as_u64().unwrap() <= 5_000, "{answer}");
    // The command line, another process, does not hold the node's poll.
    let result = wait_until("the node passes by the command line", async || {
        let (code, output) = server.cli(&["node", "test", "edge-1", "--json"]).await;
        (code == 0).then(|| serde_json::from_str::<serde_json::Value>(&output).unwrap())
    })
    .await;
    assert_eq!((&result["reachable"], &result["generation"]), (&true.into(), &generation.into()), "{result}");
    assert!(!polling.is_finished(), "no probe ended its polling");
    let report = r#"{"generation": 1, "outcome": "applied", "healthy": false, "drift": 0, "version": "0.1.0"}"#;
    assert_eq!(server.device("edge-1").ask("POST", "/api/v1/nodes/self/report", report).await.0, 204);
    wait_until("its report is stored", async || {
        let (status, answer) = server.operator("POST", "/api/nodes/edge-1/test", "").await;
        (status == 503 && answer["data"]["reachable"] == true && answer["data"]["healthy"] == false).then_some(())
    })
    .await;
    polling.abort();
}

async fn exhausted_pool_is_503_with_reason(kind: Kind) {
    let server = ControlPlane::start(fresh(kind).await).await;
    // Two hosts, one of them reserved.
    let create = ["network", "create", "field", "--pool4", "10.8.0.0/30", "--reserved", "10.8.0.1"];
    server.cli_ok(&create).await;
    let token = server.cli_ok(&["token", "create", "--network", "field", "--uses", "3"]).await;
    let (mut first, mut late) = (server.device("edge-1"), server.device("edge-2"));
    assert_eq!(first.enrol(&token).await.1["config"]["assigned_ip"], "10.8.0.2");
    let (status, answer) = late.enrol(&token).await;
    assert_eq!((status, code(&answer)), (503, "pool_exhausted"), "{answer}");
    let reason = answer["detail"]["message"].as_str().unwrap();
    assert!(reason.contains("10.8.0.0/30"), "{reason}");
    assert_eq!(server.operator("GET", "/api/nodes/edge-2", "").await.0, 404, "no partial enrolment");
    let pool = server.operator("GET", "/api/v1/wireguard/pool/stats", "").await.1;
    assert_eq!(pool["available_addresses"], 0, "{pool}");

    // The refusal did not use the token, and a larger pool admits the node.
    let wider = r#"{"pool4": "10.8.0.0/29"}"#;
    assert_eq!(server.operator("PUT", "/api/networks/field", wider).await.0, 200);
    assert_eq!(late.enrol(&token).await.0, 200);
}

async fn requests_need_a_valid_proof(kind: Kind) {
    let (server, token) = setup(kind).await;
    let (mut edge, mut other) = (server.device("edge-1"), server.device("edge-2"));
    let (_, answer) = edge.enrol(&token).await;
    let pinned: Vec<VerifyKey> = serde_json::from_value(answer["config"]["signing_keys"].clone()).unwrap();
    other.enrol(&token).await;

    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    assert_eq!(edge.http.send(request.clone()).await.unwrap().status, 200);
    let again = edge.http.send(request.clone()).await.unwrap();
    assert_eq!((again.status, code(&serde_json::from_slice(&again.body).unwrap())), (401, "replay"));
    let mut moved = request.clone();
    moved.path = format!("{STATE}?after=1");
    assert_eq!(edge.http.send(moved).await.unwrap().status, 401, "another path");
    other.id = "edge-1".parse().unwrap();
    let (status, answer) = other.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!((status, code(&answer)), (401, "bad_proof"), "signed by another node");
    other.id = "unknown".parse().unwrap();
    assert_eq!(code(&other.ask("GET", &format!("{STATE}?after=0"), "").await.1), "bad_proof");
    let bare = edge.http.send(plain("GET", STATE, "", None)).await.unwrap();
    assert_eq!(bare.status, 401);

    // A board in 1970 gets the server's signed time; a forged request does not.
    edge.offset_ms = -spoke_control::clock::now_ms() + 5_000;
    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    let sent = Nonce::from_hex(&request.headers.iter().find(|h| h.0 == "spoke-nonce").unwrap().1).unwrap();
    let answer = edge.http.send(request).await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, code(&problem)), (401, "clock_skew"));
    let time: TimeAnswer = serde_json::from_value(problem["detail"]["time"].clone()).unwrap();
    let server_ms = time.verify(sent, &pinned).expect("signed by a pinned key, for this request");
    assert_eq!(time.verify(nonce(), &pinned), None);
    edge.offset_ms += i64::try_from(server_ms).unwrap() - 5_000;
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
    other.offset_ms = -spoke_control::clock::now_ms() + 5_000;
    other.id = "edge-1".parse().unwrap();
    assert_eq!(code(&other.ask("GET", STATE, "").await.1), "bad_proof");

    // The server must have the pinned certificate.
    let address = format!("localhost:{}", server.port).parse().unwrap();
    let mut pinned_other = HttpsClient::new(address, &Trust::Pin([7; 32])).unwrap();
    let refused = pinned_other.send(plain("GET", STATE, "", None)).await;
    assert!(matches!(refused, Err(HttpError::Untrusted(_))), "{refused:?}");
    let own = std::fs::read(server.dir.path().join("tls.crt")).unwrap();
    let mut known = HttpsClient::new(format!("localhost:{}", server.port).parse().unwrap(), &Trust::Own(own)).unwrap();
    assert_eq!(known.send(plain("GET", STATE, "", None)).await.unwrap().status, 401, "trusted by its certificate");
}

async fn bad_requests_get_code_and_reason(kind: Kind) {
    let (server, token) = setup(kind).await;
    let mut edge = server.device("edge-1");
    assert_eq!(code(&edge.enrol("spk_000000000000_guess").await.1), "bad_token");
    let mut request = edge.signed("POST", "/api/v1/wireguard/provision", b"{}".to_vec());
    request.headers.push(("authorization", format!("Bearer {token}")));
    let answer = edge.http.send(request).await.unwrap();
    assert_eq!(answer.status, 422);
    let huge = || vec![b' '; 70_000];
    let answer = edge.http.send(edge.signed("POST", "/api/v1/nodes/self/report", huge())).await;
    assert!(answer.is_err() || answer.unwrap().status == 401, "no body of an unknown node is read");
    edge.enrol(&token).await;
    let answer = edge.http.send(edge.signed("POST", "/api/v1/nodes/self/report", huge())).await;
    assert!(answer.is_err() || answer.unwrap().status == 413);
    for (body, part) in [
        ("{", "EOF"),
        (r#"{"generation": 1}"#, "missing field"),
        (r#"{"generation": -1, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0"}"#, "-1"),
        (r#"{"generation": 1, "outcome": "fine", "healthy": true, "drift": 0, "version": "0.1.0"}"#, "fine"),
        (r#"{"generation": 1, "outcome": "applied", "healthy": true, "drift": 0, "version": "x"}"#, "version"),
        (
            r#"{"generation": 1, "outcome": "applied", "healthy": true, "drift": 0, "version": "0.1.0", "x": 1}"#,
            "unknown field",
        ),
    ] {
        let (status, answer) = edge.ask("POST", "/api/v1/nodes/self/report", body).await;
        assert_eq!(status, 422, "{body}");
        assert!(answer["detail"]["message"].as_str().unwrap().contains(part), "{body}: {answer}");
    }
    let (status, answer) = server.operator("PUT", "/api/nodes/edge-1", r#"{"labl": "x"}"#).await;
    assert_eq!((status, &answer["status"]), (400, &false.into()));
    assert!(answer["message"].as_str().unwrap().contains("labl"), "{answer}");
    assert_eq!(server.operator("GET", "/api/nodes/edge-9", "").await.0, 404);
    assert_eq!(server.operator("GET", "/nowhere", "").await.0, 404);
    assert_eq!(server.operator("POST", "/api/networks", r#"{"name": "field", "pool4": "10.9.0.0/24"}"#).await.0, 409);
    assert_eq!(server.operator("POST", "/api/networks", r#"{"name": "more", "pool4": "10.9.0.1/24"}"#).await.0, 400);
    let unauthorised = server.client().send(plain("GET", "/api/nodes", "", Some("wrong"))).await.unwrap();
    assert_eq!(unauthorised.status, 401);
    // The HTTP framework's own errors have the shape of their group.
    for (method, path, body, status) in [
        ("GET", "/api/nodes?limit=many", "", 400),
        ("GET", "/api/nodes?no=1", "", 400),
        ("GET", "/api/nodes/not%20an%20id", "", 400),
        ("GET", "/api/audit-logs?offset=x", "", 400),
        ("POST", "/api/tokens", "[", 400),
        ("POST", "/api/tokens", &"9".repeat(70_000), 413),
        ("PATCH", "/api/nodes", "", 404),
    ] {
        let (got, answer) = server.operator(method, path, body).await;
        assert_eq!((got, &answer["status"], &answer["data"]), (status, &false.into(), &().into()), "{path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{path}: {answer}");
        assert!(answer["code"].is_string() && answer["remedy"].is_string(), "{path}: {answer}");
    }
    for (path, status) in [(format!("{STATE}?after=x"), 422), ("/api/v1/wireguard/peers/a%20b".to_owned(), 422)] {
        let (got, answer) = edge.ask("GET", &path, "").await;
        assert_eq!((got, code(&answer)), (status, "bad_request"), "{path}: {answer}");
    }
}

async fn restart_keeps_state_and_refuses_replays(kind: Kind) {
    let (mut server, token) = setup(kind).await;
    let mut edge = server.device("edge-1");
    let (_, before) = edge.enrol(&token).await;
    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    assert_eq!(edge.http.send(request.clone()).await.unwrap().status, 200);
    server.stop().await;
    assert!(matches!(edge.http.send(request.clone()).await, Err(HttpError::Unreachable(_) | HttpError::Cut(_))));
    server.start_again().await;
    let replayed = edge.http.send(request).await.unwrap();
    assert_eq!(replayed.status, 401, "signed before the process started");
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
    assert_eq!(edge.enrol(&token).await.1, before);
}

//! The served API: enrolment, proofs, long-polls, limits and every kind of bad input, over TLS.
use crate::db::{Kind, fresh};
use crate::serving::{Serving, nonce, plain, until};
use spoke_enroll::document::Envelope;
use spoke_enroll::request::{Nonce, TimeAnswer};
use spoke_model::signature::VerifyKey;
use spoke_sys::http::{Http as _, HttpError, HttpsClient, Trust};
use std::time::{Duration, Instant};

crate::on_both![
    a_fleet_from_the_first_command_to_the_last,
    a_change_reaches_a_waiting_node_at_once,
    a_new_signing_key_is_told_in_the_generation_it_makes,
    a_node_is_tested_by_calling_it,
    an_exhausted_pool_is_a_503_with_its_reason,
    proofs_are_checked,
    bad_requests_are_told_what_is_wrong,
    a_restart_loses_nothing,
];

const STATE: &str = "/api/v1/nodes/self/state";

async fn fleet(kind: Kind) -> (Serving, String) {
    let serving = Serving::start(fresh(kind).await).await;
    serving.done(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = serving.done(&["token", "create", "--network", "field", "--uses", "100"]).await;
    (serving, token)
}

fn code(answer: &serde_json::Value) -> &str {
    answer["detail"]["code"].as_str().unwrap_or("none")
}

async fn a_fleet_from_the_first_command_to_the_last(kind: Kind) {
    let (serving, token) = fleet(kind).await;
    let hub_token = serving
        .done(&[
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
    let (mut hub, mut edge) = (serving.device("hub-1"), serving.device("edge-1"));
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
    assert!(Envelope::open(&answer.body, &hub.id, &pinned).is_err(), "it is for nobody else");

    let report = format!(
        r#"{{"generation": {}, "outcome": "reverted", "reason": "the hub was lost", "healthy": false, "drift": 2, "version": "0.1.0"}}"#,
        document.generation
    );
    assert_eq!(edge.ask("POST", "/api/v1/nodes/self/report", &report).await.0, 204);
    let register = serde_json::json!({
        "wireguard_address": "10.8.0.2", "wireguard_public_key": crate::world::request("edge-1").wireguard_public_key,
        "interface_name": "wg0", "hub_endpoint": "hub.example.net:51820", "registered_at": "2026-01-01T00:00:00Z",
    });
    let (status, answer) = edge.ask("POST", "/api/v1/nodes/register", &register.to_string()).await;
    assert_eq!((status, &answer["node_id"]), (200, &"edge-1".into()));

    let began = Instant::now();
    let view = loop {
        let (status, view) = serving.operator("GET", "/api/nodes/edge-1", "").await;
        assert_eq!(status, 200);
        if view["data"]["outcome"] == "reverted" {
            break view;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{view}");
    };
    assert_eq!(view["data"]["reason"], "the hub was lost");
    let list = serving.done(&["node", "list"]).await;
    assert!(list.contains("edge-1") && list.contains("reverted") && list.contains("hub-1"), "{list}");
    let (_, stats) = serving.operator("GET", "/api/v1/wireguard/pool/stats", "").await;
    assert_eq!((&stats["total_addresses"], &stats["allocated_addresses"]), (&254.into(), &2.into()), "{stats}");
    let (status, peers) = hub.ask("GET", "/api/v1/wireguard/peers", "").await;
    assert_eq!((status, peers.as_array().map(Vec::len)), (200, Some(2)), "{peers}");
    assert_eq!(edge.ask("GET", "/api/v1/wireguard/peers", "").await.0, 401, "not for nodes");

    assert_eq!(serving.cli(&["node", "remove", "edge-1"]).await.0, 2, "nobody was asked");
    serving.done(&["node", "remove", "edge-1", "--yes"]).await;
    let (status, answer) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    assert_eq!((status, code(&answer)), (403, "revoked"));
    let (_, audit) = serving.operator("GET", "/api/audit-logs?entity_id=edge-1", "").await;
    let actions: Vec<_> = audit["data"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["remove", "state_not_kept", "enrol"]);
    let (_, openapi) = serving.operator("GET", "/api/openapi.json", "").await;
    for path in [STATE, "/api/v1/wireguard/provision", "/api/nodes/{id}", "/api/audit-logs"] {
        assert!(openapi["paths"][path].is_object(), "{path} is described");
    }
}

async fn a_change_reaches_a_waiting_node_at_once(kind: Kind) {
    let (mut serving, token) = fleet(kind).await;
    let mut edge = serving.device("edge-1");
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
    while serving.operator("GET", "/api/status", "").await.1["data"]["connected"] != 1 {
        tokio::task::yield_now().await;
    }
    let body = r#"{"overrides": {"override_mtu": 1300}}"#;
    let began = Instant::now();
    let (status, _) = serving.operator("PUT", "/api/nodes/edge-1", body).await;
    assert_eq!(status, 200);
    let (came, (status, document), mut edge) = polling.await.unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1300.into()));
    // Well before the poll would have ended by itself; how fast it is, the figures say.
    assert!(came - began < Duration::from_secs(20), "{:?}", came - began);

    // The command line is another process.
    let generation = document["document"]["generation"].as_u64().unwrap();
    let polling = tokio::spawn(async move {
        let got = edge.ask("GET", &format!("{STATE}?after={generation}&wait=60"), "").await;
        (got, edge)
    });
    serving.done(&["node", "override", "edge-1", "--mtu", "1310"]).await;
    let ((status, document), mut edge) = polling.await.unwrap();
    assert_eq!((status, &document["document"]["interfaces"][0]["overrides"]["mtu"]), (200, &1310.into()));

    let generation = document["document"]["generation"].as_u64().unwrap();
    let polling =
        tokio::spawn(async move { edge.ask("GET", &format!("{STATE}?after={generation}&wait=60"), "").await });
    while serving.operator("GET", "/api/status", "").await.1["data"]["connected"] != 1 {
        tokio::task::yield_now().await;
    }
    serving.stop().await;
    let (status, answer) = polling.await.unwrap();
    assert_eq!(
        (status, code(&answer)),
        (503, "unavailable"),
        "a stop ends a long-poll, and not as if nothing were new"
    );
}

/// A node that waits is woken within milliseconds: what it gets then, it keeps, and asks for nothing older.
async fn a_new_signing_key_is_told_in_the_generation_it_makes(kind: Kind) {
    let (serving, token) = fleet(kind).await;
    let mut edge = serving.device("edge-1");
    let (_, answer) = edge.enrol(&token).await;
    let first: Vec<VerifyKey> = serde_json::from_value(answer["config"]["signing_keys"].clone()).unwrap();
    let (_, mut state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let mut keys = vec![first[0].to_string()];
    // More than once: the server may just have looked.
    for _ in 0..3 {
        let generation = state["document"]["generation"].as_u64().unwrap();
        let polling = tokio::spawn(async move {
            let got = edge.ask("GET", &format!("{STATE}?after={generation}&wait=60"), "").await;
            (got, edge)
        });
        until("the node waits", async || (serving.status().await["connected"] == 1).then_some(())).await;
        keys.push(serving.done(&["signing-key", "add"]).await);
        let got = polling.await.unwrap();
        state = got.0.1;
        edge = got.1;
        let told: Vec<String> = serde_json::from_value(state["document"]["signing_keys"].clone()).unwrap();
        let signed: Vec<_> = state["signatures"].as_array().unwrap().iter().map(|s| s["key"].clone()).collect();
        assert_eq!((&told, signed.len()), (&keys, keys.len()), "{signed:?}");
    }

    // A board in 1970 that slept through all of it still believes the time it is told.
    edge.offset_ms = -spoke_control::api::now_ms() + 5_000;
    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    let sent = Nonce::from_hex(&request.headers.iter().find(|h| h.0 == "spoke-nonce").unwrap().1).unwrap();
    let answer = edge.http.send(request).await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let time: TimeAnswer = serde_json::from_value(problem["detail"]["time"].clone()).unwrap();
    assert!(time.verify(sent, &first).is_some(), "{problem}");
}

async fn a_node_is_tested_by_calling_it(kind: Kind) {
    let (serving, token) = fleet(kind).await;
    assert_eq!(serving.operator("POST", "/api/nodes/edge-1/test", "").await.0, 404);
    assert_eq!(serving.operator("POST", "/api/nodes", r#"{"node_id": "edge-2", "network": "field"}"#).await.0, 200);
    let (status, answer) = serving.operator("POST", "/api/nodes/edge-2/test", "").await;
    assert_eq!(
        (status, &answer["status"], &answer["data"]["reachable"]),
        (409, &false.into(), &false.into()),
        "{answer}"
    );

    let mut edge = serving.device("edge-1");
    edge.enrol(&token).await;
    let (_, state) = edge.ask("GET", &format!("{STATE}?after=0"), "").await;
    let generation = state["document"]["generation"].as_u64().unwrap();
    let absent = serving.operator("POST", "/api/nodes/edge-1/test", "").await;
    assert_eq!((absent.0, &absent.1["data"]["reachable"]), (503, &false.into()), "{}", absent.1);
    assert!(absent.1["message"].as_str().unwrap().contains("did not come back"), "{}", absent.1);
    assert_eq!(serving.cli(&["node", "test", "edge-1"]).await.0, 1);

    // A device as it is: it polls for ever, and an end without news makes it poll again.
    let polling = tokio::spawn(async move {
        loop {
            let (status, _) = edge.ask("GET", &format!("{STATE}?after={generation}&wait=50"), "").await;
            assert_eq!(status, 204, "it is told nothing new");
        }
    });
    until("the node waits", async || (serving.status().await["connected"] == 1).then_some(())).await;
    let (status, answer) = serving.operator("POST", "/api/nodes/edge-1/test", "").await;
    assert_eq!(
        (status, &answer["status"], &answer["data"]["reachable"]),
        (200, &true.into(), &true.into()),
        "{answer}"
    );
    assert!(answer["data"]["took_ms"].as_u64().unwrap() < 5_000, "{answer}");
    // The command line is another process, which holds nobody's poll.
    let said = serving.json(&["node", "test", "edge-1"]).await;
    assert_eq!((&said["reachable"], &said["generation"]), (&true.into(), &generation.into()), "{said}");
    assert!(!polling.is_finished(), "no call is news");
    let report = r#"{"generation": 1, "outcome": "applied", "healthy": false, "drift": 0, "version": "0.1.0"}"#;
    assert_eq!(serving.device("edge-1").ask("POST", "/api/v1/nodes/self/report", report).await.0, 204);
    until("its report is there", async || {
        let (status, answer) = serving.operator("POST", "/api/nodes/edge-1/test", "").await;
        (status == 503 && answer["data"]["reachable"] == true && answer["data"]["healthy"] == false).then_some(())
    })
    .await;
    polling.abort();
}

async fn an_exhausted_pool_is_a_503_with_its_reason(kind: Kind) {
    let serving = Serving::start(fresh(kind).await).await;
    // Two usable hosts, one of them kept back.
    let create = ["network", "create", "field", "--pool4", "10.8.0.0/30", "--reserved", "10.8.0.1"];
    serving.done(&create).await;
    let token = serving.done(&["token", "create", "--network", "field", "--uses", "3"]).await;
    let (mut first, mut late) = (serving.device("edge-1"), serving.device("edge-2"));
    assert_eq!(first.enrol(&token).await.1["config"]["assigned_ip"], "10.8.0.2");
    let (status, answer) = late.enrol(&token).await;
    assert_eq!((status, code(&answer)), (503, "pool_exhausted"), "{answer}");
    let reason = answer["detail"]["message"].as_str().unwrap();
    assert!(reason.contains("10.8.0.0/30"), "{reason}");
    assert_eq!(serving.operator("GET", "/api/nodes/edge-2", "").await.0, 404, "nothing of it was kept");
    let pool = serving.operator("GET", "/api/v1/wireguard/pool/stats", "").await.1;
    assert_eq!(pool["available_addresses"], 0, "{pool}");

    // The token was not used up by the refusal, and a larger pool lets it in.
    let wider = r#"{"pool4": "10.8.0.0/29"}"#;
    assert_eq!(serving.operator("PUT", "/api/networks/field", wider).await.0, 200);
    assert_eq!(late.enrol(&token).await.0, 200);
}

async fn proofs_are_checked(kind: Kind) {
    let (serving, token) = fleet(kind).await;
    let (mut edge, mut other) = (serving.device("edge-1"), serving.device("edge-2"));
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
    assert_eq!((status, code(&answer)), (401, "bad_proof"), "a node posing as another");
    other.id = "nobody".parse().unwrap();
    assert_eq!(code(&other.ask("GET", &format!("{STATE}?after=0"), "").await.1), "bad_proof");
    let bare = edge.http.send(plain("GET", STATE, "", None)).await.unwrap();
    assert_eq!(bare.status, 401);

    // A board in 1970 is told the time; somebody who merely says so is not.
    edge.offset_ms = -spoke_control::api::now_ms() + 5_000;
    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    let sent = Nonce::from_hex(&request.headers.iter().find(|h| h.0 == "spoke-nonce").unwrap().1).unwrap();
    let answer = edge.http.send(request).await.unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, code(&problem)), (401, "clock_skew"));
    let time: TimeAnswer = serde_json::from_value(problem["detail"]["time"].clone()).unwrap();
    let server = time.verify(sent, &pinned).expect("signed by a pinned key, for this request");
    assert_eq!(time.verify(nonce(), &pinned), None);
    edge.offset_ms += i64::try_from(server).unwrap() - 5_000;
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
    other.offset_ms = -spoke_control::api::now_ms() + 5_000;
    other.id = "edge-1".parse().unwrap();
    assert_eq!(code(&other.ask("GET", STATE, "").await.1), "bad_proof");

    // The server, too, has to be the one that was pinned.
    let server = format!("localhost:{}", serving.port).parse().unwrap();
    let mut fooled = HttpsClient::new(server, &Trust::Pin([7; 32])).unwrap();
    let refused = fooled.send(plain("GET", STATE, "", None)).await;
    assert!(matches!(refused, Err(HttpError::Untrusted(_))), "{refused:?}");
    let own = std::fs::read(serving.dir.path().join("tls.crt")).unwrap();
    let mut known = HttpsClient::new(format!("localhost:{}", serving.port).parse().unwrap(), &Trust::Own(own)).unwrap();
    assert_eq!(known.send(plain("GET", STATE, "", None)).await.unwrap().status, 401, "known by its certificate");
}

async fn bad_requests_are_told_what_is_wrong(kind: Kind) {
    let (serving, token) = fleet(kind).await;
    let mut edge = serving.device("edge-1");
    assert_eq!(code(&edge.enrol("spk_000000000000_guess").await.1), "bad_token");
    let mut request = edge.signed("POST", "/api/v1/wireguard/provision", b"{}".to_vec());
    request.headers.push(("authorization", format!("Bearer {token}")));
    let answer = edge.http.send(request).await.unwrap();
    assert_eq!(answer.status, 422);
    let huge = vec![b' '; 70_000];
    let answer = edge.http.send(edge.signed("POST", "/api/v1/nodes/self/report", huge)).await;
    assert!(answer.is_err() || answer.unwrap().status == 413);
    edge.enrol(&token).await;
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
    let (status, answer) = serving.operator("PUT", "/api/nodes/edge-1", r#"{"labl": "x"}"#).await;
    assert_eq!((status, &answer["status"]), (400, &false.into()));
    assert!(answer["message"].as_str().unwrap().contains("labl"), "{answer}");
    assert_eq!(serving.operator("GET", "/api/nodes/edge-9", "").await.0, 404);
    assert_eq!(serving.operator("GET", "/nowhere", "").await.0, 404);
    assert_eq!(serving.operator("POST", "/api/networks", r#"{"name": "field", "pool4": "10.9.0.0/24"}"#).await.0, 409);
    assert_eq!(serving.operator("POST", "/api/networks", r#"{"name": "more", "pool4": "10.9.0.1/24"}"#).await.0, 400);
    let stranger = serving.client().send(plain("GET", "/api/nodes", "", Some("wrong"))).await.unwrap();
    assert_eq!(stranger.status, 401);
    // What the framework refuses by itself has the shape of its group as well.
    for (method, path, body, status) in [
        ("GET", "/api/nodes?limit=many", "", 400),
        ("GET", "/api/nodes?no=1", "", 400),
        ("GET", "/api/nodes/not%20an%20id", "", 400),
        ("GET", "/api/audit-logs?offset=x", "", 400),
        ("POST", "/api/tokens", "[", 400),
        ("POST", "/api/tokens", &"9".repeat(70_000), 413),
        ("PATCH", "/api/nodes", "", 404),
    ] {
        let (got, answer) = serving.operator(method, path, body).await;
        assert_eq!((got, &answer["status"], &answer["data"]), (status, &false.into(), &().into()), "{path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{path}: {answer}");
    }
    for (path, status) in [(format!("{STATE}?after=x"), 422), ("/api/v1/wireguard/peers/a%20b".to_owned(), 422)] {
        let (got, answer) = edge.ask("GET", &path, "").await;
        assert_eq!((got, code(&answer)), (status, "bad_request"), "{path}: {answer}");
    }
}

async fn a_restart_loses_nothing(kind: Kind) {
    let (mut serving, token) = fleet(kind).await;
    let mut edge = serving.device("edge-1");
    let (_, before) = edge.enrol(&token).await;
    let request = edge.signed("GET", &format!("{STATE}?after=0"), Vec::new());
    assert_eq!(edge.http.send(request.clone()).await.unwrap().status, 200);
    serving.stop().await;
    assert!(matches!(edge.http.send(request.clone()).await, Err(HttpError::Unreachable(_) | HttpError::Cut(_))));
    serving.start_again().await;
    let replayed = edge.http.send(request).await.unwrap();
    assert_eq!(replayed.status, 401, "what an earlier process has seen is refused as too old");
    assert_eq!(edge.ask("GET", &format!("{STATE}?after=0"), "").await.0, 200);
    assert_eq!(edge.enrol(&token).await.1, before);
}

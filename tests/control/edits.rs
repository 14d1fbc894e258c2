//! Edits through the operators' API: by two operators at once, and by a request that is sent twice.
use crate::database::{Kind, fresh, open};
use crate::fixture::{NOW, network, operator};
use crate::limits::tls;
use crate::server::{ControlPlane, OPERATOR, Settings};
use serde_json::{Value, json};
use spoke_control::registry::tokens;
use spoke_control::store::request::{Begun, RepeatableRequest, in_request};
use spoke_control::store::token::NewToken;
use spoke_control::store::{Store, StoreError};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

crate::on_both_databases![
    change_of_an_older_version_is_refused_with_what_changed,
    two_operators_at_once_lose_no_change,
    repeated_request_gets_the_first_answer,
    request_is_carried_out_once_whatever_dies,
    every_refusal_has_code_and_remedy,
];

/// A response with its headers.
struct Response {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Response {
    fn etag(&self) -> String {
        self.headers.get("etag").unwrap_or_else(|| panic!("no ETag: {}", self.body)).clone()
    }
}

async fn send(server: &ControlPlane, call: &str, body: &str, headers: &[(&str, &str)]) -> Response {
    let length = body.len();
    let mut head = format!(
        "{call} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nauthorization: Bearer {OPERATOR}\r\n"
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut stream = tls(server).await;
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // The server may close without the alert of TLS.
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response to {call}: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
    Response { status, headers, body: serde_json::from_str(body).unwrap_or_default() }
}

async fn with_node(kind: Kind) -> ControlPlane {
    let server = ControlPlane::start(fresh(kind).await).await;
    server.create_network("10.8.0.0/24").await;
    let made = send(&server, "POST /api/nodes", r#"{"node_id": "edge-1", "network": "field"}"#, &[]).await;
    assert_eq!(made.status, 200, "{}", made.body);
    server
}

async fn change_of_an_older_version_is_refused_with_what_changed(kind: Kind) {
    let server = with_node(kind).await;
    let read = send(&server, "GET /api/nodes/edge-1", "", &[]).await;
    let first = read.etag();
    let labelled = send(&server, "PUT /api/nodes/edge-1/labels", r#"{"site": "oslo"}"#, &[("if-match", &first)]).await;
    assert_eq!((labelled.status, labelled.etag() == first), (200, false));
    send(&server, "PUT /api/nodes/edge-1", r#"{"label": "Pump", "overrides": {"override_mtu": 0}}"#, &[]).await;

    for (call, body) in [
        ("PUT /api/nodes/edge-1", r#"{"isolated": true}"#),
        ("PUT /api/nodes/edge-1/labels", "{}"),
        ("POST /api/nodes/edge-1/toggle", ""),
        ("POST /api/nodes/edge-1/approve", ""),
        ("DELETE /api/nodes/edge-1", ""),
    ] {
        let refused = send(&server, call, body, &[("if-match", &first)]).await;
        assert_eq!((refused.status, &refused.body["code"]), (412, &json!("changed")), "{call}: {}", refused.body);
        assert_eq!(refused.body["fields"], json!(["label", "labels", "overrides"]), "{call}");
        assert_eq!(refused.body["data"]["label"], "Pump", "{call}: how it is");
        let now = send(&server, "GET /api/nodes/edge-1", "", &[]).await;
        assert_eq!(refused.etag(), now.etag(), "{call}: with which it can be tried again");
        let again = ("if-match", format!("\"other\", {}", now.etag()));
        if call.starts_with("PUT /api/nodes/edge-1/labels") {
            assert_eq!(send(&server, call, r#"{"site": "oslo"}"#, &[(again.0, &again.1)]).await.status, 200);
        }
    }
    assert_eq!(send(&server, "PUT /api/nodes/edge-1", "{}", &[("if-match", "first")]).await.status, 400);
    assert_eq!(send(&server, "PUT /api/nodes/edge-9", "{}", &[("if-match", "*")]).await.status, 404);

    // Networks and releases are held to the same.
    let field = send(&server, "GET /api/networks/field", "", &[]).await.etag();
    assert_eq!(send(&server, "PUT /api/networks/field", r#"{"mtu": 1300}"#, &[("if-match", &field)]).await.status, 200);
    let refused = send(&server, "PUT /api/networks/field", r#"{"mtu": 1400}"#, &[("if-match", &field)]).await;
    assert_eq!((refused.status, &refused.body["fields"]), (412, &json!(["mtu"])), "{}", refused.body);
    assert_eq!(refused.body["data"]["mtu"], 1300);
    assert_eq!(send(&server, "DELETE /api/networks/field", "", &[("if-match", &field)]).await.status, 412);
    let wanted = send(&server, "PUT /api/releases", r#"{"network": "field", "version": "1.4.0"}"#, &[]).await.etag();
    let newer = r#"{"network": "field", "version": "1.5.0"}"#;
    assert_eq!(send(&server, "PUT /api/releases", newer, &[("if-match", &wanted)]).await.status, 200);
    let refused = send(&server, "DELETE /api/releases?network=field", "", &[("if-match", &wanted)]).await;
    assert_eq!((refused.status, &refused.body["data"]["version"]), (412, &json!("1.5.0")), "{}", refused.body);
    let listed =
        send(&server, "GET /api/releases", "", &[]).await.body["data"]["items"][0]["etag"].as_str().unwrap().to_owned();
    let gone = send(&server, "DELETE /api/releases?network=field", "", &[("if-match", &listed)]).await;
    assert_eq!(gone.status, 200, "{}", gone.body);
}

async fn two_operators_at_once_lose_no_change(kind: Kind) {
    let server = with_node(kind).await;
    let tag = send(&server, "GET /api/nodes/edge-1", "", &[]).await.etag();
    let bodies: Vec<_> = (0..8).map(|i| format!(r#"{{"label": "operator {i}"}}"#)).collect();
    let headers = [("if-match", tag.as_str())];
    let [a, b, c, d, e, f, g, h] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(|i| send(&server, "PUT /api/nodes/edge-1", &bodies[i], &headers));
    let (a, b, c, d, e, f, g, h) = tokio::join!(a, b, c, d, e, f, g, h);
    let statuses = [a, b, c, d, e, f, g, h].map(|r| r.status);
    assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|s| **s == 412).count(), 7, "{statuses:?}");
    let audit = server.cli_json(&["audit", "--entity", "edge-1"]).await;
    assert_eq!(audit.as_array().unwrap().iter().filter(|r| r["action"] == "set").count(), 1);
}

async fn repeated_request_gets_the_first_answer(kind: Kind) {
    let first = with_node(kind).await;
    let replica_of = Some(first.dir.path().to_owned());
    let second = ControlPlane::start_on(&first.url(), None, Settings { replica_of, ..Settings::default() }).await;
    let key = [("idempotency-key", "8e0c-1")];
    let body = r#"{"network": "field"}"#;
    let made = send(&first, "POST /api/tokens", body, &key).await;
    assert_eq!((made.status, made.headers.get("idempotency-replayed")), (200, None), "{}", made.body);
    for server in [&first, &second] {
        let again = send(server, "POST /api/tokens", body, &key).await;
        assert_eq!((again.status, &again.body), (200, &made.body), "the token itself, once more");
        assert_eq!(again.headers["idempotency-replayed"], "true");
    }
    let listed = first.cli_json(&["token", "list"]).await;
    let secret = made.body["data"]["token"].as_str().unwrap().rsplit('_').next().unwrap().to_owned();
    assert_eq!(listed.as_array().unwrap().iter().filter(|t| t["id"] == made.body["data"]["id"]).count(), 1);
    let store = Store::open(&first.url()).await.unwrap();
    let kept = store.read().await.unwrap().row("SELECT answer FROM request", &[]).await.unwrap().unwrap();
    assert!(!kept.text("answer").unwrap().contains(&secret), "sealed");
    store.close().await;

    let other = send(&second, "POST /api/tokens", r#"{"network": "field", "max_uses": 2}"#, &key).await;
    assert_eq!((other.status, &other.body["code"]), (422, &json!("key_reused")), "{}", other.body);
    // A toggle that is repeated is one toggle; a refusal is repeated as well.
    let key = [("idempotency-key", "8e0c-2")];
    for server in [&first, &second, &first] {
        let toggled = send(server, "POST /api/nodes/edge-1/toggle", "", &key).await;
        assert_eq!((toggled.status, &toggled.body["data"]["enabled"]), (200, &json!(false)), "{}", toggled.body);
    }
    let tags: Vec<_> = [send(&first, "POST /api/nodes/edge-1/toggle", "", &key).await.etag()].into();
    assert_eq!(tags[0], send(&first, "GET /api/nodes/edge-1", "", &[]).await.etag());
    let key = [("idempotency-key", "8e0c-3")];
    let unknown = r#"{"node_id": "edge-2", "network": "nowhere"}"#;
    assert_eq!(send(&first, "POST /api/nodes", unknown, &key).await.status, 404);
    assert_eq!(send(&second, "POST /api/nodes", unknown, &key).await.status, 404);
    for bad in ["", &"k".repeat(129)] {
        assert_eq!(send(&first, "POST /api/nodes", unknown, &[("idempotency-key", bad)]).await.status, 400, "{bad}");
    }
}

fn asked(key: &str) -> RepeatableRequest {
    RepeatableRequest { operator: "panel".into(), key: key.into(), digest: "00".into() }
}

async fn claim(store: &Store, key: &str, at_ms: i64) -> spoke_control::store::request::Claim {
    match store.begin_request(&asked(key), at_ms).await.unwrap() {
        Begun::New(claim) => claim,
        other => panic!("{key}: {other:?}"),
    }
}

async fn make_token(store: &Store) -> Result<(), spoke_control::registry::RegistryError> {
    let new =
        NewToken { network: "field".into(), node: None, note: None, max_uses: 1, expires_ms: None, key_proof: false };
    tokens::create(store, &new, &operator(), NOW).await.map(drop)
}

async fn request_is_carried_out_once_whatever_dies(kind: Kind) {
    const MINUTE: i64 = 60_000;
    let (store, _db) = open(kind).await;
    network(&store, "10.8.0.0/24", |_| {}).await;
    let begin = async |key: &str, at_ms| store.begin_request(&asked(key), at_ms).await.unwrap();

    // The process dies before the change: the request is carried out by the repeat, and by nobody else.
    let dead = claim(&store, "before", NOW).await;
    assert_eq!(begin("before", NOW + 1_000).await, Begun::InProgress);
    let taken = claim(&store, "before", NOW + MINUTE).await;
    let late = in_request(dead, make_token(&store)).await.unwrap_err();
    let lost = matches!(&late, spoke_control::registry::RegistryError::Store(StoreError::ClaimLost));
    assert!(lost && store.read().await.unwrap().tokens().await.unwrap().is_empty(), "rolled back: {late}");
    in_request(taken, make_token(&store)).await.unwrap();
    assert_eq!(store.read().await.unwrap().tokens().await.unwrap().len(), 1);

    // It dies after the change: no repeat makes it again.
    assert_eq!(begin("before", NOW + MINUTE + 1_000).await, Begun::InProgress);
    assert_eq!(begin("before", NOW + 3 * MINUTE).await, Begun::AnswerLost);

    // It fails: the repeat may succeed. What is committed is not forgotten.
    let failed = claim(&store, "failed", NOW).await;
    store.forget_request(&failed).await.unwrap();
    let again = claim(&store, "failed", NOW).await;
    in_request(again.clone(), make_token(&store)).await.unwrap();
    store.forget_request(&again).await.unwrap();
    store.keep_answer(&again, 200, "sealed").await.unwrap();
    assert_eq!(begin("failed", NOW).await, Begun::Answered { status: 200, answer: "sealed".into() });
    let other = RepeatableRequest { digest: "01".into(), ..asked("failed") };
    assert_eq!(store.begin_request(&other, NOW).await.unwrap(), Begun::Reused);
    let stranger = RepeatableRequest { operator: "other".into(), ..asked("failed") };
    assert!(matches!(store.begin_request(&stranger, NOW).await.unwrap(), Begun::New(_)), "keys are an operator's own");

    // Bounded in age, also after a clock that was ahead, and in number.
    claim(&store, "ahead", NOW + 100 * 86_400_000).await;
    assert!(store.prune(NOW + 2 * 86_400_000).await.unwrap());
    let left = store.read().await.unwrap().row("SELECT COUNT(*) AS n FROM request", &[]).await.unwrap().unwrap();
    assert_eq!(left.int("n").unwrap(), 0);
    let mut tx = store.write().await.unwrap();
    for i in 0..10_000 {
        let sql =
            "INSERT INTO request (operator, idempotency_key, digest, claim, at_ms) VALUES ('panel', $1, '', '', $2)";
        tx.run(sql, &[format!("k{i}").into(), NOW.into()]).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(begin("one more", NOW).await, Begun::TooMany);
    assert!(matches!(store.begin_request(&stranger, NOW).await.unwrap(), Begun::New(_)), "one fills nobody else's");
}

async fn every_refusal_has_code_and_remedy(kind: Kind) {
    let server = with_node(kind).await;
    let (_, openapi) = server.operator("GET", "/api/openapi.json", "").await;
    let printed: Value = serde_json::from_str(&server.cli_ok(&["openapi"]).await).unwrap();
    assert_eq!(printed["paths"], openapi["paths"], "the same document without a server");
    for (call, body, status, code, field) in [
        ("GET /api/nodes/edge-9", "", 404, "not_found", None),
        ("GET /nowhere", "", 404, "not_found", None),
        ("GET /api/nodes?limit=many", "", 400, "bad_request", None),
        ("GET /api/nodes?selector=a", "", 400, "bad_request", Some("selector")),
        ("PUT /api/nodes/edge-1", r#"{"overrides": {"override_mtu": 1}}"#, 400, "bad_request", Some("override_mtu")),
        ("POST /api/nodes", "[", 400, "bad_request", None),
        ("POST /api/nodes", r#"{"node_id": "edge-1", "network": "field"}"#, 409, "exists", None),
        ("POST /api/nodes/edge-1/approve", "", 409, "wrong_state", None),
        ("POST /api/nodes/edge-1/test", "", 409, "wrong_state", None),
        ("POST /api/networks", r#"{"name": "more", "pool4": "10.8.0.0/16"}"#, 409, "taken", None),
        ("DELETE /api/networks/field", "", 409, "in_use", None),
    ] {
        let refused = send(&server, call, body, &[]).await;
        assert_eq!((refused.status, &refused.body["code"]), (status, &json!(code)), "{call}: {}", refused.body);
        assert_eq!(refused.body["status"], false, "{call}");
        for text in ["message", "remedy"] {
            assert!(refused.body[text].as_str().is_some_and(|t| t.len() > 8), "{call}: {}", refused.body);
        }
        assert_eq!(refused.body["fields"], field.map_or(json!([]), |f| json!([f])), "{call}: {}", refused.body);
    }
    // As it is described: every call of operators names its errors, its role, and the headers it takes.
    for (path, item) in openapi["paths"].as_object().unwrap().iter().filter(|(p, _)| !p.starts_with("/api/v1/")) {
        for (method, operation) in item.as_object().unwrap() {
            let at = format!("{method} {path}");
            assert!(operation["x-role"].is_string() && operation["security"].is_array(), "{at}");
            for (code, response) in
                operation["responses"].as_object().unwrap().iter().filter(|(c, _)| c.as_str() >= "400")
            {
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Refusal", "{at}: {code}");
            }
            let takes =
                |name: &str| operation["parameters"].as_array().into_iter().flatten().any(|p| p["name"] == name);
            assert_eq!(takes("Idempotency-Key"), method == "post", "{at}");
            assert_eq!(takes("If-Match"), operation["responses"]["412"].is_object(), "{at}");
        }
    }
}

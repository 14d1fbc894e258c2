//! Limits against single clients: invalid tokens, floods, idle connections. The OpenAPI document against the routes.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, Settings, plain};
use spoke_sys::http::Http as _;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_tokens_are_limited_and_audited() {
    let limits = "guesses_per_address = 4\n".to_owned();
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { limits, ..Settings::default() }).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let good = server.cli_ok(&["token", "create", "--network", "field", "--uses", "9"]).await;
    let mut edge = server.device("edge-1");
    let mut messages = Vec::new();
    for i in 0..4 {
        let wrong = format!("{}{}", &good[..good.len() - 1], if good.ends_with('A') { 'B' } else { 'A' });
        let guess = if i % 2 == 0 { wrong } else { "spk_000000000000_x".to_owned() };
        let (status, answer) = edge.enrol(&guess).await;
        assert_eq!(status, 401);
        messages.push(answer["detail"]["message"].clone());
    }
    assert!(messages.windows(2).all(|w| w[0] == w[1]), "the fault of a token is not disclosed: {messages:?}");
    assert_eq!(edge.enrol("spk_x").await.0, 429, "beyond the limit");
    assert_eq!(edge.enrol(&good).await.0, 200, "the right token");
    server.wait_for_audited_tokens(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_token_guesses_are_limited() {
    let limits = "guesses_per_address = 3\n".to_owned();
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { limits, ..Settings::default() }).await;
    let mut client = server.client();
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(client.send(plain("GET", "/api/nodes", "", Some("guess"))).await.unwrap().status);
    }
    assert_eq!(seen, [401, 401, 401, 429, 429]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flooding_address_is_refused() {
    let limits = "per_address = 1\nenrolments_per_address = 1\n".to_owned();
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { limits, ..Settings::default() }).await;
    let mut client = server.client();
    let mut refused = None;
    for i in 0..200 {
        let answer = client.send(plain("GET", "/api/openapi.json", "", None)).await.unwrap();
        if answer.status == 429 {
            refused = Some(i);
            break;
        }
    }
    assert!(refused.is_some_and(|i| i >= 4), "after a burst of four seconds' worth: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flooding_node_does_not_affect_others() {
    let limits = "per_address = 100000\nenrolments_per_address = 100\nper_node = 1\n".to_owned();
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { limits, ..Settings::default() }).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let token = server.cli_ok(&["token", "create", "--network", "field", "--uses", "2"]).await;
    let (mut loud, mut quiet) = (server.device("loud"), server.device("quiet"));
    assert_eq!((loud.enrol(&token).await.0, quiet.enrol(&token).await.0), (200, 200));
    let mut refused = false;
    for _ in 0..100 {
        let (status, answer) = loud.ask("GET", "/api/v1/nodes/self/state?after=999", "").await;
        refused |= status == 429 && answer["detail"]["code"] == "rate_limited";
    }
    assert!(refused, "the flooding node is limited");
    assert_eq!(quiet.ask("GET", "/api/v1/nodes/self/state?after=999", "").await.0, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed() {
    let server = "patience = \"3s\"\nconnections = 8\n".to_owned();
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { server, ..Settings::default() }).await;
    use tokio::io::AsyncReadExt as _;
    // Without a handshake, with half a request, and after a request: each is closed and makes room.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
    }
    for stream in &mut silent {
        let mut one = [0; 1];
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut one)).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    }
    let mut halfway = tls(&server).await;
    use tokio::io::AsyncWriteExt as _;
    halfway.write_all(b"GET /api/openapi.json HTTP/1.1\r\nhost: a\r\nx-slow").await.unwrap();
    let mut messages = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), halfway.read_to_end(&mut messages)).await;
    assert!(ended.is_ok() && !messages.starts_with(b"HTTP/1.1 200"), "{ended:?}");
    let mut idle = tls(&server).await;
    idle.write_all(b"GET /api/openapi.json HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    messages.clear();
    let ended = tokio::time::timeout(Duration::from_secs(30), idle.read_to_end(&mut messages)).await;
    assert!(ended.is_ok() && messages.starts_with(b"HTTP/1.1 200"), "a response, then the end: {ended:?}");
    assert_eq!(server.operator("GET", "/api/status", "").await.0, 200);
}

/// A TLS connection without an HTTP client.
pub async fn tls(server: &ControlPlane) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    tls_over(server, stream).await.unwrap()
}

/// TLS over a connection that is open.
pub async fn tls_over(
    server: &ControlPlane,
    stream: tokio::net::TcpStream,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring::default_provider};
    let mut roots = RootCertStore::empty();
    let pem = std::fs::read(server.dir.path().join("tls.crt")).unwrap();
    for certificate in rustls_pemfile::certs(&mut pem.as_slice()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(std::sync::Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await
}

/// Every described operation is served, and no other method on its path.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_describes_every_route() {
    let server = ControlPlane::start(fresh(Kind::Sqlite).await).await;
    let (_, openapi) = server.operator("GET", "/api/openapi.json", "").await;
    let mut operations = BTreeSet::new();
    for (path, item) in openapi["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            operations.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let expected = [
        "DELETE /api/nodes/{id}",
        "DELETE /api/tokens/{id}",
        "DELETE /api/v1/wireguard/peers/{node_id}",
        "GET /api/audit-logs",
        "GET /api/networks",
        "GET /api/networks/{name}",
        "GET /api/nodes",
        "GET /api/nodes/{id}",
        "GET /api/status",
        "GET /api/tokens",
        "GET /api/v1/nodes/self/state",
        "GET /api/v1/wireguard/peers",
        "GET /api/v1/wireguard/peers/{node_id}",
        "GET /api/v1/wireguard/pool/stats",
        "POST /api/hubs",
        "POST /api/networks",
        "POST /api/nodes",
        "POST /api/nodes/{id}/approve",
        "POST /api/nodes/{id}/test",
        "POST /api/nodes/{id}/toggle",
        "POST /api/tokens",
        "POST /api/v1/nodes/register",
        "POST /api/v1/nodes/self/key",
        "POST /api/v1/nodes/self/report",
        "POST /api/v1/wireguard/provision",
        "PUT /api/networks/{name}",
        "PUT /api/nodes/{id}",
    ];
    let missing: Vec<_> = expected.iter().filter(|e| !operations.contains(**e)).collect();
    assert!(missing.is_empty(), "{missing:?} of {operations:?}");
    let mut client = server.client();
    for operation in &operations {
        let (method, path) = operation.split_once(' ').unwrap();
        let method = expected_method(method);
        let path = path.replace("{id}", "x").replace("{node_id}", "x").replace("{name}", "x");
        let answer = client.send(plain(method, &path, "", None)).await.unwrap();
        assert_eq!(answer.status, 401, "{operation} is served and needs authentication");
        for other in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            if !operations.contains(&format!("{other} {}", operation.split_once(' ').unwrap().1)) {
                assert_eq!(client.send(plain(other, &path, "", None)).await.unwrap().status, 404, "{other} {path}");
            }
        }
    }
    // Every reference resolves.
    let text = openapi.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(openapi["components"]["schemas"][name].is_object(), "{name}");
    }
}

fn expected_method(method: &str) -> &'static str {
    ["GET", "POST", "PUT", "DELETE"].into_iter().find(|m| *m == method).unwrap()
}

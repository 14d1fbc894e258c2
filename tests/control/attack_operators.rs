//! Attacks on the operators' API and on the database's connection and files.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, OPERATOR, Settings, free_port, plain};
use spoke_control::store::Store;
use spoke_sys::http::{Http as _, HttpsClient, Trust};
use std::os::unix::fs::PermissionsExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

crate::on_both_databases![key_of_an_operator_opens_what_its_role_says];

/// A control plane that serves operators on a port of their own.
async fn start(kind: Kind) -> (ControlPlane, HttpsClient) {
    let port = free_port();
    let api = format!("listen = [\"127.0.0.1:{port}\"]");
    let server = ControlPlane::start_as(fresh(kind).await, Settings { api, ..Settings::default() }).await;
    let client = HttpsClient::new(format!("localhost:{port}").parse().unwrap(), &Trust::Pin(server.pin)).unwrap();
    (server, client)
}

async fn key(server: &ControlPlane, name: &str, role: &str) -> String {
    server.cli_ok(&["key", "create", name, "--role", role]).await
}

async fn key_of_an_operator_opens_what_its_role_says(kind: Kind) {
    let (server, mut operators) = start(kind).await;
    server.cli_ok(&["network", "create", "field", "--pool4", "10.8.0.0/24"]).await;
    let mut keys = Vec::new();
    for role in ["viewer", "operator", "admin"] {
        keys.push((role, key(&server, &format!("{role}@example.net"), role).await));
    }
    // Every route with every role, as the server itself describes them.
    let answer = operators.send(plain("GET", "/api/openapi.json", "", None)).await.unwrap();
    let openapi: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let mut tried = 0;
    for (path, calls) in openapi["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "delete"].iter().filter(|m| calls[**m].is_object()) {
            let method: &'static str = match *method {
                "get" => "GET",
                "post" => "POST",
                "put" => "PUT",
                _ => "DELETE",
            };
            let path: String =
                path.split('/').map(|p| if p.starts_with('{') { "x/" } else { p }.to_owned() + "/").collect();
            let path = path.replace("//", "/");
            let path = path.trim_end_matches('/');
            // A stream ends at once only where it is asked to.
            let path = if path == "/api/events" { "/api/events?wait=0" } else { path };
            let needed = match method {
                _ if path.starts_with("/api/keys") => 2,
                "GET" => 0,
                _ => 1,
            };
            assert_eq!(operators.send(plain(method, path, "{}", None)).await.unwrap().status, 401, "{method} {path}");
            for (rank, (role, key)) in keys.iter().enumerate() {
                let status = operators.send(plain(method, path, "{}", Some(key))).await.unwrap().status;
                assert_eq!(status == 403, rank < needed, "{method} {path} as {role}: {status}");
                assert_ne!(status, 401, "{method} {path} as {role}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 60, "{tried} calls were tried");

    let (_, operator) = &keys[1];
    let body = r#"{"network": "field", "node_id": "edge-1"}"#;
    assert_eq!(operators.send(plain("POST", "/api/nodes", body, Some(operator))).await.unwrap().status, 200);
    let audit = server.cli_json(&["audit", "--entity", "edge-1"]).await;
    assert_eq!(audit[0]["user"], "operator:operator@example.net");
    // Where devices are served, a key opens nothing.
    assert_eq!(server.client().send(plain("GET", "/api/nodes", "", Some(operator))).await.unwrap().status, 404);
    let peers = plain("GET", "/api/v1/wireguard/peers", "", Some(operator));
    assert_eq!(server.client().send(peers).await.unwrap().status, 401);

    let listed = server.cli_json(&["key", "list"]).await;
    let of = |name: &str| listed.as_array().unwrap().iter().find(|k| k["name"] == name).unwrap().clone();
    assert!(
        of("operator@example.net")["last_used_at"].is_string() && of("viewer@example.net")["expires_at"].is_string()
    );
    assert!(!listed.to_string().contains(operator.rsplit('_').next().unwrap()), "no secret is listed");
    server.cli_ok(&["key", "revoke", of("operator@example.net")["id"].as_str().unwrap(), "--yes"]).await;
    assert_eq!(operators.send(plain("GET", "/api/nodes", "", Some(operator))).await.unwrap().status, 401, "revoked");
    let brief = server.cli_ok(&["key", "create", "brief", "--role", "viewer", "--expires-in", "1s"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(operators.send(plain("GET", "/api/nodes", "", Some(&brief))).await.unwrap().status, 401, "expired");
    // Forms of a key that name a valid id.
    let admin = &keys[2].1;
    for wrong in [&admin[..admin.len() - 1], &admin[..17], "spo_", &admin.replace("spo_", "spk_")] {
        assert_eq!(operators.send(plain("GET", "/api/me", "", Some(wrong))).await.unwrap().status, 401, "{wrong}");
    }
    assert_eq!(operators.send(plain("GET", "/api/me", "", Some(admin))).await.unwrap().status, 200);
    let (code, text) = server.cli(&["key", "create", "admin@example.net", "--role", "viewer"]).await;
    assert!(code == 2 && text.contains("exists already"), "one name, one holder: {text}");
    assert_eq!(server.cli(&["key", "create", "api", "--role", "viewer"]).await.0, 2);
}

/// Yesterday's configuration, with a token and without `api.listen`, goes on; keys are not accepted there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_without_api_listen_is_accepted_with_a_warning() {
    let server = ControlPlane::start(fresh(Kind::Sqlite).await).await;
    let key = key(&server, "panel", "admin").await;
    assert_eq!(server.operator("GET", "/api/nodes", "").await.0, 200);
    assert_eq!(server.client().send(plain("GET", "/api/nodes", "", Some(&key))).await.unwrap().status, 401);
    assert!(server.log().contains("operator token is accepted where devices are served"), "{}", server.log());
    assert!(!server.log().contains(OPERATOR));
}

/// Between the control plane and its database: answers that TLS is not spoken here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_in_the_middle_gets_no_plain_text() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(b"N").await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(3), stream.read_to_end(&mut rest)).await;
        rest
    });
    // This address reaches this machine and is not one of the loopback.
    let opened = Store::open(&format!("postgres://fleet:hunter2@0.0.0.0:{port}/fleet")).await;
    assert!(opened.is_err());
    assert_eq!(seen.await.unwrap(), b"", "neither user nor password");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_database_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.db");
    let modes = || {
        let files = std::fs::read_dir(dir.path()).unwrap().flatten();
        let mode = |f: std::fs::DirEntry| (f.file_name(), f.metadata().unwrap().permissions().mode() & 0o777);
        files.map(mode).collect::<Vec<_>>()
    };
    let url = format!("sqlite:{}", path.display());
    let store = Store::open(&url).await.unwrap();
    drop(store.read().await.unwrap());
    let found = modes();
    assert!(found.len() >= 3 && found.iter().all(|(_, mode)| *mode == 0o600), "{found:?}");
    // Left open to all by a release before this one.
    for (name, _) in found {
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let again = Store::open(&url).await.unwrap();
    let found = modes();
    assert!(found.iter().all(|(_, mode)| *mode == 0o600), "{found:?}");
    again.close().await;
    store.close().await;
}

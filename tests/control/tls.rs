//! TLS of a served control plane: configured certificates, and the cost of reconnecting.
use crate::database::{Kind, fresh};
use crate::relay::relay;
use crate::server::{ControlPlane, OPERATOR, Settings, plain, wait_until};
use spoke_sys::http::{Http as _, HttpsClient, Trust};
use std::sync::atomic::Ordering;

/// The printed instructions name no pin, because a configured certificate is renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configured_certificate_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let created = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, created.cert.pem()).unwrap();
    std::fs::write(&key, created.signing_key.serialize_pem()).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let section = format!("tls_certificate = \"{}\"\ntls_key = \"{}\"\n", cert.display(), key.display());
    let server =
        ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { server: section, ..Settings::default() }).await;
    let own = std::fs::read(&cert).unwrap();
    let mut client = HttpsClient::new(format!("localhost:{}", server.port).parse().unwrap(), &Trust::Own(own)).unwrap();
    assert_eq!(client.send(plain("GET", "/api/status", "", Some(OPERATOR))).await.unwrap().status, 200);
    let output = wait_until("the instructions", async || Some(server.log()).filter(|s| s.contains("token = "))).await;
    assert!(!output.contains("pin ="), "{output}");
    assert!(!server.dir.path().join("tls.key").exists(), "no self-signed one is created");
}

/// A device on a metered line reconnects a few hundred times a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnect_resumes_tls_after_many_clients() {
    let server = ControlPlane::start(fresh(Kind::Sqlite).await).await;
    let (port, count) = relay(server.port).await;
    let client = || HttpsClient::new(format!("localhost:{port}").parse().unwrap(), &Trust::Pin(server.pin)).unwrap();
    let cost = async |client: &mut HttpsClient| {
        let before = count.load(Ordering::Relaxed);
        assert_eq!(client.send(plain("GET", "/nowhere", "", None)).await.unwrap().status, 404);
        count.load(Ordering::Relaxed) - before
    };
    let mut first = client();
    let whole = cost(&mut first).await;
    // More sessions than rustls caches by default.
    for _ in 0..300 {
        server.client().send(plain("GET", "/nowhere", "", None)).await.unwrap();
    }
    for _ in 0..3 {
        // Each resumes the session before it; a certificate has more bytes than the difference.
        first = first.another();
        let again = cost(&mut first).await;
        assert!(again + 200 < whole, "{again} bytes resumed, {whole} the first time");
    }
}

//! TLS of a served control plane: configured certificates, and the cost of reconnecting.
use crate::database::{Kind, fresh};
use crate::relay::relay;
use crate::server::{ControlPlane, OPERATOR, Settings, plain, wait_until};
use rustls::pki_types::CertificateDer;
use spoke_model::error_chain::ErrorChain;
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

/// Serves `chain` with the key of its first certificate, or plain HTTP without one; returns its port.
async fn serve(chain: Option<(Vec<CertificateDer<'static>>, rcgen::KeyPair)>) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = chain.map(|(chain, key)| {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config))
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                match tls {
                    Some(tls) => {
                        let Ok(mut stream) = tls.accept(stream).await else { return };
                        let _ = stream.read(&mut request).await;
                        let _ = stream.write_all(ANSWER).await;
                        let _ = stream.shutdown().await;
                    }
                    None => {
                        let _ = stream.read(&mut request).await;
                        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                    }
                }
            });
        }
    });
    port
}

/// A certificate of `name`, changed by `with`, of `issuer` or self-signed.
fn issue(
    name: &str,
    issuer: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>,
    with: impl FnOnce(&mut rcgen::CertificateParams),
) -> (rcgen::Certificate, rcgen::KeyPair, rcgen::CertificateParams) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    with(&mut params);
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    (certificate, key, params)
}

fn as_ca(params: &mut rcgen::CertificateParams) {
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
}

async fn ask(host: &str, port: u16, trust: &Trust) -> Result<u16, String> {
    let mut client = HttpsClient::new(format!("{host}:{port}").parse().unwrap(), trust).unwrap();
    let answer = client.send(plain("GET", "/", "", None)).await;
    answer.map(|a| a.status).map_err(|e| ErrorChain(&e).to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_connection_is_explained_in_words() {
    let (ca, ca_key, ca_params) = issue("Test CA", None, as_ca);
    let trust = Trust::Own(ca.pem().into_bytes());
    let ca_issuer = rcgen::Issuer::new(ca_params, ca_key);
    let (between, between_key, between_params) = issue("Test intermediate", Some(&ca_issuer), as_ca);
    let between_issuer = rcgen::Issuer::new(between_params, between_key);
    let served = async |leaf: &rcgen::Certificate, key, more: &[&rcgen::Certificate]| {
        let chain = std::iter::once(leaf).chain(more.iter().copied()).map(|c| c.der().clone()).collect();
        serve(Some((chain, key))).await
    };
    let explained = async |host: &str, port, trust: &Trust, part: &str| {
        let text = ask(host, port, trust).await.unwrap_err();
        assert!(text.contains(part), "{part} in {text}");
        for word in ["uncategorized", "invalid data", "InvalidCertificate"] {
            assert!(!text.contains(word), "{text}");
        }
    };
    let (leaf, key, _) = issue("localhost", Some(&ca_issuer), |_| {});
    let good = served(&leaf, key, &[]).await;
    assert_eq!(ask("localhost", good, &trust).await, Ok(200));
    explained("localhost", good, &Trust::Public, "no CA that is trusted here").await;
    explained("localhost", good, &Trust::Pin([7; 32]), "is configured: correct control.pin").await;
    explained("127.0.0.1", good, &trust, "for another name").await;

    let past = |p: &mut rcgen::CertificateParams| p.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (leaf, key, _) = issue("localhost", Some(&ca_issuer), past);
    explained("localhost", served(&leaf, key, &[]).await, &trust, "has expired").await;
    let future = |p: &mut rcgen::CertificateParams| p.not_before = rcgen::date_time_ymd(4000, 1, 1);
    let (leaf, key, _) = issue("localhost", Some(&ca_issuer), future);
    explained("localhost", served(&leaf, key, &[]).await, &trust, "not valid yet").await;

    let (leaf, key, _) = issue("localhost", Some(&between_issuer), |_| {});
    explained("localhost", served(&leaf, key, &[]).await, &trust, "send its intermediate certificates").await;
    let (leaf, key, _) = issue("localhost", Some(&between_issuer), |_| {});
    let whole = served(&leaf, key, &[&between]).await;
    assert_eq!(ask("localhost", whole, &trust).await, Ok(200));

    explained("localhost", serve(None).await, &trust, "does not speak TLS").await;
    explained("no-such-host.invalid", 443, &trust, "cannot be looked up").await;
    let closed = crate::server::free_port();
    explained("localhost", closed, &trust, "refused").await;

    // The same over the client of the chain's endpoints.
    let rpc = async |url: String| {
        use spoke_sys::rpc::Rpc as _;
        let text = format!(
            "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"{url}\"]\ntimeout = \"10s\"\n"
        );
        let config = spoke_config::Config::from_text(Some(("test", &text)), []).unwrap();
        let http = spoke_sys::rpc::Http::new(&config.grants.unwrap()).unwrap();
        http.ask(0, vec![spoke_grants::jsonrpc::Call::ChainId], 4096).await.unwrap_err().to_string()
    };
    for (url, part) in [
        (format!("https://localhost:{good}"), "no CA that is trusted here"),
        (format!("https://localhost:{}", serve(None).await), "does not speak TLS"),
        ("https://no-such-host.invalid".to_owned(), "cannot be looked up"),
        (format!("http://localhost:{closed}"), "refused"),
    ] {
        let text = rpc(url).await;
        assert!(text.contains(part) && !text.contains("uncategorized") && !text.contains("invalid data"), "{text}");
    }
}

/// A self-signed certificate that is marked as a CA, as many guides make it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_certificate_marked_as_ca_is_trusted_for_itself() {
    let (own, key, _) = issue("localhost", None, as_ca);
    let trust = Trust::Own(own.pem().into_bytes());
    let port = serve(Some((vec![own.der().clone()], key))).await;
    assert_eq!(ask("localhost", port, &trust).await, Ok(200));
    let text = ask("127.0.0.1", port, &trust).await.unwrap_err();
    assert!(text.contains("for another name"), "{text}");
    let (other, key, _) = issue("localhost", None, as_ca);
    let port = serve(Some((vec![other.der().clone()], key))).await;
    assert!(ask("localhost", port, &trust).await.is_err(), "a certificate of the same name and another key");
}

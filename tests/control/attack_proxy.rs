//! Attacks by the claim to pass a connection on for another: only named proxies are believed, and limits count the source.
use crate::database::{Kind, fresh};
use crate::server::{ControlPlane, Settings, plain};
use spoke_sys::http::Http as _;
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

const PROXY: &str = "127.0.0.2";
const STRANGER: &str = "127.0.0.3";

/// More requests than the burst of an address that may send one a second.
const MANY: usize = 60;

async fn start(server: &str) -> ControlPlane {
    let settings =
        Settings { server: server.to_owned(), limits: "per_address = 1\n".to_owned(), ..Settings::default() };
    ControlPlane::start_as(fresh(Kind::Sqlite).await, settings).await
}

async fn connect(server: &ControlPlane, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(([127, 0, 0, 1], server.port).into()).await.unwrap()
}

/// A header of the PROXY protocol for a connection of `source`.
fn header(source: Ipv4Addr) -> Vec<u8> {
    let addresses = [&source.octets()[..], &[127, 0, 0, 1, 0x30, 0x39, 0x20, 0xfb]].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat()
}

/// Sends requests with these header lines on one connection, after `first`: how many were served, and how many were over a
/// limit. `None`: there is no TLS.
async fn ask(server: &ControlPlane, mut stream: TcpStream, first: &[u8], lines: &[String]) -> Option<(usize, usize)> {
    let exchange = async {
        stream.write_all(first).await.ok()?;
        let mut tls = crate::limits::tls_over(server, stream).await.ok()?;
        let request = |line: &String| format!("GET /nowhere HTTP/1.1\r\nhost: localhost\r\n{line}\r\n");
        let last = "GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".to_owned() + &lines[0] + "\r\n";
        let all: String = lines.iter().skip(1).map(request).chain([last]).collect();
        tls.write_all(all.as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        tls.read_to_end(&mut answers).await.unwrap();
        let answers = String::from_utf8_lossy(&answers).into_owned();
        Some((answers.matches("HTTP/1.1 404").count(), answers.matches("HTTP/1.1 429").count()))
    };
    tokio::time::timeout(Duration::from_secs(120), exchange).await.expect("answers, or an end")
}

fn lines(count: usize, line: impl Fn(usize) -> String) -> Vec<String> {
    (0..count).map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_count_the_source_behind_a_named_proxy() {
    let server = start("proxy_protocol_from = [\"127.0.0.2/32\"]\n").await;
    let none = |count| lines(count, |_| String::new());
    let loud = header([203, 0, 113, 9].into());
    let (served, refused) = ask(&server, connect(&server, PROXY).await, &loud, &none(MANY)).await.unwrap();
    assert!(served >= 4 && refused > 0 && served + refused == MANY, "{served} served, {refused} refused");
    let quiet = header([203, 0, 113, 10].into());
    let others = ask(&server, connect(&server, PROXY).await, &quiet, &none(2)).await;
    assert_eq!(others, Some((2, 0)), "another source behind the same proxy");
    let direct = ask(&server, connect(&server, STRANGER).await, &[], &none(2)).await;
    assert_eq!(direct, Some((2, 0)), "a client that comes directly");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_header_is_taken_from_named_proxies_only() {
    let server = start("proxy_protocol_from = [\"127.0.0.2/32\"]\n").await;
    let none = lines(1, |_| String::new());
    let forged = header([203, 0, 113, 9].into());
    assert_eq!(ask(&server, connect(&server, STRANGER).await, &forged, &none).await, None, "of another client");
    assert_eq!(ask(&server, connect(&server, PROXY).await, &[], &none).await, None, "a client could send its own then");
    let twice = [forged.clone(), forged.clone()].concat();
    assert_eq!(ask(&server, connect(&server, PROXY).await, &twice, &none).await, None, "the second is the client's");
    assert!(server.log().contains("proxy sent no PROXY protocol header"), "{}", server.log());
    // A connection that it opens and leaves is its health check.
    let bare = Settings::default();
    let other = ControlPlane::start_as(fresh(Kind::Sqlite).await, bare).await;
    assert_eq!(ask(&other, connect(&other, PROXY).await, &forged, &none).await, None, "no proxy is named");
    assert_eq!(ask(&other, connect(&other, PROXY).await, &[], &none).await, Some((1, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_is_taken_from_named_proxies_only() {
    let server = start("forwarded_from = [\"127.0.0.2/32\"]\n").await;
    let of = |host: usize| format!("forwarded: for=203.0.113.{host}\r\n");
    let (served, refused) = ask(&server, connect(&server, PROXY).await, &[], &lines(MANY, |_| of(9))).await.unwrap();
    assert!(served >= 4 && refused > 0 && served + refused == MANY, "{served} served, {refused} refused");
    let each = ask(&server, connect(&server, PROXY).await, &[], &lines(MANY, |n| of(100 + n))).await;
    assert_eq!(each, Some((MANY, 0)), "each source has a limit of its own");
    // What a client writes itself is left of what the proxy adds.
    let own = |n: usize| format!("forwarded: for=198.51.100.{n}, for=203.0.113.10\r\n");
    let (_, refused) = ask(&server, connect(&server, PROXY).await, &[], &lines(MANY, own)).await.unwrap();
    assert!(refused > 0, "a client does not choose its source");
    let (_, refused) =
        ask(&server, connect(&server, STRANGER).await, &[], &lines(MANY, |n| of(200 + n % 50))).await.unwrap();
    assert!(refused > 0, "another client is no proxy");
}

/// The control plane records the source of a wrong token, not the proxy's address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_token_is_recorded_with_its_source() {
    let server = "forwarded_from = [\"127.0.0.1/32\"]\n".to_owned();
    let server = ControlPlane::start_as(fresh(Kind::Sqlite).await, Settings { server, ..Settings::default() }).await;
    let mut request = plain("GET", "/api/nodes", "", Some("a guess"));
    request.headers.push(("forwarded", "for=\"203.0.113.9:4711\";proto=https".to_owned()));
    assert_eq!(server.client().send(request).await.unwrap().status, 401);
    crate::server::wait_until("the guess is recorded", async || {
        let audit = server.cli_json(&["audit", "--entity", "203.0.113.9"]).await;
        (audit[0]["action"] == "token_refused").then_some(())
    })
    .await;
}

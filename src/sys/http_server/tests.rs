//! The server against clients that behave badly, on real sockets.
use super::*;
use spoke_api::http::Body;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Echo;

impl Service for Echo {
    fn admit(&self, head: &Request) -> Result<usize, Response> {
        match head.path.as_str() {
            "/closed" => Err(Response::error(401, "no")),
            "/open" => Ok(0),
            _ => Ok(usize::MAX),
        }
    }

    fn is_proven(&self, source: IpAddr) -> bool {
        source == IpAddr::from([192, 0, 2, 1])
    }

    async fn call(&self, request: Request) -> Response {
        if request.path == "/never" {
            std::future::pending::<()>().await;
        }
        Response::new(200, "text/plain", Body::Owned(format!("{} {}", request.path, request.body.len()).into_bytes()))
    }
}

const LIMITS: Limits = Limits {
    name: "test",
    connections: 8,
    per_source: 4,
    header: Duration::from_millis(300),
    body: Duration::from_millis(300),
    stall: Duration::from_millis(500),
    body_bytes: 1000,
    bodies_bytes: 2000,
    rate: None,
};

async fn start(limits: Limits) -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, rx) = watch::channel(false);
    let server = Server::new(Echo, Plain, limits);
    (addr, tx, tokio::spawn(async move { server.run_on(listener, rx).await }))
}

async fn exchange(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_reply(&mut stream).await
}

async fn read_reply(stream: &mut TcpStream) -> String {
    let mut out = Vec::new();
    timeout(Duration::from_secs(5), stream.read_to_end(&mut out)).await.expect("the server must close").ok();
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test]
async fn answers_and_bounds_the_body() {
    let (addr, _stop, _task) = start(LIMITS).await;
    let reply =
        exchange(addr, b"POST /a%2Fb?x=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc")
            .await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("/a%2Fb 3"), "{reply}");
    let reply = exchange(addr, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    let mut chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(format!("64\r\n{}\r\n", "x".repeat(100)).as_bytes());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let reply = exchange(addr, &chunked).await;
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
}

#[tokio::test]
async fn a_slow_header_an_idle_connection_and_a_slow_body_are_cut_off() {
    let (addr, _stop, _task) = start(LIMITS).await;
    assert_eq!(exchange(addr, b"GET / HTTP/1.1\r\nHo").await, "");
    let reply = exchange(addr, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "answered, then closed for idling: {reply}");
    let reply = exchange(addr, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc").await;
    assert!(reply.starts_with("HTTP/1.1 408"), "{reply}");
}

#[tokio::test]
async fn who_is_not_admitted_has_no_body_read() {
    let (addr, _stop, _task) = start(Limits { body_bytes: 64 << 20, ..LIMITS }).await;
    let head = b"POST /closed HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n";
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(head).await.unwrap();
    // Refused at the head; a client that reads only after it has sent everything gets the answer too.
    stream.write_all(&vec![0; 60_000_000]).await.unwrap();
    assert!(read_reply(&mut stream).await.starts_with("HTTP/1.1 401"));
    let reply = exchange(addr, b"GET /closed HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 401") && reply.contains("HTTP/1.1 200"), "the connection is kept: {reply}");
}

#[tokio::test]
async fn open_path_takes_no_body() {
    let (addr, _stop, _task) = start(Limits { body: Duration::from_secs(60), ..LIMITS }).await;
    for head in ["Content-Length: 1", "Transfer-Encoding: chunked"] {
        // None of it is sent: a server that waits for it answers after a minute.
        let request = format!("GET /open HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
        assert!(exchange(addr, request.as_bytes()).await.starts_with("HTTP/1.1 413"), "{head}");
    }
    let reply = exchange(addr, b"GET /open HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[test]
fn unproven_sources_leave_places_to_proven_ones() {
    let server = Server::new(Echo, Plain, LIMITS);
    let take = |last: u8| {
        let source = IpAddr::from([192, 0, 2, last]);
        Place::take(&server.gate, source, server.handler.is_proven(source), &server.limits)
    };
    let unproven: Vec<_> = (2..20).filter_map(take).collect();
    assert_eq!(unproven.len(), LIMITS.connections - LIMITS.connections / 4);
    let ours: Vec<_> = std::iter::from_fn(|| take(1)).collect();
    assert_eq!(ours.len(), LIMITS.connections / 4);
    drop(unproven);
    assert!(take(2).is_some(), "given back");
}

#[tokio::test]
async fn unproven_bodies_leave_room_to_proven_ones() {
    let server = Server::new(Echo, Plain, LIMITS);
    let room = u32::try_from(shares(LIMITS.bodies_bytes / 2)).unwrap();
    let _strangers = server.bodies.others.clone().acquire_many_owned(room).await.unwrap();
    assert!(server.bodies.others.clone().try_acquire_owned().is_err());
    assert!(server.bodies.proven.clone().try_acquire_many_owned(room).is_ok());
}

#[tokio::test]
async fn long_bodies_share_what_they_may_take_and_short_ones_do_not_wait() {
    const LONG: usize = 100_000;
    let limits = Limits { body: Duration::from_secs(60), body_bytes: LONG, bodies_bytes: LONG, ..LIMITS };
    let (addr, _stop, _task) = start(limits).await;
    let head = format!("POST /long HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {LONG}\r\n\r\n");
    let mut first = TcpStream::connect(addr).await.unwrap();
    first.write_all(head.as_bytes()).await.unwrap();
    first.write_all(&vec![0; LONG - 1]).await.unwrap();
    // Answered after the first has been seen: requests of one thread are taken in order.
    let short = b"POST /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert!(exchange(addr, short).await.ends_with("/short 3"));
    let mut second = TcpStream::connect(addr).await.unwrap();
    second.write_all(head.as_bytes()).await.unwrap();
    second.write_all(&vec![0; LONG]).await.unwrap();
    assert!(exchange(addr, short).await.ends_with("/short 3"), "short ones go on");
    let mut byte = [0];
    let waits = timeout(Duration::from_millis(100), second.peek(&mut byte)).await;
    assert!(waits.is_err(), "the second waits for the first");
    first.write_all(&[0]).await.unwrap();
    assert!(read_reply(&mut first).await.ends_with(&format!("/long {LONG}")));
    assert!(read_reply(&mut second).await.ends_with(&format!("/long {LONG}")));
}

#[tokio::test]
async fn connections_are_bounded_and_given_back() {
    let (addr, _stop, _task) = start(Limits { header: Duration::from_secs(60), ..LIMITS }).await;
    let mut held = Vec::new();
    for _ in 0..LIMITS.connections {
        held.push(TcpStream::connect(addr).await.unwrap());
    }
    let mut extra = TcpStream::connect(addr).await.unwrap();
    assert_eq!(read_reply(&mut extra).await, "", "the one too many is closed");
    // A held one still works, and its end makes room.
    held[0].write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_reply(&mut held[0]).await.starts_with("HTTP/1.1 200"));
    let reply = loop {
        let reply = exchange(addr, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        if !reply.is_empty() {
            break reply;
        }
        tokio::task::yield_now().await;
    };
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn one_request_that_never_ends_holds_up_no_other() {
    let (addr, _stop, _task) = start(LIMITS).await;
    let mut stuck = TcpStream::connect(addr).await.unwrap();
    stuck.write_all(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let reply = exchange(addr, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

#[tokio::test]
async fn stopping_lets_idle_connections_go() {
    let (addr, stop, task) = start(Limits { header: Duration::from_secs(60), ..LIMITS }).await;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).await.unwrap();
    stop.send(true).unwrap();
    timeout(Duration::from_secs(2), task).await.expect("idle connections end at once").unwrap();
}

#[tokio::test]
async fn garbage_gets_an_answer_or_silence_and_the_server_lives() {
    let (addr, _stop, _task) = start(LIMITS).await;
    let good = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for bit in (0..good.len() * 8).step_by(5) {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(&bad).await;
        let _ = stream.shutdown().await;
        let _ = read_reply(&mut stream).await;
    }
    assert!(exchange(addr, good).await.starts_with("HTTP/1.1 200"));
}

//! Subscriptions by WebSocket: they bring a poll forward, and can do nothing else.
use super::anvil::{Anvil, Contract};
use super::node::{Node, config, pair};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Settings in which no poll is due before the test ends.
fn seldom(subscribe: u16) -> String {
    format!("finality = \"latest\"\npoll = \"1h\"\nfresh = \"2h\"\nsubscribe = [\"ws://127.0.0.1:{subscribe}\"]")
}

/// A server that handles each connection on a thread of its own. Connections can be cut.
struct Server {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    fn new(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (serve, open) = (Arc::new(serve), Arc::new(Mutex::new(Vec::new())));
        let accepted = open.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepted.lock().expect("not poisoned").push(stream.try_clone().expect("a descriptor"));
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { port, open }
    }

    /// Forwards every connection to a port.
    fn relay(to: u16) -> Self {
        Self::new(move |stream| {
            let upstream = TcpStream::connect(("127.0.0.1", to))?;
            let (mut from, mut back) = (stream.try_clone()?, upstream.try_clone()?);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            let _ = std::io::copy(&mut &upstream, &mut &stream);
            stream.shutdown(Shutdown::Both)
        })
    }

    /// A WebSocket server that accepts the subscription and goes on with `then`.
    fn subscribed(then: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self::new(move |mut stream| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).expect("a key");
            let hash = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, hash.as_bytes());
            let accept = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, hash.as_ref());
            write!(
                stream,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            )?;
            say(&mut stream, r#"{"jsonrpc":"2.0","id":1,"result":"0x1"}"#)?;
            then(&mut stream)
        })
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn name(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    fn connections(&self) -> usize {
        self.open.lock().expect("not poisoned").len()
    }
}

/// Sends a text frame.
fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let length = u8::try_from(text.len()).ok().filter(|n| *n < 126).expect("a short text");
    stream.write_all(&[&[0x81, length], text.as_bytes()].concat())
}

fn subscribed_to(node: &mut Node, server: &Server) {
    let name = server.name();
    node.until("the subscription", |r| r.subscription.as_ref() == Some(&name) && !r.polling);
}

fn mint(contract: &Contract<'_>, n: u16) -> u64 {
    contract.mint(contract.chain.account(1), &pair(n).0.to_string(), &pair(n).1.to_string())
}

#[test]
fn subscribed_revocation_waits_for_no_poll() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let relay = Server::relay(chain.port());
    let mut node = Node::start(config(contract.address, &[chain.url()], &seldom(relay.port)), None, 4);
    subscribed_to(&mut node, &relay);
    let token = mint(&contract, 0);
    node.until_admits(0, true);
    contract.revoke(token);
    node.until_admits(0, false);
    // A connection that ends is replaced.
    relay.cut();
    node.until("the end of the subscription", |r| r.subscription.as_ref().is_some_and(|s| s.starts_with("none")));
    subscribed_to(&mut node, &relay);
    mint(&contract, 1);
    node.until_admits(1, true);
}

#[test]
fn lying_subscription_moves_no_peer_and_costs_few_polls() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let liar = Server::subscribed(|stream| {
        for n in 0_u64.. {
            say(stream, &format!(r#"{{"method":"eth_subscription","params":{{"result":{{"n":{n}}}}}}}"#))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    });
    mint(&contract, 0);
    let mut node = Node::start(config(contract.address, &[chain.url()], &seldom(liar.port)), None, 4);
    subscribed_to(&mut node, &liar);
    node.until_admits(0, true);
    let other = node.watch_for(1);
    // Ten polls in a row, two seconds apart, then none for an hour.
    std::thread::sleep(Duration::from_secs(30));
    let report = node.report();
    assert!(report.counts.polls <= 14, "{report:#?}");
    assert!(node.admits(0) && report.counts.revoked == 0 && report.counts.granted == 1 && !other.seen(), "{report:#?}");
}

#[test]
fn silent_or_refusing_subscription_costs_nothing_but_polls() {
    let chain = Anvil::start();
    let contract = Contract::deploy(&chain, false, false);
    let silent = Server::subscribed(|stream| stream.read_to_end(&mut Vec::new()).map(drop));
    let refusing = Server::new(|mut stream| {
        let mut bytes = [0; 1024];
        let _ = stream.read(&mut bytes)?;
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
    });
    for (n, server, status) in
        [(1, &silent, silent.name()), (2, &refusing, format!("none: {}: HTTP status 403", refusing.name()))]
    {
        let more = format!("finality = \"latest\"\npoll = \"500ms\"\nsubscribe = [\"{}\"]", server.name());
        let mut node = Node::start(config(contract.address, &[chain.url()], &more), None, 4);
        node.until("its status", |r| r.subscription.as_ref().is_some_and(|s| s.starts_with(&status)));
        let token = mint(&contract, n);
        node.until_admits(n, true);
        contract.revoke(token);
        node.until_admits(n, false);
        let report = node.looks(2);
        assert!(report.unreachable.is_none() && report.condition.is_none(), "{report:#?}");
        // Attempts wait 2 s and more.
        assert!(server.connections() < 30, "{}", server.connections());
    }
}

/// The median time to removal over several revocations, at any time between two polls.
fn median(contract: &Contract<'_>, poll: Duration) -> Duration {
    let more = format!("finality = \"latest\"\npoll = \"{}s\"\nfresh = \"30s\"", poll.as_secs());
    let mut node = Node::start(config(contract.address, &[contract.chain.url()], &more), None, 10);
    let mut took = Vec::new();
    for n in 0..7 {
        let token = mint(contract, n);
        node.until_admits(n, true);
        std::thread::sleep(poll * u32::from(n) / 7);
        contract.revoke(token);
        took.push(node.until_admits(n, false));
    }
    took.sort();
    took[3]
}

#[test]
fn revocation_takes_no_longer_than_a_poll_at_the_median() {
    for poll in [1, 2].map(Duration::from_secs) {
        // A loaded machine may delay one run.
        let bound = poll + Duration::from_millis(50);
        let found = (0..4).find_map(|_| {
            let chain = Anvil::start();
            let contract = Contract::deploy(&chain, false, false);
            Some(median(&contract, poll)).filter(|took| *took <= bound)
        });
        assert!(found.is_some(), "poll {poll:?}: longer than {bound:?} in four runs");
    }
}

//! A proxy in front of a chain that counts bytes and, when told to, is slow, lies, or answers what no endpoint should.
#![allow(dead_code, reason = "several test programs share it, and none uses all of it")]

use serde_json::Value;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of a request.
pub(crate) enum ProxyAction {
    /// It goes to the chain, the answer comes back.
    Pass,
    /// The same, later.
    Late(Duration),
    /// The chain's answer is changed on its way.
    Edit(Box<dyn Fn(&mut Value) + Send>),
    /// The proxy answers itself: status, further header lines, body.
    Say(u16, String, Vec<u8>),
    /// The chain's answer comes a byte at a time, for ever slower than anybody waits.
    Trickle,
    /// The connection is closed.
    Hang,
}

type Rule = Box<dyn FnMut(&Value) -> ProxyAction + Send>;

/// A running proxy.
pub(crate) struct Proxy {
    port: u16,
    rule: Arc<Mutex<Rule>>,
    /// Bytes on the wire, both ways, headers included.
    bytes: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Proxy {
    /// A proxy in front of the chain at `upstream` that passes everything.
    pub(crate) fn new(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_: &Value| ProxyAction::Pass)));
        let proxy = Self { port, rule, bytes: Arc::default(), requests: Arc::default(), connections: Arc::default() };
        let (rule, bytes, requests, connections) =
            (proxy.rule.clone(), proxy.bytes.clone(), proxy.requests.clone(), proxy.connections.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::Relaxed);
                let (rule, bytes, requests) = (rule.clone(), bytes.clone(), requests.clone());
                // An error ends the connection: that is what a client must live with.
                std::thread::spawn(move || serve(stream, upstream, &rule, &bytes, &requests));
            }
        });
        proxy
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What becomes of requests from now on.
    pub(crate) fn rule(&self, rule: impl FnMut(&Value) -> ProxyAction + Send + 'static) {
        *self.rule.lock().expect("not poisoned") = Box::new(rule);
    }

    /// Passes everything again.
    pub(crate) fn honest(&self) {
        self.rule(|_| ProxyAction::Pass);
    }

    /// Bytes on the wire so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn serve(
    stream: TcpStream,
    upstream: u16,
    rule: &Mutex<Rule>,
    bytes: &AtomicU64,
    requests: &AtomicU64,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut behind: Option<BufReader<TcpStream>> = None;
    loop {
        let (head, body) = message(&mut reader)?;
        requests.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add((head.len() + body.len()) as u64, Ordering::Relaxed);
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let deed = rule.lock().map(|mut r| r(&asked)).unwrap_or(ProxyAction::Hang);
        let (head, body) = match deed {
            ProxyAction::Hang => return Ok(()),
            ProxyAction::Say(status, headers, body) => {
                (format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).into_bytes(), body)
            }
            ProxyAction::Pass | ProxyAction::Late(_) | ProxyAction::Edit(_) | ProxyAction::Trickle => {
                if let ProxyAction::Late(by) = deed {
                    std::thread::sleep(by);
                }
                let server = match &mut behind {
                    Some(s) => s,
                    None => behind.insert(BufReader::new(TcpStream::connect(("127.0.0.1", upstream))?)),
                };
                let out = server.get_mut();
                let head = format!(
                    "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                out.write_all(&[head.as_bytes(), &body].concat())?;
                let (head, body) = message(server)?;
                match deed {
                    ProxyAction::Edit(edit) => {
                        let mut answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                        edit(&mut answer);
                        let body = answer.to_string().into_bytes();
                        (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes(), body)
                    }
                    ProxyAction::Trickle => {
                        for byte in [head, body].concat() {
                            stream.write_all(&[byte])?;
                            std::thread::sleep(Duration::from_millis(100));
                        }
                        return Ok(());
                    }
                    ProxyAction::Pass | ProxyAction::Late(_) | ProxyAction::Say(..) | ProxyAction::Hang => (head, body),
                }
            }
        };
        bytes.fetch_add((head.len() + body.len()) as u64, Ordering::Relaxed);
        stream.write_all(&[head, body].concat())?;
    }
}

/// A head and a body of a known length.
fn message(from: &mut impl std::io::BufRead) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let mut head = Vec::new();
    let mut length = 0;
    loop {
        let start = head.len();
        if from.read_until(b'\n', &mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(head.get(start..).unwrap_or_default()).to_ascii_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0);
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok((head, body))
}

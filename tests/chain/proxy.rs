//! A proxy in front of a chain that counts bytes and, by rule, delays, falsifies or replaces responses.
#![allow(dead_code, reason = "shared by several test programs, of which none uses all of it")]

use serde_json::Value;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the proxy does with a request.
pub(crate) enum ProxyAction {
    /// Forwards the request and the response.
    Pass,
    /// Forwards both after a delay.
    Late(Duration),
    /// Forwards the request, changes the response.
    Edit(Box<dyn Fn(&mut Value) + Send>),
    /// Responds itself: status, further header lines, body.
    Say(u16, String, Vec<u8>),
    /// Sends one byte of the response every 100 ms.
    Trickle,
    /// Closes the connection.
    Hang,
}

type Rule = Box<dyn FnMut(&Value) -> ProxyAction + Send>;

/// A running proxy.
pub(crate) struct Proxy {
    port: u16,
    rule: Arc<Mutex<Rule>>,
    /// HTTP bytes in both directions, headers included.
    bytes: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    head: Arc<Mutex<String>>,
}

impl Proxy {
    /// A proxy in front of the chain on port `upstream` that forwards everything.
    pub(crate) fn new(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_: &Value| ProxyAction::Pass)));
        let proxy = Self {
            port,
            rule,
            bytes: Arc::default(),
            requests: Arc::default(),
            connections: Arc::default(),
            head: Arc::default(),
        };
        let (rule, bytes, requests, connections) =
            (proxy.rule.clone(), proxy.bytes.clone(), proxy.requests.clone(), proxy.connections.clone());
        let last_head = proxy.head.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::Relaxed);
                let (rule, bytes, requests) = (rule.clone(), bytes.clone(), requests.clone());
                let last_head = last_head.clone();
                // An error closes the connection, which a client must handle.
                std::thread::spawn(move || serve(stream, upstream, &rule, &bytes, &requests, &last_head));
            }
        });
        proxy
    }

    /// The URL of the proxy.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Replaces the rule.
    pub(crate) fn rule(&self, rule: impl FnMut(&Value) -> ProxyAction + Send + 'static) {
        *self.rule.lock().expect("not poisoned") = Box::new(rule);
    }

    /// Forwards everything again.
    pub(crate) fn honest(&self) {
        self.rule(|_| ProxyAction::Pass);
    }

    /// The header of the last request, in lower case.
    pub(crate) fn head(&self) -> String {
        self.head.lock().expect("not poisoned").clone()
    }

    /// HTTP bytes so far.
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
    last_head: &Mutex<String>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut backend: Option<BufReader<TcpStream>> = None;
    loop {
        let (head, body) = message(&mut reader)?;
        if let Ok(mut last) = last_head.lock() {
            *last = String::from_utf8_lossy(&head).to_ascii_lowercase();
        }
        requests.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add((head.len() + body.len()) as u64, Ordering::Relaxed);
        // Rules see a batch; a single call comes as an object.
        let single: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_single = single.is_object();
        let request = if is_single { Value::Array(vec![single]) } else { single };
        let action = rule.lock().map(|mut r| r(&request)).unwrap_or(ProxyAction::Hang);
        let (head, body) = match action {
            ProxyAction::Hang => return Ok(()),
            ProxyAction::Say(status, headers, body) => {
                (format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len()).into_bytes(), body)
            }
            ProxyAction::Pass | ProxyAction::Late(_) | ProxyAction::Edit(_) | ProxyAction::Trickle => {
                if let ProxyAction::Late(by) = action {
                    std::thread::sleep(by);
                }
                let server = match &mut backend {
                    Some(s) => s,
                    None => backend.insert(BufReader::new(TcpStream::connect(("127.0.0.1", upstream))?)),
                };
                let out = server.get_mut();
                let head = format!(
                    "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                out.write_all(&[head.as_bytes(), &body].concat())?;
                let (head, body) = message(server)?;
                match action {
                    ProxyAction::Edit(edit) => {
                        let mut answer: Value = serde_json::from_slice(&body).unwrap_or_default();
                        if is_single {
                            answer = Value::Array(vec![answer]);
                        }
                        edit(&mut answer);
                        if is_single && let Some(only) = answer.as_array_mut().and_then(Vec::pop) {
                            answer = only;
                        }
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

/// Reads a head and a body of the length it declares.
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

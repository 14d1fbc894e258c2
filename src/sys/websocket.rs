//! A client of WebSocket (RFC 6455): messages of a limited size, no extensions. TLS against Mozilla's CA set, no proxy.
use crate::clock::timeout;
use crate::connect::connect;
use crate::http::{BadTrust, public_tls};
use crate::keys;
use crate::keys::KeyError;
use crate::random::seed;
use crate::resolve::{Resolve as _, SystemResolver};
use crate::words;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use frame::{BadFrame, Frame, Opcode};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use spoke_config::grants::{Endpoint, Grants, Url, websocket_url};
use spoke_model::url::HttpUrl;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

mod frame;

/// Timeout of look-up, connection and handshakes together.
const CONNECT: Duration = Duration::from_secs(20);
/// Timeout of a message or ping to be sent.
const SEND: Duration = Duration::from_secs(20);
/// Largest header of a response, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Appended to the key of a handshake before it is hashed (RFC 6455 §1.3).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why there is no connection, or none any more. Never holds the URL: there may be a key in it.
#[derive(Debug, thiserror::Error)]
pub enum WebSocketError {
    /// No connection, no name, no TLS, or cut off.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Timeout.
    #[error("no answer in time")]
    Timeout,
    /// It does not switch to WebSocket.
    #[error("HTTP status {0}: there is no WebSocket at this URL, or it refuses us")]
    Status(u16),
    /// The answer is no handshake of WebSocket.
    #[error("its answer is not that of a WebSocket")]
    Handshake,
    /// Not a message.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// The end.
    #[error("the endpoint closed the connection")]
    Closed,
    /// No endpoint of that number.
    #[error("there is no such endpoint")]
    NoSuch,
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Vec<u8>),
    /// A ping, which was answered, or the answer to ours, with its length in bytes.
    Control(usize),
}

/// The WebSocket URLs of `[grants]`.
pub struct WebSockets {
    urls: Vec<Url>,
    tls: Result<TlsConnector, BadTrust>,
}

impl std::fmt::Debug for WebSockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.urls).finish()
    }
}

impl WebSockets {
    /// Reads the URLs that are kept elsewhere. Nothing is connected yet.
    pub fn new(grants: &Grants) -> Result<Self, KeyError> {
        let mut urls = Vec::with_capacity(grants.subscribe.len());
        for subscription in &grants.subscribe {
            urls.push(match &subscription.0 {
                Endpoint::Url(url) => url.clone(),
                Endpoint::Kept(source) => {
                    websocket_url(&keys::line(source)?).map_err(|_| KeyError::NotAUrl(source.clone()))?
                }
            });
        }
        Ok(Self { urls, tls: public_tls() })
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.urls.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.urls.is_empty()
    }

    /// One's name for people: scheme and host.
    pub fn name(&self, endpoint: usize) -> String {
        self.urls.get(endpoint).map(|url| url.shown().replacen("http", "ws", 1)).unwrap_or_default()
    }

    /// Connects to one of them.
    pub async fn open(&self, endpoint: usize) -> Result<WebSocket, WebSocketError> {
        let url = self.urls.get(endpoint).ok_or(WebSocketError::NoSuch)?;
        let url: HttpUrl = url.reveal().parse().map_err(|_| WebSocketError::NoSuch)?;
        timeout(CONNECT, self.connect(&url)).await.unwrap_or(Err(WebSocketError::Timeout))
    }

    async fn connect(&self, url: &HttpUrl) -> Result<WebSocket, WebSocketError> {
        let unreachable = |e: std::io::Error| WebSocketError::Unreachable(words::io_error(&e));
        let addresses = SystemResolver::default().resolve(url.server(), CONNECT).await;
        let addresses = addresses.map_err(|e| WebSocketError::Unreachable(e.to_string()))?;
        let stream = connect(&addresses, None).await.map_err(unreachable)?;
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = if url.is_tls() {
            let host = url.server().host.trim_end_matches('.').to_owned();
            let name = ServerName::try_from(host).map_err(|_| WebSocketError::NoSuch)?;
            let tls = self.tls.as_ref().map_err(|e| WebSocketError::Unreachable(e.to_string()))?;
            Box::new(tls.connect(name, stream).await.map_err(unreachable)?)
        } else {
            Box::new(stream)
        };
        let mut socket = WebSocket { stream, input: Vec::new(), message: Vec::new() };
        socket.begin(url).await?;
        Ok(socket)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open connection.
pub struct WebSocket {
    stream: Box<dyn Stream>,
    /// Received and not read yet.
    input: Vec<u8>,
    /// The fragments of a message so far.
    message: Vec<u8>,
}

impl std::fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocket").finish_non_exhaustive()
    }
}

impl WebSocket {
    /// Switches from HTTP to WebSocket.
    async fn begin(&mut self, url: &HttpUrl) -> Result<(), WebSocketError> {
        let key = STANDARD.encode([seed().to_ne_bytes(), seed().to_ne_bytes()].concat());
        let origin = url.origin();
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        let path = url.tail().split('#').next().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        let agent = concat!("spoke/", env!("CARGO_PKG_VERSION"));
        let request = format!(
            "GET {slash}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        );
        self.write(request.as_bytes()).await?;
        let end = loop {
            if let Some(at) = self.input.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if self.input.len() > MAX_HEAD {
                return Err(WebSocketError::Handshake);
            }
            self.read().await?;
        };
        let head = self.input.drain(..end).collect::<Vec<u8>>();
        check_head(&head, &key)
    }

    /// The next message, or another sign of life. A call that is dropped loses nothing.
    pub async fn receive(&mut self) -> Result<Received, WebSocketError> {
        loop {
            let Some(Frame { last, opcode, payload, end }) = frame::decode(&self.input)? else {
                self.read().await?;
                continue;
            };
            let content = self.input.get(payload).unwrap_or_default().to_vec();
            self.input.drain(..end);
            match opcode {
                Opcode::Message => {
                    self.message.extend_from_slice(&content);
                    if self.message.len() > frame::MAX_PAYLOAD {
                        return Err(BadFrame::TooLarge.into());
                    }
                    if last {
                        return Ok(Received::Message(std::mem::take(&mut self.message)));
                    }
                }
                Opcode::Ping => {
                    self.send(Opcode::Pong, &content).await?;
                    return Ok(Received::Control(end));
                }
                Opcode::Pong => return Ok(Received::Control(end)),
                Opcode::Close => return Err(WebSocketError::Closed),
            }
        }
    }

    /// Sends a message.
    pub async fn say(&mut self, text: &str) -> Result<(), WebSocketError> {
        self.send(Opcode::Message, text.as_bytes()).await
    }

    /// Sends a ping.
    pub async fn ping(&mut self) -> Result<(), WebSocketError> {
        self.send(Opcode::Ping, &[]).await
    }

    async fn send(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), WebSocketError> {
        let [a, b, c, d, ..] = seed().to_ne_bytes();
        self.write(&frame::encode(opcode, payload, [a, b, c, d])).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), WebSocketError> {
        let unreachable = |e: std::io::Error| WebSocketError::Unreachable(words::io_error(&e));
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(SEND, write).await.ok_or(WebSocketError::Timeout)?.map_err(unreachable)
    }

    async fn read(&mut self) -> Result<(), WebSocketError> {
        let mut bytes = [0; 2048];
        match self.stream.read(&mut bytes).await {
            Ok(0) => Err(WebSocketError::Closed),
            Ok(n) => {
                self.input.extend_from_slice(bytes.get(..n).unwrap_or_default());
                Ok(())
            }
            Err(e) => Err(WebSocketError::Unreachable(words::io_error(&e))),
        }
    }
}

/// Whether a response switches to WebSocket for a request with `key`.
fn check_head(head: &[u8], key: &str) -> Result<(), WebSocketError> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    match status.ok_or(WebSocketError::Handshake)? {
        101 => {}
        status => return Err(WebSocketError::Status(status)),
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{ACCEPT_SUFFIX}").as_bytes());
    let expected = STANDARD.encode(hash.as_ref());
    let accepted = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == expected);
    if accepted { Ok(()) } else { Err(WebSocketError::Handshake) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_to_another_handshake_is_refused() {
        // RFC 6455 §1.3.
        let (key, accept) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let head = |status: &str, accept: &str| {
            format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")
        };
        let check = |text: &str| check_head(text.as_bytes(), key);
        assert!(check(&head("101 Switching Protocols", accept)).is_ok());
        assert!(check(&head("101", accept).to_ascii_lowercase().replace("http", "HTTP")).is_err(), "another hash");
        assert!(matches!(check(&head("101 x", "x")), Err(WebSocketError::Handshake)));
        assert!(matches!(check(&head("403 Forbidden", accept)), Err(WebSocketError::Status(403))));
        assert!(matches!(check("nonsense\r\n\r\n"), Err(WebSocketError::Handshake)));
    }

    #[tokio::test]
    async fn message_in_pieces_is_received_whole() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut socket = WebSocket { stream: Box::new(ours), input: Vec::new(), message: Vec::new() };
        let server = tokio::spawn(async move {
            // "Hello" in two fragments with a ping between them, byte by byte.
            for byte in b"\x01\x03Hel\x89\x01p\x80\x02lo" {
                theirs.write_all(&[*byte]).await.unwrap();
            }
            let mut pong = [0; 7];
            theirs.read_exact(&mut pong).await.unwrap();
            assert_eq!((&pong[..2], pong[2] ^ pong[6]), (&b"\x8a\x81"[..], b'p'));
        });
        assert_eq!(socket.receive().await.unwrap(), Received::Control(3));
        assert_eq!(socket.receive().await.unwrap(), Received::Message(b"Hello".to_vec()));
        server.await.unwrap();
        assert!(matches!(socket.receive().await, Err(WebSocketError::Closed)));
    }

    #[tokio::test]
    async fn endless_message_is_refused() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 12);
        let mut socket = WebSocket { stream: Box::new(ours), input: Vec::new(), message: Vec::new() };
        tokio::spawn(async move {
            // The first fragment and its continuations, without a last one.
            let mut opcode = 1;
            while theirs.write_all(&[&[opcode, 100][..], &[b'a'; 100]].concat()).await.is_ok() {
                opcode = 0;
            }
        });
        let refused = socket.receive().await;
        assert!(matches!(refused, Err(WebSocketError::Frame(BadFrame::TooLarge))), "{refused:?}");
    }
}

//! An HTTPS client for one server: one connection kept open, answers bounded in size and time.
//!
//! Asynchronous, because a long-poll waits for minutes: it must neither hold a thread nor delay a stop. The server is
//! authenticated by a pinned certificate, by configured CAs, or by the public CAs. A board without a clock cannot judge
//! dates, so certificates are judged at no earlier moment than one that is known to have passed; a pin needs no date.
use crate::connect::{Families, Family, connect};
use crate::resolve::{Resolve as _, ResolveError, SystemResolver};
use crate::words;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use spoke_model::address::HostPort;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
};

/// Timeout of TCP connect and TLS handshake together.
const CONNECT: Duration = Duration::from_secs(15);

/// A moment that is certainly in the past: 2026-01-01.
const WRITTEN: u64 = 1_767_225_600;

/// The latest moment known to have passed, in seconds since 1970. No atomic: a 32-bit MIPS has none of 64 bits.
type Floor = Arc<Mutex<u64>>;

/// How the server is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// By Mozilla's CAs.
    Public,
    /// By these CA certificates in PEM.
    Own(Vec<u8>),
    /// By the SHA-256 of its certificate.
    Pin([u8; 32]),
}

/// A request.
#[derive(Clone)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path with query.
    pub path: String,
    /// Headers beside `Host` and `Content-Type`.
    pub headers: Vec<(&'static str, String)>,
    /// JSON, empty where there is none.
    pub body: Vec<u8>,
    /// The longest answer accepted, in bytes.
    pub max: usize,
    /// How long it may take in all.
    pub timeout: Duration,
}

/// Without headers and body, which hold tokens and keys.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}, {} bytes", self.method, self.path, self.body.len())
    }
}

/// An answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Without the body, which may hold keys.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} bytes", self.status, self.body.len())
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection, no name, or cut off.
    #[error("the control plane cannot be reached: {}", words::io_error(.0))]
    Unreachable(std::io::Error),
    /// No address of its name.
    #[error("the control plane cannot be reached")]
    Unresolved(#[source] ResolveError),
    /// The certificate is not the one expected.
    #[error("the control plane is not trusted: {}", words::io_error(.0))]
    Untrusted(std::io::Error),
    /// Timeout.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Timeout of the TCP or TLS handshake.
    #[error("no connection within {0:?}: neither accepted nor refused, as behind a firewall")]
    NoConnection(Duration),
    /// The connection ended in the middle.
    #[error("the connection ended before the answer")]
    Cut(#[source] hyper::Error),
    /// More bytes than allowed.
    #[error("the answer is larger than {0} bytes, or was cut")]
    TooLarge(usize),
    /// The request cannot be built.
    #[error("request cannot be built: {0}")]
    Malformed(String),
}

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum BadTrust {
    /// No certificate among the bytes.
    #[error("there is no certificate in PEM")]
    NoCertificate,
    /// The library refused.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// Asks one server.
pub trait Http: Send + 'static {
    /// Sends a request and waits for the whole answer.
    fn send(&mut self, request: Request) -> impl Future<Output = Result<Answer, HttpError>> + Send;
}

/// [`Http`] over TLS. Each value keeps a connection of its own.
pub struct HttpsClient {
    server: HostPort,
    tls: TlsConnector,
    floor: Floor,
    resolver: SystemResolver,
    families: Families,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpsClient({})", self.server)
    }
}

impl HttpsClient {
    /// A client of `server`, known by `trust`. Nothing is connected yet.
    pub fn new(server: HostPort, trust: &Trust) -> Result<Self, BadTrust> {
        let floor = Arc::new(Mutex::new(WRITTEN));
        let tls = connector(trust, &floor)?;
        Ok(Self { server, tls, floor, resolver: SystemResolver::default(), families: Families::default(), open: None })
    }

    /// Another client of the same server, with a connection of its own.
    pub fn another(&self) -> Self {
        Self {
            server: self.server.clone(),
            tls: self.tls.clone(),
            floor: self.floor.clone(),
            resolver: self.resolver.clone(),
            families: self.families.clone(),
            open: None,
        }
    }

    /// Raises the earliest date used for certificates, in seconds since 1970.
    pub fn not_before(&self, secs: u64) {
        let mut floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        *floor = secs.max(*floor);
    }

    async fn connect(&self) -> Result<Open, HttpError> {
        let ends = tokio::time::Instant::now() + CONNECT;
        let late = |_| HttpError::NoConnection(CONNECT);
        let addresses = self.resolver.resolve(&self.server, CONNECT).await.map_err(HttpError::Unresolved)?;
        let host = &self.server.host;
        let connected = timeout_at(ends, connect(&addresses, self.families.first(host))).await.map_err(late)?;
        let stream = connected.map_err(HttpError::Unreachable)?;
        let family = Family::of(&stream.peer_addr().map_err(HttpError::Unreachable)?);
        self.families.connected(host, family);
        match timeout_at(ends, self.secure(stream)).await {
            Ok(open) => open,
            Err(_) => {
                self.families.stalled(host, family);
                Err(HttpError::NoConnection(CONNECT))
            }
        }
    }

    async fn secure(&self, stream: TcpStream) -> Result<Open, HttpError> {
        let _ = stream.set_nodelay(true);
        // The device learns of a dead connection within minutes, for a few bytes an hour.
        let keepalive =
            socket2::TcpKeepalive::new().with_time(Duration::from_secs(120)).with_interval(Duration::from_secs(15));
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        // An absolute name ends with a dot, the name in a certificate does not.
        let host = self.server.host.trim_end_matches('.').to_owned();
        let name = ServerName::try_from(host).map_err(|e| HttpError::Malformed(e.to_string()))?;
        let stream = self.tls.connect(name, stream).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => HttpError::Untrusted(e),
            _ => HttpError::Unreachable(e),
        })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(HttpError::Cut)?;
        let task = tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "connection to the control plane ended");
            }
        });
        Ok(Open { sender, task: task.abort_handle() })
    }

    async fn exchange(&mut self, request: &Request) -> Result<Answer, HttpError> {
        let mut kept = self.open.take();
        if let Some(open) = &mut kept
            && open.sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut open = match kept {
            Some(open) => open,
            None => self.connect().await?,
        };
        let mut builder = hyper::Request::builder()
            .method(request.method)
            .uri(request.path.as_str())
            .header(HOST, self.server.to_string());
        if !request.body.is_empty() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let asked = builder
            .body(Full::new(Bytes::from(request.body.clone())))
            .map_err(|e| HttpError::Malformed(e.to_string()))?;
        let answer: hyper::Response<Incoming> = open.sender.send_request(asked).await.map_err(HttpError::Cut)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), request.max).collect().await;
        let body = body.map_err(|_| HttpError::TooLarge(request.max))?.to_bytes().to_vec();
        self.open = Some(open);
        Ok(Answer { status, body })
    }
}

impl Http for HttpsClient {
    async fn send(&mut self, request: Request) -> Result<Answer, HttpError> {
        let reused = self.open.is_some();
        let within = request.timeout;
        let ask = async {
            match self.exchange(&request).await {
                // The server closed an idle connection: the request may be sent again.
                Err(HttpError::Cut(_)) if reused => self.exchange(&request).await,
                other => other,
            }
        };
        let answer = crate::clock::timeout(within, ask).await;
        answer.unwrap_or(Err(HttpError::Timeout(within)))
    }
}

/// TLS to servers that Mozilla's CAs know.
pub(crate) fn public_tls() -> Result<TlsConnector, BadTrust> {
    connector(&Trust::Public, &Arc::new(Mutex::new(WRITTEN)))
}

fn connector(trust: &Trust, floor: &Floor) -> Result<TlsConnector, BadTrust> {
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(trust, &provider, floor)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| BadTrust::Tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn verifier(
    trust: &Trust,
    provider: &Arc<CryptoProvider>,
    floor: &Floor,
) -> Result<Arc<dyn ServerCertVerifier>, BadTrust> {
    let mut roots = RootCertStore::empty();
    let mut own = Vec::new();
    match trust {
        Trust::Pin(digest) => return Ok(Arc::new(Pinned { digest: *digest, provider: provider.clone() })),
        Trust::Public => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Trust::Own(pem) => {
            let found: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).flatten().collect();
            own.clone_from(&found);
            if roots.add_parsable_certificates(found).0 == 0 {
                return Err(BadTrust::NoCertificate);
            }
        }
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| BadTrust::Tls(e.to_string()))?;
    Ok(Arc::new(Dated { inner, own, floor: floor.clone() }))
}

/// Judges a certificate's dates at no earlier moment than one known to have passed.
#[derive(Debug)]
struct Dated {
    inner: Arc<WebPkiServerVerifier>,
    /// The configured certificates. A server may present one of them itself although it is marked as a CA.
    own: Vec<CertificateDer<'static>>,
    floor: Floor,
}

impl ServerCertVerifier for Dated {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let at = now.as_secs().max(*self.floor.lock().unwrap_or_else(PoisonError::into_inner));
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        match self.inner.verify_server_cert(end, chain, name, ocsp, at) {
            Err(TlsError::InvalidCertificate(CertificateError::Other(_))) if self.own.contains(end) => {
                verify_server_name(&ParsedCertificate::try_from(end)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts one certificate by its digest; names and dates in it do not count.
#[derive(Debug)]
struct Pinned {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let digest = ::ring::digest::digest(&::ring::digest::SHA256, end);
        if digest.as_ref() == self.digest {
            Ok(ServerCertVerified::assertion())
        } else {
            let other =
                words::OtherPin { seen: const_hex::encode(digest.as_ref()), pinned: const_hex::encode(self.digest) };
            Err(TlsError::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(other)))))
        }
    }

    // The handshake is still signed with the certificate's key: a copy of the certificate alone is worth nothing.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

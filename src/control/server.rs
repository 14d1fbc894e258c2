//! The listener: TLS with HTTP/1.1, a bounded number of connections with timeouts, graceful shutdown.
//!
//! HTTP/1.1 only: a device holds one long-poll open and sends little else.
//!
//! Waits for: new connections, their requests, the stop signal.
use crate::connections::{Connection, Connections};
use crate::limits::client;
use crate::proxies::{BadHeader, HEAD, Head, Proxies};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::FORWARDED;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// How long open connections may take to end after a stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// TCP keepalive: a dead connection is closed after about this time. Longer than NAT bindings live, because a device repeats
/// a poll that ended.
const KEEPALIVE: Duration = Duration::from_secs(120);

/// What serves a connection.
#[derive(Clone)]
struct ConnectionService {
    acceptor: TlsAcceptor,
    router: Router,
    /// How long a client may take for the handshake, for a request's head, between requests, and to accept a response.
    client_timeout: Duration,
    proxies: Arc<Proxies>,
}

/// What one client, and all together, may take.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections at a time.
    pub connections: usize,
    /// How long a client may take for each step.
    pub client_timeout: Duration,
    /// Who connects for others.
    pub proxies: Proxies,
}

/// Serves `router` on every listener until `stopping` turns true, then waits for open connections to end.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Arc<tokio_rustls::rustls::ServerConfig>,
    router: Router,
    limits: ConnectionLimits,
    stopping: watch::Receiver<bool>,
) {
    let mut accepting = JoinSet::new();
    let ConnectionLimits { connections, client_timeout, proxies } = limits;
    let connections = Connections::new(connections);
    let (acceptor, proxies) = (TlsAcceptor::from(tls), Arc::new(proxies));
    let service = ConnectionService { acceptor, router, client_timeout, proxies };
    for listener in listeners {
        accepting.spawn(accept(listener, service.clone(), connections.clone(), stopping.clone()));
    }
    while accepting.join_next().await.is_some() {}
}

async fn accept(
    listener: TcpListener,
    service: ConnectionService,
    connections: Arc<Connections>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|s| *s) => break,
        };
        while open.try_join_next().is_some() {}
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Most likely out of file descriptors: an immediate retry would fail as well.
                tracing::warn!(error = %e, retry_in = "100ms", "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = connections.open(client(peer.ip())) else {
            tracing::warn!(%peer, "connection refused: limit reached");
            continue;
        };
        let (service, stopping) = (service.clone(), stopping.clone());
        let place = Arc::new(place);
        open.spawn(async move {
            tokio::select! {
                () = connection(stream, peer, place.clone(), service, stopping) => {}
                () = place.close.notified() => tracing::debug!(%peer, "unproven connection closed for a new one"),
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(SHUTDOWN_TIMEOUT, async { while open.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(open = open.len(), "connections cut at shutdown");
    }
}

/// Why the source of a connection is not known.
#[derive(Debug, thiserror::Error)]
enum NoSource {
    #[error(transparent)]
    Header(#[from] BadHeader),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("nothing came within the time of a client")]
    Late,
}

/// Reads the header with which a named proxy begins a connection. `None`: the connection is its own.
async fn proxied_source(stream: &mut TcpStream, within: Duration) -> Result<Option<SocketAddr>, NoSource> {
    let read = async {
        let mut head = [0; HEAD];
        stream.read_exact(&mut head).await?;
        let head = Head::read(head)?;
        let mut rest = vec![0; head.rest];
        stream.read_exact(&mut rest).await?;
        Ok(head.source(&rest)?)
    };
    tokio::time::timeout(within, read).await.unwrap_or(Err(NoSource::Late))
}

async fn connection(
    mut stream: TcpStream,
    mut peer: SocketAddr,
    place: Arc<Connection>,
    ConnectionService { acceptor, router, client_timeout, proxies }: ConnectionService,
    mut stopping: watch::Receiver<bool>,
) {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let _ = stream.set_nodelay(true);
    // A client that acknowledges nothing is closed, even on a working line.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(client_timeout.max(KEEPALIVE / 2)));
    if proxies.sends_header(peer.ip()) {
        match proxied_source(&mut stream, client_timeout).await {
            Ok(source) => peer = source.unwrap_or(peer),
            // Opened and left: a check of the proxy.
            Err(NoSource::Io(e)) => {
                return tracing::debug!(%peer, error = %e, "connection of a proxy ended without a header");
            }
            Err(e) => return tracing::warn!(proxy = %peer, error = %e, "proxy sent no PROXY protocol header"),
        }
        place.attribute(client(peer.ip()));
    }
    let Ok(Ok(stream)) = tokio::time::timeout(client_timeout, acceptor.accept(stream)).await else {
        tracing::debug!(%peer, "TLS handshake failed");
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, place) = (router.clone(), place.clone());
        let forwarded = request.headers().get_all(FORWARDED).iter().map(|h| h.to_str().unwrap_or_default());
        let source = SocketAddr::new(proxies.source(peer.ip(), forwarded), peer.port());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(source));
            request.extensions_mut().insert(place);
            router.oneshot(request).await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(client_timeout)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = async { drop(stopping.wait_for(|s| *s).await) } => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(%peer, error = %e, "connection ended");
    }
}

//! Listens: TLS, one HTTP/1.1 connection per client, bounded in number and patience, ended gracefully.
//!
//! HTTP/1.1 only: a device holds one long-poll open and sends little else, and one protocol is one to get right.
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// How long requests may take to end after a stop.
const GRACE: Duration = Duration::from_secs(10);

/// A connection without a sign of life is given up after about this long; longer than NAT bindings live, since a poll that
/// ends asks anew anyway.
const KEEPALIVE: Duration = Duration::from_secs(120);

/// What a connection is served with.
#[derive(Clone)]
struct Service {
    acceptor: TlsAcceptor,
    router: Router,
    /// How long a client may take for the handshake, for a request's head, between requests, and to take an answer.
    patience: Duration,
}

/// Serves `router` on every listener until `stopping` turns true, then lets what is open end.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Arc<tokio_rustls::rustls::ServerConfig>,
    router: Router,
    (connections, patience): (usize, Duration),
    stopping: watch::Receiver<bool>,
) {
    let mut accepting = JoinSet::new();
    let room = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
    let service = Service { acceptor: TlsAcceptor::from(tls), router, patience };
    for listener in listeners {
        accepting.spawn(accept(listener, service.clone(), room.clone(), stopping.clone()));
    }
    while accepting.join_next().await.is_some() {}
}

async fn accept(listener: TcpListener, service: Service, room: Arc<Semaphore>, mut stopping: watch::Receiver<bool>) {
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
                // Out of file descriptors, most likely: the next try at once would fail as well.
                tracing::warn!(error = %e, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(seat) = room.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "too many connections: one is turned away");
            continue;
        };
        let (service, stopping) = (service.clone(), stopping.clone());
        open.spawn(async move {
            connection(stream, peer, service, stopping).await;
            drop(seat);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, async { while open.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(open = open.len(), "connections cut that did not end in time");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    Service { acceptor, router, patience }: Service,
    mut stopping: watch::Receiver<bool>,
) {
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let _ = stream.set_nodelay(true);
    // Who takes nothing of what was sent is gone, even if the line is not.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(patience.max(KEEPALIVE / 2)));
    let Ok(Ok(stream)) = tokio::time::timeout(patience, acceptor.accept(stream)).await else {
        tracing::debug!(%peer, "no TLS handshake");
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            router.oneshot(request).await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
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

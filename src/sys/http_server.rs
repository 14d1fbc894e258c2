//! A small HTTP/1.1 server: every request is read whole within limits of size, time and number, then answered.
//!
//! The cost of an unauthenticated client is bounded: connections in total and per source, seconds for header and body, bytes of
//! both, requests per second.
mod exchange;
mod stalling;
mod unproven;

use exchange::{Doors, exchange, shares};
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use spoke_api::http::limit::{Rate, RateLimit, network};
use spoke_api::http::{Request, Response};
use stalling::Stalling;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use unproven::Unproven;

/// Connections waiting to be accepted.
const BACKLOG: u32 = 256;
/// Delay before a failed bind or accept is repeated.
const RETRY: Duration = Duration::from_secs(2);
/// Timeout of open requests after a stop.
const GRACE: Duration = Duration::from_secs(3);
/// Longest header section, in bytes.
const HEADER_BYTES: usize = 16 * 1024;
/// Most header lines.
const HEADERS: usize = 64;

/// What one server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What is served, for the log.
    pub name: &'static str,
    /// Connections at a time; a quarter of them is for proven sources.
    pub connections: usize,
    /// Connections at a time from one source; sources on this machine are only bound by `connections`.
    pub per_source: usize,
    /// For a whole header to arrive, which is also how long an idle connection is kept.
    pub header: Duration,
    /// For a whole body to arrive.
    pub body: Duration,
    /// For the client to take some of the answer.
    pub stall: Duration,
    /// Longest body, in bytes.
    pub body_bytes: usize,
    /// Bytes of all bodies at a time that are longer than 16 KiB, half of them for proven sources; the rest wait within the time of
    /// their body.
    pub bodies_bytes: usize,
    /// Requests per second from one source; sources on this machine are exempt. `None`: not limited.
    pub rate: Option<Rate>,
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// By the head alone, before any of the body is read: refuses, or says how many bytes the body may have, at most
    /// [`Limits::body_bytes`]. Must not block.
    fn admit(&self, head: &Request) -> Result<usize, Response> {
        let _ = head;
        Ok(usize::MAX)
    }

    /// Whether a source has proved lately that it may make requests. Those of this machine need no proof.
    fn is_proven(&self, source: IpAddr) -> bool {
        let _ = source;
        false
    }

    /// A response of this status is sent, also one that was refused before [`Service::call`].
    fn responded(&self, status: u16) {
        let _ = status;
    }

    /// The answer to one request. Must not block.
    fn call(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// Turns an accepted connection into the stream that carries HTTP: plain, or TLS.
pub trait Wrap: Clone + Send + Sync + 'static {
    /// What comes out.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Does what has to be done before the first request, within [`Limits::header`].
    fn wrap(&self, stream: TcpStream) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

/// No encryption: for loopback and tunnel addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Wrap for Plain {
    type Stream = TcpStream;
    async fn wrap(&self, stream: TcpStream) -> std::io::Result<TcpStream> {
        Ok(stream)
    }
}

/// A stream of either kind of connection.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// [`Service`] and [`Wrap`] without their types: the server and `hyper` under it are compiled once.
trait Handler: Send + Sync {
    fn admit(&self, head: &Request) -> Result<usize, Response>;
    fn is_proven(&self, source: IpAddr) -> bool;
    fn responded(&self, status: u16);
    fn call(&self, request: Request) -> BoxFuture<'_, Response>;
    fn wrap(&self, stream: TcpStream) -> BoxFuture<'_, std::io::Result<Box<dyn Duplex>>>;
}

impl<S: Service, W: Wrap> Handler for (S, W) {
    fn admit(&self, head: &Request) -> Result<usize, Response> {
        self.0.admit(head)
    }

    fn is_proven(&self, source: IpAddr) -> bool {
        self.0.is_proven(source)
    }

    fn responded(&self, status: u16) {
        self.0.responded(status);
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.0.call(request))
    }

    fn wrap(&self, stream: TcpStream) -> BoxFuture<'_, std::io::Result<Box<dyn Duplex>>> {
        Box::pin(async move { Ok(Box::new(self.1.wrap(stream).await?) as Box<dyn Duplex>) })
    }
}

/// A server without its addresses.
pub struct Server {
    handler: Arc<dyn Handler>,
    limits: Limits,
    gate: Arc<Mutex<Gate>>,
    bodies: Bodies,
}

/// What long bodies may take, by who sends them: unknown sources leave the share of proven ones alone, and each has one at a time.
#[derive(Clone, Debug)]
struct Bodies {
    proven: Arc<Semaphore>,
    others: Arc<Semaphore>,
    unproven: Arc<Mutex<Unproven>>,
}

#[derive(Debug)]
struct Gate {
    open: BTreeMap<IpAddr, usize>,
    total: usize,
    unproven: usize,
    rate: Option<RateLimit>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// A server that answers by `service`.
    pub fn new(service: impl Service, wrap: impl Wrap, limits: Limits) -> Self {
        let gate = Gate { open: BTreeMap::new(), total: 0, unproven: 0, rate: limits.rate.map(RateLimit::new) };
        let half = || Arc::new(Semaphore::new(shares(limits.bodies_bytes / 2)));
        let bodies = Bodies { proven: half(), others: half(), unproven: Arc::default() };
        Self { handler: Arc::new((service, wrap)), limits, gate: Arc::new(Mutex::new(gate)), bodies }
    }

    /// Serves at every address until `stop` turns true or its sender is gone, then lets open requests end.
    ///
    /// An address that does not exist yet is bound already (`IP_FREEBIND`) and served as soon as it does; one that cannot
    /// be bound is tried again for ever and does not hold up the others.
    pub async fn run(&self, listen: &[SocketAddr], stop: watch::Receiver<bool>) {
        futures_util::future::join_all(listen.iter().map(|addr| self.listen(*addr, stop.clone()))).await;
    }

    /// As [`Server::run`], on a socket that is already bound: a test learns its port.
    #[cfg(test)]
    pub(crate) async fn run_on(&self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        self.accept(&listener, &mut stop).await;
    }

    async fn listen(&self, addr: SocketAddr, mut stop: watch::Receiver<bool>) {
        let mut logged = false;
        loop {
            match bind(addr) {
                Ok(listener) => {
                    tracing::info!(%addr, service = self.limits.name, "listening");
                    return self.accept(&listener, &mut stop).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut logged, true) {
                        tracing::error!(%addr, service = self.limits.name, %error, "cannot listen; trying again");
                    }
                }
            }
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    async fn accept(&self, listener: &TcpListener, stop: &mut watch::Receiver<bool>) {
        let mut open = JoinSet::new();
        loop {
            let (stream, source) = tokio::select! {
                () = stopped(stop) => break,
                Some(_) = open.join_next(), if !open.is_empty() => continue,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely: those in use will be given back.
                        tracing::warn!(%error, "cannot accept");
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let proven = source.ip().is_loopback() || self.handler.is_proven(source.ip());
            let Some(place) = Place::take(&self.gate, source.ip(), proven, &self.limits) else {
                tracing::debug!(%source, "too many connections");
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (handler, limits) = (self.handler.clone(), self.limits);
            let (gate, bodies, stop) = (self.gate.clone(), self.bodies.clone(), stop.clone());
            open.spawn(async move {
                let _place = place;
                match timeout(limits.header, handler.wrap(stream)).await {
                    Ok(Ok(stream)) => {
                        let doors = Doors { limits, gate, bodies };
                        connection(stream, source, handler.clone(), doors, stop).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%source, %error, "no handshake"),
                    Err(_) => tracing::debug!(%source, "handshake too slow"),
                }
            });
        }
        let _ = timeout(GRACE, async { while open.join_next().await.is_some() {} }).await;
    }
}

/// A server at a set of addresses that may change: our tunnel addresses come and go.
#[derive(Debug)]
pub struct Listeners {
    server: Arc<Server>,
    tasks: JoinSet<()>,
    open: BTreeMap<SocketAddr, watch::Sender<bool>>,
}

impl Listeners {
    /// Listens nowhere yet.
    pub fn new(server: Server) -> Self {
        Self { server: Arc::new(server), tasks: JoinSet::new(), open: BTreeMap::new() }
    }

    /// Listens at these addresses and no others from now on.
    pub fn set(&mut self, wanted: &BTreeSet<SocketAddr>) {
        // Dropping the sender is the stop sign.
        self.open.retain(|addr, _| wanted.contains(addr));
        for addr in wanted {
            self.open.entry(*addr).or_insert_with(|| {
                let (stop, stopped) = watch::channel(false);
                let (server, addr) = (self.server.clone(), *addr);
                self.tasks.spawn(async move { server.run(&[addr], stopped).await });
                stop
            });
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// Stops listening and lets open requests end.
    pub async fn close(mut self) {
        self.open.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The configured addresses and, at the port of the first of them, those of our interfaces.
pub fn with_own_addresses(listen: &[SocketAddr], own: impl IntoIterator<Item = IpAddr>) -> BTreeSet<SocketAddr> {
    let mut out: BTreeSet<SocketAddr> = listen.iter().copied().collect();
    // A wildcard address has them all already.
    let everywhere = |ip: &IpAddr| listen.iter().any(|l| l.ip().is_unspecified() && l.is_ipv4() == ip.is_ipv4());
    if let Some(first) = listen.first() {
        out.extend(own.into_iter().filter(|ip| !everywhere(ip)).map(|ip| SocketAddr::new(ip, first.port())));
    }
    out
}

/// Binds without waiting for the address to exist.
fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    let free = if addr.is_ipv4() {
        rustix::net::sockopt::set_ip_freebind(&socket, true)
    } else {
        rustix::net::sockopt::set_ipv6_freebind(&socket, true)
    };
    if let Err(error) = free {
        tracing::debug!(%addr, %error, "no IP_FREEBIND: the address must exist");
    }
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Resolves once a stop was requested, or its sender is dropped.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender is a stop.
    let _ = stop.wait_for(|s| *s).await;
}

/// A connection's place among those allowed; given back when dropped.
struct Place {
    gate: Arc<Mutex<Gate>>,
    source: IpAddr,
    proven: bool,
}

impl Place {
    fn take(gate: &Arc<Mutex<Gate>>, source: IpAddr, proven: bool, limits: &Limits) -> Option<Self> {
        let mut g = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let source = network(source);
        let there = g.open.get(&source).copied().unwrap_or(0);
        let full = g.total >= limits.connections
            || (!source.is_loopback() && there >= limits.per_source)
            || (!proven && g.unproven >= limits.connections - limits.connections / 4);
        if full {
            return None;
        }
        g.open.insert(source, there + 1);
        g.total += 1;
        g.unproven += usize::from(!proven);
        drop(g);
        Some(Self { gate: gate.clone(), source, proven })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut g = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        g.total = g.total.saturating_sub(1);
        g.unproven = g.unproven.saturating_sub(usize::from(!self.proven));
        match g.open.get_mut(&self.source) {
            Some(n) if *n > 1 => *n -= 1,
            Some(_) => drop(g.open.remove(&self.source)),
            None => {}
        }
    }
}

async fn connection(
    stream: Box<dyn Duplex>,
    source: SocketAddr,
    handler: Arc<dyn Handler>,
    doors: Doors,
    mut stop: watch::Receiver<bool>,
) {
    let limits = doors.limits;
    let answer = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (handler, doors) = (handler.clone(), doors.clone());
        async move { Ok::<_, Infallible>(exchange(request, source, &*handler, &doors).await) }
    });
    let stopping = Arc::new(AtomicBool::new(false));
    let io = TokioIo::new(Stalling::new(stream, limits.stall, stopping.clone()));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADERS)
        .serve_connection(io, answer);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopped(&mut stop) => {
            stopping.store(true, Ordering::Relaxed);
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%source, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests;

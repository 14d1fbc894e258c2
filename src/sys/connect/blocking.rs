//! Happy Eyeballs for code that blocks, and `ureq` on top of it.
use super::{Families, Family, MAX_ADDRESSES, NoConnection, Race};
use crate::clock::{Clock as _, SystemClock};
use crate::resolve;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, RustlsConnector,
    Transport,
};

/// Connects to the first of `addresses` that responds, within a time.
pub fn connect(addresses: &[SocketAddr], first: Option<Family>, within: Option<Duration>) -> io::Result<TcpStream> {
    let mut race = Race::new(addresses, first);
    let began = SystemClock.now();
    let (mut attempts, mut lost) = (Vec::<(SocketAddr, Socket)>::new(), NoConnection::default());
    loop {
        let at = SystemClock.now().since(began);
        while let Some(address) = race.start(at) {
            match begin(address) {
                Ok(socket) => attempts.push((address, socket)),
                Err(e) => {
                    race.failed();
                    lost.push(address, e);
                }
            }
        }
        if race.is_lost() {
            return Err(lost.into_io());
        }
        let left = within.map(|w| w.saturating_sub(at));
        if left == Some(Duration::ZERO) {
            for (address, _) in attempts {
                lost.push(address, io::ErrorKind::TimedOut.into());
            }
            return Err(lost.into_io());
        }
        let next = race.deadline().map(|d| d.saturating_sub(at));
        for index in ready(&attempts, [left, next].into_iter().flatten().min())?.into_iter().rev() {
            let (address, socket) = attempts.swap_remove(index);
            match finish(socket) {
                Ok(stream) => return Ok(stream),
                Err(e) => {
                    race.failed();
                    lost.push(address, e);
                }
            }
        }
    }
}

fn begin(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(e),
        Ok(()) | Err(_) => Ok(socket),
    }
}

/// Indexes of attempts that have ended, in ascending order.
fn ready(attempts: &[(SocketAddr, Socket)], within: Option<Duration>) -> io::Result<Vec<usize>> {
    let mut fds: Vec<_> = attempts.iter().map(|(_, s)| PollFd::new(s, PollFlags::OUT)).collect();
    let timeout = within.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(n, _)| n).collect())
}

fn finish(socket: Socket) -> io::Result<TcpStream> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// An agent of `config` that connects by Happy Eyeballs and remembers the families that worked.
pub fn agent(config: ureq::config::Config) -> ureq::Agent {
    let chain = ().chain(ConnectProxyConnector::default()).chain(TcpRace::default()).chain(RustlsConnector::default());
    ureq::Agent::with_parts(config, chain, PerFamily)
}

/// [`resolve::blocking`] for `ureq`.
#[derive(Debug)]
struct PerFamily;

impl Resolver for PerFamily {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or_else(|| ureq::Error::BadUri(uri.to_string()))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let found = resolve::blocking(bare, port, timeout.not_zero().map(|t| *t)).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
            _ => ureq::Error::Io(e),
        })?;
        let mut all = self.empty();
        for address in config.ip_family().keep_wanted(found.into_iter()).take(MAX_ADDRESSES) {
            all.push(address);
        }
        if all.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(all) }
    }
}

#[derive(Debug, Default)]
struct TcpRace(Families);

impl<In: Transport> Connector<In> for TcpRace {
    type Out = Either<In, Tcp>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        if let Some(proxied) = chained {
            return Ok(Some(Either::A(proxied)));
        }
        let host = details.uri.host().unwrap_or_default();
        let within = details.timeout.not_zero().map(|t| *t);
        let stream = connect(&details.addrs, self.0.first(host), within).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => ureq::Error::Timeout(details.timeout.reason),
            _ => ureq::Error::Io(e),
        })?;
        stream.set_nodelay(true)?;
        let family = Family::of(&stream.peer_addr()?);
        self.0.connected(host, family);
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        let silent = Some((self.0.clone(), host.to_owned(), family));
        Ok(Some(Either::B(Tcp { stream, buffers, silent })))
    }
}

/// A connection for `ureq`.
struct Tcp {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// Where to report that it carried nothing; `None` once it has.
    silent: Option<(Families, String, Family)>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp").field("peer", &self.stream.peer_addr().ok()).finish_non_exhaustive()
    }
}

/// The error of a read or write whose time is over says `WouldBlock`.
fn timed(timeout: &NextTimeout) -> impl Fn(io::Error) -> ureq::Error + '_ {
    |e| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(e),
    }
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|t| *t))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.stream.write_all(output).map_err(timed(&timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|t| *t))?;
        let input = self.buffers.input_append_buf();
        let read = loop {
            match self.stream.read(input) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(timed(&timeout)),
            }
        };
        if let (Err(ureq::Error::Timeout(_)), Some((families, host, family))) = (&read, self.silent.take()) {
            families.stalled(&host, family);
        }
        let amount = read?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Unrequested bytes or an end make it unusable.
        let mut byte = [0];
        let idle = self.stream.set_nonblocking(true).is_ok()
            && matches!(self.stream.peek(&mut byte), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).is_ok() && idle
    }
}

//! TCP connections to a host with several addresses (RFC 8305, Happy Eyeballs): addresses that do not respond delay the
//! others by a quarter of a second each, and a family that worked is tried first for ten minutes.
//!
//! [`Race`] decides what is tried when, without clock or I/O. [`connect`] drives it for tokio, [`blocking`] for threads.
use crate::clock::{Clock as _, SystemClock};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;

pub mod blocking;

/// Time that an attempt has before the next one starts beside it (RFC 8305 §8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long the family of a connection is tried first.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Addresses tried at most.
const MAX_ADDRESSES: usize = 16;
/// Hosts remembered at most.
const MAX_HOSTS: usize = 64;

/// A version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: &SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The attempts to connect to one host. Times are since its start.
///
/// Driver contract: start what [`Race::start`] returns, again and again; report each failed attempt by [`Race::failed`];
/// sleep until [`Race::deadline`] or the end of an attempt. The first connection wins.
#[derive(Debug)]
pub struct Race {
    waiting: VecDeque<SocketAddr>,
    open: usize,
    next: Duration,
}

impl Race {
    /// A race to `addresses`, which the resolver has sorted (RFC 6724). Their families take turns, `first` before the
    /// other; without it, that of the first address.
    pub fn new(addresses: &[SocketAddr], first: Option<Family>) -> Self {
        let first = first.or_else(|| addresses.first().map(Family::of)).unwrap_or(Family::V4);
        let of = |family| addresses.iter().copied().filter(move |a| Family::of(a) == family);
        let (mut these, mut those) = (of(first), of(first.other()));
        let mut waiting = VecDeque::new();
        loop {
            let turn = [these.next(), those.next()];
            if turn == [None, None] || waiting.len() >= MAX_ADDRESSES {
                break;
            }
            waiting.extend(turn.into_iter().flatten());
        }
        Self { waiting, open: 0, next: Duration::ZERO }
    }

    /// The address to try now, if one is due.
    pub fn start(&mut self, at: Duration) -> Option<SocketAddr> {
        if at < self.next {
            return None;
        }
        let address = self.waiting.pop_front()?;
        self.open += 1;
        self.next = at + ATTEMPT_DELAY;
        Some(address)
    }

    /// An attempt has failed: the next one is due at once.
    pub fn failed(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.next = Duration::ZERO;
    }

    /// When the next attempt is due; `None`: there is none.
    pub fn deadline(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(self.next)
    }

    /// Whether every attempt has failed.
    pub fn is_lost(&self) -> bool {
        self.open == 0 && self.waiting.is_empty()
    }
}

/// Every attempt has failed, each with its reason.
#[derive(Debug, Default, thiserror::Error)]
pub struct NoConnection(Vec<(SocketAddr, io::Error)>);

impl std::fmt::Display for NoConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the host has no address");
        }
        for (n, (address, error)) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{address}: {error}")?;
        }
        Ok(())
    }
}

impl NoConnection {
    fn push(&mut self, address: SocketAddr, error: io::Error) {
        self.0.push((address, error));
    }

    /// Of the kind of the last attempt, which has failed or outlived the others.
    fn into_io(self) -> io::Error {
        let kind = self.0.last().map_or(io::ErrorKind::NotFound, |(_, e)| e.kind());
        io::Error::new(kind, self)
    }
}

/// Whether an address has refused the connection: a reset comes from the far end too.
pub fn was_refused(error: &io::Error) -> bool {
    let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    let all = error.get_ref().and_then(|inner| inner.downcast_ref::<NoConnection>());
    all.map_or_else(|| refused(error), |all| all.0.iter().any(|(_, e)| refused(e)))
}

/// Connects to the first of `addresses` that responds. No time limit of its own.
pub async fn connect(addresses: &[SocketAddr], first: Option<Family>) -> io::Result<TcpStream> {
    let mut race = Race::new(addresses, first);
    let began = tokio::time::Instant::now();
    let (mut attempts, mut lost) = (FuturesUnordered::new(), NoConnection::default());
    loop {
        while let Some(address) = race.start(began.elapsed()) {
            attempts.push(async move { (address, TcpStream::connect(address).await) });
        }
        if race.is_lost() {
            return Err(lost.into_io());
        }
        let next = race.deadline();
        tokio::select! {
            Some((address, result)) = attempts.next(), if !attempts.is_empty() => match result {
                Ok(stream) => return Ok(stream),
                Err(e) => {
                    race.failed();
                    lost.push(address, e);
                }
            },
            () = tokio::time::sleep_until(began + next.unwrap_or_default()), if next.is_some() => {}
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    family: Family,
    since: Boot,
}

/// Which family worked, by host. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Families(Arc<Mutex<BTreeMap<String, Remembered>>>);

impl Families {
    /// The family to try first; `None`: the order of the resolver.
    pub fn first(&self, host: &str) -> Option<Family> {
        self.first_at(host, SystemClock.now())
    }

    /// A connection to `host` over `family` was made.
    pub fn connected(&self, host: &str, family: Family) {
        self.remember(host, family, SystemClock.now(), false);
    }

    /// A connection to `host` over `family` was made and carried nothing: the other family goes first.
    pub fn stalled(&self, host: &str, family: Family) {
        self.remember(host, family.other(), SystemClock.now(), true);
    }

    fn first_at(&self, host: &str, now: Boot) -> Option<Family> {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).filter(|r| now.since(r.since) < REMEMBERED).map(|r| r.family)
    }

    /// What is remembered already is not extended, so that the resolver's order gets its turn again.
    fn remember(&self, host: &str, family: Family, now: Boot, over: bool) {
        if !over && self.first_at(host, now) == Some(family) {
            return;
        }
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MAX_HOSTS && !hosts.contains_key(host) {
            hosts.clear();
        }
        hosts.insert(host.to_owned(), Remembered { family, since: now });
    }
}

#[cfg(test)]
mod tests;

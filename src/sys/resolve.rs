//! Names to addresses, by the system's own resolver. A family that is not answered does not delay the other (RFC 8305 §3).
use crate::connect::Family;
use futures_util::future::{Either, select};
use spoke_model::address::HostPort;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Look-ups under way at once, in each family. The system's resolver cannot be interrupted: one that hangs keeps its thread until
/// its own timeout, and without a bound a dead DNS server would collect threads.
const MAX_LOOKUPS: usize = 3;
/// What the slower family gets after the first has an address (RFC 8305 §3 proposes 50 ms for a person who waits; here an
/// address that is missing costs an attempt).
const RESOLUTION_DELAY: Duration = Duration::from_millis(500);
/// Stack of a thread that looks up.
const STACK: usize = 256 * 1024;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver returned an error.
    #[error("{name} cannot be looked up")]
    Failed {
        /// The name.
        name: HostPort,
        /// The resolver's answer.
        #[source]
        source: std::io::Error,
    },
    /// The name exists and has no address.
    #[error("{0} has no address")]
    Empty(HostPort),
    /// No answer in time.
    #[error("{name} was not looked up within {within:?}")]
    TimedOut {
        /// The name.
        name: HostPort,
        /// The time it had.
        within: Duration,
    },
}

/// Looks names up.
pub trait Resolve: Clone + Send + Sync + 'static {
    /// Every address of the name, IPv4 and IPv6, in the order the system prefers; never empty.
    fn resolve(
        &self,
        name: &HostPort,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<SocketAddr>, ResolveError>> + Send + 'static;
}

/// `getaddrinfo` on the blocking pool, for each family by itself.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    free: [Arc<Semaphore>; 2],
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { free: [(); 2].map(|()| Arc::new(Semaphore::new(MAX_LOOKUPS))) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(
        &self,
        name: &HostPort,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<SocketAddr>, ResolveError>> + Send + 'static {
        let (name, [free4, free6]) = (name.clone(), self.free.clone());
        async move {
            if let Some(address) = name.literal() {
                return Ok(vec![address]);
            }
            let both = first_of(start(name.clone(), Family::V4, free4), start(name.clone(), Family::V6, free6));
            match tokio::time::timeout(within, both).await {
                Ok(Ok(addresses)) if addresses.is_empty() => Err(ResolveError::Empty(name)),
                Ok(Ok(addresses)) => Ok(addresses),
                Ok(Err(source)) => Err(ResolveError::Failed { name, source }),
                Err(_) => Err(ResolveError::TimedOut { name, within }),
            }
        }
    }
}

type Found = io::Result<Vec<SocketAddr>>;

async fn start(name: HostPort, family: Family, free: Arc<Semaphore>) -> Found {
    let permit = free.acquire_owned().await.map_err(io::Error::other)?;
    let look_up = move || {
        // Held until the resolver returns, also when the caller has stopped waiting.
        let _permit = permit;
        look_up(&name.host, name.port, family)
    };
    tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other)?
}

/// The answer of the family that has an address first, and of the other if it comes within [`RESOLUTION_DELAY`].
async fn first_of(v4: impl Future<Output = Found>, v6: impl Future<Output = Found>) -> Found {
    let (v4, v6) = (pin!(v4), pin!(v6));
    match select(v4, v6).await {
        Either::Left((first, rest)) => with_second(first, rest).await,
        Either::Right((first, rest)) => with_second(first, rest).await,
    }
}

async fn with_second(first: Found, rest: impl Future<Output = Found>) -> Found {
    let second = match has_address(&first) {
        true => tokio::time::timeout(RESOLUTION_DELAY, rest).await.ok(),
        false => Some(rest.await),
    };
    merge(first, second)
}

/// Blocks as [`SystemResolver`] waits, on threads of its own. `within`: `None` for the system's own limit.
///
/// # Errors
/// The resolver's error, or none of the two families was answered in time.
pub fn blocking(host: &str, port: u16, within: Option<Duration>) -> Found {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (answer, answers) = mpsc::channel();
    for family in [Family::V4, Family::V6] {
        let (host, answer) = (host.to_owned(), answer.clone());
        std::thread::Builder::new().stack_size(STACK).spawn(move || answer.send(look_up(&host, port, family)).ok())?;
    }
    drop(answer);
    let next = |within: Option<Duration>| match within {
        Some(within) => answers.recv_timeout(within).ok(),
        None => answers.recv().ok(),
    };
    let first = next(within).ok_or(io::ErrorKind::TimedOut)?;
    let second = next(if has_address(&first) { Some(RESOLUTION_DELAY) } else { within });
    merge(first, second)
}

fn look_up(host: &str, port: u16, family: Family) -> Found {
    use dns_lookup::{AddrFamily, AddrInfoHints, SockType, getaddrinfo};
    let family = match family {
        Family::V4 => AddrFamily::Inet,
        Family::V6 => AddrFamily::Inet6,
    };
    let hints = AddrInfoHints { address: family.into(), socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
    let found = getaddrinfo(Some(host), None, Some(hints)).map_err(io::Error::from)?;
    found
        .map(|info| {
            let mut address = info?.sockaddr;
            address.set_port(port);
            Ok(address)
        })
        .collect()
}

fn has_address(found: &Found) -> bool {
    found.as_ref().is_ok_and(|a| !a.is_empty())
}

/// The addresses of both, best first; the first error if there is none.
fn merge(first: Found, second: Option<Found>) -> Found {
    let second = second.unwrap_or_else(|| Ok(Vec::new()));
    let mut all = match (first, second) {
        (Ok(first), Ok(second)) => [first, second].concat(),
        (Ok(only), Err(_)) | (Err(_), Ok(only)) if !only.is_empty() => only,
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    all.sort_by_cached_key(rank);
    Ok(all)
}

/// The order between the families as RFC 6724 has it by default: IPv6 first if the system has a matching address for it, then
/// IPv4, and last what it has no route to. Connecting a datagram socket sends nothing.
fn rank(address: &SocketAddr) -> u8 {
    let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let source = std::net::UdpSocket::bind((any, 0)).and_then(|s| {
        s.connect(address)?;
        s.local_addr()
    });
    match (source, address.ip()) {
        (Err(_), _) => 3,
        (Ok(_), IpAddr::V4(_)) => 1,
        (Ok(source), IpAddr::V6(to)) => match source.ip() {
            // Label 13 of RFC 6724 §2.1: a private network does not reach the Internet.
            IpAddr::V6(own) if own.is_unique_local() && !to.is_unique_local() => 2,
            IpAddr::V6(_) | IpAddr::V4(_) => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_of_this_machine_and_literals() {
        let resolver = SystemResolver::default();
        let s = Duration::from_secs(5);
        let local = resolver.resolve(&"localhost:51820".parse().unwrap(), s).await.unwrap();
        assert!(local.iter().all(|a| a.ip().is_loopback() && a.port() == 51820), "{local:?}");
        let literal = resolver.resolve(&"[2001:db8::1]:1".parse().unwrap(), Duration::ZERO).await.unwrap();
        assert_eq!(literal, ["[2001:db8::1]:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_is_an_error_in_time() {
        let resolver = SystemResolver::default();
        let e = resolver.resolve(&"no-such-host.invalid:1".parse().unwrap(), Duration::from_secs(5)).await.unwrap_err();
        assert!(e.to_string().contains("no-such-host.invalid"), "{e}");
    }

    #[tokio::test(start_paused = true)]
    async fn family_without_an_answer_delays_the_other_briefly() {
        let (v4, v6) = (["192.0.2.1:1".parse().unwrap()], ["[2001:db8::1]:1".parse().unwrap()]);
        let never = std::future::pending::<Found>;
        let after = |ms, found: Found| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            found
        };
        let none = || Err(io::Error::other("no such name"));
        let began = tokio::time::Instant::now();
        assert_eq!(first_of(after(20, Ok(v4.to_vec())), never()).await.unwrap(), v4);
        assert_eq!(first_of(never(), after(20, Ok(v6.to_vec()))).await.unwrap(), v6);
        assert_eq!(began.elapsed(), (RESOLUTION_DELAY + Duration::from_millis(20)) * 2);
        // Both in time; one that has none makes the other no earlier and no later.
        assert_eq!(first_of(after(20, Ok(v4.to_vec())), after(400, Ok(v6.to_vec()))).await.unwrap().len(), 2);
        assert_eq!(first_of(after(900, Ok(v4.to_vec())), after(20, none())).await.unwrap(), v4);
        assert_eq!(first_of(after(900, Ok(v4.to_vec())), after(20, Ok(vec![]))).await.unwrap(), v4);
        assert!(first_of(after(20, none()), after(30, none())).await.is_err());
        assert!(first_of(after(20, none()), after(30, Ok(vec![]))).await.is_err());
    }

    #[test]
    fn blocking_look_up_of_literals_and_names() {
        assert_eq!(blocking("2001:db8::1", 7, None).unwrap(), ["[2001:db8::1]:7".parse().unwrap()]);
        let local = blocking("localhost", 7, Some(Duration::from_secs(5))).unwrap();
        assert!(!local.is_empty() && local.iter().all(|a| a.ip().is_loopback() && a.port() == 7), "{local:?}");
        assert!(blocking("no-such-host.invalid", 7, Some(Duration::from_secs(5))).is_err());
    }
}

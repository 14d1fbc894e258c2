//! Names to addresses, by the system's own resolver.
use spoke_model::address::HostPort;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Look-ups under way at once. The system's resolver cannot be interrupted: one that hangs keeps its thread until its
/// own timeout, and without a bound a dead DNS server would collect threads.
const MAX_LOOKUPS: usize = 4;

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

/// `getaddrinfo` on the blocking pool.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    free: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(
        &self,
        name: &HostPort,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<SocketAddr>, ResolveError>> + Send + 'static {
        let (name, free) = (name.clone(), self.free.clone());
        async move {
            if let Some(address) = name.literal() {
                return Ok(vec![address]);
            }
            let asked = name.clone();
            let look_up = async move {
                let permit = free.acquire_owned().await.map_err(std::io::Error::other)?;
                tokio::task::spawn_blocking(move || {
                    // Held until the resolver returns, also when the caller has stopped waiting.
                    let _permit = permit;
                    std::net::ToSocketAddrs::to_socket_addrs(&(asked.host.as_str(), asked.port)).map(Vec::from_iter)
                })
                .await
                .map_err(std::io::Error::other)?
            };
            match tokio::time::timeout(within, look_up).await {
                Ok(Ok(addresses)) if addresses.is_empty() => Err(ResolveError::Empty(name)),
                Ok(Ok(addresses)) => Ok(addresses),
                Ok(Err(source)) => Err(ResolveError::Failed { name, source }),
                Err(_) => Err(ResolveError::TimedOut { name, within }),
            }
        }
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
}

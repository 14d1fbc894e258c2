//! Task that drives the hub session ([`spoke_uplink::session`]). Waits for: an echo reply, the end of a look-up, a network
//! change, the session's deadline.
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::{Span, Word};
use spoke_net::derive::UplinkChoice;
use spoke_sys::clock::Clock;
use spoke_sys::echo::Echo;
use spoke_sys::kernel::{ReadCounters, ReadPath};
use spoke_sys::resolve::Resolve;
use spoke_uplink::session::{Config, RESOLVE_TIMEOUT, Sample, Seen, Session, SessionAction, SessionEvent};
use spoke_uplink::status::{Transition, UplinkStatus};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Time limit of reading the counters from the kernel.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Looked up while no address of a hub is known: any address outside (RFC 5737, RFC 3849). Nothing is sent to them.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Inputs and outputs of the task.
#[derive(Debug)]
pub struct Uplink<R, P, E, D, C> {
    /// Configuration of the session.
    pub config: Config,
    /// Seed of the jitter.
    pub seed: u64,
    /// The interface's counters.
    pub counters: R,
    /// The way to the hub outside of the tunnel.
    pub path: P,
    /// Echo through the tunnel.
    pub echo: E,
    /// Name look-up.
    pub resolver: D,
    /// Clocks.
    pub clock: C,
    /// The published choice; the first one precedes any look-up.
    pub choice: watch::Sender<Option<Arc<UplinkChoice>>>,
    /// The published status.
    pub status: watch::Sender<UplinkStatus>,
    /// Changes with every kernel event about links, addresses and routes.
    pub wake: watch::Receiver<u64>,
}

type LookUp = Pin<Box<dyn Future<Output = (usize, Vec<SocketAddr>)> + Send>>;

impl<R: ReadCounters, P: ReadPath, E: Echo, D: Resolve, C: Clock> Uplink<R, P, E, D, C> {
    /// Runs until dropped.
    pub async fn run(mut self) -> Result<(), Infallible> {
        let mut session = Session::new(self.clock.now(), self.seed, self.config.clone());
        let mut look_up: Option<LookUp> = None;
        let mut events = VecDeque::from([SessionEvent::Tick]);
        let mut network_events = true;
        loop {
            while let Some(event) = events.pop_front() {
                for action in session.handle(self.clock.now(), event) {
                    match action {
                        SessionAction::Resolve(hub) => look_up = self.look_up(hub),
                        SessionAction::Publish => self.publish(&session),
                        SessionAction::Sample => events.push_back(self.sample().await),
                        SessionAction::Look => events.extend(self.look(&session).await),
                        SessionAction::Echo { to, seq } => {
                            tracing::debug!(%to, seq, "echo");
                            if let Err(e) = self.echo.send(&self.config.uplink.interface, to, seq).await {
                                tracing::debug!(%to, error = %ErrorChain(&e), "cannot send echo");
                                events.push_back(SessionEvent::Unsent { seq });
                            }
                        }
                        SessionAction::Report(transition) => report(&transition),
                    }
                }
            }
            self.status.send_if_modified(|s| {
                let changed = s != session.status();
                if changed {
                    s.clone_from(session.status());
                }
                changed
            });
            let deadline = session.deadline();
            let wait = deadline.map_or(READ_TIMEOUT, |d| d.at.since(self.clock.now()));
            tracing::debug!(wait = %Span(wait), reason = deadline.as_ref().map(|d| tracing::field::display(Word(&d.reason))), "uplink waiting");
            let event = tokio::select! {
                (from, seq) = self.echo.answer() => Some(SessionEvent::Answered { from, seq }),
                (hub, addresses) = pending(&mut look_up) => {
                    look_up = None;
                    Some(SessionEvent::Resolved { hub, addresses })
                }
                changed = self.wake.changed(), if network_events => {
                    // Without a sender the session runs by its deadlines alone.
                    network_events = changed.is_ok();
                    None
                }
                () = self.clock.sleep(wait) => Some(SessionEvent::Tick),
            };
            match event {
                Some(event) => events.push_back(event),
                None => events.extend(self.look(&session).await),
            }
        }
    }

    /// Looks up the way to the hub, or to anywhere while no address of a hub is known.
    async fn look(&mut self, session: &Session) -> Option<SessionEvent> {
        let to = session.path_target();
        let asked = to.as_ref().map_or(&ANYWHERE[..], std::slice::from_ref);
        let mut first = None;
        for address in asked {
            match tokio::time::timeout(READ_TIMEOUT, self.path.path(*address)).await {
                Ok(Ok(path)) if path.is_open() => {
                    first = Some(path);
                    break;
                }
                Ok(Ok(path)) => first = first.or(Some(path)),
                Ok(Err(e)) => tracing::debug!(to = %address, error = %ErrorChain(&e), "cannot look up route"),
                Err(_) => tracing::debug!(to = %address, timeout = %Span(READ_TIMEOUT), "looking up a route timed out"),
            }
        }
        first.map(|path| SessionEvent::Path { to, path })
    }

    fn publish(&self, session: &Session) {
        let choice = session.choice();
        self.choice.send_if_modified(|published| {
            let changed = published.as_deref() != choice.as_ref();
            if changed {
                *published = choice.map(Arc::new);
            }
            changed
        });
    }

    fn look_up(&self, hub: usize) -> Option<LookUp> {
        let asked = self.config.uplink.hubs.get(hub)?;
        let found = self.resolver.resolve(&asked.endpoint, RESOLVE_TIMEOUT);
        let name = asked.name.clone();
        Some(Box::pin(async move {
            let addresses = found.await.unwrap_or_else(|e| {
                tracing::warn!(hub = %name, error = %ErrorChain(&e), "cannot resolve hub; using its last good addresses");
                Vec::new()
            });
            (hub, addresses)
        }))
    }

    async fn sample(&mut self) -> SessionEvent {
        let read = tokio::time::timeout(READ_TIMEOUT, self.counters.counters(&self.config.uplink.interface)).await;
        let link = match read {
            Ok(Ok(link)) => link,
            Ok(Err(e)) => {
                tracing::warn!(error = %ErrorChain(&e), "cannot read counters");
                return SessionEvent::Unsampled;
            }
            Err(_) => {
                tracing::warn!(timeout = %Span(READ_TIMEOUT), "reading counters timed out");
                return SessionEvent::Unsampled;
            }
        };
        let peers = link.as_ref().map(|l| &l.peers);
        let seen = |key| peers?.get(key).map(|p| Seen { counters: p.counters, endpoint: p.endpoint });
        let index = link.as_ref().map(|l| l.index);
        SessionEvent::Sampled(Sample {
            link: index,
            hubs: self.config.uplink.hubs.iter().map(|h| seen(&h.public_key)).collect(),
        })
    }
}

async fn pending(look_up: &mut Option<LookUp>) -> (usize, Vec<SocketAddr>) {
    match look_up {
        Some(look_up) => look_up.await,
        None => std::future::pending().await,
    }
}

fn report(t: &Transition) {
    use spoke_uplink::status::State;
    let (hub, code, reason) = (&t.hub, t.code, t.code.detail());
    if let Some(rung) = t.rung {
        tracing::info!(%hub, rung = %Word(&rung), reason = rung.reason(), "uplink recovery step");
    }
    match t.to {
        State::Up => tracing::info!(%hub, code = %Word(&code), reason, "tunnel is up"),
        State::Waiting => tracing::warn!(%hub, code = %Word(&code), reason, "tunnel is down"),
        State::Starting | State::Resolving | State::Connecting => {
            tracing::debug!(%hub, code = %Word(&code), reason, to = %Word(&t.to), "uplink state changed")
        }
    }
}

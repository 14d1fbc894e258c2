//! Follows the contract's events at a WebSocket endpoint, as a wake-up for the watcher. Waits for: messages, timeouts, backoff.
use spoke_config::grants::Grants;
use spoke_grants::subscription::{Meaning, Step, Subscription, request};
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::Span;
use spoke_sys::clock::Clock;
use spoke_sys::random::seed;
use spoke_sys::websocket::{Received, WebSockets};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Between the subscription and the watcher.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    /// Notified at each message about an event.
    pub(crate) woken: Notify,
    /// Notified when the status changes.
    pub(crate) changed: Notify,
    status: Mutex<Option<String>>,
}

impl Wake {
    /// The endpoint that is subscribed to, or why there is none; `None`: not configured.
    pub(crate) fn status(&self) -> Option<String> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, status: String) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.changed.notify_one();
    }
}

/// Runs until it is dropped; without `subscribe` it only waits.
pub(crate) async fn run<C: Clock>(clock: C, grants: &Grants, wake: &Wake) -> Infallible {
    let sockets = match WebSockets::new(grants) {
        Ok(sockets) if !sockets.is_empty() => sockets,
        Ok(_) => return std::future::pending().await,
        Err(e) => {
            let error = ErrorChain(&e).to_string();
            tracing::warn!(error, "chain subscription impossible; polling goes on");
            wake.set(format!("none: {error}"));
            return std::future::pending().await;
        }
    };
    wake.set("none yet".to_owned());
    let request = request(grants.contract);
    let mut machine = Subscription::new(sockets.len(), clock.now(), seed());
    loop {
        let endpoint = match machine.step(clock.now()) {
            Step::Wait(until) => {
                clock.sleep(until.since(clock.now())).await;
                continue;
            }
            Step::Connect(endpoint) => endpoint,
            Step::Receive(_) => 0,
        };
        let error = follow(&clock, &sockets, endpoint, &request, &mut machine, wake).await;
        let (retry_in, first) = machine.failed(clock.now());
        let endpoint = sockets.name(endpoint);
        if first {
            tracing::warn!(endpoint, error, retry_in = %Span(retry_in), "chain subscription failed; polling goes on");
        } else {
            tracing::debug!(endpoint, error, retry_in = %Span(retry_in), "chain subscription failed again");
        }
        wake.set(format!("none: {endpoint}: {error}"));
    }
}

/// Follows one connection; returns why it has ended.
async fn follow<C: Clock>(
    clock: &C,
    sockets: &WebSockets,
    endpoint: usize,
    request: &str,
    machine: &mut Subscription,
    wake: &Wake,
) -> String {
    let mut socket = match sockets.open(endpoint).await {
        Ok(socket) => socket,
        Err(e) => return e.to_string(),
    };
    if let Err(e) = socket.say(request).await {
        return e.to_string();
    }
    machine.connected(clock.now());
    loop {
        let Step::Receive(until) = machine.step(clock.now()) else { return String::new() };
        let received = tokio::select! {
            biased;
            received = socket.receive() => Some(received),
            () = clock.sleep(until.since(clock.now())) => None,
        };
        let meaning = match received {
            Some(Ok(Received::Message(text))) => machine.received(clock.now(), text.len(), Some(&text)),
            Some(Ok(Received::Control(bytes))) => machine.received(clock.now(), bytes, None),
            Some(Err(e)) => return e.to_string(),
            None => match machine.quiet(clock.now()) {
                Ok(()) => match socket.ping().await {
                    Ok(()) => Ok(Meaning::Nothing),
                    Err(e) => return e.to_string(),
                },
                Err(fault) => Err(fault),
            },
        };
        match meaning {
            Ok(Meaning::Nothing) => {}
            Ok(Meaning::Subscribed) => {
                let endpoint = sockets.name(endpoint);
                tracing::info!(endpoint, "chain subscription opened");
                wake.set(endpoint);
            }
            Ok(Meaning::Event) => wake.woken.notify_one(),
            Err(fault) => return fault.to_string(),
        }
    }
}

//! systemd's notification protocol: readiness, watchdog, status line.
use std::time::Duration;

/// How long a start may take after each completed pass, in microseconds: three of the slowest passes.
const START_EXTENSION_US: u32 = 90_000_000;

/// The service manager; without one, every call does nothing.
pub trait Notify: Send + 'static {
    /// The service is up and its first pass was completed.
    fn ready(&mut self);
    /// A reconcile pass was completed: the only thing that feeds the watchdog. Before [`Notify::ready`] it also extends the
    /// start timeout: waiting (a fact missing, no valid state) must not get the service killed, a hanging loop must.
    fn alive(&mut self);
    /// A line for `systemctl status`.
    fn status(&mut self, line: &str);
    /// The service is stopping.
    fn stopping(&mut self);
    /// How long the manager waits for [`Notify::alive`] before it restarts the service.
    fn watchdog(&self) -> Option<Duration>;
}

/// systemd's notification socket, `$NOTIFY_SOCKET`.
#[derive(Debug, Default)]
pub struct Systemd;

impl Systemd {
    fn send(states: &[sd_notify::NotifyState<'_>]) {
        if let Err(e) = sd_notify::notify(states) {
            tracing::debug!(error = %e, "service manager not notified");
        }
    }
}

impl Notify for Systemd {
    fn ready(&mut self) {
        Self::send(&[sd_notify::NotifyState::Ready]);
    }
    fn alive(&mut self) {
        use sd_notify::NotifyState::{ExtendTimeoutUsec, Watchdog};
        Self::send(&[Watchdog, ExtendTimeoutUsec(START_EXTENSION_US)]);
    }
    fn status(&mut self, line: &str) {
        Self::send(&[sd_notify::NotifyState::Status(line)]);
    }
    fn stopping(&mut self) {
        Self::send(&[sd_notify::NotifyState::Stopping]);
    }
    fn watchdog(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }
}

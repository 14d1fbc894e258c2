//! The service manager: readiness, the watchdog, and a line of status.
use std::time::Duration;

/// How long a start may take after each completed pass, in microseconds: three of the slowest passes.
const START_EXTENSION_US: u32 = 90_000_000;

/// Talks to the service manager; without one, every call does nothing.
pub trait Notify: Send + 'static {
    /// Says that the service is up and its first pass was clean.
    fn ready(&mut self);
    /// Says that a reconcile pass was completed: the only thing that feeds the watchdog. Before [`Notify::ready`] it also
    /// puts off the end of the start timeout: a pass that could not be clean yet (no network, a fact still missing) is
    /// no reason to be killed, a loop that hangs is.
    fn alive(&mut self);
    /// A line for `systemctl status`.
    fn status(&mut self, line: &str);
    /// Says that the service is stopping.
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
            tracing::debug!(error = %e, "service manager not reached");
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

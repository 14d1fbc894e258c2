//! What an enrolled device stores, and the clock it signs requests with. Pure.
use serde::{Deserialize, Serialize};
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;
use spoke_model::time::{Boot, Wall};

/// Stored at enrolment: our name and the keys we trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The control plane's URL, so that a change of `control.url` is noticed.
    pub server: String,
    /// Our node id.
    pub node_id: NodeId,
    /// Pinned keys that sign our state.
    pub signing_keys: Vec<VerifyKey>,
}

/// Stored so that a reverted state is not tried again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedState {
    /// The reverted one.
    pub generation: u64,
    /// Why.
    pub reason: String,
}

/// Estimate of the server's time: our wall clock until the server has sent its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerClock {
    offset_ms: i64,
}

impl ServerClock {
    /// Starts from our wall clock.
    pub fn new(now: Boot, wall: Wall) -> Self {
        let mut clock = Self { offset_ms: 0 };
        clock.set(now, wall.secs().saturating_mul(1000));
        clock
    }

    /// The server's clock reads `server_ms` (since 1970).
    pub fn set(&mut self, now: Boot, server_ms: u64) {
        let server = i64::try_from(server_ms).unwrap_or(i64::MAX);
        self.offset_ms = server.saturating_sub(millis(now));
    }

    /// Milliseconds since 1970, never before that.
    pub fn at(&self, now: Boot) -> u64 {
        u64::try_from(millis(now).saturating_add(self.offset_ms)).unwrap_or(0)
    }
}

fn millis(at: Boot) -> i64 {
    i64::try_from(at.since_boot().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrected_clock_runs_on() {
        let mut clock = ServerClock::new(Boot::from_secs(10), Wall(0));
        assert_eq!(clock.at(Boot::from_secs(12)), 2_000, "1970");
        clock.set(Boot::from_secs(12), 1_800_000_000_000);
        assert_eq!(clock.at(Boot::from_secs(15)), 1_800_000_003_000);
    }
}

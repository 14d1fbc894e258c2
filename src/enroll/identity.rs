//! What an enrolled device keeps, and the clock it signs by. Pure.
use serde::{Deserialize, Serialize};
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;
use spoke_model::time::{Boot, Wall};

/// Kept after enrolment: who we are and whose word counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The control plane, for a later change of `control.url` to be noticed.
    pub server: String,
    /// Our name there.
    pub node_id: NodeId,
    /// Keys that sign our state.
    pub signing_keys: Vec<VerifyKey>,
}

/// Kept so that a state that was taken back is not tried again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedState {
    /// Which one.
    pub generation: u64,
    /// Why.
    pub reason: String,
}

/// The server's time as far as we know it: our wall clock until the server has told us better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerClock {
    offset_ms: i64,
}

impl ServerClock {
    /// Believes our wall clock.
    pub fn new(now: Boot, wall: Wall) -> Self {
        let mut clock = Self { offset_ms: 0 };
        clock.set(now, wall.secs().saturating_mul(1000));
        clock
    }

    /// The server says that it is `server_ms` now.
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
    fn a_wrong_clock_is_put_right_once_and_then_runs_on() {
        let mut clock = ServerClock::new(Boot::from_secs(10), Wall(0));
        assert_eq!(clock.at(Boot::from_secs(12)), 2_000, "1970");
        clock.set(Boot::from_secs(12), 1_800_000_000_000);
        assert_eq!(clock.at(Boot::from_secs(15)), 1_800_000_003_000);
    }
}

//! Protection against replayed requests: the time window of proofs and the nonces within it. No I/O.
use spoke_enroll::request::{RequestProof, WINDOW_MS};
use spoke_model::node_id::NodeId;
use spoke_model::time::Boot;
use spoke_sys::clock::{Clock as _, SystemClock};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Nonces of one generation at most; more than honest nodes use within the window.
const MAX_NONCES: usize = 2_000_000;

/// Too many nonces to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests")]
pub struct TooManyNonces;

/// The nonces within the window of one process.
///
/// A request signed before the process started is refused, because the nonces of an earlier process are not known. The
/// start is kept as boot time and counted back from now: a server whose clock was set back would otherwise refuse the whole
/// fleet until the clock has caught up.
#[derive(Debug)]
pub struct ReplayGuard {
    started: Boot,
    nonces: Mutex<Nonces>,
}

/// Two generations, swapped every two windows, so that every nonce outlives its window.
#[derive(Debug, Default)]
struct Nonces {
    young: HashSet<(NodeId, [u8; 16])>,
    old: HashSet<(NodeId, [u8; 16])>,
    swapped_ms: u64,
}

impl ReplayGuard {
    /// A guard of a process that starts now.
    pub fn new() -> Self {
        Self { started: SystemClock.now(), nonces: Mutex::default() }
    }

    /// Whether a request signed at `timestamp_ms` is within the window at `now_ms`.
    pub fn accepts_time(&self, timestamp_ms: u64, now_ms: u64) -> bool {
        is_in_window(timestamp_ms, now_ms, SystemClock.now().since(self.started))
    }

    /// Remembers a nonce. `Ok(false)`: the request is a replay.
    pub fn remember(&self, proof: &RequestProof, now_ms: u64) -> Result<bool, TooManyNonces> {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back swaps them as well; otherwise they would accumulate until it has caught up.
        if now_ms.abs_diff(nonces.swapped_ms) > 2 * WINDOW_MS {
            nonces.old = std::mem::take(&mut nonces.young);
            nonces.swapped_ms = now_ms;
        }
        let item = (proof.node.clone(), proof.nonce.0);
        if nonces.old.contains(&item) {
            return Ok(false);
        }
        if nonces.young.len() >= MAX_NONCES {
            return Err(TooManyNonces);
        }
        Ok(nonces.young.insert(item))
    }
}

impl Default for ReplayGuard {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a request is within the window of a process that has run for `uptime`.
fn is_in_window(timestamp_ms: u64, now_ms: u64, uptime: Duration) -> bool {
    let started_ms = now_ms.saturating_sub(u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX));
    timestamp_ms.abs_diff(now_ms) <= WINDOW_MS && timestamp_ms >= started_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_enroll::request::{Nonce, RequestParts};

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn requests_from_before_the_start_are_refused() {
        let up = Duration::from_secs(10);
        assert!(is_in_window(NOW, NOW, up));
        assert!(is_in_window(NOW - 10_000, NOW, up));
        assert!(!is_in_window(NOW - 10_001, NOW, up), "signed before this process started");
        let long = Duration::from_secs(86_400);
        assert!(is_in_window(NOW - WINDOW_MS, NOW, long) && is_in_window(NOW + WINDOW_MS, NOW, long));
        assert!(!is_in_window(NOW - WINDOW_MS - 1, NOW, long) && !is_in_window(NOW + WINDOW_MS + 1, NOW, long));
    }

    #[test]
    fn server_clock_set_back_accepts_its_own_time() {
        let (hour, up) = (3_600_000, Duration::from_millis(50));
        assert!(is_in_window(NOW - hour, NOW - hour, up));
        assert!(!is_in_window(NOW, NOW - hour, up), "a time before the clock was set back");

        let guard = ReplayGuard::new();
        let key = spoke_model::signature::SignKey::from_seed(&[7; 32]).unwrap();
        let node: NodeId = "edge-1".parse().unwrap();
        let asked = RequestParts { method: "GET", path: "/", body: b"" };
        let fresh = |ms, n| guard.remember(&asked.prove(&key, &node, ms, Nonce([n; 16])), ms).unwrap();
        assert!(fresh(NOW, 1) && !fresh(NOW, 1));
        assert!(fresh(NOW - hour, 2) && !fresh(NOW - hour, 2) && !fresh(NOW - hour, 1), "both generations are known");
        for n in 3..6 {
            assert!(fresh(NOW - hour + 3 * WINDOW_MS * u64::from(n), n));
        }
        assert_eq!(guard.nonces.lock().unwrap().young.len(), 1, "no accumulation until the clock has caught up");
    }
}

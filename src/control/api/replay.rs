//! Protection against replayed requests: the time window of proofs and the nonces within it. No I/O.
use spoke_enroll::request::{RequestProof, WINDOW_MS};
use spoke_model::node_id::NodeId;
use spoke_model::time::Boot;
use spoke_sys::clock::{Clock as _, SystemClock};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Nonces of one generation; more than honest nodes use within the window.
const MAX_NONCES: usize = 2_000_000;

/// Nonces of one node that are remembered even beyond that: no node is refused because of what others send.
const NODE_SHARE: usize = 256;

/// Too many nonces of one node to remember.
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
    max: usize,
}

/// Two generations, swapped every two windows, so that every nonce outlives its window.
#[derive(Debug, Default)]
struct Nonces {
    young: Generation,
    old: Generation,
    swapped_ms: u64,
}

#[derive(Debug, Default)]
struct Generation {
    by_node: HashMap<NodeId, HashSet<[u8; 16]>>,
    count: usize,
}

impl Generation {
    fn contains(&self, proof: &RequestProof) -> bool {
        self.by_node.get(&proof.node).is_some_and(|nonces| nonces.contains(&proof.nonce.0))
    }

    /// `Ok(false)`: it was there before.
    fn insert(&mut self, proof: &RequestProof, max: usize) -> Result<bool, TooManyNonces> {
        let nonces = match self.by_node.get_mut(&proof.node) {
            Some(nonces) => nonces,
            None => self.by_node.entry(proof.node.clone()).or_default(),
        };
        if self.count >= max && nonces.len() >= NODE_SHARE {
            return Err(TooManyNonces);
        }
        let new = nonces.insert(proof.nonce.0);
        self.count += usize::from(new);
        Ok(new)
    }
}

impl ReplayGuard {
    /// A guard of a process that starts now.
    pub fn new() -> Self {
        Self { started: SystemClock.now(), nonces: Mutex::default(), max: MAX_NONCES }
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
        if nonces.old.contains(proof) {
            return Ok(false);
        }
        nonces.young.insert(proof, self.max)
    }

    /// Nonces remembered.
    pub fn count(&self) -> usize {
        let nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.young.count + nonces.old.count
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
    fn flooding_node_does_not_affect_others() {
        let guard = ReplayGuard { max: 1000, ..ReplayGuard::new() };
        let key = spoke_model::signature::SignKey::from_seed(&[7; 32]).unwrap();
        let asked = RequestParts { method: "GET", path: "/", body: b"" };
        let send = |node: &str, n: u32| {
            let mut nonce = [0; 16];
            nonce[..4].copy_from_slice(&n.to_le_bytes());
            guard.remember(&asked.prove(&key, &node.parse().unwrap(), NOW, Nonce(nonce)), NOW)
        };
        assert_eq!((0..2000).filter(|n| send("loud", *n).is_err()).count(), 1000);
        for n in 0..100 {
            assert_eq!(send("quiet", n), Ok(true));
            assert_eq!(send("quiet", n), Ok(false), "and its replays are refused");
        }
        assert_eq!(guard.count(), 1100);
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
        assert_eq!(guard.nonces.lock().unwrap().young.count, 1, "no accumulation until the clock has caught up");
    }
}

//! What an enrolled device stores, and the clock it signs requests with. Pure.
use super::bounds::is_public;
use super::document::{MAX_SIGNING_KEYS, StateDocument};
use super::events::SignedState;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_config::node::Role;
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
    /// No state was kept since: one on disk is of the enrolment before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// The control plane has removed the node: no state is in force, and one on disk counts for nothing. The pinned keys
    /// stay, so that a fleet restored from a backup takes the node back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// SHA-256 of the enrolment token, in hex: what is left of it on the device is erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The role that the control plane has given the node; used where the device's own configuration names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The networks of the Internet that the first state of this enrolment used. A later state uses no other one, unless
    /// `control.allow_networks` of the device says so. `None`: no state was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<IpNet>>,
}

impl Enrolment {
    /// Trusts the keys that a newer, authentic document names, whatever becomes of its state: the control plane may sign
    /// the next one with them alone. Returns whether one was new.
    pub fn trust_also(&mut self, named: &[VerifyKey]) -> bool {
        let before = self.signing_keys.len();
        for key in named {
            if !self.signing_keys.contains(key) && self.signing_keys.len() < 2 * MAX_SIGNING_KEYS {
                self.signing_keys.push(*key);
            }
        }
        self.signing_keys.len() > before
    }

    /// A state was kept: the first one bounds those after it.
    pub fn bound_networks(&mut self, kept: &StateDocument) {
        if self.networks.is_none() {
            self.networks = Some(kept.networks().filter(is_public).collect());
        }
    }

    /// A state was kept: the keys it does not name are retired, if one of those that it names has signed it.
    pub fn retire_keys(&mut self, kept: &SignedState) {
        let named = &kept.document.signing_keys;
        if kept.envelope.is_signed_by(named) {
            self.signing_keys.clone_from(named);
        } else {
            self.trust_also(named);
        }
    }
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
pub(crate) mod tests {
    use super::*;

    /// An enrolment of edge-1 that no state was kept for.
    pub(crate) fn enrolment() -> Enrolment {
        Enrolment {
            server: "https://c".into(),
            node_id: "edge-1".parse().unwrap(),
            signing_keys: Vec::new(),
            fresh: false,
            removed: false,
            token: None,
            role: None,
            networks: None,
        }
    }

    #[test]
    fn retired_key_goes_once_a_new_one_has_signed_a_kept_state() {
        let key = |n| spoke_model::signature::SignKey::from_seed(&[n; 32]).unwrap();
        let keys = |all: &[u8]| all.iter().map(|n| key(*n).public()).collect::<Vec<_>>();
        let state = |named: &[u8], by: &[u8]| {
            let document: StateDocument = serde_json::from_value(serde_json::json!({
                "version": 1, "node_id": "edge-1", "generation": 1, "role": "node",
                "signing_keys": keys(named), "interfaces": [],
            }))
            .unwrap();
            let signers: Vec<_> = by.iter().map(|n| key(*n)).collect();
            SignedState { envelope: document.sign(&signers).unwrap(), document }
        };
        let mut enrolment = Enrolment { signing_keys: keys(&[1]), ..enrolment() };
        assert!(enrolment.trust_also(&keys(&[1, 2])) && !enrolment.trust_also(&keys(&[2])));
        assert_eq!(enrolment.signing_keys, keys(&[1, 2]), "of a state that may be reverted");
        enrolment.retire_keys(&state(&[2], &[1]));
        assert_eq!(enrolment.signing_keys, keys(&[1, 2]), "nothing proves that the control plane signs with key 2");
        enrolment.retire_keys(&state(&[2], &[2]));
        assert_eq!(enrolment.signing_keys, keys(&[2]));
        for n in 3..40 {
            enrolment.trust_also(&keys(&[n]));
        }
        assert_eq!(enrolment.signing_keys.len(), 2 * MAX_SIGNING_KEYS);
    }

    #[test]
    fn corrected_clock_runs_on() {
        let mut clock = ServerClock::new(Boot::from_secs(10), Wall(0));
        assert_eq!(clock.at(Boot::from_secs(12)), 2_000, "1970");
        clock.set(Boot::from_secs(12), 1_800_000_000_000);
        assert_eq!(clock.at(Boot::from_secs(15)), 1_800_000_003_000);
    }
}

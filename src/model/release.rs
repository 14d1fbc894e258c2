//! The release that a node is to run.
use crate::node_id::NodeId;
use crate::signature::sha256_hex;
use serde::{Deserialize, Serialize};

/// Longest version, in bytes.
const MAX_VERSION: usize = 64;
/// Longest source URL, in bytes.
const MAX_SOURCE: usize = 512;

/// The release that the control plane wants on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedRelease {
    /// Version, as in the bundle.
    pub version: String,
    /// Base URL of the bundles (`SOURCE/BOARD.spoke`); `None`: the device's configured source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// When this node fetches it. A state document has it apart: devices of an earlier release refuse unknown fields here.
    #[serde(default, skip_serializing_if = "Rollout::is_immediate")]
    pub rollout: Rollout,
}

/// How a wanted release reaches one of many nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Grows when a person asks again for a release that was given up; compared only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub renewed: u64,
    /// Seconds since the epoch before which the node does not fetch it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_before: u64,
    /// Seconds that a node without a trusted clock waits instead, from when it received the wish.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde's `skip_serializing_if` wants")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Rollout {
    /// The part of `node` in a rollout that began at `since` (seconds since the epoch) and takes `spread` seconds: always the
    /// same one for a node and a version, and evenly spread over the nodes.
    pub fn of(node: &NodeId, version: &str, since: u64, spread: u64, renewed: u64) -> Self {
        if spread == 0 {
            return Self { renewed, ..Self::default() };
        }
        let digest = sha256_hex(format!("{node}\0{version}").as_bytes());
        let first = digest.get(..16).and_then(|d| u64::from_str_radix(d, 16).ok()).unwrap_or_default();
        let wait = u64::try_from((u128::from(first) * u128::from(spread)) >> 64).unwrap_or_default();
        Self { renewed, not_before: since.saturating_add(wait), wait }
    }

    /// Whether the node fetches the release at once and was not asked again.
    pub fn is_immediate(&self) -> bool {
        *self == Self::default()
    }
}

impl WantedRelease {
    /// Validates version and source.
    pub fn check(&self) -> Result<(), &'static str> {
        let printable = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        if !printable(&self.version) || self.version.len() > MAX_VERSION {
            return Err("release must be a version of at most 64 printable characters");
        }
        let web = |s: &String| {
            let scheme = s.split("://").next().unwrap_or_default().to_ascii_lowercase();
            printable(s) && s.len() <= MAX_SOURCE && s.contains("://") && matches!(scheme.as_str(), "https" | "http")
        };
        if self.source.as_ref().is_some_and(|s| !web(s)) {
            return Err("release source must be an https:// or http:// address of at most 512 characters");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_nodes_are_spread_evenly() {
        let (spread, since) = (6 * 3600, 1_000_000);
        let part = |n: u32| Rollout::of(&format!("edge-{n}").parse().unwrap(), "1.4.0", since, spread, 0);
        let mut minutes = vec![0; 360];
        for n in 0..10_000 {
            let Rollout { not_before, wait, .. } = part(n);
            assert_eq!(not_before, since + wait);
            minutes[usize::try_from(wait / 60).unwrap()] += 1;
        }
        // 28 a minute on average.
        assert!(minutes.iter().all(|n| (5..=70).contains(n)), "{minutes:?}");
        assert_eq!(part(7), part(7));
        assert!(Rollout::of(&"edge-7".parse().unwrap(), "1.4.0", since, 0, 0).is_immediate());
    }

    #[test]
    fn order_of_the_nodes_differs_by_version() {
        let part = |n: u32, v| Rollout::of(&format!("edge-{n}").parse().unwrap(), v, 0, 3600, 0).wait;
        let order = |v| {
            let mut nodes: Vec<_> = (0..50).collect();
            nodes.sort_by_key(|n| part(*n, v));
            nodes
        };
        assert_ne!(order("1.4.0"), order("1.5.0"), "the same nodes would always be first");
    }
}

//! Which endpoint each hub was last configured with, in the state directory: a kernel that has another one has it from before
//! an edit, and not because the hub has moved.
use spoke_config::uplink::Hub;
use spoke_model::error_chain::ErrorChain;
use spoke_sys::disk::{read_public, write_state};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("hub-endpoints")
}

/// One line a hub: its key and its endpoint.
fn line(hub: &Hub) -> String {
    format!("{} {}\n", hub.public_key, hub.endpoint)
}

/// The hubs, by index, whose endpoint is another than it was when [`record`] was last called. Blocks.
pub fn edited(state_dir: &Path, hubs: &[Hub]) -> BTreeSet<usize> {
    let known = read_public(&file(state_dir)).unwrap_or_default();
    let known = String::from_utf8_lossy(&known);
    let differs = |hub: &Hub| {
        let (key, line) = (hub.public_key.to_string(), line(hub));
        known.split_inclusive('\n').any(|l| l.starts_with(&key) && l != line)
    };
    hubs.iter().enumerate().filter(|(_, hub)| differs(hub)).map(|(i, _)| i).collect()
}

/// Stores the endpoints, if they differ from those stored. Blocks.
pub fn record(state_dir: &Path, hubs: &[Hub]) {
    let (path, lines) = (file(state_dir), hubs.iter().map(line).collect::<String>());
    if read_public(&path).is_ok_and(|known| known == lines.as_bytes()) {
        return;
    }
    if let Err(e) = write_state(&path, lines.as_bytes(), true) {
        tracing::debug!(error = %ErrorChain(&e), "endpoints of the hubs not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edited_endpoint_is_known_until_it_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let hub = |n: u8, endpoint: &str| Hub {
            public_key: spoke_model::key::PublicKey([n; 32]),
            endpoint: endpoint.parse().unwrap(),
            name: n.to_string(),
            preshared_key: None,
            address: [10, 8, 0, n].into(),
            allowed_ips: Vec::new(),
            keepalive: 25,
        };
        let before = [hub(1, "192.0.2.1:51820"), hub(2, "hub.example.net:51820")];
        assert!(edited(dir.path(), &before).is_empty(), "nothing is known");
        record(dir.path(), &before);
        assert!(edited(dir.path(), &before).is_empty());
        let after = [hub(3, "192.0.2.3:1"), hub(1, "192.0.2.1:51821"), hub(2, "hub.example.net:51820")];
        assert_eq!(edited(dir.path(), &after), [1].into());
        record(dir.path(), &after);
        assert!(edited(dir.path(), &after).is_empty());
    }
}

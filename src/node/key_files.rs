//! Task that reads the keys again which could not be read at the start.
//!
//! Waits for: a timer.
use crate::reconciler::Fact;
use spoke_config::Config;
use spoke_net::derive::Keys;
use spoke_sys::clock::Clock;
use spoke_sys::keys::{self, IfMissing};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(5);

/// Publishes each missing key once it can be read. Keys that are known stay as they are: one may have been changed meanwhile.
pub async fn run<C: Clock>(
    clock: C,
    config: Arc<Config>,
    secrets: watch::Sender<Option<Arc<Keys>>>,
) -> Result<(), Infallible> {
    let mut seen: Fact<Keys> = secrets.subscribe();
    loop {
        if seen.borrow_and_update().as_ref().is_none_or(|k| k.unreadable.is_empty()) {
            return std::future::pending().await;
        }
        clock.sleep(RETRY).await;
        let (read, _) = keys::load(&config, IfMissing::Create);
        secrets.send_if_modified(|published| {
            let Some(before) = published.clone() else { return false };
            let after = complete(&before, read);
            let changed = after != *before;
            if changed {
                tracing::info!(unreadable = after.unreadable.len(), "keys read that were missing at the start");
                *published = Some(Arc::new(after));
            }
            changed
        });
    }
}

/// `known` with what it lacks and `read` has.
fn complete(known: &Keys, read: Keys) -> Keys {
    let mut out = known.clone();
    for (link, key) in read.private {
        out.private.entry(link).or_insert(key);
    }
    for (source, key) in read.preshared {
        out.preshared.entry(source).or_insert(key);
    }
    out.unreadable = read.unreadable.into_iter().filter(|(source, _)| known.unreadable.contains_key(source)).collect();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_model::key::{PublicKey, SecretKey};
    use spoke_model::time::Wall;
    use spoke_sys::disk::write_atomic;
    use spoke_sys::sim::clock::SimClock;

    #[tokio::test(start_paused = true)]
    async fn key_that_appears_is_taken_up_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (private, preshared) = (dir.path().join("wg0.key"), dir.path().join("hub.psk"));
        std::fs::write(&private, "torn").unwrap();
        let text = format!(
            "[[interface]]\nname = \"wg0\"\nprivate_key = \"file:{}\"\n[[interface.peer]]\npublic_key = \"{}\"\npreshared_key = \"file:{}\"\nallowed_ips = [\"10.9.0.2/32\"]\n[[interface]]\nname = \"wg1\"\nprivate_key = \"file:{}\"\n",
            private.display(),
            PublicKey([7; 32]),
            preshared.display(),
            dir.path().join("wg1.key").display(),
        );
        let config = Arc::new(Config::from_text(Some(("test", &text)), []).unwrap());
        let (keys, faults) = keys::load(&config, IfMissing::Create);
        let of = |n: &str| n.parse::<spoke_model::interface_name::IfName>().unwrap();
        assert_eq!((faults.len(), keys.unreadable.len()), (2, 2), "{faults:?}");
        assert!(keys.private.contains_key(&of("wg1")) && !keys.private.contains_key(&of("wg0")));

        let (secrets, mut seen) = watch::channel(Some(Arc::new(keys)));
        let task = tokio::spawn(run(SimClock::new(Wall(0)), config, secrets.clone()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!seen.has_changed().unwrap(), "the same faults are not published again");
        let changed = SecretKey::clamped([5; 32]);
        secrets.send_modify(|k| {
            let mut all = k.as_deref().cloned().unwrap();
            all.private.insert(of("wg1"), changed.clone());
            *k = Some(Arc::new(all));
        });
        let psk = spoke_model::key::PresharedKey::from_bytes([3; 32]);
        let line = PublicKey([3; 32]).to_string();
        write_atomic(&preshared, line.as_bytes(), false).unwrap();
        let now = seen.wait_for(|k| k.as_ref().unwrap().unreadable.len() == 1).await.unwrap().clone().unwrap();
        assert_eq!(now.preshared.values().collect::<Vec<_>>(), [&psk]);
        std::fs::remove_file(&private).unwrap();
        let now = seen.wait_for(|k| k.as_ref().unwrap().unreadable.is_empty()).await.unwrap().clone().unwrap();
        assert!(now.private.contains_key(&of("wg0")), "created where there is none");
        assert_eq!(now.private[&of("wg1")], changed, "a rotated key is not taken back");
        task.abort();
    }
}

//! On an image with two slots: passes the wanted release to the updater, the state of updates back, and to the firewall which ports
//! are open. Waits for the effective configuration and for passes, and polls the updater's notice.
use crate::reconciler::{Fact, NetStatus};
use crate::supervise::Supervisor;
use spoke_api::health::summary::Components;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_net::state::ListenPort;
use spoke_sys::clock::{Clock, SystemClock};
use spoke_sys::random::seed;
use spoke_sys::updater::Notes;
use spoke_update::notice::Notice;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Time between two reads of the updater's notice, a small file in memory.
const POLL_EVERY: Duration = Duration::from_secs(5);

/// Starts all directions on an image with slots.
pub(super) fn start(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    effective: Fact<Effective>,
    net: watch::Receiver<NetStatus>,
    components: &watch::Sender<Components>,
    update: watch::Sender<Option<Notice>>,
) {
    if !std::path::Path::new(spoke_sys::slots::RUN).exists() {
        return;
    }
    let notes = Notes::at(&config.node.runtime_dir);
    if config.control.is_some() {
        let notes = notes.clone();
        tasks.restarting("release", seed, move || pass_wanted(notes.clone(), effective.clone()));
    }
    let firewall = notes.clone();
    tasks.restarting("firewall", seed, move || pass_network(firewall.clone(), net.clone()));
    let components = components.clone();
    tasks
        .restarting("slots", seed, move || pass_notice(SystemClock, notes.clone(), components.clone(), update.clone()));
}

async fn pass_wanted(notes: Notes, mut effective: Fact<Effective>) -> Result<(), std::io::Error> {
    loop {
        let wanted = effective.borrow_and_update().as_ref().and_then(|e| e.wanted_release().cloned());
        notes.want(wanted.as_ref())?;
        if effective.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn pass_network(notes: Notes, mut net: watch::Receiver<NetStatus>) -> Result<(), std::io::Error> {
    loop {
        let desired = {
            let status = net.borrow_and_update();
            // Before the first pass nothing is known, and what was open stays open.
            (status.passes > 0).then(|| status.desired.clone())
        };
        if let Some(desired) = desired {
            let open = desired.forwarding.values().any(|f| f.open);
            notes.network(&network(desired.links.values().map(|l| &l.listen_port), open))?;
        }
        if net.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// The fixed ports, and whether a hub forwards between its peers; see [`Notes::network`].
fn network<'a>(ports: impl Iterator<Item = &'a ListenPort>, open: bool) -> String {
    let mut text = String::new();
    for port in ports {
        if let ListenPort::Fixed(port) = port {
            text += &format!("port {port}\n");
        }
    }
    if open {
        text += "forwarding yes\n";
    }
    text
}

async fn pass_notice<C: Clock>(
    clock: C,
    notes: Notes,
    components: watch::Sender<Components>,
    update: watch::Sender<Option<Notice>>,
) -> Result<(), Infallible> {
    loop {
        let now = notes.notice();
        if *update.borrow() != now {
            update.send_replace(now.clone());
            components.send_modify(|v| v.update = now);
        }
        clock.sleep(POLL_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_config::effective::DocumentSettings;
    use spoke_model::release::{Rollout, WantedRelease};
    use spoke_model::time::Wall;
    use spoke_net::state::{Desired, Forwarding};
    use spoke_sys::sim::clock::SimClock;
    use spoke_update::record::UpdateRecord;
    use spoke_update::slot::Slot;

    #[tokio::test]
    async fn firewall_learns_ports_and_forwarding_after_a_pass() {
        let ports = [ListenPort::Fixed(51821), ListenPort::default()];
        assert_eq!(network(ports.iter(), false), "port 51821\n");
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::in_places(dir.path().join("n"), dir.path());
        let mut desired = Desired::default();
        desired.forwarding.insert("wg0".parse().unwrap(), Forwarding { open: true, ..Forwarding::default() });
        let (out, net) = watch::channel(NetStatus { desired: Arc::new(desired), ..NetStatus::default() });
        let passing = tokio::spawn(pass_network(notes, net));
        tokio::task::yield_now().await;
        assert!(!dir.path().join("network").exists());
        out.send_modify(|s| s.passes = 1);
        drop(out);
        passing.await.unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("network")).unwrap(), "forwarding yes\n");
    }

    #[tokio::test(start_paused = true)]
    async fn wanted_release_and_notice_are_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::in_places(dir.path().join("n"), dir.path());
        let own = Effective::of(Arc::new(Config::from_text(None, std::iter::empty()).unwrap()));
        let (out, control) = watch::channel(Some(Arc::new(own.clone())));
        let wants = tokio::spawn(pass_wanted(notes.clone(), control));
        tokio::task::yield_now().await;
        assert_eq!(notes.wanted(), None);
        let release = Some(WantedRelease { version: "2".into(), source: None, rollout: Rollout::default() });
        let document = DocumentSettings { release, ..DocumentSettings::default() };
        out.send_replace(Some(Arc::new(own.with_document(Some(document)))));
        drop(out);
        wants.await.unwrap().unwrap();
        assert_eq!(notes.wanted().unwrap().version, "2");

        let (components, seen) = watch::channel(Components::default());
        let (update, mut published) = watch::channel(None);
        let telling = tokio::spawn(pass_notice(SimClock::new(Wall(0)), notes.clone(), components, update));
        notes.post(&Notice::of(&UpdateRecord::new("x".into()), Slot::B, "1")).unwrap();
        published.changed().await.unwrap();
        assert_eq!(seen.borrow().update.as_ref().unwrap().slot, Slot::B);
        telling.abort();
    }
}

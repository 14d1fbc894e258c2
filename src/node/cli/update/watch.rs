//! `spoke update watch`: judges a trial, then keeps the second copy of the identity and installs wanted releases.
use super::{Installed, Order, RECORD, RecordFile, install, restart, running_version, source};
use crate::outlook;
use crate::update as task;
use crate::update::Next;
use spoke_api::socket::SOCKET;
use spoke_command::{Failure, Outcome};
use spoke_config::Config;
use spoke_model::release::{Rollout, WantedRelease};
use spoke_model::time::Boot;
use spoke_model::url::HttpUrl;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::random::seed;
use spoke_sys::slots::{DiskSlots, RUN};
use spoke_sys::vault::Vault;
use spoke_update::notice::{ReleaseDecision, decide_release};
use spoke_update::offer::Asker;
use spoke_update::record::UpdateRecord;
use spoke_update::schedule;
use spoke_update::schedule::{Moment, Start};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Time between two checks for a wanted release.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Time between two checks whether the identity changed; only a change is written.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// First and longest wait before a wanted release that was not installed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

pub(super) fn run(config: &Config) -> Outcome {
    spoke_command::start_log("spoke");
    let mut slots = DiskSlots::found()?;
    let (mut file, mut record) = RecordFile::open(&config.node.runtime_dir, &slots)?;
    file.post(&record, None);
    if config.update.automatic && super::roots().is_err() {
        tracing::warn!(file = super::ROOT_KEYS, "image without a root key: no update is accepted");
    }
    let socket = config.node.runtime_dir.join(SOCKET);
    let mut probes = config.update.probes.clone();
    probes.extend(config.update.source.as_deref().and_then(host_port));
    let probe = async || {
        let (socket, probes) = (socket.clone(), probes.clone());
        tokio::task::spawn_blocking(move || outlook::probe(&socket, &probes)).await.unwrap_or_default()
    };
    let rules = config.update.rules;
    let next = spoke_command::block_on(task::watch(&SystemClock, &mut slots, &mut file, &mut record, rules, probe))??;
    match next {
        Next::Restart => restart(false),
        Next::Settled => spoke_command::block_on(idle(config))?,
    }
}

/// After a trial: installs what the control plane wants, or checks the source periodically where configured.
async fn idle(config: &Config) -> Outcome {
    let slots = DiskSlots::found()?;
    let (mut file, mut record) = RecordFile::open(&config.node.runtime_dir, &slots)?;
    // A fleet that was switched on together does not ask together.
    let phase = f64::from(u32::try_from(seed() >> 32).unwrap_or(0)) / f64::from(u32::MAX);
    let mut offered_at = SystemClock.now() + config.update.every.mul_f64(phase);
    let (mut received, mut wanted_at, mut wait) = (SystemClock.now(), SystemClock.now(), RETRY.0);
    let mut kept_at = SystemClock.now();
    let mut before: Option<WantedRelease> = None;
    let mut written = changed_at();
    loop {
        if SystemClock.now() >= kept_at {
            keep_identity();
            kept_at = SystemClock.now() + KEEP_EVERY;
        }
        SystemClock.sleep(CHECK_EVERY).await;
        let (now, wanted) = (SystemClock.now(), file.notes.wanted());
        // Another process, such as `spoke update retry`, has changed the record.
        if changed_at() != written {
            written = changed_at();
            (file, record) = RecordFile::open(&config.node.runtime_dir, &slots)?;
            (wanted_at, wait, offered_at) = (now, RETRY.0, now);
        }
        if wanted != before {
            (received, wanted_at, wait) = (now, now, RETRY.0);
            file.post(&record, None);
            before.clone_from(&wanted);
        }
        if now >= wanted_at {
            match fulfil(config, wanted.as_ref(), received, &record) {
                Ok(Done::Installed) => return Ok(()),
                Ok(Done::Nothing) => {}
                Ok(Done::Waits(why)) => {
                    file.post(&record, Some(why));
                    wanted_at = now + RETRY.0;
                }
                Ok(Done::Held(why)) => {
                    file.post(&record, Some(why));
                    (wanted_at, wait) = (SystemClock.now() + wait, (wait * 2).min(RETRY.1));
                }
                Err(e) => return Err(e),
            }
            written = changed_at();
        }
        // A release wanted by the control plane has precedence over the source.
        let by_itself = config.update.automatic && config.update.source.is_some() && wanted.is_none();
        if by_itself
            && now >= offered_at
            && let Start::Fetch(at_most) = start_of(config, Rollout::default(), offered_at)
        {
            offered_at = now + config.update.every;
            let installed = source(config, None).and_then(|place| {
                install(config, &Order { place: &place, wanted: None, asker: Asker::Source, at_most, quiet: false })
            });
            match installed {
                Ok(Installed::Yes) => return restart(false),
                Ok(Installed::Refused(why)) => tracing::info!(why, "offered release not installed"),
                Err(e) => tracing::warn!(error = text(&e), "update source not usable"),
            }
            written = changed_at();
        }
    }
}

/// When the record was last written.
fn changed_at() -> Option<SystemTime> {
    std::fs::metadata(RECORD).and_then(|m| m.modified()).ok()
}

/// Whether a download that is due since `due` may begin.
fn start_of(config: &Config, rollout: Rollout, due: Boot) -> Start {
    let trusted = outlook::clock_trusted(&config.node.runtime_dir.join(SOCKET));
    let at = Moment { now: SystemClock.now(), wall: trusted.then(|| SystemClock.wall()) };
    schedule::start(rollout, due, config.update.window, at)
}

/// The result of an attempt to install a wanted release.
enum Done {
    Nothing,
    Installed,
    /// It is not time.
    Waits(String),
    Held(String),
}

fn fulfil(
    config: &Config,
    wanted: Option<&WantedRelease>,
    received: Boot,
    record: &UpdateRecord,
) -> Result<Done, Failure> {
    let Some(wanted) = wanted else { return Ok(Done::Nothing) };
    let version = &wanted.version;
    let place = match decide_release(Some(wanted), &running_version(), record) {
        ReleaseDecision::Nothing => return Ok(Done::Nothing),
        ReleaseDecision::Held(why) => return Ok(Done::Held(why)),
        ReleaseDecision::Install(Some(named)) => Ok(format!("{named}/{}.spoke", super::board()?)),
        ReleaseDecision::Install(None) => source(config, None),
    };
    let at_most = match start_of(config, wanted.rollout, received) {
        Start::Wait(why) => return Ok(Done::Waits(format!("{version} is not fetched yet: {why}"))),
        Start::Fetch(at_most) => at_most,
    };
    let asker = Asker::Control { renewed: record.is_renewed(wanted) };
    let installed = place.and_then(|place| {
        install(config, &Order { place: &place, wanted: Some(wanted), asker, at_most, quiet: false })
    });
    match installed {
        Ok(Installed::Yes) => restart(false).map(|()| Done::Installed),
        Ok(Installed::Refused(why)) => {
            tracing::warn!(version, error = why, "wanted release not installed");
            Ok(Done::Held(why))
        }
        Err(e) => {
            let why = text(&e);
            tracing::warn!(version, error = why, "wanted release not installed");
            Ok(Done::Held(why))
        }
    }
}

fn text(failure: &Failure) -> String {
    match failure {
        Failure::BadInput(text) => text.clone(),
        Failure::Failed(e) => format!("{e:#}"),
        Failure::Silent | Failure::Differs | Failure::Invalid => String::new(),
    }
}

/// Stores keys, identity and settings in the vault.
fn keep_identity() {
    let vault = Vault::at(Path::new(RUN).join("dev/vault"));
    match vault.keep(Path::new("/state")) {
        Ok(true) => tracing::info!("second copy of the identity written"),
        Ok(false) => {}
        Err(e) => tracing::warn!(error = %e, "second copy of the identity not written"),
    }
}

/// `HOST:PORT` of a web address.
fn host_port(address: &str) -> Option<String> {
    Some(address.parse::<HttpUrl>().ok()?.server().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_a_probe() {
        assert_eq!(host_port("https://up.example.net/spoke").as_deref(), Some("up.example.net:443"));
        assert_eq!(host_port("http://10.0.2.2:8000/x").as_deref(), Some("10.0.2.2:8000"));
        assert_eq!(host_port("nonsense"), None);
    }
}

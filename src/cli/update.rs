//! `spoke update`: looks for, installs, shows and takes back updates of an image with two slots.
use super::{Failure, Outcome, load, print};
use crate::config::Config;
use crate::enroll::signature::VerifyKey;
use crate::sys::bundle::{self, InstallError};
use crate::sys::clock::SystemClock;
use crate::sys::disk::Document;
use crate::sys::slots::{DiskSlots, Slots as _, Standing};
use crate::sys::vault::Vault;
use crate::sys::{fetch, outlook};
use crate::update::machine::{Sight, Stage};
use crate::update::manifest::{Accepted, Manifest, root_keys};
use crate::update::record::{Record, Situation, TrialRecord};
use crate::update::slot::Trust;
use crate::update::task::{self, Next};
use std::io::Read;
use std::path::Path;

/// Where the record is kept: apart from the supervisor's state, which is another user's.
const RECORD: &str = "/state/update/update.json";
const ROOT_KEYS: &str = "/usr/lib/spoke/update-root.pub";

/// `spoke update`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say whether the configured source has another release
    Check,
    /// Write a bundle to the slot that is not running, and start it on trial
    Install {
        /// File or web address; without it the configured source
        bundle: Option<String>,
        /// Install, but leave the restart to you
        #[arg(long)]
        no_restart: bool,
    },
    /// Show the slots, the trial going on and how the last one ended
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start the other slot again, on trial
    Rollback {
        /// Leave the restart to you
        #[arg(long)]
        no_restart: bool,
    },
    /// Judge a trial and commit it (run by the image's own unit)
    #[command(hide = true)]
    Watch,
    /// Give the running slot up if the other one can start (run when the supervisor cannot be kept running)
    #[command(hide = true)]
    GiveUp {
        /// Kept and reported
        #[arg(long)]
        reason: String,
    },
}

/// Runs the command.
pub fn run(config: &Path, command: &Command) -> Outcome {
    match command {
        Command::Check => check(&load(config)?),
        Command::Install { bundle, no_restart } => installed(&load(config)?, bundle.as_deref(), *no_restart),
        Command::Status { json } => status(*json),
        Command::Rollback { no_restart } => rollback(*no_restart),
        Command::Watch => watch(&load(config)?),
        Command::GiveUp { reason } => give_up(reason),
    }
}

/// A value of the image's release file.
fn release(key: &str) -> Option<String> {
    let release = std::fs::read_to_string("/usr/lib/os-release").unwrap_or_default();
    release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=').map(|v| v.trim_matches('"').to_owned()))
}

fn board() -> Result<String, anyhow::Error> {
    Ok(release("VARIANT_ID").ok_or(crate::sys::slots::SlotError::NoSlots)?)
}

/// The version of the running image.
fn running_version() -> String {
    release("IMAGE_VERSION").unwrap_or_else(|| crate::VERSION.to_owned())
}

fn open_record() -> Result<(Document<Record>, Record), anyhow::Error> {
    let mut document = Document::new(RECORD.into(), 1);
    let record = match document.load() {
        Ok(record) => record,
        // It was moved aside; a device must not be kept from updates by a lost note about updates.
        Err(e @ crate::sys::disk::DiskError::Damaged { .. }) => {
            tracing::error!(error = %e, "update record lost");
            None
        }
        Err(e) => return Err(e.into()),
    };
    let board = board()?;
    Ok((document, record.unwrap_or_else(|| Record::new(board))))
}

fn roots() -> Result<Vec<VerifyKey>, Failure> {
    let keys = root_keys(&std::fs::read_to_string(ROOT_KEYS).unwrap_or_default());
    if keys.is_empty() {
        return Err(Failure::BadInput(format!(
            "{ROOT_KEYS} has no key: this image was built without one and takes no updates"
        )));
    }
    Ok(keys)
}

fn source(config: &Config, given: Option<&str>) -> Result<String, Failure> {
    match (given, &config.update.source) {
        (Some(given), _) => Ok(given.to_owned()),
        (None, Some(source)) => Ok(format!("{source}/{}.spoke", board()?)),
        (None, None) => {
            Err(Failure::BadInput("no update.source is configured: name a bundle, or set it in spoke.toml".into()))
        }
    }
}

fn opened(place: &str, record: &Record) -> Result<(Box<dyn Read + Send>, Accepted), Failure> {
    let mut stream = fetch::open(place).map_err(|e| anyhow::anyhow!("cannot open {place}: {e}"))?;
    match bundle::open(&mut stream, &roots()?, &record.known) {
        Ok(accepted) => Ok((stream, accepted)),
        Err(e @ InstallError::Refused(_)) => Err(Failure::BadInput(format!("{place}: {e}"))),
        Err(e) => Err(anyhow::Error::from(e).context(place.to_owned()).into()),
    }
}

fn check(config: &Config) -> Outcome {
    let (_, record) = open_record()?;
    let place = source(config, None)?;
    let (_, accepted) = opened(&place, &record)?;
    let Manifest { version, sequence, .. } = accepted.manifest;
    let note = if record.was_rejected(sequence) { " (was tried here and given up)" } else { "" };
    print(&format!("{place}: release {sequence}, version {version}{note}; running {}\n", running_version()));
    Ok(())
}

fn installed(config: &Config, given: Option<&str>, no_restart: bool) -> Outcome {
    let (mut document, mut record) = open_record()?;
    let mut slots = DiskSlots::found()?;
    if !config.health.enabled {
        return Err(Failure::BadInput(
            "health.enabled is false: a new system is judged by its health endpoint and would never be committed"
                .into(),
        ));
    }
    let standing = slots.standing()?;
    let busy = match record.situation(standing.running, standing.trust, standing.other) {
        Situation::Settled | Situation::Interrupted | Situation::CameBack | Situation::Pending => None,
        Situation::Watch => Some("this system is on trial itself: wait until it is committed (spoke update status)"),
        Situation::Look => Some("a trial met an outage and is not over: spoke update rollback ends it"),
    };
    if let Some(why) = busy {
        return Err(anyhow::Error::from(InstallError::Busy(why.into())).into());
    }
    let place = source(config, given)?;
    let (mut stream, accepted) = opened(&place, &record)?;
    let version = accepted.manifest.version.clone();
    print(&format!("writing {version} to slot {}\n", standing.running.other()));
    record.trial = None;
    document.store(&record)?;
    bundle::write(&mut stream, &accepted, &mut slots).map_err(|e| anyhow::Error::from(e).context(place))?;
    // The record before the boot loader: found without it, a trial would be judged but could teach nothing.
    record.trial = Some(TrialRecord {
        manifest: accepted.manifest,
        slot: standing.running.other(),
        stage: Stage::Trial,
        armed: false,
        resumes: 0,
        learned: accepted.learned,
    });
    document.store(&record)?;
    slots.try_staged()?;
    if let Some(trial) = &mut record.trial {
        trial.armed = true;
    }
    document.store(&record)?;
    print(&format!("{version} is installed and starts on trial\n"));
    restart(no_restart)
}

fn restart(no: bool) -> Outcome {
    if no {
        return Ok(());
    }
    // Through the service manager, so that everything is stopped and unmounted in order.
    let status = std::process::Command::new("systemctl").arg("reboot").status()?;
    if status.success() { Ok(()) } else { Err(anyhow::anyhow!("systemctl reboot: {status}").into()) }
}

fn trust_text(trust: Option<Trust>) -> String {
    match trust {
        Some(Trust::Good) => "committed".into(),
        Some(Trust::Trying(0)) => "given up or empty".into(),
        Some(Trust::Trying(n)) => format!("on trial, {n} starts left"),
        None => "empty".into(),
    }
}

fn status(json: bool) -> Outcome {
    let (_, record) = open_record()?;
    let standing = DiskSlots::found()?.standing()?;
    if json {
        print(&format!(
            "{:#}\n",
            serde_json::json!({"slots": standing, "record": record, "version": running_version()})
        ));
        return Ok(());
    }
    let Standing { running, trust, other } = standing;
    print(&format!("slot {running}  {}  (running {})\n", trust_text(trust), running_version()));
    print(&format!("slot {}  {}\n", running.other(), trust_text(other)));
    if let Some(trial) = &record.trial {
        print(&format!("trial  version {} in slot {}, {:?}\n", trial.manifest.version, trial.slot, trial.stage));
    }
    if let Some(last) = &record.last {
        print(&format!("last   version {}: {}\n", last.version, last.detail));
    }
    Ok(())
}

fn rollback(no_restart: bool) -> Outcome {
    let (mut document, mut record) = open_record()?;
    let mut slots = DiskSlots::found()?;
    let standing = slots.standing()?;
    if standing.other.is_none() {
        return Err(Failure::BadInput(format!(
            "slot {} is empty: there is nothing to go back to",
            standing.running.other()
        )));
    }
    record.trial = None;
    document.store(&record)?;
    slots.try_other()?;
    print(&format!("slot {} starts on trial\n", standing.running.other()));
    restart(no_restart)
}

fn watch(config: &Config) -> Outcome {
    super::run::log();
    let (mut document, mut record) = open_record()?;
    let mut slots = DiskSlots::found()?;
    let health = config.health.listen.first().copied().filter(|_| config.health.enabled);
    let mut probes = config.update.probes.clone();
    probes.extend(config.update.source.as_deref().and_then(host_port));
    let look = async || {
        let Some(health) = health else { return Sight::default() };
        let probes = probes.clone();
        tokio::task::spawn_blocking(move || outlook::look(health, &probes)).await.unwrap_or_default()
    };
    let rules = config.update.rules;
    let next = super::block_on(task::watch(&SystemClock, &mut slots, &mut document, &mut record, rules, look))??;
    match next {
        Next::Restart => restart(false),
        Next::Settled => super::block_on(idle(config, &record))?,
    }
}

/// Nothing to judge: keeps the second copy of the identity, looks at the source now and then where that is wanted.
async fn idle(config: &Config, record: &Record) -> Outcome {
    let mut next = tokio::time::Instant::now() + config.update.every;
    loop {
        keep_identity();
        tokio::time::sleep(KEEP).await;
        if !config.update.automatic || config.update.source.is_none() || tokio::time::Instant::now() < next {
            continue;
        }
        next += config.update.every;
        match source(config, None).and_then(|place| opened(&place, record)) {
            Ok((_, Accepted { manifest, .. }))
                if manifest.version == running_version() || record.was_rejected(manifest.sequence) => {}
            Ok(_) => return installed(config, None, false),
            Err(Failure::BadInput(text)) => tracing::warn!("{text}"),
            Err(Failure::Failed(e)) => tracing::warn!("{e:#}"),
            Err(Failure::Silent) => {}
        }
    }
}

/// Time between two looks at whether the identity changed. Looking reads; only a change writes.
const KEEP: std::time::Duration = std::time::Duration::from_secs(60);

/// Keeps keys, identity and settings in the vault.
fn keep_identity() {
    let wanted = |name: &str| {
        let file = name.rsplit('/').next().unwrap_or(name);
        // Left-overs of an interrupted write and previous copies are not the identity.
        !file.starts_with('.')
            && (name.starts_with("config/")
                || name.starts_with("ssh/")
                || file.ends_with(".key")
                || file.starts_with("identity"))
    };
    let vault = Vault::at(Path::new(crate::sys::slots::RUN).join("dev/vault"));
    match vault.keep(Path::new("/state"), wanted) {
        Ok(true) => tracing::info!("second copy of the identity written"),
        Ok(false) => {}
        Err(e) => tracing::warn!(error = %e, "second copy of the identity not kept"),
    }
}

/// `HOST:PORT` of a web address.
fn host_port(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let host = rest.split('/').next()?;
    let default = if scheme == "https" { 443 } else { 80 };
    let has_port = host.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
    Some(if has_port { host.to_owned() } else { format!("{host}:{default}") })
}

fn give_up(reason: &str) -> Outcome {
    super::run::log();
    let mut slots = DiskSlots::found()?;
    let standing = slots.standing()?;
    tracing::error!(slot = %standing.running, reason, "last rung");
    // A trial uses up its tries by itself; a slot committed long ago is only given up for one that can start.
    if standing.trust == Some(Trust::Good) && standing.other.is_some_and(|t| t != Trust::Trying(0)) {
        slots.condemn()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_a_probe_too() {
        assert_eq!(host_port("https://up.example.net/spoke").as_deref(), Some("up.example.net:443"));
        assert_eq!(host_port("http://10.0.2.2:8000/x").as_deref(), Some("10.0.2.2:8000"));
        assert_eq!(host_port("nonsense"), None);
    }
}

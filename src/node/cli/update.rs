//! `spoke update`: checks for, installs, shows and rolls back updates of an image with two slots.
use crate::config_file::{load, runtime_directory};
use crate::update::{Held, RecordStore};
use crate::{clock, outlook};
use spoke_api::socket::SOCKET;
use spoke_command::text::visible;
use spoke_command::{Failure, Outcome, print};
use spoke_config::Config;
use spoke_model::release::WantedRelease;
use spoke_model::time::Wall;
use spoke_model::tree::Tree;
use spoke_sys::bundle;
use spoke_sys::bundle::{Bundle, InstallError};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::{DiskError, Document};
use spoke_sys::fetch;
use spoke_sys::slots::lock::UpdateLock;
use spoke_sys::slots::{DiskSlots, SlotError, Slots as _, Standing};
use spoke_sys::updater::Notes;
use spoke_update::machine::RejectReason;
use spoke_update::manifest::{Accepted, Roots};
use spoke_update::notice::{Notice, ReleaseDecision, decide_release};
use spoke_update::offer::{Asker, Offer, certain_time, decide_offer};
use spoke_update::record::{Situation, UpdateRecord};
use spoke_update::seal::Seal;
use spoke_update::slot::{Slot, Trust};
use std::path::Path;
use std::time::Duration;

mod watch;

/// The record: apart from the supervisor's state, which belongs to another user.
const RECORD: &str = "/state/update/update.json";
const ROOT_KEYS: &str = "/usr/lib/spoke/update-root.pub";
/// The image's release file.
const RELEASE: &str = "/usr/lib/os-release";

/// `spoke update`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Report whether the configured source has another release, and which one the control plane wants
    Check,
    /// Write a bundle to the slot that is not running, and start it on trial
    Install {
        /// File or web address; without it the configured source
        bundle: Option<String>,
        /// Install, but leave the restart to you
        #[arg(long)]
        no_restart: bool,
        /// Install an older release than the running one
        #[arg(long)]
        downgrade: bool,
    },
    /// Show the slots, the current trial and the result of the last one
    Status,
    /// Roll back: start the other slot on trial, or end the current trial
    Rollback {
        /// Leave the restart to you
        #[arg(long)]
        no_restart: bool,
    },
    /// Let a release that was given up be installed by itself again; without a version the one given up last
    Retry {
        /// The version that was given up
        version: Option<String>,
    },
    /// Judge a trial and commit it (run by the image's own unit)
    #[command(hide = true)]
    Watch,
    /// Give the running slot up if the other one can start (run when the supervisor keeps failing)
    #[command(hide = true)]
    GiveUp {
        /// Stored and reported
        #[arg(long)]
        reason: String,
    },
}

/// Runs the command.
pub fn run(file: &Path, command: &Command, json: bool) -> Outcome {
    // What takes a system back works while the configuration has faults.
    let runtime_dir = || runtime_directory(file);
    match command {
        Command::Check => check(&load(file)?, json),
        Command::Install { bundle, no_restart, downgrade } => {
            let config = load(file)?;
            let place = source(&config, bundle.as_deref())?;
            let asker = Asker::Person { downgrade: *downgrade };
            let order = Order { place: &place, wanted: None, asker, at_most: None, quiet: json };
            match install(&config, &order)? {
                Installed::Yes => {
                    if json {
                        super::answer(true, &[("result", "installed; it starts on trial")], "")?;
                    }
                    restart(*no_restart)
                }
                Installed::Refused(why) => Err(Failure::BadInput(why)),
            }
        }
        Command::Status => status(&runtime_dir(), json),
        Command::Rollback { no_restart } => rollback(&runtime_dir(), *no_restart, json),
        Command::Retry { version } => retry(file, version.as_deref(), json),
        Command::Watch => watch::run(&load(file)?),
        Command::GiveUp { reason } => give_up(&runtime_dir(), reason),
    }
}

/// A value of the image's release file.
fn release(key: &str) -> Option<String> {
    let release = std::fs::read_to_string(RELEASE).unwrap_or_default();
    release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=').map(|v| v.trim_matches('"').to_owned()))
}

fn board() -> Result<String, anyhow::Error> {
    Ok(release("VARIANT_ID").ok_or(SlotError::NoSlots)?)
}

/// The version of the running image.
fn running_version() -> String {
    release("IMAGE_VERSION").unwrap_or_else(|| spoke_model::VERSION.to_owned())
}

/// The record on the state partition, and the notice for the supervisor made of it.
struct RecordFile {
    document: Document<UpdateRecord>,
    notes: Notes,
    slot: Slot,
}

impl RecordFile {
    fn open(runtime_dir: &Path, slots: &DiskSlots) -> Result<(Self, UpdateRecord), anyhow::Error> {
        let mut file =
            Self { document: Document::new(RECORD.into(), 1), notes: Notes::at(runtime_dir), slot: slots.running() };
        let record = match file.document.load() {
            Ok(record) => record,
            // Moved aside by the loader. A damaged record must not prevent updates.
            Err(e @ DiskError::Damaged { .. }) => {
                tracing::error!(error = %e, "update record lost");
                None
            }
            Err(e) => return Err(e.into()),
        };
        let record = file.complete(record.unwrap_or(UpdateRecord::new(board()?)), slots.seal());
        Ok((file, record))
    }

    /// With what the running image and the disk know.
    fn complete(&self, mut record: UpdateRecord, seal: Seal) -> UpdateRecord {
        record.slots.insert(self.slot, running_version());
        if let Some(sequence) = release("IMAGE_SEQUENCE").and_then(|n| n.parse().ok()) {
            record.sequences.insert(self.slot, sequence);
        }
        seal.apply(&mut record.known);
        record
    }

    /// Takes the wish of the control plane that is known now for answered: only one renewed later brings back what is given up.
    fn answer_wish(&self, record: &mut UpdateRecord) {
        if let Some(wanted) = self.notes.wanted() {
            record.answer(&wanted);
        }
    }

    /// Publishes the state of updates to the supervisor; used for reports only.
    fn post(&self, record: &UpdateRecord, held: Option<String>) {
        let notice = Notice { held, ..Notice::of(record, self.slot, &running_version()) };
        if let Err(e) = self.notes.post(&notice) {
            tracing::warn!(error = %e, "state of updates not published");
        }
    }
}

impl RecordStore for RecordFile {
    fn committed(&mut self, record: &UpdateRecord) {
        let Some(last) = &record.last else { return };
        let seal = Seal { serial: record.known.serial, floor: record.known.floor, sequence: last.sequence };
        if let Err(e) = DiskSlots::found().and_then(|slots| slots.raise_seal(seal)) {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(e)),
                "committed release not remembered on the disk"
            );
        }
    }

    fn store(&mut self, record: &UpdateRecord) -> Result<(), DiskError> {
        // Published first: a full state partition must be visible.
        self.post(record, None);
        self.document.store(record).map(drop)
    }

    fn exclusively(&mut self) -> Result<Option<Held>, SlotError> {
        match UpdateLock::take() {
            Ok(lock) => {
                let seal = DiskSlots::found()?.seal();
                let stored = self.document.load().unwrap_or_else(|e| {
                    tracing::warn!(error = %e, "update record not read again");
                    None
                });
                Ok(Some(Held { lock: Some(lock), record: stored.map(|r| self.complete(r, seal)) }))
            }
            Err(SlotError::Busy(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn roots() -> Result<Roots, Failure> {
    let roots = Roots::parse(&std::fs::read_to_string(ROOT_KEYS).unwrap_or_default());
    if roots.keys.is_empty() {
        return Err(Failure::BadInput(format!(
            "{ROOT_KEYS} has no key: this image was built without one and accepts no updates"
        )));
    }
    if !roots.is_usable() {
        return Err(Failure::BadInput(format!(
            "{ROOT_KEYS} has {} keys and a threshold that they cannot meet: this image accepts no updates",
            roots.keys.len()
        )));
    }
    Ok(roots)
}

/// The location of a bundle: the one given, or this board's at the configured source.
fn source(config: &Config, given: Option<&str>) -> Result<String, Failure> {
    match (given, &config.update.source) {
        (Some(given), _) => Ok(given.to_owned()),
        (None, Some(source)) => Ok(format!("{source}/{}.spoke", board()?)),
        (None, None) => {
            Err(Failure::BadInput("no update.source is configured: name a bundle, or set it in spoke.toml".into()))
        }
    }
}

fn opened(
    place: &str,
    record: &UpdateRecord,
    at_most: Option<Duration>,
) -> Result<(Box<dyn Bundle>, Accepted), Failure> {
    let mut stream = fetch::open(place, at_most).map_err(|e| anyhow::anyhow!("cannot open {place}: {e}"))?;
    match bundle::open(stream.as_mut(), &roots()?, &record.known) {
        Ok(accepted) => Ok((stream, accepted)),
        Err(e @ InstallError::Refused(_)) => Err(Failure::BadInput(format!("{place}: {e}"))),
        Err(e) => Err(anyhow::Error::from(e).context(place.to_owned()).into()),
    }
}

fn check(config: &Config, json: bool) -> Outcome {
    let running = running_version();
    let slots = DiskSlots::found()?;
    let (file, record) = RecordFile::open(&config.node.runtime_dir, &slots)?;
    let mut entries = vec![("running", Tree::Text(running.clone()))];
    let wanted = file.notes.wanted();
    if let Some(wanted) = &wanted {
        let note = match decide_release(Some(wanted), &running, &record) {
            ReleaseDecision::Nothing => "which runs".to_owned(),
            ReleaseDecision::Held(why) => why,
            ReleaseDecision::Install(_) => "which is installed by itself".to_owned(),
        };
        if !json {
            print(&format!("the control plane wants {}: {}\n", wanted.version, visible(&note)));
        }
        entries.push(("wanted", Tree::of_texts(&[("version", &wanted.version), ("note", &note)])));
    }
    if wanted.is_some() && config.update.source.is_none() {
        if json {
            print(&super::document(super::object(entries))?);
        }
        return Ok(());
    }
    let place = source(config, None)?;
    let (_, accepted) = opened(&place, &record, None)?;
    let manifest = accepted.manifest;
    let (ours, sequence) = self::running(&slots, &record);
    let note = match decide_offer(&manifest, (&ours, sequence), &record, judged_at(config), Asker::Source) {
        Offer::Install | Offer::Runs => String::new(),
        Offer::Refused(why) => why,
    };
    if json {
        entries.push(("source", Tree::Text(place)));
        entries.push(("sequence", Tree::Unsigned(manifest.sequence)));
        entries.push(("version", Tree::Text(manifest.version)));
        entries.push(("note", Tree::Text(note)));
        print(&super::document(super::object(entries))?);
        return Ok(());
    }
    let note = if note.is_empty() { note } else { format!(" ({note})") };
    print(&format!("{place}: release {}, version {}{note}; running {ours}\n", manifest.sequence, manifest.version));
    Ok(())
}

/// What to install.
struct Order<'a> {
    /// File or web address.
    place: &'a str,
    /// The control plane's wish, whose version it must have.
    wanted: Option<&'a WantedRelease>,
    asker: Asker,
    /// The longest the download may take.
    at_most: Option<Duration>,
    /// Print nothing.
    quiet: bool,
}

enum Installed {
    Yes,
    /// Nothing was touched.
    Refused(String),
}

/// Version and release number of the running system.
fn running(slots: &DiskSlots, record: &UpdateRecord) -> (String, u64) {
    // Without a number of its own, as in images of before: the one it was installed with, or the highest committed here.
    let own = record.sequences.get(&slots.running()).copied();
    (running_version(), own.unwrap_or_else(|| slots.seal().sequence))
}

/// The time that the expiry of a release is judged by.
fn judged_at(config: &Config) -> Wall {
    let trusted = outlook::clock_trusted(&config.node.runtime_dir.join(SOCKET));
    let (floor, _) = clock::floor(&config.node.state_dir);
    let passed = floor.stamp.filter(|s| s.trusted).map_or(floor.build, |s| s.wall.max(floor.build));
    certain_time(trusted.then(|| SystemClock.wall()), passed)
}

/// Remembers the certificate of a release that is not installed.
fn learn(slots: &DiskSlots, file: &mut RecordFile, record: &mut UpdateRecord, seen: &Accepted) -> Result<(), Failure> {
    if record.learn_certificate(&seen.learned) {
        let serial = record.known.serial;
        file.store(record)?;
        slots.raise_seal(Seal { serial, ..Seal::default() })?;
        tracing::info!(serial, "later signing certificate seen: releases under earlier ones are refused");
    }
    Ok(())
}

/// Installs a bundle; the restart is the caller's.
fn install(config: &Config, order: &Order<'_>) -> Result<Installed, Failure> {
    let _lock = UpdateLock::take()?;
    let mut slots = DiskSlots::found()?;
    let (mut file, mut record) = RecordFile::open(&config.node.runtime_dir, &slots)?;
    let standing = slots.standing()?;
    let busy = match record.situation(standing.running, standing.trust, standing.other) {
        Situation::Settled | Situation::Interrupted | Situation::CameBack | Situation::FellBack => None,
        Situation::Pending if matches!(order.asker, Asker::Person { .. }) => None,
        Situation::Pending => Some("an installed system waits for the restart: systemctl reboot starts it"),
        Situation::Watch => Some("this system is on trial: wait until it is committed (spoke update status)"),
        Situation::Look => Some("a trial waits for the end of an outage: spoke update rollback ends it"),
    };
    if let Some(why) = busy {
        return Err(anyhow::Error::from(InstallError::Busy(why.into())).into());
    }
    let place = order.place;
    let (mut stream, accepted) = opened(place, &record, order.at_most)?;
    let version = accepted.manifest.version.clone();
    if let Some(only) = order.wanted.map(|w| w.version.as_str()).filter(|only| *only != version) {
        learn(&slots, &mut file, &mut record, &accepted)?;
        return Ok(Installed::Refused(format!("version {only} is wanted, but {place} has {version}")));
    }
    let (ours, sequence) = running(&slots, &record);
    let refused = match decide_offer(&accepted.manifest, (&ours, sequence), &record, judged_at(config), order.asker) {
        Offer::Install => None,
        Offer::Runs => Some(format!("{version} runs already")),
        Offer::Refused(why) => Some(why),
    };
    if let Some(why) = refused {
        learn(&slots, &mut file, &mut record, &accepted)?;
        return Ok(Installed::Refused(why));
    }
    let other = standing.running.other();
    let note = |text: &str| {
        if order.quiet {
        } else {
            print(text)
        }
    };
    note(&format!("writing {version} to slot {other}\n"));
    record.trial = None;
    file.store(&record)?;
    bundle::write(stream.as_mut(), &accepted, &mut slots)
        .map_err(|e| anyhow::Error::from(e).context(place.to_owned()))?;
    if accepted.manifest.sequence < sequence {
        record.leave(&ours);
    }
    // The record before the boot loader: a trial without a record could not be recorded.
    record.begin(accepted, other);
    file.answer_wish(&mut record);
    file.store(&record)?;
    slots.try_staged()?;
    if let Some(trial) = &mut record.trial {
        trial.armed = true;
    }
    file.store(&record)?;
    note(&format!("{version} is installed and starts on trial\n"));
    Ok(Installed::Yes)
}

fn restart(no: bool) -> Outcome {
    if no {
        return Ok(());
    }
    // Through the service manager, which stops services and unmounts in order.
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

fn status(runtime_dir: &Path, json: bool) -> Outcome {
    let mut slots = DiskSlots::found()?;
    let (file, record) = RecordFile::open(runtime_dir, &slots)?;
    let standing = slots.standing()?;
    let wanted = file.notes.wanted();
    if json {
        let shown =
            serde_json::json!({"slots": standing, "record": record, "version": running_version(), "wanted": wanted});
        print(&super::json(&shown)?);
        return Ok(());
    }
    let Standing { running, trust, other, .. } = standing;
    let version = |slot: Slot| record.slots.get(&slot).map(|v| format!("  {v}")).unwrap_or_default();
    print(&format!("slot {running}{}  {}, running\n", version(running), trust_text(trust)));
    print(&format!("slot {}{}  {}\n", running.other(), version(running.other()), trust_text(other)));
    if roots().is_err() {
        print("updates none: this image has no root keys that could certify a bundle\n");
    }
    if let Some(wanted) = wanted {
        print(&format!("wanted version {} (by the control plane)\n", wanted.version));
    }
    if let Some(trial) = &record.trial {
        print(&format!("trial  version {} in slot {}, {:?}\n", trial.version, trial.slot, trial.stage));
    }
    if let Some(last) = &record.last {
        print(&format!("last   version {}: {}\n", last.version, visible(&last.detail)));
    }
    Ok(())
}

fn rollback(runtime_dir: &Path, no_restart: bool, json: bool) -> Outcome {
    let done = |text: String| super::answer(json, &[("result", &text)], &format!("{text}\n"));
    let _lock = UpdateLock::take()?;
    let mut slots = DiskSlots::found()?;
    let (mut file, mut record) = RecordFile::open(runtime_dir, &slots)?;
    let Standing { running, trust, other, .. } = slots.standing()?;
    match record.situation(running, trust, other) {
        Situation::Watch => {
            // The record first: after a power loss in between, the trial is judged again.
            file.answer_wish(&mut record);
            record.end(Some(RejectReason::ByHand));
            file.store(&record)?;
            slots.condemn()?;
            done(format!("the trial is over: slot {} starts", running.other()))?;
            restart(no_restart)
        }
        Situation::Look | Situation::Pending => {
            slots.vacate()?;
            file.answer_wish(&mut record);
            record.end(Some(RejectReason::ByHand));
            file.store(&record)?;
            done(format!("the trial is over: slot {running} stays"))
        }
        Situation::Settled | Situation::Interrupted | Situation::CameBack | Situation::FellBack => {
            if other.is_none() {
                let problem = format!("slot {} is empty: there is no release to roll back to", running.other());
                return Err(Failure::BadInput(problem));
            }
            file.answer_wish(&mut record);
            record.roll_back(running.other(), &running_version());
            file.store(&record)?;
            slots.try_other()?;
            if let Some(trial) = &mut record.trial {
                trial.armed = true;
            }
            file.store(&record)?;
            done(format!("slot {} starts on trial", running.other()))?;
            restart(no_restart)
        }
    }
}

fn retry(config: &Path, version: Option<&str>, json: bool) -> Outcome {
    let _lock = UpdateLock::take()?;
    let (mut file, mut record) = RecordFile::open(&runtime_directory(config), &DiskSlots::found()?)?;
    let none = || Failure::BadInput("no release was given up here".into());
    let version = version.or_else(|| record.last_rejected()).ok_or_else(none)?.to_owned();
    if !record.retry(&version) {
        let given_up = record.shunned.join(", ");
        return Err(if given_up.is_empty() {
            none()
        } else {
            Failure::BadInput(format!("{version} was not given up here; that was: {given_up}"))
        });
    }
    file.store(&record)?;
    let by_itself = match file.notes.wanted() {
        Some(wanted) => wanted.version == version,
        None => load(config).is_ok_and(|c| c.update.automatic && c.update.source.is_some()),
    };
    let next = if by_itself { "is installed by itself again" } else { "can be installed: spoke update install" };
    super::answer(json, &[("version", &version), ("result", next)], &format!("{version} {next}\n"))
}

/// Runs without settings: they may be what is wrong.
fn give_up(runtime_dir: &Path, reason: &str) -> Outcome {
    spoke_command::start_log("spoke");
    let mut slots = DiskSlots::found()?;
    let standing = slots.standing()?;
    tracing::error!(slot = %standing.running, reason, "supervisor keeps failing");
    // A trial uses up its tries anyway; a committed slot is given up only for one that can start.
    if standing.trust == Some(Trust::Good) {
        if standing.other.is_none_or(|t| t == Trust::Trying(0)) {
            return Err(anyhow::anyhow!("no other slot can start: a restart changes nothing").into());
        }
        slots.condemn()?;
    }
    // For the next system. An error here must not prevent the reboot.
    if let Ok((mut file, mut record)) = RecordFile::open(runtime_dir, &slots)
        && let Some(trial) = record.trial.as_mut().filter(|t| t.slot == standing.running)
    {
        trial.note = Some(reason.to_owned());
        file.store(&record)?;
    }
    Ok(())
}

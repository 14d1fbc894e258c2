//! Watches a trial from boot to its end and stores the record; runs apart from the supervisor, as root. Waits for the next
//! probe or the trial's deadline.
use spoke_config::update::Rules;
use spoke_model::log_text::Word;
use spoke_model::time::Boot;
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use spoke_sys::slots::lock::UpdateLock;
use spoke_sys::slots::{SlotError, Slots, Standing};
use spoke_update::machine::{ProbeResult, RejectReason, Stage, Trial, TrialAction, TrialEvent};
use spoke_update::record::{Situation, UpdateRecord};
use spoke_update::slot::LIVED;
use std::time::Duration;

/// Time between two probes.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Why watching ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The slots cannot be read or written.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The record cannot be stored.
    #[error(transparent)]
    Record(#[from] DiskError),
}

/// What the caller must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until the next boot.
    Settled,
    /// Reboot: the boot loader is set to the right slot.
    Restart,
}

/// Storage of the record.
pub trait RecordStore {
    /// Remembers, apart from the record, what was committed.
    fn committed(&mut self, record: &UpdateRecord);
    /// Stores it durably and publishes it to the supervisor.
    fn store(&mut self, record: &UpdateRecord) -> Result<(), DiskError>;
    /// Keeps other processes from changing slots and record; `None`: one of them does at this moment.
    fn exclusively(&mut self) -> Result<Option<Held>, SlotError>;
}

/// While it is held, no other process changes the slots.
#[derive(Debug)]
pub struct Held {
    /// The lock; `None` in tests of one process.
    pub lock: Option<UpdateLock>,
    /// The record that is stored: another process may have ended the trial.
    pub record: Option<UpdateRecord>,
}

/// Watches until the trial has ended, by itself or by another process. `probe` takes some seconds at most and is called every five.
pub async fn watch<C: Clock>(
    clock: &C,
    slots: &mut impl Slots,
    store: &mut impl RecordStore,
    record: &mut UpdateRecord,
    rules: Rules,
    mut probe: impl AsyncFnMut() -> ProbeResult,
) -> Result<Next, WatchError> {
    loop {
        if let Some(next) = watch_once(clock, slots, store, record, rules, &mut probe).await? {
            return Ok(next);
        }
        tracing::info!("another process changed the slots: looking at them again");
    }
}

/// `None`: another process has changed the record.
async fn watch_once<C: Clock>(
    clock: &C,
    slots: &mut impl Slots,
    store: &mut impl RecordStore,
    record: &mut UpdateRecord,
    rules: Rules,
    probe: &mut impl AsyncFnMut() -> ProbeResult,
) -> Result<Option<Next>, WatchError> {
    let (held, _) = exclusively(clock, store, record).await?;
    let standing = slots.standing()?;
    let situation = record.situation(standing.running, standing.trust, standing.other);
    tracing::info!(slot = %standing.running, situation = %Word(&situation), "slots");
    let mut trial = match situation {
        Situation::Settled | Situation::Pending => None,
        Situation::Interrupted => {
            record.trial = None;
            store.store(record)?;
            None
        }
        Situation::CameBack => {
            end(store, record, Some(RejectReason::DidNotStart))?;
            None
        }
        // Nothing of it ran: a damaged kernel, or power that failed within seconds. Its trial tells.
        Situation::FellBack if standing.other_unstarted => None,
        Situation::FellBack => {
            record.fell_back();
            log_rejection(record);
            store.store(record)?;
            None
        }
        Situation::Watch => {
            if let Some(trial) = &mut record.trial {
                (trial.stage, trial.armed) = (Stage::Trial, true);
                store.store(record)?;
            }
            Some(Stage::Trial)
        }
        Situation::Look => Some(Stage::Retreated),
    }
    .map(|stage| {
        let resumes = record.trial.as_ref().map_or(0, |t| t.resumes);
        let compare = record.trial.as_ref().is_some_and(|t| t.compare);
        Trial::new(clock.now(), rules, stage, resumes, compare)
    });
    drop(held);
    let again = situation == Situation::FellBack && standing.other_unstarted;
    let (mut counted, mut failed) = (true, false);
    let began = clock.now();
    loop {
        let result = probe().await;
        if counted && result.passes {
            // Whether the WAN, the hub or the settings are at fault is another question than whether this system runs.
            slots.clear_starts()?;
            counted = false;
        }
        if counted && !failed && clock.now().since(Boot::from_secs(0)) >= LIVED {
            slots.start_failed()?;
            failed = true;
        }
        if again && clock.now().since(began) >= rules.settle {
            let (_held, moved) = exclusively(clock, store, record).await?;
            if moved {
                return Ok(None);
            }
            record.try_again(standing.running.other());
            store.store(record)?;
            slots.try_other()?;
            tracing::warn!(slot = %standing.running.other(), "committed system did not start: tried again");
            return Ok(Some(Next::Restart));
        }
        let Some(machine) = &mut trial else {
            if counted || again {
                clock.sleep(PROBE_EVERY).await;
                continue;
            }
            return Ok(Some(Next::Settled));
        };
        if let Some(action) = machine.handle(clock.now(), TrialEvent::Probed(result)).first() {
            let (_held, moved) = exclusively(clock, store, record).await?;
            if moved {
                return Ok(None);
            }
            if let Some(next) = act(*action, standing, slots, store, record)? {
                return Ok(Some(next));
            }
            trial = None;
            continue;
        }
        let now = clock.now();
        let wait = machine.deadline().map_or(PROBE_EVERY, |d| d.at.since(now).min(PROBE_EVERY));
        clock.sleep(wait).await;
    }
}

/// Waits until no other process changes the slots, and takes over what it stored: the lock, and whether the trial is another.
async fn exclusively<C: Clock>(
    clock: &C,
    store: &mut impl RecordStore,
    record: &mut UpdateRecord,
) -> Result<(Held, bool), WatchError> {
    loop {
        let Some(mut held) = store.exclusively()? else {
            clock.sleep(PROBE_EVERY).await;
            continue;
        };
        let moved = held.record.take().is_some_and(|stored| {
            let moved = stored.trial != record.trial;
            *record = stored;
            moved
        });
        return Ok((held, moved));
    }
}

fn act(
    action: TrialAction,
    standing: Standing,
    slots: &mut impl Slots,
    store: &mut impl RecordStore,
    record: &mut UpdateRecord,
) -> Result<Option<Next>, WatchError> {
    let on_trial = record.trial.as_ref().is_none_or(|t| t.slot == standing.running);
    match action {
        TrialAction::Commit => {
            // The boot loader first: after a power loss in between, the next boot is watched and committed again.
            slots.commit()?;
            end(store, record, None)?;
            store.committed(record);
            tracing::info!(slot = %standing.running, "update committed");
            Ok(None)
        }
        TrialAction::Reject(reason) if on_trial => {
            end(store, record, Some(reason))?;
            slots.condemn()?;
            Ok(Some(Next::Restart))
        }
        TrialAction::Reject(reason) => {
            end(store, record, Some(reason))?;
            Ok(None)
        }
        TrialAction::Retreat | TrialAction::Compare => {
            let compare = action == TrialAction::Compare;
            if let Some(trial) = &mut record.trial {
                (trial.stage, trial.compare) = (Stage::Retreated, compare);
            }
            store.store(record)?;
            slots.condemn()?;
            if compare {
                tracing::warn!("hub or control plane not reached: comparing with the old system");
            } else {
                tracing::warn!("no host outside answers: probing from the old system");
            }
            Ok(Some(Next::Restart))
        }
        TrialAction::Resume => {
            if let Some(trial) = &mut record.trial {
                (trial.stage, trial.resumes) = (Stage::Trial, trial.resumes.saturating_add(1));
            }
            store.store(record)?;
            slots.try_other()?;
            tracing::info!("the outage is over: the update is tried again");
            Ok(Some(Next::Restart))
        }
    }
}

fn end(store: &mut impl RecordStore, record: &mut UpdateRecord, reason: Option<RejectReason>) -> Result<(), DiskError> {
    record.end(reason);
    log_rejection(record);
    store.store(record)
}

/// Logs the reason, also for the console of the device.
fn log_rejection(record: &UpdateRecord) {
    if let Some(last) = &record.last
        && let Some(reason) = last.reason
    {
        tracing::error!(version = last.version, reason = %Word(&reason), detail = last.detail, "update given up");
    }
}

#[cfg(test)]
mod tests;

//! Watches a trial from the start of the machine to its end, and keeps the record; runs apart from the supervisor, as root.
use spoke_config::update::Rules;
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use spoke_sys::slots::{SlotError, Slots, Standing};
use spoke_update::machine::{ProbeResult, RejectReason, Stage, Trial, TrialAction, TrialEvent};
use spoke_update::record::{Situation, UpdateRecord};
use std::time::Duration;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// Why watching ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The slots.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The record.
    #[error(transparent)]
    Record(#[from] DiskError),
}

/// What the caller has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing more in this life of the machine.
    Settled,
    /// Start the machine again: the boot loader was told which slot.
    Restart,
}

/// Where the record is kept and told.
pub trait Book {
    /// Keeps it so that it survives a power cut, and tells whoever wants to know.
    fn keep(&mut self, record: &UpdateRecord) -> Result<(), DiskError>;
}

/// Watches until there is nothing to watch. `look` takes a few seconds at most and is called every five.
pub async fn watch<C: Clock>(
    clock: &C,
    slots: &mut impl Slots,
    book: &mut impl Book,
    record: &mut UpdateRecord,
    rules: Rules,
    mut look: impl AsyncFnMut() -> ProbeResult,
) -> Result<Next, WatchError> {
    let standing = slots.standing()?;
    let situation = record.situation(standing.running, standing.trust, standing.other);
    tracing::info!(slot = %standing.running, ?situation, "slots");
    let mut trial = match situation {
        Situation::Settled | Situation::Pending => None,
        Situation::Interrupted => {
            record.trial = None;
            book.keep(record)?;
            None
        }
        Situation::CameBack => {
            end(book, record, Some(RejectReason::DidNotStart))?;
            None
        }
        Situation::FellBack => {
            record.fell_back();
            say(record);
            book.keep(record)?;
            None
        }
        Situation::Watch => {
            if let Some(trial) = &mut record.trial {
                (trial.stage, trial.armed) = (Stage::Trial, true);
                book.keep(record)?;
            }
            Some(Stage::Trial)
        }
        Situation::Look => Some(Stage::Retreated),
    }
    .map(|stage| {
        let resumes = record.trial.as_ref().map_or(0, |t| t.resumes);
        Trial::new(clock.now(), rules, stage, resumes)
    });
    let mut counted = true;
    loop {
        let sight = look().await;
        if counted && sight.clean {
            // One clean pass is what a start has to bring; whether the network is there is another matter.
            slots.clear_starts()?;
            counted = false;
        }
        let Some(machine) = &mut trial else {
            if counted {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            return Ok(Next::Settled);
        };
        if let Some(action) = machine.handle(clock.now(), TrialEvent::Probed(sight)).first() {
            if let Some(next) = act(*action, standing, slots, book, record)? {
                return Ok(next);
            }
            trial = None;
            continue;
        }
        let now = clock.now();
        let wait = machine.deadline().map_or(LOOK, |d| d.at.since(now).min(LOOK));
        tokio::time::sleep(wait).await;
    }
}

fn act(
    action: TrialAction,
    standing: Standing,
    slots: &mut impl Slots,
    book: &mut impl Book,
    record: &mut UpdateRecord,
) -> Result<Option<Next>, WatchError> {
    let on_trial = record.trial.as_ref().is_none_or(|t| t.slot == standing.running);
    match action {
        TrialAction::Commit => {
            // The boot loader first: cut off between the two, the next start is watched once more and ends here again.
            slots.commit()?;
            end(book, record, None)?;
            tracing::info!(slot = %standing.running, "update committed");
            Ok(None)
        }
        TrialAction::Reject(reason) if on_trial => {
            end(book, record, Some(reason))?;
            slots.condemn()?;
            Ok(Some(Next::Restart))
        }
        TrialAction::Reject(reason) => {
            end(book, record, Some(reason))?;
            Ok(None)
        }
        TrialAction::Retreat => {
            if let Some(trial) = &mut record.trial {
                trial.stage = Stage::Retreated;
            }
            book.keep(record)?;
            slots.condemn()?;
            tracing::warn!("nothing outside answers: the old system shall have a look");
            Ok(Some(Next::Restart))
        }
        TrialAction::Resume => {
            if let Some(trial) = &mut record.trial {
                (trial.stage, trial.resumes) = (Stage::Trial, trial.resumes.saturating_add(1));
            }
            book.keep(record)?;
            slots.try_other()?;
            tracing::info!("the outage is over: the update is tried again");
            Ok(Some(Next::Restart))
        }
    }
}

fn end(book: &mut impl Book, record: &mut UpdateRecord, reason: Option<RejectReason>) -> Result<(), DiskError> {
    record.end(reason);
    say(record);
    book.keep(record)
}

/// On the console, for whoever stands in front of the device.
fn say(record: &UpdateRecord) {
    if let Some(last) = &record.last
        && let Some(reason) = last.reason
    {
        tracing::error!(version = last.version, ?reason, "update given up: {}", last.detail);
    }
}

#[cfg(test)]
mod tests;

//! The files of the control session.
use spoke_enroll::confirm::{RejectedState, TrialRecord};
use spoke_enroll::document::Envelope;
use spoke_enroll::identity::Enrolment;
use spoke_model::error_chain::ErrorChain;
use spoke_sys::disk::Document;

/// The files of the control session.
#[derive(Debug)]
pub struct StateFiles {
    /// Our name and the pinned keys.
    pub enrolment: Document<Enrolment>,
    /// The last good state.
    pub state: Document<Envelope>,
    /// The state that was reverted.
    pub rejected: Document<RejectedState>,
    /// The state on trial.
    pub trial: Document<TrialRecord>,
}

impl StateFiles {
    /// Deletes the states of an enrolment before. What stays counts for nothing while the new one is fresh.
    pub(super) fn forget_states(&mut self) {
        for done in [self.state.remove(), self.rejected.remove(), self.trial.remove()] {
            if let Err(e) = done {
                tracing::warn!(error = %ErrorChain(&e), "state of the enrolment before not deleted");
            }
        }
    }
}

//! What the control session writes to its files, and when.
use super::io::{SessionIo, Unsaved};
use spoke_enroll::confirm::RejectedState;
use spoke_enroll::events::SignedState;
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::Span;
use spoke_model::time::Boot;
use spoke_sys::clock::Clock;
use spoke_sys::http::Http;
use spoke_sys::keys::pending::TunnelKeys;
use std::sync::Arc;
use std::time::Duration;

/// Wait before a failed write of the state is repeated.
const SAVE_RETRY: Duration = Duration::from_secs(60);

impl<H: Http, C: Clock, K: TunnelKeys> SessionIo<H, C, K> {
    /// Trusts the signing keys that a state names before it is tried.
    pub(super) fn trust_keys(&mut self, state: &SignedState) {
        let enrolment = &mut self.connection.enrolment;
        if enrolment.trust_also(&state.document.signing_keys)
            && let Err(e) = self.files.enrolment.store(enrolment)
        {
            tracing::error!(error = %e, "signing keys of a new state not stored");
        }
    }

    pub(super) fn record_rejection(&mut self, rejected: &RejectedState) {
        if let Err(e) = self.files.rejected.store(rejected) {
            tracing::error!(error = %e, "reverted state not recorded: it is tried again after a restart");
        }
    }

    pub(super) fn forget_trial(&mut self) {
        if let Err(e) = self.files.trial.remove() {
            tracing::warn!(error = %ErrorChain(&e), "record of a trial not deleted: a restart counts as a failed trial");
        }
    }

    /// `proved`: the hub has answered through it.
    pub(super) fn keep(&mut self, state: Arc<SignedState>, proved: bool) {
        let connection = &mut self.connection;
        if proved {
            connection.enrolment.retire_keys(&state);
        } else {
            connection.enrolment.trust_also(&state.document.signing_keys);
        }
        connection.enrolment.bound_networks(&state.document);
        connection.enrolment.server = self.control.url.0.to_string();
        (connection.enrolment.fresh, connection.enrolment.removed) = (false, false);
        // The state first: it is signed by a key pinned before.
        let stored =
            self.files.state.store(&state.envelope).and_then(|_| self.files.enrolment.store(&connection.enrolment));
        connection.unsaved = match stored {
            Ok(_) => {
                let generation = state.document.generation;
                match proved {
                    true => tracing::info!(generation, "state confirmed: the hub answers through it; stored"),
                    false => tracing::info!(generation, "state stored"),
                }
                None
            }
            Err(e) => {
                tracing::error!(generation = state.document.generation, error = %e, retry_in = %Span(SAVE_RETRY), "state in force but not stored");
                Some(Unsaved { state, proved, retry_at: self.clock.now() + SAVE_RETRY, error: e.to_string() })
            }
        };
        // Only now: without the record a restart would take the state stored before for the newest.
        if proved && self.connection.unsaved.is_none() {
            self.forget_trial();
        }
    }

    /// Writes a state again whose write has failed, if it is time.
    pub(super) fn retry_save(&mut self) {
        let now = self.clock.now();
        if let Some(unsaved) = self.connection.unsaved.take_if(|u| now >= u.retry_at) {
            self.keep(unsaved.state, unsaved.proved);
        }
    }

    /// When [`SessionIo::retry_save`] is due.
    pub(super) fn save_deadline(&self) -> Option<Boot> {
        self.connection.unsaved.as_ref().map(|u| u.retry_at)
    }

    /// Why the state in force is not on disk.
    pub(super) fn unsaved(&self) -> Option<String> {
        self.connection.unsaved.as_ref().map(|u| u.error.clone())
    }
}

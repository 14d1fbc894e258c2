//! Notes what is declared otherwise than before: a generation of its own, once the kernel has it.
use crate::changes::Ledger;
use spoke_change::audit::Actor;
use spoke_change::declared::Declared;
use spoke_change::messages;
use spoke_change::request::ChangeRefused;
use spoke_model::error_chain::ErrorChain;
use spoke_sys::clock::Clock;

impl<C: Clock> Ledger<C> {
    /// Makes a generation of what the configuration or the control plane declares otherwise than before, once the kernel has
    /// it. Whoever changed the file had the process started anew; whatever comes later, comes from the control plane.
    pub(crate) async fn compare(&mut self) {
        let (config, first) = {
            let status = self.net.borrow();
            let config = status.effective.as_ref().unwrap_or(&self.own);
            if self.compared == Some(config.sequence()) || !status.clean {
                return;
            }
            (config.clone(), self.compared.is_none())
        };
        let now = Declared::of(&config);
        self.compared = Some(config.sequence());
        let history = self.store.history();
        let Some(before) = history.declared_at(history.current()) else {
            if let Err(error) = self.store.begin(now).await {
                tracing::warn!(error = %ErrorChain(&error), "what is declared is not noted: its next change is not told");
            }
            return;
        };
        let revision = before.until(&now);
        if revision.is_empty() {
            return;
        }
        let (actor, owner) = match first {
            true => (Actor::Configuration, "the configuration"),
            false => (Actor::ControlPlane, "the control plane's state"),
        };
        let lines = revision.lines(&before);
        let what = format!("{owner}: {} changed", messages::values(revision.len()));
        let state = history.state().clone();
        let mut record = self.record(&state, &actor, &what);
        record.revision = revision;
        let done = match self.store.declare(record).await {
            Ok(()) => Ok(self.done(true, lines)),
            Err(error) => Err(ChangeRefused::Storage(ErrorChain(&error).to_string())),
        };
        // What the control plane does is in the audit trail already, with what became of it.
        match first {
            true => self.report(&actor, &what, &done),
            false => tracing::info!(%actor, what, error = done.err().map(|e| e.to_string()), "changed"),
        }
    }
}

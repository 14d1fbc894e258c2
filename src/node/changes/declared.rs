//! Records changes of declared values as generations, once the kernel has them.
use crate::changes::Ledger;
use spoke_change::audit::Actor;
use spoke_change::declared::Declared;
use spoke_change::messages;
use spoke_change::request::ChangeRefused;
use spoke_model::error_chain::ErrorChain;
use spoke_sys::clock::Clock;

impl<C: Clock> Ledger<C> {
    /// Records a generation if declared values differ from the history and the last pass was clean. The first comparison
    /// after a start finds changes of the configuration file, later ones those of the control plane.
    pub(crate) async fn compare(&mut self) {
        let (config, first) = {
            let status = self.net.borrow();
            let config = status.effective.as_ref().unwrap_or(&self.own);
            if self.compared == Some(config.sequence()) || !status.settled {
                return;
            }
            (config.clone(), self.compared.is_none())
        };
        let now = Declared::of(&config);
        self.compared = Some(config.sequence());
        let history = self.store.history();
        let Some(before) = history.declared_at(history.current()) else {
            if let Err(error) = self.store.begin(now).await {
                tracing::warn!(error = %ErrorChain(&error), "declared values not stored; their next change will not be recorded");
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
        // The audit trail has the control plane's actions already, with their outcome.
        match first {
            true => self.report(&actor, &what, &done),
            false => tracing::info!(%actor, what, error = done.err().map(|e| e.to_string()), "change applied"),
        }
    }
}

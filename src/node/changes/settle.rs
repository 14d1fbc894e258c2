//! Waits until the kernel has a change, and judges it by its own steps.
use super::{Judged, Ledger, Unstored};
use crate::reconciler::NetStatus;
use spoke_change::audit::Actor;
use spoke_change::conflict::Conflict;
use spoke_change::request::ChangeRefused;
use spoke_model::condition::Code;
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::Span;
use spoke_net::api_state::ApiState;
use spoke_net::plan::{Blocked, Repair};
use spoke_net::render;
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use std::sync::Arc;
use std::time::Duration;

/// Time between two attempts to store a revocation.
const STORE_RETRY: Duration = Duration::from_secs(60);
/// Timeout of the pass that applies a change.
const APPLY_TIMEOUT: Duration = Duration::from_secs(30);

impl<C: Clock> Ledger<C> {
    /// Publishes the facts and waits for the pass that applied them. `Err`: what the kernel refused of the change.
    pub(super) async fn settle(
        &mut self,
        state: &Arc<ApiState>,
        repair: Option<Repair>,
        judged: Judged<'_>,
    ) -> Result<(), ChangeRefused> {
        let seq = repair.as_ref().map_or(0, |r| r.seq);
        if let Some(repair) = repair {
            self.repair.send_replace(Some(Arc::new(repair)));
        }
        if !self.api_state.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, state)) {
            self.api_state.send_replace(Some(state.clone()));
        }
        let settled = async {
            let (mut looked, mut again) = (0, 2);
            loop {
                {
                    let status = self.net.borrow_and_update();
                    let dealt = Arc::ptr_eq(&status.api_state, state) && status.repaired >= seq;
                    if dealt && status.passes != looked {
                        looked = status.passes;
                        let problem = failure(&status, judged);
                        // A step left without a refusal is new, such as the address the kernel adds after an MTU
                        // change: the next pass applies it.
                        if problem.is_none() || status.settled || again == 0 {
                            return problem;
                        }
                        again -= 1;
                    }
                }
                if self.net.changed().await.is_err() {
                    return Some(ChangeRefused::Kernel("the reconciler has ended".to_owned()));
                }
            }
        };
        match tokio::time::timeout(APPLY_TIMEOUT, settled).await {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(problem),
            Err(_) => Err(ChangeRefused::Kernel(format!("no reconcile pass within {} s", APPLY_TIMEOUT.as_secs()))),
        }
    }

    pub(super) async fn restore(&mut self, before: &Arc<ApiState>, judged: Judged<'_>) {
        if let Err(problem) = self.settle(before, None, judged).await {
            tracing::error!(%problem, "previous state not restored; the reconciler retries");
        }
    }

    pub(super) fn keep_unstored(&mut self, state: Arc<ApiState>, actor: &Actor, what: &str, error: &DiskError) {
        tracing::error!(error = %ErrorChain(error), retry_in = %Span(STORE_RETRY), "revocation not stored: it is in force until the next restart");
        let again = self.clock.now() + STORE_RETRY;
        self.unstored = Some(Unstored { state, actor: actor.clone(), what: what.to_owned(), again });
    }

    /// Writes a revocation again that could not be stored.
    pub(super) async fn store_revocation(&mut self) {
        let Some(unstored) = self.unstored.take() else { return };
        let what = format!("{}: only what it removes", unstored.what);
        let record = self.record(&unstored.state, &unstored.actor, &what);
        match self.store.commit(record, unstored.state.clone(), None).await {
            Ok(()) => tracing::info!(actor = %unstored.actor, what, "revocation stored"),
            Err(error) => {
                tracing::debug!(error = %ErrorChain(&error), "revocation still not stored");
                self.unstored = Some(Unstored { again: self.clock.now() + STORE_RETRY, ..unstored });
            }
        }
    }

    /// Puts into force what a refused change takes away.
    pub(super) async fn keep_revocation(
        &mut self,
        kept: Arc<ApiState>,
        judged: Judged<'_>,
        actor: &Actor,
        what: &str,
        problem: &ChangeRefused,
    ) -> ChangeRefused {
        self.restore(&kept, judged).await;
        let record = self.record(&kept, actor, &format!("{what}: only what it removes"));
        match self.store.commit(record, kept.clone(), None).await {
            Ok(()) => self.unstored = None,
            Err(error) => self.keep_unstored(kept, actor, what, &error),
        }
        ChangeRefused::Revoked(match problem {
            ChangeRefused::Kernel(reason) => reason.clone(),
            other => other.to_string(),
        })
    }
}

/// The first problem that a change left.
fn failure(status: &NetStatus, judged: Judged<'_>) -> Option<ChangeRefused> {
    let Judged { links, foreign, revokes_only } = judged;
    let invalid = status.conditions.iter().find(|c| c.code == Code::DesiredInvalid);
    // Access is taken back from the last good state, too, and an interface of another kind has no peers.
    if let Some(invalid) = invalid.filter(|_| !revokes_only) {
        return Some(ChangeRefused::Invalid(invalid.detail.clone()));
    }
    let taken = status.left.blocked.iter().map(|Blocked::NameTaken(name)| name);
    if let Some(name) = taken.into_iter().find(|name| !revokes_only && links.contains(*name)) {
        return Some(Conflict::Foreign(name.clone()).into());
    }
    let step = status.left.steps.iter().find(|s| links.contains(s.link()) && !foreign.contains(s))?;
    let refused = status.refused.iter().find(|r| r.step == *step);
    let text = refused.map_or_else(|| render::step(step, &status.observed), |r| format!("{}: {}", r.what, r.reason));
    Some(ChangeRefused::Kernel(text))
}

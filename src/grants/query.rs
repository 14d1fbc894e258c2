//! A single procedure as a machine: for `spoke` commands and for enrolments.
use super::exchange::{Conversation, ExchangeActions, NoQuorum, RpcFailure, RpcReply};
use super::procedure::{Answered, Procedure, Step};
use spoke_model::time::Boot;

/// Input of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryEvent {
    /// The deadline has passed. An early or late tick is harmless.
    Tick,
    /// The reply to a request.
    Replied {
        /// The request's id.
        id: u64,
        /// The reply.
        reply: Result<RpcReply, RpcFailure>,
    },
}

/// The machine.
///
/// ```text
///  begin ──► Asking ──outcome of each exchange──► Asking … ──► done: result
/// ```
/// Driver: perform the actions of [`Query::begin`], then pass the reply to each request, and a tick at the
/// [`Query::deadline`], which ends the open requests; perform the actions of each call until [`Query::done`], then call
/// [`Query::into_result`]. Every request ends by its reply or by the deadline, so a query always ends.
#[derive(Debug)]
pub struct Query<'a, P: Procedure> {
    conversation: &'a mut Conversation,
    procedure: P,
    result: Option<Result<P::Output, NoQuorum>>,
}

impl<'a, P: Procedure> Query<'a, P> {
    /// Begins `procedure`.
    pub fn begin(now: Boot, conversation: &'a mut Conversation, mut procedure: P) -> (Self, ExchangeActions) {
        let step = procedure.begin(conversation);
        let mut query = Self { conversation, procedure, result: None };
        query.proceed(now, step);
        let actions = query.conversation.take_actions();
        (query, actions)
    }

    /// When [`QueryEvent::Tick`] is due; `None`: it is done.
    pub fn deadline(&self) -> Option<Boot> {
        self.conversation.deadline()
    }

    /// Handles an event; returns the actions to perform.
    #[must_use]
    pub fn handle(&mut self, now: Boot, event: QueryEvent) -> ExchangeActions {
        let outcome = match event {
            QueryEvent::Tick => self.conversation.expire(now),
            QueryEvent::Replied { id, reply } => self.conversation.replied(now, id, reply),
        };
        if let Some(outcome) = outcome {
            let step = self.procedure.answered(self.conversation, Answered(outcome));
            self.proceed(now, step);
        }
        self.conversation.take_actions()
    }

    fn proceed(&mut self, now: Boot, mut step: Step<P::Output>) {
        loop {
            match step {
                Step::Ask(next) => match self.conversation.ask(now, next.0) {
                    Some(outcome) => step = self.procedure.answered(self.conversation, Answered(outcome)),
                    None => return,
                },
                Step::Done(result) => {
                    self.result = Some(result);
                    return;
                }
            }
        }
    }

    /// Whether it is done.
    pub const fn done(&self) -> bool {
        self.result.is_some()
    }

    /// The result; `None`: not done yet.
    pub fn into_result(self) -> Option<Result<P::Output, NoQuorum>> {
        self.result
    }
}

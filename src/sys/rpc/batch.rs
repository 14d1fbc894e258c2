//! Which answers mean that an endpoint takes fewer calls in one request.
use super::RpcError;
use spoke_grants::jsonrpc::{Answer, BadAnswer};

/// The length of the answered part, if the endpoint answered only the first calls; else the whole length.
pub(super) fn answered(answers: &[Option<Answer>]) -> usize {
    let too_many = |a: &Option<Answer>| matches!(a, Some(Answer::Refused(r)) if r.batch());
    let first = answers.iter().take_while(|a| a.is_some() && !too_many(a)).count();
    let rest = answers.get(first..).unwrap_or_default();
    if rest.iter().all(|a| a.is_none() || too_many(a)) { first } else { answers.len() }
}

/// Whether every call was refused because of the size of the batch.
pub(super) fn all_refused(answers: &[Option<Answer>]) -> bool {
    answers.len() > 1 && answers.iter().all(|a| matches!(a, Some(Answer::Refused(r)) if r.batch()))
}

/// Whether an error may be about the number of calls: endpoints that take no arrays report it in many ways.
pub(super) fn refused(e: &RpcError) -> bool {
    match e {
        RpcError::Bad(BadAnswer::Refused(refusal)) => !refusal.rate(),
        RpcError::Status { status, retry_after: None } => {
            matches!(status, 400 | 404 | 405 | 413 | 415 | 422 | 500 | 501)
        }
        RpcError::Status { .. }
        | RpcError::Bad(BadAnswer::Json(_) | BadAnswer::Id | BadAnswer::Type { .. })
        | RpcError::Unreachable(_)
        | RpcError::Timeout
        | RpcError::Redirect
        | RpcError::TooLarge(_)
        | RpcError::NoSuch
        | RpcError::Cancelled => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_grants::jsonrpc::Refusal;

    #[test]
    fn truncated_batch_is_asked_in_parts() {
        let some = || Some(Answer::Number(1));
        let refused = || Some(Answer::Refused(Refusal { code: -32600, message: "batch size exceeded".into() }));
        assert_eq!(answered(&[some(), some(), None]), 2);
        assert_eq!(answered(&[some(), refused(), refused()]), 1);
        assert_eq!(answered(&[some(), None, some()]), 3, "a lost answer is no limit");
        assert_eq!(answered(&[some(), some()]), 2);
        assert_eq!(answered(&[None, None]), 0);
    }
}

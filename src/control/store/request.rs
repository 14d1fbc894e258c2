//! Requests with an idempotency key: each is carried out once at most, at whatever control plane it is repeated, and its
//! answer is kept for a day.
//!
//! ```text
//! claimed ──commit of the change──► done ──answer kept──► answered
//!    │ └─ failed: forgotten          └─ the process died: the answer is lost, the change is not repeated
//!    └─ the process died: claimed again after CLAIM_MS; what the first claim still does is rolled back
//! ```
use super::error::StoreError;
use super::sql::{Store, Tx};
use super::token::random_bearer;

/// How long answers are kept, in milliseconds.
const KEEP_MS: i64 = 86_400_000;

/// After this time a request is no longer being carried out, in milliseconds: longer than any request may take.
const CLAIM_MS: i64 = 60_000;

/// Requests kept of one operator.
const MAX_KEPT: i64 = 10_000;

/// The state of a request whose change is committed and whose answer is not kept.
const DONE: i64 = 0;

/// A request with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatableRequest {
    /// Who sent it: the keys of two operators are apart.
    pub operator: String,
    /// Its `Idempotency-Key`.
    pub key: String,
    /// Of its method, path and body.
    pub digest: String,
}

/// The right to carry out a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    operator: String,
    key: String,
    claim: String,
}

tokio::task_local! {
    /// The request that this task carries out; the commit of its change marks it as done.
    static CLAIM: Claim;
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: it is to be carried out.
    New(Claim),
    /// It was answered.
    Answered {
        /// The status code.
        status: i64,
        /// The answer, as it was given to [`Store::keep_answer`].
        answer: String,
    },
    /// The key was used for another request.
    Reused,
    /// It is being carried out.
    InProgress,
    /// It was carried out, and its answer is not known.
    AnswerLost,
    /// The operator has too many of them.
    TooMany,
}

/// Runs a request's handler: the commit of its change marks the request as done.
pub async fn in_request<T>(claim: Claim, handler: impl Future<Output = T>) -> T {
    CLAIM.scope(claim, handler).await
}

impl Store {
    /// Claims a request, or returns what is known of it.
    pub async fn begin_request(&self, request: &RepeatableRequest, now_ms: i64) -> Result<Begun, StoreError> {
        let (claim, _) = random_bearer()?;
        let (operator, key, digest) = (&request.operator, &request.key, &request.digest);
        let new = Begun::New(Claim { operator: operator.clone(), key: key.clone(), claim: claim.clone() });
        let mut tx = self.write().await?;
        let sql = "INSERT INTO request (operator, idempotency_key, digest, claim, at_ms) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT DO NOTHING";
        let values = [
            operator.as_str().into(),
            key.as_str().into(),
            digest.as_str().into(),
            claim.as_str().into(),
            now_ms.into(),
        ];
        if tx.run(sql, &values).await? == 1 {
            let sql = "SELECT COUNT(*) AS n FROM (SELECT 1 AS one FROM request WHERE operator = $1 LIMIT $2) AS kept";
            let kept = tx.row(sql, &[operator.as_str().into(), (MAX_KEPT + 1).into()]).await?;
            if kept.map_or(Ok(0), |r| r.int("n"))? > MAX_KEPT {
                return Ok(Begun::TooMany);
            }
            tx.commit().await?;
            return Ok(new);
        }
        let sql = "SELECT digest, at_ms, status, answer FROM request WHERE operator = $1 AND idempotency_key = $2";
        let found = tx.row(sql, &[operator.as_str().into(), key.as_str().into()]).await?;
        // Forgotten between the two statements.
        let Some(row) = found else { return Ok(Begun::InProgress) };
        if row.text("digest")? != *digest {
            return Ok(Begun::Reused);
        }
        // A time of the future is of a clock that was set back since.
        let old = row.int("at_ms")?.abs_diff(now_ms) >= CLAIM_MS.unsigned_abs();
        match (row.opt_int("status")?, row.opt_text("answer")?) {
            (Some(status), Some(answer)) => Ok(Begun::Answered { status, answer }),
            (None | Some(_), _) if !old => Ok(Begun::InProgress),
            (Some(_), _) => Ok(Begun::AnswerLost),
            (None, _) => {
                let sql = "UPDATE request SET claim = $3, at_ms = $4
                    WHERE operator = $1 AND idempotency_key = $2 AND status IS NULL AND at_ms = $5";
                let values = [
                    operator.as_str().into(),
                    key.as_str().into(),
                    claim.into(),
                    now_ms.into(),
                    row.int("at_ms")?.into(),
                ];
                let claimed = tx.run(sql, &values).await? == 1;
                tx.commit().await?;
                Ok(if claimed { new } else { Begun::InProgress })
            }
        }
    }

    /// Keeps the answer to a request, sealed by the caller: it may hold a new token.
    pub async fn keep_answer(&self, claim: &Claim, status: i64, answer: &str) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let sql = "UPDATE request SET status = $4, answer = $5
            WHERE operator = $1 AND idempotency_key = $2 AND claim = $3";
        let Claim { operator, key, claim } = claim;
        let values =
            [operator.as_str().into(), key.as_str().into(), claim.as_str().into(), status.into(), answer.into()];
        tx.run(sql, &values).await?;
        tx.commit().await
    }

    /// Forgets a request that failed and changed nothing: it may be repeated.
    pub async fn forget_request(&self, claim: &Claim) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let sql = "DELETE FROM request WHERE operator = $1 AND idempotency_key = $2 AND claim = $3 AND status IS NULL";
        let Claim { operator, key, claim } = claim;
        tx.run(sql, &[operator.as_str().into(), key.as_str().into(), claim.as_str().into()]).await?;
        tx.commit().await
    }
}

impl Tx {
    /// Marks the request that this task carries out as done, in the transaction of its change.
    pub(super) async fn mark_request(&mut self) -> Result<(), StoreError> {
        let Ok(Claim { operator, key, claim }) = CLAIM.try_with(Clone::clone) else { return Ok(()) };
        let sql = "UPDATE request SET status = $4 WHERE operator = $1 AND idempotency_key = $2 AND claim = $3";
        let values = [operator.into(), key.into(), claim.into(), DONE.into()];
        if self.run(sql, &values).await? == 1 { Ok(()) } else { Err(StoreError::ClaimLost) }
    }

    /// Forgets requests after a day.
    pub(super) async fn prune_requests(&mut self, now_ms: i64) -> Result<(), StoreError> {
        // Those of the future are of a clock that was set back since.
        let ends = [now_ms.saturating_sub(KEEP_MS).into(), now_ms.saturating_add(KEEP_MS).into()];
        self.run("DELETE FROM request WHERE at_ms < $1 OR at_ms > $2", &ends).await.map(drop)
    }
}

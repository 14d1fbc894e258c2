//! `Idempotency-Key` on POST: a repeated request gets the first answer, and its change is not made twice.
use super::auth::Operator;
use super::error_code::ErrorCode;
use super::extract::MAX_BODY;
use super::response::OperatorError;
use super::state::ApiState;
use crate::clock::now_ms;
use crate::store::request::{Begun, Claim, RepeatableRequest, in_request};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts as _, OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use spoke_model::error_chain::ErrorChain;
use spoke_model::signature::sha256_hex;
use std::sync::Arc;

/// The header with the key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// On an answer that was kept.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The longest answer that is kept, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// An answer as it is kept, sealed.
#[derive(Debug, Serialize, Deserialize)]
struct KeptAnswer {
    etag: Option<String>,
    body: String,
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, OperatorError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().ok().filter(|k| (1..=128).contains(&k.len()));
    let bad = || OperatorError::new(ErrorCode::BadRequest, "Idempotency-Key must be 1 to 128 printable characters");
    key.map(|k| Some(k.to_owned())).ok_or_else(bad)
}

/// Carries out a POST with a key once; every other request as it is.
pub async fn once(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Result<Response, OperatorError> {
    let key = if request.method() == Method::POST { key_of(request.headers())? } else { None };
    let Some(key) = key else { return Ok(next.run(request).await) };
    let (mut parts, body) = request.into_parts();
    let operator = Operator::from_request_parts(&mut parts, &state).await?;
    let body = axum::body::to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| OperatorError::new(ErrorCode::TooLarge, format!("the body has more than {MAX_BODY} bytes")))?;
    let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |o| &o.0);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let digest = sha256_hex(&[path.as_bytes(), &[0], &body].concat());
    let asked = RepeatableRequest { operator: operator.name.clone(), key, digest };
    let claim = match state.store.begin_request(&asked, now_ms()).await? {
        Begun::New(claim) => claim,
        Begun::Answered { status, answer } => return replayed(&state, &asked, status, &answer),
        Begun::Reused => {
            let message = "this Idempotency-Key was used for another request";
            return Err(OperatorError::new(ErrorCode::KeyReused, message));
        }
        Begun::InProgress => {
            return Err(OperatorError::new(ErrorCode::InProgress, "the same request is being carried out"));
        }
        Begun::AnswerLost => {
            let message = "this request was carried out, and its answer could not be kept";
            return Err(OperatorError::new(ErrorCode::AnswerLost, message));
        }
        Begun::TooMany => {
            let message = "too many requests with an Idempotency-Key in a day";
            return Err(OperatorError::new(ErrorCode::RateLimited, message));
        }
    };
    parts.extensions.insert(operator);
    let response = in_request(claim.clone(), next.run(Request::from_parts(parts, Body::from(body)))).await;
    Ok(keep(&state, &asked, &claim, response).await)
}

/// What an answer is sealed for.
fn purpose(asked: &RepeatableRequest) -> String {
    format!("answer\0{}\0{}", asked.operator, asked.key)
}

/// Keeps an answer. The caller gets it also if that fails: a repeat learns that the change was made.
async fn keep(state: &ApiState, asked: &RepeatableRequest, claim: &Claim, response: Response) -> Response {
    let status = response.status();
    let kept = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        (state.store.forget_request(claim).await, response)
    } else {
        let (parts, body) = response.into_parts();
        let Ok(body) = axum::body::to_bytes(body, MAX_ANSWER).await else {
            return OperatorError::new(ErrorCode::AnswerLost, "the answer is too long to be kept").into_response();
        };
        let etag = parts.headers.get(header::ETAG).and_then(|t| Some(t.to_str().ok()?.to_owned()));
        let answer = KeptAnswer { etag, body: String::from_utf8_lossy(&body).into_owned() };
        let response = Response::from_parts(parts, Body::from(body));
        let text = serde_json::to_string(&answer).unwrap_or_default();
        let Ok(sealed) = state.master.seal_text(&purpose(asked), &text) else { return response };
        (state.store.keep_answer(claim, i64::from(status.as_u16()), &sealed).await, response)
    };
    if let (Err(e), _) = &kept {
        tracing::debug!(operator = asked.operator, error = %ErrorChain(e), "answer to a request not kept");
    }
    kept.1
}

fn replayed(state: &ApiState, asked: &RepeatableRequest, status: i64, sealed: &str) -> Result<Response, OperatorError> {
    let text = state.master.open_text(&purpose(asked), sealed);
    let answer = text.and_then(|t| serde_json::from_str::<KeptAnswer>(&t).ok());
    let status = u16::try_from(status).ok().and_then(|s| StatusCode::from_u16(s).ok());
    let (Some(answer), Some(status)) = (answer, status) else {
        let message = "this request was carried out, and its answer cannot be read";
        return Err(OperatorError::new(ErrorCode::AnswerLost, message));
    };
    let mut response = (status, Bytes::from(answer.body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Some(tag) = answer.etag.and_then(|t| HeaderValue::from_str(&t).ok()) {
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}

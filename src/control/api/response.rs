//! Responses: problems for devices, envelopes for operators, and the status code of each.
use super::replay::TooManyNonces;
use crate::limits::LimitExceeded;
use crate::registry::{Entity, RegistryError};
use crate::report_queue::QueueFull;
use crate::store::StoreError;
use crate::store::lease::LeaseError;
use axum::Json;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use spoke_enroll::request::{RemovalAnswer, TimeAnswer};
use spoke_enroll::wire::{Problem, ProblemCode, ProblemDetail};
use spoke_model::error_chain::ErrorChain;
use spoke_model::key::PublicKey;
use std::time::Duration;

/// How long a request may take, long-polls excepted.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest plain-text error of the HTTP framework that is passed on, in bytes.
const MAX_TEXT: usize = 4096;

/// `Retry-After` of responses that ask the client to repeat the request, in seconds.
const RETRY_AFTER: &str = "5";

/// An error response for a device.
#[derive(Debug)]
pub struct ApiError(Box<ProblemDetail>);

impl ApiError {
    /// An error with a code for programs and a message for people.
    pub fn new(code: ProblemCode, message: impl ToString) -> Self {
        let (message, existing_config) = (message.to_string(), None);
        Self(Box::new(ProblemDetail { code, message, existing_config, time: None, key_verifier: None, removal: None }))
    }

    /// The possession of the WireGuard key in the request is not proved to `verifier`.
    pub fn key_not_proved(verifier: PublicKey) -> Self {
        let message = "the request does not prove that the device holds its WireGuard key: update the device's software, or enrol it with a token made with --without-key-proof";
        let mut error = Self::new(ProblemCode::BadProof, message);
        error.0.key_verifier = Some(verifier);
        error
    }

    /// A valid proof with a time outside of the window; `time` is the server's, signed.
    pub fn clock_skew(time: Option<TimeAnswer>) -> Self {
        let mut error = Self::new(ProblemCode::ClockSkew, "the request's time is not the server's: use `time`");
        error.0.time = time;
        error
    }

    /// A request received before.
    pub fn replay() -> Self {
        Self::new(ProblemCode::Replay, "this request was received before")
    }

    /// The node waits for approval.
    pub fn pending() -> Self {
        Self::new(ProblemCode::Pending, "an operator must approve the node first")
    }

    /// The node is not a member.
    pub fn removed() -> Self {
        Self::new(ProblemCode::Revoked, "the node was removed from the fleet")
    }

    /// As [`ApiError::removed`], signed: the node erases its state.
    pub fn removal(removal: Option<RemovalAnswer>) -> Self {
        let mut error = Self::removed();
        error.0.removal = removal;
        error
    }

    /// A fault of the server, which is logged where it occurs.
    pub fn internal() -> Self {
        Self::new(ProblemCode::Unavailable, "the control plane cannot serve this request now; try again later")
    }

    /// Its code.
    pub fn code(&self) -> ProblemCode {
        self.0.code
    }

    const fn status_of(code: ProblemCode) -> StatusCode {
        match code {
            ProblemCode::BadRequest => StatusCode::UNPROCESSABLE_ENTITY,
            ProblemCode::BadToken | ProblemCode::BadProof | ProblemCode::ClockSkew | ProblemCode::Replay => {
                StatusCode::UNAUTHORIZED
            }
            ProblemCode::NodeIdTaken | ProblemCode::KeyTaken => StatusCode::CONFLICT,
            ProblemCode::Revoked | ProblemCode::NotGranted | ProblemCode::Pending => StatusCode::FORBIDDEN,
            ProblemCode::PoolExhausted | ProblemCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ProblemCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ProblemCode::NotFound => StatusCode::NOT_FOUND,
            ProblemCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(e: RegistryError) -> Self {
        let code = match &e {
            RegistryError::Field(_)
            | RegistryError::Value { .. }
            | RegistryError::Release(_)
            | RegistryError::WhichNetwork(_)
            | RegistryError::NoNetwork
            | RegistryError::Network(_) => ProblemCode::BadRequest,
            RegistryError::BadToken => ProblemCode::BadToken,
            RegistryError::NodeIdTaken { .. } => ProblemCode::NodeIdTaken,
            RegistryError::KeyTaken
            | RegistryError::Exists(..)
            | RegistryError::NotPending { .. }
            | RegistryError::KeyNotAnnounced
            | RegistryError::AddressTaken(_)
            | RegistryError::HubInUse { .. }
            | RegistryError::HubNotLeft { .. }
            | RegistryError::NotAHub(_)
            | RegistryError::PoolOverlap { .. }
            | RegistryError::NetworkInUse { .. }
            | RegistryError::LeaseOutsidePool(_) => ProblemCode::KeyTaken,
            RegistryError::Removed(_) => ProblemCode::Revoked,
            RegistryError::NotFound(..) => ProblemCode::NotFound,
            RegistryError::Lease(LeaseError::Exhausted { .. }) => ProblemCode::PoolExhausted,
            RegistryError::Lease(e) => {
                tracing::error!(error = %ErrorChain(e), "address not leased");
                return Self::internal();
            }
            RegistryError::Store(e) => return store_failure(e),
        };
        let mut error = Self::new(code, &e);
        if let RegistryError::NodeIdTaken { existing, .. } = e {
            error.0.existing_config = Some(existing).filter(|e| !e.is_null());
        }
        error
    }
}

/// Logs the cause for operators, and asks the client to try again.
fn store_failure(e: &StoreError) -> ApiError {
    if e.is_transient() {
        tracing::warn!(error = %ErrorChain(e), "database request failed");
    } else {
        tracing::error!(error = %ErrorChain(e), "database request failed");
    }
    ApiError::internal()
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        store_failure(&e)
    }
}

impl From<LeaseError> for ApiError {
    fn from(e: LeaseError) -> Self {
        RegistryError::from(e).into()
    }
}

impl From<LimitExceeded> for ApiError {
    fn from(e: LimitExceeded) -> Self {
        Self::new(ProblemCode::RateLimited, e)
    }
}

impl From<TooManyNonces> for ApiError {
    fn from(e: TooManyNonces) -> Self {
        Self::new(ProblemCode::RateLimited, e)
    }
}

impl From<QueueFull> for ApiError {
    fn from(e: QueueFull) -> Self {
        Self::new(ProblemCode::Unavailable, e)
    }
}

/// The message of an [`ApiError`] in its response, for [`shape_errors`].
#[derive(Clone)]
struct ErrorMessage(String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = Self::status_of(self.0.code);
        let message = ErrorMessage(self.0.message.clone());
        let body = Json(Problem { detail: *self.0 });
        let mut response = match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                (status, [(header::RETRY_AFTER, RETRY_AFTER)], body).into_response()
            }
            _ => (status, body).into_response(),
        };
        response.extensions_mut().insert(message);
        response
    }
}

/// Gives every error the shape of its group, devices or operators: the framework answers bad paths, queries and sizes in
/// plain text, and middleware does not know the group.
pub async fn shape_errors(request: Request, next: Next) -> Response {
    let for_devices = request.uri().path().starts_with("/api/v1/");
    let response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes() == b"application/json");
    let message = response.extensions().get::<ErrorMessage>().map(|m| m.0.clone());
    let message = match (is_json, message) {
        (true, Some(message)) if !for_devices => message,
        (true, _) => return response,
        (false, _) => match axum::body::to_bytes(response.into_body(), MAX_TEXT).await {
            Ok(text) if !text.is_empty() => String::from_utf8_lossy(&text).into_owned(),
            Ok(_) | Err(_) => status.canonical_reason().unwrap_or("refused").to_owned(),
        },
    };
    if !for_devices {
        return OperatorError::new(status, message).into_response();
    }
    let code = match status {
        StatusCode::NOT_FOUND => ProblemCode::NotFound,
        StatusCode::PAYLOAD_TOO_LARGE => ProblemCode::TooLarge,
        StatusCode::TOO_MANY_REQUESTS => ProblemCode::RateLimited,
        _ if status.is_server_error() => ProblemCode::Unavailable,
        _ => ProblemCode::BadRequest,
    };
    ApiError::new(code, message).into_response()
}

/// Ends a request that takes too long; its transaction is rolled back.
pub async fn limit_time(request: Request, next: Next) -> Result<Response, ApiError> {
    let late = |_| ApiError::new(ProblemCode::Unavailable, "the request took too long; try again later");
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.map_err(late)
}

/// No route for this path, or not for this method.
pub async fn not_found() -> ApiError {
    ApiError::new(ProblemCode::NotFound, "no such path or method; see /api/openapi.json")
}

/// The envelope of every response to operators.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Answer<T> {
    /// Whether the request succeeded.
    pub status: bool,
    /// Why not, or a remark.
    pub message: Option<String>,
    /// The result.
    pub data: Option<T>,
}

/// The result of an operator's request.
pub type OperatorResult<T> = Result<Json<Answer<T>>, OperatorError>;

/// A success with data.
pub fn success<T: Serialize>(data: T) -> Json<Answer<T>> {
    Json(Answer { status: true, message: None, data: Some(data) })
}

/// An error response for an operator.
#[derive(Debug)]
pub struct OperatorError {
    status: StatusCode,
    message: String,
}

impl OperatorError {
    /// An error with this status code.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 404 for an entity.
    pub fn not_found(entity: Entity, name: &str) -> Self {
        RegistryError::NotFound(entity, name.to_owned()).into()
    }
}

impl<E: Into<ApiError>> From<E> for OperatorError {
    fn from(e: E) -> Self {
        let error: ApiError = e.into();
        let status = match error.code() {
            // Operators get 400 for a bad field, devices 422.
            ProblemCode::BadRequest => StatusCode::BAD_REQUEST,
            code => ApiError::status_of(code),
        };
        Self { status, message: error.0.message }
    }
}

impl IntoResponse for OperatorError {
    fn into_response(self) -> Response {
        let body = Answer::<()> { status: false, message: Some(self.message), data: None };
        (self.status, Json(body)).into_response()
    }
}

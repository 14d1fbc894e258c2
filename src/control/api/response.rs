//! Responses: problems for devices, envelopes for operators, and the status code of each.
use super::error_code::ErrorCode;
use super::replay::TooManyNonces;
use crate::limits::LimitExceeded;
use crate::registry::{Entity, RegistryError};
use crate::report_queue::QueueFull;
use crate::store::StoreError;
use crate::store::lease::LeaseError;
use crate::version::Version;
use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
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
            | RegistryError::Changed(_)
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
        return OperatorError::of_status(status, message).into_response();
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
    /// A remark.
    pub message: Option<String>,
    /// The result.
    pub data: Option<T>,
    /// The `ETag` of what was read or changed.
    #[serde(skip)]
    pub etag: Option<String>,
}

/// The result of an operator's request.
pub type OperatorResult<T> = Result<Answer<T>, OperatorError>;

/// A success with data.
pub fn success<T: Serialize>(data: T) -> Answer<T> {
    Answer { status: true, message: None, data: Some(data), etag: None }
}

impl<T> Answer<T> {
    /// With the version of what was read or changed.
    #[must_use]
    pub fn versioned(self, version: &Version) -> Self {
        Self { etag: Some(version.tag()), ..self }
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        with_etag(Json(&self).into_response(), self.etag.as_deref())
    }
}

fn with_etag(mut response: Response, etag: Option<&str>) -> Response {
    if let Some(tag) = etag.and_then(|t| HeaderValue::from_str(t).ok()) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// An error response for an operator.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Refusal)]
pub struct Refusal {
    /// Always false.
    status: bool,
    /// What was refused, and why, for people.
    message: String,
    /// How the entity is, where `code` is `changed`; the result of a test that failed.
    #[schema(value_type = Option<Object>)]
    data: Option<serde_json::Value>,
    /// For programs.
    code: ErrorCode,
    /// What the caller can do.
    remedy: &'static str,
    /// The fields at fault, or those that were changed.
    fields: Vec<String>,
}

/// An error response for an operator, with its status code.
#[derive(Debug)]
pub struct OperatorError {
    status: StatusCode,
    etag: Option<String>,
    refusal: Box<Refusal>,
}

impl OperatorError {
    /// An error with this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (message, remedy) = (message.into(), code.remedy());
        let refusal = Refusal { status: false, message, data: None, code, remedy, fields: Vec::new() };
        Self { status, etag: None, refusal: Box::new(refusal) }
    }

    /// An error of which only the status code is known.
    fn of_status(status: StatusCode, message: String) -> Self {
        Self { status, ..Self::new(ErrorCode::of_status(status.as_u16()), message) }
    }

    /// A value of a field that is not accepted.
    pub fn bad_field(field: &str, problem: impl std::fmt::Display) -> Self {
        let mut error = Self::new(ErrorCode::BadRequest, format!("{field}: {problem}"));
        error.refusal.fields.push(field.to_owned());
        error
    }

    /// 404 for an entity.
    pub fn not_found(entity: Entity, name: &str) -> Self {
        RegistryError::NotFound(entity, name.to_owned()).into()
    }

    /// Whether the entity was changed since the caller read it.
    pub fn is_changed(&self) -> bool {
        self.refusal.code == ErrorCode::Changed
    }

    /// With data: how the entity is, or the result of a test.
    #[must_use]
    pub fn with_data<T: Serialize>(mut self, answer: Answer<T>) -> Self {
        self.refusal.data = serde_json::to_value(answer.data).ok();
        self.etag = answer.etag;
        self
    }
}

impl From<ApiError> for OperatorError {
    fn from(e: ApiError) -> Self {
        let code = match e.code() {
            ProblemCode::BadRequest => ErrorCode::BadRequest,
            ProblemCode::BadToken | ProblemCode::BadProof | ProblemCode::ClockSkew | ProblemCode::Replay => {
                ErrorCode::NoKey
            }
            ProblemCode::NodeIdTaken | ProblemCode::KeyTaken => ErrorCode::Taken,
            ProblemCode::Revoked | ProblemCode::NotGranted | ProblemCode::Pending => ErrorCode::WrongState,
            ProblemCode::PoolExhausted => ErrorCode::PoolExhausted,
            ProblemCode::Unavailable => ErrorCode::Unavailable,
            ProblemCode::RateLimited => ErrorCode::RateLimited,
            ProblemCode::NotFound => ErrorCode::NotFound,
            ProblemCode::TooLarge => ErrorCode::TooLarge,
        };
        Self::new(code, e.0.message)
    }
}

impl From<RegistryError> for OperatorError {
    fn from(e: RegistryError) -> Self {
        let (code, fields) = match &e {
            RegistryError::Value { field, .. } => (ErrorCode::BadRequest, vec![(*field).to_owned()]),
            RegistryError::Changed(fields) => (ErrorCode::Changed, fields.iter().map(|f| (*f).to_owned()).collect()),
            RegistryError::Field(_)
            | RegistryError::Release(_)
            | RegistryError::WhichNetwork(_)
            | RegistryError::NoNetwork
            | RegistryError::Network(_) => (ErrorCode::BadRequest, Vec::new()),
            RegistryError::Exists(..) => (ErrorCode::Exists, Vec::new()),
            RegistryError::NodeIdTaken { .. }
            | RegistryError::KeyTaken
            | RegistryError::AddressTaken(_)
            | RegistryError::PoolOverlap { .. }
            | RegistryError::LeaseOutsidePool(_) => (ErrorCode::Taken, Vec::new()),
            RegistryError::NotPending { .. } | RegistryError::KeyNotAnnounced | RegistryError::NotAHub(_) => {
                (ErrorCode::WrongState, Vec::new())
            }
            RegistryError::HubInUse { .. } | RegistryError::HubNotLeft { .. } | RegistryError::NetworkInUse { .. } => {
                (ErrorCode::InUse, Vec::new())
            }
            RegistryError::Removed(_) => (ErrorCode::Removed, Vec::new()),
            RegistryError::NotFound(..) => (ErrorCode::NotFound, Vec::new()),
            RegistryError::BadToken | RegistryError::Lease(_) | RegistryError::Store(_) => {
                return ApiError::from(e).into();
            }
        };
        let mut error = Self::new(code, e.to_string());
        error.refusal.fields = fields;
        error
    }
}

impl From<StoreError> for OperatorError {
    fn from(e: StoreError) -> Self {
        RegistryError::from(e).into()
    }
}

impl From<LimitExceeded> for OperatorError {
    fn from(e: LimitExceeded) -> Self {
        ApiError::from(e).into()
    }
}

impl IntoResponse for OperatorError {
    fn into_response(self) -> Response {
        let code = self.refusal.code;
        let mut response = with_etag((self.status, Json(&self.refusal)).into_response(), self.etag.as_deref());
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            || code == ErrorCode::InProgress
        {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

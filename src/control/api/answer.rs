//! Answers: problems for devices, envelopes for operators, and which status code each has.
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::store::lease::LeaseError;
use axum::Json;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use spoke_enroll::request::TimeAnswer;
use spoke_enroll::wire::{Problem, ProblemCode, ProblemDetail};

/// How long anything but a long-poll may take.
const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// What a device is told instead of what it asked for.
#[derive(Debug)]
pub struct Failure(Box<ProblemDetail>);

impl Failure {
    /// A problem for people and programs.
    pub fn new(code: ProblemCode, message: impl ToString) -> Self {
        Self(Box::new(ProblemDetail { code, message: message.to_string(), existing_config: None, time: None }))
    }

    /// The request is the node's own, its time is not ours.
    pub fn skew(time: Option<TimeAnswer>) -> Self {
        let mut failure = Self::new(ProblemCode::ClockSkew, "the request's time is not the server's: use `time`");
        failure.0.time = time;
        failure
    }

    /// Which code it has.
    pub fn code(&self) -> ProblemCode {
        self.0.code
    }

    /// For people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub(super) const fn status_of(code: ProblemCode) -> StatusCode {
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

impl From<RegistryError> for Failure {
    fn from(e: RegistryError) -> Self {
        let code = match &e {
            RegistryError::Field(_) | RegistryError::Value(_) | RegistryError::Network(_) => ProblemCode::BadRequest,
            RegistryError::BadToken => ProblemCode::BadToken,
            RegistryError::NodeIdTaken { .. } => ProblemCode::NodeIdTaken,
            RegistryError::KeyTaken | RegistryError::Conflict(_) => ProblemCode::KeyTaken,
            RegistryError::Revoked(_) => ProblemCode::Revoked,
            RegistryError::NotFound(..) => ProblemCode::NotFound,
            RegistryError::Lease(LeaseError::Exhausted { .. }) => ProblemCode::PoolExhausted,
            RegistryError::Lease(_) => return broken(&e),
            RegistryError::Store(store) => return unavailable(store),
        };
        let mut failure = Self::new(code, &e);
        if let RegistryError::NodeIdTaken { existing, .. } = e {
            failure.0.existing_config = Some(existing);
        }
        failure
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        unavailable(&e)
    }
}

impl From<LeaseError> for Failure {
    fn from(e: LeaseError) -> Self {
        RegistryError::from(e).into()
    }
}

/// Says enough for an operator in the log, and for a client only that it may come back.
fn unavailable(e: &StoreError) -> Failure {
    if e.is_transient() {
        tracing::warn!(error = %e, source = std::error::Error::source(e).map(tracing::field::display), "store");
    } else {
        tracing::error!(error = %e, source = std::error::Error::source(e).map(tracing::field::display), "store");
    }
    Failure::new(ProblemCode::Unavailable, "the control plane cannot at the moment; try again later")
}

fn broken(e: &RegistryError) -> Failure {
    tracing::error!(error = %e, "registry");
    Failure::new(ProblemCode::Unavailable, "the control plane cannot at the moment; try again later")
}

/// The message of a [`Failure`], for whoever gives it another shape.
#[derive(Clone)]
struct Told(String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = Self::status_of(self.0.code);
        let told = Told(self.0.message.clone());
        let body = Json(Problem { detail: *self.0 });
        let mut response = match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                (status, [(header::RETRY_AFTER, "5")], body).into_response()
            }
            _ => (status, body).into_response(),
        };
        response.extensions_mut().insert(told);
        response
    }
}

/// The longest text of a framework's own refusal, in bytes.
const MAX_TEXT: usize = 4096;

/// Gives every refusal the shape of its group, whoever refused: the framework speaks plain text of paths, queries and sizes,
/// and limits know no groups.
pub async fn in_shape(request: Request, next: Next) -> Response {
    let for_devices = request.uri().path().starts_with("/api/v1/");
    let response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes() == b"application/json");
    let told = response.extensions().get::<Told>().map(|t| t.0.clone());
    let message = match (is_json, told) {
        (true, Some(told)) if !for_devices => told,
        (true, _) => return response,
        (false, _) => match axum::body::to_bytes(response.into_body(), MAX_TEXT).await {
            Ok(text) if !text.is_empty() => String::from_utf8_lossy(&text).into_owned(),
            Ok(_) | Err(_) => status.canonical_reason().unwrap_or("refused").to_owned(),
        },
    };
    if !for_devices {
        return Refused(status, message).into_response();
    }
    let code = match status {
        StatusCode::NOT_FOUND => ProblemCode::NotFound,
        StatusCode::PAYLOAD_TOO_LARGE => ProblemCode::TooLarge,
        StatusCode::TOO_MANY_REQUESTS => ProblemCode::RateLimited,
        _ if status.is_server_error() => ProblemCode::Unavailable,
        _ => ProblemCode::BadRequest,
    };
    Failure::new(code, message).into_response()
}

/// Ends a request that takes too long; what it began in the store is undone.
pub async fn in_time(request: Request, next: Next) -> Result<Response, Failure> {
    let late = |_| Failure::new(ProblemCode::Unavailable, "this took too long; try again later");
    tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await.map_err(late)
}

/// Nothing is here, or not for this method.
pub async fn not_found() -> Failure {
    Failure::new(ProblemCode::NotFound, "there is nothing here; see /api/openapi.json")
}

/// What operators get: always this shape, with a fitting status code.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Answer<T> {
    /// Whether it was done.
    pub status: bool,
    /// Why not, or what about it.
    pub message: Option<String>,
    /// What was asked for.
    pub data: Option<T>,
}

/// Done, with data.
pub fn done<T: Serialize>(data: T) -> Json<Answer<T>> {
    Json(Answer { status: true, message: None, data: Some(data) })
}

/// What an operator is told instead.
#[derive(Debug)]
pub struct Refused(pub StatusCode, pub String);

impl<E: Into<Failure>> From<E> for Refused {
    fn from(e: E) -> Self {
        let failure: Failure = e.into();
        let status = match failure.code() {
            // Operators get the usual code for a field they got wrong.
            ProblemCode::BadRequest => StatusCode::BAD_REQUEST,
            code => Failure::status_of(code),
        };
        Self(status, failure.message().to_owned())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = Answer::<()> { status: false, message: Some(self.1), data: None };
        (self.0, Json(body)).into_response()
    }
}

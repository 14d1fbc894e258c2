//! Extractors of unauthenticated parts of a request: JSON bodies of operators, and pages of lists.
use super::error_code::ErrorCode;
use super::response::OperatorError;
use super::state::ApiState;
use crate::store::Store;
use crate::store::precondition::{Edited, Precondition};
use crate::version::IfMatch;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The largest body of a request, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// The longest page of a list, and its default length.
const MAX_PAGE: i64 = 1000;

/// An operator's JSON body; its faults are answered in the operators' envelope.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<ApiState>> for Body<T> {
    type Rejection = OperatorError;
    async fn from_request(request: Request, state: &Arc<ApiState>) -> Result<Self, OperatorError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(e @ JsonRejection::BytesRejection(_)) => Err(OperatorError::new(ErrorCode::TooLarge, e.body_text())),
            Err(e) => Err(OperatorError::new(ErrorCode::BadRequest, e.body_text())),
        }
    }
}

/// The condition under which a change is made: its `If-Match`.
#[derive(Clone, Debug, Default)]
pub struct Condition(Option<IfMatch>);

impl Condition {
    /// The store for a change of `edited` under this condition.
    pub fn store(self, store: &Store, edited: Edited) -> Store {
        match self.0 {
            Some(if_match) => store.on_condition(Precondition { edited, if_match }),
            None => store.clone(),
        }
    }
}

impl FromRequestParts<Arc<ApiState>> for Condition {
    type Rejection = OperatorError;
    async fn from_request_parts(parts: &mut Parts, _state: &Arc<ApiState>) -> Result<Self, OperatorError> {
        let lines: Vec<&str> =
            parts.headers.get_all(header::IF_MATCH).iter().map(|h| h.to_str().unwrap_or("")).collect();
        if lines.is_empty() {
            return Ok(Self(None));
        }
        let parsed = lines.join(",").parse::<IfMatch>();
        parsed.map(|m| Self(Some(m))).map_err(|e| OperatorError::new(ErrorCode::BadRequest, e.to_string()))
    }
}

/// A page of a list.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct Page {
    /// The last id of the page before.
    pub after: String,
    /// At most this many, 1 to 1000.
    pub limit: Option<i64>,
}

impl Page {
    /// The limit within its range.
    pub fn rows(&self) -> i64 {
        page_length(self.limit)
    }
}

/// The length of a page of which `limit` was asked.
pub fn page_length(limit: Option<i64>) -> i64 {
    limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
}

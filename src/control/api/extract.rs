//! Extractors of unauthenticated parts of a request: JSON bodies of operators, and pages of lists.
use super::error_code::ErrorCode;
use super::response::OperatorError;
use super::state::ApiState;
use crate::store::Store;
use crate::store::page::{Listing, MAX_PAGE, PageRequest};
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

/// Selects a page of a list.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct ListQuery {
    /// With this text in a name, id or note, whatever its case.
    pub filter: String,
    /// What it is sorted by; with `-` in front, descending. A wrong one is answered with those there are.
    pub sort: String,
    /// `next_cursor` of the page before.
    pub cursor: String,
    /// At most this many, 1 to 1000.
    pub limit: Option<i64>,
}

impl ListQuery {
    /// The page of `listing`.
    pub fn page(&self, listing: &'static Listing) -> Result<PageRequest, OperatorError> {
        page_of(listing, &self.sort, &self.cursor, self.limit)
    }
}

/// A page of a list, or the parameter at fault.
pub fn page_of(
    listing: &'static Listing,
    sort: &str,
    cursor: &str,
    limit: Option<i64>,
) -> Result<PageRequest, OperatorError> {
    PageRequest::new(listing, sort, cursor, limit).map_err(|e| OperatorError::bad_field(e.field(), e))
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
        self.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
    }
}

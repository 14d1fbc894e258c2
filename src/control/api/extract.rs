//! Extractors of unauthenticated parts of a request: JSON bodies of operators, and pages of lists.
use super::response::OperatorError;
use super::state::ApiState;
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
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
            Err(e @ JsonRejection::BytesRejection(_)) => {
                Err(OperatorError::new(StatusCode::PAYLOAD_TOO_LARGE, e.body_text()))
            }
            Err(e) => Err(OperatorError::new(StatusCode::BAD_REQUEST, e.body_text())),
        }
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

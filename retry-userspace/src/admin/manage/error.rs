//! What a request that is not served gets: a status, and JSON that says why.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::backend::{BackendError, ConfigRefused, PutError};

/// `{"error": …, "reason": …}`: a word for programs, a sentence for people.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    error: &'static str,
    reason: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, error: &'static str, reason: impl Into<String>) -> Self {
        Self { status, error, reason: reason.into() }
    }

    pub(super) fn bad_request(error: &'static str, reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, reason)
    }

    pub(super) fn too_large(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", reason)
    }

    /// The bytes are understood, and are not what can be stored (RFC 9110, section 15.5.21).
    pub(super) fn unprocessable(error: &'static str, reason: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error, reason)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error, "reason": self.reason }))).into_response()
    }
}

impl From<BackendError> for ApiError {
    fn from(error: BackendError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", error.to_string())
    }
}

impl From<ConfigRefused> for ApiError {
    fn from(refused: ConfigRefused) -> Self {
        Self::unprocessable("refused", refused.to_string())
    }
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Refused(reason) => Self::unprocessable("refused", reason),
            PutError::TooLarge => Self::too_large(error.to_string()),
            PutError::Backend(error) => error.into(),
        }
    }
}

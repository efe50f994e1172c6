//! The one place where errors become HTTP: a status, a stable type, and a sentence that says what to do.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ReloadError;
use crate::control::HandleError;
use crate::decision::controller::CommandError;

/// An answer that is not what was asked for; as JSON `{"error":{"type":…,"message":…}}`.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    details: Vec<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), details: Vec::new() }
    }

    pub(super) fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many requests are under way here; try again in a second",
        )
    }

    pub(super) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "a token is needed: send one of [admin] token_file as \"Authorization: Bearer TOKEN\"; forebay's own commands take it by --token-file or FOREBAY_TOKEN. \
             With [admin.tls] client_ca a client's certificate does as well: --client-cert and --client-key",
        )
    }

    pub(super) fn timed_out(limit: std::time::Duration) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timed_out",
            format!(
                "no answer within {limit:?}; what was asked for may still be done, look at the status before asking again"
            ),
        )
    }

    pub(super) fn not_ready(reasons: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", reasons)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut error = json!({ "type": self.kind, "message": self.message });
        if !self.details.is_empty() {
            error["details"] = self.details.into();
        }
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer realm=\"forebay\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<HandleError> for ApiError {
    fn from(error: HandleError) -> Self {
        let message = error.to_string();
        let (status, kind) = match error {
            HandleError::Command(error) => command(&error),
            HandleError::Standby { .. } => (StatusCode::SERVICE_UNAVAILABLE, "standby"),
            HandleError::Ended => (StatusCode::SERVICE_UNAVAILABLE, "ended"),
            HandleError::UnknownProvider(_) => (StatusCode::CONFLICT, "needs_restart"),
            HandleError::TooManyProxies => (StatusCode::SERVICE_UNAVAILABLE, "too_many_proxies"),
        };
        Self::new(status, kind, message)
    }
}

fn command(error: &CommandError) -> (StatusCode, &'static str) {
    match error {
        CommandError::UnknownEndpoint(_) => (StatusCode::NOT_FOUND, "unknown_endpoint"),
        CommandError::UnknownVariant { .. } => (StatusCode::NOT_FOUND, "unknown_variant"),
        CommandError::UnknownInstance(_) => (StatusCode::NOT_FOUND, "unknown_instance"),
        CommandError::AmbiguousVariant { .. } => (StatusCode::BAD_REQUEST, "ambiguous_variant"),
        CommandError::OutOfBounds { .. } => (StatusCode::BAD_REQUEST, "out_of_bounds"),
    }
}

impl From<ReloadError> for ApiError {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Mistakes(details) => {
                let message =
                    format!("the config has {} mistakes; nothing was changed", details.len());
                Self { details, ..Self::new(StatusCode::BAD_REQUEST, "invalid_config", message) }
            }
            ReloadError::Failed(message) => {
                Self::new(StatusCode::CONFLICT, "reload_failed", message)
            }
        }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let status = rejection.status();
        let kind = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
            _ => "bad_request",
        };
        // A body that is JSON but not what was asked for is the caller's mistake like any other.
        let status = match status {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            other => other,
        };
        Self::new(status, kind, rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    let message = format!(
        "there is no {} here; the routes of a manager are on the manager's address",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

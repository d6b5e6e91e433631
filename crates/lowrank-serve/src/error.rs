//! What can go wrong, and how a client reads it.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::host::HostError;

/// A result of the server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An answer that is an error, in OpenAI's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// OpenAI's code, such as `model_not_found`.
    pub code: Option<&'static str>,
}

impl Error {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// The request makes no sense (400).
    pub fn request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request has a wrong value (400).
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        let error = Self::request(format!("{param}: {}", message.into()));
        Self { param: Some(param.to_owned()), ..error }
    }

    /// No such model or adapter (404).
    pub fn no_model(name: &str, known: &[String]) -> Self {
        let message = format!("there is no model or adapter {name:?}; there are {}", known.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, message);
        Self { code: Some("model_not_found"), param: Some("model".into()), ..error }
    }

    /// Nothing of that name (404).
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The wrong key, or none (401).
    pub fn no_key() -> Self {
        let error = Self::new(
            StatusCode::UNAUTHORIZED,
            "the API key is missing or wrong: send `Authorization: Bearer KEY`",
        );
        Self { code: Some("invalid_api_key"), ..error }
    }

    /// Not allowed here (403).
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// A name that is taken (409).
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// A body that is too long (413).
    pub fn too_long(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// A body that did not arrive in time (408).
    pub fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the body of the request did not arrive in time")
    }

    /// Too much at once (429).
    pub fn busy(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        Self { code: Some("rate_limit_exceeded"), ..error }
    }

    /// The server is ending (503).
    pub fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
    }

    /// Something that should not happen (500).
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// OpenAI's object.
    pub fn json(&self) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        Self::request(error.to_string())
    }
}

//! Bodies of requests.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::state::State;
use crate::error::{Error, Result};

/// All of a body, within the server's limits of bytes and time.
///
/// # Errors
/// Where it is longer or slower.
pub async fn bytes(state: &State, body: Body, limit: usize) -> Result<bytes::Bytes> {
    let read = axum::body::to_bytes(body, limit);
    let read = timeout(state.options.read_timeout, read).await.map_err(|_| Error::too_slow())?;
    read.map_err(|error| {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            if error.to_string().contains("length limit") {
                return Error::too_long(format!("the body is longer than {limit} bytes"));
            }
            source = error.source();
        }
        Error::request(format!("the body could not be read: {error}"))
    })
}

/// A body that is JSON.
///
/// # Errors
/// Where it is none, or not said to be: a page of another site can send anything but that.
pub async fn json<T: DeserializeOwned>(state: &State, headers: &HeaderMap, body: Body) -> Result<T> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if !kind.trim_start().to_ascii_lowercase().starts_with("application/json") {
        return Err(Error::request("send JSON with the header Content-Type: application/json"));
    }
    let bytes = bytes(state, body, state.options.max_body).await?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::request(format!("the body is not the JSON expected: {e}")))
}

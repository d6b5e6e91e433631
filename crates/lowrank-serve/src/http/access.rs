//! Who may ask, and what is written down of it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::state::State;
use crate::error::{Error, Result};
use crate::random;

/// A request of a key, until its answer has been sent.
struct Turn(Arc<State>, usize);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.access.end(self.1);
    }
}

/// Lets requests with a key pass, as many of each at once as may be.
pub async fn check_key(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Result<Response> {
    if state.access.is_open() {
        return Ok(next.run(request).await);
    }
    let key = state.access.find(request.headers()).ok_or_else(Error::no_key)?;
    state.access.begin(key)?;
    let turn = Turn(state, key);
    let (parts, body) = next.run(request).await.into_parts();
    // The turn ends when the body has been sent or given up.
    let stream = futures_util::stream::StreamExt::map(body.into_data_stream(), move |piece| {
        let _turn = &turn;
        piece
    });
    Ok(Response::from_parts(parts, Body::from_stream(stream)))
}

/// Refuses pages of other sites: those whose name was made to point here, and those whose origin is not listed.
pub async fn check_origin(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text(header::HOST).unwrap_or("").to_owned();
    if state.options.host.is_loopback() && !is_local(&host) {
        return Error::forbidden(format!("{host:?} is not a name of this machine")).into_response();
    }
    let Some(origin) = text(header::ORIGIN).map(str::to_owned) else { return next.run(request).await };
    let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(&host);
    let listed = state.options.cors_origins.iter().any(|known| known == "*" || *known == origin);
    if !own && !listed {
        return Error::forbidden(format!(
            "pages of {origin} may not use this server: start it with --cors-origin"
        ))
        .into_response();
    }
    let preflight = request.method() == Method::OPTIONS;
    let mut response = match preflight {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    if let (true, Ok(origin)) = (listed, HeaderValue::from_str(&origin)) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        if preflight {
            let methods = HeaderValue::from_static("GET, POST, DELETE");
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            let allowed = HeaderValue::from_static("authorization, content-type");
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
    }
    response
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => return rest.split_once(']').is_some_and(|(address, _)| address == "::1"),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// Counts and logs requests, and gives each an id.
pub async fn count(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let given = request.headers().get("x-request-id").filter(|id| id.len() <= 128).cloned();
    let id = given.unwrap_or_else(|| HeaderValue::from_str(&random::id("req")).expect("letters and digits"));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let status = response.status();
    state.metrics.requests.add(1);
    if status.is_client_error() || status.is_server_error() {
        state.metrics.errors.add(1);
    }
    if path != "/health" && path != "/metrics" {
        let record = json!({
            "time": random::now(), "request": id.to_str().unwrap_or(""), "method": method.as_str(), "path": path,
            "status": status.as_u16(), "ms": begin.elapsed().as_millis() as u64,
        });
        eprintln!("{record}");
    }
    response.headers_mut().insert("x-request-id", id);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "127.3.2.1", "[::1]:80", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::2]:80", "10.0.0.1"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}

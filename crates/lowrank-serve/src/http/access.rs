//! Who may ask, and what is written down of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::State;
use crate::error::{Error, Result};
use crate::options::ServeOptions;
use crate::random;

/// The keys, and how many requests of each are here.
pub struct Access {
    keys: Vec<String>,
    most: usize,
    here: Mutex<HashMap<usize, usize>>,
}

impl Access {
    /// The keys of the options.
    pub fn new(options: &ServeOptions) -> Self {
        Self { keys: options.api_keys.clone(), most: options.max_requests_per_key, here: Mutex::default() }
    }

    /// The place of the key that the headers have. All keys are compared, in a time that does not depend on the bytes.
    fn find(&self, headers: &HeaderMap) -> Option<usize> {
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
        let same = |key: &String| {
            let key = key.as_bytes();
            let differ = given.iter().zip(key).fold(0, |differ, (a, b)| differ | std::hint::black_box(a ^ b));
            differ == 0 && given.len() == key.len()
        };
        self.keys.iter().enumerate().fold(None, |found, (at, key)| if same(key) { Some(at) } else { found })
    }

    fn change(&self, key: usize, by: impl FnOnce(usize) -> Option<usize>) -> bool {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let count = here.entry(key).or_default();
        by(*count).map(|new| *count = new).is_some()
    }
}

/// A request of a key, until its answer has been sent.
struct Turn(Arc<State>, usize);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.access.change(self.1, |count| Some(count.saturating_sub(1)));
    }
}

/// Lets requests with a key pass, as many of each at once as may be.
pub async fn check_key(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Result<Response> {
    if state.access.keys.is_empty() {
        return Ok(next.run(request).await);
    }
    let key = state.access.find(request.headers()).ok_or_else(Error::no_key)?;
    let most = state.access.most;
    if !state.access.change(key, |count| (most == 0 || count < most).then_some(count + 1)) {
        return Err(Error::busy(format!(
            "this key has {most} requests already: wait for one of them to end"
        )));
    }
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

    #[test]
    fn keys_are_found_whole() {
        let options =
            ServeOptions { api_keys: vec!["one".into(), "another".into()], ..ServeOptions::default() };
        let access = Access::new(&options);
        let find = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(text).unwrap());
            access.find(&headers)
        };
        assert_eq!([find("Bearer one"), find("Bearer another")], [Some(0), Some(1)]);
        for wrong in ["", "one", "Bearer ", "Bearer on", "Bearer onex", "Bearer two", "bearer one"] {
            assert_eq!(find(wrong), None, "{wrong}");
        }
        assert_eq!(access.find(&HeaderMap::new()), None);
    }
}

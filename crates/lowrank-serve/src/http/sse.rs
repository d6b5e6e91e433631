//! Server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that wait for a slow reader at most.
const AHEAD: usize = 64;
/// Without an event for so long a comment is sent, so that nobody on the way closes the connection.
const QUIET: Duration = Duration::from_secs(15);

/// The end of a stream that events go into.
pub struct Events(Sender<Bytes>);

impl Events {
    /// Sends an event; says whether somebody still listens.
    pub async fn send(&self, event: &Value) -> bool {
        self.0.send(Bytes::from(format!("data: {event}\n\n"))).await.is_ok()
    }

    /// Ends the stream as OpenAI does.
    pub async fn done(self) {
        let _ = self.0.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
    }

    /// Whether nobody listens any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A stream, and the answer that carries it.
pub fn events() -> (Events, Response) {
    let (sender, receiver) = channel(AHEAD);
    let next = |mut receiver: Receiver<Bytes>| async move {
        match tokio::time::timeout(QUIET, receiver.recv()).await {
            Ok(Some(event)) => Some((Ok::<_, Infallible>(event), receiver)),
            Ok(None) => None,
            Err(_) => Some((Ok(Bytes::from_static(b": still here\n\n")), receiver)),
        }
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(receiver, next)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    (Events(sender), response)
}

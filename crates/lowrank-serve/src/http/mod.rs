//! The HTTP interface.

mod access;
mod adapters;
mod body;
mod chat;
mod completions;
mod embeddings;
mod fine_tuning;
mod heads;
mod keys;
mod sampling;
mod sse;
mod state;
mod target;
mod text;
mod tools;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::json;

use crate::error::Error;

pub use state::State;

async fn health(Shared(state): Shared<Arc<State>>) -> impl IntoResponse {
    axum::Json(json!({"status": "ok", "requests": state.engine.load()}))
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> impl IntoResponse {
    ([("content-type", "text/plain; version=0.0.4")], state.metrics.text())
}

/// A page to chat, compare and train.
async fn page() -> impl IntoResponse {
    let policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";
    let headers = [("content-type", "text/html; charset=utf-8"), ("content-security-policy", policy)];
    (headers, include_str!("page.html"))
}

async fn nothing() -> Error {
    Error::not_found("there is nothing here: see the documentation of lowrank serve for the paths")
}

/// All routes.
pub fn router(state: Arc<State>) -> Router {
    let kept = Router::new()
        .route("/v1/models", get(adapters::models))
        .route("/v1/models/{*name}", get(adapters::model))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/classify", post(heads::classify))
        .route("/v1/score", post(heads::score))
        .route("/v1/rerank", post(heads::rerank))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/lora-adapters", get(adapters::weights).post(adapters::set_weights))
        .route("/v1/files", get(fine_tuning::files).post(fine_tuning::upload))
        .route("/v1/files/{id}", get(fine_tuning::file).delete(fine_tuning::remove))
        .route("/v1/files/{id}/content", get(fine_tuning::content))
        .route("/v1/fine_tuning/jobs", get(fine_tuning::list).post(fine_tuning::create))
        .route("/v1/fine_tuning/jobs/{id}", get(fine_tuning::job))
        .route("/v1/fine_tuning/jobs/{id}/events", get(fine_tuning::events))
        .route("/v1/fine_tuning/jobs/{id}/checkpoints", get(fine_tuning::checkpoints))
        .route("/v1/fine_tuning/jobs/{id}/{turn}", post(fine_tuning::turn))
        .route("/metrics", get(metrics))
        // Uploads have a limit of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(state.clone(), access::check_key));
    Router::new()
        .merge(kept)
        .route("/", get(page))
        .route("/health", get(health))
        .fallback(nothing)
        .layer(from_fn_with_state(state.clone(), access::check_origin))
        .layer(from_fn_with_state(state.clone(), access::count))
        .with_state(state)
}

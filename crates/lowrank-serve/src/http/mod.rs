//! The HTTP interface.

mod access;
mod adapters;
mod body;
mod chat;
mod completions;
mod embeddings;
mod fine_tuning;
mod heads;
mod sampling;
mod sse;
mod target;
mod text;
mod tools;

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State as Shared};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::grammar::Grammars;
use crate::host::{Host, HostError};
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::options::ServeOptions;
use crate::registry::Registry;

/// What all requests share.
pub struct State {
    pub host: Arc<dyn Host>,
    pub engine: Engine,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub options: ServeOptions,
    /// Texts that end an answer of the base, besides tokens.
    pub stops: Vec<String>,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    pub access: access::Access,
    /// Where there is fine-tuning.
    pub jobs: Option<Jobs>,
    /// Made when first asked for.
    grammars: OnceLock<Result<Grammars>>,
    /// Adapters and weights of requests that name the base.
    default_mixture: Mutex<Vec<(String, f32)>>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// OpenAI's counts.
fn usage(prompt: usize, cached: usize, generated: usize) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}

impl State {
    /// The state of a server over `engine` and `registry`.
    pub fn new(
        host: Arc<dyn Host>,
        engine: Engine,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        jobs: Option<Jobs>,
        options: ServeOptions,
    ) -> Self {
        let stops = host.chat_template().and_then(|template| template.turn_end());
        let stops = stops.filter(|end| host.tokenizer().token_to_id(end).is_none()).into_iter().collect();
        let access = access::Access::new(&options);
        let (started, grammars, default_mixture) = (crate::random::now(), OnceLock::new(), Mutex::default());
        Self {
            host,
            engine,
            registry,
            metrics,
            options,
            stops,
            started,
            access,
            jobs,
            grammars,
            default_mixture,
        }
    }

    /// What an answer that follows a JSON schema needs.
    fn grammars(&self) -> Result<&Grammars> {
        let new = || {
            let vocab = self.host.model().info().vocab;
            Grammars::new(&self.host.tokenizer(), vocab, self.host.stop_tokens())
        };
        self.grammars.get_or_init(new).as_ref().map_err(Clone::clone)
    }

    /// Runs `work` where it may take its time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::failed("the request could not be prepared"))?
    }

    /// Ends `work` when a request may take no longer.
    async fn limited(self: Arc<Self>, work: impl Future<Output = ()> + Send) {
        let _ = tokio::time::timeout(self.options.request_timeout, work).await;
    }

    fn default_mixture(&self) -> Vec<(String, f32)> {
        self.default_mixture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_default_mixture(&self, mixture: Vec<(String, f32)>) {
        *self.default_mixture.lock().unwrap_or_else(PoisonError::into_inner) = mixture;
    }

    fn forget_default(&self, name: &str) {
        self.default_mixture.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _)| of != name);
    }

    /// Prints a request, where prompts may be printed.
    fn note(&self, id: &str, model: &str, prompt: &[u32]) {
        if self.options.log_prompts {
            let text = self.host.tokenizer().decode(prompt, false).unwrap_or_default();
            eprintln!("{}", json!({"id": id, "model": model, "prompt": text}));
        }
    }
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        Self::request(error.to_string())
    }
}

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

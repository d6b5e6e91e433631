//! What all requests share.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::json;

use super::keys::Access;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::grammar::Grammars;
use crate::host::Host;
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
    pub access: Access,
    /// Where there is fine-tuning.
    pub jobs: Option<Jobs>,
    /// Made when first asked for.
    grammars: OnceLock<Result<Grammars>>,
    /// Adapters and weights of requests that name the base.
    default_mixture: Mutex<Vec<(String, f32)>>,
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
        let access = Access::new(&options);
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
    pub fn grammars(&self) -> Result<&Grammars> {
        let new = || {
            let vocab = self.host.model().info().vocab;
            Grammars::new(&self.host.tokenizer(), vocab, self.host.stop_tokens())
        };
        self.grammars.get_or_init(new).as_ref().map_err(Clone::clone)
    }

    /// Runs `work` where it may take its time.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::failed("the request could not be prepared"))?
    }

    /// Ends `work` when a request may take no longer.
    pub async fn limited(self: Arc<Self>, work: impl Future<Output = ()> + Send) {
        let _ = tokio::time::timeout(self.options.request_timeout, work).await;
    }

    pub fn default_mixture(&self) -> Vec<(String, f32)> {
        self.default_mixture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_default_mixture(&self, mixture: Vec<(String, f32)>) {
        *self.default_mixture.lock().unwrap_or_else(PoisonError::into_inner) = mixture;
    }

    pub fn forget_default(&self, name: &str) {
        self.default_mixture.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _)| of != name);
    }

    /// Prints a request, where prompts may be printed.
    pub fn note(&self, id: &str, model: &str, prompt: &[u32]) {
        if self.options.log_prompts {
            let text = self.host.tokenizer().decode(prompt, false).unwrap_or_default();
            eprintln!("{}", json!({"id": id, "model": model, "prompt": text}));
        }
    }
}

//! Adapters that are loaded, and their use by requests.

use std::sync::Arc;

use lowrank_models::{ChatTemplate, RequestAdapter};
use tokio::sync::Notify;

/// An adapter, or a mixture, that is loaded.
pub struct Loaded {
    /// Names its contents and weights; never used again for others.
    pub contents: u64,
    /// Its place in the routed set.
    pub slot: usize,
    /// Virtual tokens that its sequences begin with.
    pub virtual_tokens: usize,
    /// Bytes of its parameters.
    pub bytes: usize,
    /// The rank of its first layer that has one.
    pub rank: Option<usize>,
    /// PEFT's name of its method.
    pub kind: String,
    /// The chat template it was trained with, where that is not the base's, and what ends a turn in it.
    pub chat: Option<Chat>,
}

/// A chat template and what ends an answer written in it.
pub struct Chat {
    pub template: ChatTemplate,
    pub stop_tokens: Vec<u32>,
    pub stops: Vec<String>,
}

/// The use of an adapter: it stays loaded and keeps its place as long as this lives.
pub struct Lease {
    loaded: Option<Arc<Loaded>>,
    returned: Arc<Notify>,
}

impl Lease {
    /// A use of `loaded`, whose end `returned` hears of.
    pub fn new(loaded: Arc<Loaded>, returned: Arc<Notify>) -> Self {
        Self { loaded: Some(loaded), returned }
    }

    /// The adapter.
    pub fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("until it is dropped")
    }

    /// As a request names it.
    pub fn adapter(&self) -> RequestAdapter {
        let loaded = self.loaded();
        RequestAdapter {
            index: loaded.slot,
            virtual_tokens: loaded.virtual_tokens,
            contents: loaded.contents,
        }
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        Self { loaded: self.loaded.clone(), returned: self.returned.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.loaded = None;
        self.returned.notify_one();
    }
}

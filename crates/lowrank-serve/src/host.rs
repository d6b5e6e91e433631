//! What the server is given.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lowrank_adapters::AdapterSet;
use lowrank_engine::Device;
use lowrank_models::{ChatTemplate, Conversation, Model, Tokenizer};
use serde_json::{Map, Value};

/// An error of a [`Host`], as its users read it.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// A run of training that a fine-tuning job needs.
#[derive(Clone, Debug)]
pub struct TrainRun {
    /// Where its configuration may be written.
    pub config: PathBuf,
    /// Training data.
    pub data: PathBuf,
    /// Held-out data.
    pub eval_data: Option<PathBuf>,
    /// The folder that becomes the adapter.
    pub out: PathBuf,
    /// Whether it continues what is in that folder.
    pub resume: bool,
    /// Passes over the data.
    pub epochs: Option<f64>,
    /// Examples a step.
    pub batch_size: Option<u64>,
    /// Factor of the learning rate that goes with the model.
    pub learning_rate_multiplier: Option<f64>,
    /// Of the random numbers.
    pub seed: u64,
    /// Further options of `lowrank train` by their names.
    pub options: Map<String, Value>,
}

/// A base with an adapter and its head, for classes or values.
pub trait HeadModel: Send + Sync {
    /// The names of the classes; none for values.
    fn labels(&self) -> &[String];

    /// Bytes of the adapter and the head.
    fn bytes(&self) -> usize;

    /// Probabilities of the classes, or values, of each text or pair of texts.
    ///
    /// # Errors
    /// Where a text cannot be read.
    fn outputs(&self, texts: &[(String, Option<String>)]) -> Result<Vec<Vec<f32>>, HostError>;
}

/// A base model, and how adapters for it are read.
pub trait Host: Send + Sync {
    /// The name of the base in requests.
    fn id(&self) -> &str;

    /// The model.
    fn model(&self) -> &dyn Model;

    /// Where it runs.
    fn device(&self) -> Device;

    /// Its tokenizer.
    fn tokenizer(&self) -> Arc<Tokenizer>;

    /// Its chat template, where it has one.
    fn chat_template(&self) -> Option<&ChatTemplate>;

    /// The tokens that end a text.
    fn stop_tokens(&self) -> &[u32];

    /// The tokens of a text to continue.
    ///
    /// # Errors
    /// Where the tokenizer refuses.
    fn prompt(&self, text: &str) -> Result<Vec<u32>, HostError>;

    /// The tokens of a conversation that the assistant is to answer, written by `template`.
    ///
    /// # Errors
    /// Where the template refuses the messages.
    fn chat_prompt(&self, talk: &Conversation, template: &ChatTemplate) -> Result<Vec<u32>, HostError> {
        Ok(self.tokenizer().encode(&template.render_conversation(talk, true)?)?)
    }

    /// Reads the adapter at `path`, in any format.
    ///
    /// # Errors
    /// Where it is no adapter for this base.
    fn load_adapter(&self, path: &Path) -> Result<AdapterSet, HostError>;

    /// Whether the adapter at `path` has a head of its own, for classes or values.
    fn has_head(&self, path: &Path) -> bool;

    /// The base with that adapter and head.
    ///
    /// # Errors
    /// Where it is no such adapter for this base.
    fn head(&self, path: &Path) -> Result<Box<dyn HeadModel>, HostError>;

    /// The command that does a run of training: it saves its state and ends when it is asked to terminate.
    ///
    /// # Errors
    /// Where an option is wrong.
    fn train(&self, run: &TrainRun) -> Result<Command, HostError>;
}

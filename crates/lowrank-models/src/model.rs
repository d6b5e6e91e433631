//! What every architecture offers, and which architectures there are.

use lowrank_engine::{Linear, Segment, Site, Tape, Var};
use serde_json::Value;

use crate::files::Tensors;
use crate::llama::Llama;
use crate::{Error, Result};

/// The tokens of one forward pass: rows of any number of sequences, one after the other.
pub struct TokenBatch<'a> {
    /// Token of each row, `[N]`.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence, `[N]`.
    pub positions: &'a [u32],
    /// Tokens of the whole sequence each row belongs to, `[N]`: only dynamic rope reads it.
    pub lengths: &'a [u32],
    /// Who attends to whom.
    pub segments: &'a [Segment],
}

/// A frozen base model. The same forward serves training, evaluation and generation.
pub trait Model: Send + Sync {
    /// The hidden states after the last norm, `[N,D]`.
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m>;

    /// The language-model head, `[V,D]`.
    fn head(&self) -> &Linear;

    /// Every place an adapter can attach to.
    fn sites(&self) -> &[Site];

    /// Width of keys (and values) of each layer, for the cache.
    fn kv_widths(&self) -> Vec<usize>;

    /// Longest sequence it was made for.
    fn max_positions(&self) -> usize;

    /// Size of the vocabulary.
    fn vocab(&self) -> usize {
        self.head().weight.rows()
    }
}

type Build = fn(&Value, &Tensors) -> Result<Box<dyn Model>>;

/// `model_type` of a configuration, and what builds it.
const ARCHITECTURES: [(&str, Build); 4] = [
    ("llama", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("mistral", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("qwen2", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("qwen3", |c, t| Ok(Box::new(Llama::load(c, t)?))),
];

/// Builds the model that `config` (Hugging Face's `config.json`) describes over `tensors`.
///
/// # Errors
/// Where the architecture is unknown (lists the known), a field is wrong, or a tensor does not fit.
pub fn load(config: &Value, tensors: &Tensors) -> Result<Box<dyn Model>> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let known = || ARCHITECTURES.map(|(name, _)| name).join(", ");
    let (_, build) = ARCHITECTURES.iter().find(|(name, _)| *name == kind).ok_or_else(|| {
        Error::Config(format!("model_type {kind:?} is not known; known are {}", known()))
    })?;
    build(config, tensors)
}

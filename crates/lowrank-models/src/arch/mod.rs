//! Which architectures there are.

pub(crate) mod bert;
mod deberta;
mod distilbert;
mod gemma;
mod gpt2;
pub(crate) mod gpt3;
mod llama;
mod phi3;

use lowrank_files::Tensors;
use serde_json::Value;

use self::bert::Bert;
use self::deberta::Deberta;
use self::distilbert::DistilBert;
use self::gemma::Gemma;
use self::gpt2::Gpt2;
use self::llama::Llama;
use self::phi3::Phi3;
use crate::model::Model;
use crate::{Error, Result};

type Build = fn(&Value, &Tensors) -> Result<Box<dyn Model>>;

/// `model_type` of a configuration, the name that tensors begin with, and what builds the model.
const ARCHITECTURES: [(&str, &str, Build); 15] = [
    ("bert", "bert", |c, t| Ok(Box::new(Bert::load(c, t)?))),
    ("deberta-v2", "deberta", |c, t| Ok(Box::new(Deberta::load(c, t)?))),
    ("distilbert", "distilbert", |c, t| Ok(Box::new(DistilBert::load(c, t)?))),
    ("gemma", "model", |c, t| Ok(Box::new(Gemma::load(c, t)?))),
    ("gemma2", "model", |c, t| Ok(Box::new(Gemma::load(c, t)?))),
    ("gemma3_text", "model", |c, t| Ok(Box::new(Gemma::load(c, t)?))),
    ("gpt2", "transformer", |c, t| Ok(Box::new(Gpt2::load(c, t)?))),
    ("gpt3", "transformer", |c, t| Ok(Box::new(Gpt2::load(c, t)?))),
    ("llama", "model", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("mistral", "model", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("phi3", "model", |c, t| Ok(Box::new(Phi3::load(c, t)?))),
    ("qwen2", "model", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("qwen3", "model", |c, t| Ok(Box::new(Llama::load(c, t)?))),
    ("roberta", "roberta", |c, t| Ok(Box::new(Bert::load(c, t)?))),
    ("xlm-roberta", "roberta", |c, t| Ok(Box::new(Bert::load(c, t)?))),
];

/// What the names of a model's tensors begin with, all but the head's. Files of a model without head lack it, and so
/// do the sites of a model for sentence embeddings.
pub fn base_prefix(model_type: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(name, ..)| *name == model_type).map(|(_, prefix, _)| *prefix)
}

/// Builds the model that `config` (Hugging Face's `config.json`) describes over `tensors`.
///
/// # Errors
/// Where the architecture is unknown (lists the known), a field is wrong, or a tensor does not fit.
pub fn load(config: &Value, tensors: &Tensors) -> Result<Box<dyn Model>> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let known = || ARCHITECTURES.map(|(name, ..)| name).join(", ");
    let (_, _, build) = ARCHITECTURES
        .iter()
        .find(|(name, ..)| *name == kind)
        .ok_or_else(|| Error::Config(format!("model_type {kind:?} is not known; known are {}", known())))?;
    build(config, tensors)
}

//! What prompt and prefix tuning share: their fields and the name of their tensor.

use serde::Deserialize;

use crate::config::{FIELDS, LoraConfig};
use crate::contract::BaseInfo;
use crate::error::Error;

/// Name of the trained tensor in PEFT's file.
pub const TENSOR: &str = "prompt_embeddings";

/// Number of virtual tokens by default.
pub const TOKENS: usize = 20;

/// Fields of LoRA that methods with virtual tokens do not have.
pub const NO_MODULES: &[&str] = FIELDS.split_at(3).1;

#[derive(Deserialize)]
pub struct Extra {
    pub num_virtual_tokens: usize,
    /// Of prefix tuning: width of the keys of one layer.
    pub token_dim: Option<usize>,
    pub num_layers: Option<usize>,
    prompt_tuning_init: Option<String>,
    #[serde(default = "one")]
    num_transformer_submodules: usize,
}

fn one() -> usize {
    1
}

impl Extra {
    /// The fields of `config` that methods with virtual tokens share.
    pub fn parse(config: &LoraConfig) -> Result<Self, Error> {
        let extra: Self = config.parse_extra()?;
        if extra.num_virtual_tokens == 0 {
            return Err(Error::Config("num_virtual_tokens must be at least 1".into()));
        }
        if extra.num_transformer_submodules != 1 {
            return Err(Error::Config(
                "num_transformer_submodules must be 1: encoders with decoders are not supported".into(),
            ));
        }
        Ok(extra)
    }

    /// Whether the start is drawn from the vocabulary.
    pub fn sample(&self) -> Result<bool, Error> {
        match self.prompt_tuning_init.as_deref() {
            None | Some("RANDOM") => Ok(false),
            Some("SAMPLE_VOCAB") => Ok(true),
            // Only the start depends on it, and what is loaded has started.
            Some("TEXT") => Ok(false),
            Some(other) => Err(Error::Config(format!(
                "prompt_tuning_init is {other:?}; it may be SAMPLE_VOCAB or RANDOM"
            ))),
        }
    }
}

/// Refuses a model whose head does not predict words.
pub fn language_model_only(base: &BaseInfo) -> Result<(), Error> {
    if base.is_language_model {
        return Ok(());
    }
    Err(Error::Config("methods prompt and prefix are for language models (task lm)".to_owned()))
}

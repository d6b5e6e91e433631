//! What GGUF says of a model, in the words of Hugging Face's `config.json`, and the way back.

mod config;
mod gemma;

pub(crate) use config::{architecture_of, factors_of, generation, head_dim, hf_config, metadata_of};

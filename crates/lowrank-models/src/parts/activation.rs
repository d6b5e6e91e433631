//! Names of activations in `config.json` (`transformers.activations.ACT2FN`).

use lowrank_engine::Activation;

use crate::{Error, Result};

/// The activation that `field` of a configuration names.
pub(crate) fn activation(field: &str, name: &str) -> Result<Activation> {
    Ok(match name {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        other => {
            let known = "gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, silu, swish, tanh";
            return Err(Error::Config(format!(
                "config.json: {field} {other:?} is not known; known are {known}"
            )));
        }
    })
}

/// The activation of a configuration that names none (`#[serde(default)]`).
pub(crate) fn gelu() -> String {
    "gelu".to_owned()
}

//! What the registry knows of an architecture: each declares itself in its own file.

use std::path::Path;

use lowrank_files::{Gguf, GgufNames, GgufWriter, ROPE_FACTORS};
use serde_json::{Map, Value};

use crate::loader::Loader;
use crate::model::Model;
use crate::parts::rope::RopeParameters;
use crate::tied::Tied;
use crate::{Error, Result};

/// One `model_type`.
pub(crate) struct Architecture {
    /// Its `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What the names of its tensors begin with, all but the head's.
    pub prefix: &'static str,
    /// Fields of `config.json` that transformers completes, as JSON.
    pub defaults: &'static str,
    /// Other names of its fields, and the field that each sets.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Beginnings of its tensors' names in transformers, and others that files have in their place.
    pub renamed: &'static [(&'static str, &'static str)],
    /// What its output layer shares with the embedding.
    pub tied: Tied,
    /// Builds the model.
    pub build: fn(&Value, Loader<'_>) -> Result<Box<dyn Model>>,
    /// How GGUF holds it, where it does.
    pub gguf: Option<GgufModel>,
}

/// How GGUF holds a model: names of tensors, and what the metadata means.
pub(crate) struct GgufModel {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Whether this is the model of a file that gives a sliding window, where another has the same architecture.
    pub windowed: bool,
    /// Class in transformers.
    pub class: &'static str,
    /// Names, row order and offsets of its tensors.
    pub names: GgufNames,
    /// `rope.freq_base` of a file that does not say it.
    pub rope_theta: f64,
    /// The key of the norms' epsilon below the architecture's, and its field in `config.json`.
    pub epsilon: (&'static str, &'static str),
    /// The share of a head that is rotated where a configuration does not say it, in models that may leave a part alone.
    pub partial_rotary: Option<f64>,
    /// Modules (Hugging Face names, within a block or whole) that may have a bias there.
    pub biases: &'static [&'static str],
    /// Whether heads have norms for queries and keys.
    pub qk_norms: bool,
    /// Whether it takes factors for the rotary frequencies (`rope_freqs.weight`).
    pub rope_factors: bool,
    /// The rope of its layers, or of those without a window.
    pub rope: fn(&Map<String, Value>) -> Result<RopeParameters>,
    /// Adds the fields of `config.json` that are its own, from the metadata.
    pub read: fn(&Gguf, &mut Map<String, Value>) -> Result<()>,
    /// Writes the metadata that are its own from the `config.json` at the path.
    pub write: fn(&Path, &Map<String, Value>, &mut GgufWriter) -> Result<()>,
}

impl GgufModel {
    /// A model whose metadata and tensors are the usual ones, with SiLU gates.
    pub const fn usual(architecture: &'static str, class: &'static str) -> Self {
        Self {
            architecture,
            windowed: false,
            class,
            names: GgufNames::USUAL,
            rope_theta: 10_000.0,
            epsilon: ("layer_norm_rms_epsilon", "rms_norm_eps"),
            partial_rotary: None,
            biases: &[],
            qk_norms: false,
            rope_factors: false,
            rope: RopeParameters::read,
            read: |_, config| {
                config.insert("hidden_act".into(), "silu".into());
                Ok(())
            },
            write: |path, config, _| expect_activation(path, config, "hidden_act", &["silu", "swish"]),
        }
    }

    /// Whether a file of this architecture has a place for the tensor (Hugging Face name): llama.cpp refuses a file with
    /// others.
    pub fn holds(&self, name: &str) -> bool {
        let Some((module, ending)) = name.rsplit_once('.') else {
            return name == ROPE_FACTORS.1 && self.rope_factors;
        };
        let is = |part: &str| {
            module.strip_suffix(part).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        match ending {
            "bias" => self.biases.iter().any(|part| is(part)),
            _ => self.names.from_hf(name).is_some() && (self.qk_norms || !is("q_norm") && !is("k_norm")),
        }
    }
}

/// Checks that the activation is the one of `names` that llama.cpp computes.
///
/// # Errors
/// Where it is another.
pub(crate) fn expect_activation(
    path: &Path,
    config: &Map<String, Value>,
    field: &str,
    names: &[&str],
) -> Result<()> {
    match config.get(field).and_then(Value::as_str) {
        Some(name) if !names.contains(&name) => {
            let what = format!("is {name}, but a GGUF file of this model means {}; {INSTEAD}", names[0]);
            Err(Error::field(path, field, what))
        }
        _ => Ok(()),
    }
}

/// What to do where GGUF cannot hold a model.
pub(crate) const INSTEAD: &str = "write a Hugging Face folder instead";

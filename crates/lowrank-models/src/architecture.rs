//! What the registry knows of an architecture: each declares itself in its own file.

use std::path::Path;

use lowrank_files::{Gguf, GgufNames, GgufWriter};
use serde_json::{Map, Value};

use crate::Result;
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::rope::RopeParameters;
use crate::tied::Tied;

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
            rope: RopeParameters::read,
            read: |_, config| {
                config.insert("hidden_act".into(), "silu".into());
                Ok(())
            },
            write: |_, _, _| Ok(()),
        }
    }
}

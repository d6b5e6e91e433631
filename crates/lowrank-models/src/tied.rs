//! Output layers that share their weight with an embedding, tied as transformers 5 ties them.

use std::path::Path;

use lowrank_files::Tensors;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// What of an architecture is tied where `tie_word_embeddings` says so.
pub(crate) struct Tied {
    /// `tie_word_embeddings` of a configuration without it.
    pub default: bool,
    /// A tensor of the output layer, and the one it shares: the weight first.
    pub pairs: &'static [(&'static str, &'static str)],
}

impl Tied {
    /// Of a decoder with Llama's names.
    pub const DECODER: Self =
        Self { default: false, pairs: &[("lm_head.weight", "model.embed_tokens.weight")] };

    /// Whether the configuration ties.
    ///
    /// # Errors
    /// Where the field is neither true nor false.
    pub fn is_set(&self, config: &Map<String, Value>) -> Result<bool> {
        match config.get(FIELD) {
            None => Ok(self.default),
            Some(Value::Bool(tie)) => Ok(*tie),
            Some(other) => {
                Err(Error::Config(format!("config.json: {FIELD} is {other}; true or false is needed")))
            }
        }
    }

    /// Settles what the files of a model that ties hold: of two equal tensors the output layer's is left out, and one
    /// that stands alone serves both. Two that differ stay, each in its own place; the notes say so. `at` gives the name that a
    /// tensor has in `tensors`.
    ///
    /// # Errors
    /// Where the field of the configuration is wrong.
    pub fn settle(
        &self,
        source: &Path,
        config: &Map<String, Value>,
        tensors: &mut Tensors,
        at: impl Fn(&str) -> String,
    ) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        if !self.is_set(config)? {
            return Ok(notes);
        }
        for (output, table) in self.pairs.iter().map(|&(output, table)| (at(output), at(table))) {
            let (output, table) = (output.as_str(), table.as_str());
            match (tensors.contains(output), tensors.contains(table)) {
                (true, false) => tensors.rename(output, table),
                (true, true) if tensors.equal(output, table) => tensors.remove(output),
                (true, true) => notes.push(format!(
                    "{}: {FIELD} is true, but {output} differs from {table}; each is used as it is, as transformers \
                     does. Set {FIELD} to false",
                    source.display()
                )),
                _ => {}
            }
        }
        Ok(notes)
    }

    /// Whether a file with these tensors ties nothing, though the configuration says so.
    pub fn is_contradicted(&self, config: &Map<String, Value>, has: impl Fn(&str) -> bool) -> Result<bool> {
        Ok(self.is_set(config)? && self.pairs.iter().all(|(output, _)| has(output)))
    }
}

/// The field of `config.json`.
pub(crate) const FIELD: &str = "tie_word_embeddings";

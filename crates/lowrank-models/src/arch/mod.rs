//! Which architectures there are.

mod bert;
mod cohere;
mod deberta;
mod distilbert;
mod exaone4;
mod gemma;
mod glm;
mod gpt2;
pub(crate) mod gpt3;
mod gpt_neox;
mod granite;
mod llama;
mod ministral3;
mod nemotron;
mod olmo;
mod opt;
mod phi;
mod phi3;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;

use lowrank_files::{GgufNames, Tensors};
use serde_json::{Map, Value};

use crate::architecture::{Architecture, GgufModel};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::fields;
use crate::tied::Tied;
use crate::{Error, Result, wrapper};

/// Every architecture: one line a file.
const ARCHITECTURES: [&[Architecture]; 21] = [
    bert::ARCHITECTURES,
    cohere::ARCHITECTURES,
    deberta::ARCHITECTURES,
    distilbert::ARCHITECTURES,
    exaone4::ARCHITECTURES,
    gemma::ARCHITECTURES,
    glm::ARCHITECTURES,
    gpt2::ARCHITECTURES,
    gpt_neox::ARCHITECTURES,
    granite::ARCHITECTURES,
    llama::ARCHITECTURES,
    ministral3::ARCHITECTURES,
    nemotron::ARCHITECTURES,
    olmo::ARCHITECTURES,
    opt::ARCHITECTURES,
    phi::ARCHITECTURES,
    phi3::ARCHITECTURES,
    seed_oss::ARCHITECTURES,
    smollm3::ARCHITECTURES,
    stablelm::ARCHITECTURES,
    starcoder2::ARCHITECTURES,
];

fn all() -> impl Iterator<Item = &'static Architecture> {
    ARCHITECTURES.into_iter().flatten()
}

fn find(model_type: &str) -> Option<&'static Architecture> {
    all().find(|architecture| architecture.model_type == model_type)
}

/// What the names of a model's tensors begin with, all but the head's. Files of a model without head lack it, and so
/// do the sites of a model for sentence embeddings.
pub fn base_prefix(model_type: &str) -> Option<&'static str> {
    find(model_type).map(|architecture| architecture.prefix)
}

/// Builds the model that `config` (Hugging Face's `config.json`) describes over `tensors`.
///
/// # Errors
/// Where the architecture is unknown (lists the known), a field is wrong, or a tensor does not fit.
pub fn load(config: &Value, tensors: &Tensors) -> Result<Box<dyn Model>> {
    build(config, Loader::new(tensors))
}

/// The same without the language-model head, which the files need not have.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_without_head(config: &Value, tensors: &Tensors) -> Result<Box<dyn Model>> {
    build(config, Loader::without_head(tensors))
}

/// Completes a configuration as transformers does: fields that it leaves out, and those that have two names.
pub(crate) fn complete(config: &mut Map<String, Value>) {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let Some(architecture) = find(kind) else { return };
    for (alias, field) in architecture.aliases {
        if let Some(value) = config.get(*alias).cloned() {
            config.insert((*field).into(), value);
        }
    }
    let defaults: Map<String, Value> = serde_json::from_str(architecture.defaults).expect("valid JSON");
    for (field, value) in defaults {
        config.entry(field).or_insert(value);
    }
    for (alias, field) in architecture.aliases {
        if let Some(value) = config.get(*field).cloned() {
            config.insert((*alias).into(), value);
        }
    }
}

fn build(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let architecture =
        find(kind).ok_or_else(|| Error::Config(lowrank_files::unknown("model_type", kind, model_types())))?;
    let Value::Object(mut config) = config.clone() else {
        return Err(Error::Config("config.json: an object is needed".into()));
    };
    complete(&mut config);
    let loader = match wrapper::of(&config) {
        Some(wrapper) => loader.within(wrapper),
        None => loader,
    };
    let known = |field: &str| architecture.defaults.contains(&format!("\"{field}\""));
    // Windows of models that have none or do not use them, which transformers does not read either.
    for field in ["sliding_window", "sliding_window_pattern", "max_window_layers", "use_sliding_window"] {
        let unused =
            known("use_sliding_window") && config.get("use_sliding_window") != Some(&Value::Bool(true));
        if !known(field) || unused && field == "sliding_window" {
            config.remove(field);
        }
    }
    fields::check(&config)?;
    let config = Value::Object(config);
    // Read where they are there, though they are no fields of the class.
    let read =
        ["head_dim", "original_max_position_embeddings", "rope_theta", "rope_local_base_freq", "window_size"];
    fields::check_numbers(&config, |field| known(field) || read.contains(&field))?;
    (architecture.build)(&config, loader)
}

/// Beginnings of tensors' names in transformers, and others that files of this `model_type` have.
pub(crate) fn renamed_of(model_type: &str) -> &'static [(&'static str, &'static str)] {
    find(model_type).map_or(&[], |architecture| architecture.renamed)
}

/// What a model of this `model_type` ties, where it is known.
pub(crate) fn tied_of(model_type: &str) -> Option<&'static Tied> {
    find(model_type).map(|architecture| &architecture.tied)
}

/// How GGUF calls the tensors of an architecture (`general.architecture`) and orders their rows; the usual way for one
/// that is not known here.
pub fn gguf_names(architecture: &str) -> GgufNames {
    let found = all().filter_map(|known| known.gguf.as_ref()).find(|gguf| gguf.architecture == architecture);
    found.map_or(GgufNames::USUAL, |gguf| gguf.names)
}

/// How GGUF holds a model of this `model_type`, where it does.
pub(crate) fn gguf_of(model_type: &str) -> Option<&'static GgufModel> {
    find(model_type)?.gguf.as_ref()
}

/// The `model_type` of a GGUF file, by its architecture and whether it gives a sliding window.
pub(crate) fn by_gguf(architecture: &str, windowed: bool) -> Option<(&'static str, &'static GgufModel)> {
    let models = || all().filter_map(|known| Some((known.model_type, known.gguf.as_ref()?)));
    let find = |wants: bool| {
        models().find(move |(_, gguf)| gguf.architecture == architecture && gguf.windowed == wants)
    };
    find(windowed).or_else(|| find(false))
}

/// Every `model_type` there is: those of the architectures, and of the models that are read for their text model.
pub fn model_types() -> Vec<&'static str> {
    let mut known: Vec<&str> = all().map(|architecture| architecture.model_type).collect();
    known.extend(wrapper::known());
    known.sort_unstable();
    known
}

/// The GGUF architectures there are, each once, in alphabetical order.
pub fn gguf_architectures() -> Vec<&'static str> {
    let mut names: Vec<&str> = all().filter_map(|known| Some(known.gguf.as_ref()?.architecture)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields that transformers' classes declare: `tools/reference/config_cases.py defaults` wrote them.
    #[test]
    fn defaults_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/config_defaults.json");
        let known: Map<String, Value> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for architecture in all().filter(|architecture| architecture.model_type != "gpt3") {
            let kind = architecture.model_type;
            let ours: Map<String, Value> = serde_json::from_str(architecture.defaults).unwrap();
            assert!(!ours.is_empty());
            for (field, value) in ours {
                // The pattern of windows is no field of these classes, which read a number where there is none.
                let pattern = Value::from(if matches!(kind, "cohere2" | "exaone4") { 4 } else { 6 });
                let theirs = if field == "sliding_window_pattern" { &pattern } else { &known[kind][&field] };
                assert_eq!(*theirs, value, "{kind}: {field}");
            }
            // A configuration of its type alone is a whole one.
            let config = serde_json::json!({ "model_type": kind });
            let tensors = Tensors::planned(lowrank_kernels::Format::BF16);
            // The mixtures of experts of this type are not supported, its dense models are.
            if kind != "granitemoehybrid" {
                load(&config, &tensors).unwrap_or_else(|e| panic!("{kind}: {e}"));
            }
        }
    }
}

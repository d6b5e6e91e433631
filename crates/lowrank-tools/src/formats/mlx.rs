//! MLX's adapters (mlx-lm): `PATH.lora_a: [K, r]` and `PATH.lora_b: [r, O]` in `adapters.safetensors`, with
//! `y += scale (x a) b`. One rank and one scale for all, in `adapter_config.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lowrank_files::write_atomic;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options, pairs};
use crate::formats::peft::{CONFIG_FILE, number, tidy};
use crate::lora::{Kind, Lora, Pair, most_common};
use crate::tensor::{self, Named};

/// MLX's folder: `adapter_config.json` and `adapters.safetensors`.
pub const FORMAT: FileFormat =
    FileFormat { name: "mlx", matches: |at| at.is_configured(TENSORS_FILE), pipeline: false, read, write };

/// The tensors' file.
pub const TENSORS_FILE: &str = "adapters.safetensors";

/// Names of modules that are embeddings: the file does not tell them from linear layers. mlx-lm's `LoRAEmbedding` has
/// `lora_a: [V, r]` and `lora_b: [r, D]`.
const EMBEDDINGS: [&str; 6] =
    ["embed_tokens", "wte", "wpe", "word_embeddings", "tok_embeddings", "position_embeddings"];

/// Reads an MLX adapter folder.
///
/// # Errors
/// Where a file is missing or damaged, or it is no LoRA (DoRA, full fine-tune).
pub fn read(dir: &Path, _: &Options) -> Result<Lora> {
    let dir = lowrank_adapters::adapter_folder(dir);
    let path = dir.join(CONFIG_FILE);
    let config = Value::Object(read_config(dir)?);
    let kind = config["fine_tune_type"].as_str().unwrap_or("lora");
    if kind != "lora" {
        return Err(Error::file(&path, format!("fine_tune_type is {kind:?}; this needs a LoRA adapter")));
    }
    let parameters = &config["lora_parameters"];
    let scale = parameters["scale"].as_f64().filter(|s| s.is_finite());
    let scale =
        scale.ok_or_else(|| Error::file(&path, "lora_parameters.scale is missing or not a number"))?;
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let mut unknown = Vec::new();
    let file = dir.join(TENSORS_FILE);
    for (name, tensor) in tensor::read(&file)? {
        let matrix = tensor.shape.len() == 2;
        match (name.strip_suffix(".lora_a"), name.strip_suffix(".lora_b")) {
            (Some(module), _) if matrix => {
                halves.entry(module.to_owned()).or_default().a = Some(tensor.transposed());
            }
            (_, Some(module)) if matrix => {
                halves.entry(module.to_owned()).or_default().b = Some(tensor.transposed());
            }
            _ => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        return Err(Error::names(format!("{}: no part of a LoRA known here", file.display()), unknown));
    }
    let mut lora =
        Lora { pairs: pairs(&file, halves, |_, rank| tidy(scale * rank as f64))?, ..Lora::default() };
    for (module, pair) in &mut lora.pairs {
        *pair = pair.trimmed();
        pair.alpha = tidy(scale * pair.rank() as f64);
        if EMBEDDINGS.contains(&module.rsplit('.').next().unwrap_or(module)) {
            pair.kind = Kind::Embedding;
        }
    }
    if let Some(dropout) = parameters["dropout"].as_f64() {
        lora.config.insert("lora_dropout".into(), json!(dropout));
    }
    if let Some(model) = config["model"].as_str() {
        lora.config.insert("base_model_name_or_path".into(), json!(model));
    }
    Ok(lora)
}

/// The configuration of an MLX adapter folder.
pub(crate) fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    Ok(lowrank_files::read_object(&dir.join(CONFIG_FILE))?)
}

/// Writes an MLX adapter folder.
///
/// # Errors
/// Names what MLX has no place for.
pub fn write(lora: &Lora, dir: &Path, _: &Options) -> Result<()> {
    if !lora.saved.is_empty() {
        return Err(Error::names("the format mlx has no place for", lora.saved.keys().cloned().collect()));
    }
    let convolutions = lora.pairs.iter().filter(|(_, pair)| pair.a.shape.len() != 2);
    let convolutions: Vec<String> = convolutions.map(|(module, _)| module.clone()).collect();
    if !convolutions.is_empty() {
        return Err(Error::names("the format mlx has no place for", convolutions));
    }
    // One rank and one scale for all: smaller ranks get zeros, and what a scale differs by goes into B.
    let rank = lora.pairs.values().map(Pair::rank).max().unwrap_or(1);
    let scales = lora.pairs.values().map(|pair| tidy(pair.scaling())).filter(|scale| *scale != 0.0);
    let scale = most_common(scales).unwrap_or(1.0);
    let mut tensors = Named::new();
    let mut keys = BTreeSet::new();
    for (module, pair) in &lora.pairs {
        let mut pair = pair.padded(rank);
        if tidy(pair.scaling()) != scale {
            pair = pair.with_alpha(module, scale * rank as f64)?;
        }
        tensors.insert(format!("{module}.lora_a"), pair.a.transposed());
        tensors.insert(format!("{module}.lora_b"), pair.b.transposed());
        keys.insert(key(module));
    }
    let config = json!({
        "fine_tune_type": "lora",
        "model": lora.config.get("base_model_name_or_path").unwrap_or(&Value::Null),
        // All layers: mlx-lm counts from the last one, and -1 means every one.
        "num_layers": -1,
        "lora_parameters": {
            "rank": rank,
            "scale": number(scale),
            "dropout": lora.config.get("lora_dropout").cloned().unwrap_or(json!(0.0)),
            "keys": keys,
        },
    });
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    tensor::write(&dir.join(TENSORS_FILE), &tensors, &[("format", "mlx")])?;
    let text = serde_json::to_string_pretty(&config).expect("plain data") + "\n";
    Ok(write_atomic(&dir.join(CONFIG_FILE), text.as_bytes())?)
}

/// The module's name within its layer; the whole path for one outside the layers.
fn key(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    let layer = parts.iter().position(|part| part.parse::<usize>().is_ok());
    layer.map_or_else(|| module.to_owned(), |at| parts[at + 1..].join("."))
}

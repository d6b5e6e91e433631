//! PEFT's adapter folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use lowrank_adapters::CONFIG_FILE;
use lowrank_adapters::{LoraConfig, Pattern, TENSORS_FILE, peft_names, targets};
use lowrank_engine::{Site, SiteKind};
use lowrank_files::{MAX_CONFIG, read_limited, write_atomic};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options, pairs};
use crate::lora::most_common;
use crate::lora::{Kind, Lora, Pair};
use crate::tensor::{self, Named};

/// PEFT's folder: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
pub const FORMAT: FileFormat =
    FileFormat { name: "peft", matches: |at| at.is_peft(), pipeline: false, read, write };

/// PEFT puts this before the module path.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The error for a file of tensors without the configuration.
pub(crate) const ALONE: &str =
    "holds tensors of a PEFT adapter, whose alpha is in its adapter_config.json: give the folder with both";
/// PEFT's, where `lora_alpha` is null or missing.
const DEFAULT_ALPHA: f64 = 8.0;
/// Endings of the tensors of a pair.
const SUFFIXES: &[&str] = &["lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B"];

/// Fields that make a LoRA more than pairs of matrices.
const VARIANTS: [&str; 9] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "target_parameters",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
];

/// The configuration and all tensors of an adapter folder of any kind, as they are.
///
/// # Errors
/// Where a file is missing or damaged.
pub fn read_raw(dir: &Path) -> Result<(Map<String, Value>, Named)> {
    let file = lowrank_adapters::tensors_file(dir);
    let path = lowrank_adapters::adapter_folder(dir).join(CONFIG_FILE);
    let text = read_limited(&path, MAX_CONFIG)?;
    let config = match serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string()))? {
        Value::Object(config) => config,
        _ => return Err(Error::file(&path, "is not a JSON object")),
    };
    Ok((config, tensor::read(&file)?))
}

/// Writes an adapter folder of any kind.
///
/// # Errors
/// Where it cannot be written.
pub fn write_raw(dir: &Path, config: &Map<String, Value>, tensors: &Named) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    tensor::write(&dir.join(TENSORS_FILE), tensors, &[("format", "pt")])?;
    let text = serde_json::to_string_pretty(config).expect("plain data") + "\n";
    Ok(write_atomic(&dir.join(CONFIG_FILE), text.as_bytes())?)
}

/// Reads a LoRA adapter.
///
/// # Errors
/// Where it is none (DoRA, IA3 and others have no pairs alone), or a tensor has no meaning.
pub fn read(dir: &Path, _: &Options) -> Result<Lora> {
    let (config, mut tensors) = read_raw(dir)?;
    let path = lowrank_adapters::adapter_folder(dir).join(CONFIG_FILE);
    let wrong = |field: &str, what: String| Error::file(&path, format!("{field}: {what}"));
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or_default();
    if kind != "LORA" {
        return Err(wrong("peft_type", format!("is {kind:?}; this needs a LoRA adapter")));
    }
    for field in VARIANTS {
        match config.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(value) => return Err(wrong(field, format!("is {value}; this needs a plain LoRA adapter"))),
        }
    }
    let alpha = match config.get("lora_alpha") {
        None | Some(Value::Null) => DEFAULT_ALPHA,
        Some(value) => {
            value.as_f64().ok_or_else(|| wrong("lora_alpha", format!("{value} is not a number")))?
        }
    };
    let rslora = config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
    let patterns = patterns(config.get("alpha_pattern")).map_err(|what| wrong("alpha_pattern", what))?;
    let names = peft_names(tensors.keys().map(String::as_str), SUFFIXES).map_err(|e| Error::file(dir, e))?;

    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let mut embeddings = BTreeSet::new();
    let mut saved = Named::new();
    for (name, stored) in names.of {
        let Some(tensor) = tensors.remove(&stored) else { continue };
        let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
        let end = |end: &str| name.strip_suffix(end).map(str::to_owned);
        if let Some(module) = end(".lora_A.weight") {
            halves.entry(module).or_default().a = Some(tensor);
        } else if let Some(module) = end(".lora_B.weight") {
            halves.entry(module).or_default().b = Some(tensor);
        } else if let Some(module) = end(".lora_embedding_A") {
            embeddings.insert(module.clone());
            halves.entry(module).or_default().a = Some(tensor);
        } else if let Some(module) = end(".lora_embedding_B") {
            halves.entry(module).or_default().b = Some(tensor);
        } else if name.contains(".base_layer.") {
            // The base's own, which PEFT adds where an embedding is adapted.
            continue;
        } else if name.contains(".lora_") {
            return Err(Error::names(format!("{}: no part of a plain LoRA", dir.display()), vec![name]));
        } else {
            saved.insert(name, tensor);
        }
    }
    let own = halves.keys().map(|module| Ok((module.clone(), first_match(&patterns, module)?)));
    let own: BTreeMap<String, Option<f64>> = own.collect::<Result<_>>()?;
    let alpha_of = |module: &str, rank: usize| {
        let alpha = own.get(module).copied().flatten().unwrap_or(alpha);
        // A scaling of alpha / sqrt(r) is that of another alpha over r.
        if rslora { alpha * (rank as f64).sqrt() } else { alpha }
    };
    let mut pairs = pairs(dir, halves, alpha_of)?;
    for module in embeddings {
        if let Some(pair) = pairs.get_mut(&module) {
            pair.kind = Kind::Embedding;
        }
    }
    Ok(Lora { pairs, saved, config, origin: None })
}

/// The numbers of a pattern's map.
pub(crate) fn patterns(value: Option<&Value>) -> Result<Vec<(Pattern, f64)>, String> {
    let Some(Value::Object(map)) = value else { return Ok(Vec::new()) };
    let pattern = |(key, value): (&String, &Value)| {
        let alpha = value.as_f64().filter(|a| a.is_finite());
        let alpha = alpha.ok_or_else(|| format!("{key:?}: {value} is not a number"))?;
        Ok((Pattern::end(key).map_err(|e| e.to_string())?, alpha))
    };
    map.iter().map(pattern).collect()
}

/// The number of the first pattern that matches.
pub(crate) fn first_match(patterns: &[(Pattern, f64)], module: &str) -> Result<Option<f64>> {
    for (pattern, value) in patterns {
        if pattern.is_match(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Writes a LoRA adapter. Rank and alpha of most pairs become `r` and `lora_alpha`, others go to the patterns.
///
/// # Errors
/// Where it cannot be written, or belongs to several models of a pipeline.
pub fn write(lora: &Lora, dir: &Path, options: &Options) -> Result<()> {
    let lora = &super::pipeline::one_component(lora, options)?;
    let mut config = lora.config.clone();
    let rslora = config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
    let alpha = |pair: &Pair| match rslora {
        true => tidy(pair.alpha / (pair.rank() as f64).sqrt()),
        false => tidy(pair.alpha),
    };
    let r = most_common(lora.pairs.values().map(Pair::rank)).unwrap_or(1);
    let lora_alpha = most_common(lora.pairs.values().map(alpha)).unwrap_or(r as f64);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (path, pair) in &lora.pairs {
        if pair.rank() != r {
            ranks.insert(regex::escape(path), json!(pair.rank()));
        }
        if alpha(pair) != lora_alpha {
            alphas.insert(regex::escape(path), number(alpha(pair)));
        }
    }
    let defaults = [
        ("peft_type", json!("LORA")),
        ("task_type", Value::Null),
        ("base_model_name_or_path", Value::Null),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("lora_dropout", json!(0.0)),
        ("use_rslora", json!(false)),
    ];
    for (field, value) in defaults {
        config.entry(field).or_insert(value);
    }
    config.insert("r".into(), json!(r));
    config.insert("lora_alpha".into(), number(lora_alpha));
    config.insert("rank_pattern".into(), Value::Object(ranks));
    config.insert("alpha_pattern".into(), Value::Object(alphas));
    if !names_its_pairs(&config, lora) {
        let (names, layers) = target_modules(lora);
        config.insert("target_modules".into(), json!(names));
        config.insert("layers_to_transform".into(), json!(layers));
        config.insert("layers_pattern".into(), Value::Null);
        config.insert("exclude_modules".into(), Value::Null);
    }
    if config.get("modules_to_save").is_none_or(Value::is_null) {
        config.insert("modules_to_save".into(), modules_to_save(lora));
    }
    write_raw(dir, &config, &tensors(lora))
}

/// The tensors under PEFT's names.
pub(crate) fn tensors(lora: &Lora) -> Named {
    let mut tensors = Named::new();
    for (path, pair) in &lora.pairs {
        let (a, b) = match pair.kind {
            Kind::Linear => ("lora_A.weight", "lora_B.weight"),
            Kind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
        };
        tensors.insert(format!("{PREFIX}{path}.{a}"), pair.a.clone());
        tensors.insert(format!("{PREFIX}{path}.{b}"), pair.b.clone());
    }
    tensors.extend(lora.saved.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone())));
    tensors
}

/// A division and a multiplication by a root leave the last bits wrong.
pub(crate) fn tidy(value: f64) -> f64 {
    let near = (value * 1e6).round() / 1e6;
    if (value - near).abs() <= 1e-12 * value.abs() { near } else { value }
}

/// Whole numbers without a point, as PEFT writes them.
pub(crate) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// Whether the modules that a configuration names are all that have pairs.
fn names_its_pairs(config: &Map<String, Value>, lora: &Lora) -> bool {
    if config.get("target_modules").is_none_or(Value::is_null) {
        return false;
    }
    let site = |(path, pair): (&String, &Pair)| Site {
        path: path.clone(),
        kind: if pair.kind == Kind::Embedding { SiteKind::Embedding } else { SiteKind::Linear },
        in_features: pair.inputs(),
        out_features: pair.outputs(),
        bias: false,
    };
    let sites: Vec<Site> = lora.pairs.iter().map(site).collect();
    let config = serde_json::from_value::<LoraConfig>(Value::Object(config.clone()));
    let found = config.ok().and_then(|config| targets(&config, &sites).ok());
    found.is_some_and(|found| found.len() == sites.len())
}

/// Names that match the adapted modules and no others, whatever the base: the part of the path behind the layer's number
/// for modules of all the layers returned, else the whole path.
pub(crate) fn target_modules(lora: &Lora) -> (Vec<String>, Option<Vec<usize>>) {
    // PEFT finds a layer's number behind two other parts.
    let split = |path: &str| {
        let parts: Vec<&str> = path.split('.').collect();
        let at = parts.iter().position(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))?;
        let (layer, rest): (usize, _) = (parts[at].parse().ok()?, parts[at + 1..].join("."));
        (at >= 2 && !rest.is_empty()).then(|| (parts[..at].join("."), layer, rest))
    };
    let mut layers: BTreeMap<(String, String), BTreeSet<usize>> = BTreeMap::new();
    for (before, layer, rest) in lora.pairs.keys().filter_map(|path| split(path)) {
        layers.entry((before, rest)).or_default().insert(layer);
    }
    let all: BTreeSet<usize> = layers.values().flatten().copied().collect();
    let stacks: BTreeSet<&String> = layers.keys().map(|(before, _)| before).collect();
    let (mut names, mut some) = (BTreeSet::new(), false);
    for path in lora.pairs.keys() {
        let short = split(path)
            .filter(|(before, _, rest)| stacks.len() == 1 && layers[&(before.clone(), rest.clone())] == all);
        some |= short.is_some();
        names.insert(short.map_or_else(|| path.clone(), |(_, _, rest)| rest));
    }
    (names.into_iter().collect(), some.then(|| all.into_iter().collect()))
}

/// The modules whose tensors are kept whole: the first part of the path, or the path of a lone parameter.
fn modules_to_save(lora: &Lora) -> Value {
    let mut names: Vec<&str> = lora.saved.keys().filter_map(|name| name.split('.').next()).collect();
    names.dedup();
    if names.is_empty() { Value::Null } else { json!(names) }
}

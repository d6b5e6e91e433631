//! Files of diffusers: `MODEL.PATH.lora_A.weight` and `lora_B.weight` with MODEL `unet`, `transformer`, `text_encoder` and
//! others, or without; ranks and alphas as PEFT's words in the file's metadata, or alphas as tensors. Older files have
//! `lora.down.weight` and `lora.up.weight` instead, some with the names of attention processors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options, only_linear, pairs};
use crate::formats::peft::{ALONE, PREFIX, first_match, number, patterns};
use crate::formats::pipeline::{self, Part, component_of, metadata, with_component};
use crate::lora::most_common;
use crate::lora::{Lora, Pair, PairNames};
use crate::tensor::{self, Tensor};

/// The file of diffusers: `pytorch_lora_weights.safetensors`.
pub const FORMAT: FileFormat = FileFormat {
    name: "diffusers",
    matches: |at| {
        let ends = [".lora_A.weight", "lora.down.weight", ".lora_linear_layer.down.weight"];
        at.has_file(TENSORS_FILE) || ends.iter().any(|end| at.has_tensor(end))
    },
    pipeline: true,
    read,
    write,
};

/// The tensors' file in a folder.
pub const TENSORS_FILE: &str = "pytorch_lora_weights.safetensors";
/// Where the metadata keeps the configuration.
const METADATA: &str = "lora_adapter_metadata";
/// Endings of A and of B, newest first.
const ENDS: [(&str, &str); 3] = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
];

fn file_at(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|e| e == "safetensors") {
        path.to_owned()
    } else {
        path.join(TENSORS_FILE)
    }
}

/// Reads a file of diffusers, or the folder that holds it.
///
/// # Errors
/// Names the tensors that are no part of a plain LoRA.
pub fn read(path: &Path, _: &Options) -> Result<Lora> {
    let path = &file_at(path);
    let found = pipeline::read(path, FORMAT.name, |name| {
        let new = modern(name);
        let part = ENDS.iter().find_map(|(a, b)| {
            let side = new.strip_suffix(a).map(|module| (module, Part::A));
            side.or_else(|| new.strip_suffix(b).map(|module| (module, Part::B)))
        });
        let (module, part) = part.or_else(|| Some((new.strip_suffix(".alpha")?, Part::Alpha)))?;
        (!module.is_empty()).then(|| (module.to_owned(), part))
    })?;
    if found.halves.keys().any(|name| name.starts_with(PREFIX)) {
        return Err(Error::file(path, ALONE));
    }
    let mut lora = Lora { origin: Some(found.origin), ..Lora::default() };
    let config = match lora.origin.as_ref().and_then(|origin| origin.metadata.get(METADATA)) {
        Some(text) => {
            serde_json::from_str(text).map_err(|e| Error::file(path, format!("{METADATA}: {e}")))?
        }
        None => Value::Null,
    };
    let mut alphas = BTreeMap::new();
    for (module, half) in &found.halves {
        let Some(rank) = half.a.as_ref().map(Tensor::rows) else { continue };
        let (model, rest) = split(&lora, module);
        let field = |name: &str| config.get(format!("{model}{name}"));
        let wrong = |what| Error::file(path, format!("{METADATA}: {model}alpha_pattern: {what}"));
        let own = first_match(&patterns(field("alpha_pattern")).map_err(wrong)?, rest)?;
        let all = || field("lora_alpha").and_then(Value::as_f64);
        // Without either diffusers takes the rank of the model's first layer for all of them.
        let first = || {
            let same = |(other, _): &(&String, &Halves)| split(&lora, other).0 == model;
            found.halves.iter().find(same).and_then(|(_, half)| half.a.as_ref()).map(|a| a.rows() as f64)
        };
        let alpha = own.or_else(all).or_else(first).unwrap_or(rank as f64);
        let rslora = field("use_rslora").and_then(Value::as_bool) == Some(true);
        alphas.insert(module.clone(), if rslora { alpha * (rank as f64).sqrt() } else { alpha });
    }
    lora.pairs =
        pairs(path, found.halves, |module, rank| alphas.get(module).copied().unwrap_or(rank as f64))?;
    Ok(lora)
}

/// The model's name with its dot, or nothing, and the path in the model.
fn split<'a>(lora: &Lora, module: &'a str) -> (&'a str, &'a str) {
    module.split_at(component_of(lora, module).map_or(0, |model| model.len() + 1))
}

/// Names of attention layers as they were, in the UNet and in text encoders.
const OLD_LAYERS: [(&str, &str, &str); 4] = [
    ("to_q", "to_q", "q_proj"),
    ("to_k", "to_k", "k_proj"),
    ("to_v", "to_v", "v_proj"),
    ("to_out", "to_out.0", "out_proj"),
];

/// `attn1.processor.to_q_lora.down.weight` in today's words: `attn1.to_q.lora.down.weight`.
fn modern(name: &str) -> String {
    let name = name.replace(".processor.", ".");
    for (old, unet, text_encoder) in OLD_LAYERS {
        if let Some((before, end)) = name.split_once(&format!(".{old}_lora.")) {
            let layer = if name.starts_with("text_encoder") { text_encoder } else { unet };
            return format!("{before}.{layer}.lora.{end}");
        }
    }
    name
}

/// Writes a file of diffusers (`.safetensors`), or the folder that holds it.
///
/// # Errors
/// Names the modules that belong to none of a pipeline's models.
pub fn write(lora: &Lora, path: &Path, options: &Options) -> Result<()> {
    only_linear(lora, &FORMAT)?;
    let lora = &with_component(lora, options)?;
    let fresh = |module: &str| {
        let (a, b) = (format!("{module}{}", ENDS[0].0), format!("{module}{}", ENDS[0].1));
        Some(PairNames { a, b, alpha: None })
    };
    // diffusers takes alphas as tensors or as metadata, not both.
    let origin = lora.origin.as_ref().filter(|origin| origin.format == FORMAT.name);
    let as_tensors = origin.is_some_and(|origin| origin.names.values().any(|names| names.alpha.is_some()));
    let tensors = pipeline::tensors(lora, FORMAT.name, fresh, |_| as_tensors)?;
    let mut models: BTreeMap<&str, Vec<(&str, &Pair)>> = BTreeMap::new();
    for (module, pair) in &lora.pairs {
        let (model, rest) = split(lora, module);
        models.entry(model).or_default().push((rest, pair));
    }
    let mut config = Map::new();
    for (model, pairs) in models {
        let r = most_common(pairs.iter().map(|(_, p)| p.rank())).unwrap_or(1);
        let alpha = most_common(pairs.iter().map(|(_, p)| p.alpha)).unwrap_or(1.0);
        let key = |module: &str| regex::escape(module);
        let ranks = pairs.iter().filter(|(_, p)| p.rank() != r).map(|(m, p)| (key(m), json!(p.rank())));
        let alphas = pairs.iter().filter(|(_, p)| p.alpha != alpha).map(|(m, p)| (key(m), number(p.alpha)));
        let (ranks, alphas) = (ranks.collect::<Map<_, _>>(), alphas.collect::<Map<_, _>>());
        let names: Vec<&str> = pairs.iter().map(|(m, _)| *m).collect();
        for (field, value) in [
            ("r", json!(r)),
            ("lora_alpha", number(alpha)),
            ("rank_pattern", ranks.into()),
            ("alpha_pattern", alphas.into()),
            ("target_modules", json!(names)),
            ("peft_type", json!("LORA")),
            ("use_rslora", json!(false)),
        ] {
            config.insert(format!("{model}{field}"), value);
        }
    }
    let path = file_at(path);
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    let text = serde_json::to_string_pretty(&config).expect("plain data");
    let own = [("format", "pt"), (METADATA, &text)];
    let mut metadata = metadata(lora, FORMAT.name, &own);
    metadata.retain(|(key, _)| *key != METADATA || !as_tensors);
    tensor::write(&path, &tensors, &metadata)
}

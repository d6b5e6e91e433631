//! Files of diffusers: `MODEL.PATH.lora_A.weight` and `lora_B.weight` with MODEL `unet`, `text_encoder` or
//! `text_encoder_2`; ranks and alphas as PEFT's words in the file's metadata. Older files have `lora.down.weight`
//! and `lora.up.weight` instead, some with the names of attention processors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options, only_linear, pairs};
use crate::formats::peft::number;
use crate::formats::sd_names::{component_of, with_component};
use crate::lora::most_common;
use crate::lora::{Lora, Pair};
use crate::tensor::{self, Named};

/// The file of diffusers: `pytorch_lora_weights.safetensors`.
pub const FORMAT: FileFormat = FileFormat {
    name: "diffusers",
    matches: |at| at.has_file(TENSORS_FILE) || at.has_tensor(".lora_A.weight"),
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
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let mut others = Vec::new();
    for (name, tensor) in tensor::read(path)? {
        let new = modern(&name);
        let ends = ENDS.iter().find_map(|(a, b)| {
            let side = new.strip_suffix(a).map(|m| (m, true));
            side.or_else(|| new.strip_suffix(b).map(|m| (m, false)))
        });
        match (ends, new.strip_suffix(".alpha")) {
            (Some((module, is_a)), _) if component_of(module).is_some() => {
                let half = halves.entry(module.to_owned()).or_default();
                *(if is_a { &mut half.a } else { &mut half.b }) = Some(tensor);
            }
            (_, Some(module)) if tensor.data.len() == 1 => {
                halves.entry(module.to_owned()).or_default().alpha = Some(tensor.data[0].into());
            }
            _ => others.push(name),
        }
    }
    if !others.is_empty() {
        return Err(Error::names(
            format!("{}: no part of a plain LoRA of diffusers", path.display()),
            others,
        ));
    }
    let config = match tensor::metadata(path)?.get(METADATA) {
        Some(text) => {
            serde_json::from_str(text).map_err(|e| Error::file(path, format!("{METADATA}: {e}")))?
        }
        None => Value::Null,
    };
    let alpha = |module: &str, rank: usize| {
        let Some((model, rest)) = module.split_once('.') else { return rank as f64 };
        let own =
            config.get(format!("{model}.alpha_pattern")).and_then(|p| p.get(rest)).and_then(Value::as_f64);
        let all = || config.get(format!("{model}.lora_alpha")).and_then(Value::as_f64);
        // Without metadata diffusers takes the rank.
        let alpha = own.or_else(all).unwrap_or(rank as f64);
        match config.get(format!("{model}.use_rslora")).and_then(Value::as_bool) {
            Some(true) => alpha * (rank as f64).sqrt(),
            _ => alpha,
        }
    };
    Ok(Lora { pairs: pairs(path, halves, alpha)?, ..Lora::default() })
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
    let lora = with_component(lora, options)?;
    let mut tensors = Named::new();
    let mut models: BTreeMap<&str, Vec<(&str, &Pair)>> = BTreeMap::new();
    for (module, pair) in &lora.pairs {
        tensors.insert(format!("{module}.lora_A.weight"), pair.a.clone());
        tensors.insert(format!("{module}.lora_B.weight"), pair.b.clone());
        let (model, rest) = module.split_once('.').unwrap_or((module, ""));
        models.entry(model).or_default().push((rest, pair));
    }
    let mut config = Map::new();
    for (model, pairs) in models {
        let r = most_common(pairs.iter().map(|(_, p)| p.rank())).unwrap_or(1);
        let alpha = most_common(pairs.iter().map(|(_, p)| p.alpha)).unwrap_or(1.0);
        let ranks = pairs.iter().filter(|(_, p)| p.rank() != r).map(|(m, p)| ((*m).into(), json!(p.rank())));
        let alphas =
            pairs.iter().filter(|(_, p)| p.alpha != alpha).map(|(m, p)| ((*m).into(), number(p.alpha)));
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
            config.insert(format!("{model}.{field}"), value);
        }
    }
    let path = file_at(path);
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    let text = serde_json::to_string_pretty(&config).expect("plain data");
    tensor::write(&path, &tensors, &[("format", "pt"), (METADATA, &text)])
}

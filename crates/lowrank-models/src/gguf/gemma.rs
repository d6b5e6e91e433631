//! What Gemma's metadata says beyond Llama's. Some of `config.json` llama.cpp does not store but knows by the size
//! of the model: the scale of scores, and in Gemma 3 which layers have a window and their rope.

use std::path::Path;

use lowrank_files::{Gguf, GgufWriter};
use serde_json::{Map, Value, json};

use crate::gguf::config::round_f32;
use crate::{Error, Result};

/// The base of the rope of Gemma 3's layers with a window.
const LOCAL_BASE: f64 = 10_000.0;
/// One layer of so many sees everything, in Gemma 2 and 3.
const PATTERN: [(&str, u64); 2] = [("gemma2", 2), ("gemma3", 6)];

/// Whether `architecture` is one of Gemma's.
pub(super) fn is(architecture: &str) -> bool {
    matches!(architecture, "gemma" | "gemma2" | "gemma3")
}

/// The `query_pre_attn_scalar` that llama.cpp means: of the 27B models (46 and 62 layers) the width of all heads'
/// share, else the width of a head.
fn query_scalar(architecture: &str, config: &Map<String, Value>) -> u64 {
    let number = |name: &str| config.get(name).and_then(Value::as_u64).unwrap_or(0);
    match (architecture, number("num_hidden_layers")) {
        ("gemma2", 46) | ("gemma3", 62) => {
            number("hidden_size").checked_div(number("num_attention_heads")).unwrap_or(0)
        }
        _ => number("head_dim"),
    }
}

/// Adds to `config` the fields of Gemma's `config.json`.
pub(super) fn read(gguf: &Gguf, architecture: &str, config: &mut Map<String, Value>) -> Result<()> {
    let activation = if architecture == "gemma" { "hidden_act" } else { "hidden_activation" };
    config.insert(activation.into(), json!("gelu_pytorch_tanh"));
    if architecture == "gemma" {
        return Ok(());
    }
    let scalar = query_scalar(architecture, config);
    config.insert("query_pre_attn_scalar".into(), json!(scalar));
    for (field, otherwise) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        let cap = match gguf.float(&format!("{architecture}.{field}"))? {
            None if architecture == "gemma2" => Some(otherwise),
            cap => cap.filter(|cap| *cap > 0.0).map(round_f32),
        };
        config.insert(field.into(), json!(cap));
    }
    if architecture == "gemma3" {
        let local = gguf.float("gemma3.rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
        config.insert("rope_local_base_freq".into(), json!(round_f32(local)));
    }
    Ok(())
}

/// Writes those fields, where GGUF can say them.
pub(super) fn write(
    path: &Path,
    config: &Map<String, Value>,
    architecture: &str,
    out: &mut GgufWriter,
) -> Result<()> {
    let Some((_, pattern)) = PATTERN.into_iter().find(|(name, _)| *name == architecture) else {
        return Ok(());
    };
    let wrong = |field: &str| {
        let what = "has a value that GGUF cannot express for this model; write a Hugging Face folder instead";
        Error::field(path, field, what)
    };
    let number = |name: &str| config.get(name).and_then(Value::as_f64);
    if number("query_pre_attn_scalar").unwrap_or(256.0) != query_scalar(architecture, config) as f64 {
        return Err(wrong("query_pre_attn_scalar"));
    }
    if architecture == "gemma3" && number("sliding_window_pattern").is_some_and(|p| p != pattern as f64) {
        return Err(wrong("sliding_window_pattern"));
    }
    let usual = |(layer, kind): (usize, &Value)| {
        let sliding = !(layer as u64 + 1).is_multiple_of(pattern);
        kind.as_str() == Some(if sliding { "sliding_attention" } else { "full_attention" })
    };
    let types = config.get("layer_types").and_then(Value::as_array);
    if !types.is_none_or(|types| types.iter().enumerate().all(usual)) {
        return Err(wrong("layer_types"));
    }
    if architecture == "gemma3" {
        let local = number("rope_local_base_freq").unwrap_or(LOCAL_BASE);
        // llama.cpp has this number built in and reads the key only in newer versions.
        out.f32("gemma3.rope.freq_base_swa", local as f32)?;
    }
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        match (config.get(field), number(field)) {
            (_, Some(cap)) => out.f32(&format!("{architecture}.{field}"), cap as f32)?,
            (None, None) => {}
            // An absent key means Gemma 2's own cap, and there is no way to say none.
            (Some(_), None) if architecture == "gemma2" => return Err(wrong(field)),
            (Some(_), None) => {}
        }
    }
    Ok(())
}

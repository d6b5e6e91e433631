//! Quantized Hugging Face folders: matrices that `quantization_config` of `config.json` says are kept in several tensors.
//!
//! A scheme is one file here and one line of [`SCHEMES`]. It finds its matrices among the tensors and says how their
//! values are made of them; each then is one tensor `weight` like any other, which becomes blocks of nearly the size of
//! the file when it is first used.

mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod fp8;
mod gptq;
mod grid;
mod group;
mod matrix;
mod parts;

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Result, shown};
use crate::tensors::Tensors;
use parts::{Config, INSTEAD};

/// How a scheme reads a folder.
type Read = fn(&Config<'_>, &mut Tensors) -> Result<()>;

/// `quant_method` and its reader.
const SCHEMES: [(&str, Read); 6] = [
    ("fp8", fp8::read),
    ("fbgemm_fp8", fp8::read),
    ("gptq", gptq::read),
    ("awq", awq::read),
    ("bitsandbytes", bitsandbytes::read),
    ("compressed-tensors", compressed_tensors::read),
];

/// Makes one tensor of what a quantized folder keeps in several. `path` is its `config.json`, for messages.
///
/// # Errors
/// Where the method, or a setting of it, is not supported, or a tensor is missing or has another shape or type than the
/// settings say.
pub fn read_quantized(path: &Path, config: &Map<String, Value>, tensors: &mut Tensors) -> Result<()> {
    let Some(Value::Object(settings)) = config.get("quantization_config") else { return Ok(()) };
    let config = Config { path, settings };
    let method = match settings.get("quant_method").and_then(Value::as_str) {
        Some(method) => method,
        // As transformers takes files of before the field.
        None if ["load_in_4bit", "load_in_8bit"].iter().any(|key| settings.contains_key(*key)) => {
            "bitsandbytes"
        }
        None => return Err(config.wrong("quant_method", "is missing".into())),
    };
    match SCHEMES.iter().find(|(name, _)| *name == method) {
        Some((_, read)) => {
            read(&config, tensors)?;
            tensors.sweep();
            Ok(())
        }
        None => {
            let known: Vec<&str> = SCHEMES.iter().map(|(name, _)| *name).collect();
            let what = format!("{} is not supported ({} are): {INSTEAD}", shown(method), known.join(", "));
            Err(config.wrong("quant_method", what))
        }
    }
}

//! Reads the fields of `config.json`; errors name the field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// The fields that an architecture reads.
///
/// # Errors
/// Names the field that is missing or has a value of another kind.
pub(crate) fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    serde_path_to_error::deserialize(config).map_err(|e| {
        let field = e.path().to_string();
        match field.as_str() {
            "." | "" => wrong(e.into_inner()),
            _ => wrong(format!("{field}: {}", e.into_inner())),
        }
    })
}

/// An error of `config.json`; `what` begins with the field.
pub(crate) fn wrong(what: impl std::fmt::Display) -> Error {
    Error::Config(format!("config.json: {what}"))
}

/// Sizes of any architecture, with the least and most that makes a model. None of their products overflows.
const SIZES: &[(&str, u64, u64)] = &[
    ("vocab_size", 1, 1 << 31),
    ("hidden_size", 1, 1 << 24),
    ("intermediate_size", 1, 1 << 24),
    ("shared_intermediate_size", 1, 1 << 24),
    ("ffn_dim", 1, 1 << 24),
    ("word_embed_proj_dim", 1, 1 << 24),
    ("dim", 1, 1 << 24),
    ("hidden_dim", 1, 1 << 24),
    ("n_embd", 1, 1 << 24),
    ("n_inner", 1, 1 << 24),
    ("embedding_size", 1, 1 << 24),
    ("num_hidden_layers", 1, 1 << 12),
    ("n_layer", 1, 1 << 12),
    ("n_layers", 1, 1 << 12),
    ("num_attention_heads", 1, 1 << 20),
    ("num_key_value_heads", 1, 1 << 20),
    ("n_head", 1, 1 << 20),
    ("n_heads", 1, 1 << 20),
    ("head_dim", 1, 1 << 16),
    ("attention_head_size", 1, 1 << 16),
    ("max_position_embeddings", 1, 1 << 31),
    ("original_max_position_embeddings", 1, 1 << 31),
    ("n_positions", 1, 1 << 31),
    ("type_vocab_size", 0, 1 << 24),
    ("sliding_window", 0, 1 << 40),
    ("sliding_window_pattern", 0, 1 << 16),
    ("window_size", 1, 1 << 40),
    ("conv_kernel_size", 0, 1 << 16),
    ("conv_groups", 1, 1 << 24),
];

/// Numbers of any architecture that must be positive, and that may be 0.
const POSITIVE: &[&str] = &["rope_theta", "rope_local_base_freq", "query_pre_attn_scalar"];
const FROM_ZERO: &[&str] =
    &["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"];

/// Checks the numbers of a configuration that every architecture takes for granted; `has` says which fields this one has.
///
/// # Errors
/// Names the field and what it may be.
pub(crate) fn check_numbers(config: &Value, has: impl Fn(&str) -> bool) -> Result<()> {
    // What is no number at all, reading the field will say.
    let number = |name: &str| config.get(name).filter(|value| value.is_number() && has(name));
    for &(name, least, most) in SIZES {
        if let Some(value) = number(name)
            && !value.as_u64().is_some_and(|size| (least..=most).contains(&size))
        {
            return Err(wrong(format!("{name}: is {value}; expected a whole number from {least} to {most}")));
        }
    }
    for (names, least, range) in [(POSITIVE, f32::MIN_POSITIVE, "above 0"), (FROM_ZERO, 0.0, "from 0")] {
        for name in names {
            let float =
                |value: &Value| value.as_f64().is_some_and(|x| x as f32 >= least && (x as f32).is_finite());
            if let Some(value) = number(name).filter(|value| !float(value)) {
                return Err(wrong(format!("{name}: is {value}; expected a number {range}")));
            }
        }
    }
    Ok(())
}

/// Checks the sizes of an attention with rotary positions: query heads a multiple of the key heads, heads of an
/// even number of numbers.
///
/// # Errors
/// Names the field.
pub(crate) fn check_heads(heads: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
    if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(wrong(format!(
            "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 16 {
        return Err(wrong(format!("head_dim is {head_dim}; an even number is needed")));
    }
    Ok(())
}

/// Checks what transformers checks of every model: special tokens are numbers, and `layer_types`.
///
/// # Errors
/// Names the field.
pub(crate) fn check(config: &Map<String, Value>) -> Result<()> {
    for field in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        let number = |id: &Value| id.is_i64() || id.is_u64();
        let fits = match config.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::Array(ids)) => field == "eos_token_id" && ids.iter().all(number),
            Some(id) => number(id),
        };
        if !fits {
            return Err(wrong(format!("{field} is {}; the number of a token is needed", config[field])));
        }
    }
    check_layer_types(config)
}

/// Checks `layer_types`, where the configuration has them, as transformers does for every model: each is known, and
/// there is one for each layer.
///
/// # Errors
/// Names the field.
fn check_layer_types(config: &Map<String, Value>) -> Result<()> {
    let Some(types) = config.get("layer_types").filter(|types| !types.is_null()) else { return Ok(()) };
    let Some(types) = types.as_array() else {
        return Err(wrong(format!("layer_types is {types}; a list is needed")));
    };
    for kind in types {
        if !kind
            .as_str()
            .is_some_and(|kind| ["full_attention", "attention", "sliding_attention"].contains(&kind))
        {
            return Err(wrong(format!(
                "layer_types: {kind} is not known; known are full_attention, sliding_attention"
            )));
        }
    }
    match config.get("num_hidden_layers").and_then(Value::as_u64) {
        Some(layers) if layers != types.len() as u64 => {
            Err(wrong(format!("layer_types has {} entries for num_hidden_layers {layers}", types.len())))
        }
        _ => Ok(()),
    }
}

/// For each layer whether it sees a window only, from `layer_types` where the configuration has them, else
/// `otherwise(layer)`.
pub(crate) fn sliding_layers(
    types: Option<&[String]>,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Vec<bool> {
    match types {
        Some(types) => types.iter().map(|kind| kind == "sliding_attention").collect(),
        None => (0..layers).map(otherwise).collect(),
    }
}

/// Checks that the width is a multiple of the heads, which some models ask for though their heads have a width of their
/// own.
///
/// # Errors
/// Names the fields.
pub(crate) fn check_width(width: usize, heads: usize) -> Result<()> {
    match heads > 0 && width.is_multiple_of(heads) {
        true => Ok(()),
        false => Err(wrong(format!("hidden_size {width} is not a multiple of num_attention_heads {heads}"))),
    }
}

/// The window of each layer that has one.
///
/// # Errors
/// Where layers have one but the configuration says none, or it is 0.
pub(crate) fn windows(window: Option<usize>, sliding: &[bool]) -> Result<Vec<Option<usize>>> {
    if sliding.contains(&true) && window.is_none_or(|window| window == 0) {
        return Err(wrong("sliding_window must be at least 1: there are layers of sliding_attention"));
    }
    Ok(sliding.iter().map(|&sliding| window.filter(|_| sliding)).collect())
}

/// A switch that is off where the configuration lacks it.
///
/// # Errors
/// Where it is neither true nor false.
pub(crate) fn flag(config: &Value, field: &str) -> Result<bool> {
    match config.get(field) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(other) => Err(wrong(format!("{field} is {other}; true or false is needed"))),
    }
}

/// A configuration as the object that it is.
pub(crate) fn object(config: &Value) -> &Map<String, Value> {
    config.as_object().expect("an architecture is built from an object")
}

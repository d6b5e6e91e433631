//! Reads the fields of `config.json`; errors name the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

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

/// For each layer whether it sees a window only, from `layer_types` where the configuration has them, else
/// `otherwise(layer)`.
///
/// # Errors
/// Where there are fewer entries than layers, or one is unknown.
pub(crate) fn sliding_layers(
    types: Option<&[String]>,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let Some(types) = types else { return Ok((0..layers).map(otherwise).collect()) };
    if types.len() != layers {
        return Err(wrong(format!("layer_types has {} entries for num_hidden_layers {layers}", types.len())));
    }
    let one = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(wrong(format!(
            "layer_types: {other:?} is not known; known are full_attention, sliding_attention"
        ))),
    };
    types.iter().map(one).collect()
}

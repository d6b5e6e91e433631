//! GGUF metadata as a Hugging Face `config.json`, and the way back.

use std::f64::consts::TAU;
use std::path::Path;

use lowrank_files::{Gguf, GgufWriter, ROPE_FACTORS, Tensors, round_f32, shown};
use serde_json::{Map, Value, json};

use crate::arch::{by_gguf, gguf_architectures, gguf_of};
use crate::architecture::{GgufModel, INSTEAD};
use crate::config::GenerationConfig;
use crate::parts::rope::RopeParameters;
use crate::{Error, Result};

/// The `config.json` that the file's metadata amounts to.
pub(crate) fn hf_config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let architecture = gguf.architecture()?;
    let unknown = || {
        let what = format!(
            "{} is not supported; supported: {}",
            shown(architecture),
            gguf_architectures().join(", ")
        );
        Error::field(gguf.path(), "general.architecture", what)
    };
    by_gguf(architecture, false).ok_or_else(unknown)?;
    let key = |name: &str| format!("{architecture}.{name}");
    if gguf.integer(&key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(Error::field(gguf.path(), &key("expert_count"), "mixtures of experts are not supported"));
    }
    let window = gguf.integer(&key("attention.sliding_window"))?.filter(|window| *window > 0);
    let (model_type, model) = by_gguf(architecture, window.is_some()).ok_or_else(unknown)?;

    for (name, ..) in gguf.tensor_infos() {
        // Old files carry constants that every implementation computes for itself.
        if !model.holds(&model.names.to_hf(name)) && !name.ends_with(".attn_rot_embd.weight") {
            let what =
                format!("has no place in a model of architecture {architecture}: it would be left out");
            return Err(Error::tensor(gguf.path(), name, what));
        }
    }

    let hidden = gguf.size(&key("embedding_length"))?;
    let heads = gguf.size(&key("attention.head_count"))?;
    let kv_heads = match gguf.integer(&key("attention.head_count_kv"))? {
        Some(_) => gguf.size(&key("attention.head_count_kv"))?,
        None => heads,
    };
    let head_dim = match gguf.integer(&key("attention.key_length"))? {
        Some(_) => gguf.size(&key("attention.key_length"))?,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            let what = format!("{heads} heads do not divide the width {hidden}, and there is no key_length");
            return Err(Error::field(gguf.path(), &key("attention.head_count"), what));
        }
    };
    if head_dim % 2 != 0 {
        let what = format!("a head of {head_dim} numbers has no rotary halves");
        return Err(Error::field(gguf.path(), &key("attention.head_count"), what));
    }
    if let Some(value_dim) = gguf.integer(&key("attention.value_length"))?
        && value_dim != head_dim
    {
        let what = format!("is {value_dim}; heads whose values differ in length from keys are not supported");
        return Err(Error::field(gguf.path(), &key("attention.value_length"), what));
    }
    let vocab = match gguf.dims_of("token_embd.weight") {
        Some(&[_, vocab]) => vocab as u64,
        _ => return Err(Error::tensor(gguf.path(), "token_embd.weight", "is missing or not a matrix")),
    };
    let epsilon_key = key(&format!("attention.{}", model.epsilon.0));
    let epsilon = gguf.float(&epsilon_key)?.ok_or_else(|| gguf.lacks(&epsilon_key))?;
    if !(0.0..1.0).contains(&epsilon) {
        let what = format!("is {epsilon}; expected a number from 0, below 1");
        return Err(Error::field(gguf.path(), &epsilon_key, what));
    }
    let theta_key = key("rope.freq_base");
    let theta = gguf.float(&theta_key)?.unwrap_or(model.rope_theta);
    if !((theta as f32) > 0.0 && (theta as f32).is_finite()) {
        return Err(Error::field(gguf.path(), &theta_key, format!("is {theta}; expected a number above 0")));
    }

    let mut config = Map::new();
    let mut put = |name: &str, value: Value| config.insert(name.to_owned(), value);
    put("architectures", json!([model.class]));
    put("model_type", json!(model_type));
    put("hidden_size", json!(hidden));
    put("intermediate_size", json!(gguf.size(&key("feed_forward_length"))?));
    put("num_hidden_layers", json!(gguf.size(&key("block_count"))?));
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(kv_heads));
    put("head_dim", json!(head_dim));
    put("vocab_size", json!(vocab));
    put("max_position_embeddings", json!(gguf.size(&key("context_length"))?));
    put(model.epsilon.1, json!(round_f32(epsilon)));
    put("rope_theta", json!(round_f32(theta)));
    put("tie_word_embeddings", json!(gguf.dims_of("output.weight").is_none()));
    put("attention_dropout", json!(0.0));
    let rotary = gguf.integer(&key("rope.dimension_count"))?;
    if model.partial_rotary.is_some() {
        let rotary = rotary.unwrap_or(head_dim);
        if rotary == 0 || rotary > head_dim || rotary % 2 != 0 {
            let what = format!("is {rotary} of heads of {head_dim}; an even number from 2 is needed");
            return Err(Error::field(gguf.path(), &key("rope.dimension_count"), what));
        }
        put("partial_rotary_factor", json!(rotary as f64 / head_dim as f64));
    } else if let Some(rotary) = rotary.filter(|rotary| *rotary != head_dim) {
        let what = format!("is {rotary} of heads of {head_dim}; this architecture rotates all of a head");
        return Err(Error::field(gguf.path(), &key("rope.dimension_count"), what));
    }
    if let Some(window) = window {
        put("sliding_window", json!(window));
    }
    if let Some(scaling) = rope_scaling(gguf, model, theta, head_dim)? {
        put("rope_scaling", scaling);
    }
    (model.read)(gguf, &mut config)?;
    let mut put = |name: &str, value: Value| config.insert(name.to_owned(), value);
    for (name, key) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(id) = gguf.integer(key)? {
            put(name, json!(id));
        }
    }
    Ok(config)
}

fn rope_scaling(gguf: &Gguf, model: &GgufModel, theta: f64, head_dim: u64) -> Result<Option<Value>> {
    let key = |name: &str| format!("{}.rope.scaling.{name}", model.architecture);
    if let Some((_, dims, _)) = gguf.tensor_infos().find(|(name, ..)| *name == ROPE_FACTORS.0) {
        if let Some(kind) = gguf.string(&key("type"))?.filter(|kind| *kind != "none") {
            let what = format!(
                "is {} beside the tensor {}: one of them only is supported",
                shown(kind),
                ROPE_FACTORS.0
            );
            return Err(Error::field(gguf.path(), &key("type"), what));
        }
        // Llama 3's rule is only stored as its outcome. Where one of the usual settings gives these
        // factors we can name it; otherwise the tensor itself remains.
        let mut tensors = Tensors::default();
        gguf.add_tensors(&model.names, head_dim as usize, &mut tensors)?;
        let (factors, half) = (tensors.vector(ROPE_FACTORS.1)?, head_dim as usize / 2);
        if factors.len() != half {
            let what = format!("has shape {dims:?}; expected one factor for each of {half} rotary pairs");
            return Err(Error::tensor(gguf.path(), ROPE_FACTORS.0, what));
        }
        let factor = f64::from(factors.last().copied().unwrap_or(1.0));
        for original in [8192.0, 4096.0, 16384.0, 32768.0, 2048.0] {
            let guess = llama3_factors(theta, head_dim as usize, factor, 1.0, 4.0, original);
            if guess.iter().zip(&factors).all(|(a, b)| (a - f64::from(*b)).abs() <= 1e-4 * a.abs()) {
                return Ok(Some(json!({
                    "rope_type": "llama3",
                    "factor": round_f32(factor),
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": original as u64,
                })));
            }
        }
        return Ok(None);
    }
    let kind = gguf.string(&key("type"))?.unwrap_or("none");
    let factor = gguf.float(&key("factor"))?;
    if let Some(factor) = factor.filter(|factor| !(*factor >= 0.0 && (*factor as f32).is_finite())) {
        return Err(Error::field(
            gguf.path(),
            &key("factor"),
            format!("is {factor}; expected a number above 0"),
        ));
    }
    let factor = factor.filter(|factor| *factor > 0.0).map(round_f32);
    match (kind, factor) {
        ("none", _) | (_, None) => Ok(None),
        ("linear", Some(factor)) => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
        ("yarn", Some(factor)) => {
            let mut scaling = json!({ "rope_type": "yarn", "factor": factor });
            if let Some(original) = gguf.integer(&key("original_context_length"))? {
                scaling["original_max_position_embeddings"] = json!(original);
            }
            for (name, field) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                if let Some(beta) = gguf.float(&key(name))? {
                    scaling[field] = json!(round_f32(beta));
                }
            }
            // llama.cpp multiplies its factor by YaRN's own; Hugging Face's field is the product.
            if let Some(attention) = gguf.float(&key("attn_factor"))?
                && attention != 1.0
            {
                scaling["attention_factor"] = json!(attention * (0.1 * factor.ln() + 1.0));
            }
            Ok(Some(scaling))
        }
        (other, _) => {
            let what = format!("{} is not supported (none, linear, yarn are)", shown(other));
            Err(Error::field(gguf.path(), &key("type"), what))
        }
    }
}

/// Llama 3's divisors of the rotary frequencies, one for each pair: 1 for short wavelengths, `factor`
/// for long ones, a smooth way between (`_compute_llama3_parameters` of transformers).
fn llama3_factors(theta: f64, head_dim: usize, factor: f64, low: f64, high: f64, original: f64) -> Vec<f64> {
    let one = |pair: usize| {
        let wavelength = TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(one).collect()
}

/// The tensor `rope_freqs.weight` that a rope with Llama 3's scaling asks for.
pub(crate) fn factors_of(rope: &RopeParameters, head_dim: usize) -> Option<Vec<f32>> {
    if rope.kind != "llama3" {
        return None;
    }
    let (low, high) = (rope.low_freq_factor?, rope.high_freq_factor?);
    let factors = llama3_factors(rope.theta, head_dim, rope.factor?, low, high, rope.original);
    Some(factors.into_iter().map(|f| f as f32).collect())
}

pub(crate) fn head_dim(config: &Map<String, Value>) -> Option<u64> {
    let number = |name: &str| config.get(name).and_then(Value::as_u64);
    match number("head_dim") {
        Some(dim) => Some(dim),
        None => number("hidden_size")?.checked_div(number("num_attention_heads")?),
    }
}

/// Which token ids begin, end and pad a text.
pub(crate) fn generation(gguf: &Gguf) -> Result<GenerationConfig> {
    let id = |name: &str| -> Result<Option<u32>> {
        let value = gguf.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(value.and_then(|value| u32::try_from(value).ok()))
    };
    let mut eos = Vec::new();
    // End of text, of a turn, of a message: generation stops at any of them.
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = id(name)?
            && !eos.contains(&id)
        {
            eos.push(id);
        }
    }
    Ok(GenerationConfig { bos: id("bos")?, eos, pad: id("padding")?, ..GenerationConfig::default() })
}

/// Writes the metadata that describes the model of a `config.json`.
pub(crate) fn metadata_of(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    let wrong = |field: &str, what: &str| Error::field(path, field, what);
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    let model_type = text("model_type").ok_or_else(|| wrong("model_type", "is missing"))?;
    let model = gguf_of(model_type)
        .ok_or_else(|| wrong("model_type", &format!("{model_type} cannot be written as GGUF yet")))?;
    let architecture = model.architecture;
    let number = |name: &str| -> Result<u32> {
        let value = config.get(name).and_then(Value::as_u64).and_then(|v| u32::try_from(v).ok());
        value.ok_or_else(|| wrong(name, "is missing or not a whole number"))
    };
    let float = |name: &str| config.get(name).and_then(Value::as_f64).map(|v| v as f32);
    let rope = (model.rope)(config)?;
    let key = |name: &str| format!("{architecture}.{name}");
    out.string("general.architecture", architecture)?;
    out.string("general.type", "model")?;
    if let Some(name) = text("_name_or_path").filter(|name| !name.is_empty()) {
        out.string("general.name", name.rsplit('/').next().unwrap_or(name))?;
    }
    out.u32(&key("block_count"), number("num_hidden_layers")?)?;
    out.u32(&key("context_length"), number("max_position_embeddings")?)?;
    out.u32(&key("embedding_length"), number("hidden_size")?)?;
    out.u32(&key("feed_forward_length"), number("intermediate_size")?)?;
    let heads = number("num_attention_heads")?;
    out.u32(&key("attention.head_count"), heads)?;
    out.u32(&key("attention.head_count_kv"), number("num_key_value_heads").unwrap_or(heads))?;
    let head_dim = head_dim(config)
        .and_then(|dim| u32::try_from(dim).ok())
        .ok_or_else(|| wrong("head_dim", "cannot be told from hidden_size and num_attention_heads"))?;
    out.u32(&key("attention.key_length"), head_dim)?;
    out.u32(&key("attention.value_length"), head_dim)?;
    let share = rope.partial.or(model.partial_rotary).unwrap_or(1.0);
    out.u32(&key("rope.dimension_count"), (f64::from(head_dim) * share) as u32)?;
    out.f32(&key("rope.freq_base"), rope.theta as f32)?;
    let (epsilon_key, field) = model.epsilon;
    let epsilon = float(field).ok_or_else(|| wrong(field, "is missing"))?;
    out.f32(&key(&format!("attention.{epsilon_key}")), epsilon)?;
    out.u32(&key("vocab_size"), number("vocab_size")?)?;
    (model.write)(path, config, out)?;
    if rope.kind == "llama3" && !model.rope_factors {
        let what = format!("a GGUF file of {model_type} has no place for a rope of type llama3; {INSTEAD}");
        return Err(wrong("rope_scaling", &what));
    }
    write_rope(path, &rope, config, architecture, out)
}

/// Writes the scaling of a rope, where GGUF can say it.
fn write_rope(
    path: &Path,
    rope: &RopeParameters,
    config: &Map<String, Value>,
    architecture: &str,
    out: &mut GgufWriter,
) -> Result<()> {
    let wrong = |field: &str, what: &str| Error::field(path, field, what);
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let factor = match rope.factor {
        None if rope.kind == "yarn" => {
            let length = config.get("max_position_embeddings").and_then(Value::as_f64);
            length.map(|length| length / rope.original)
        }
        factor => factor,
    };
    match rope.kind.as_str() {
        // Llama 3's rule travels as the tensor `rope_freqs.weight`.
        "default" | "llama3" => return Ok(()),
        kind @ ("linear" | "yarn") => {
            out.string(&key("type"), kind)?;
            let factor = factor.ok_or_else(|| wrong("rope_scaling.factor", "is missing"))?;
            out.f32(&key("factor"), factor as f32)?;
            if kind == "linear" {
                return Ok(());
            }
            // llama.cpp multiplies its factor by YaRN's own; Hugging Face's field is the product.
            let own = 0.1 * factor.max(1.0).ln() + 1.0;
            let scaled = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let attention = match (rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
                (Some(given), _, _) => given,
                (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => scaled(m) / scaled(all),
                _ => own,
            };
            if !rope.truncate {
                return Err(wrong("rope_scaling.truncate", "is false, which GGUF has no word for"));
            }
            out.u32(&key("original_context_length"), rope.original as u32)?;
            for (name, beta) in [("yarn_beta_fast", rope.beta_fast), ("yarn_beta_slow", rope.beta_slow)] {
                if let Some(beta) = beta.filter(|beta| *beta != 0.0) {
                    out.f32(&key(name), beta as f32)?;
                }
            }
            if attention != own {
                out.f32(&key("attn_factor"), (attention / own) as f32)?;
            }
        }
        other => {
            let what = format!("GGUF has no {other} scaling; {INSTEAD}");
            return Err(wrong("rope_scaling", &what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected numbers: Llama 3.2 1B's `rope_freqs.weight` begins with ones and ends with 32.
    #[test]
    fn llama3_factors_go_from_one_to_the_factor() {
        let factors = llama3_factors(500_000.0, 64, 32.0, 1.0, 4.0, 8192.0);
        assert_eq!(factors.len(), 32);
        assert_eq!(factors[0], 1.0);
        assert_eq!(*factors.last().unwrap(), 32.0);
        assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(factors.iter().any(|f| *f > 1.0 && *f < 32.0));
    }
}

//! Command R (Cohere) and Command R7B, Command A (Cohere2): one layer norm without bias before attention and MLP side by side,
//! rotations whose pairs are neighbours, scaled logits; in Cohere2 three of four layers have a window, and the others do not
//! rotate. `transformers/models/{cohere,cohere2}` are followed.

use std::path::Path;

use lowrank_files::{Gguf, GgufWriter, round_f32};
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, GgufModel, INSTEAD, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, NormKind, Norms, Spec};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number, refuse};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "cohere",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "logit_scale": 0.0625,
            "num_hidden_layers": 40, "num_attention_heads": 64, "num_key_value_heads": null,
            "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
            "tie_word_embeddings": true, "attention_bias": false, "use_qk_norm": false, "pad_token_id": 0,
            "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: TIED,
        build: load,
        gguf: Some(GgufModel {
            epsilon: EPSILON,
            rope: |config| ROPE.parameters(config),
            read: |gguf, config| read_gguf(gguf, "command-r", config),
            write: |path, config, out| write_gguf(path, config, "command-r", out),
            ..GgufModel::usual("command-r", "CohereForCausalLM")
        }),
    },
    Architecture {
        model_type: "cohere2",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "logit_scale": 0.0625,
            "num_hidden_layers": 40, "num_attention_heads": 64, "num_key_value_heads": null,
            "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
            "tie_word_embeddings": true, "attention_bias": false, "sliding_window": 4096,
            "sliding_window_pattern": 4, "pad_token_id": 0, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: TIED,
        build: load2,
        gguf: Some(GgufModel {
            epsilon: EPSILON,
            read: |gguf, config| read_gguf(gguf, "cohere2", config),
            write: |path, config, out| {
                write_gguf(path, config, "cohere2", out)?;
                write_windows(path, config, out)
            },
            ..GgufModel::usual("cohere2", "Cohere2ForCausalLM")
        }),
    },
];

const TIED: Tied = Tied { default: true, ..Tied::DECODER };
const EPSILON: (&str, &str) = ("layer_norm_epsilon", "layer_norm_eps");
const ROPE: RopeKind = RopeKind { theta: 500_000.0, interleaved: true, ..RopeKind::LLAMA };
const ROPE2: RopeKind = RopeKind { interleaved: true, ..RopeKind::LLAMA };
/// One layer of so many sees everything, if the file does not say otherwise.
const PATTERN: u64 = 4;

fn spec(config: &Value, c: &Fields) -> Result<Spec> {
    let mut spec = c.spec(config, number(config, "layer_norm_eps")?)?;
    let bias = fields::flag(config, "attention_bias")?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    spec.norm = NormKind::Layer { bias: false, offset: 0.0 };
    spec.norms = Norms::Parallel("input_layernorm", None);
    spec.logit_scale = number(config, "logit_scale")? as f32;
    Ok(spec)
}

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = spec(config, &c)?;
    refuse(config, "use_qk_norm", "norms of queries and keys with weights for each head")?;
    spec.rotate(ROPE.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn load2(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = spec(config, &c)?;
    spec.rotate(ROPE2.read(config, &c)?);
    let sliding = sliding(config, &c)?;
    spec.slide(c.sliding_window, &sliding)?;
    for (layer, slides) in spec.layers.iter_mut().zip(sliding) {
        layer.rope = layer.rope.filter(|_| slides);
    }
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn sliding(config: &Value, c: &Fields) -> Result<Vec<bool>> {
    let pattern = config.get("sliding_window_pattern").and_then(Value::as_u64).filter(|every| *every > 0);
    if pattern.is_none() && c.layer_types.is_none() {
        return Err(fields::wrong("sliding_window_pattern must be at least 1"));
    }
    let pattern = pattern.unwrap_or(PATTERN) as usize;
    Ok(c.sliding(|layer| !(layer + 1).is_multiple_of(pattern)))
}

fn read_gguf(gguf: &Gguf, architecture: &str, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), "silu".into());
    config.insert("attention_bias".into(), false.into());
    let scale = gguf.float(&format!("{architecture}.logit_scale"))?.filter(|scale| *scale != 0.0);
    config.insert("logit_scale".into(), json!(scale.map_or(1.0, round_f32)));
    Ok(())
}

fn write_gguf(
    path: &Path,
    config: &Map<String, Value>,
    architecture: &str,
    out: &mut GgufWriter,
) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["silu", "swish"])?;
    let scale = config.get("logit_scale").and_then(Value::as_f64).unwrap_or(0.0625);
    out.f32(&format!("{architecture}.logit_scale"), scale as f32)?;
    Ok(())
}

fn write_windows(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    let config = Value::Object(config.clone());
    let c = Fields::read(&config)?;
    let usual = |(layer, slides): (usize, &bool)| *slides != (layer as u64 + 1).is_multiple_of(PATTERN);
    if !sliding(&config, &c)?.iter().enumerate().all(usual) {
        let what = format!(
            "differs from every {PATTERN}th layer that sees everything, which llama.cpp has built in; {INSTEAD}"
        );
        return Err(Error::field(path, "layer_types", what));
    }
    let window = c.sliding_window.and_then(|window| u32::try_from(window).ok());
    let window = window.ok_or_else(|| Error::field(path, "sliding_window", "is missing or too large"))?;
    Ok(out.u32("cohere2.attention.sliding_window", window)?)
}

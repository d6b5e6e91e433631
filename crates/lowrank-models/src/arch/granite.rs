//! Granite 3 and the dense models of Granite 4: Llama's block with four multipliers, of embeddings, scores, what is added,
//! and logits. `transformers/models/{granite,granitemoehybrid}` are followed.

use std::path::Path;

use lowrank_files::{Gguf, GgufWriter, round_f32};
use serde_json::{Map, Value, json};

use super::llama::LLAMA_GGUF;
use crate::Result;
use crate::architecture::{Architecture, GgufModel};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, Spec};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "granite",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "attention_bias": false, "mlp_bias": false, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
            "residual_multiplier": 1.0, "attention_multiplier": 1.0, "pad_token_id": null,
            "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: load,
        gguf: Some(GgufModel {
            architecture: "granite",
            class: "GraniteForCausalLM",
            read: read_gguf,
            write: write_gguf,
            ..LLAMA_GGUF
        }),
    },
    Architecture {
        model_type: "granitemoehybrid",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "attention_bias": false, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
            "residual_multiplier": 1.0, "attention_multiplier": 1.0, "num_local_experts": 8,
            "shared_intermediate_size": 1024, "position_embedding_type": null, "pad_token_id": null,
            "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: load_dense,
        gguf: None,
    },
];

/// Our field, and llama.cpp's key: it stores a divisor of logits as it is.
const MULTIPLIERS: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
];

fn spec(config: &Value, c: &Fields) -> Result<Spec> {
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    let bias = fields::flag(config, "attention_bias")?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    spec.scale = number(config, "attention_multiplier")? as f32;
    spec.embed_scale = number(config, "embedding_multiplier")? as f32;
    spec.residual_scale = number(config, "residual_multiplier")? as f32;
    let divisor = number(config, "logits_scaling")?;
    if divisor == 0.0 {
        return Err(fields::wrong("logits_scaling is 0; logits are divided by it"));
    }
    spec.logit_scale = (1.0 / divisor) as f32;
    Ok(spec)
}

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = spec(config, &c)?;
    spec.mlp_bias = fields::flag(config, "mlp_bias")?;
    spec.rotate(RopeKind::LLAMA.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn load_dense(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = spec(config, &c)?;
    if number(config, "num_local_experts")? != 0.0 {
        return Err(fields::wrong("num_local_experts is not 0: mixtures of experts are not supported"));
    }
    let attention = |kind: &String| kind == "attention" || kind == "full_attention";
    if !c.layer_types.as_ref().is_some_and(|kinds| kinds.iter().all(attention)) {
        return Err(fields::wrong("layer_types: layers other than attention are not supported"));
    }
    spec.mlp = Mlp::FusedGate;
    spec.names.gate_up = "shared_mlp.input_linear";
    spec.names.down = "shared_mlp.output_linear";
    spec.inner = number(config, "shared_intermediate_size")? as usize;
    match config["position_embedding_type"].as_str() {
        Some("rope") => spec.rotate(RopeKind::LLAMA.read(config, &c)?),
        None | Some("nope") => {}
        Some(other) => {
            return Err(fields::wrong(format!(
                "position_embedding_type {other:?} is not known; rope is, or null"
            )));
        }
    }
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn read_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    (LLAMA_GGUF.read)(gguf, config)?;
    let head_dim = config["head_dim"].as_f64().unwrap_or(1.0);
    for (field, key) in MULTIPLIERS {
        let value = gguf.float(&format!("granite.{key}"))?.filter(|value| *value != 0.0);
        // llama.cpp scales scores as usual where the file does not say how.
        let otherwise = if field == "attention_multiplier" { 1.0 / head_dim.sqrt() } else { 1.0 };
        config.insert(field.into(), json!(value.map_or(otherwise, round_f32)));
    }
    Ok(())
}

fn write_gguf(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    (LLAMA_GGUF.write)(path, config, out)?;
    for (field, key) in MULTIPLIERS {
        let value = config.get(field).and_then(Value::as_f64).unwrap_or(1.0);
        out.f32(&format!("granite.{key}"), value as f32)?;
    }
    Ok(())
}

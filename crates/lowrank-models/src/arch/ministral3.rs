//! Ministral 3: Mistral's block, whose queries grow with their position beyond the trained length.
//! `transformers/models/ministral3` is followed.

use std::path::Path;

use lowrank_files::{Gguf, GgufWriter, round_f32};
use serde_json::{Map, Value, json};

use super::llama::LLAMA_GGUF;
use crate::architecture::{Architecture, GgufModel, INSTEAD};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, QueryScale};
use crate::parts::fields;
use crate::parts::rope::{self, RopeParameters};
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "ministral3",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        "sliding_window": null, "pad_token_id": 11, "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: load,
    gguf: Some(GgufModel {
        architecture: "mistral3",
        class: "Ministral3ForCausalLM",
        rope: parameters,
        read: read_gguf,
        write: write_gguf,
        ..LLAMA_GGUF
    }),
}];

/// The rope of a configuration that has none.
fn usual(config: &Map<String, Value>) -> Map<String, Value> {
    let rope = json!({
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1
    });
    let mut config = config.clone();
    config.insert("rope_parameters".into(), rope);
    config
}

/// The configuration with its rope.
fn completed(config: &Map<String, Value>) -> Map<String, Value> {
    let given = |name: &str| config.get(name).is_some_and(|rope| !rope.is_null());
    if given("rope_parameters") || given("rope_scaling") { config.clone() } else { usual(config) }
}

fn parameters(config: &Map<String, Value>) -> Result<RopeParameters> {
    RopeKind::LLAMA.parameters(&completed(config))
}

/// How queries grow, where the rope says it.
fn query_scale(config: &Map<String, Value>) -> Result<Option<QueryScale>> {
    let (_, section) = rope::flat_section(&completed(config))?;
    let section = Value::Object(section);
    match section.get("llama_4_scaling_beta") {
        None | Some(Value::Null) => Ok(None),
        Some(_) => {
            let beta = number(&section, "llama_4_scaling_beta")?;
            let original = number(&section, "original_max_position_embeddings")?;
            if original <= 0.0 {
                return Err(fields::wrong("original_max_position_embeddings must be above 0"));
            }
            Ok(Some(QueryScale { beta, original }))
        }
    }
}

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    let map = completed(fields::object(config));
    spec.query_scale = query_scale(&map)?;
    spec.rotate(RopeKind::LLAMA.read(&Value::Object(map), &c)?);
    let sliding = vec![c.sliding_window.is_some(); c.num_hidden_layers];
    spec.slide(c.sliding_window, &sliding)?;
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn read_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    (LLAMA_GGUF.read)(gguf, config)?;
    let beta = gguf.float("mistral3.attention.temperature_scale")?.filter(|beta| *beta != 0.0);
    let theta = config.get("rope_theta").cloned().unwrap_or(json!(10000.0));
    let mut rope = match config.remove("rope_scaling") {
        Some(Value::Object(rope)) => rope,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    // llama.cpp divides what yarn makes of attention by what this says again.
    if let Some(all) = gguf.float("mistral3.rope.scaling.yarn_log_multiplier")?.filter(|all| *all != 0.0) {
        rope.insert("mscale".into(), json!(round_f32(all)));
        rope.insert("mscale_all_dim".into(), json!(round_f32(all)));
    }
    if let Some(beta) = beta {
        rope.insert("llama_4_scaling_beta".into(), json!(round_f32(beta)));
    }
    rope.insert("rope_theta".into(), theta);
    config.insert("rope_parameters".into(), Value::Object(rope));
    Ok(())
}

fn write_gguf(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    (LLAMA_GGUF.write)(path, config, out)?;
    let wrong = |field: &str| {
        let what = format!("has a value that GGUF cannot express for this model; {INSTEAD}");
        Error::field(path, field, what)
    };
    if config.get("sliding_window").is_some_and(|window| !window.is_null()) {
        return Err(wrong("sliding_window"));
    }
    let rope = parameters(config)?;
    if let Some(all) = rope.mscale_all_dim {
        if rope.mscale != Some(all) {
            return Err(wrong("rope_parameters.mscale"));
        }
        out.f32("mistral3.rope.scaling.yarn_log_multiplier", all as f32)?;
    }
    if let Some(scale) = query_scale(config)? {
        out.f32("mistral3.attention.temperature_scale", scale.beta as f32)?;
    }
    Ok(())
}

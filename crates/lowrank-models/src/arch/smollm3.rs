//! SmolLM3: Llama's block, in which every fourth layer does not rotate. `transformers/models/smollm3` is followed.

use std::path::Path;

use lowrank_files::GgufWriter;
use serde_json::{Map, Value};

use super::llama::LLAMA_GGUF;
use crate::architecture::{Architecture, GgufModel, INSTEAD};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::Decoder;
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "smollm3",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "use_sliding_window": false, "sliding_window": null, "no_rope_layers": null, "no_rope_layer_interval": 4,
        "attention_bias": false, "mlp_bias": false, "pad_token_id": 128004, "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied { default: true, ..Tied::DECODER },
    build: load,
    gguf: Some(GgufModel {
        architecture: "smollm3",
        class: "SmolLM3ForCausalLM",
        rope: |config| ROPE.parameters(config),
        write,
        ..LLAMA_GGUF
    }),
}];

const ROPE: RopeKind = RopeKind { theta: 2_000_000.0, ..RopeKind::LLAMA };
/// llama.cpp's layers without rotation, of which a file says nothing.
const INTERVAL: usize = 4;

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    let bias = fields::flag(config, "attention_bias")?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    spec.mlp_bias = fields::flag(config, "mlp_bias")?;
    spec.rotate(ROPE.read(config, &c)?);
    let rotates = rotating(fields::object(config), c.num_hidden_layers)?;
    for (layer, rotates) in spec.layers.iter_mut().zip(&rotates) {
        layer.rope = layer.rope.filter(|_| *rotates);
    }
    let window = c.sliding_window.filter(|_| config["use_sliding_window"] == Value::Bool(true));
    let sliding = c.sliding(|layer| window.is_some() && !rotates[layer]);
    let sliding: Vec<bool> = sliding.into_iter().map(|sliding| sliding && window.is_some()).collect();
    spec.slide(window, &sliding)?;
    Ok(Box::new(Decoder::load(spec, loader)?))
}

/// For each layer whether it rotates.
fn rotating(config: &Map<String, Value>, layers: usize) -> Result<Vec<bool>> {
    if let Some(list) = config.get("no_rope_layers").filter(|list| !list.is_null()) {
        let flags = list.as_array().map(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
        return match flags {
            Some(Some(flags)) if flags.len() == layers => {
                Ok(flags.into_iter().map(|flag| flag != 0).collect())
            }
            _ => Err(fields::wrong(format!("no_rope_layers: a list of {layers} numbers, 0 or 1, is needed"))),
        };
    }
    let interval = config.get("no_rope_layer_interval").and_then(Value::as_u64).filter(|every| *every > 0);
    let interval = interval
        .ok_or_else(|| fields::wrong("no_rope_layer_interval: a whole number from 1 is needed"))?
        as usize;
    Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect())
}

fn write(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    (LLAMA_GGUF.write)(path, config, out)?;
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or_default() as usize;
    let usual = |(layer, rotates): (usize, &bool)| *rotates != (layer + 1).is_multiple_of(INTERVAL);
    if !rotating(config, layers)?.iter().enumerate().all(usual) {
        let what = format!(
            "has layers without rotation other than every {INTERVAL}th, which GGUF has no word for; {INSTEAD}"
        );
        return Err(Error::field(path, "no_rope_layers", what));
    }
    if config.get("use_sliding_window") == Some(&Value::Bool(true)) {
        let what = format!("gives layers a window, which GGUF has no word for in this model; {INSTEAD}");
        return Err(Error::field(path, "use_sliding_window", what));
    }
    Ok(())
}

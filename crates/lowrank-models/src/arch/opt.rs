//! OPT: learned positions that begin with row 2, layer norms with bias, ReLU. OPT-350M norms sums instead, and has embeddings
//! of a width of their own. `transformers/models/opt` is followed; its dropouts are off.

use serde_json::Value;

use crate::Result;
use crate::architecture::Architecture;
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, Names, NormKind, Norms};
use crate::parts::fields;
use crate::parts::spec::Fields;
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "opt",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "do_layer_norm_before": true, "_remove_final_layer_norm": false,
        "word_embed_proj_dim": null, "num_attention_heads": 12, "activation_function": "relu",
        "enable_bias": true, "layer_norm_elementwise_affine": true, "tie_word_embeddings": true,
        "pad_token_id": 1, "init_std": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied { default: true, pairs: &[("lm_head.weight", "model.decoder.embed_tokens.weight")] },
    build: load,
    gguf: None,
}];

const NAMES: Names = Names {
    embed: "model.decoder.embed_tokens",
    positions: "model.decoder.embed_positions",
    layers: "model.decoder.layers",
    norm: "model.decoder.final_layer_norm",
    o: "self_attn.out_proj",
    up: "fc1",
    down: "fc2",
    ..Names::LLAMA
};

/// Rows of the table of positions that no token has.
const FIRST_POSITION: usize = 2;
/// PyTorch's, which no configuration changes.
const EPS: f64 = 1e-5;

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let before = fields::flag(config, "do_layer_norm_before")?;
    let mut spec = c.spec(config, EPS)?;
    if !fields::flag(config, "layer_norm_elementwise_affine")? {
        return Err(fields::wrong(
            "layer_norm_elementwise_affine is false: norms without weights are not supported",
        ));
    }
    let bias = fields::flag(config, "enable_bias")?;
    spec.names = NAMES;
    spec.kv_heads = spec.heads;
    spec.norm = NormKind::Layer { bias: true, offset: 0.0 };
    let norms = ("self_attn_layer_norm", "final_layer_norm");
    spec.norms = if before { Norms::Before(norms.0, norms.1) } else { Norms::Sum(norms.0, norms.1) };
    spec.last_norm = before && !fields::flag(config, "_remove_final_layer_norm")?;
    (spec.qkv_bias, spec.o_bias, spec.mlp_bias) = (bias, bias, bias);
    spec.mlp = Mlp::Plain;
    spec.learned_positions = Some(FIRST_POSITION);
    let width = config.get("word_embed_proj_dim").and_then(Value::as_u64).map(|width| width as usize);
    spec.embed_width = width.filter(|width| *width != spec.width);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

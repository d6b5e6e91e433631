//! Seed-OSS: Llama's block with biases of query, key and value, and a width of heads of its own.
//! `transformers/models/seed_oss` is followed; its dropouts are off.

use lowrank_files::GgufNames;
use serde_json::Value;

use crate::Result;
use crate::architecture::{Architecture, GgufModel};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::Decoder;
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "seed_oss",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 155136, "hidden_size": 4096, "intermediate_size": 27648, "num_hidden_layers": 64,
        "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 524288, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
        "attention_bias": true, "attention_out_bias": false, "mlp_bias": false, "pad_token_id": 1,
        "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: load,
    gguf: Some(GgufModel {
        names: GgufNames {
            block: &[("post_attention_norm", "post_attention_layernorm")],
            ..GgufNames::USUAL
        },
        biases: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        read: |gguf, config| {
            config.insert("hidden_act".into(), "silu".into());
            config.insert("attention_bias".into(), gguf.dims_of("blk.0.attn_q.bias").is_some().into());
            Ok(())
        },
        ..GgufModel::usual("seed_oss", "SeedOssForCausalLM")
    }),
}];

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    spec.qkv_bias = fields::flag(config, "attention_bias")?;
    spec.o_bias = fields::flag(config, "attention_out_bias")?;
    spec.mlp_bias = fields::flag(config, "mlp_bias")?;
    spec.rotate(RopeKind::LLAMA.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

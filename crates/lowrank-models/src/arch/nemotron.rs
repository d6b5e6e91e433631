//! Nemotron and Minitron: layer norms with `1 + w`, an MLP of squared ReLUs, rotations of half a head.
//! `transformers/models/nemotron` is followed.

use lowrank_files::GgufNames;
use serde_json::Value;

use crate::Result;
use crate::architecture::{Architecture, GgufModel, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, NormKind};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "nemotron",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 32,
        "num_attention_heads": 48, "head_dim": null, "num_key_value_heads": null, "hidden_act": "relu2",
        "max_position_embeddings": 4096, "norm_eps": 1e-5, "tie_word_embeddings": false,
        "attention_bias": false, "mlp_bias": false, "pad_token_id": null, "initializer_range": 0.0134
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: load,
    gguf: Some(GgufModel {
        names: GgufNames { norm_offset: 1.0, ..GgufNames::USUAL },
        epsilon: ("layer_norm_epsilon", "norm_eps"),
        biases: &[
            "input_layernorm",
            "post_attention_layernorm",
            "model.norm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ],
        partial_rotary: Some(0.5),
        rope: |config| ROPE.parameters(config),
        read: |gguf, config| {
            config.insert("hidden_act".into(), "relu2".into());
            config.insert("attention_bias".into(), gguf.dims_of("blk.0.attn_q.bias").is_some().into());
            config.insert("mlp_bias".into(), gguf.dims_of("blk.0.ffn_up.bias").is_some().into());
            Ok(())
        },
        write: |path, config, _| expect_activation(path, config, "hidden_act", &["relu2"]),
        ..GgufModel::usual("nemotron", "NemotronForCausalLM")
    }),
}];

const ROPE: RopeKind = RopeKind { partial: Some(0.5), ..RopeKind::LLAMA };

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "norm_eps")?)?;
    let bias = fields::flag(config, "attention_bias")?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    spec.mlp_bias = fields::flag(config, "mlp_bias")?;
    spec.norm = NormKind::Layer { bias: true, offset: 1.0 };
    spec.mlp = Mlp::Plain;
    spec.rotate(ROPE.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

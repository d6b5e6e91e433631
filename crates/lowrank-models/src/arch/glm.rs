//! GLM-4: rotations of half a head whose pairs are neighbours, gate and up in one projection; in `glm4` (GLM-4-0414) also
//! norms of what attention and MLP add. `transformers/models/{glm,glm4}` are followed.

use lowrank_files::GgufNames;
use serde_json::Value;

use crate::Result;
use crate::architecture::{Architecture, GgufModel};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, Norms, Spec};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "glm",
        prefix: "model",
        defaults: DEFAULTS,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: |config, loader| Ok(Box::new(Decoder::load(spec(config)?, loader)?)),
        gguf: None,
    },
    Architecture {
        model_type: "glm4",
        prefix: "model",
        defaults: DEFAULTS,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: load4,
        gguf: Some(GgufModel {
            names: GgufNames {
                block: &[
                    ("post_attention_norm", "post_self_attn_layernorm"),
                    ("ffn_up", "mlp.gate_up_proj"),
                    ("post_ffw_norm", "post_mlp_layernorm"),
                ],
                ..GgufNames::USUAL
            },
            biases: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            partial_rotary: Some(0.5),
            rope: |config| ROPE.parameters(config),
            read: |gguf, config| {
                config.insert("hidden_act".into(), "silu".into());
                config.insert("attention_bias".into(), gguf.dims_of("blk.0.attn_q.bias").is_some().into());
                Ok(())
            },
            ..GgufModel::usual("glm4", "Glm4ForCausalLM")
        }),
    },
];

const DEFAULTS: &str = r#"{
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 131072, "rms_norm_eps": 0.00000015625, "tie_word_embeddings": false,
    "attention_bias": true, "pad_token_id": 151329, "initializer_range": 0.02
}"#;

const ROPE: RopeKind = RopeKind { partial: Some(0.5), interleaved: true, ..RopeKind::LLAMA };

fn spec(config: &Value) -> Result<Spec> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    spec.qkv_bias = fields::flag(config, "attention_bias")?;
    spec.mlp = Mlp::FusedGate;
    spec.rotate(ROPE.read(config, &c)?);
    Ok(spec)
}

fn load4(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let mut spec = spec(config)?;
    spec.norms = Norms::Both([
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    ]);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

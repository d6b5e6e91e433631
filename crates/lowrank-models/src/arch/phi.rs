//! Phi-1, 1.5 and 2: one layer norm before attention and MLP side by side, biases everywhere, rotations of a part of a head.
//! `transformers/models/phi` is followed; its dropouts are off.

use lowrank_files::GgufNames;
use serde_json::Value;

use crate::Result;
use crate::architecture::{Architecture, GgufModel, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, NormKind, Norms};
use crate::parts::spec::{Fields, RopeKind, number, refuse};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "phi",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "gelu_new",
        "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "tie_word_embeddings": false,
        "qk_layernorm": false, "pad_token_id": null, "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: load,
    gguf: Some(GgufModel {
        names: GgufNames {
            outer: &[("output_norm", "model.final_layernorm")],
            block: &[("attn_output", "self_attn.dense"), ("ffn_up", "mlp.fc1"), ("ffn_down", "mlp.fc2")],
            ..GgufNames::USUAL
        },
        epsilon: ("layer_norm_epsilon", "layer_norm_eps"),
        biases: &[
            "input_layernorm",
            "model.final_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.dense",
            "mlp.fc1",
            "mlp.fc2",
            "lm_head",
        ],
        partial_rotary: Some(0.5),
        rope: |config| ROPE.parameters(config),
        read: |_, config| {
            config.insert("hidden_act".into(), "gelu_new".into());
            Ok(())
        },
        write: |path, config, _| {
            expect_activation(path, config, "hidden_act", &["gelu_new", "gelu_pytorch_tanh"])
        },
        ..GgufModel::usual("phi2", "PhiForCausalLM")
    }),
}];

const ROPE: RopeKind = RopeKind { partial: Some(0.5), ..RopeKind::LLAMA };

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "layer_norm_eps")?)?;
    refuse(config, "qk_layernorm", "layer norms of queries and keys")?;
    (spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.head_bias) = (true, true, true, true);
    spec.norm = NormKind::Layer { bias: true, offset: 0.0 };
    spec.norms = Norms::Parallel("input_layernorm", None);
    spec.mlp = Mlp::Plain;
    spec.names.o = "self_attn.dense";
    (spec.names.up, spec.names.down) = ("mlp.fc1", "mlp.fc2");
    spec.names.norm = "model.final_layernorm";
    spec.default_targets = &["q_proj", "v_proj", "fc1", "fc2"];
    spec.rotate(ROPE.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

//! StableLM: layer norms, rotations of a quarter of a head, in some models attention and MLP side by side.
//! `transformers/models/stablelm` is followed.

use std::path::Path;

use lowrank_files::{Gguf, GgufWriter};
use serde_json::{Map, Value};

use crate::Result;
use crate::architecture::{Architecture, GgufModel, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, NormKind, Norms};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number, refuse};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "stablelm",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "tie_word_embeddings": false,
        "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false, "pad_token_id": null,
        "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: load,
    gguf: Some(GgufModel {
        epsilon: ("layer_norm_epsilon", "layer_norm_eps"),
        biases: &[
            "input_layernorm",
            "post_attention_layernorm",
            "model.norm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
        ],
        partial_rotary: Some(0.25),
        rope: |config| ROPE.parameters(config),
        read,
        write,
        ..GgufModel::usual("stablelm", "StableLmForCausalLM")
    }),
}];

const ROPE: RopeKind = RopeKind { partial: Some(0.25), ..RopeKind::LLAMA };

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "layer_norm_eps")?)?;
    refuse(config, "qk_layernorm", "norms of queries and keys with weights for each head")?;
    spec.qkv_bias = fields::flag(config, "use_qkv_bias")?;
    spec.norm = NormKind::Layer { bias: true, offset: 0.0 };
    if fields::flag(config, "use_parallel_residual")? {
        spec.norms = Norms::Parallel("input_layernorm", None);
    }
    spec.rotate(ROPE.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

/// llama.cpp runs attention and MLP side by side where the second norm is missing.
fn read(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), "silu".into());
    config.insert("use_qkv_bias".into(), gguf.dims_of("blk.0.attn_q.bias").is_some().into());
    config.insert("use_parallel_residual".into(), gguf.dims_of("blk.0.ffn_norm.weight").is_none().into());
    Ok(())
}

fn write(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["silu", "swish"])?;
    let parallel = config.get("use_parallel_residual") == Some(&Value::Bool(true));
    Ok(out.boolean("stablelm.use_parallel_residual", parallel)?)
}

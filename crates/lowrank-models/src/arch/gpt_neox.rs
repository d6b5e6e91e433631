//! GPT-NeoX and Pythia: two layer norms before attention and MLP, which run side by side; query, key and value of a head
//! together in one projection. `transformers/models/gpt_neox` is followed; its dropouts are off.

use std::path::Path;

use lowrank_files::{Gguf, GgufNames, GgufWriter};
use serde_json::{Map, Value};

use crate::Result;
use crate::architecture::{Architecture, GgufModel, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, Names, NormKind, Norms, Qkv};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "gpt_neox",
    prefix: "gpt_neox",
    defaults: r#"{
        "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
        "num_attention_heads": 64, "hidden_act": "gelu", "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "use_parallel_residual": true,
        "attention_bias": true, "pad_token_id": null, "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[("lm_head.", "embed_out.")],
    tied: Tied { default: false, pairs: &[("lm_head.weight", "gpt_neox.embed_in.weight")] },
    build: load,
    gguf: Some(GgufModel {
        names: GgufNames {
            outer: &[("token_embd", "gpt_neox.embed_in"), ("output_norm", "gpt_neox.final_layer_norm")],
            layers: "gpt_neox.layers.",
            block: &[
                ("attn_qkv", "attention.query_key_value"),
                ("attn_output", "attention.dense"),
                ("ffn_up", "mlp.dense_h_to_4h"),
                ("ffn_down", "mlp.dense_4h_to_h"),
            ],
            parts_apart: &["attention.query_key_value"],
            ..GgufNames::USUAL
        },
        epsilon: ("layer_norm_epsilon", "layer_norm_eps"),
        biases: &[
            "input_layernorm",
            "post_attention_layernorm",
            "final_layer_norm",
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ],
        partial_rotary: Some(0.25),
        rope: |config| ROPE.parameters(config),
        read,
        write,
        ..GgufModel::usual("gptneox", "GPTNeoXForCausalLM")
    }),
}];

const NAMES: Names = Names {
    embed: "gpt_neox.embed_in",
    layers: "gpt_neox.layers",
    norm: "gpt_neox.final_layer_norm",
    qkv: "attention.query_key_value",
    o: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    ..Names::LLAMA
};

const ROPE: RopeKind = RopeKind { partial: Some(0.25), ..RopeKind::LLAMA };

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "layer_norm_eps")?)?;
    spec.names = NAMES;
    spec.norm = NormKind::Layer { bias: true, offset: 0.0 };
    spec.norms = match fields::flag(config, "use_parallel_residual")? {
        true => Norms::Parallel("input_layernorm", Some("post_attention_layernorm")),
        false => Norms::Before("input_layernorm", "post_attention_layernorm"),
    };
    spec.qkv = Qkv::ByHead;
    spec.kv_heads = spec.heads;
    let bias = fields::flag(config, "attention_bias")?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    (spec.mlp, spec.mlp_bias) = (Mlp::Plain, true);
    spec.default_targets = &["query_key_value"];
    spec.rotate(ROPE.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn read(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), "gelu_new".into());
    config.insert("attention_bias".into(), gguf.dims_of("blk.0.attn_qkv.bias").is_some().into());
    let parallel = gguf.boolean("gptneox.use_parallel_residual")?;
    config.insert("use_parallel_residual".into(), parallel.unwrap_or(true).into());
    Ok(())
}

/// llama.cpp computes every GELU in its tanh form.
fn write(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"])?;
    let parallel = config.get("use_parallel_residual") != Some(&Value::Bool(false));
    Ok(out.boolean("gptneox.use_parallel_residual", parallel)?)
}

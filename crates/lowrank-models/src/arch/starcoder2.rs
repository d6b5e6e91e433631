//! StarCoder2: layer norms, biases everywhere, an MLP without gates, a window of attention. `transformers/models/starcoder2`
//! is followed.

use std::path::Path;

use lowrank_files::{GgufNames, GgufWriter};
use serde_json::{Map, Value};

use crate::architecture::{Architecture, GgufModel, INSTEAD, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Mlp, NormKind};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "starcoder2",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
        "num_attention_heads": 24, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "tie_word_embeddings": true,
        "sliding_window": null, "use_bias": true, "pad_token_id": null, "initializer_range": 0.018042
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied { default: true, ..Tied::DECODER },
    build: load,
    gguf: Some(GgufModel {
        names: GgufNames { block: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")], ..GgufNames::USUAL },
        epsilon: ("layer_norm_epsilon", "norm_epsilon"),
        biases: &[
            "input_layernorm",
            "post_attention_layernorm",
            "model.norm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.c_fc",
            "mlp.c_proj",
        ],
        read: |gguf, config| {
            config.insert("hidden_act".into(), "gelu_pytorch_tanh".into());
            config.insert("use_bias".into(), gguf.dims_of("blk.0.attn_q.bias").is_some().into());
            Ok(())
        },
        write,
        ..GgufModel::usual("starcoder2", "Starcoder2ForCausalLM")
    }),
}];

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "norm_epsilon")?)?;
    let bias = fields::flag(config, "use_bias")?;
    (spec.qkv_bias, spec.o_bias, spec.mlp_bias) = (bias, bias, bias);
    spec.norm = NormKind::Layer { bias: true, offset: 0.0 };
    spec.mlp = Mlp::Plain;
    (spec.names.up, spec.names.down) = ("mlp.c_fc", "mlp.c_proj");
    spec.rotate(RopeKind::LLAMA.read(config, &c)?);
    let sliding = vec![c.sliding_window.is_some(); c.num_hidden_layers];
    spec.slide(c.sliding_window, &sliding)?;
    Ok(Box::new(Decoder::load(spec, loader)?))
}

/// llama.cpp computes this model without its window.
fn write(path: &Path, config: &Map<String, Value>, _: &mut GgufWriter) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["gelu_pytorch_tanh", "gelu_new"])?;
    let number = |name: &str| config.get(name).and_then(Value::as_u64);
    if number("sliding_window")
        .is_some_and(|window| number("max_position_embeddings").is_none_or(|all| window < all))
    {
        let what = format!(
            "is shorter than max_position_embeddings, and GGUF has no word for it in this model; {INSTEAD}"
        );
        return Err(Error::field(path, "sliding_window", what));
    }
    Ok(())
}

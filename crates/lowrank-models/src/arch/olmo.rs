//! OLMo 2 and 3: norms of what attention and MLP add, and of all queries and keys together; in OLMo 3 three of four layers have
//! a window and a rope of their own. `transformers/models/{olmo2,olmo3}` are followed.

use std::path::Path;

use lowrank_files::{Gguf, GgufNames, GgufWriter};
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, GgufModel, INSTEAD, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Norms, QkNorm, Spec};
use crate::parts::fields;
use crate::parts::rope::{self, Beside, RopeParameters};
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "olmo2",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
            "attention_bias": false, "pad_token_id": 1, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: load2,
        gguf: Some(GgufModel {
            names: GGUF_NAMES,
            qk_norms: true,
            ..GgufModel::usual("olmo2", "Olmo2ForCausalLM")
        }),
    },
    Architecture {
        model_type: "olmo3",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
            "attention_bias": false, "sliding_window": 4096, "pad_token_id": 1, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: load3,
        gguf: Some(GgufModel {
            windowed: true,
            names: GGUF_NAMES,
            qk_norms: true,
            rope: |config| layer_rope(config, "full_attention"),
            read: read_olmo3,
            write: write_olmo3,
            ..GgufModel::usual("olmo2", "Olmo3ForCausalLM")
        }),
    },
];

const GGUF_NAMES: GgufNames = GgufNames {
    block: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    ..GgufNames::USUAL
};

/// The base of OLMo 3's ropes.
const THETA: f64 = 500_000.0;
/// One layer of so many sees everything.
const PATTERN: usize = 4;

fn spec(config: &Value, c: &Fields) -> Result<Spec> {
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    let bias = fields::flag(config, "attention_bias")?;
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    spec.norms = Norms::Added("post_attention_layernorm", "post_feedforward_layernorm");
    spec.qk_norm = Some(QkNorm::Whole);
    Ok(spec)
}

fn load2(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = spec(config, &c)?;
    spec.rotate(RopeKind::LLAMA.read(config, &c)?);
    Ok(Box::new(Decoder::load(spec, loader)?))
}

fn load3(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = spec(config, &c)?;
    let sliding = c.sliding(|layer| !(layer + 1).is_multiple_of(PATTERN));
    spec.slide(c.sliding_window, &sliding)?;
    let map = fields::object(config);
    for (kind, slides) in [("full_attention", false), ("sliding_attention", true)] {
        if !sliding.contains(&slides) {
            continue;
        }
        let table = RopeKind::LLAMA.table(&c, &layer_rope(map, kind)?)?;
        let number = spec.ropes.len();
        spec.ropes.push(table);
        let layers = spec.layers.iter_mut().zip(&sliding).filter(|(_, own)| **own == slides);
        layers.for_each(|(layer, _)| layer.rope = Some(number));
    }
    Ok(Box::new(Decoder::load(spec, loader)?))
}

/// The rope of a kind of OLMo 3's layers: what `rope_parameters` says of it; `rope_scaling` is of those that see everything.
fn layer_rope(config: &Map<String, Value>, kind: &str) -> Result<RopeParameters> {
    let both = rope::section(config, "rope_parameters")?;
    let mut own = match &both {
        Some(both) => rope::section(both, kind)?,
        None => None,
    }
    .unwrap_or_default();
    if kind == "full_attention" {
        own.extend(rope::section(config, "rope_scaling")?.into_iter().flatten());
    }
    let at = format!("rope_parameters.{kind}");
    let beside = Beside { default_theta: THETA, original: None, ..Beside::of(config) };
    RopeParameters::complete(&at, &own, &beside)
}

fn read_olmo3(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), "silu".into());
    let layers = config["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
    if let Some(sliding) = gguf.flags("olmo2.attention.sliding_window_pattern")? {
        if sliding.len() != layers {
            let what = format!("has {} entries for {layers} layers", sliding.len());
            return Err(Error::field(gguf.path(), "olmo2.attention.sliding_window_pattern", what));
        }
        let kinds = sliding.iter().map(|slides| if *slides { "sliding_attention" } else { "full_attention" });
        config.insert("layer_types".into(), json!(kinds.collect::<Vec<_>>()));
    }
    // llama.cpp scales the rope of the layers that see everything alone.
    Ok(())
}

fn write_olmo3(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["silu", "swish"])?;
    let c = Fields::read(&Value::Object(config.clone()))?;
    let window = c.sliding_window.and_then(|window| u32::try_from(window).ok());
    let window = window.ok_or_else(|| Error::field(path, "sliding_window", "is missing or too large"))?;
    out.u32("olmo2.attention.sliding_window", window)?;
    let (full, sliding) = (layer_rope(config, "full_attention")?, layer_rope(config, "sliding_attention")?);
    if sliding.kind != "default" || sliding.theta != full.theta {
        let what = format!("has a value that GGUF cannot express for this model; {INSTEAD}");
        return Err(Error::field(path, "rope_parameters.sliding_attention", what));
    }
    let slides = c.sliding(|layer| !(layer + 1).is_multiple_of(PATTERN));
    if slides.iter().enumerate().any(|(layer, slides)| *slides == (layer + 1).is_multiple_of(PATTERN)) {
        let what = format!(
            "differs from every {PATTERN}th layer that sees everything, which llama.cpp has built in; {INSTEAD}"
        );
        return Err(Error::field(path, "layer_types", what));
    }
    Ok(())
}

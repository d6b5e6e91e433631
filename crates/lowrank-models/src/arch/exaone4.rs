//! EXAONE 4: norms of what attention and MLP add, and of each head's query and key; where layers have windows, those without
//! do not rotate. `transformers/models/exaone4` is followed.

use std::path::Path;

use lowrank_files::{Gguf, GgufNames, GgufWriter};
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, GgufModel, INSTEAD, expect_activation};
use crate::loader::Loader;
use crate::model::Model;
use crate::parts::decoder::{Decoder, Norms, QkNorm};
use crate::parts::fields;
use crate::parts::spec::{Fields, RopeKind, number};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "exaone4",
    prefix: "model",
    defaults: r#"{
        "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        "sliding_window": 4096, "sliding_window_pattern": 4, "pad_token_id": null, "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: load,
    gguf: Some(GgufModel {
        names: GgufNames {
            block: &[
                ("post_attention_norm", "post_attention_layernorm"),
                ("post_ffw_norm", "post_feedforward_layernorm"),
            ],
            ..GgufNames::USUAL
        },
        qk_norms: true,
        rope_factors: true,
        read: read_gguf,
        write: write_gguf,
        ..GgufModel::usual("exaone4", "Exaone4ForCausalLM")
    }),
}];

/// One layer of so many sees everything, in llama.cpp.
const PATTERN: usize = 4;

fn load(config: &Value, loader: Loader<'_>) -> Result<Box<dyn Model>> {
    let c = Fields::read(config)?;
    let mut spec = c.spec(config, number(config, "rms_norm_eps")?)?;
    spec.norms = Norms::Added("post_attention_layernorm", "post_feedforward_layernorm");
    spec.qk_norm = Some(QkNorm::Head);
    let mut rope = RopeKind::LLAMA.read(config, &c)?;
    // What a GGUF file's factors are where no setting of Llama 3's rule gives them.
    if let Some(factors) = loader.optional_vector("rope_freqs")? {
        rope.divide(&factors)?;
    }
    spec.rotate(rope);
    let sliding = sliding(config, &c)?;
    spec.slide(c.sliding_window, &sliding)?;
    if c.sliding_window.is_some() {
        for (layer, slides) in spec.layers.iter_mut().zip(sliding) {
            layer.rope = layer.rope.filter(|_| slides);
        }
    }
    Ok(Box::new(Decoder::load(spec, loader)?))
}

/// For each layer whether it has a window.
fn sliding(config: &Value, c: &Fields) -> Result<Vec<bool>> {
    let wrong =
        || fields::wrong("sliding_window_pattern: a whole number from 1, or letters L and G, is needed");
    let by_number: Vec<bool> = match (c.sliding_window, &c.layer_types, config.get("sliding_window_pattern"))
    {
        (_, Some(_), _) => Vec::new(),
        (None, None, _) => vec![false; c.num_hidden_layers],
        (Some(_), None, Some(Value::String(letters))) => {
            let letters: Vec<char> = letters.chars().collect();
            if letters.is_empty() || letters.iter().any(|letter| !['L', 'G'].contains(letter)) {
                return Err(wrong());
            }
            (0..c.num_hidden_layers).map(|layer| letters[layer % letters.len()] == 'L').collect()
        }
        (Some(_), None, pattern) => {
            let every =
                pattern.and_then(Value::as_u64).filter(|every| *every > 0).ok_or_else(wrong)? as usize;
            (0..c.num_hidden_layers).map(|layer| !(layer + 1).is_multiple_of(every)).collect()
        }
    };
    Ok(c.sliding(|layer| by_number[layer]))
}

fn read_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), "silu".into());
    if !config.contains_key("sliding_window") {
        config.insert("sliding_window".into(), Value::Null);
    }
    let layers = config["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
    if let Some(sliding) = gguf.flags("exaone4.attention.sliding_window_pattern")? {
        if sliding.len() != layers {
            let what = format!("has {} entries for {layers} layers", sliding.len());
            return Err(Error::field(gguf.path(), "exaone4.attention.sliding_window_pattern", what));
        }
        let kinds = sliding.iter().map(|slides| if *slides { "sliding_attention" } else { "full_attention" });
        config.insert("layer_types".into(), json!(kinds.collect::<Vec<_>>()));
    }
    Ok(())
}

fn write_gguf(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["silu", "swish"])?;
    let config = Value::Object(config.clone());
    let c = Fields::read(&config)?;
    let Some(window) = c.sliding_window else { return Ok(()) };
    let sliding = sliding(&config, &c)?;
    if sliding.iter().enumerate().any(|(layer, slides)| *slides == (layer + 1).is_multiple_of(PATTERN)) {
        let what = format!(
            "differs from every {PATTERN}th layer that sees everything, which llama.cpp has built in; {INSTEAD}"
        );
        return Err(Error::field(path, "layer_types", what));
    }
    let wide = |_| Error::field(path, "sliding_window", "is too large");
    out.u32("exaone4.attention.sliding_window", u32::try_from(window).map_err(wide)?)?;
    Ok(out.booleans("exaone4.attention.sliding_window_pattern", &sliding)?)
}

//! Gemma 1, 2 and 3 (text): norms with `1 + w`, embeddings times `sqrt(D)`, GELU gates. Gemma 2 adds norms after
//! attention and MLP, windows in every other layer and soft caps; Gemma 3 norms of q and k and a rope of its own
//! for layers with a window. `transformers/models/{gemma,gemma2,gemma3}` are followed.

use std::path::Path;

use lowrank_engine::{Activation, AttentionShape, Embedding, Linear, LmHead, RmsNorm, Rope, Tape, Var};
use lowrank_files::{Gguf, GgufNames, GgufWriter, round_f32};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, GgufModel};
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::fields;
use crate::parts::rope::{RopeScaling, RopeTable};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "gemma",
        prefix: "model",
        tied: TIED,
        build: |config, loader| Ok(Box::new(Gemma::load(config, loader)?)),
        gguf: Some(GgufModel {
            names: GgufNames { norm_offset: 1.0, ..GgufNames::USUAL },
            read: |gguf, config| read_gguf(gguf, "gemma", config),
            write: |path, config, out| write_gguf(path, config, "gemma", out),
            ..GgufModel::usual("gemma", "GemmaForCausalLM")
        }),
    },
    Architecture {
        model_type: "gemma2",
        prefix: "model",
        tied: TIED,
        build: |config, loader| Ok(Box::new(Gemma::load(config, loader)?)),
        gguf: Some(GgufModel {
            names: GGUF_NAMES,
            read: |gguf, config| read_gguf(gguf, "gemma2", config),
            write: |path, config, out| write_gguf(path, config, "gemma2", out),
            ..GgufModel::usual("gemma2", "Gemma2ForCausalLM")
        }),
    },
    Architecture {
        model_type: "gemma3_text",
        prefix: "model",
        tied: TIED,
        build: |config, loader| Ok(Box::new(Gemma::load(config, loader)?)),
        gguf: Some(GgufModel {
            names: GGUF_NAMES,
            rope_theta: 1_000_000.0,
            read: |gguf, config| read_gguf(gguf, "gemma3", config),
            write: |path, config, out| write_gguf(path, config, "gemma3", out),
            ..GgufModel::usual("gemma3", "Gemma3ForCausalLM")
        }),
    },
];

const TIED: Tied = Tied { default: true, ..Tied::DECODER };

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    hidden_activation: Option<String>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    /// Scores are divided by its root (Gemma 2 and 3).
    query_pre_attn_scalar: Option<f32>,
    rope_theta: Option<f64>,
    /// Gemma 3: the base of layers with a window.
    rope_local_base_freq: Option<f64>,
    /// Of layers that see everything.
    rope_scaling: Option<RopeScaling>,
    sliding_window: Option<usize>,
    /// Gemma 3: every how manyth layer sees everything.
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn yes() -> bool {
    true
}

/// Ropes of layers that see everything and of those with a window.
struct Ropes {
    global: RopeTable,
    local: RopeTable,
}

impl Config {
    fn parse(config: &Value) -> Result<Self> {
        let c: Self = fields::read(config)?;
        fields::check_heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim)?;
        if c.use_bidirectional_attention == Some(true) {
            return Err(fields::wrong("use_bidirectional_attention is true; only decoders are supported"));
        }
        let local = config.pointer("/rope_parameters/sliding_attention/rope_type").and_then(Value::as_str);
        if let Some(kind) = local.filter(|kind| *kind != "default") {
            let field = "rope_parameters.sliding_attention.rope_type";
            return Err(fields::wrong(format!("{field} is {kind:?}; only \"default\" is supported")));
        }
        if c.query_pre_attn_scalar.is_some_and(|s| s.is_nan() || s <= 0.0) {
            return Err(fields::wrong("query_pre_attn_scalar must be positive"));
        }
        if c.sliding_window == Some(0) || c.sliding_window_pattern == Some(0) {
            return Err(fields::wrong("sliding_window and sliding_window_pattern must be at least 1"));
        }
        Ok(c)
    }

    fn version(&self) -> u32 {
        match self.model_type.as_str() {
            "gemma" => 1,
            "gemma2" => 2,
            _ => 3,
        }
    }

    /// Gemma 1's files say `gelu` in `hidden_act` and mean its tanh form, as transformers takes it.
    fn activation(&self) -> Result<Activation> {
        match &self.hidden_activation {
            Some(name) => activation("hidden_activation", name),
            None => Ok(Activation::GeluTanh),
        }
    }

    fn scale(&self) -> f32 {
        let by = if self.version() == 1 {
            self.head_dim as f32
        } else {
            self.query_pre_attn_scalar.unwrap_or(256.0)
        };
        1.0 / by.sqrt()
    }

    /// For each layer whether it sees a window only.
    fn sliding(&self) -> Result<Vec<bool>> {
        let version = self.version();
        let pattern = if version == 2 { 2 } else { self.sliding_window_pattern.unwrap_or(6) };
        let by_number = |layer: usize| version > 1 && !(layer + 1).is_multiple_of(pattern);
        fields::sliding_layers(self.layer_types.as_deref(), self.num_hidden_layers, by_number)
    }

    fn ropes(&self) -> Result<Ropes> {
        let table = |theta: f64, scaling: Option<&RopeScaling>| {
            RopeTable::new(self.head_dim, theta, self.max_position_embeddings, scaling)
        };
        let otherwise = if self.version() < 3 { 10_000.0 } else { 1_000_000.0 };
        let global = table(self.rope_theta.unwrap_or(otherwise), self.rope_scaling.as_ref())?;
        let local = match self.version() {
            3 => table(self.rope_local_base_freq.unwrap_or(10_000.0), None)?,
            _ => global.clone(),
        };
        Ok(Ropes { global, local })
    }
}

/// A soft cap; where the field is absent Gemma 2's own, where it is null none.
fn softcap(config: &Value, field: &str, otherwise: Option<f32>) -> Result<Option<f32>> {
    match config.get(field) {
        None => Ok(otherwise),
        Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(cap) if cap > 0.0 => Ok(Some(cap as f32)),
            _ => Err(fields::wrong(format!("{field} is {value}; a positive number or null is needed"))),
        },
    }
}

/// A model of the Gemma family.
pub struct Gemma {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Head,
    ropes: Ropes,
    info: ModelInfo,
}

struct Layer {
    input_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Gemma 3: norms of each head's query and key.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    mlp_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Gemma 2 and 3: norms of what attention and MLP add.
    post_norms: Option<(RmsNorm, RmsNorm)>,
    activation: Activation,
    shape: AttentionShape,
    sliding: bool,
}

impl Gemma {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c = Config::parse(config)?;
        let version = c.version();
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let attention_cap = match version {
            2 => softcap(config, "attn_logit_softcapping", Some(50.0))?,
            _ => None,
        };
        let sliding = c.sliding()?;
        let mut embed = l.embedding("model.embed_tokens", c.vocab_size, d)?;
        embed.scale = (d as f32).sqrt();
        let mut layers = Vec::new();
        for (i, sliding) in sliding.into_iter().enumerate() {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let norm = |l: &mut Loader<'_>, name: &str, width: usize| -> Result<RmsNorm> {
                Ok(RmsNorm { offset: 1.0, ..l.rms_norm(&at(name), width, c.rms_norm_eps)? })
            };
            let qk_norm = match version {
                3 => Some((
                    norm(&mut l, "self_attn.q_norm", head_dim)?,
                    norm(&mut l, "self_attn.k_norm", head_dim)?,
                )),
                _ => None,
            };
            let (mlp_norm, post_norms) = match version {
                1 => (norm(&mut l, "post_attention_layernorm", d)?, None),
                _ => {
                    let attention = norm(&mut l, "post_attention_layernorm", d)?;
                    let mlp = norm(&mut l, "post_feedforward_layernorm", d)?;
                    (norm(&mut l, "pre_feedforward_layernorm", d)?, Some((attention, mlp)))
                }
            };
            layers.push(Layer {
                input_norm: norm(&mut l, "input_layernorm", d)?,
                q: l.linear(&at("self_attn.q_proj"), d, heads * head_dim, c.attention_bias)?,
                k: l.linear(&at("self_attn.k_proj"), d, kv_heads * head_dim, c.attention_bias)?,
                v: l.linear(&at("self_attn.v_proj"), d, kv_heads * head_dim, c.attention_bias)?,
                o: l.linear(&at("self_attn.o_proj"), heads * head_dim, d, c.attention_bias)?,
                qk_norm,
                mlp_norm,
                gate: l.linear(&at("mlp.gate_proj"), d, f, false)?,
                up: l.linear(&at("mlp.up_proj"), d, f, false)?,
                down: l.linear(&at("mlp.down_proj"), f, d, false)?,
                post_norms,
                activation: c.activation()?,
                shape: AttentionShape {
                    heads,
                    kv_heads,
                    head_dim,
                    scale: c.scale(),
                    causal: true,
                    window: c.sliding_window.filter(|_| sliding),
                    softcap: attention_cap,
                    dropout: None,
                },
                sliding,
            });
        }
        let norm = RmsNorm { offset: 1.0, ..l.rms_norm("model.norm", d, c.rms_norm_eps)? };
        let final_cap = match version {
            1 => None,
            2 => softcap(config, "final_logit_softcapping", Some(30.0))?,
            _ => softcap(config, "final_logit_softcapping", None)?,
        };
        let tied = c.tie_word_embeddings.then_some(&embed);
        let head = l.language_head("lm_head", tied, d, c.vocab_size)?;
        let head = head.map_or(Head::None, |head| Head::Language(LmHead { softcap: final_cap, ..head }));
        let ropes = c.ropes()?;
        let info = ModelInfo {
            width: d,
            vocab: c.vocab_size,
            max_positions: c.max_position_embeddings,
            position_limit: None,
            is_encoder: false,
            kv_widths: layers.iter().map(|layer| layer.shape.kv_heads * layer.shape.head_dim).collect(),
            kv_heads,
            sites: l.into_sites(),
            default_targets: &["q_proj", "v_proj"],
            head_layout: HeadLayout::DECODER,
            new_layers: Vec::new(),
        };
        Ok(Self { embed, layers, norm, head, ropes, info })
    }
}

impl Layer {
    fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        x: Var<'m>,
        rope: &Rope,
        block: BlockContext<'m>,
    ) -> Var<'m> {
        let h = tape.rms_norm(&self.input_norm, &x);
        let mut q = tape.linear(&self.q, &h, None);
        let mut k = tape.linear(&self.k, &h, None);
        let v = tape.linear(&self.v, &h, None);
        drop(h);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = tape.rms_norm(q_norm, &q);
            k = tape.rms_norm(k_norm, &k);
        }
        let o = tape.attention(q, k, v, block.attention(self.shape, Some(rope.clone())));
        let (o, x) = block.select_output_rows(tape, o, x);
        let post = self.post_norms.as_ref();
        let x = add(tape, &self.o, &o, x, post.map(|(norm, _)| norm));
        drop(o);

        let h = tape.rms_norm(&self.mlp_norm, &x);
        let gate = tape.linear(&self.gate, &h, None);
        let up = tape.linear(&self.up, &h, None);
        drop(h);
        let h = tape.gated(gate, up, self.activation);
        add(tape, &self.down, &h, x, post.map(|(_, norm)| norm))
    }
}

/// `x + norm(layer(h))`, or without a norm `x + layer(h)` as one operation.
fn add<'m>(
    tape: &mut Tape<'m>,
    layer: &'m Linear,
    h: &Var<'m>,
    x: Var<'m>,
    norm: Option<&'m RmsNorm>,
) -> Var<'m> {
    let Some(norm) = norm else { return tape.linear(layer, h, Some(x)) };
    let y = tape.linear(layer, h, None);
    let y = tape.rms_norm(norm, &y);
    tape.add(y, &x)
}

impl Model for Gemma {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let at = |table: &RopeTable| table.at(tape.scope.device, batch.positions, batch.lengths);
        let (global, local) = (at(&self.ropes.global), at(&self.ropes.local));
        let mut x = batch.embed(tape, &self.embed);
        for (i, layer) in self.layers.iter().enumerate() {
            let rope = if layer.sliding { local.clone() } else { global.clone() };
            let block = batch.block(i, self.layers.len());
            x = tape.block(x, move |tape, x| layer.forward(tape, x, &rope, block));
        }
        tape.rms_norm(&self.norm, &x)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

/// Names of Gemma 2 and 3, whose norm before the MLP is not Llama's. Gemma's norms multiply by `1 + w`, and llama.cpp
/// keeps the sum.
const GGUF_NAMES: GgufNames = GgufNames {
    block: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    norm_offset: 1.0,
    ..GgufNames::USUAL
};

/// The base of the rope of Gemma 3's layers with a window.
const LOCAL_BASE: f64 = 10_000.0;
/// One layer of so many sees everything, in Gemma 2 and 3.
const PATTERN: [(&str, u64); 2] = [("gemma2", 2), ("gemma3", 6)];

/// The `query_pre_attn_scalar` that llama.cpp means: of the 27B models (46 and 62 layers) the width of all heads'
/// share, else the width of a head.
fn query_scalar(architecture: &str, config: &Map<String, Value>) -> u64 {
    let number = |name: &str| config.get(name).and_then(Value::as_u64).unwrap_or(0);
    match (architecture, number("num_hidden_layers")) {
        ("gemma2", 46) | ("gemma3", 62) => {
            number("hidden_size").checked_div(number("num_attention_heads")).unwrap_or(0)
        }
        _ => number("head_dim"),
    }
}

/// Adds to `config` the fields of Gemma's `config.json` beyond Llama's. llama.cpp does not store all of them but knows
/// some by the size of the model: the scale of scores, and in Gemma 3 which layers have a window and their rope.
fn read_gguf(gguf: &Gguf, architecture: &str, config: &mut Map<String, Value>) -> Result<()> {
    let activation = if architecture == "gemma" { "hidden_act" } else { "hidden_activation" };
    config.insert(activation.into(), json!("gelu_pytorch_tanh"));
    if architecture == "gemma" {
        return Ok(());
    }
    let scalar = query_scalar(architecture, config);
    config.insert("query_pre_attn_scalar".into(), json!(scalar));
    for (field, otherwise) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        let cap = match gguf.float(&format!("{architecture}.{field}"))? {
            None if architecture == "gemma2" => Some(otherwise),
            cap => cap.filter(|cap| *cap > 0.0).map(round_f32),
        };
        config.insert(field.into(), json!(cap));
    }
    if architecture == "gemma3" {
        let local = gguf.float("gemma3.rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
        config.insert("rope_local_base_freq".into(), json!(round_f32(local)));
    }
    Ok(())
}

/// Writes the metadata of those fields, where GGUF can say them.
fn write_gguf(
    path: &Path,
    config: &Map<String, Value>,
    architecture: &str,
    out: &mut GgufWriter,
) -> Result<()> {
    let Some((_, pattern)) = PATTERN.into_iter().find(|(name, _)| *name == architecture) else {
        return Ok(());
    };
    let wrong = |field: &str| {
        let what = "has a value that GGUF cannot express for this model; write a Hugging Face folder instead";
        Error::field(path, field, what)
    };
    let number = |name: &str| config.get(name).and_then(Value::as_f64);
    if number("query_pre_attn_scalar").unwrap_or(256.0) != query_scalar(architecture, config) as f64 {
        return Err(wrong("query_pre_attn_scalar"));
    }
    if architecture == "gemma3" && number("sliding_window_pattern").is_some_and(|p| p != pattern as f64) {
        return Err(wrong("sliding_window_pattern"));
    }
    let usual = |(layer, kind): (usize, &Value)| {
        let sliding = !(layer as u64 + 1).is_multiple_of(pattern);
        kind.as_str() == Some(if sliding { "sliding_attention" } else { "full_attention" })
    };
    let types = config.get("layer_types").and_then(Value::as_array);
    if !types.is_none_or(|types| types.iter().enumerate().all(usual)) {
        return Err(wrong("layer_types"));
    }
    if architecture == "gemma3" {
        let local = number("rope_local_base_freq").unwrap_or(LOCAL_BASE);
        // llama.cpp has this number built in and reads the key only in newer versions.
        out.f32("gemma3.rope.freq_base_swa", local as f32)?;
    }
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        match (config.get(field), number(field)) {
            (_, Some(cap)) => out.f32(&format!("{architecture}.{field}"), cap as f32)?,
            (None, None) => {}
            // An absent key means Gemma 2's own cap, and there is no way to say none.
            (Some(_), None) if architecture == "gemma2" => return Err(wrong(field)),
            (Some(_), None) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_have_names_and_values_of_their_own() {
        for (gguf, hf) in [
            ("blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"),
            ("blk.3.post_attention_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
            ("blk.3.ffn_norm.weight", "model.layers.3.pre_feedforward_layernorm.weight"),
            ("blk.3.post_ffw_norm.weight", "model.layers.3.post_feedforward_layernorm.weight"),
        ] {
            assert_eq!(GGUF_NAMES.to_hf(gguf), hf);
            assert_eq!(GGUF_NAMES.from_hf(hf).as_deref(), Some(gguf));
            assert_eq!(GGUF_NAMES.added(hf), 1.0);
        }
    }
}

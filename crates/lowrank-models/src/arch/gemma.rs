//! Gemma 1, 2 and 3 (text): norms with `1 + w`, embeddings times `sqrt(D)`, GELU gates. Gemma 2 adds norms after
//! attention and MLP, windows in every other layer and soft caps; Gemma 3 norms of q and k and a rope of its own
//! for layers with a window. `transformers/models/{gemma,gemma2,gemma3}` are followed.

use std::path::Path;

use lowrank_engine::{Activation, AttentionShape, Embedding, Linear, LmHead, RmsNorm, Rope, Tape, Var};
use lowrank_files::{Gguf, GgufNames, GgufWriter, round_f32};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, GgufModel, INSTEAD, expect_activation};
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::fields;
use crate::parts::rope::{self, Beside, RopeParameters, RopeTable};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "gemma",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true, "attention_bias": false, "pad_token_id": 0, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
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
        defaults: r#"{
            "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true, "attention_bias": false, "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
            "pad_token_id": 0, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
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
        defaults: r#"{
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true, "attention_bias": false, "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "sliding_window_pattern": 6, "final_logit_softcapping": null,
            "pad_token_id": 0, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: TIED,
        build: |config, loader| Ok(Box::new(Gemma::load(config, loader)?)),
        gguf: Some(GgufModel {
            names: GGUF_NAMES,
            rope_theta: 1_000_000.0,
            qk_norms: true,
            rope: |config| gemma3_rope(config, LayerKind::Full),
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
    /// Gemma 1.
    hidden_act: Option<String>,
    /// Gemma 2 and 3.
    hidden_activation: Option<String>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    /// Scores are divided by its root (Gemma 2 and 3).
    query_pre_attn_scalar: Option<Value>,
    sliding_window: Option<usize>,
    /// Gemma 3: every how manyth layer sees everything.
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    use_bidirectional_attention: Option<bool>,
    attention_bias: bool,
    tie_word_embeddings: bool,
}

/// Ropes of layers that see everything and of those with a window, where there are such layers.
struct Ropes {
    global: Option<RopeTable>,
    local: Option<RopeTable>,
}

impl Config {
    fn parse(config: &Value) -> Result<Self> {
        let c: Self = fields::read(config)?;
        fields::check_heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim)?;
        if c.version() > 1 {
            fields::check_width(c.hidden_size, c.num_attention_heads)?;
        }
        if c.version() == 2 {
            rope::check_flat(fields::object(config))?;
        }
        if c.use_bidirectional_attention == Some(true) {
            return Err(fields::wrong("use_bidirectional_attention is true; only decoders are supported"));
        }
        if c.version() > 1 && c.scalar().is_none_or(|scalar| scalar == 0) {
            return Err(fields::wrong("query_pre_attn_scalar: a whole positive number is needed"));
        }
        if c.version() > 1 && c.sliding_window.is_none_or(|window| window == 0) {
            return Err(fields::wrong("sliding_window must be at least 1"));
        }
        if c.version() == 3
            && c.layer_types.is_none()
            && c.sliding_window_pattern.is_none_or(|every| every == 0)
        {
            return Err(fields::wrong("sliding_window_pattern must be at least 1"));
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

    fn activation(&self) -> Result<Activation> {
        let (field, name) = match self.version() {
            1 => ("hidden_act", &self.hidden_act),
            _ => ("hidden_activation", &self.hidden_activation),
        };
        match (self.version(), name.as_deref()) {
            (_, None) => Err(fields::wrong(format!("{field} is null; a name is needed"))),
            // The authors' files say so and mean its tanh form, as transformers takes it.
            (1, Some("gelu")) => Ok(Activation::GeluTanh),
            (_, Some(name)) => activation(field, name),
        }
    }

    fn scalar(&self) -> Option<u64> {
        self.query_pre_attn_scalar.as_ref().filter(|_| self.version() > 1)?.as_u64()
    }

    fn scale(&self) -> f32 {
        let by = self.scalar().map_or(self.head_dim as f32, |scalar| scalar as f32);
        1.0 / by.sqrt()
    }

    /// For each layer whether it sees a window only.
    fn sliding(&self) -> Vec<bool> {
        let pattern = match self.version() {
            1 => return vec![false; self.num_hidden_layers],
            2 => 2,
            _ => self.sliding_window_pattern.unwrap_or(6),
        };
        let by_number = |layer: usize| !(layer + 1).is_multiple_of(pattern);
        fields::sliding_layers(self.layer_types.as_deref(), self.num_hidden_layers, by_number)
    }

    fn ropes(&self, config: &Map<String, Value>, sliding: &[bool]) -> Result<Ropes> {
        let table = |rope: RopeParameters| {
            RopeTable::whole(self.head_dim, self.max_position_embeddings, &rope).map(Some)
        };
        if self.version() < 3 {
            let rope = table(RopeParameters::read(config)?)?;
            return Ok(Ropes { global: rope.clone(), local: rope });
        }
        let of = |wanted: bool, kind: LayerKind| match sliding.contains(&wanted) {
            true => table(gemma3_rope(config, kind)?),
            false => Ok(None),
        };
        Ok(Ropes { global: of(false, LayerKind::Full)?, local: of(true, LayerKind::Sliding)? })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LayerKind {
    Full,
    Sliding,
}

/// The rope of a kind of Gemma 3's layers: what `rope_parameters` says of it, completed by the older fields.
fn gemma3_rope(config: &Map<String, Value>, kind: LayerKind) -> Result<RopeParameters> {
    let both = rope::section(config, "rope_parameters")?;
    let scaling = rope::section(config, "rope_scaling")?;
    let (name, theta, default_theta) = match kind {
        LayerKind::Full => ("full_attention", "rope_theta", 1_000_000.0),
        LayerKind::Sliding => ("sliding_attention", "rope_local_base_freq", LOCAL_BASE),
    };
    let at = format!("rope_parameters.{name}");
    let plain = || Map::from_iter([("rope_type".to_owned(), json!("default"))]);
    let own = match &both {
        Some(both) => {
            rope::section(both, name).map_err(|_| fields::wrong(format!("{at} is not an object")))?
        }
        None => Some(plain()),
    };
    let changed = scaling.filter(|_| kind == LayerKind::Full);
    if own.is_none() && changed.is_some() {
        return Err(fields::wrong(format!("{at} is missing, which rope_scaling changes")));
    }
    let mut own = own.unwrap_or_else(plain);
    own.extend(changed.into_iter().flatten());
    // YaRN's switch stands beside the kinds of layers.
    own.remove("truncate");
    if let Some(truncate) = both.as_ref().and_then(|both| both.get("truncate")) {
        own.insert("truncate".into(), truncate.clone());
    }
    let beside = Beside { theta: config.get(theta), default_theta, original: None, ..Beside::of(config) };
    RopeParameters::complete(&at, &own, &beside)
}

/// A soft cap, where there is one.
fn softcap(config: &Value, field: &str) -> Result<Option<f32>> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
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
            2 => softcap(config, "attn_logit_softcapping")?,
            _ => None,
        };
        let sliding = c.sliding();
        let ropes = c.ropes(fields::object(config), &sliding)?;
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
        let final_cap = if version == 1 { None } else { softcap(config, "final_logit_softcapping")? };
        let tied = c.tie_word_embeddings.then_some(&embed);
        let head = l.language_head("lm_head", tied, d, c.vocab_size)?;
        let head = head.map_or(Head::None, |head| Head::Language(LmHead { softcap: final_cap, ..head }));
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
        let at = |table: &Option<RopeTable>| {
            table.as_ref().map(|table| table.at(tape.scope.device, batch.positions, batch.lengths))
        };
        let (global, local) = (at(&self.ropes.global), at(&self.ropes.local));
        let mut x = batch.embed(tape, &self.embed);
        for (i, layer) in self.layers.iter().enumerate() {
            let rope = if layer.sliding { &local } else { &global };
            let rope = rope.clone().expect("a rope for every kind of layer that there is");
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
    const TANH: &[&str] =
        &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"];
    let Some((_, pattern)) = PATTERN.into_iter().find(|(name, _)| *name == architecture) else {
        // Gemma 1's files say gelu and mean its tanh form.
        return expect_activation(path, config, "hidden_act", &[TANH, &["gelu"]].concat());
    };
    expect_activation(path, config, "hidden_activation", TANH)?;
    let wrong = |field: &str| {
        let what = format!("has a value that GGUF cannot express for this model; {INSTEAD}");
        Error::field(path, field, what)
    };
    let number = |name: &str| config.get(name).and_then(Value::as_f64);
    if number("query_pre_attn_scalar").unwrap_or(256.0) != query_scalar(architecture, config) as f64 {
        return Err(wrong("query_pre_attn_scalar"));
    }
    let usual = |(layer, kind): (usize, &Value)| {
        let sliding = !(layer as u64 + 1).is_multiple_of(pattern);
        kind.as_str() == Some(if sliding { "sliding_attention" } else { "full_attention" })
    };
    let types = config.get("layer_types").and_then(Value::as_array);
    let by_number = number("sliding_window_pattern").filter(|_| types.is_none() && architecture == "gemma3");
    if !types.is_none_or(|types| types.iter().enumerate().all(usual)) {
        return Err(wrong("layer_types"));
    }
    if by_number.is_some_and(|p| p != pattern as f64) {
        return Err(wrong("sliding_window_pattern"));
    }
    let window = config.get("sliding_window").and_then(Value::as_u64);
    let window =
        window.and_then(|window| u32::try_from(window).ok()).ok_or_else(|| wrong("sliding_window"))?;
    out.u32(&format!("{architecture}.attention.sliding_window"), window)?;
    if architecture == "gemma3" {
        let local = gemma3_rope(config, LayerKind::Sliding)?;
        if local.kind != "default" {
            return Err(wrong("rope_parameters.sliding_attention"));
        }
        let local = local.theta;
        // llama.cpp has this number built in and reads the key only in newer versions.
        out.f32("gemma3.rope.freq_base_swa", local as f32)?;
        if number("attn_logit_softcapping").is_some() {
            return Err(wrong("attn_logit_softcapping"));
        }
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

//! Gemma 1, 2 and 3 (text): norms with `1 + w`, embeddings times `sqrt(D)`, GELU gates. Gemma 2 adds norms after
//! attention and MLP, windows in every other layer and soft caps; Gemma 3 norms of q and k and a rope of its own
//! for layers with a window. `transformers/models/{gemma,gemma2,gemma3}` are followed.

use lowrank_engine::{Activation, AttentionShape, Embedding, Linear, RmsNorm, Rope, Tape, Var};
use lowrank_files::Tensors;
use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::fields;
use crate::parts::rope::{RopeScaling, RopeTable};

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
    pub fn load(config: &Value, tensors: &Tensors) -> Result<Self> {
        let c = Config::parse(config)?;
        let version = c.version();
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let attention_cap = match version {
            2 => softcap(config, "attn_logit_softcapping", Some(50.0))?,
            _ => None,
        };
        let sliding = c.sliding()?;
        let mut l = Loader::new(tensors);
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
        let tied = (c.tie_word_embeddings || !l.has("lm_head")).then_some(&embed);
        let mut head = l.head("lm_head", tied, d, c.vocab_size)?;
        head.softcap = match version {
            1 => None,
            2 => softcap(config, "final_logit_softcapping", Some(30.0))?,
            _ => softcap(config, "final_logit_softcapping", None)?,
        };
        let (ropes, head) = (c.ropes()?, Head::Language(head));
        let info = ModelInfo {
            width: d,
            vocab: c.vocab_size,
            max_positions: c.max_position_embeddings,
            position_limit: None,
            is_encoder: false,
            kv_widths: layers.iter().map(|layer| layer.shape.kv_heads * layer.shape.head_dim).collect(),
            kv_heads: kv_heads,
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
        let mut x = tape.embedding(&self.embed, batch.tokens);
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

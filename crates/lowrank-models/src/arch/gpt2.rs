//! GPT-2 (small to XL, DistilGPT2): learned positions, layer norms with bias, fused query, key and value,
//! weights stored transposed. `transformers/models/gpt2` is followed. GPT-3 ([`crate::arch::gpt3`]) is the same model with
//! locally banded attention in every other layer, and query, key and value apart.

use lowrank_engine::{Activation, AttentionShape, Embedding, LayerNorm, Linear, Tape, Var};
use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::architecture::Architecture;
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::dropout::{self, HeadDropout, places};
use crate::parts::fields;
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "gpt2",
        prefix: "transformer",
        defaults: DEFAULTS,
        aliases: ALIASES,
        renamed: &[],
        tied: TIED,
        build: |config, loader| Ok(Box::new(Gpt2::load(config, loader)?)),
        gguf: None,
    },
    Architecture {
        model_type: "gpt3",
        prefix: "transformer",
        defaults: DEFAULTS,
        aliases: ALIASES,
        renamed: &[],
        tied: TIED,
        build: |config, loader| Ok(Box::new(Gpt2::load(config, loader)?)),
        gguf: None,
    },
];

const DEFAULTS: &str = r#"{
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": true,
    "scale_attn_by_inverse_layer_idx": false, "tie_word_embeddings": true,
    "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "classifier_dropout": null, "hidden_dropout": null,
    "pad_token_id": null, "initializer_range": 0.02
}"#;

const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
    ("max_position_embeddings", "n_positions"),
];

const TIED: Tied = Tied { default: true, pairs: &[("lm_head.weight", "transformer.wte.weight")] };

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    n_embd: usize,
    n_head: usize,
    n_layer: usize,
    n_positions: usize,
    /// Width of the MLP, where it is not four times the model's.
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f32,
    /// Whether scores are divided by the root of the width of a head.
    scale_attn_weights: bool,
    /// Whether scores are also divided by the number of the layer, from 1 (Mistral's GPT-2).
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
    /// GPT-3: how many tokens, itself among them, a token of a banded layer sees.
    window_size: Option<usize>,
    /// Probabilities of dropout: of the embeddings, of attention's probabilities, of what is added to the residual.
    embd_pdrop: f32,
    attn_pdrop: f32,
    resid_pdrop: f32,
    /// Before the scores of tokens.
    classifier_dropout: Option<f32>,
    hidden_dropout: Option<f32>,
}

impl Config {
    fn parse(config: &Value) -> Result<Self> {
        let c: Self = fields::read(config)?;
        let wrong = |what: String| Err(fields::wrong(what));
        if c.n_head == 0 || c.n_embd == 0 || !c.n_embd.is_multiple_of(c.n_head) {
            return wrong(format!("n_embd {} is not a multiple of n_head {}", c.n_embd, c.n_head));
        }
        match (c.is_gpt3(), c.window_size) {
            (true, None) => return wrong("window_size is missing: the band of GPT-3's banded layers".into()),
            (true, Some(0)) => return wrong("window_size must be at least 1".into()),
            _ => {}
        }
        dropout::check(&[
            ("embd_pdrop", c.embd_pdrop),
            ("attn_pdrop", c.attn_pdrop),
            ("resid_pdrop", c.resid_pdrop),
            ("classifier_dropout", c.token_dropout()),
        ])?;
        Ok(c)
    }

    /// As transformers chooses it.
    fn token_dropout(&self) -> f32 {
        self.classifier_dropout.or(self.hidden_dropout).unwrap_or(0.1)
    }

    fn is_gpt3(&self) -> bool {
        self.model_type == "gpt3"
    }

    fn attention(&self, layer: usize) -> AttentionShape {
        let head_dim = self.n_embd / self.n_head;
        let mut scale = if self.scale_attn_weights { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f32;
        }
        let window = self.window_size.filter(|_| self.is_gpt3() && layer % 2 == 1);
        let (heads, kv_heads) = (self.n_head, self.n_head);
        AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale,
            causal: true,
            window,
            softcap: None,
            dropout: None,
        }
    }
}

/// A model of GPT-2's kind.
pub struct Gpt2 {
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Head,
    embd_pdrop: f32,
    head_dropout: HeadDropout,
    info: ModelInfo,
}

/// Query, key and value.
enum Qkv {
    Fused(Linear),
    Apart(Box<[Linear; 3]>),
}

struct Layer {
    norm_1: LayerNorm,
    qkv: Qkv,
    o: Linear,
    norm_2: LayerNorm,
    up: Linear,
    down: Linear,
    activation: Activation,
    shape: AttentionShape,
    attn_pdrop: f32,
    resid_pdrop: f32,
}

impl Gpt2 {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c = Config::parse(config)?;
        let (d, eps, activation) =
            (c.n_embd, c.layer_norm_epsilon, activation("activation_function", &c.activation_function)?);
        let token_table = l.embedding("transformer.wte", c.vocab_size, d)?;
        let position_table = l.embedding("transformer.wpe", c.n_positions, d)?;
        // The tables have shown that the width is real: four times as much does not overflow.
        let f = c.n_inner.unwrap_or(4 * d);
        let mut layers = Vec::new();
        for i in 0..c.n_layer {
            let at = |name: &str| format!("transformer.h.{i}.{name}");
            let norm_1 = l.layer_norm(&at("ln_1"), d, eps)?;
            let qkv = if c.is_gpt3() {
                Qkv::Apart(Box::new([
                    l.conv1d(&at("attn.q_proj"), d, d)?,
                    l.conv1d(&at("attn.k_proj"), d, d)?,
                    l.conv1d(&at("attn.v_proj"), d, d)?,
                ]))
            } else {
                Qkv::Fused(l.conv1d(&at("attn.c_attn"), d, 3 * d)?)
            };
            layers.push(Layer {
                norm_1,
                qkv,
                o: l.conv1d(&at("attn.c_proj"), d, d)?,
                norm_2: l.layer_norm(&at("ln_2"), d, eps)?,
                up: l.conv1d(&at("mlp.c_fc"), d, f)?,
                down: l.conv1d(&at("mlp.c_proj"), f, d)?,
                activation,
                shape: c.attention(i),
                attn_pdrop: c.attn_pdrop,
                resid_pdrop: c.resid_pdrop,
            });
        }
        let norm = l.layer_norm("transformer.ln_f", d, eps)?;
        let tied = c.tie_word_embeddings.then_some(&token_table);
        let head = l.language_head("lm_head", tied, d, c.vocab_size)?.map_or(Head::None, Head::Language);
        // PEFT's for GPT-2; what the paper of LoRA adapts of GPT-3.
        let targets: &'static [&'static str] = if c.is_gpt3() { &["q_proj", "v_proj"] } else { &["c_attn"] };
        let (tokens, positions) = (token_table, position_table);
        let info = ModelInfo {
            width: d,
            vocab: c.vocab_size,
            max_positions: c.n_positions,
            position_limit: Some(c.n_positions),
            is_encoder: false,
            kv_widths: vec![d; c.n_layer],
            kv_heads: c.n_head,
            sites: l.into_sites(),
            default_targets: targets,
            head_layout: HeadLayout { token_output: "classifier", ..HeadLayout::DECODER },
            new_layers: Vec::new(),
        };
        let embd_pdrop = c.embd_pdrop;
        let head_dropout = HeadDropout { token: c.token_dropout(), ..HeadDropout::default() };
        Ok(Self { tokens, positions, layers, norm, head, embd_pdrop, head_dropout, info })
    }
}

impl Layer {
    fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: Var<'m>, block: BlockContext<'m>) -> Var<'m> {
        let d = x.tensor.cols();
        let h = tape.layer_norm(&self.norm_1, &x);
        let [q, k, v] = match &self.qkv {
            Qkv::Fused(layer) => {
                let qkv = tape.linear(layer, &h, None);
                tape.split(qkv, [d; 3])
            }
            Qkv::Apart(layers) => layers.each_ref().map(|layer| tape.linear(layer, &h, None)),
        };
        drop(h);
        let [in_attention, in_projection, in_output] = places(block.layer);
        let dropout = tape.base_attention_dropout(self.attn_pdrop, in_attention);
        let o = tape.attention(q, k, v, block.attention(AttentionShape { dropout, ..self.shape }, None));
        let (o, x) = block.select_output_rows(tape, o, x);
        let x = tape.linear_dropout(&self.o, &o, x, self.resid_pdrop, in_projection);
        drop(o);

        let h = tape.layer_norm(&self.norm_2, &x);
        let up = tape.linear(&self.up, &h, None);
        drop(h);
        let h = tape.activate(up, self.activation);
        tape.linear_dropout(&self.down, &h, x, self.resid_pdrop, in_output)
    }
}

impl Model for Gpt2 {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let tokens = batch.embed(tape, &self.tokens);
        let positions = tape.embedding(&self.positions, batch.positions);
        let mut x = tape.add(tokens, &positions);
        drop(positions);
        x = tape.base_dropout(x, self.embd_pdrop, dropout::EMBEDDINGS);
        for (i, layer) in self.layers.iter().enumerate() {
            let block = batch.block(i, self.layers.len());
            x = tape.block(x, move |tape, x| layer.forward(tape, x, block));
        }
        tape.layer_norm(&self.norm, &x)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn has_dropout(&self) -> bool {
        true
    }

    fn head_dropout(&self) -> HeadDropout {
        self.head_dropout
    }
}

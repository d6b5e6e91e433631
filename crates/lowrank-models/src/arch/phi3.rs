//! Phi-3 and Phi-4: Llama's block with query, key and value in one projection, gate and up in another, and
//! rotations that may leave part of a head alone. `transformers/models/phi3` is followed.

use std::path::Path;

use lowrank_engine::{Activation, AttentionShape, Embedding, Linear, RmsNorm, Rope, Tape, Var};
use lowrank_files::{Gguf, GgufNames, GgufWriter};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, GgufModel, expect_activation};
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::fields;
use crate::parts::rope::{self, Beside, RopeParameters, RopeTable};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "phi3",
    prefix: "model",
    defaults: r#"{
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu",
            "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false, "sliding_window": null, "pad_token_id": 32000,
            "initializer_range": 0.02
        }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied::DECODER,
    build: |config, loader| Ok(Box::new(Phi3::load(config, loader)?)),
    gguf: Some(GgufModel {
        names: GgufNames {
            block: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
            ..GgufNames::USUAL
        },
        partial_rotary: Some(1.0),
        rope: |config| Ok(Config::parse(&Value::Object(config.clone()))?.parameters(config)?.0),
        read: read_gguf,
        write: write_gguf,
        ..GgufModel::usual("phi3", "Phi3ForCausalLM")
    }),
}];

fn read_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("hidden_act".into(), json!("silu"));
    let original = gguf.integer("phi3.rope.scaling.original_context_length")?.map(Value::from);
    let original = original.unwrap_or_else(|| config["max_position_embeddings"].clone());
    config.insert("original_max_position_embeddings".into(), original);
    Ok(())
}

fn write_gguf(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    expect_activation(path, config, "hidden_act", &["silu", "swish"])?;
    let number = |name: &str| config.get(name).and_then(Value::as_u64).map(u32::try_from);
    let wide = |field: &str| Error::field(path, field, "is too large");
    if let Some(original) = number("original_max_position_embeddings") {
        let original = original.map_err(|_| wide("original_max_position_embeddings"))?;
        out.u32("phi3.rope.scaling.original_context_length", original)?;
    }
    // llama.cpp takes a window of 0 for none.
    let window = number("sliding_window").transpose().map_err(|_| wide("sliding_window"))?.unwrap_or(0);
    Ok(out.u32("phi3.attention.sliding_window", window)?)
}

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    /// Not a field of Phi-3's, but taken where it is there.
    head_dim: Option<usize>,
    hidden_act: String,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    sliding_window: Option<usize>,
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(config: &Value) -> Result<Self> {
        let c: Self = fields::read(config)?;
        if !config["original_max_position_embeddings"].is_u64() {
            return Err(fields::wrong("original_max_position_embeddings: a number is needed"));
        }
        if config.get("head_dim").is_some_and(Value::is_null) {
            return Err(fields::wrong("head_dim is null; a number is needed"));
        }
        fields::check_heads(c.num_attention_heads, c.kv_heads(), c.head_dim())?;
        if c.sliding_window == Some(0) {
            return Err(fields::wrong("sliding_window must be at least 1"));
        }
        Ok(c)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// The rope, which may leave a part of a head alone. Old files say `su` or `yarn` for longrope, and the trained
    /// length stands beside the rope.
    fn rope(&self, config: &Map<String, Value>) -> Result<RopeTable> {
        let (rope, rotated) = self.parameters(config)?;
        RopeTable::of_part(rotated, self.head_dim(), self.max_position_embeddings, &rope)
    }

    /// Its parameters, and how many numbers of a head it rotates.
    fn parameters(&self, config: &Map<String, Value>) -> Result<(RopeParameters, usize)> {
        let (at, mut given) = rope::flat_section(config)?;
        let kind = given.get("rope_type").or(given.get("type")).and_then(Value::as_str);
        match kind.unwrap_or("default") {
            "default" | "longrope" => {}
            "su" | "yarn" => {
                given.insert("rope_type".into(), "longrope".into());
            }
            other => {
                let known = "default, longrope";
                return Err(fields::wrong(format!(
                    "{at}.rope_type {other:?} is not known; known are {known}"
                )));
            }
        }
        let share = given.get("partial_rotary_factor").or(config.get("partial_rotary_factor"));
        if share.is_some_and(Value::is_null) {
            return Err(fields::wrong("partial_rotary_factor is null; a number is needed"));
        }
        let beside = Beside { partial: config.get("partial_rotary_factor"), ..Beside::of(config) };
        let rope = RopeParameters::complete(at, &given, &beside)?;
        let (share, rotated) = (rope.partial.unwrap_or(1.0), rope.rotated(self.head_dim()));
        if !(share > 0.0 && share <= 1.0) || rotated == 0 {
            let whole = self.head_dim();
            let what =
                format!("{at}: partial_rotary_factor {share} rotates {rotated} of {whole} numbers of a head");
            return Err(fields::wrong(what));
        }
        let lists = [("short_factor", &rope.short_factor), ("long_factor", &rope.long_factor)];
        for (name, list) in lists.into_iter().filter_map(|(name, list)| Some((name, list.as_ref()?))) {
            if list.len() != rotated / 2 {
                let (has, needs) = (list.len(), rotated / 2);
                return Err(fields::wrong(format!("{at}.{name} has {has} numbers; {needs} are needed")));
            }
        }
        Ok((rope, rotated))
    }
}

/// A model of Phi-3's kind.
pub struct Phi3 {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Head,
    rope: RopeTable,
    info: ModelInfo,
}

struct Layer {
    input_norm: RmsNorm,
    qkv: Linear,
    o: Linear,
    post_norm: RmsNorm,
    gate_up: Linear,
    down: Linear,
    activation: Activation,
    shape: AttentionShape,
}

impl Phi3 {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c = Config::parse(config)?;
        let (d, f, eps) = (c.hidden_size, c.intermediate_size, c.rms_norm_eps);
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.kv_heads(), c.head_dim());
        let activation = activation("hidden_act", &c.hidden_act)?;
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: true,
            window: c.sliding_window,
            softcap: None,
            dropout: None,
        };
        let embed = l.embedding("model.embed_tokens", c.vocab_size, d)?;
        let mut layers = Vec::new();
        for i in 0..c.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            layers.push(Layer {
                input_norm: l.rms_norm(&at("input_layernorm"), d, eps)?,
                qkv: l.linear(&at("self_attn.qkv_proj"), d, (heads + 2 * kv_heads) * head_dim, false)?,
                o: l.linear(&at("self_attn.o_proj"), heads * head_dim, d, false)?,
                post_norm: l.rms_norm(&at("post_attention_layernorm"), d, eps)?,
                gate_up: l.linear(&at("mlp.gate_up_proj"), d, f.saturating_mul(2), false)?,
                down: l.linear(&at("mlp.down_proj"), f, d, false)?,
                activation,
                shape,
            });
        }
        let norm = l.rms_norm("model.norm", d, eps)?;
        let tied = c.tie_word_embeddings.then_some(&embed);
        let head = l.language_head("lm_head", tied, d, c.vocab_size)?.map_or(Head::None, Head::Language);
        let rope = c.rope(fields::object(config))?;
        let info = ModelInfo {
            width: d,
            vocab: c.vocab_size,
            max_positions: c.max_position_embeddings,
            position_limit: None,
            is_encoder: false,
            kv_widths: layers.iter().map(|layer| layer.shape.kv_heads * layer.shape.head_dim).collect(),
            kv_heads,
            sites: l.into_sites(),
            // PEFT names none for Phi-3; this one holds what it adapts in the models it knows (q and v).
            default_targets: &["qkv_proj"],
            head_layout: HeadLayout::DECODER,
            new_layers: Vec::new(),
        };
        Ok(Self { embed, layers, norm, head, rope, info })
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
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let h = tape.rms_norm(&self.input_norm, &x);
        let qkv = tape.linear(&self.qkv, &h, None);
        drop(h);
        let [q, k, v] = tape.split(qkv, [heads, kv_heads, kv_heads].map(|heads| heads * head_dim));
        let o = tape.attention(q, k, v, block.attention(self.shape, Some(rope.clone())));
        let (o, x) = block.select_output_rows(tape, o, x);
        let x = tape.linear(&self.o, &o, Some(x));
        drop(o);

        let h = tape.rms_norm(&self.post_norm, &x);
        let gate_up = tape.linear(&self.gate_up, &h, None);
        drop(h);
        let [gate, up] = tape.split(gate_up, [self.down.in_features(); 2]);
        let h = tape.gated(gate, up, self.activation);
        tape.linear(&self.down, &h, Some(x))
    }
}

impl Model for Phi3 {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let rope = self.rope.at(tape.scope.device, batch.positions, batch.lengths);
        let mut x = batch.embed(tape, &self.embed);
        for (i, layer) in self.layers.iter().enumerate() {
            let rope = rope.clone();
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

    fn rope_switch(&self) -> Option<usize> {
        self.rope.switch()
    }
}

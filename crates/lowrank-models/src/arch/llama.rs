//! The Llama family: Llama 2 and 3, SmolLM, Mistral (sliding window) and Ministral (in some layers), Qwen2 (bias on q, k, v) and Qwen3
//! (norms on q and k). `transformers/models/{llama,mistral,qwen2,qwen3}` are followed.

use std::path::Path;

use lowrank_engine::{Activation, AttentionShape, Embedding, Linear, RmsNorm, Rope, Tape, Var};
use lowrank_files::{GgufNames, GgufWriter};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::architecture::{Architecture, GgufModel, INSTEAD};
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::fields;
use crate::parts::rope::{self, RopeParameters, RopeTable};
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "llama",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "attention_bias": false, "mlp_bias": false, "pad_token_id": null, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: |config, loader| Ok(Box::new(Llama::load(config, loader)?)),
        gguf: Some(LLAMA_GGUF),
    },
    Architecture {
        model_type: "mistral",
        prefix: "model",
        defaults: MISTRAL_DEFAULTS,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: |config, loader| Ok(Box::new(Llama::load(config, loader)?)),
        gguf: Some(GgufModel {
            windowed: true,
            class: "MistralForCausalLM",
            write: write_mistral,
            ..LLAMA_GGUF
        }),
    },
    Architecture {
        model_type: "ministral",
        prefix: "model",
        defaults: MISTRAL_DEFAULTS,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: |config, loader| Ok(Box::new(Llama::load(config, loader)?)),
        gguf: None,
    },
    Architecture {
        model_type: "qwen2",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
            "pad_token_id": null, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: |config, loader| Ok(Box::new(Llama::load(config, loader)?)),
        gguf: Some(GgufModel {
            biases: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            write: write_qwen,
            ..GgufModel::usual("qwen2", "Qwen2ForCausalLM")
        }),
    },
    Architecture {
        model_type: "qwen3",
        prefix: "model",
        defaults: r#"{
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
            "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096,
            "max_window_layers": 28, "pad_token_id": null, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied::DECODER,
        build: |config, loader| Ok(Box::new(Llama::load(config, loader)?)),
        gguf: Some(GgufModel {
            qk_norms: true,
            write: write_qwen,
            ..GgufModel::usual("qwen3", "Qwen3ForCausalLM")
        }),
    },
];

/// llama.cpp stores Llama's rows of q and k in the interleaved rope order, and Mistral as Llama: only the sliding window
/// tells them apart.
pub(super) const LLAMA_GGUF: GgufModel = GgufModel {
    biases: &[
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    rope_factors: true,
    names: GgufNames { interleaved: &["self_attn.q_proj", "self_attn.k_proj"], ..GgufNames::USUAL },
    read: |gguf, config| {
        config.insert("hidden_act".into(), "silu".into());
        config.insert("attention_bias".into(), gguf.dims_of("blk.0.attn_q.bias").is_some().into());
        config.insert("mlp_bias".into(), gguf.dims_of("blk.0.ffn_up.bias").is_some().into());
        Ok(())
    },
    ..GgufModel::usual("llama", "LlamaForCausalLM")
};

/// The window, which all layers of a file have or none.
fn write_mistral(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    (LLAMA_GGUF.write)(path, config, out)?;
    let windows = windows_of(config)?;
    if windows.iter().any(|window| *window != windows[0]) {
        let what = format!("gives some layers a window, which GGUF has no word for; {INSTEAD}");
        return Err(Error::field(path, "layer_types", what));
    }
    if let Some(window) = windows.first().copied().flatten() {
        let wide = |_| Error::field(path, "sliding_window", "is too large");
        out.u32("llama.attention.sliding_window", u32::try_from(window).map_err(wide)?)?;
    }
    Ok(())
}

/// llama.cpp knows no window of Qwen's.
fn write_qwen(path: &Path, config: &Map<String, Value>, out: &mut GgufWriter) -> Result<()> {
    (LLAMA_GGUF.write)(path, config, out)?;
    if windows_of(config)?.iter().any(Option::is_some) {
        let what = format!("gives layers a window, which GGUF has no word for in this model; {INSTEAD}");
        return Err(Error::field(path, "use_sliding_window", what));
    }
    Ok(())
}

fn windows_of(config: &Map<String, Value>) -> Result<Vec<Option<usize>>> {
    fields::read::<Config>(&Value::Object(config.clone()))?.windows()
}

const MISTRAL_DEFAULTS: &str = r#"{
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": null, "hidden_act": "silu",
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "sliding_window": 4096, "pad_token_id": null, "initializer_range": 0.02
}"#;

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    hidden_act: String,
    tie_word_embeddings: bool,
    sliding_window: Option<usize>,
    /// Qwen2 and Qwen3.
    use_sliding_window: Option<bool>,
    max_window_layers: Option<i64>,
    layer_types: Option<Vec<String>>,
}

impl Config {
    fn parse(config: &Value) -> Result<Self> {
        let c: Self = fields::read(config)?;
        let kind = c.model_type.as_str();
        if matches!(kind, "mistral" | "ministral") && c.num_key_value_heads.is_none() {
            return Err(fields::wrong("num_key_value_heads is null; a number is needed"));
        }
        // Qwen2 has no such field, but takes it where it is there.
        if matches!(kind, "qwen2" | "qwen3") && config.get("head_dim").is_some_and(Value::is_null) {
            return Err(fields::wrong("head_dim is null; a number is needed"));
        }
        if matches!(kind, "qwen2" | "qwen3" | "ministral") {
            rope::check_flat(fields::object(config))?;
        }
        if kind == "llama" {
            fields::check_width(c.hidden_size, c.num_attention_heads)?;
        }
        fields::check_heads(c.num_attention_heads, c.kv_heads(), c.head_dim())?;
        Ok(c)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// How far back each layer sees, where it does not see everything.
    fn windows(&self) -> Result<Vec<Option<usize>>> {
        let layers = self.num_hidden_layers;
        let (window, sliding) = match self.model_type.as_str() {
            "llama" => (None, vec![false; layers]),
            "mistral" | "ministral" => {
                let by_number = |_| self.sliding_window.is_some();
                let sliding = fields::sliding_layers(self.layer_types.as_deref(), layers, by_number);
                (self.sliding_window, sliding)
            }
            _ => {
                let window = self.sliding_window.filter(|_| self.use_sliding_window == Some(true));
                let first = self.max_window_layers.unwrap_or_default();
                let by_number = |layer: usize| window.is_some() && layer as i64 >= first;
                (window, fields::sliding_layers(self.layer_types.as_deref(), layers, by_number))
            }
        };
        fields::windows(window, &sliding)
    }

    /// Whether q, k and v have a bias, and whether o has.
    fn attention_biases(&self, config: &Value) -> Result<(bool, bool)> {
        Ok(match self.model_type.as_str() {
            "llama" | "qwen3" => [fields::flag(config, "attention_bias")?; 2].into(),
            "qwen2" => (true, false),
            _ => (false, false),
        })
    }
}

/// A model of the Llama family.
pub struct Llama {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Head,
    rope: RopeTable,
    info: ModelInfo,
}

struct Layer {
    input_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Qwen3: norms of each head's query and key.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    post_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
    shape: AttentionShape,
}

impl Llama {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c = Config::parse(config)?;
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (heads, kv_heads, head_dim) = (c.num_attention_heads, c.kv_heads(), c.head_dim());
        let (qkv_bias, o_bias) = c.attention_biases(config)?;
        let mlp_bias = c.model_type == "llama" && fields::flag(config, "mlp_bias")?;
        let activation = activation("hidden_act", &c.hidden_act)?;
        let windows = c.windows()?;
        let embed = l.embedding("model.embed_tokens", c.vocab_size, d)?;
        let mut layers = Vec::new();
        for (i, window) in windows.into_iter().enumerate() {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            let qk_norm = match c.model_type.as_str() {
                "qwen3" => Some((
                    l.rms_norm(&at("self_attn.q_norm"), head_dim, c.rms_norm_eps)?,
                    l.rms_norm(&at("self_attn.k_norm"), head_dim, c.rms_norm_eps)?,
                )),
                _ => None,
            };
            layers.push(Layer {
                input_norm: l.rms_norm(&at("input_layernorm"), d, c.rms_norm_eps)?,
                q: l.linear(&at("self_attn.q_proj"), d, heads * head_dim, qkv_bias)?,
                k: l.linear(&at("self_attn.k_proj"), d, kv_heads * head_dim, qkv_bias)?,
                v: l.linear(&at("self_attn.v_proj"), d, kv_heads * head_dim, qkv_bias)?,
                o: l.linear(&at("self_attn.o_proj"), heads * head_dim, d, o_bias)?,
                qk_norm,
                post_norm: l.rms_norm(&at("post_attention_layernorm"), d, c.rms_norm_eps)?,
                gate: l.linear(&at("mlp.gate_proj"), d, f, mlp_bias)?,
                up: l.linear(&at("mlp.up_proj"), d, f, mlp_bias)?,
                down: l.linear(&at("mlp.down_proj"), f, d, mlp_bias)?,
                activation,
                shape: AttentionShape {
                    heads,
                    kv_heads,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    causal: true,
                    window,
                    softcap: None,
                    dropout: None,
                },
            });
        }
        let norm = l.rms_norm("model.norm", d, c.rms_norm_eps)?;
        let tied = c.tie_word_embeddings.then_some(&embed);
        let head = l.language_head("lm_head", tied, d, c.vocab_size)?.map_or(Head::None, Head::Language);
        let scaling = RopeParameters::read(fields::object(config))?;
        let mut rope = RopeTable::whole(head_dim, c.max_position_embeddings, &scaling)?;
        // Llama 3's rule has these factors already.
        if let Some(factors) = l.optional_vector("rope_freqs")?.filter(|_| scaling.kind != "llama3") {
            rope.divide(&factors)?;
        }
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
        let x = tape.linear(&self.o, &o, Some(x));
        drop(o);

        let h = tape.rms_norm(&self.post_norm, &x);
        let gate = tape.linear(&self.gate, &h, None);
        let up = tape.linear(&self.up, &h, None);
        drop(h);
        let h = tape.gated(gate, up, self.activation);
        tape.linear(&self.down, &h, Some(x))
    }
}

impl Model for Llama {
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
}

//! DistilBERT: BERT's block without token types. `transformers/models/distilbert` is followed.

use lowrank_engine::{Activation, Embedding, LayerNorm, Tape, Var};
use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::architecture::Architecture;
use crate::heads::{Head, HeadLayout, MaskedLayout, Reads};
use crate::loader::Loader;
use crate::model::{Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::dropout::{self, HeadDropout};
use crate::parts::encoder::{Block, Dropout, Names, Shape};
use crate::parts::fields;
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "distilbert",
    prefix: "distilbert",
    defaults: r#"{
        "vocab_size": 30522, "max_position_embeddings": 512, "sinusoidal_pos_embds": false, "n_layers": 6,
        "n_heads": 12, "dim": 768, "hidden_dim": 3072, "activation": "gelu", "pad_token_id": 0, "dropout": 0.1,
        "attention_dropout": 0.1, "seq_classif_dropout": 0.2,
        "tie_word_embeddings": true, "initializer_range": 0.02
    }"#,
    aliases: &[("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")],
    renamed: &[],
    tied: Tied {
        default: true,
        pairs: &[("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight")],
    },
    build: |config, loader| Ok(Box::new(DistilBert::load(config, loader)?)),
    gguf: None,
}];

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    max_position_embeddings: usize,
    activation: String,
    dropout: f32,
    attention_dropout: f32,
    seq_classif_dropout: f32,
}

const NAMES: Names = Names {
    q: "attention.q_lin",
    k: "attention.k_lin",
    v: "attention.v_lin",
    o: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
};

/// Of every layer norm.
const EPS: f32 = 1e-12;

/// A DistilBERT.
pub struct DistilBert {
    words: Embedding,
    positions: Embedding,
    norm: LayerNorm,
    blocks: Vec<Block>,
    dropout: Dropout,
    head_dropout: HeadDropout,
    info: ModelInfo,
}

impl DistilBert {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c: Config = fields::read(config)?;
        let activation = activation("activation", &c.activation)?;
        dropout::check(&[
            ("dropout", c.dropout),
            ("attention_dropout", c.attention_dropout),
            ("seq_classif_dropout", c.seq_classif_dropout),
        ])?;
        let (embeddings, output) = (c.dropout, c.dropout);
        let dropout = Dropout { embeddings, attention: c.attention_dropout, projection: 0.0, output };
        let head_dropout = HeadDropout { dense: 0.0, output: c.seq_classif_dropout, token: c.dropout };
        let (width, heads, inner) = (c.dim, c.n_heads, c.hidden_dim);
        let shape = Shape { width, heads, inner, activation, eps: EPS, dropout };
        shape.check(["dim", "n_heads"])?;
        let words = l.embedding("distilbert.embeddings.word_embeddings", c.vocab_size, c.dim)?;
        let table = "distilbert.embeddings.position_embeddings";
        let positions = l.embedding(table, c.max_position_embeddings, c.dim)?;
        let norm = l.layer_norm("distilbert.embeddings.LayerNorm", c.dim, EPS)?;
        let mut blocks = Vec::new();
        for i in 0..c.n_layers {
            let path = format!("distilbert.transformer.layer.{i}");
            blocks.push(Block::load(&mut l, &path, &NAMES, &shape)?);
        }
        let head_layout = HeadLayout {
            reads: Reads::First,
            dense: Some(("pre_classifier", Activation::Relu)),
            output: "classifier",
            token_output: "classifier",
            bias: true,
            masked: Some(MaskedLayout {
                dense: "vocab_transform",
                activation,
                norm: ("vocab_layer_norm", EPS),
                decoder: "vocab_projector",
                bias: "vocab_projector.bias",
                table: "distilbert.embeddings.word_embeddings",
            }),
        };
        let info = ModelInfo {
            width: c.dim,
            vocab: c.vocab_size,
            max_positions: c.max_position_embeddings,
            position_limit: Some(c.max_position_embeddings),
            is_encoder: true,
            kv_widths: Vec::new(),
            kv_heads: 0,
            sites: l.into_sites(),
            default_targets: &["q_lin", "v_lin"],
            head_layout,
            new_layers: Vec::new(),
        };
        Ok(Self { words, positions, norm, blocks, dropout, head_dropout, info })
    }
}

impl Model for DistilBert {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let mut x = batch.embed(tape, &self.words);
        let positions = tape.embedding(&self.positions, batch.positions);
        x = tape.add(x, &positions);
        drop(positions);
        x = tape.layer_norm(&self.norm, &x);
        x = tape.base_dropout(x, self.dropout.embeddings, dropout::EMBEDDINGS);
        for (i, layer) in self.blocks.iter().enumerate() {
            let block = batch.block(i, self.blocks.len());
            x = tape.block(x, move |tape, x| layer.forward(tape, x, block));
        }
        x
    }

    fn head(&self) -> &Head {
        &Head::None
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

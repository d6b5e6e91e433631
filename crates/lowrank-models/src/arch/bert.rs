//! BERT, RoBERTa and XLM-R: learned positions and token types, layer norms after the blocks.
//! `transformers/models/{bert,roberta,xlm_roberta}` are followed. RoBERTa and XLM-R count positions from
//! `pad_token_id + 1`, past padding tokens, and have one token type.

use lowrank_engine::{Activation, Embedding, LayerNorm, Tape, Var};
use serde::Deserialize;
use serde_json::Value;

use crate::architecture::Architecture;
use crate::heads::{Head, HeadLayout, MaskedLayout, Reads};
use crate::loader::Loader;
use crate::model::{Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::dropout::{self, HeadDropout};
use crate::parts::encoder::{Block, Dropout, Names, Shape};
use crate::parts::fields;
use crate::tied::Tied;
use crate::{Error, Result};

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "bert",
        prefix: "bert",
        defaults: r#"{
            "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
            "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            "classifier_dropout": null, "layer_norm_eps": 1e-12, "pad_token_id": 0, "is_decoder": false,
            "add_cross_attention": false, "tie_word_embeddings": true, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: Tied {
            default: true,
            pairs: &[
                ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
                ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            ],
        },
        build: |config, loader| Ok(Box::new(Bert::load(config, loader)?)),
        gguf: None,
    },
    Architecture {
        model_type: "roberta",
        prefix: "roberta",
        defaults: r#"{
            "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
            "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            "classifier_dropout": null, "layer_norm_eps": 1e-12, "pad_token_id": 1, "is_decoder": false,
            "add_cross_attention": false, "tie_word_embeddings": true, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: ROBERTA_TIED,
        build: |config, loader| Ok(Box::new(Bert::load(config, loader)?)),
        gguf: None,
    },
    Architecture {
        model_type: "xlm-roberta",
        prefix: "roberta",
        defaults: r#"{
            "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512,
            "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            "classifier_dropout": null, "layer_norm_eps": 1e-12, "pad_token_id": 1, "is_decoder": false,
            "add_cross_attention": false, "tie_word_embeddings": true, "initializer_range": 0.02
        }"#,
        aliases: &[],
        renamed: &[],
        tied: ROBERTA_TIED,
        build: |config, loader| Ok(Box::new(Bert::load(config, loader)?)),
        gguf: None,
    },
];

const ROBERTA_TIED: Tied = Tied {
    default: true,
    pairs: &[
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ],
};

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    pad_token_id: Option<i64>,
    position_embedding_type: Option<String>,
    is_decoder: bool,
    add_cross_attention: bool,
    hidden_dropout_prob: f32,
    attention_probs_dropout_prob: f32,
    classifier_dropout: Option<f32>,
}

const NAMES: Names = Names {
    q: "attention.self.query",
    k: "attention.self.key",
    v: "attention.self.value",
    o: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

/// A model of BERT's kind.
pub struct Bert {
    words: Embedding,
    position_table: Embedding,
    types: Embedding,
    norm: LayerNorm,
    blocks: Vec<Block>,
    info: ModelInfo,
    /// RoBERTa: the padding token, which is also the position of every padding token; others count on from it.
    padding: Option<u32>,
    dropout: Dropout,
    head_dropout: HeadDropout,
}

impl Bert {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c: Config = fields::read(config)?;
        let wrong = |what: String| Err(Error::Config(format!("config.json: {what}")));
        if let Some(kind) = c.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return wrong(format!("position_embedding_type {kind:?} is not known; absolute is"));
        }
        if c.is_decoder || c.add_cross_attention {
            return wrong("is_decoder or add_cross_attention is true; only encoders are supported".into());
        }
        let bert = c.model_type == "bert";
        let first_position = match (bert, c.pad_token_id) {
            (true, _) => 0,
            (false, Some(padding)) if (0..c.vocab_size as i64).contains(&padding) => padding as usize + 1,
            (false, _) => return wrong("pad_token_id: a token is needed, from which positions count".into()),
        };
        if c.type_vocab_size == 0 || first_position >= c.max_position_embeddings {
            return wrong("type_vocab_size and max_position_embeddings leave no row to look up".into());
        }
        let activation = activation("hidden_act", &c.hidden_act)?;
        let (d, eps) = (c.hidden_size, c.layer_norm_eps);
        let hidden = c.hidden_dropout_prob;
        let classifier = c.classifier_dropout.unwrap_or(hidden);
        dropout::check(&[
            ("hidden_dropout_prob", hidden),
            ("attention_probs_dropout_prob", c.attention_probs_dropout_prob),
            ("classifier_dropout", classifier),
        ])?;
        let dropout = Dropout {
            embeddings: hidden,
            attention: c.attention_probs_dropout_prob,
            projection: hidden,
            output: hidden,
        };
        // RoBERTa's head drops its input too.
        let head_dropout =
            HeadDropout { dense: if bert { 0.0 } else { classifier }, output: classifier, token: classifier };
        let (heads, inner) = (c.num_attention_heads, c.intermediate_size);
        let shape = Shape { width: d, heads, inner, activation, eps, dropout };
        shape.check(["hidden_size", "num_attention_heads"])?;
        let prefix = if bert { "bert" } else { "roberta" };
        let at = |name: &str| format!("{prefix}.{name}");
        let words = l.embedding(&at("embeddings.word_embeddings"), c.vocab_size, d)?;
        let position_table =
            l.embedding(&at("embeddings.position_embeddings"), c.max_position_embeddings, d)?;
        let types = l.embedding(&at("embeddings.token_type_embeddings"), c.type_vocab_size, d)?;
        let norm = l.layer_norm(&at("embeddings.LayerNorm"), d, eps)?;
        let mut blocks = Vec::new();
        for i in 0..c.num_hidden_layers {
            blocks.push(Block::load(&mut l, &at(&format!("encoder.layer.{i}")), &NAMES, &shape)?);
        }
        let (dense, output) = match bert {
            true => ("bert.pooler.dense", "classifier"),
            false => ("classifier.dense", "classifier.out_proj"),
        };
        let head_layout = HeadLayout {
            reads: Reads::First,
            dense: Some((dense, Activation::Tanh)),
            output,
            token_output: "classifier",
            bias: true,
            masked: Some(match bert {
                true => MaskedLayout {
                    dense: "cls.predictions.transform.dense",
                    activation,
                    norm: ("cls.predictions.transform.LayerNorm", eps),
                    decoder: "cls.predictions.decoder",
                    bias: "cls.predictions.bias",
                    table: "bert.embeddings.word_embeddings",
                },
                false => MaskedLayout {
                    dense: "lm_head.dense",
                    activation: Activation::Gelu,
                    norm: ("lm_head.layer_norm", eps),
                    decoder: "lm_head.decoder",
                    bias: "lm_head.bias",
                    table: "roberta.embeddings.word_embeddings",
                },
            }),
        };
        let positions_left = c.max_position_embeddings - first_position;
        let info = ModelInfo {
            width: d,
            vocab: c.vocab_size,
            max_positions: positions_left,
            position_limit: Some(positions_left),
            is_encoder: true,
            kv_widths: Vec::new(),
            kv_heads: 0,
            sites: l.into_sites(),
            default_targets: &["query", "value"],
            head_layout,
            new_layers: Vec::new(),
        };
        let padding = (!bert).then(|| first_position as u32 - 1);
        Ok(Self { words, position_table, types, norm, blocks, padding, dropout, head_dropout, info })
    }
}

impl Bert {
    /// The position of each row. RoBERTa counts from that of its padding token, which it skips wherever it stands.
    fn positions(&self, batch: &TokenBatch<'_>) -> Vec<u32> {
        let Some(padding) = self.padding else { return batch.positions.to_vec() };
        let mut positions = vec![padding; batch.tokens.len()];
        for segment in batch.segments {
            let texts = batch.tokens[segment.q.clone()].iter().zip(&mut positions[segment.q.clone()]);
            let counted = texts.filter(|(token, _)| **token != padding);
            (padding + 1..).zip(counted).for_each(|(next, (_, position))| *position = next);
        }
        positions
    }
}

impl Model for Bert {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let positions = self.positions(batch);
        // RoBERTa's one type is that of every token, whatever the tokenizer says.
        let types = match self.types.weight.rows() {
            1 => &[],
            _ => batch.token_types,
        };
        let zeros = vec![0; batch.tokens.len()];
        let types = if types.is_empty() { &zeros[..] } else { types };
        let mut x = batch.embed(tape, &self.words);
        let types = tape.embedding(&self.types, types);
        x = tape.add(x, &types);
        drop(types);
        let positions = tape.embedding(&self.position_table, &positions);
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

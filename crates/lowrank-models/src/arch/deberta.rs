//! DeBERTa-v2 and v3 (He et al. 2021), up to v2-XXL: attention that also matches contents with distances, distances
//! in logarithmic buckets with a table of their own, and in the XL models a convolution beside the first block.
//! `transformers/models/deberta_v2` is followed.

use std::rc::Rc;

use lowrank_engine::{Activation, Disentangled, Embedding, LayerNorm, Linear, Segment, Tape, Var};
use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::architecture::Architecture;
use crate::heads::{Head, HeadLayout, MaskedLayout, Reads};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};
use crate::parts::activation::activation;
use crate::parts::dropout::{self, HeadDropout, places};
use crate::parts::fields;
use crate::tied::Tied;

/// What the registry knows.
pub(super) const ARCHITECTURES: &[Architecture] = &[Architecture {
    model_type: "deberta-v2",
    prefix: "deberta",
    defaults: r#"{
        "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 0,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "pooler_dropout": 0.0, "cls_dropout": null,
        "layer_norm_eps": 1e-7, "relative_attention": false, "max_relative_positions": -1, "pad_token_id": 0,
        "position_biased_input": true, "pos_att_type": null, "pooler_hidden_act": "gelu", "legacy": true,
        "tie_word_embeddings": true, "initializer_range": 0.02
    }"#,
    aliases: &[],
    renamed: &[],
    tied: Tied {
        default: true,
        pairs: &[
            ("cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ],
    },
    build: |config, loader| Ok(Box::new(Deberta::load(config, loader)?)),
    gguf: None,
}];

/// The fields of `config.json` that say what the model computes.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    pooler_hidden_act: String,
    /// Width of the embedding tables, where a projection follows them.
    embedding_size: Option<usize>,
    attention_head_size: Option<usize>,
    /// Whether absolute positions are added to the input.
    position_biased_input: bool,
    relative_attention: bool,
    /// `c2p` (contents with keys of distances) and `p2c` (with queries of distances): a list, or joined by `|`.
    pos_att_type: Option<Names>,
    /// Whether distances are projected by the layers of contents.
    #[serde(default)]
    share_att_key: bool,
    #[serde(default = "none")]
    position_buckets: i64,
    max_relative_positions: i64,
    norm_rel_ebd: Option<String>,
    #[serde(default)]
    conv_kernel_size: usize,
    #[serde(default = "one")]
    conv_groups: usize,
    #[serde(default = "tanh")]
    conv_act: String,
    legacy: bool,
    hidden_dropout_prob: f32,
    attention_probs_dropout_prob: f32,
    pooler_dropout: f32,
    cls_dropout: Option<f32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Joined(String),
}

fn none() -> i64 {
    -1
}

fn one() -> usize {
    1
}

fn tanh() -> String {
    "tanh".to_owned()
}

/// Which matches of contents with distances there are.
#[derive(Clone, Copy, Debug, Default)]
struct Matches {
    c2p: bool,
    p2c: bool,
}

/// How distances become rows of their table.
#[derive(Clone, Copy, Debug)]
struct Distances {
    /// Buckets on each side, 0 for none: then a distance is its own row.
    buckets: i64,
    /// The longest distance that buckets tell apart.
    most: i64,
    /// Rows of the table on each side.
    span: i64,
}

impl Config {
    fn parse(config: &Value) -> Result<Self> {
        let c: Self = fields::read(config)?;
        let wrong = |what: String| Err(fields::wrong(what));
        let (d, heads) = (c.hidden_size, c.num_attention_heads);
        if heads == 0 || d == 0 || !d.is_multiple_of(heads) {
            return wrong(format!("hidden_size {d} is not a multiple of num_attention_heads {heads}"));
        }
        if c.head_dim() == 0 || c.head_dim() > 1 << 16 {
            return wrong(format!("attention_head_size is {}", c.head_dim()));
        }
        if c.conv_kernel_size > 0 && c.conv_kernel_size.is_multiple_of(2) {
            return wrong(format!("conv_kernel_size is {}; it must be odd", c.conv_kernel_size));
        }
        dropout::check(&[
            ("hidden_dropout_prob", c.hidden_dropout_prob),
            ("attention_probs_dropout_prob", c.attention_probs_dropout_prob),
            ("pooler_dropout", c.pooler_dropout),
            ("cls_dropout", c.cls_dropout.unwrap_or(0.0)),
        ])?;
        if c.conv_groups == 0 || !d.is_multiple_of(c.conv_groups) {
            return wrong(format!("conv_groups {} does not divide hidden_size {d}", c.conv_groups));
        }
        Ok(c)
    }

    fn head_dim(&self) -> usize {
        self.attention_head_size.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn matches(&self) -> Result<Matches> {
        let names = match &self.pos_att_type {
            None => Vec::new(),
            Some(Names::List(names)) => names.clone(),
            Some(Names::Joined(text)) => text.split('|').map(|name| name.trim().to_lowercase()).collect(),
        };
        let mut matches = Matches::default();
        for name in &names {
            match name.as_str() {
                "c2p" => matches.c2p = true,
                "p2c" => matches.p2c = true,
                "" | "none" => {}
                other => {
                    return Err(fields::wrong(format!(
                        "pos_att_type {other:?} is not known; known are c2p, p2c"
                    )));
                }
            }
        }
        Ok(matches)
    }

    fn distances(&self) -> Result<Option<Distances>> {
        if !self.relative_attention {
            return Ok(None);
        }
        let most = match self.max_relative_positions {
            given if given >= 1 => given,
            _ => self.max_position_embeddings as i64,
        };
        let buckets = self.position_buckets.max(0);
        if most.max(buckets) > 1 << 24 {
            return Err(fields::wrong("position_buckets and max_relative_positions are at most 16777216"));
        }
        if buckets == 1 || buckets > 0 && most - 1 <= buckets / 2 || most < 1 {
            return Err(fields::wrong(format!(
                "position_buckets {buckets} and {most} relative positions leave no distance to tell apart"
            )));
        }
        Ok(Some(Distances { buckets, most, span: if buckets > 0 { buckets } else { most } }))
    }
}

impl Distances {
    /// The row of the distance `query - key`: near distances are apart, far ones share rows ever more.
    fn row(&self, distance: i64) -> i64 {
        (self.bucket(distance) + self.span).clamp(0, 2 * self.span - 1)
    }

    fn bucket(&self, distance: i64) -> i64 {
        let middle = self.buckets / 2;
        if self.buckets == 0 || distance.abs() <= middle {
            return distance;
        }
        // In f32, as it was trained.
        let ratio = (distance.abs() as f32 / middle as f32).ln();
        let whole = (((self.most - 1) as f64 / middle as f64) as f32).ln();
        let log = (ratio / whole * (middle - 1) as f32).ceil() as i64 + middle;
        log * distance.signum()
    }

    /// The rows of every distance in texts of up to `longest` tokens, from the smallest.
    fn rows(&self, longest: usize) -> Vec<i64> {
        let far = longest as i64 - 1;
        (-far..=far).map(|distance| self.row(distance)).collect()
    }
}

/// A model of DeBERTa-v2's kind.
pub struct Deberta {
    words: Embedding,
    positions: Option<Embedding>,
    types: Option<Embedding>,
    projection: Option<Linear>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    relative: Option<Relative>,
    convolution: Option<Convolution>,
    config: Config,
    info: ModelInfo,
}

/// The table of distances.
struct Relative {
    table: Embedding,
    norm: Option<LayerNorm>,
    distances: Distances,
}

/// `norm(y + act(conv(x)))`, `x` the model's input and `y` the first block's output.
struct Convolution {
    layer: Linear,
    activation: Activation,
    norm: LayerNorm,
    kernel: usize,
    dropout: f32,
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Projections of distances, where they are not those of contents.
    pos_key: Option<Linear>,
    pos_query: Option<Linear>,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
    activation: Activation,
    matches: Matches,
    hidden_dropout: f32,
    attention_dropout: f32,
}

impl Deberta {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a field of the configuration or a tensor is missing or wrong.
    pub fn load(config: &Value, mut l: Loader<'_>) -> Result<Self> {
        let c = Config::parse(config)?;
        let (d, f, eps) = (c.hidden_size, c.intermediate_size, c.layer_norm_eps);
        let all_heads = c.num_attention_heads * c.head_dim();
        let (matches, distances) = (c.matches()?, c.distances()?);
        let activation_of = activation;
        let activation = activation_of("hidden_act", &c.hidden_act)?;
        let embedded = c.embedding_size.unwrap_or(d);
        let at = |name: &str| format!("deberta.{name}");
        let words = l.embedding(&at("embeddings.word_embeddings"), c.vocab_size, embedded)?;
        let positions = match c.position_biased_input {
            true => Some(l.embedding(
                &at("embeddings.position_embeddings"),
                c.max_position_embeddings,
                embedded,
            )?),
            false => None,
        };
        let types = match c.type_vocab_size {
            0 => None,
            types => Some(l.embedding(&at("embeddings.token_type_embeddings"), types, embedded)?),
        };
        let projection = match embedded == d {
            true => None,
            false => Some(l.linear(&at("embeddings.embed_proj"), embedded, d, false)?),
        };
        let norm = l.layer_norm(&at("embeddings.LayerNorm"), d, eps)?;
        // Without a table of distances there is nothing to match with.
        let own = distances.is_some() && !c.share_att_key;
        let mut layers = Vec::new();
        for i in 0..c.num_hidden_layers {
            let at = |name: &str| at(&format!("encoder.layer.{i}.{name}"));
            let mut project =
                |name: &str| l.linear(&at(&format!("attention.self.{name}")), d, all_heads, true);
            let (q, k, v) = (project("query_proj")?, project("key_proj")?, project("value_proj")?);
            let pos_key = if own && matches.c2p { Some(project("pos_key_proj")?) } else { None };
            let pos_query = if own && matches.p2c { Some(project("pos_query_proj")?) } else { None };
            layers.push(Layer {
                q,
                k,
                v,
                o: l.linear(&at("attention.output.dense"), all_heads, d, true)?,
                pos_key,
                pos_query,
                attention_norm: l.layer_norm(&at("attention.output.LayerNorm"), d, eps)?,
                up: l.linear(&at("intermediate.dense"), d, f, true)?,
                down: l.linear(&at("output.dense"), f, d, true)?,
                output_norm: l.layer_norm(&at("output.LayerNorm"), d, eps)?,
                activation,
                matches,
                hidden_dropout: c.hidden_dropout_prob,
                attention_dropout: c.attention_probs_dropout_prob,
            });
        }
        let normed = c.norm_rel_ebd.iter().flat_map(|n| n.split('|')).any(|n| n.trim() == "layer_norm");
        let relative = match distances {
            Some(distances) => Some(Relative {
                table: l.embedding(&at("encoder.rel_embeddings"), 2 * distances.span as usize, d)?,
                norm: match normed {
                    true => Some(l.layer_norm(&at("encoder.LayerNorm"), d, eps)?),
                    false => None,
                },
                distances,
            }),
            None => None,
        };
        let convolution = match c.conv_kernel_size {
            0 => None,
            kernel => Some(Convolution {
                layer: l.convolution(&at("encoder.conv.conv"), d, d, kernel, c.conv_groups)?,
                activation: activation_of("conv_act", &c.conv_act)?,
                norm: l.layer_norm(&at("encoder.conv.LayerNorm"), d, eps)?,
                kernel,
                dropout: c.hidden_dropout_prob,
            }),
        };
        let pooler_activation = activation_of("pooler_hidden_act", &c.pooler_hidden_act)?;
        let own = c.legacy && projection.is_none();
        let head_layout = HeadLayout {
            reads: Reads::First,
            dense: Some(("pooler.dense", pooler_activation)),
            output: "classifier",
            token_output: "classifier",
            bias: true,
            masked: own.then_some(MaskedLayout {
                dense: "cls.predictions.transform.dense",
                activation,
                norm: ("cls.predictions.transform.LayerNorm", eps),
                decoder: "cls.predictions.decoder",
                bias: "cls.predictions.bias",
                table: "deberta.embeddings.word_embeddings",
            }),
        };
        let info = ModelInfo {
            width: d,
            vocab: c.vocab_size,
            max_positions: c.max_position_embeddings,
            // Distances have no end; absolute positions, where they are added, do.
            position_limit: positions.is_some().then_some(c.max_position_embeddings),
            is_encoder: true,
            kv_widths: Vec::new(),
            kv_heads: 0,
            sites: l.into_sites(),
            default_targets: &["query_proj", "value_proj"],
            head_layout,
            new_layers: Vec::new(),
        };
        Ok(Self { words, positions, types, projection, norm, layers, relative, convolution, config: c, info })
    }

    /// The rows of the table that the batch's distances touch, and the attention that reads them.
    fn relative<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        segments: &'m [Segment],
    ) -> (Option<Var<'m>>, Disentangled<'m>) {
        let longest = segments.iter().map(|s| s.q.len()).max().unwrap_or(0).max(1);
        let (heads, head_dim) = (self.config.num_attention_heads, self.config.head_dim());
        let Matches { c2p, p2c } = self.layers.first().map(|l| l.matches).unwrap_or_default();
        let scale = 1.0 / ((head_dim * (1 + usize::from(c2p) + usize::from(p2c))) as f32).sqrt();
        let attention =
            |buckets: Rc<[u32]>| Disentangled { heads, head_dim, scale, buckets, dropout: None, segments };
        let Some(relative) = self.relative.as_ref().filter(|_| c2p || p2c) else {
            return (None, attention(vec![0; 2 * longest - 1].into()));
        };
        let rows = relative.distances.rows(longest);
        let (first, last) = (rows[0], rows[rows.len() - 1]);
        let ids: Vec<u32> = (first..=last).map(|row| row as u32).collect();
        let mut table = tape.embedding(&relative.table, &ids);
        if let Some(norm) = &relative.norm {
            table = tape.layer_norm(norm, &table);
        }
        let buckets = rows.iter().map(|row| (row - first) as u32).collect();
        (Some(table), attention(buckets))
    }
}

impl Layer {
    fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        x: Var<'m>,
        table: Option<&Var<'m>>,
        attention: Disentangled<'m>,
        block: BlockContext<'m>,
    ) -> Var<'m> {
        let [in_attention, in_projection, in_output] = places(block.layer);
        let table = table.map(|table| {
            tape.base_dropout(table.clone(), self.hidden_dropout, dropout::distances(block.layer))
        });
        let contents = [&self.q, &self.k, &self.v].map(|layer| tape.linear(layer, &x, None));
        let mut distances = |wanted: bool, own: &'m Option<Linear>, shared: &'m Linear| {
            let table = table.as_ref().filter(|_| wanted)?;
            Some(tape.linear(own.as_ref().unwrap_or(shared), table, None))
        };
        let pos_key = distances(self.matches.c2p, &self.pos_key, &self.k);
        let pos_query = distances(self.matches.p2c, &self.pos_query, &self.q);
        let dropout = tape.base_attention_dropout(self.attention_dropout, in_attention);
        let attention = Disentangled { dropout, ..attention };
        let o = tape.disentangled_attention(contents, pos_key, pos_query, attention);
        let (o, x) = block.select_output_rows(tape, o, x);
        let h = tape.linear_dropout(&self.o, &o, x, self.hidden_dropout, in_projection);
        drop(o);
        let x = tape.layer_norm(&self.attention_norm, &h);
        drop(h);

        let up = tape.linear(&self.up, &x, None);
        let act = tape.activate(up, self.activation);
        let h = tape.linear_dropout(&self.down, &act, x, self.hidden_dropout, in_output);
        drop(act);
        tape.layer_norm(&self.output_norm, &h)
    }
}

impl Convolution {
    fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        x: &Var<'m>,
        y: &Var<'m>,
        segments: &'m [Segment],
    ) -> Var<'m> {
        let h = tape.unfold(x, self.kernel, segments);
        let h = tape.linear(&self.layer, &h, None);
        let h = tape.base_dropout(h, self.dropout, dropout::CONVOLUTION);
        let h = tape.activate(h, self.activation);
        let h = tape.add(h, y);
        tape.layer_norm(&self.norm, &h)
    }
}

impl Model for Deberta {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let segments = batch.segments;
        let mut x = batch.embed(tape, &self.words);
        if let Some(positions) = &self.positions {
            let positions = tape.embedding(positions, batch.positions);
            x = tape.add(x, &positions);
        }
        if let Some(types) = &self.types {
            let zeros = vec![0; batch.tokens.len()];
            let ids = if batch.token_types.is_empty() { &zeros[..] } else { batch.token_types };
            let types = tape.embedding(types, ids);
            x = tape.add(x, &types);
        }
        if let Some(projection) = &self.projection {
            x = tape.linear(projection, &x, None);
        }
        x = tape.layer_norm(&self.norm, &x);
        x = tape.base_dropout(x, self.config.hidden_dropout_prob, dropout::EMBEDDINGS);
        let mut input = self.convolution.is_some().then(|| x.clone());
        let (table, attention) = self.relative(tape, segments);
        for (i, layer) in self.layers.iter().enumerate() {
            let attention = attention.clone();
            let convolution = self.convolution.as_ref().zip(input.take());
            let block = batch.block(i, self.layers.len());
            // The convolution behind the first block reads every row of it.
            let inner =
                if convolution.is_some() { BlockContext { output_rows: None, ..block } } else { block };
            x = tape.block_with_shared_input(x, table.clone(), move |tape, x, table| {
                layer.forward(tape, x, table.as_ref(), attention.clone(), inner)
            });
            if let Some((convolution, input)) = convolution {
                x = convolution.forward(tape, &input, &x, segments);
                if let Some(rows) = block.output_rows {
                    x = tape.select_rows(&x, rows);
                }
            }
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
        let hidden = self.config.hidden_dropout_prob;
        let (dense, output) = (self.config.pooler_dropout, self.config.cls_dropout.unwrap_or(hidden));
        HeadDropout { dense, output, token: hidden }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of `make_log_bucket_position` of transformers with 256 buckets of 512 positions.
    #[test]
    fn far_distances_share_rows() {
        let distances = Distances { buckets: 256, most: 512, span: 256 };
        for (distance, bucket) in
            [(0, 0), (127, 127), (-128, -128), (129, 129), (200, 169), (-300, -207), (511, 255)]
        {
            assert_eq!(distances.bucket(distance), bucket, "{distance}");
        }
        assert_eq!(distances.rows(600).len(), 1199);
        assert!(distances.rows(600).is_sorted());
        assert_eq!((distances.row(-600), distances.row(600)), (0, 511));
        let plain = Distances { buckets: 0, most: 4, span: 4 };
        assert_eq!(plain.rows(7), [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]);
    }
}

//! The decoder that most families share. A [`Spec`] has what tells them apart: where norms stand, how query, key and value
//! are stored, which MLP there is, which layers rotate or have a window, and what values are multiplied with.

use std::rc::Rc;
use std::sync::Arc;

use lowrank_engine::{
    Activation, AttentionShape, Embedding, LayerNorm, Linear, LmHead, RmsNorm, Rope, Tape, Tensor, Var,
};

use super::rope::RopeTable;
use crate::Result;
use crate::heads::{Head, HeadLayout};
use crate::loader::Loader;
use crate::model::{BlockContext, Model, ModelInfo, TokenBatch};

/// Module paths: those of the whole model, and within a layer.
#[derive(Clone, Copy)]
pub(crate) struct Names {
    pub embed: &'static str,
    /// Learned positions.
    pub positions: &'static str,
    /// What the layers' paths begin with, up to their numbers.
    pub layers: &'static str,
    /// The last norm.
    pub norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    /// Query, key and value in one.
    pub qkv: &'static str,
    pub o: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    /// Gate and up in one.
    pub gate_up: &'static str,
    pub down: &'static str,
}

impl Names {
    pub const LLAMA: Self = Self {
        embed: "model.embed_tokens",
        positions: "",
        layers: "model.layers",
        norm: "model.norm",
        q: "self_attn.q_proj",
        k: "self_attn.k_proj",
        v: "self_attn.v_proj",
        qkv: "",
        o: "self_attn.o_proj",
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        gate_up: "mlp.gate_up_proj",
        down: "mlp.down_proj",
    };
}

/// The kind of all norms of the model's width.
#[derive(Clone, Copy)]
pub(crate) enum NormKind {
    Rms,
    /// Layer norm, with or without bias; the offset is added to its weight.
    Layer {
        bias: bool,
        offset: f32,
    },
}

/// Where norms stand in a layer, by their names within it.
#[derive(Clone, Copy)]
pub(crate) enum Norms {
    /// `x += attention(norm(x)); x += mlp(norm(x))`.
    Before(&'static str, &'static str),
    /// `x += norm(attention(x)); x += norm(mlp(x))` (OLMo 2, EXAONE 4).
    Added(&'static str, &'static str),
    /// Both (GLM-4): before attention, what it adds, before the MLP, what it adds.
    Both([&'static str; 4]),
    /// `x = norm(x + attention(x)); x = norm(x + mlp(x))` (OPT-350M).
    Sum(&'static str, &'static str),
    /// `x += attention(norm(x)) + mlp(norm(x))`, of one norm (Phi, Cohere) or two (GPT-NeoX).
    Parallel(&'static str, Option<&'static str>),
}

/// How query, key and value are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Qkv {
    Apart,
    /// In one projection, those of a head side by side (GPT-NeoX).
    ByHead,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mlp {
    /// `down(act(gate(x)) up(x))`.
    Gated,
    /// The same with gate and up in one projection.
    FusedGate,
    /// `down(act(up(x)))`.
    Plain,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkNorm {
    /// Of each head's.
    Head,
    /// Of all heads' together.
    Whole,
}

/// How queries grow with their position (Llama 4, Ministral 3): `1 + beta ln(1 + floor(position / original))`.
#[derive(Clone, Copy)]
pub(crate) struct QueryScale {
    pub beta: f64,
    pub original: f64,
}

/// What a layer has of its own.
#[derive(Clone, Copy)]
pub(crate) struct LayerSpec {
    /// How far back it sees, where not everything.
    pub window: Option<usize>,
    /// Which of the ropes it has.
    pub rope: Option<usize>,
}

/// What a model computes.
pub(crate) struct Spec {
    pub names: Names,
    pub vocab: usize,
    /// `D`.
    pub width: usize,
    /// Width of the MLP.
    pub inner: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
    pub norm: NormKind,
    pub eps: f32,
    pub norms: Norms,
    /// Whether there is a last norm.
    pub last_norm: bool,
    pub qkv: Qkv,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub qk_norm: Option<QkNorm>,
    pub mlp: Mlp,
    pub mlp_bias: bool,
    pub activation: Activation,
    /// Multiplies scores.
    pub scale: f32,
    pub query_scale: Option<QueryScale>,
    /// Multiplies embeddings, what attention and MLP add, and logits.
    pub embed_scale: f32,
    pub residual_scale: f32,
    pub logit_scale: f32,
    /// Rows of the table of learned positions that come before position 0.
    pub learned_positions: Option<usize>,
    /// Width of the embeddings, where it is another: they are projected in, and hidden states out (OPT-350M).
    pub embed_width: Option<usize>,
    pub layers: Vec<LayerSpec>,
    pub ropes: Vec<RopeTable>,
    pub tied: bool,
    pub head_bias: bool,
    pub default_targets: &'static [&'static str],
}

enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: &Var<'m>) -> Var<'m> {
        match self {
            Self::Rms(norm) => tape.rms_norm(norm, x),
            Self::Layer(norm) => tape.layer_norm(norm, x),
        }
    }
}

/// The norm of a value, or the value itself.
fn normed<'m>(norm: &'m Option<Norm>, tape: &mut Tape<'m>, x: &Var<'m>) -> Var<'m> {
    norm.as_ref().map_or_else(|| x.clone(), |norm| norm.forward(tape, x))
}

enum Projections {
    Apart(Box<[Linear; 3]>),
    /// The columns of query, key and value in it, in this order.
    ByHead(Box<Linear>, Arc<[u32]>),
}

enum Inner {
    Gated(Box<[Linear; 2]>),
    FusedGate(Linear),
    Plain(Linear),
}

struct Layer {
    before_attention: Option<Norm>,
    /// Of what attention adds.
    attention_added: Option<Norm>,
    before_mlp: Option<Norm>,
    mlp_added: Option<Norm>,
    /// Of the sums.
    sums: Option<[Norm; 2]>,
    parallel: bool,
    qkv: Projections,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    o: Linear,
    inner: Inner,
    down: Linear,
    activation: Activation,
    residual_scale: f32,
    shape: AttentionShape,
    rope: Option<usize>,
}

/// A model of a [`Spec`].
pub(crate) struct Decoder {
    embed: Embedding,
    positions: Option<(Embedding, usize)>,
    project: Option<[Linear; 2]>,
    layers: Vec<Layer>,
    norm: Option<Norm>,
    head: Head,
    ropes: Vec<RopeTable>,
    query_scale: Option<QueryScale>,
    info: ModelInfo,
}

impl Spec {
    fn norm(&self, l: &mut Loader<'_>, path: &str) -> Result<Norm> {
        Ok(match self.norm {
            NormKind::Rms => Norm::Rms(l.rms_norm(path, self.width, self.eps)?),
            NormKind::Layer { bias, offset } => {
                let norm = l.layer_norm_with(path, self.width, self.eps, bias)?;
                Norm::Layer(LayerNorm { offset, ..norm })
            }
        })
    }

    fn layer(&self, l: &mut Loader<'_>, number: usize, own: &LayerSpec) -> Result<Layer> {
        let (n, d, f) = (&self.names, self.width, self.inner);
        let at = |name: &str| format!("{}.{number}.{name}", n.layers);
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let norm = |l: &mut Loader<'_>, name: &str| self.norm(l, &at(name)).map(Some);
        let (mut before_attention, mut attention_added) = (None, None);
        let (mut before_mlp, mut mlp_added, mut sums) = (None, None, None);
        match self.norms {
            Norms::Before(attention, mlp) => {
                before_attention = norm(l, attention)?;
                before_mlp = norm(l, mlp)?;
            }
            Norms::Added(attention, mlp) => {
                attention_added = norm(l, attention)?;
                mlp_added = norm(l, mlp)?;
            }
            Norms::Both([before, added, mlp, mlp_too]) => {
                before_attention = norm(l, before)?;
                attention_added = norm(l, added)?;
                before_mlp = norm(l, mlp)?;
                mlp_added = norm(l, mlp_too)?;
            }
            Norms::Sum(attention, mlp) => {
                sums = Some([self.norm(l, &at(attention))?, self.norm(l, &at(mlp))?])
            }
            Norms::Parallel(one, other) => {
                before_attention = norm(l, one)?;
                if let Some(other) = other {
                    before_mlp = norm(l, other)?;
                }
            }
        }
        let qkv = match self.qkv {
            Qkv::Apart => Projections::Apart(Box::new([
                l.linear(&at(n.q), d, q_width, self.qkv_bias)?,
                l.linear(&at(n.k), d, kv_width, self.qkv_bias)?,
                l.linear(&at(n.v), d, kv_width, self.qkv_bias)?,
            ])),
            Qkv::ByHead => {
                let (heads, dim) = (self.heads, self.head_dim);
                let column = |at: usize| {
                    let (part, head, i) = (at / (heads * dim), at / dim % heads, at % dim);
                    ((head * 3 + part) * dim + i) as u32
                };
                let columns = (0..3 * q_width).map(column).collect();
                let layer = l.linear(&at(n.qkv), d, 3 * q_width, self.qkv_bias)?;
                Projections::ByHead(Box::new(layer), columns)
            }
        };
        let qk_norm = match self.qk_norm {
            None => None,
            Some(kind) => {
                let widths = match kind {
                    QkNorm::Head => [self.head_dim; 2],
                    QkNorm::Whole => [q_width, kv_width],
                };
                Some((
                    l.rms_norm(&at("self_attn.q_norm"), widths[0], self.eps)?,
                    l.rms_norm(&at("self_attn.k_norm"), widths[1], self.eps)?,
                ))
            }
        };
        let o = l.linear(&at(n.o), q_width, d, self.o_bias)?;
        let inner = match self.mlp {
            Mlp::Gated => Inner::Gated(Box::new([
                l.linear(&at(n.gate), d, f, self.mlp_bias)?,
                l.linear(&at(n.up), d, f, self.mlp_bias)?,
            ])),
            Mlp::FusedGate => {
                Inner::FusedGate(l.linear(&at(n.gate_up), d, f.saturating_mul(2), self.mlp_bias)?)
            }
            Mlp::Plain => Inner::Plain(l.linear(&at(n.up), d, f, self.mlp_bias)?),
        };
        Ok(Layer {
            before_attention,
            attention_added,
            before_mlp,
            mlp_added,
            sums,
            parallel: matches!(self.norms, Norms::Parallel(..)),
            qkv,
            qk_norm,
            o,
            inner,
            down: l.linear(&at(n.down), f, d, self.mlp_bias)?,
            activation: self.activation,
            residual_scale: self.residual_scale,
            shape: AttentionShape {
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                scale: self.scale,
                causal: true,
                window: own.window,
                softcap: None,
                dropout: None,
            },
            rope: own.rope,
        })
    }
}

impl Decoder {
    /// Builds the model over its tensors.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn load(spec: Spec, mut l: Loader<'_>) -> Result<Self> {
        let (n, d) = (&spec.names, spec.width);
        let embed_width = spec.embed_width.unwrap_or(d);
        let mut embed = l.embedding(n.embed, spec.vocab, embed_width)?;
        embed.scale = spec.embed_scale;
        let positions = match spec.learned_positions {
            Some(first) => {
                Some((l.embedding(n.positions, spec.max_positions.saturating_add(first), d)?, first))
            }
            None => None,
        };
        let decoder = n.layers.trim_end_matches(".layers");
        let project = match spec.embed_width {
            Some(width) => Some([
                l.linear(&format!("{decoder}.project_in"), width, d, false)?,
                l.linear(&format!("{decoder}.project_out"), d, width, false)?,
            ]),
            None => None,
        };
        let mut layers = Vec::new();
        for (number, own) in spec.layers.iter().enumerate() {
            layers.push(spec.layer(&mut l, number, own)?);
        }
        let norm = if spec.last_norm { Some(spec.norm(&mut l, n.norm)?) } else { None };
        let tied = spec.tied.then_some(&embed);
        let head = l.language_head("lm_head", tied, embed_width, spec.vocab)?;
        let head = match head {
            Some(mut head) => {
                if spec.head_bias {
                    l.add_bias(&mut head.linear)?;
                }
                Head::Language(LmHead { scale: spec.logit_scale, ..head })
            }
            None => Head::None,
        };
        let info = ModelInfo {
            width: embed_width,
            vocab: spec.vocab,
            max_positions: spec.max_positions,
            position_limit: spec.learned_positions.map(|_| spec.max_positions),
            is_encoder: false,
            kv_widths: vec![spec.kv_heads * spec.head_dim; spec.layers.len()],
            kv_heads: spec.kv_heads,
            sites: l.into_sites(),
            default_targets: spec.default_targets,
            head_layout: HeadLayout::DECODER,
            new_layers: Vec::new(),
        };
        let Spec { ropes, query_scale, .. } = spec;
        Ok(Self { embed, positions, project, layers, norm, head, ropes, query_scale, info })
    }
}

/// What layers need of the positions of a batch.
#[derive(Clone)]
struct Positions {
    ropes: Vec<Rope>,
    /// What queries are multiplied with, where any is not 1.
    queries: Option<Tensor>,
}

/// `x + scale norm(layer(h))`, as one operation where there is neither norm nor scale.
fn add<'m>(
    tape: &mut Tape<'m>,
    layer: &'m Linear,
    h: &Var<'m>,
    x: Var<'m>,
    norm: &'m Option<Norm>,
    scale: f32,
) -> Var<'m> {
    if norm.is_none() && scale == 1.0 {
        return tape.linear(layer, h, Some(x));
    }
    let mut y = tape.linear(layer, h, None);
    if let Some(norm) = norm {
        y = norm.forward(tape, &y);
    }
    if scale != 1.0 {
        y = tape.scale(y, scale);
    }
    tape.add(y, &x)
}

impl Layer {
    fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        x: Var<'m>,
        positions: &Positions,
        block: BlockContext<'m>,
    ) -> Var<'m> {
        let h = normed(&self.before_attention, tape, &x);
        let [mut q, mut k, v] = self.project(tape, &h);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = tape.rms_norm(q_norm, &q);
            k = tape.rms_norm(k_norm, &k);
        }
        if let Some(factors) = &positions.queries {
            q = tape.scale_rows(q, factors.clone());
        }
        let rope = self.rope.map(|rope| positions.ropes[rope].clone());
        let o = tape.attention(q, k, v, block.attention(self.shape, rope));
        let (o, mut x) = block.select_output_rows(tape, o, x);
        let scale = self.residual_scale;
        if self.parallel {
            // The rows of `h` that are read on, and none of the others.
            let h = match (&self.before_mlp, block.output_rows) {
                (Some(norm), _) => {
                    drop(h);
                    norm.forward(tape, &x)
                }
                (None, Some(rows)) => tape.select_rows(&h, rows),
                (None, None) => h,
            };
            let h = self.inner(tape, h);
            x = add(tape, &self.o, &o, x, &None, scale);
            drop(o);
            return add(tape, &self.down, &h, x, &None, scale);
        }
        drop(h);
        x = add(tape, &self.o, &o, x, &self.attention_added, scale);
        drop(o);
        if let Some([norm, _]) = &self.sums {
            x = norm.forward(tape, &x);
        }
        let h = normed(&self.before_mlp, tape, &x);
        let h = self.inner(tape, h);
        x = add(tape, &self.down, &h, x, &self.mlp_added, scale);
        match &self.sums {
            Some([_, norm]) => norm.forward(tape, &x),
            None => x,
        }
    }

    fn project<'m>(&'m self, tape: &mut Tape<'m>, h: &Var<'m>) -> [Var<'m>; 3] {
        match &self.qkv {
            Projections::Apart(layers) => layers.each_ref().map(|layer| tape.linear(layer, h, None)),
            Projections::ByHead(layer, columns) => {
                let qkv = tape.linear(layer, h, None);
                let columns: Rc<[u32]> = Rc::from(&columns[..]);
                let qkv = tape.permute_columns(qkv, &columns);
                tape.split(qkv, [columns.len() / 3; 3])
            }
        }
    }

    /// What the MLP's last layer reads.
    fn inner<'m>(&'m self, tape: &mut Tape<'m>, h: Var<'m>) -> Var<'m> {
        match &self.inner {
            Inner::Gated(layers) => {
                let [gate, up] = layers.each_ref().map(|layer| tape.linear(layer, &h, None));
                drop(h);
                tape.gated(gate, up, self.activation)
            }
            Inner::FusedGate(layer) => {
                let gate_up = tape.linear(layer, &h, None);
                drop(h);
                let [gate, up] = tape.split(gate_up, [self.down.in_features(); 2]);
                tape.gated(gate, up, self.activation)
            }
            Inner::Plain(layer) => {
                let up = tape.linear(layer, &h, None);
                drop(h);
                tape.activate(up, self.activation)
            }
        }
    }
}

impl Model for Decoder {
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m> {
        let device = tape.scope.device;
        let positions = Positions {
            ropes: self.ropes.iter().map(|table| table.at(device, batch.positions, batch.lengths)).collect(),
            queries: self.query_scale.and_then(|scale| scale.factors(batch.positions)),
        };
        let mut x = batch.embed(tape, &self.embed);
        if let Some([into, _]) = &self.project {
            x = tape.linear(into, &x, None);
        }
        if let Some((table, first)) = &self.positions {
            let rows: Vec<u32> = batch.positions.iter().map(|position| position + *first as u32).collect();
            let learned = tape.embedding(table, &rows);
            x = tape.add(x, &learned);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let positions = positions.clone();
            let block = batch.block(i, self.layers.len());
            x = tape.block(x, move |tape, x| layer.forward(tape, x, &positions, block));
        }
        x = normed(&self.norm, tape, &x);
        match &self.project {
            Some([_, out]) => tape.linear(out, &x, None),
            None => x,
        }
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn rope_switch(&self) -> Option<usize> {
        self.ropes.iter().filter_map(RopeTable::switch).min()
    }
}

impl QueryScale {
    fn factors(self, positions: &[u32]) -> Option<Tensor> {
        let factor = |position: &u32| {
            let rounds = (f64::from(*position) / self.original).floor();
            (1.0 + self.beta * rounds.ln_1p()) as f32
        };
        let factors: Vec<f32> = positions.iter().map(factor).collect();
        factors.iter().any(|factor| *factor != 1.0).then(|| Tensor::vector(factors))
    }
}

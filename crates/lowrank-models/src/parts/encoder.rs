//! The block that BERT and its kin share: attention and MLP, each followed by residual and layer norm.

use lowrank_engine::{Activation, Attention, AttentionShape, LayerNorm, Linear, Tape, Var};

use crate::loader::Loader;
use crate::model::BlockContext;
use crate::parts::dropout::places;
use crate::{Error, Result};

/// Module names of a block, below the block's own path.
pub(crate) struct Names {
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub o: &'static str,
    pub attention_norm: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub output_norm: &'static str,
}

/// Sizes and kinds that all blocks of a model have.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// `D`.
    pub width: usize,
    /// Heads `H`.
    pub heads: usize,
    /// Width of the MLP.
    pub inner: usize,
    pub activation: Activation,
    /// Of the layer norms.
    pub eps: f32,
    pub dropout: Dropout,
}

/// Probabilities of the dropouts that a model of this kind was trained with.
#[derive(Clone, Copy)]
pub(crate) struct Dropout {
    /// Of the embeddings.
    pub embeddings: f32,
    /// Of attention's probabilities.
    pub attention: f32,
    /// Of attention's output.
    pub projection: f32,
    /// Of the MLP's output.
    pub output: f32,
}

impl Shape {
    /// Checks what cannot be computed; `fields` are the names of `D` and `H`.
    pub fn check(&self, fields: [&str; 2]) -> Result<()> {
        let Self { width, heads, .. } = *self;
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            let [d, h] = fields;
            return Err(Error::Config(format!("config.json: {d} {width} is not a multiple of {h} {heads}")));
        }
        Ok(())
    }
}

/// `x = norm(x + attention(x)); x = norm(x + mlp(x))` (Vaswani et al. 2017), every row seeing its whole segment.
pub(crate) struct Block {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
    activation: Activation,
    attention: AttentionShape,
    dropout: Dropout,
}

impl Block {
    /// Takes the block at `path` out of the files.
    pub fn load(l: &mut Loader<'_>, path: &str, names: &Names, shape: &Shape) -> Result<Self> {
        let Shape { width: d, heads, inner, activation, eps, dropout } = *shape;
        let at = |name: &str| format!("{path}.{name}");
        let head_dim = d / heads;
        Ok(Self {
            q: l.linear(&at(names.q), d, d, true)?,
            k: l.linear(&at(names.k), d, d, true)?,
            v: l.linear(&at(names.v), d, d, true)?,
            o: l.linear(&at(names.o), d, d, true)?,
            attention_norm: l.layer_norm(&at(names.attention_norm), d, eps)?,
            up: l.linear(&at(names.up), d, inner, true)?,
            down: l.linear(&at(names.down), inner, d, true)?,
            output_norm: l.layer_norm(&at(names.output_norm), d, eps)?,
            activation,
            dropout,
            attention: AttentionShape {
                heads,
                kv_heads: heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                causal: false,
                window: None,
                softcap: None,
                dropout: None,
            },
        })
    }

    /// `x: [N,D]` to the same shape, or to the output rows of it.
    pub fn forward<'m>(&'m self, tape: &mut Tape<'m>, x: Var<'m>, block: BlockContext<'m>) -> Var<'m> {
        let (queries, segments) = block.queries(tape, &x);
        let q = tape.linear(&self.q, &queries, None);
        let k = tape.linear(&self.k, &x, None);
        let v = tape.linear(&self.v, &x, None);
        drop(x);
        let Dropout { attention, projection, output, .. } = self.dropout;
        let [in_attention, in_projection, in_output] = places(block.layer);
        let shape = AttentionShape {
            dropout: tape.base_attention_dropout(attention, in_attention),
            ..self.attention
        };
        let o = tape.attention(q, k, v, Attention { segments, ..block.attention(shape, None) });
        let h = tape.linear_dropout(&self.o, &o, queries, projection, in_projection);
        drop(o);
        let x = tape.layer_norm(&self.attention_norm, &h);
        drop(h);

        let up = tape.linear(&self.up, &x, None);
        let act = tape.activate(up, self.activation);
        let h = tape.linear_dropout(&self.down, &act, x, output, in_output);
        drop(act);
        tape.layer_norm(&self.output_norm, &h)
    }
}

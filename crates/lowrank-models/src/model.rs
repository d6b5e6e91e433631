//! What every architecture offers.

use std::borrow::Cow;

use lowrank_engine::{
    Attention, AttentionShape, Embedding, Linear, LmHead, Rope, RowAdapters, Segment, Site, Tape, Var,
};

use crate::heads::{Head, HeadLayout};
use crate::parts::dropout::HeadDropout;

/// The tokens of one forward pass: rows of any number of sequences, one after the other.
pub struct TokenBatch<'a> {
    /// Token of each row, `[N]`.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence, `[N]`.
    pub positions: &'a [u32],
    /// Tokens of the whole sequence each row belongs to, `[N]`: only dynamic rope reads it.
    pub lengths: &'a [u32],
    /// Type of each row (BERT: 0 for the first text of a pair, 1 for the second), `[N]`; empty where all are 0.
    pub token_types: &'a [u32],
    /// Who attends to whom. In an encoder every row of a segment sees all of it, before and after.
    pub segments: &'a [Segment],
    /// Rows whose hidden states are computed, at least one, in rising order; `None`: all. After its attention the last
    /// block leaves the others out.
    pub output_rows: Option<&'a [usize]>,
    /// The adapter of each row, where the active set serves several. For inference only.
    pub adapters: Option<&'a RowAdapters>,
}

impl<'a> TokenBatch<'a> {
    /// The embeddings of the tokens, `[N,D]`: where the pass learns which adapter each row has.
    pub(crate) fn embed(&self, tape: &mut Tape<'a>, table: &'a Embedding) -> Var<'a> {
        tape.scope.rows = self.adapters;
        let x = tape.embedding(table, self.tokens);
        tape.embedding_noise(x, self.lengths)
    }

    /// What block `layer` of `layers` needs to know of the batch.
    pub(crate) fn block(&self, layer: usize, layers: usize) -> BlockContext<'a> {
        let output_rows =
            self.output_rows.filter(|rows| layer + 1 == layers && rows.len() < self.tokens.len());
        BlockContext { segments: self.segments, layer, output_rows }
    }
}

/// What a block needs to know of the batch, and which block it is.
#[derive(Clone, Copy)]
pub(crate) struct BlockContext<'m> {
    pub segments: &'m [Segment],
    pub layer: usize,
    /// Rows of the block's output that are computed; `None`: all.
    pub output_rows: Option<&'m [usize]>,
}

impl<'m> BlockContext<'m> {
    /// What attention needs to know here.
    pub fn attention(&self, shape: AttentionShape, rope: Option<Rope>) -> Attention<'m> {
        Attention { shape, segments: Cow::Borrowed(self.segments), rope, layer: self.layer }
    }

    /// The output rows of the block's input, and their segments where every query sees its whole segment.
    pub fn queries(&self, tape: &mut Tape<'m>, x: &Var<'m>) -> (Var<'m>, Cow<'m, [Segment]>) {
        let Some(rows) = self.output_rows else { return (x.clone(), Cow::Borrowed(self.segments)) };
        let at = |row: usize| rows.partition_point(|&output| output < row);
        let of = |s: &Segment| Segment { q: at(s.q.start)..at(s.q.end), ..s.clone() };
        (tape.select_rows(x, rows), self.segments.iter().map(of).collect())
    }

    /// The output rows of attention's output and of the block's input: the rest of the block reads no others.
    pub fn select_output_rows(&self, tape: &mut Tape<'m>, o: Var<'m>, x: Var<'m>) -> (Var<'m>, Var<'m>) {
        match self.output_rows {
            Some(rows) => (tape.select_rows(&o, rows), tape.select_rows(&x, rows)),
            None => (o, x),
        }
    }
}

/// What is known of a model before it computes anything.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Width `D` of the hidden states.
    pub width: usize,
    /// Size `V` of the vocabulary.
    pub vocab: usize,
    /// Longest sequence it was made for, in tokens.
    pub max_positions: usize,
    /// Longest sequence it can compute at all: learned positions end, rotations do not.
    pub position_limit: Option<usize>,
    /// Whether every token sees the whole text. Then a batch holds every token of a text, prompts are not shared and
    /// there is no cache: the model cannot generate.
    pub is_encoder: bool,
    /// Width of the keys (and of the values) of each layer, for the key-value cache; empty where the model does not
    /// generate.
    pub kv_widths: Vec<usize>,
    /// Key heads `K` of a layer; 0 where the model does not generate.
    pub kv_heads: usize,
    /// Every place an adapter can attach to.
    pub sites: Vec<Site>,
    /// Modules that get an adapter by default: PEFT's choice.
    pub default_targets: &'static [&'static str],
    /// Where transformers puts the heads of this architecture.
    pub head_layout: HeadLayout,
    /// Paths of the layers of a new head: no file has their values, so training has to save them whole.
    pub new_layers: Vec<String>,
}

/// A frozen base model. The same forward serves training, evaluation and generation.
pub trait Model: Send + Sync {
    /// The hidden states after the last norm, `[N,D]`: of the batch's rows, or of its output rows.
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m>;

    /// What the hidden states are for. A model loaded as it is has its language-model head, an encoder none;
    /// [`crate::heads::load_for`] gives it another.
    fn head(&self) -> &Head;

    /// What is known of it.
    fn info(&self) -> &ModelInfo;

    /// Whether it can be trained with the dropouts that it was pre-trained with.
    fn has_dropout(&self) -> bool {
        false
    }

    /// The dropouts of its heads.
    fn head_dropout(&self) -> HeadDropout {
        HeadDropout::default()
    }

    /// The length beyond which all of a sequence is rotated otherwise, its first tokens too, where there is one: keys that
    /// were computed before it was reached are then computed again.
    fn rope_switch(&self) -> Option<usize> {
        None
    }

    /// Every place an adapter can attach to.
    fn sites(&self) -> &[Site] {
        &self.info().sites
    }

    /// The language-model head, `[V,D]`, where it has one.
    fn lm_head(&self) -> Option<&LmHead> {
        match self.head() {
            Head::Language(head) => Some(head),
            _ => None,
        }
    }

    /// The layer of its head at a module path.
    fn head_layer(&self, path: &str) -> Option<&Linear> {
        self.head().layers().into_iter().find(|layer| self.sites()[layer.site.0].path == path)
    }
}

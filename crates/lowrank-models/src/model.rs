//! What every architecture offers.

use std::borrow::Cow;

use lowrank_engine::{Attention, AttentionShape, Linear, LmHead, Rope, Segment, Site, Tape, Var};

use crate::heads::{Head, HeadLayout};

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
    /// Rows whose hidden states are wanted, at least one, in rising order; `None`: all. Behind its attention the last
    /// block leaves the others out.
    pub wanted: Option<&'a [usize]>,
}

impl<'a> TokenBatch<'a> {
    /// The place of block `layer` of `layers`.
    pub(crate) fn place(&self, layer: usize, layers: usize) -> Place<'a> {
        let wanted = self.wanted.filter(|rows| layer + 1 == layers && rows.len() < self.tokens.len());
        Place { segments: self.segments, layer, wanted }
    }
}

/// What a block needs to know of a batch and of its place in the model.
#[derive(Clone, Copy)]
pub(crate) struct Place<'m> {
    pub segments: &'m [Segment],
    pub layer: usize,
    /// Rows of the block's output that are wanted; `None`: all.
    pub wanted: Option<&'m [usize]>,
}

impl<'m> Place<'m> {
    /// What attention needs to know here.
    pub fn attention(&self, shape: AttentionShape, rope: Option<Rope>) -> Attention<'m> {
        Attention { shape, segments: Cow::Borrowed(self.segments), rope, layer: self.layer }
    }

    /// The wanted rows of the block's input, and who of them attends to whom where every query sees its whole segment.
    pub fn queries(&self, tape: &mut Tape<'m>, x: &Var<'m>) -> (Var<'m>, Cow<'m, [Segment]>) {
        let Some(rows) = self.wanted else { return (x.clone(), Cow::Borrowed(self.segments)) };
        let at = |row: usize| rows.partition_point(|&wanted| wanted < row);
        let of = |s: &Segment| Segment { q: at(s.q.start)..at(s.q.end), ..s.clone() };
        (tape.select_rows(x, rows), self.segments.iter().map(of).collect())
    }

    /// The wanted rows of what attention gave and of the block's input, which is all that the rest of the block reads.
    pub fn wanted_rows(&self, tape: &mut Tape<'m>, o: Var<'m>, x: Var<'m>) -> (Var<'m>, Var<'m>) {
        match self.wanted {
            Some(rows) => (tape.select_rows(&o, rows), tape.select_rows(&x, rows)),
            None => (o, x),
        }
    }
}

/// A frozen base model. The same forward serves training, evaluation and generation.
pub trait Model: Send + Sync {
    /// The hidden states after the last norm, `[N,D]`: of the batch's rows, or of those wanted.
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &TokenBatch<'m>) -> Var<'m>;

    /// What the hidden states are for. A model loaded as it is has its language-model head, an encoder none;
    /// [`crate::heads::load_for`] gives it another.
    fn head(&self) -> &Head;

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

    /// Paths of layers that no file holds numbers for: those of a new head.
    fn fresh(&self) -> &[String] {
        &[]
    }

    /// Where transformers puts the heads of this architecture.
    fn head_layout(&self) -> HeadLayout {
        HeadLayout::DECODER
    }

    /// Whether every token sees the whole text. Then a batch holds every token of a text, prompts are not shared
    /// and there is no cache: it cannot generate.
    fn is_encoder(&self) -> bool {
        false
    }

    /// Every place an adapter can attach to.
    fn sites(&self) -> &[Site];

    /// Width `D` of the hidden states.
    fn width(&self) -> usize;

    /// Size `V` of the vocabulary.
    fn vocab(&self) -> usize;

    /// Width of keys (and values) of each layer, for the cache; none where the model does not generate.
    fn kv_widths(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Heads that those are the keys of.
    fn kv_heads(&self) -> usize {
        0
    }

    /// Longest sequence it was made for.
    fn max_positions(&self) -> usize;

    /// Longest sequence it can compute at all: learned positions end, rotations do not.
    fn position_limit(&self) -> Option<usize> {
        None
    }

    /// Names of the modules that get an adapter where nobody says which: PEFT's choice.
    fn default_targets(&self) -> &'static [&'static str];
}

//! What an attention is over: its shape and its segments.

use std::ops::Range;

use super::dropout::AttentionDropout;

/// One run of queries.
///
/// The queries `q` (rows of the query buffer and of the output) see the key rows `prefix`, then `own`:
/// with causal attention query `i` of `q` (from 0) sees all of `prefix` and
/// `own[..own.len() - q.len() + i + 1]`, else all of both. In training `own == q`; when decoding, the
/// keys are a cache and `own` the sequence's rows there. Several segments may share prefix rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of queries and outputs.
    pub q: Range<usize>,
    /// Rows of keys and values that come first, seen by every query (may be empty).
    pub prefix: Range<usize>,
    /// Rows of keys and values of the queries' own sequence.
    pub own: Range<usize>,
}

/// The shape and kind of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads `H`, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads `K`; query head `h` reads head `h / (H / K)`.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a query sees only keys at its own position or before.
    pub causal: bool,
    /// A query sees only keys less than `window` positions away, where a position counts through prefix
    /// and own (Mistral's meaning of `sliding_window`).
    pub window: Option<usize>,
    /// Scores become `softcap tanh(score / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Probabilities are dropped (GPT-2's `attn_pdrop`).
    pub dropout: Option<AttentionDropout>,
}

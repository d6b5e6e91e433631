//! Floating-point operations of attention: a multiply-add counts as two.

use lowrank_kernels::{AttentionShape, DisentangledShape, Segment};

/// Multiply-adds of `q k^T`: the pairs of rows that see each other, times the width of all heads.
pub fn attention_multiply_adds(shape: &AttentionShape, segments: &[Segment]) -> usize {
    let window = shape.window.unwrap_or(usize::MAX);
    let pairs = |s: &Segment| -> usize {
        let visible = |i: usize| {
            let own = if shape.causal { s.own.len() - s.q.len() + i + 1 } else { s.own.len() };
            (s.prefix.len() + own).min(window)
        };
        (0..s.q.len()).map(visible).sum()
    };
    segments.iter().map(pairs).sum::<usize>() * shape.heads * shape.head_dim
}

/// Multiply-adds of the scores of disentangled attention: of contents, and with `tables` of distances.
pub fn disentangled_multiply_adds(
    shape: &DisentangledShape<'_>,
    segments: &[Segment],
    tables: usize,
) -> usize {
    let middle = shape.buckets.len() / 2;
    let one = |s: &Segment| match s.q.len() {
        0 => 0,
        t => {
            let wide = shape.buckets[middle + t - 1] - shape.buckets[middle + 1 - t] + 1;
            t * (t + tables * wide as usize)
        }
    };
    segments.iter().map(one).sum::<usize>() * shape.heads * shape.head_dim
}

//! Softmax attention over segments of a packed batch, in tiles: the probabilities of one tile exist at a
//! time, and the work is that of the (query, key) pairs that see each other.

mod backward;
mod disentangled;
mod dropout;
mod forward;
mod geometry;
#[cfg(test)]
mod reference;
mod scratch;
mod shape;
#[cfg(test)]
mod tests;
mod tile;

pub use disentangled::{
    DisentangledGradients, DisentangledInputs, DisentangledShape, disentangled_attention,
    disentangled_attention_backward, disentangled_scratch_bytes,
};
pub use dropout::AttentionDropout;
pub use shape::{AttentionShape, Segment};

/// `out_i = sum_j softmax_j(scale q_i k_j) v_j` per head, over the keys `j` that query `i` sees.
///
/// `q`, `out`: `[N, H head_dim]`; `k`, `v`: `[M, K head_dim]`; `lse`: `[N, H]`, the logarithm of the sum
/// of exponentials, for the backward. Rows of `out` and `lse` outside every segment are left alone; a
/// query that sees no key gets zeros, and minus infinity in `lse`.
///
/// # Panics
/// If a length does not fit the shapes, a segment lies outside the buffers, two segments share query
/// rows, or a causal segment has more queries than own keys.
pub fn attention(
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    check("attention", q, k, v, out, lse, shape, segments);
    forward::forward(out, lse, q, k, v, shape, segments);
}

/// The positions of the keys that query `i` of a segment sees, counted through prefix and own. Both ends grow with `i`.
pub fn visible_keys(shape: &AttentionShape, segment: &Segment, i: usize) -> std::ops::Range<usize> {
    geometry::View::new(shape, segment).span(i)
}

/// Bytes of working memory that [`attention`] and [`attention_backward`] take on `threads` threads, at most: tiles that each
/// thread keeps, and parts of the gradients of prefixes.
pub fn attention_scratch_bytes(shape: &AttentionShape, segments: &[Segment], threads: usize) -> usize {
    let own = forward::scratch_values(shape).max(backward::scratch_values(shape));
    size_of::<f32>() * (threads * own + backward::prefix_values(shape, segments, threads))
}

/// Backward of [`attention`]: `dq`, `dk`, `dv`, shaped as `q`, `k`, `v` and overwritten, from `dout` and
/// what the forward gave. Keys that no query sees get zeros; rows of prefixes gather the gradients of
/// all segments that share them.
///
/// # Panics
/// As [`attention`].
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    check("attention_backward", q, k, v, out, lse, shape, segments);
    assert_eq!(dout.len(), q.len(), "attention_backward: dout has {} values, not {}", dout.len(), q.len());
    assert_eq!(dq.len(), q.len(), "attention_backward: dq has {} values, not {}", dq.len(), q.len());
    assert_eq!(dk.len(), k.len(), "attention_backward: dk has {} values, not {}", dk.len(), k.len());
    assert_eq!(dv.len(), v.len(), "attention_backward: dv has {} values, not {}", dv.len(), v.len());
    backward::backward(dq, dk, dv, dout, q, k, v, out, lse, shape, segments);
}

#[allow(clippy::too_many_arguments)]
fn check(
    kernel: &str,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    assert!(
        kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads),
        "{kernel}: {heads} heads, {kv_heads} kv heads of {head_dim} values"
    );
    assert!(shape.window != Some(0), "{kernel}: a window of 0 sees nothing");
    assert!(shape.dropout.is_none_or(|d| (0.0..=1.0).contains(&d.p)), "{kernel}: {:?}", shape.dropout);
    let (n, m) = (q.len() / (heads * head_dim), k.len() / (kv_heads * head_dim));
    assert_eq!(q.len(), n * heads * head_dim, "{kernel}: q is not a whole number of rows");
    assert_eq!(k.len(), m * kv_heads * head_dim, "{kernel}: k is not a whole number of rows");
    assert_eq!(v.len(), k.len(), "{kernel}: v has {} values, k {}", v.len(), k.len());
    assert_eq!(out.len(), q.len(), "{kernel}: out has {} values, q {}", out.len(), q.len());
    assert_eq!(lse.len(), n * heads, "{kernel}: lse has {} values, not {n} x {heads}", lse.len());
    let mut queries: Vec<_> = segments.iter().map(|s| (s.q.start, s.q.end)).collect();
    queries.sort_unstable();
    for (i, &(start, end)) in queries.iter().enumerate() {
        assert!(start <= end && end <= n, "{kernel}: a segment's queries {start}..{end} of {n} rows");
        assert!(
            i == 0 || queries[i - 1].1 <= start || start == end,
            "{kernel}: two segments share query row {start}"
        );
    }
    for Segment { q, prefix, own } in segments {
        for keys in [prefix, own] {
            assert!(
                keys.start <= keys.end && keys.end <= m,
                "{kernel}: a segment's keys {keys:?} of {m} rows"
            );
        }
        assert!(
            !shape.causal || q.len() <= own.len(),
            "{kernel}: {} causal queries {q:?} with {} own keys {own:?}",
            q.len(),
            own.len()
        );
    }
}

//! Attention in f64, pair by pair: what the kernels are tested against.

use super::shape::{AttentionShape, Segment};
use crate::dropout;

/// The positions and rows of the keys that query `i` of `segment` sees.
fn visible(shape: &AttentionShape, segment: &Segment, i: usize) -> Vec<(usize, usize)> {
    let Segment { q, prefix, own } = segment;
    let position = (prefix.len() + own.len() + i) as i64 - q.len() as i64;
    let keys = prefix.clone().chain(own.clone()).enumerate();
    keys.filter(|&(j, _)| !shape.causal || j as i64 <= position)
        .filter(|&(j, _)| shape.window.is_none_or(|w| (j as i64 - position).unsigned_abs() < w as u64))
        .collect()
}

/// The factors of dropout for keys at these positions, made by dropping ones.
fn factors(shape: &AttentionShape, row: usize, h: usize, positions: &[usize]) -> Vec<f64> {
    let Some(kind) = shape.dropout else { return vec![1.0; positions.len()] };
    let n = positions.iter().max().map_or(0, |last| last + 1);
    let mut m = vec![f32::NAN; n];
    dropout(&mut m, &vec![1.0; n], kind.p, kind.seed, (row * shape.heads + h) as u64);
    positions.iter().map(|&j| f64::from(m[j])).collect()
}

fn head(x: &[f32], row: usize, head: usize, heads: usize, d: usize) -> impl Iterator<Item = f64> {
    x[(row * heads + head) * d..][..d].iter().map(|&x| f64::from(x))
}

/// Capped scores, probabilities and logarithm of the sum of exponentials of one query of one head.
fn probabilities(
    q: &[f32],
    k: &[f32],
    shape: &AttentionShape,
    row: usize,
    h: usize,
    keys: &[usize],
) -> (Vec<f64>, Vec<f64>, f64) {
    let AttentionShape { heads, kv_heads, head_dim: d, .. } = *shape;
    let score = |&j: &usize| {
        let dot: f64 = head(q, row, h, heads, d)
            .zip(head(k, j, h / (heads / kv_heads), kv_heads, d))
            .map(|(a, b)| a * b)
            .sum();
        let s = dot * f64::from(shape.scale);
        shape.softcap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh())
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse =
        if keys.is_empty() { most } else { most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln() };
    let p = scores.iter().map(|s| (s - lse).exp()).collect();
    (scores, p, lse)
}

pub(super) fn forward(
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let AttentionShape { heads, kv_heads, head_dim: d, .. } = *shape;
    for segment in segments {
        for (i, row) in segment.q.clone().enumerate() {
            let (positions, keys): (Vec<_>, Vec<_>) = visible(shape, segment, i).into_iter().unzip();
            for h in 0..heads {
                let (_, p, total) = probabilities(q, k, shape, row, h, &keys);
                lse[row * heads + h] = total as f32;
                let mut sum = vec![0.0; d];
                let m = factors(shape, row, h, &positions);
                for (&j, p) in keys.iter().zip(p.iter().zip(&m).map(|(p, m)| p * m)) {
                    for (s, v) in sum.iter_mut().zip(head(v, j, h / (heads / kv_heads), kv_heads, d)) {
                        *s += p * v;
                    }
                }
                for (o, s) in out[(row * heads + h) * d..][..d].iter_mut().zip(&sum) {
                    *o = *s as f32;
                }
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let AttentionShape { heads, kv_heads, head_dim: d, .. } = *shape;
    let (mut dq64, mut dk64, mut dv64) = (vec![0.0; dq.len()], vec![0.0; dk.len()], vec![0.0; dv.len()]);
    for segment in segments {
        for (i, row) in segment.q.clone().enumerate() {
            let (positions, keys): (Vec<_>, Vec<_>) = visible(shape, segment, i).into_iter().unzip();
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let (scores, p, _) = probabilities(q, k, shape, row, h, &keys);
                let m = factors(shape, row, h, &positions);
                let dp: Vec<f64> = keys
                    .iter()
                    .zip(&m)
                    .map(|(&j, m)| {
                        let of_value = head(dout, row, h, heads, d).zip(head(v, j, kv, kv_heads, d));
                        m * of_value.map(|(a, b)| a * b).sum::<f64>()
                    })
                    .collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (n, &j) in keys.iter().enumerate() {
                    let slope = shape.softcap.map_or(1.0, |c| 1.0 - (scores[n] / f64::from(c)).powi(2));
                    let ds = p[n] * (dp[n] - mean) * slope * f64::from(shape.scale);
                    let (at_q, at_k) = ((row * heads + h) * d, (j * kv_heads + kv) * d);
                    for e in 0..d {
                        dq64[at_q + e] += ds * f64::from(k[at_k + e]);
                        dk64[at_k + e] += ds * f64::from(q[at_q + e]);
                        dv64[at_k + e] += p[n] * m[n] * f64::from(dout[at_q + e]);
                    }
                }
            }
        }
    }
    for (to, from) in [(dq, dq64), (dk, dk64), (dv, dv64)] {
        for (t, f) in to.iter_mut().zip(from) {
            *t = f as f32;
        }
    }
}

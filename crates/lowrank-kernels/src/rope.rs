//! Rotary position embedding in the half-split layout of GPT-NeoX and Hugging Face (`rotate_half`).

use crate::parallel::{SharedMut, for_rows};
use crate::simd::{dispatch, for_lanes};

/// Cosines and sines for [`rope`]: `cos[i,j] = scale cos(positions[i] f[sets[i], j])`, `sin` likewise, for
/// `cos, sin: [N,P]`, `positions, sets: [N]` and `frequencies: [F,P]`, of which each row of the batch has its set (scaled
/// ropes have several: a sequence's length decides). `scale` is a scaled rope's factor of the attention. Counted as
/// `4 N P` flops.
///
/// # Panics
/// If a length does not fit the shapes or a set is not below `F`.
pub fn rope_table(
    cos: &mut [f32],
    sin: &mut [f32],
    positions: &[u32],
    sets: &[u32],
    frequencies: &[f32],
    pairs: usize,
    scale: f32,
) {
    let n = positions.len();
    assert!(
        cos.len() == n * pairs && sin.len() == n * pairs,
        "rope_table: {} values, not {n} x {pairs}",
        cos.len()
    );
    assert_eq!(sets.len(), n, "rope_table: {} sets for {n} positions", sets.len());
    let (cos, sin) = (SharedMut::new(cos), SharedMut::new(sin));
    for_rows(n, 32 * pairs, |r| {
        for i in r {
            let frequencies = &frequencies[sets[i] as usize * pairs..][..pairs];
            // SAFETY: rows are disjoint.
            let (cos, sin) =
                unsafe { (cos.part(i * pairs..(i + 1) * pairs), sin.part(i * pairs..(i + 1) * pairs)) };
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(frequencies) {
                let (sine, cosine) = (positions[i] as f32 * f).sin_cos();
                (*c, *s) = (cosine * scale, sine * scale);
            }
        }
    });
}

/// Rotates `x: [N, H, head_dim]` in place. With `h = rot_dim / 2` and each head's `a = x[..h]`,
/// `b = x[h..2h]`:
///
/// `a' = a cos - b sin`, `b' = b cos + a sin`; the values from `rot_dim` on pass unchanged.
///
/// `cos`, `sin`: `[N, rot_dim / 2]`, one row per token (any factor of a scaled rope, such as yarn's,
/// is already in them).
///
/// # Panics
/// If a length does not fit the shapes, or `rot_dim` is odd or larger than `head_dim`.
pub fn rope(
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    n: usize,
    heads: usize,
    head_dim: usize,
    rot_dim: usize,
) {
    rotate(x, cos, sin, n, heads, head_dim, rot_dim, 1.0);
}

/// Backward of [`rope`], in place on `dx`: the transposed matrix,
/// `da = da' cos + db' sin`, `db = db' cos - da' sin`.
///
/// # Panics
/// As [`rope`].
pub fn rope_backward(
    dx: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    n: usize,
    heads: usize,
    head_dim: usize,
    rot_dim: usize,
) {
    rotate(dx, cos, sin, n, heads, head_dim, rot_dim, -1.0);
}

#[allow(clippy::too_many_arguments)]
fn rotate(
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    n: usize,
    heads: usize,
    head_dim: usize,
    rot_dim: usize,
    sign: f32,
) {
    assert!(
        rot_dim.is_multiple_of(2) && rot_dim <= head_dim,
        "rope: rot_dim {rot_dim} must be even and at most head_dim {head_dim}"
    );
    let (width, half) = (heads * head_dim, rot_dim / 2);
    assert_eq!(x.len(), n * width, "rope: x has {} values, not {n} x {heads} x {head_dim}", x.len());
    assert_eq!(cos.len(), n * half, "rope: cos has {} values, not {n} x {half}", cos.len());
    assert_eq!(sin.len(), n * half, "rope: sin has {} values, not {n} x {half}", sin.len());
    if half == 0 {
        return;
    }
    let shared = SharedMut::new(x);
    for_rows(n, width, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let x = unsafe { shared.part(r.start * width..r.end * width) };
        let table = r.start * half..r.end * half;
        rotate_rows(x, &cos[table.clone()], &sin[table], width, head_dim, half, sign);
    });
}

dispatch! {
    fn rotate_rows<V>(
        x: &mut [f32], cos: &[f32], sin: &[f32], width: usize, head_dim: usize, half: usize, sign: f32,
    ) {
        let sign = V::splat(sign);
        for ((x, cos), sin) in x.chunks_exact_mut(width).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
            for head in x.chunks_exact_mut(head_dim) {
                let (left, right) = head.split_at_mut(half);
                for_lanes!(V, half, |at, lanes| {
                    let (a, b) = (V::load(left, at, lanes), V::load(right, at, lanes));
                    let (c, s) = (V::load(cos, at, lanes), V::load(sin, at, lanes).mul(sign));
                    a.mul(c).sub(b.mul(s)).store(left, at, lanes);
                    b.mul(c).add(a.mul(s)).store(right, at, lanes);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let (positions, sets) = ([0, 5, 100], [1, 0, 1]);
        let frequencies = [1.0, 0.5, 0.25, 0.125];
        let (mut cos, mut sin) = ([f32::NAN; 6], [f32::NAN; 6]);
        rope_table(&mut cos, &mut sin, &positions, &sets, &frequencies, 2, 1.5);
        for i in 0..6 {
            let angle =
                f64::from(positions[i / 2]) * f64::from(frequencies[sets[i / 2] as usize * 2 + i % 2]);
            assert!((f64::from(cos[i]) - 1.5 * angle.cos()).abs() < 1e-6);
            assert!((f64::from(sin[i]) - 1.5 * angle.sin()).abs() < 1e-6);
        }
    }

    #[test]
    fn rotates_pairs_and_the_backward_is_the_transpose() {
        for (n, heads, head_dim, rot_dim) in
            [(1, 1, 2, 2), (5, 3, 20, 14), (37, 9, 64, 64), (3, 2, 8, 0), (2, 1, 70, 50)]
        {
            let half = rot_dim / 2;
            // A yarn-like factor makes the matrix no rotation, so that transpose and inverse differ.
            let angle = |i: usize| (i * 7 % 23) as f32 * 0.3;
            let cos: Vec<f32> = (0..n * half).map(|i| 1.2 * angle(i).cos()).collect();
            let sin: Vec<f32> = (0..n * half).map(|i| 1.2 * angle(i).sin()).collect();
            let x: Vec<f32> = (0..n * heads * head_dim).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
            let dy: Vec<f32> = (0..x.len()).map(|i| (i % 13) as f32 / 6.0 - 1.0).collect();

            let mut y = x.clone();
            rope(&mut y, &cos, &sin, n, heads, head_dim, rot_dim);
            for (i, (y, x)) in y.chunks(head_dim).zip(x.chunks(head_dim)).enumerate() {
                let t = i / heads * half;
                for j in 0..head_dim {
                    let want = if j < half {
                        x[j] * cos[t + j] - x[j + half] * sin[t + j]
                    } else if j < rot_dim {
                        x[j] * cos[t + j - half] + x[j - half] * sin[t + j - half]
                    } else {
                        x[j]
                    };
                    assert!((y[j] - want).abs() < 1e-6);
                }
            }
            let mut dx = dy.clone();
            rope_backward(&mut dx, &cos, &sin, n, heads, head_dim, rot_dim);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let (left, right) = (dot(&y, &dy), dot(&x, &dx));
            assert!(
                (left - right).abs() < 1e-3 * left.abs().max(1.0),
                "<Ax, y> = {left}, <x, A'y> = {right}"
            );
        }
    }
}

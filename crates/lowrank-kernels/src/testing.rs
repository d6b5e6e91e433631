//! What the kernels' tests share.

use crate::Format;

#[path = "../tests/random_blocks/mod.rs"]
mod random_blocks;

pub(crate) use random_blocks::random_blocks;

/// `n` values in -1..=1, different for each `salt`.
pub(crate) fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 50.0 - 1.0).collect()
}

/// `sum_i a_i b_i`.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Checks that the backward of a linear operation is its transpose: `<y, dy> = <x, dx>`.
pub(crate) fn assert_transpose(x: &[f32], dx: &[f32], y: &[f32], dy: &[f32]) {
    let (forward, backward) = (dot(y, dy), dot(x, dx));
    assert!((forward - backward).abs() <= 1e-5 * forward.abs().max(1.0), "{forward} {backward}");
}

/// Checks `dx`, the gradient of `sum_i dy_i f(x)_i`, with central differences of `f`.
pub(crate) fn assert_gradient(x: &[f32], dx: &[f32], dy: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
    let step = 1e-2;
    for i in 0..x.len() {
        let at = |by: f32| {
            let mut x = x.to_vec();
            x[i] += by;
            dot(&f(&x), dy)
        };
        let want = (at(step) - at(-step)) / f64::from(2.0 * step);
        assert!((want - f64::from(dx[i])).abs() < 2e-3 * want.abs().max(1.0), "{i}: {} for {want}", dx[i]);
    }
}

//! Which ranks matter: AdaLoRA's sensitivity of values and importance of ranks (Zhang et al. 2023).

use crate::parallel::{SharedMut, for_rows};

/// Running means of how sensitive the loss is to each value `p` with the gradient `g`: with `s = |p g|`,
/// `mean = beta1 mean + (1 - beta1) s` and `deviation = beta2 deviation + (1 - beta2) |s - mean|`. `8` flops a value.
///
/// # Panics
/// If the lengths differ.
pub fn adalora_sensitivity(
    mean: &mut [f32],
    deviation: &mut [f32],
    p: &[f32],
    g: &[f32],
    beta1: f32,
    beta2: f32,
) {
    let n = p.len();
    let lengths = [mean.len(), deviation.len(), g.len()];
    assert_eq!(lengths, [n; 3], "adalora_sensitivity: {lengths:?} values for {n}");
    let (mean, deviation) = (SharedMut::new(mean), SharedMut::new(deviation));
    for_rows(n, 8, |part| {
        // SAFETY: the parts are disjoint.
        let (mean, deviation) = unsafe { (mean.part(part.clone()), deviation.part(part.clone())) };
        for (((p, g), mean), deviation) in p[part.clone()].iter().zip(&g[part]).zip(mean).zip(deviation) {
            let now = (p * g).abs();
            *mean = beta1 * *mean + (1.0 - beta1) * now;
            *deviation = beta2 * *deviation + (1.0 - beta2) * (now - *mean).abs();
        }
    });
}

/// The importance of each of `R` ranks: `scores[r] = s_E[r] + mean_k s_A[r,k] + mean_o s_B[o,r]` with `s = mean deviation`
/// ([`adalora_sensitivity`]), for `a: [R,K]`, `b: [O,R]`, `e: [R]`, each as its `mean` and `deviation`. `2 R (K + O)` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn adalora_importance(scores: &mut [f32], a: [&[f32]; 2], b: [&[f32]; 2], e: [&[f32]; 2]) {
    let r = scores.len();
    let (k, o) = (a[0].len() / r.max(1), b[0].len() / r.max(1));
    for (what, pair, len) in [("A", a, r * k), ("B", b, o * r), ("E", e, r)] {
        let lengths = pair.map(<[f32]>::len);
        assert_eq!(lengths, [len; 2], "adalora_importance: {lengths:?} values of {what}, rank {r}");
    }
    let product = |[mean, deviation]: [&[f32]; 2], i: usize| mean[i] * deviation[i];
    for (rank, score) in scores.iter_mut().enumerate() {
        let row: f32 = (rank * k..(rank + 1) * k).map(|i| product(a, i)).sum();
        let column: f32 = (rank..o * r).step_by(r).map(|i| product(b, i)).sum();
        *score = product(e, rank);
        *score += row / k.max(1) as f32 + column / o.max(1) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn running_means() {
        let (p, g) = (values(5, 1), values(5, 2));
        let (mut mean, mut deviation) = (vec![1.0; 5], vec![2.0; 5]);
        adalora_sensitivity(&mut mean, &mut deviation, &p, &g, 0.75, 0.5);
        for i in 0..5 {
            let now = (p[i] * g[i]).abs();
            let want = 0.75 + 0.25 * now;
            assert!((mean[i] - want).abs() < 1e-6);
            assert!((deviation[i] - (1.0 + 0.5 * (now - want).abs())).abs() < 1e-6);
        }
    }

    #[test]
    fn a_rank_has_its_row_and_its_column() {
        let (a, b, e, ones) = ([1.0, 3.0, 0.0, 0.0], [0.0, 2.0, 0.0, 4.0, 0.0, 6.0], [10.0, 20.0], [1.0; 6]);
        let mut scores = [f32::NAN; 2];
        adalora_importance(&mut scores, [&a, &ones[..4]], [&b, &ones], [&e, &ones[..2]]);
        assert_eq!(scores, [12.0, 24.0]);
    }
}

//! Binary cross-entropy of independent classes.

use crate::squared_error::outputs_of;

/// `losses[i] = mean_c (max(x, 0) - x y + log(1 + exp(-|x|)))` for the logits `x = x[i,c]` and the targets
/// `y = targets[i,c]` in 0..=1: PyTorch's `BCEWithLogitsLoss`, and `dx[i,c] = scales[i] / C (sigmoid(x) - y)`, the
/// gradient of `sum_i scales[i] losses[i]`, for `x, dx, targets: [N,C]` and `losses, scales: [N]`. `10 N C` flops.
///
/// # Panics
/// If the lengths do not fit.
pub fn binary_cross_entropy(losses: &mut [f32], dx: &mut [f32], x: &[f32], targets: &[f32], scales: &[f32]) {
    let classes = outputs_of("binary_cross_entropy", losses, dx, x, targets, scales);
    for i in 0..losses.len() {
        let scale = scales[i] / classes as f32;
        let mut sum = 0.0;
        for at in i * classes..(i + 1) * classes {
            let (x, y) = (x[at], targets[at]);
            let e = (-x.abs()).exp();
            sum += x.max(0.0) - x * y + e.ln_1p();
            let sigmoid = if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) };
            dx[at] = scale * (sigmoid - y);
        }
        losses[i] = sum / classes as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, values};

    #[test]
    fn losses_and_their_gradient() {
        for (n, classes) in [(7, 1), (5, 3)] {
            let len = n * classes;
            let x: Vec<f32> = values(len, 1).iter().map(|x| 4.0 * x).collect();
            let targets: Vec<f32> = (0..len).map(|i| [0.0, 1.0, 1.0, 0.25][i % 4]).collect();
            let scales = values(n, 3);
            let forward = |x: &[f32]| {
                let (mut losses, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; len]);
                binary_cross_entropy(&mut losses, &mut dx, x, &targets, &scales);
                (losses, dx)
            };
            let (losses, dx) = forward(&x);
            let of = |c: usize| {
                let (p, y) = (1.0 / (1.0 + (-f64::from(x[c])).exp()), f64::from(targets[c]));
                -(y * p.ln() + (1.0 - y) * (1.0 - p).ln()) / classes as f64
            };
            let want: f64 = (0..classes).map(of).sum();
            assert!((f64::from(losses[0]) - want).abs() < 1e-6, "{} for {want}", losses[0]);
            assert_gradient(&x, &dx, &scales, |x| forward(x).0);
        }
    }

    #[test]
    fn large_logits_stay_finite() {
        let (mut losses, mut dx) = ([f32::NAN; 4], [f32::NAN; 4]);
        let (x, targets) = ([1e30, 1e30, -1e30, -200.0], [1.0, 0.0, 1.0, 0.0]);
        binary_cross_entropy(&mut losses, &mut dx, &x, &targets, &[1.0; 4]);
        assert_eq!((losses, dx), ([0.0, 1e30, 1e30, 0.0], [0.0, 1.0, -1.0, 0.0]));
        binary_cross_entropy(&mut losses, &mut dx, &[f32::NAN; 4], &targets, &[1.0; 4]);
        assert!(losses.iter().chain(&dx).all(|x| x.is_nan()));
    }
}

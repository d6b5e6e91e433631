//! Squared error of single values.

/// `losses[i] = (x[i] - targets[i])^2` and `dx[i] = 2 scales[i] (x[i] - targets[i])`, the gradient of
/// `sum_i scales[i] losses[i]`; all `[N]`. `4 N` flops.
///
/// # Panics
/// If the lengths differ.
pub fn squared_error(losses: &mut [f32], dx: &mut [f32], x: &[f32], targets: &[f32], scales: &[f32]) {
    let n = x.len();
    for len in [losses.len(), dx.len(), targets.len(), scales.len()] {
        assert_eq!(len, n, "squared_error: {len} values, not {n}");
    }
    for i in 0..n {
        let difference = x[i] - targets[i];
        losses[i] = difference * difference;
        dx[i] = 2.0 * scales[i] * difference;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, values};

    #[test]
    fn losses_and_their_gradient() {
        let n = 7;
        let (x, targets, scales) = (values(n, 1), values(n, 2), values(n, 3));
        let forward = |x: &[f32]| {
            let (mut losses, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; n]);
            squared_error(&mut losses, &mut dx, x, &targets, &scales);
            (losses, dx)
        };
        let (losses, dx) = forward(&x);
        assert_eq!(losses[0], (x[0] - targets[0]).powi(2));
        assert_gradient(&x, &dx, &scales, |x| forward(x).0);
    }
}

//! Squared error of the outputs of a text.

/// `losses[i] = mean_c (x[i,c] - targets[i,c])^2` and `dx[i,c] = 2 scales[i] / C (x[i,c] - targets[i,c])`, the gradient
/// of `sum_i scales[i] losses[i]`, for `x, dx, targets: [N,C]` and `losses, scales: [N]`. `4 N C` flops.
///
/// # Panics
/// If the lengths do not fit.
pub fn squared_error(losses: &mut [f32], dx: &mut [f32], x: &[f32], targets: &[f32], scales: &[f32]) {
    let outputs = outputs_of("squared_error", losses, dx, x, targets, scales);
    for i in 0..losses.len() {
        let scale = 2.0 * scales[i] / outputs as f32;
        let mut sum = 0.0;
        for at in i * outputs..(i + 1) * outputs {
            let difference = x[at] - targets[at];
            sum += difference * difference;
            dx[at] = scale * difference;
        }
        losses[i] = sum / outputs as f32;
    }
}

/// `C` of a loss over `[N,C]`.
pub(crate) fn outputs_of(
    name: &str,
    losses: &[f32],
    dx: &[f32],
    x: &[f32],
    targets: &[f32],
    scales: &[f32],
) -> usize {
    let (n, outputs) = (losses.len(), x.len() / losses.len().max(1));
    assert_eq!(scales.len(), n, "{name}: {} scales for {n} losses", scales.len());
    for len in [x.len(), dx.len(), targets.len()] {
        assert_eq!(len, n * outputs, "{name}: {len} values, not {n} times {outputs}");
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, values};

    #[test]
    fn losses_and_their_gradient() {
        for (n, outputs) in [(7, 1), (5, 3)] {
            let len = n * outputs;
            let (x, targets, scales) = (values(len, 1), values(len, 2), values(n, 3));
            let forward = |x: &[f32]| {
                let (mut losses, mut dx) = (vec![f32::NAN; n], vec![f32::NAN; len]);
                squared_error(&mut losses, &mut dx, x, &targets, &scales);
                (losses, dx)
            };
            let (losses, dx) = forward(&x);
            let squares = (0..outputs).map(|c| (x[c] - targets[c]).powi(2));
            assert_eq!(losses[0], squares.sum::<f32>() / outputs as f32);
            assert_gradient(&x, &dx, &scales, |x| forward(x).0);
        }
    }
}

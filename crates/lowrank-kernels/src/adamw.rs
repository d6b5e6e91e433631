//! The AdamW step.

use crate::parallel::{SharedMut, for_rows};
use crate::simd::dispatch;

/// Settings of one AdamW step, as torch names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay: the parameter is first multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

/// One step, number `step >= 1`, in the order of operations of `torch.optim.AdamW`
/// (`_single_tensor_adamw`): decay, `m += (g - m)(1 - beta1)`, `v = v beta2 + (1 - beta2) g g`,
/// `p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)`.
///
/// # Panics
/// If the lengths differ or `step` is 0.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: &AdamW, step: u64) {
    let n = param.len();
    assert!(
        grad.len() == n && m.len() == n && v.len() == n,
        "adamw: param has {n} values, grad {}, m {}, v {}",
        grad.len(),
        m.len(),
        v.len()
    );
    assert!(step > 0, "adamw: the first step is number 1");
    let AdamW { lr, beta1, beta2, eps, weight_decay } = *settings;
    let correction1 = 1.0 - beta1.powf(step as f64);
    let root2 = (1.0 - beta2.powf(step as f64)).sqrt() as f32;
    let decay = (1.0 - lr * weight_decay) as f32;
    let (new1, old2, new2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
    let (minus_rate, eps) = ((-lr / correction1) as f32, eps as f32);
    let (param, m, v) = (SharedMut::new(param), SharedMut::new(m), SharedMut::new(v));
    for_rows(n, 8, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let (p, m, v) = unsafe { (param.part(r.clone()), m.part(r.clone()), v.part(r.clone())) };
        run(p, &grad[r], m, v, [decay, new1, old2, new2, minus_rate, root2, eps]);
    });
}

dispatch! {
    /// The compiler vectorises this loop by itself, without changing the order of operations.
    fn run<V>(p: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], factors: [f32; 7]) {
        let _ = V::LANES;
        let [decay, new1, old2, new2, minus_rate, root2, eps] = factors;
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(grad) {
            *p *= decay;
            *m += (g - *m) * new1;
            *v = *v * old2 + new2 * g * g;
            *p += minus_rate * *m / (v.sqrt() / root2 + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of `torch.optim.AdamW` (torch 2.15, CPU) on the same values.
    #[test]
    fn matches_torch() {
        let mut p = [0.5f32, -1.25, 2.0, 0.0];
        let (mut m, mut v) = ([0.0; 4], [0.0; 4]);
        let settings = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        for (step, scale) in [1.0f32, -0.5, 2.0].into_iter().enumerate() {
            let grad = [0.1, -0.2, 1e-4, 0.0].map(|g: f32| g * scale);
            adamw(&mut p, &grad, &mut m, &mut v, &settings, step as u64 + 1);
        }
        for (p, want) in p.iter().zip(TORCH) {
            assert!((p - want).abs() <= 1e-7 * want.abs().max(1e-3), "{p} against {want}");
        }
    }

    const TORCH: [f32; 4] = [0.479_279_67, -1.227_032, 1.974_786_2, 0.0];
}

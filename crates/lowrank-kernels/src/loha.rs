//! LoHa's factors: the Hadamard product of two matrices of rank `R` is a matrix `P Q` of rank `R^2`.
//!
//! `(W1a W1b) * (W2a W2b) = P Q` with `P[o, i R + j] = W1a[o,i] W2a[o,j]` and `Q[i R + j, k] = W1b[i,k] W2b[j,k]`.

use crate::parallel::{SharedMut, for_rows};

/// `P[o, i R + j] = a[o,i] b[o,j]` for `a, b: [O,R]`, `P: [O,R^2]`. `O R^2` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn loha_left(p: &mut [f32], a: &[f32], b: &[f32], r: usize) {
    let rows = check("loha_left", p.len(), a.len(), b.len(), r);
    let (rank, p) = (r * r, SharedMut::new(p));
    for_rows(rows, rank, |part| {
        for o in part {
            let (a, b) = (&a[o * r..(o + 1) * r], &b[o * r..(o + 1) * r]);
            // SAFETY: rows are disjoint.
            let p = unsafe { p.part(o * rank..(o + 1) * rank) };
            for (p, a) in p.chunks_exact_mut(r).zip(a) {
                p.iter_mut().zip(b).for_each(|(p, b)| *p = a * b);
            }
        }
    });
}

/// Backward of [`loha_left`]: `da[o,i] += sum_j dP[o, i R + j] b[o,j]`, `db[o,j] += sum_i dP[o, i R + j] a[o,i]`, each
/// where it is given. `4 O R^2` flops.
///
/// # Panics
/// As [`loha_left`].
pub fn loha_left_backward(
    da: Option<&mut [f32]>,
    db: Option<&mut [f32]>,
    dp: &[f32],
    a: &[f32],
    b: &[f32],
    r: usize,
) {
    let rows = check("loha_left_backward", dp.len(), a.len(), b.len(), r);
    let rank = r * r;
    // The steps in `dP` along the own index and along the other factor's.
    for (grad, other, own_step, other_step) in [(da, b, r, 1), (db, a, 1, r)] {
        let Some(grad) = grad else { continue };
        assert_eq!(grad.len(), rows * r, "loha_left_backward: {} values, not {rows} x {r}", grad.len());
        let grad = SharedMut::new(grad);
        for_rows(rows, 2 * rank, |part| {
            for o in part {
                let (dp, other) = (&dp[o * rank..(o + 1) * rank], &other[o * r..(o + 1) * r]);
                // SAFETY: rows are disjoint.
                let grad = unsafe { grad.part(o * r..(o + 1) * r) };
                for (own, g) in grad.iter_mut().enumerate() {
                    for (its, other) in other.iter().enumerate() {
                        *g += dp[own * own_step + its * other_step] * other;
                    }
                }
            }
        });
    }
}

/// `Q[i R + j, k] = a[i,k] b[j,k]` for `a, b: [R,K]`, `Q: [R^2,K]`. `R^2 K` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn loha_right(q: &mut [f32], a: &[f32], b: &[f32], r: usize) {
    let k = check("loha_right", q.len(), a.len(), b.len(), r);
    let q = SharedMut::new(q);
    for_rows(r * r, k, |part| {
        for ij in part {
            let (a, b) = (&a[ij / r * k..][..k], &b[ij % r * k..][..k]);
            // SAFETY: rows are disjoint.
            let q = unsafe { q.part(ij * k..(ij + 1) * k) };
            q.iter_mut().zip(a).zip(b).for_each(|((q, a), b)| *q = a * b);
        }
    });
}

/// Backward of [`loha_right`]: `da[i,k] += sum_j dQ[i R + j, k] b[j,k]`, `db[j,k] += sum_i dQ[i R + j, k] a[i,k]`, each
/// where it is given. `4 R^2 K` flops.
///
/// # Panics
/// As [`loha_right`].
pub fn loha_right_backward(
    da: Option<&mut [f32]>,
    db: Option<&mut [f32]>,
    dq: &[f32],
    a: &[f32],
    b: &[f32],
    r: usize,
) {
    let k = check("loha_right_backward", dq.len(), a.len(), b.len(), r);
    for (grad, other, own_step, other_step) in [(da, b, r, 1), (db, a, 1, r)] {
        let Some(grad) = grad else { continue };
        assert_eq!(grad.len(), r * k, "loha_right_backward: {} values, not {r} x {k}", grad.len());
        let grad = SharedMut::new(grad);
        for_rows(r, 2 * r * k, |part| {
            for own in part {
                // SAFETY: rows are disjoint.
                let grad = unsafe { grad.part(own * k..(own + 1) * k) };
                for its in 0..r {
                    let dq = &dq[(own * own_step + its * other_step) * k..][..k];
                    let other = &other[its * k..][..k];
                    grad.iter_mut().zip(dq).zip(other).for_each(|((g, dq), o)| *g += dq * o);
                }
            }
        });
    }
}

/// The axis that is not of the rank.
fn check(kernel: &str, product: usize, a: usize, b: usize, r: usize) -> usize {
    let len = a / r.max(1);
    assert!(
        a == r * len && b == a && product == a * r,
        "{kernel}: {a}, {b} and {product} values for rank {r}"
    );
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, values};

    #[test]
    fn products_are_those_of_the_factors() {
        let (o, k, r) = (4, 5, 2);
        let [w1a, w2a] = [1, 2].map(|salt| values(o * r, salt));
        let [w1b, w2b] = [3, 4].map(|salt| values(r * k, salt));
        let (mut p, mut q) = (vec![f32::NAN; o * r * r], vec![f32::NAN; r * r * k]);
        loha_left(&mut p, &w1a, &w2a, r);
        loha_right(&mut q, &w1b, &w2b, r);
        let entry = |a: &[f32], b: &[f32], rank: usize, i: usize, j: usize| -> f32 {
            (0..rank).map(|t| a[i * rank + t] * b[t * k + j]).sum()
        };
        for i in 0..o {
            for j in 0..k {
                let want = entry(&w1a, &w1b, r, i, j) * entry(&w2a, &w2b, r, i, j);
                assert!((entry(&p, &q, r * r, i, j) - want).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (len, r) = (5, 3);
        type Forward = fn(&mut [f32], &[f32], &[f32], usize);
        type Backward = fn(Option<&mut [f32]>, Option<&mut [f32]>, &[f32], &[f32], &[f32], usize);
        let pairs: [(Forward, Backward); 2] =
            [(loha_left, loha_left_backward), (loha_right, loha_right_backward)];
        for (forward, backward) in pairs {
            let (a, b, dy) = (values(len * r, 1), values(len * r, 2), values(len * r * r, 3));
            let product = |a: &[f32], b: &[f32]| {
                let mut y = vec![f32::NAN; len * r * r];
                forward(&mut y, a, b, r);
                y
            };
            let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
            backward(Some(&mut da), Some(&mut db), &dy, &a, &b, r);
            assert_gradient(&a, &da, &dy, |a| product(a, &b));
            assert_gradient(&b, &db, &dy, |b| product(&a, b));
        }
    }
}

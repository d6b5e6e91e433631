//! The size of a low-rank change.

use rayon::prelude::*;

/// The Frobenius norm of `B A` for `a: [R,K]`, `b: [O,R]`, from products of the rank's size:
/// `||B A||^2 = tr(B^T B A A^T)`. `2 R^2 (K + O)` flops, in f64.
///
/// # Panics
/// If a length is not a multiple of `r`.
pub fn low_rank_norm(a: &[f32], b: &[f32], r: usize) -> f64 {
    let k = a.len() / r.max(1);
    assert!(
        a.len() == r * k && b.len().is_multiple_of(r.max(1)),
        "low_rank_norm: {}, {} values",
        a.len(),
        b.len()
    );
    let square = |ij: usize| {
        let (i, j) = (ij / r, ij % r);
        let bb: f64 = b.chunks_exact(r).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
        let rows = a[i * k..(i + 1) * k].iter().zip(&a[j * k..(j + 1) * k]);
        let aa: f64 = rows.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        bb * aa
    };
    let squares: Vec<f64> = (0..r * r).into_par_iter().map(square).collect();
    // Added in one order, whatever the threads.
    squares.iter().fold(0.0, |sum, square| sum + square).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn norm_of_the_product() {
        let (o, k, r) = (5, 7, 3);
        let (a, b) = (values(r * k, 1), values(o * r, 2));
        let entry =
            |i: usize| (0..r).map(|j| f64::from(b[i / k * r + j]) * f64::from(a[j * k + i % k])).sum::<f64>();
        let want = (0..o * k).map(|i| entry(i).powi(2)).sum::<f64>().sqrt();
        assert!((low_rank_norm(&a, &b, r) - want).abs() < 1e-9);
        assert_eq!(low_rank_norm(&[], &[], 0), 0.0);
    }
}

//! DoRA's norms: `c_o = ||(W0 + s B A)_o||`, without forming `B A`.

use rayon::prelude::*;

use crate::parallel::for_parts;
use crate::{WeightRef, scale_columns_backward, sum_squares};

/// The squared norm of the weights of every output feature, `squares: [O]`: of the rows of `W: [O,K]`, or with
/// `transposed` of the columns of `W: [K,O]`. `2 O K` flops.
///
/// # Panics
/// If `squares` does not have `O` values.
pub fn weight_squares(squares: &mut [f64], w: &WeightRef<'_>, transposed: bool) {
    let o = if transposed { w.cols } else { w.rows };
    assert_eq!(squares.len(), o, "weight_squares: {} values, not {o}", squares.len());
    if !transposed {
        let row = |row: &mut Vec<f32>, (i, square): (usize, &mut f64)| {
            w.expand(i, 0..w.cols, row);
            *square = sum_squares(row);
        };
        return squares.par_iter_mut().enumerate().for_each_init(|| vec![0.0; w.cols], row);
    }
    squares.fill(0.0);
    let mut row = vec![0.0; w.cols];
    for i in 0..w.rows {
        w.expand(i, 0..w.cols, &mut row);
        squares.iter_mut().zip(&row).for_each(|(s, x)| *s += f64::from(*x) * f64::from(*x));
    }
}

/// `norms[o] = sqrt(squares[o] + 2 s sum_i b[o,i] p[i,o] + s^2 sum_ij b[o,i] aa[i,j] b[o,j])`: the norms of the rows of
/// `W0 + s B A`, from `squares: [O]` of `W0` ([`weight_squares`]), `b: [O,R]`, `p = A W0^T: [R,O]` and `aa = A A^T: [R,R]`.
/// About `3 O R^2` flops, in f64.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn dora_norms(norms: &mut [f32], squares: &[f64], b: &[f32], p: &[f32], aa: &[f32], scaling: f32) {
    let o = norms.len();
    let r = b.len() / o.max(1);
    assert_eq!(squares.len(), o, "dora_norms: {} squares, not {o}", squares.len());
    assert!(
        b.len() == o * r && p.len() == r * o,
        "dora_norms: {} and {} values, not {o} x {r}",
        b.len(),
        p.len()
    );
    assert_eq!(aa.len(), r * r, "dora_norms: A A^T has {} values, not {r} x {r}", aa.len());
    let s = f64::from(scaling);
    for_parts(norms, r * r, |norms, rows| {
        for (norm, row) in norms.iter_mut().zip(rows) {
            let (b, mut sum) = (&b[row * r..(row + 1) * r], squares[row]);
            for (i, &bi) in b.iter().enumerate() {
                sum += 2.0 * s * f64::from(bi) * f64::from(p[i * o + row]);
                let around = b.iter().zip(&aa[i * r..]).map(|(x, y)| f64::from(*x) * f64::from(*y));
                sum += s * s * f64::from(bi) * around.sum::<f64>();
            }
            *norm = sum.max(0.0).sqrt() as f32;
        }
    });
}

/// The gradient of the magnitude `m` of `y = m / c * z`: `dm[j] += sum_i dy[i,j] z[i,j] / norms[j]`, for `dy, z: [N,O]` and
/// `dm, norms: [O]`. `2 N O` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn dora_magnitude_backward(dm: &mut [f32], dy: &[f32], z: &[f32], norms: &[f32], n: usize) {
    assert_eq!(dm.len(), norms.len(), "dora_magnitude_backward: {} and {} values", dm.len(), norms.len());
    let mut sums = vec![0.0; dm.len()];
    scale_columns_backward(&mut sums, dy, z, n);
    dm.iter_mut().zip(sums).zip(norms).for_each(|((dm, sum), c)| *dm += sum / c);
}

/// `norms[i] = ||x[i,:]||` for `x: [N,D]`, `norms: [N]`. `2 N D` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn row_norms(norms: &mut [f32], x: &[f32], d: usize) {
    let n = norms.len();
    assert_eq!(x.len(), n * d, "row_norms: x has {} values, not {n} x {d}", x.len());
    for_parts(norms, d, |norms, rows| {
        for (norm, i) in norms.iter_mut().zip(rows) {
            *norm = sum_squares(&x[i * d..(i + 1) * d]).sqrt() as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn norms_of_the_sum() {
        let (o, k, r, s) = (5, 7, 3, 0.5);
        let (w, a, b) = (values(o * k, 1), values(r * k, 2), values(o * r, 3));
        let product = |x: &[f32], y: &[f32], rows: usize| -> Vec<f32> {
            (0..r * rows).map(|i| (0..k).map(|t| x[i / rows * k + t] * y[i % rows * k + t]).sum()).collect()
        };
        let (p, aa) = (product(&a, &w, o), product(&a, &a, r));
        let mut squares = vec![f64::NAN; o];
        weight_squares(&mut squares, &WeightRef::from_f32(o, k, &w), false);
        let stored: Vec<f32> = (0..k * o).map(|i| w[i % o * k + i / o]).collect();
        let mut columns = vec![f64::NAN; o];
        weight_squares(&mut columns, &WeightRef::from_f32(k, o, &stored), true);
        let mut norms = vec![f32::NAN; o];
        dora_norms(&mut norms, &squares, &b, &p, &aa, s);
        let sum: Vec<f32> = (0..o * k)
            .map(|i| w[i] + s * (0..r).map(|j| b[i / k * r + j] * a[j * k + i % k]).sum::<f32>())
            .collect();
        let mut want = vec![f32::NAN; o];
        row_norms(&mut want, &sum, k);
        for i in 0..o {
            assert!((norms[i] - want[i]).abs() < 1e-5 && (squares[i] - columns[i]).abs() < 1e-5);
        }
    }

    #[test]
    fn the_magnitude_has_the_sum_of_its_column() {
        let (n, o) = (4, 3);
        let (dy, z, norms) = (values(n * o, 1), values(n * o, 2), [2.0, 4.0, 0.5]);
        let mut dm = vec![1.0; o];
        dora_magnitude_backward(&mut dm, &dy, &z, &norms, n);
        for j in 0..o {
            let sum: f32 = (0..n).map(|i| dy[i * o + j] * z[i * o + j]).sum();
            assert!((dm[j] - 1.0 - sum / norms[j]).abs() < 1e-5);
        }
    }
}

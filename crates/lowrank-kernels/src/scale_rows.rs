//! Factors and masks of rows: one value for each row.

use std::ops::Range;

use crate::parallel::{SharedMut, for_rows};

/// `y[i,j] = factors[i] x[i,j]` for `y: [N,D]`, `factors: [N]`, and the first `D` columns of `x: [N, stride]`.
/// It is its own backward with respect to `x`. `N D` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn scale_rows(y: &mut [f32], x: &[f32], stride: usize, factors: &[f32], d: usize) {
    let n = factors.len();
    assert_eq!(y.len(), n * d, "scale_rows: y has {} values, not {n} x {d}", y.len());
    assert!(d <= stride && x.len() >= n * stride, "scale_rows: x has {} values, not {n} x {stride}", x.len());
    let y = SharedMut::new(y);
    for_rows(n, d, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(i * d..(i + 1) * d) };
            y.iter_mut().zip(&x[i * stride..]).for_each(|(y, x)| *y = factors[i] * x);
        }
    });
}

/// `x[i,:] *= factors[i]` for `x: [N,D]`, `factors: [N]`. `N D` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn scale_rows_in_place(x: &mut [f32], factors: &[f32]) {
    let n = factors.len();
    let d = x.len() / n.max(1);
    assert_eq!(x.len(), n * d, "scale_rows_in_place: {} values are not {n} rows", x.len());
    let x = SharedMut::new(x);
    for_rows(n, d, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            unsafe { x.part(i * d..(i + 1) * d) }.iter_mut().for_each(|x| *x *= factors[i]);
        }
    });
}

/// `x[i,j] = 0` for `j` outside `kept[i]`, with `x: [N,D]` and a range of columns for each row. No flops.
///
/// # Panics
/// If a length does not fit the shapes or a range is outside the columns.
pub fn keep_columns(x: &mut [f32], kept: &[Range<usize>]) {
    let n = kept.len();
    let d = x.len() / n.max(1);
    assert_eq!(x.len(), n * d, "keep_columns: {} values are not {n} rows", x.len());
    for (row, kept) in x.chunks_exact_mut(d.max(1)).zip(kept) {
        row[..kept.start].fill(0.0);
        row[kept.end..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn factors_and_masks() {
        let (n, d, stride) = (300, 70, 90);
        let (x, factors) = (values(n * stride, 1), values(n, 2));
        let mut y = vec![f32::NAN; n * d];
        scale_rows(&mut y, &x, stride, &factors, d);
        let mut z = x.clone();
        scale_rows_in_place(&mut z, &factors);
        for i in 0..n {
            assert_eq!(y[i * d..(i + 1) * d], z[i * stride..][..d]);
            assert_eq!(z[i * stride + 3], x[i * stride + 3] * factors[i]);
        }
        let mut m = [1.0; 6];
        keep_columns(&mut m, &[1..2, 0..0]);
        assert_eq!(m, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

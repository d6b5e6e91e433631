//! Factors of columns: one value for each output (or input) feature.

use crate::parallel::{SharedMut, for_rows};

/// `y[i,j] = beta y[i,j] + factors[j] x[i,j]` for `x, y: [N,D]`, `factors: [D]`; with `beta` 0, `y` is only
/// written. It is its own backward with respect to `x`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn scale_columns(y: &mut [f32], x: &[f32], factors: &[f32], n: usize, beta: f32) {
    let d = factors.len();
    assert_eq!(x.len(), n * d, "scale_columns: x has {} values, not {n} x {d}", x.len());
    assert_eq!(y.len(), n * d, "scale_columns: y has {} values, not {n} x {d}", y.len());
    let shared = SharedMut::new(y);
    for_rows(n, d, |rows| {
        let part = rows.start * d..rows.end * d;
        // SAFETY: the ranges of `for_rows` are disjoint.
        let y = unsafe { shared.part(part.clone()) };
        for (y, x) in y.chunks_exact_mut(d.max(1)).zip(x[part].chunks_exact(d.max(1))) {
            let values = y.iter_mut().zip(x).zip(factors);
            if beta == 0.0 {
                values.for_each(|((y, x), f)| *y = f * x);
            } else {
                values.for_each(|((y, x), f)| *y = beta * *y + f * x);
            }
        }
    });
}

/// Backward of [`scale_columns`]: `dfactors[j] += sum_i dy[i,j] x[i,j]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn scale_columns_backward(dfactors: &mut [f32], dy: &[f32], x: &[f32], n: usize) {
    let d = dfactors.len();
    assert_eq!(x.len(), n * d, "scale_columns_backward: x has {} values, not {n} x {d}", x.len());
    assert_eq!(dy.len(), n * d, "scale_columns_backward: dy has {} values, not {n} x {d}", dy.len());
    let shared = SharedMut::new(dfactors);
    // Split over columns, so that every sum has one order.
    for_rows(d.div_ceil(COLUMNS_PER_TASK), n * COLUMNS_PER_TASK, |blocks| {
        for block in blocks {
            let columns = block * COLUMNS_PER_TASK..d.min((block + 1) * COLUMNS_PER_TASK);
            // SAFETY: blocks of columns are disjoint.
            let out = unsafe { shared.part(columns.clone()) };
            for (dy, x) in dy.chunks_exact(d).zip(x.chunks_exact(d)) {
                for ((o, dy), x) in out.iter_mut().zip(&dy[columns.clone()]).zip(&x[columns.clone()]) {
                    *o += dy * x;
                }
            }
        }
    });
}

/// `x[i,j] *= factors[j]` for `x: [N,D]`, `factors: [D]`. `N D` flops.
///
/// # Panics
/// If `x` is not rows of `D` values.
pub fn scale_columns_in_place(x: &mut [f32], factors: &[f32]) {
    let d = factors.len();
    assert!(
        x.len().is_multiple_of(d.max(1)),
        "scale_columns_in_place: {} values are not rows of {d}",
        x.len()
    );
    let (n, shared) = (x.len() / d.max(1), SharedMut::new(x));
    for_rows(n, d, |rows| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let x = unsafe { shared.part(rows.start * d..rows.end * d) };
        for x in x.chunks_exact_mut(d.max(1)) {
            x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    });
}

/// Columns that a task sums at a time: whole cache lines.
const COLUMNS_PER_TASK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn scales_and_sums() {
        for (n, d) in [(1, 1), (5, 3), (301, 257)] {
            let (x, f, dy) = (values(n * d, 1), values(d, 2), values(n * d, 3));
            let mut y = vec![f32::NAN; n * d];
            scale_columns(&mut y, &x, &f, n, 0.0);
            let mut z = x.clone();
            scale_columns_in_place(&mut z, &f);
            assert_eq!(z, y);
            let mut z = dy.clone();
            scale_columns(&mut z, &x, &f, n, 0.5);
            let mut df = vec![1.0; d];
            scale_columns_backward(&mut df, &dy, &x, n);
            for j in 0..d {
                for i in 0..n {
                    let at = i * d + j;
                    assert_eq!(y[at], f[j] * x[at]);
                    assert!((z[at] - (0.5 * dy[at] + f[j] * x[at])).abs() < 1e-6);
                }
                let want: f64 = (0..n).map(|i| f64::from(dy[i * d + j]) * f64::from(x[i * d + j])).sum();
                assert!((f64::from(df[j]) - 1.0 - want).abs() < 1e-4);
            }
        }
    }
}

//! Additions, scalings and biases over whole buffers.

use crate::parallel::{SharedMut, for_parts, for_rows};
use crate::simd::{dispatch, for_lanes};

/// `y += x`.
///
/// # Panics
/// If the lengths differ.
pub fn add(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "add: y has {} values, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.iter_mut().zip(&x[r]).for_each(|(y, x)| *y += x));
}

/// `y *= s`.
pub fn scale(y: &mut [f32], s: f32) {
    for_parts(y, 1, |y, _| y.iter_mut().for_each(|y| *y *= s));
}

/// `y *= x`, value by value. One flop a value, as each of the next three.
///
/// # Panics
/// If the lengths differ.
pub fn mul(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "mul: y has {} values, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.iter_mut().zip(&x[r]).for_each(|(y, x)| *y *= x));
}

/// `y /= x`, value by value.
///
/// # Panics
/// If the lengths differ.
pub fn div(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "div: y has {} values, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.iter_mut().zip(&x[r]).for_each(|(y, x)| *y /= x));
}

/// `y -= x`.
///
/// # Panics
/// If the lengths differ.
pub fn sub(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "sub: y has {} values, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.iter_mut().zip(&x[r]).for_each(|(y, x)| *y -= x));
}

/// `y = a - b`.
///
/// # Panics
/// If the lengths differ.
pub fn difference(y: &mut [f32], a: &[f32], b: &[f32]) {
    assert!(
        y.len() == a.len() && y.len() == b.len(),
        "difference: {}, {}, {} values",
        y.len(),
        a.len(),
        b.len()
    );
    for_parts(y, 2, |y, r| {
        y.iter_mut().zip(&a[r.clone()]).zip(&b[r]).for_each(|((y, a), b)| *y = a - b);
    });
}

/// `y += s (a - b)`. Three flops a value.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled_difference(y: &mut [f32], a: &[f32], b: &[f32], s: f32) {
    assert!(
        y.len() == a.len() && y.len() == b.len(),
        "add_scaled_difference: {}, {}, {} values",
        y.len(),
        a.len(),
        b.len()
    );
    for_parts(y, 2, |y, r| {
        y.iter_mut().zip(&a[r.clone()]).zip(&b[r]).for_each(|((y, a), b)| *y += s * (a - b));
    });
}

/// `y = 1 / x`, value by value.
///
/// # Panics
/// If the lengths differ.
pub fn reciprocal(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "reciprocal: y has {} values, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.iter_mut().zip(&x[r]).for_each(|(y, x)| *y = 1.0 / x));
}

/// `y = x`.
///
/// # Panics
/// If the lengths differ.
pub fn copy(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "copy: y has {} values, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.copy_from_slice(&x[r]));
}

/// `y[:, at..at + width] = x[:, from..from + width]` for `y: [N,D]` and `x: [N,E]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn copy_columns(y: &mut [f32], x: &[f32], n: usize, at: usize, from: usize, width: usize) {
    let (d, e) = (y.len() / n.max(1), x.len() / n.max(1));
    assert!(
        (n * d, n * e) == (y.len(), x.len()),
        "copy_columns: {} and {} values in {n} rows",
        y.len(),
        x.len()
    );
    assert!(at + width <= d && from + width <= e, "copy_columns: {width} from {from} of {e} to {at} of {d}");
    let shared = SharedMut::new(y);
    for_rows(n, width, |r| {
        for i in r {
            // SAFETY: rows are disjoint.
            let to = unsafe { shared.part(i * d + at..i * d + at + width) };
            to.copy_from_slice(&x[i * e + from..][..width]);
        }
    });
}

/// `y[:, at..at + width] = value` for `y: [N,D]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn fill_columns(y: &mut [f32], n: usize, at: usize, width: usize, value: f32) {
    let d = y.len() / n.max(1);
    assert!(
        n * d == y.len() && at + width <= d,
        "fill_columns: {at} + {width} of {} values in {n} rows",
        y.len()
    );
    let shared = SharedMut::new(y);
    for_rows(n, width, |r| {
        for i in r {
            // SAFETY: rows are disjoint.
            unsafe { shared.part(i * d + at..i * d + at + width) }.fill(value);
        }
    });
}

/// `y[i,:] = bias`, or `x[i,:] + bias`, for `y, x: [N,D]`, `bias: [D]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn set_bias(y: &mut [f32], x: Option<&[f32]>, bias: &[f32], n: usize) {
    let d = bias.len();
    assert_eq!(y.len(), n * d, "set_bias: y has {} values, not {n} x {d}", y.len());
    assert!(x.is_none_or(|x| x.len() == n * d), "set_bias: x does not have {n} x {d} values");
    let shared = SharedMut::new(y);
    for_rows(n, d, |r| {
        for i in r {
            // SAFETY: rows are disjoint.
            let y = unsafe { shared.part(i * d..(i + 1) * d) };
            match x {
                None => y.copy_from_slice(bias),
                Some(x) => {
                    for ((y, x), b) in y.iter_mut().zip(&x[i * d..(i + 1) * d]).zip(bias) {
                        *y = x + b;
                    }
                }
            }
        }
    });
}

/// `y[i,:] += bias` for `y: [N,D]`, `bias: [D]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn add_bias(y: &mut [f32], bias: &[f32], n: usize, d: usize) {
    assert_eq!(y.len(), n * d, "add_bias: y has {} values, not {n} x {d}", y.len());
    assert_eq!(bias.len(), d, "add_bias: bias has {} values, not {d}", bias.len());
    let shared = SharedMut::new(y);
    for_rows(n, d, |r| {
        // SAFETY: the ranges of `for_rows` are disjoint.
        let y = unsafe { shared.part(r.start * d..r.end * d) };
        for row in y.chunks_exact_mut(d.max(1)) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    });
}

/// Backward of [`add_bias`]: `dbias += sum_i dy[i,:]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn bias_backward(dbias: &mut [f32], dy: &[f32], n: usize, d: usize) {
    assert_eq!(dy.len(), n * d, "bias_backward: dy has {} values, not {n} x {d}", dy.len());
    assert_eq!(dbias.len(), d, "bias_backward: dbias has {} values, not {d}", dbias.len());
    let shared = SharedMut::new(dbias);
    // Split over columns, so that every sum has one order.
    for_rows(d.div_ceil(COLUMNS_PER_TASK), n * COLUMNS_PER_TASK, |blocks| {
        for block in blocks {
            let columns = block * COLUMNS_PER_TASK..d.min((block + 1) * COLUMNS_PER_TASK);
            // SAFETY: blocks of columns are disjoint.
            let out = unsafe { shared.part(columns.clone()) };
            for row in dy.chunks_exact(d) {
                for (o, x) in out.iter_mut().zip(&row[columns.clone()]) {
                    *o += x;
                }
            }
        }
    });
}

/// Columns that a task of [`bias_backward`] sums at a time: whole cache lines.
const COLUMNS_PER_TASK: usize = 64;

/// `sum x_i^2`, for norms of gradients: f32 lanes over runs of 4096 values, runs added in f64 in one
/// order whatever the threads.
pub fn sum_squares(x: &[f32]) -> f64 {
    use rayon::prelude::*;
    const RUN_VALUES: usize = 4096;
    if x.len() <= 16 * RUN_VALUES {
        return x.chunks(RUN_VALUES).map(sum_squares_run).sum();
    }
    let parts: Vec<f64> =
        x.par_chunks(RUN_VALUES * 16).map(|c| c.chunks(RUN_VALUES).map(sum_squares_run).sum()).collect();
    parts.iter().sum()
}

dispatch! {
    fn sum_squares_run<V>(x: &[f32]) -> f64 {
        let mut acc = V::zero();
        for_lanes!(V, x.len(), |at, lanes| {
            let v = V::load(x, at, lanes);
            acc = v.mul_add(v, acc);
        });
        f64::from(acc.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    #[test]
    fn columns_and_biases() {
        let n = 300;
        let x: Vec<f32> = (0..n * 70).map(|i| i as f32).collect();
        let mut y = vec![-1.0; n * 200];
        copy_columns(&mut y, &x, n, 90, 5, 65);
        for (y, x) in y.chunks(200).zip(x.chunks(70)) {
            assert_eq!(&y[90..155], &x[5..]);
            assert!(y[..90].iter().chain(&y[155..]).all(|y| *y == -1.0));
        }
        fill_columns(&mut y, n, 100, 3, 2.0);
        for (y, x) in y.chunks(200).zip(x.chunks(70)) {
            assert_eq!(y[100..103], [2.0; 3]);
            assert_eq!((y[99], y[103]), (x[14], x[18]));
        }
        let bias: Vec<f32> = (0..70).map(|i| 0.5 * i as f32).collect();
        let mut z = vec![f32::NAN; x.len()];
        set_bias(&mut z, Some(&x), &bias, n);
        let mut want = x.clone();
        add_bias(&mut want, &bias, n, 70);
        assert_eq!(z, want);
        set_bias(&mut z, None, &bias, n);
        assert!(z.chunks(70).all(|row| row == bias));
    }

    #[test]
    fn buffers() {
        for n in [0, 1, 7, 33, 200_003] {
            let (x, mut y) = (values(n, 1), values(n, 2));
            let want: Vec<f32> = y.iter().zip(&x).map(|(y, x)| (y + x) * 0.5).collect();
            add(&mut y, &x);
            scale(&mut y, 0.5);
            assert_eq!(y, want);
            let mut z = vec![f32::NAN; n];
            copy(&mut z, &y);
            assert_eq!(z, y);
            let (a, b) = (values(n, 3), values(n, 4));
            difference(&mut z, &a, &b);
            add_scaled_difference(&mut z, &y, &b, 0.5);
            sub(&mut z, &x);
            for i in 0..n {
                assert_eq!(z[i], a[i] - b[i] + 0.5 * (y[i] - b[i]) - x[i]);
            }
            let divisor: Vec<f32> = x.iter().map(|x| x.abs() + 1.0).collect();
            z.copy_from_slice(&a);
            mul(&mut z, &b);
            div(&mut z, &divisor);
            let mut inverse = vec![f32::NAN; n];
            reciprocal(&mut inverse, &divisor);
            for i in 0..n {
                assert_eq!((z[i], inverse[i]), (a[i] * b[i] / divisor[i], 1.0 / divisor[i]));
            }
            let truth: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((sum_squares(&x) - truth).abs() <= 1e-6 * truth);
        }
    }

    #[test]
    fn bias_and_its_gradient() {
        for (n, d) in [(1, 1), (5, 3), (301, 257)] {
            let (bias, x) = (values(d, 3), values(n * d, 4));
            let mut y = x.clone();
            add_bias(&mut y, &bias, n, d);
            let mut sums = vec![1.0; d];
            bias_backward(&mut sums, &x, n, d);
            for j in 0..d {
                let want: f64 = 1.0 + (0..n).map(|i| f64::from(x[i * d + j])).sum::<f64>();
                assert!((f64::from(sums[j]) - want).abs() < 1e-4);
                for i in 0..n {
                    assert_eq!(y[i * d + j], x[i * d + j] + bias[j]);
                }
            }
        }
    }
}

//! Additions, scalings and biases over whole buffers.

use crate::parallel::{SharedMut, for_parts, for_rows};
use crate::vector::{dispatch, for_lanes};

/// `y += x`.
///
/// # Panics
/// If the lengths differ.
pub fn add(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "add: y has {} numbers, x {}", y.len(), x.len());
    for_parts(y, 1, |y, r| y.iter_mut().zip(&x[r]).for_each(|(y, x)| *y += x));
}

/// `y *= s`.
pub fn scale(y: &mut [f32], s: f32) {
    for_parts(y, 1, |y, _| y.iter_mut().for_each(|y| *y *= s));
}

/// `y = x`.
///
/// # Panics
/// If the lengths differ.
pub fn copy(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "copy: y has {} numbers, x {}", y.len(), x.len());
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
        "copy_columns: {} and {} numbers in {n} rows",
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

/// `y[i,:] = bias`, or `x[i,:] + bias`, for `y, x: [N,D]`, `bias: [D]`.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn set_bias(y: &mut [f32], x: Option<&[f32]>, bias: &[f32], n: usize) {
    let d = bias.len();
    assert_eq!(y.len(), n * d, "set_bias: y has {} numbers, not {n} x {d}", y.len());
    assert!(x.is_none_or(|x| x.len() == n * d), "set_bias: x has not {n} x {d} numbers");
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
    assert_eq!(y.len(), n * d, "add_bias: y has {} numbers, not {n} x {d}", y.len());
    assert_eq!(bias.len(), d, "add_bias: bias has {} numbers, not {d}", bias.len());
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
    assert_eq!(dy.len(), n * d, "bias_backward: dy has {} numbers, not {n} x {d}", dy.len());
    assert_eq!(dbias.len(), d, "bias_backward: dbias has {} numbers, not {d}", dbias.len());
    let shared = SharedMut::new(dbias);
    // Split over columns, so that every sum has one order.
    for_rows(d.div_ceil(COLUMNS), n * COLUMNS, |blocks| {
        for block in blocks {
            let columns = block * COLUMNS..d.min((block + 1) * COLUMNS);
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
const COLUMNS: usize = 64;

/// `sum x_i^2`, for norms of gradients: f32 lanes over runs of 4096 numbers, runs added in f64 in one
/// order whatever the threads.
pub fn sum_squares(x: &[f32]) -> f64 {
    use rayon::prelude::*;
    const RUN: usize = 4096;
    if x.len() <= 16 * RUN {
        return x.chunks(RUN).map(sum_squares_run).sum();
    }
    let parts: Vec<f64> = x.par_chunks(RUN * 16).map(|c| c.chunks(RUN).map(sum_squares_run).sum()).collect();
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

    fn numbers(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

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
            let (x, mut y) = (numbers(n, 1), numbers(n, 2));
            let want: Vec<f32> = y.iter().zip(&x).map(|(y, x)| (y + x) * 0.5).collect();
            add(&mut y, &x);
            scale(&mut y, 0.5);
            assert_eq!(y, want);
            let mut z = vec![f32::NAN; n];
            copy(&mut z, &y);
            assert_eq!(z, y);
            let truth: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((sum_squares(&x) - truth).abs() <= 1e-6 * truth);
        }
    }

    #[test]
    fn bias_and_its_gradient() {
        for (n, d) in [(1, 1), (5, 3), (301, 257)] {
            let (bias, x) = (numbers(d, 3), numbers(n * d, 4));
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

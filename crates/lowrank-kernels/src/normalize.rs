//! Rows brought to length 1, as `torch.nn.functional.normalize` does.

use crate::parallel::{SharedMut, for_rows};
use crate::sum_squares;

/// Rows shorter than this are divided by it instead of by their norm.
const MIN_NORM: f32 = 1e-12;

/// `y[i,:] = x[i,:] / norms[i]` with `norms[i] = max(|x[i,:]|, 1e-12)`, for `x, y: [N,D]`, `norms: [N]`, which is written.
/// `3 N D` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn normalize_rows(y: &mut [f32], norms: &mut [f32], x: &[f32], d: usize) {
    let n = norms.len();
    assert!(
        x.len() == n * d && y.len() == n * d,
        "normalize_rows: {} and {} values, not {n} x {d}",
        x.len(),
        y.len()
    );
    let (y, norms) = (SharedMut::new(y), SharedMut::new(norms));
    for_rows(n, 2 * d, |part| {
        for i in part {
            let x = &x[i * d..(i + 1) * d];
            // SAFETY: rows are disjoint.
            let (y, norm) = unsafe { (y.part(i * d..(i + 1) * d), norms.part(i..i + 1)) };
            norm[0] = (sum_squares(x).sqrt() as f32).max(MIN_NORM);
            let factor = 1.0 / norm[0];
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor);
        }
    });
}

/// Backward of [`normalize_rows`] from its results: `dx = (dy - y (y . dy)) / norms`, row by row; a row that was
/// shorter than 1e-12 is only scaled. `dx` is overwritten. `5 N D` flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn normalize_rows_backward(dx: &mut [f32], dy: &[f32], y: &[f32], norms: &[f32], d: usize) {
    let n = norms.len();
    for len in [dx.len(), dy.len(), y.len()] {
        assert_eq!(len, n * d, "normalize_rows_backward: {len} values, not {n} x {d}");
    }
    let dx = SharedMut::new(dx);
    for_rows(n, 2 * d, |part| {
        for i in part {
            let row = i * d..(i + 1) * d;
            let (dy, y, norm) = (&dy[row.clone()], &y[row.clone()], norms[i]);
            // SAFETY: rows are disjoint.
            let dx = unsafe { dx.part(row) };
            let along: f32 = if norm > MIN_NORM { dy.iter().zip(y).map(|(a, b)| a * b).sum() } else { 0.0 };
            for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
                *dx = (dy - y * along) / norm;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, values};

    #[test]
    fn lengths_and_their_gradient() {
        let (n, d) = (3, 9);
        let (x, dy) = (values(n * d, 1), values(n * d, 2));
        let forward = |x: &[f32]| {
            let (mut y, mut norms) = (vec![f32::NAN; n * d], vec![f32::NAN; n]);
            normalize_rows(&mut y, &mut norms, x, d);
            (y, norms)
        };
        let (y, norms) = forward(&x);
        assert!(y.chunks(d).all(|row| (sum_squares(row) - 1.0).abs() < 1e-6));
        let mut dx = vec![f32::NAN; n * d];
        normalize_rows_backward(&mut dx, &dy, &y, &norms, d);
        assert_gradient(&x, &dx, &dy, |x| forward(x).0);
    }

    #[test]
    fn a_row_of_zeros_has_no_direction() {
        let (mut y, mut norms, mut dx) = ([f32::NAN; 2], [f32::NAN], [f32::NAN; 2]);
        normalize_rows(&mut y, &mut norms, &[0.0; 2], 2);
        assert_eq!((y, norms), ([0.0; 2], [MIN_NORM]));
        normalize_rows_backward(&mut dx, &[1e-12, 0.0], &y, &norms, 2);
        assert_eq!(dx, [1.0, 0.0]);
    }
}

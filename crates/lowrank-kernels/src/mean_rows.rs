//! Means over ranges of rows: the embedding of a text from those of its tokens.

use std::ops::Range;

use crate::parallel::{SharedMut, for_rows};

/// Columns that a task adds up at a time: whole cache lines.
const COLUMNS_PER_TASK: usize = 64;

/// `y[i,:] = mean of x[t,:] over t in ranges[i]` for `x: [M,D]`, `y: [N,D]` and `N` ranges, none of them empty. They may
/// overlap. `D` flops a row that is read.
///
/// # Panics
/// If a length does not fit the shapes, or a range is empty or outside `x`.
pub fn mean_rows(y: &mut [f32], x: &[f32], ranges: &[Range<usize>], d: usize) {
    check("mean_rows", y.len(), x.len(), ranges, d);
    let y = SharedMut::new(y);
    let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
    for_rows(ranges.len(), longest * d, |part| {
        for i in part {
            let range = &ranges[i];
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(i * d..(i + 1) * d) };
            y.copy_from_slice(&x[range.start * d..][..d]);
            for row in range.start + 1..range.end {
                y.iter_mut().zip(&x[row * d..]).for_each(|(y, x)| *y += x);
            }
            if range.len() > 1 {
                let factor = 1.0 / range.len() as f32;
                y.iter_mut().for_each(|y| *y *= factor);
            }
        }
    });
}

/// Backward of [`mean_rows`]: `dx[t,:] += dy[i,:] / len(ranges[i])` for `t` in `ranges[i]`, in the order of `i`.
/// `2 D` flops a row.
///
/// # Panics
/// As [`mean_rows`].
pub fn mean_rows_backward(dx: &mut [f32], dy: &[f32], ranges: &[Range<usize>], d: usize) {
    check("mean_rows_backward", dy.len(), dx.len(), ranges, d);
    let rows: usize = ranges.iter().map(Range::len).sum();
    let dx = SharedMut::new(dx);
    // Split over columns: ranges may overlap, and each sum keeps its order.
    for_rows(d.div_ceil(COLUMNS_PER_TASK), rows * COLUMNS_PER_TASK, |blocks| {
        let (start, end) = (blocks.start * COLUMNS_PER_TASK, d.min(blocks.end * COLUMNS_PER_TASK));
        for (dy, range) in dy.chunks_exact(d).zip(ranges) {
            let factor = 1.0 / range.len() as f32;
            for row in range.clone() {
                // SAFETY: blocks of columns are disjoint.
                let dx = unsafe { dx.part(row * d + start..row * d + end) };
                dx.iter_mut().zip(&dy[start..end]).for_each(|(dx, dy)| *dx += dy * factor);
            }
        }
    });
}

fn check(kernel: &str, means: usize, all: usize, ranges: &[Range<usize>], d: usize) {
    let n = ranges.len();
    assert_eq!(means, n * d, "{kernel}: {means} values, not {n} x {d}");
    for range in ranges {
        assert!(
            !range.is_empty() && range.end * d <= all,
            "{kernel}: range {range:?} is empty or outside {all} values"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_transpose, values};

    #[test]
    fn means_and_their_gradient() {
        for (m, d, ranges) in [(6, 3, vec![0..1, 1..5, 2..6]), (400, 130, vec![0..400, 10..350, 399..400])] {
            let (x, dy) = (values(m * d, 1), values(ranges.len() * d, 2));
            let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![0.0; x.len()]);
            mean_rows(&mut y, &x, &ranges, d);
            for (y, range) in y.chunks(d).zip(&ranges) {
                for (j, y) in y.iter().enumerate() {
                    let sum: f64 = range.clone().map(|t| f64::from(x[t * d + j])).sum();
                    assert!((f64::from(*y) - sum / range.len() as f64).abs() < 1e-6);
                }
            }
            mean_rows_backward(&mut dx, &dy, &ranges, d);
            assert_transpose(&x, &dx, &y, &dy);
        }
    }
}

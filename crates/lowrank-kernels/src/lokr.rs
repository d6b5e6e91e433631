//! LoKr's pieces: axes that change places, and the Kronecker product itself.

use std::ops::Range;

use crate::parallel::{SharedMut, for_rows};

/// `y[b,a,:] = x[a,b,:]` for `x: [A,B,C]`, `y: [B,A,C]`. It is its own backward, with `A` and `B` swapped. No flops.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn swap_axes(y: &mut [f32], x: &[f32], [a, b, c]: [usize; 3]) {
    let len = a * b * c;
    assert!(
        y.len() == len && x.len() == len,
        "swap_axes: {} and {} values, not {a} x {b} x {c}",
        y.len(),
        x.len()
    );
    let y = SharedMut::new(y);
    for_rows(b, a * c, |part| {
        for j in part {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(j * a * c..(j + 1) * a * c) };
            for (i, y) in y.chunks_exact_mut(c.max(1)).enumerate() {
                y.copy_from_slice(&x[(i * b + j) * c..][..c]);
            }
        }
    });
}

/// `w += alpha (W1 kron W2)` for rows `rows` of the weight `[L P, M Q]`, with `W1: [L,M]`, `W2: [P,Q]`, `sizes = [L,P,M,Q]`;
/// with `transposed`, rows of `(W1 kron W2)^T`. `3` flops a weight.
///
/// # Panics
/// If a length does not fit the shapes.
pub fn add_kronecker(
    w: &mut [f32],
    w1: &[f32],
    w2: &[f32],
    [l, p, m, q]: [usize; 4],
    rows: Range<usize>,
    transposed: bool,
    alpha: f32,
) {
    let cols = if transposed { l * p } else { m * q };
    assert!(w1.len() == l * m && w2.len() == p * q, "add_kronecker: {} and {} values", w1.len(), w2.len());
    assert_eq!(w.len(), rows.len() * cols, "add_kronecker: {} values, not {} x {cols}", w.len(), rows.len());
    let (first, w) = (rows.start, SharedMut::new(w));
    for_rows(rows.len(), 4 * cols, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            let w = unsafe { w.part(i * cols..(i + 1) * cols) };
            for (col, w) in w.iter_mut().enumerate() {
                let (o, k) = if transposed { (col, first + i) } else { (first + i, col) };
                *w += alpha * w1[o / p * m + k / q] * w2[o % p * q + k % q];
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_transpose, values};

    #[test]
    fn axes_change_places() {
        for [a, b, c] in [[2, 3, 4], [300, 40, 7], [1, 5, 1]] {
            let (x, dy) = (values(a * b * c, 1), values(a * b * c, 2));
            let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            swap_axes(&mut y, &x, [a, b, c]);
            for (i, y) in y.iter().enumerate() {
                let (j, i, k) = (i / (a * c), i / c % a, i % c);
                assert_eq!(*y, x[(i * b + j) * c + k]);
            }
            swap_axes(&mut dx, &dy, [b, a, c]);
            assert_transpose(&x, &dx, &y, &dy);
        }
    }

    #[test]
    fn a_kronecker_product() {
        let (w1, w2) = ([1.0, 2.0], [3.0, 4.0, 5.0, 6.0]);
        // [1 2] kron [3 4; 5 6].
        let want = [3.0, 4.0, 6.0, 8.0, 5.0, 6.0, 10.0, 12.0];
        let mut w = [0.0; 8];
        add_kronecker(&mut w, &w1, &w2, [1, 2, 2, 2], 0..2, false, 1.0);
        assert_eq!(w, want);
        let mut rows = [0.0; 4];
        add_kronecker(&mut rows, &w1, &w2, [1, 2, 2, 2], 2..4, true, 0.5);
        assert_eq!(rows, [3.0, 5.0, 4.0, 6.0]);
    }
}

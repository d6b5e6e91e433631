//! Matrix products: over frozen weights in every format, and between dense f32 matrices.

use std::cell::RefCell;

use ::gemm::Parallelism;

use crate::WeightRef;

/// A read-only dense matrix: element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Distance between rows.
    pub rs: usize,
    /// Distance between columns.
    pub cs: usize,
}

/// A dense matrix to write: element `(i, j)` is `data[i * rs + j * cs]`.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The numbers.
    pub data: &'a mut [f32],
    /// Distance between rows.
    pub rs: usize,
    /// Distance between columns.
    pub cs: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn row_major(data: &'a [f32], cols: usize) -> Self {
        Self { data, rs: cols, cs: 1 }
    }

    /// The transpose, over the same numbers.
    pub fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }

    fn check(&self, rows: usize, cols: usize) {
        assert!(
            rows == 0 || cols == 0 || (rows - 1) * self.rs + (cols - 1) * self.cs < self.data.len(),
            "{rows} x {cols} with strides {} and {} exceeds {} numbers",
            self.rs,
            self.cs,
            self.data.len()
        );
    }
}

impl<'a> MatMut<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn row_major(data: &'a mut [f32], cols: usize) -> Self {
        Self { data, rs: cols, cs: 1 }
    }
}

thread_local! {
    static TILE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn threads() -> Parallelism {
    match rayon::current_num_threads() {
        1 => Parallelism::None,
        count => Parallelism::Rayon(count),
    }
}

/// `C[m,n] = beta C + alpha A[m,k] B[k,n]` on the threads of the current rayon pool.
///
/// With `beta` 0 the old contents of `C` are never read.
///
/// # Panics
/// Where a slice is too short for its shape and strides.
pub fn gemm(m: usize, n: usize, k: usize, alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut) {
    dense(m, n, k, alpha, a, b, beta, c, threads());
}

/// [`gemm`] on the calling thread alone, for use inside parallel tasks.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_serial(m: usize, n: usize, k: usize, alpha: f32, a: MatRef, b: MatRef, beta: f32, c: MatMut) {
    dense(m, n, k, alpha, a, b, beta, c, Parallelism::None);
}

#[allow(clippy::too_many_arguments)]
fn dense(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef,
    b: MatRef,
    beta: f32,
    c: MatMut,
    par: Parallelism,
) {
    a.check(m, k);
    b.check(k, n);
    MatRef { data: c.data, rs: c.rs, cs: c.cs }.check(m, n);
    if m == 0 || n == 0 {
        return;
    }
    let stride = |s: usize| s as isize;
    // SAFETY: the three checks above hold every index inside its slice.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            c.data.as_mut_ptr(),
            stride(c.cs),
            stride(c.rs),
            beta != 0.0,
            a.data.as_ptr(),
            stride(a.cs),
            stride(a.rs),
            b.data.as_ptr(),
            stride(b.cs),
            stride(b.rs),
            beta,
            alpha,
            false,
            false,
            false,
            par,
        );
    }
}

/// Rows of a weight expanded at a time.
const TILE_ROWS: usize = 256;

fn with_tiles(w: &WeightRef, mut use_tile: impl FnMut(usize, usize, &[f32])) {
    TILE.with_borrow_mut(|tile| {
        tile.resize(tile.len().max(TILE_ROWS * w.cols), 0.0);
        for from in (0..w.rows).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(w.rows - from);
            for row in 0..rows {
                w.expand(from + row, 0..w.cols, &mut tile[row * w.cols..(row + 1) * w.cols]);
            }
            use_tile(from, rows, &tile[..rows * w.cols]);
        }
    });
}

/// `y[N,O] = beta y + x[N,K] W[O,K]^T`, on the threads of the current rayon pool.
///
/// `W` is expanded tile by tile, never whole. With `beta` 0 the old contents of `y` are never read.
///
/// # Panics
/// Where `x`, `y` or the weight's bytes do not fit the shapes.
pub fn linear(y: &mut [f32], x: &[f32], w: &WeightRef, n: usize, beta: f32) {
    assert_eq!((y.len(), x.len()), (n * w.rows, n * w.cols), "y is N x O, x is N x K");
    let (o, k) = (w.rows, w.cols);
    with_tiles(w, |from, rows, tile| {
        let y = MatMut { data: &mut y[from..], rs: o, cs: 1 };
        gemm(n, rows, k, 1.0, MatRef::row_major(x, k), MatRef::row_major(tile, k).t(), beta, y);
    });
}

/// `dx[N,K] = beta dx + dy[N,O] W[O,K]`, on the threads of the current rayon pool.
///
/// With `beta` 0 the old contents of `dx` are never read.
///
/// # Panics
/// As [`linear`].
pub fn linear_backward(dx: &mut [f32], dy: &[f32], w: &WeightRef, n: usize, beta: f32) {
    assert_eq!((dy.len(), dx.len()), (n * w.rows, n * w.cols), "dy is N x O, dx is N x K");
    let (o, k) = (w.rows, w.cols);
    with_tiles(w, |from, rows, tile| {
        let beta = if from == 0 { beta } else { 1.0 };
        let dy = MatRef { data: &dy[from..], rs: o, cs: 1 };
        gemm(n, k, rows, 1.0, dy, MatRef::row_major(tile, k), beta, MatMut::row_major(dx, k));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_a_sum_in_f64() {
        let (n, o, k) = (7, 13, 37);
        let number = |i: usize| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0;
        let w: Vec<f32> = (0..o * k).map(number).collect();
        let x: Vec<f32> = (0..n * k).map(|i| number(i + 7777)).collect();
        let w = WeightRef::from_f32(o, k, &w);
        let mut y = vec![f32::NAN; n * o];
        linear(&mut y, &x, &w, n, 0.0);
        let mut row = vec![0.0; k];
        let mut dx = vec![f32::NAN; n * k];
        linear_backward(&mut dx, &y, &w, n, 0.0);
        for i in 0..n {
            let mut back = vec![0.0f64; k];
            for j in 0..o {
                w.expand(j, 0..k, &mut row);
                let want: f64 = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(row[l])).sum();
                assert!((f64::from(y[i * o + j]) - want).abs() < 1e-5, "{i} {j}");
                (0..k).for_each(|l| back[l] += f64::from(y[i * o + j]) * f64::from(row[l]));
            }
            (0..k).for_each(|l| assert!((f64::from(dx[i * k + l]) - back[l]).abs() < 1e-4, "{i} {l}"));
        }
    }
}

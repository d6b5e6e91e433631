//! Decompositions of row-major f32 matrices: QR, singular values exactly, at random, and of a product that is
//! never formed.
//!
//! ```
//! use lowrank_adapters::linalg;
//!
//! // A 3 x 2 matrix of rank 1, as the product of a column and a row.
//! let w = [2.0, 4.0, 1.0, 2.0, 3.0, 6.0];
//! let svd = linalg::svd(3, 2, &w).unwrap().truncate(1);
//! let again: Vec<f32> = svd.matrix();
//! assert!(w.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-5));
//! ```

use faer::MatRef;
use lowrank_kernels as kernels;

use crate::error::Error;

/// `A = U diag(s) V^T` with `k` singular values, largest first.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `U: [m, k]`, orthonormal columns, row-major.
    pub u: Vec<f32>,
    /// The singular values, `k` of them.
    pub s: Vec<f32>,
    /// `V^T: [k, n]`, orthonormal rows, row-major.
    pub vt: Vec<f32>,
    /// `m`.
    pub rows: usize,
    /// `n`.
    pub cols: usize,
}

/// `A = Q R` with `k = min(m, n)`.
#[derive(Clone, Debug)]
pub struct Qr {
    /// `Q: [m, k]`, orthonormal columns, row-major.
    pub q: Vec<f32>,
    /// `R: [k, n]`, zero below the diagonal, row-major.
    pub r: Vec<f32>,
}

/// How [`svd_randomized`] looks for the leading singular vectors.
#[derive(Clone, Copy, Debug)]
pub struct Randomized {
    /// Singular values asked for.
    pub rank: usize,
    /// Random directions beyond `rank`.
    pub oversampling: usize,
    /// Multiplications by `A A^T`, at most: each separates the leading directions further, until they are settled.
    pub iterations: usize,
    /// Seed of the random directions: the same seed gives the same result.
    pub seed: u64,
}

impl Randomized {
    /// Ten directions beyond `rank` and four iterations, enough for spectra that fall.
    pub fn rank(rank: usize) -> Self {
        Self { rank, oversampling: 10, iterations: 4, seed: 0 }
    }
}

impl Svd {
    /// The leading `rank` singular values and vectors (all of them where there are no more).
    pub fn truncate(mut self, rank: usize) -> Self {
        let k = self.s.len();
        let rank = rank.min(k);
        if rank < k {
            self.u = self.u.chunks_exact(k).flat_map(|row| &row[..rank]).copied().collect();
            self.vt.truncate(rank * self.cols);
            self.s.truncate(rank);
        }
        self
    }

    /// `U diag(s) V^T: [m, n]`.
    pub fn matrix(&self) -> Vec<f32> {
        let scaled = scaled_columns(&self.u, &self.s);
        product(self.rows, self.cols, self.s.len(), &scaled, &self.vt)
    }
}

/// Columns of a row-major matrix, each times its factor.
fn scaled_columns(a: &[f32], s: &[f32]) -> Vec<f32> {
    let factors = s.iter().cycle();
    a.iter().zip(factors).map(|(x, s)| x * s).collect()
}

/// `A[m,k] B[k,n]`, row-major.
pub(crate) fn product(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    if m * n == 0 || k == 0 {
        return vec![0.0; m * n];
    }
    multiply(m, n, k, by_rows(a, k), by_rows(b, n))
}

/// Householder QR of `a: [m, n]`; the signs are LAPACK's (so NumPy's and PyTorch's).
///
/// # Panics
/// If `a` is not `m * n` values.
pub fn qr(m: usize, n: usize, a: &[f32]) -> Qr {
    let qr = MatRef::from_row_major_slice(a, m, n).qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
    // Below the diagonal faer leaves zeros.
    Qr { q: row_major(q.as_ref()), r: row_major(r) }
}

/// All `min(m, n)` singular values and vectors of `a: [m, n]`.
///
/// # Errors
/// If `a` has a value that is not finite, or the iteration does not converge.
///
/// # Panics
/// If `a` is not `m * n` values.
pub fn svd(m: usize, n: usize, a: &[f32]) -> Result<Svd, Error> {
    finite(a)?;
    let svd = MatRef::from_row_major_slice(a, m, n).thin_svd().map_err(|_| no_convergence(m, n))?;
    let s = (0..m.min(n)).map(|i| svd.S().column_vector()[i]).collect();
    Ok(Svd { u: row_major(svd.U()), s, vt: row_major(svd.V().transpose()), rows: m, cols: n })
}

/// The leading singular values and vectors of `a: [m, n]` from products with random directions
/// (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1): much faster than [`svd`] where the rank is small,
/// and as exact where the spectrum falls behind it.
///
/// # Errors
/// As [`svd`].
///
/// # Panics
/// If `a` is not `m * n` values.
pub fn svd_randomized(m: usize, n: usize, a: &[f32], how: Randomized) -> Result<Svd, Error> {
    assert_eq!(a.len(), m * n, "a matrix of {m} x {n}");
    let wide = how.rank.saturating_add(how.oversampling);
    if wide >= m.min(n) {
        return Ok(svd(m, n, a)?.truncate(how.rank));
    }
    finite(a)?;
    let mut directions = vec![0.0; n * wide];
    kernels::normal(&mut directions, 0.0, 1.0, how.seed, RANGE_STREAM);
    let a = by_rows(a, n);
    let mut q = qr(m, wide, &multiply(m, wide, n, a, by_rows(&directions, wide))).q;
    let mut before: Option<Vec<f32>> = None;
    let mut left = how.iterations;
    loop {
        // A is Q (Q^T A), and Q^T A the transpose of P R, which leaves the singular values of a small matrix.
        let Qr { q: p, r } = qr(n, wide, &multiply(n, wide, m, a.t(), by_rows(&q, wide)));
        let core = svd(wide, wide, &r)?;
        let u = multiply(m, wide, wide, by_rows(&q, wide), by_rows(&core.vt, wide).t());
        let settled = before.is_some_and(|before| missed(m, wide, how.rank, &before, &u, &core.s) <= SETTLED);
        if left == 0 || settled {
            let vt = multiply(wide, n, wide, by_rows(&core.u, wide).t(), by_rows(&p, wide).t());
            return Ok(Svd { u, s: core.s, vt, rows: m, cols: n }.truncate(how.rank));
        }
        let next = qr(m, wide, &multiply(m, wide, n, a, by_rows(&p, wide))).q;
        before = Some(std::mem::replace(&mut q, next));
        left -= 1;
    }
}

/// Share of the leading part of a matrix that directions may have missed for the next ones to be taken as settled: each
/// iteration leaves less, and more than float32 can tell apart is not asked for.
const SETTLED: f64 = 1e-5;

/// What the directions `q: [m, wide]` leave of `U diag(s)`, its leading `rank` columns, as a share.
fn missed(m: usize, wide: usize, rank: usize, q: &[f32], u: &[f32], s: &[f32]) -> f64 {
    let along = multiply(wide, wide, m, by_rows(q, wide).t(), by_rows(u, wide));
    let seen = multiply(m, wide, wide, by_rows(q, wide), by_rows(&along, wide));
    let of = |number: f32, s: f32| (f64::from(number) * f64::from(s)).powi(2);
    let (mut left, all): (f64, f64) = (0.0, s[..rank].iter().map(|s| of(1.0, *s)).sum());
    for (u, seen) in u.chunks_exact(wide).zip(seen.chunks_exact(wide)) {
        for column in 0..rank {
            left += of(u[column] - seen[column], s[column]);
        }
    }
    (left / all).sqrt()
}

/// Stream of the random directions.
const RANGE_STREAM: u64 = 3 << 61;

fn by_rows(a: &[f32], columns: usize) -> kernels::MatRef<'_> {
    kernels::MatRef::row_major(a, columns)
}

/// `A[m,k] B[k,n]`, row-major.
fn multiply(m: usize, n: usize, k: usize, a: kernels::MatRef<'_>, b: kernels::MatRef<'_>) -> Vec<f32> {
    let mut c = vec![0.0; m * n];
    kernels::gemm(m, n, k, 1.0, a, b, 0.0, kernels::MatMut::row_major(&mut c, n));
    c
}

/// The singular values and vectors of `b a` with `b: [m, r]` and `a: [r, n]`, by way of the QR of both: the
/// product is never formed, and everything is computed in f64. At most `min(m, n, r)` values.
///
/// # Errors
/// As [`svd`].
///
/// # Panics
/// If a slice does not have the length of its matrix.
pub fn svd_of_product(m: usize, n: usize, r: usize, b: &[f32], a: &[f32]) -> Result<Svd, Error> {
    finite(b)?;
    finite(a)?;
    if r == 0 {
        return Ok(Svd { u: Vec::new(), s: Vec::new(), vt: Vec::new(), rows: m, cols: n });
    }
    let double =
        |a: &[f32], rows, cols| MatRef::from_row_major_slice(a, rows, cols).map(|x: &f32| f64::from(*x));
    let left = double(b, m, r).qr();
    let right = double(a, r, n).transpose().to_owned().qr();
    let core = left.thin_R() * right.thin_R().transpose();
    let svd = core.thin_svd().map_err(|_| no_convergence(m, n))?;
    let u = left.compute_thin_Q() * svd.U();
    let v = right.compute_thin_Q() * svd.V();
    let k = core.nrows().min(core.ncols());
    let s = (0..k).map(|i| svd.S().column_vector()[i] as f32).collect();
    let single = |a: MatRef<'_, f64>| row_major(a.map(|x: &f64| *x as f32).as_ref());
    Ok(Svd { u: single(u.as_ref()), s, vt: single(v.transpose()), rows: m, cols: n })
}

pub(crate) fn row_major(a: MatRef<'_, f32>) -> Vec<f32> {
    let (m, n) = (a.nrows(), a.ncols());
    let mut out = vec![0.0; m * n];
    faer::MatMut::from_row_major_slice_mut(&mut out, m, n).copy_from(a);
    out
}

fn finite(a: &[f32]) -> Result<(), Error> {
    match a.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::Decomposition(format!("the number at {at} is {}", a[at]))),
        None => Ok(()),
    }
}

fn no_convergence(m: usize, n: usize) -> Error {
    Error::Decomposition(format!("the singular values of a {m} x {n} matrix do not settle"))
}

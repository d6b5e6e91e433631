//! A product as every way to compute it takes it.

/// `C[m,n] = beta C + alpha A[m,k] B[k,n]`, all but `B`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) alpha: f32,
    pub(super) beta: f32,
    pub(super) a: *const f32,
    pub(super) ars: usize,
    pub(super) acs: usize,
    pub(super) c: *mut f32,
    pub(super) crs: usize,
    pub(super) ccs: usize,
    /// What the sums begin with in place of `beta C`, or null. `C` is row-major then.
    pub(super) start: *const f32,
    /// Distance between its rows: 0 for a bias, one value for each column.
    pub(super) srs: usize,
}

impl Product {
    /// Where the values lie that the sums of a tile at `c`, whose first row is `i` and first column `j`, are added to,
    /// how far apart their rows are, and their factor.
    #[inline(always)]
    pub(super) fn old(&self, first: bool, c: *mut f32, i: usize, j: usize) -> (*const f32, usize, f32) {
        match (first, self.start.is_null()) {
            (true, false) => (self.start.wrapping_add(i * self.srs + j), self.srs, 1.0),
            (true, true) => (c, self.crs, self.beta),
            (false, _) => (c, self.crs, 1.0),
        }
    }
}

// SAFETY: tasks read all of A, which nobody writes, and write disjoint parts of C.
unsafe impl Sync for Product {}

/// How the weight is the right operand `B[k, n]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// `W^T`: `B(l, j) = W[j, l]`.
    Forward,
    /// `W`: `B(l, j) = W[l, j]`.
    Backward,
}

/// `len` cut into equal runs of a whole number of `step`s, none longer than `most` (but at least a step).
pub(super) fn cut(len: usize, most: usize, step: usize) -> usize {
    len.div_ceil(len.div_ceil(most.max(1)).max(1)).next_multiple_of(step)
}

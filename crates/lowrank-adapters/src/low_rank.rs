//! The low-rank change of a weight, `s B A` with `A: [R,K]`, `B: [O,R]`, for merging and for its norm.

use std::ops::Range;

use lowrank_engine::{Site, SiteKind, kernels};
use lowrank_kernels::{MatMut, MatRef};

/// A low-rank change of a weight.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// `A: [R,K]`.
    pub a: &'a [f32],
    /// `B: [O,R]`.
    pub b: &'a [f32],
    /// `R`.
    pub r: usize,
    /// `s`.
    pub scaling: f32,
}

impl LowRank<'_> {
    /// Adds `factor s B A` to `w`, rows `rows` of the weight of `site` as it is stored.
    pub fn add_rows(&self, site: &Site, factor: f32, rows: Range<usize>, w: &mut [f32]) {
        let (r, k, o) = (self.r, site.in_features, site.out_features);
        let (a, b) = (MatRef::row_major(self.a, k), MatRef::row_major(self.b, r));
        // The stored matrix is `left right`, and the rows asked for are those of `left`.
        let (left, right, cols) = match site.kind {
            SiteKind::TransposedLinear | SiteKind::Embedding => (a.t(), b.t(), o),
            _ => (b, a, k),
        };
        assert_eq!(w.len(), rows.len() * cols, "rows of {}", site.path);
        let left = MatRef { data: &left.data[rows.start * left.rs..], ..left };
        let w = MatMut::row_major(w, cols);
        kernels::gemm(rows.len(), cols, r, factor * self.scaling, left, right, 1.0, w);
    }

    /// The Frobenius norm of `s B A`, from products of rank size: `||BA||^2 = tr(B^T B A A^T)`.
    pub fn norm(&self) -> f64 {
        f64::from(self.scaling.abs()) * kernels::low_rank_norm(self.a, self.b, self.r)
    }
}

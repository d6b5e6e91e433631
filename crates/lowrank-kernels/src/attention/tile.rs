//! Products of tiles that lie in scratch memory, and packing into it.
//!
//! Every tile is padded to whole vectors, so the products know no ragged edges: only packing and
//! unpacking do.

use crate::simd::{Vector, dispatch, for_lanes};

use super::geometry::KeyRows;

/// Rows and columns of tiles are padded to multiples of this (the lanes of the widest vector).
pub(super) const PAD: usize = 16;

/// Columns of the widest panel that `product` reads at once.
pub(super) const MAX_PANEL: usize = 32;

/// What the spans of a [`Product`] bound.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Row `i` of `C` is computed for the columns `low[i]..high[i]` at least; other columns may be left
    /// alone.
    Columns,
    /// Row `i` of `A` is zero, or of no matter, outside `low[i]..high[i]`.
    Depth,
}

/// `C = A B` or `C += A B`, `C: rows x cols`. Spans grow with the row.
pub(super) struct Product<'a> {
    pub(super) cols: usize,
    pub(super) depth: usize,
    /// `A(i, l)` at `i * a_row + l * a_step`.
    pub(super) a: &'a [f32],
    pub(super) a_row: usize,
    pub(super) a_step: usize,
    /// Row `l` of panel `p` (of [`panel`] columns) at `p * b_panel + l * b_step`.
    pub(super) b: &'a [f32],
    pub(super) b_step: usize,
    pub(super) b_panel: usize,
    /// Values from one row of `C` to the next.
    pub(super) c_row: usize,
    /// `+=` rather than `=`.
    pub(super) add: bool,
    pub(super) low: &'a [u32],
    pub(super) high: &'a [u32],
    pub(super) bound: Bound,
}

/// Columns of a panel at the level in use: two vectors.
pub(super) fn panel() -> usize {
    panel_of_level()
}

dispatch! {
    fn panel_of_level<V>() -> usize {
        2 * V::LANES
    }
}

dispatch! {
    /// Computes a [`Product`].
    pub(super) fn product<V>(p: &Product<'_>, c: &mut [f32]) {
        let rows = p.low.len();
        if rows == 0 {
            return;
        }
        let wide = 2 * V::LANES;
        assert!(p.cols.is_multiple_of(V::LANES) && p.high.len() == rows);
        assert!(p.bound == Bound::Depth || p.high[rows - 1] as usize <= p.cols);
        assert!((rows - 1) * p.c_row + p.cols <= c.len(), "product: C is too short");
        let depth = match p.bound {
            Bound::Columns => p.depth,
            Bound::Depth => p.high[rows - 1] as usize,
        };
        assert!(depth <= p.depth);
        if depth > 0 {
            assert!((rows - 1) * p.a_row + (depth - 1) * p.a_step < p.a.len(), "product: A is too short");
            let last = (p.cols - 1) / wide;
            let last_width = p.cols - last * wide;
            assert!(last * p.b_panel + (depth - 1) * p.b_step + last_width <= p.b.len(), "product: B is too short");
        }
        let height = if V::MANY_REGISTERS { 12 } else { 6 };
        let (mut col, end) = match p.bound {
            Bound::Columns => (p.low[0] as usize / wide * wide, p.cols),
            Bound::Depth => (0, p.cols),
        };
        // A panel of B stays in the first cache while the rows pass by.
        while col < end {
            let mut i = 0;
            while i < rows {
                let m = height.min(rows - i);
                let (low, high) = (p.low[i] as usize, p.high[i + m - 1] as usize);
                let (width, from, depth) = match p.bound {
                    Bound::Columns if high <= col || low >= col + wide || low >= high => (0, 0, 0),
                    Bound::Columns => (high - col, 0, p.depth),
                    Bound::Depth => (end - col, low.min(high), high.saturating_sub(low)),
                };
                if width > 0 {
                    // SAFETY: rows, columns and depth lie within what was checked above; `high` grows
                    // with the row, so the last row's bounds all.
                    unsafe {
                        let a = p.a.as_ptr().add(i * p.a_row + from * p.a_step);
                        let b = p.b.as_ptr().add(col / wide * p.b_panel + from * p.b_step);
                        let c = c.as_mut_ptr().add(i * p.c_row + col);
                        let two = width > V::LANES;
                        block::<V>(m, two, depth, a, p.a_row, p.a_step, b, p.b_step, c, p.c_row, p.add);
                    }
                }
                i += m;
            }
            col += wide;
        }
    }
}

/// Chooses the register tile.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn block<V: Vector>(
    m: usize,
    two: bool,
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    macro_rules! heights {
        ($($m:literal)*) => {
            match (m, two) {
                $(
                    // SAFETY: the caller's promises, passed on.
                    ($m, true) if $m <= 6 || V::MANY_REGISTERS => unsafe {
                        registers::<V, $m, 2>(depth, a, a_row, a_step, b, b_step, c, c_row, add)
                    },
                    // SAFETY: as above.
                    ($m, false) if $m <= 6 || V::MANY_REGISTERS => unsafe {
                        registers::<V, $m, 1>(depth, a, a_row, a_step, b, b_step, c, c_row, add)
                    },
                )*
                _ => unreachable!("a tile of {m} rows"),
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// `C[M, NV vectors] (+)= A[M, depth] B[depth, NV vectors]` with the sums in registers.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn registers<V: Vector, const M: usize, const NV: usize>(
    depth: usize,
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: *const f32,
    b_step: usize,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    // SAFETY: the caller has checked that the three tiles lie within their slices.
    unsafe {
        let mut sums = [[V::zero(); NV]; M];
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let mut right = [V::zero(); NV];
            for (j, r) in right.iter_mut().enumerate() {
                *r = V::load_ptr(b.add(j * V::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let left = V::splat(*a.add(i * a_row));
                for (s, r) in row.iter_mut().zip(right) {
                    *s = left.mul_add(r, *s);
                }
            }
            a = a.wrapping_add(a_step);
            b = b.wrapping_add(b_step);
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, s) in row.iter().enumerate() {
                let at = c.add(i * c_row + j * V::LANES);
                let s = if add { V::load_ptr(at).add(*s) } else { *s };
                s.store_ptr(at);
            }
        }
    }
}

dispatch! {
    /// Packs keys as columns: `to` gets panels of [`panel`] keys, each `d` rows of one value per key
    /// (zero for keys past the end). `from`: rows of `pitch` values, of which `d` from `at` on are read.
    pub(super) fn pack_columns<V>(to: &mut [f32], from: &[f32], keys: &KeyRows, pitch: usize, at: usize, d: usize) {
        let wide = 2 * V::LANES;
        for (p, to) in to[..keys.len().div_ceil(wide) * wide * d].chunks_exact_mut(wide * d).enumerate() {
            let mut j = 0;
            while j < wide {
                let mut rows = [std::ptr::null::<f32>(); 8];
                let count = keys.len().saturating_sub(p * wide + j).min(8);
                for (i, r) in rows.iter_mut().enumerate().take(count) {
                    let start = keys.row(p * wide + j + i) * pitch + at;
                    *r = from[start..start + d].as_ptr();
                }
                let mut e = 0;
                if count == 8 {
                    while e + 8 <= d {
                        // SAFETY: eight rows of `d` values were just sliced, and `to` holds `d` rows of
                        // `wide` values, of which columns `j..j + 8` exist.
                        unsafe { V::transpose8(rows.map(|r| r.add(e)), to.as_mut_ptr().add(e * wide + j), wide) };
                        e += 8;
                    }
                }
                for e in e..d {
                    for (i, &r) in rows.iter().enumerate() {
                        // SAFETY: row `i < count` was sliced to `d` values.
                        to[e * wide + j + i] = if i < count { unsafe { *r.add(e) } } else { 0.0 };
                    }
                }
                j += 8;
            }
        }
    }
}

/// Packs keys as rows, `pitch_to` apart, of `d` values and zeros up to whole vectors.
#[allow(clippy::too_many_arguments)]
pub(super) fn pack_rows(
    to: &mut [f32],
    pitch_to: usize,
    from: &[f32],
    keys: &KeyRows,
    pitch: usize,
    at: usize,
    d: usize,
) {
    for (j, to) in to[..keys.len() * pitch_to].chunks_exact_mut(pitch_to).enumerate() {
        let start = keys.row(j) * pitch + at;
        to[..d].copy_from_slice(&from[start..start + d]);
        to[d..d.next_multiple_of(PAD)].fill(0.0);
    }
}

dispatch! {
    /// Packs rows of queries (or of their gradients), `group` heads of each, times `scale`, as rows,
    /// `pitch_to` apart, of `d` values and zeros up to whole vectors.
    pub(super) fn pack_queries<V>(
        to: &mut [f32], pitch_to: usize, from: &[f32], queries: std::ops::Range<usize>, pitch: usize, at: usize,
        group: usize, d: usize, scale: f32,
    ) {
        let rows = queries.start * pitch..queries.end * pitch;
        for (to, from) in to.chunks_exact_mut(group * pitch_to).zip(from[rows].chunks_exact(pitch)) {
            // The next rows, which lie too far apart for the hardware to guess.
            for e in (0..group * d).step_by(16) {
                V::prefetch(from.as_ptr().wrapping_add(4 * pitch + at + e));
            }
            for (to, from) in to.chunks_exact_mut(pitch_to).zip(from[at..].chunks_exact(d)) {
                for_lanes!(V, d, |e, lanes| {
                    V::load(from, e, lanes).mul(V::splat(scale)).store(to, e, lanes);
                });
                if d < d.next_multiple_of(PAD) {
                    to[d..d.next_multiple_of(PAD)].fill(0.0);
                }
            }
        }
    }
}

//! The right operand of a product, copied block by block into the panels the tiles read.
//!
//! A panel holds `NR` columns of `B` for a block of `k`: `NR` values for each `l`, with zeros in the
//! place of columns beyond the last. Quantised weights are expanded here and nowhere else.

use std::ops::Range;

use super::product::Side;
use super::scratch::Buffer;
use super::tile::nr;
use crate::WeightRef;
use crate::format::{Format, RowOrder};
use crate::quant::expand::expand;
use crate::simd::Vector;

/// The right operand `B[k, n]` of a product.
pub(super) trait Operand: Sync {
    /// Blocks of `k` should start at multiples of this.
    fn k_step(&self) -> usize {
        1
    }
    /// Blocks of columns should start at multiples of this.
    fn n_step(&self) -> usize {
        1
    }
    /// Whether the operand is stored along `k`, and has to be transposed into panels.
    fn along_k(&self) -> bool;
    /// Where `B` lies and how far apart its rows are, if they run along its columns.
    fn direct(&self) -> Option<(*const f32, usize)> {
        None
    }
    /// The weight and its side, where the operand is one stored as BF16.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn bf16(&self) -> Option<(&WeightRef<'_>, Side)> {
        None
    }
    /// Packs `B[k, n]` into `panels`: `n.len().div_ceil(NR)` panels of `k.len() * NR` values.
    ///
    /// # Safety
    /// Runs inside [`Vector::enter`] on a CPU that has the level; `k` and `n` lie inside the operand;
    /// `panels` has the length given.
    unsafe fn pack<V: Vector>(&self, k: Range<usize>, n: Range<usize>, panels: &mut [f32], rows: &mut Buffer);
}

/// A dense operand: `B(l, j)` at `data + l*ks + j*ns`.
pub(super) struct Dense {
    pub(super) data: *const f32,
    pub(super) ks: usize,
    pub(super) ns: usize,
}

// SAFETY: the pointer is only read, and its owner's borrow outlives the product.
unsafe impl Sync for Dense {}

impl Operand for Dense {
    fn along_k(&self) -> bool {
        self.ns != 1
    }
    fn direct(&self) -> Option<(*const f32, usize)> {
        (self.ns == 1).then_some((self.data, self.ks))
    }

    #[inline(always)]
    unsafe fn pack<V: Vector>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panels: &mut [f32],
        _rows: &mut Buffer,
    ) {
        for (panel, from) in panels.chunks_exact_mut(k.len() * nr::<V>()).zip(n.clone().step_by(nr::<V>())) {
            let width = nr::<V>().min(n.end - from);
            // SAFETY: k and n lie inside the operand, says the caller.
            unsafe {
                let start = self.data.add(k.start * self.ks + from * self.ns);
                if self.ns == 1 {
                    copy_rows::<V>(start, self.ks, k.len(), width, panel);
                } else if self.ks == 1 {
                    transpose_rows::<V>(|j| start.add(j * self.ns), k.len(), width, panel, 0);
                } else {
                    for l in 0..k.len() {
                        for j in 0..nr::<V>() {
                            panel[l * nr::<V>() + j] =
                                if j < width { *start.add(l * self.ks + j * self.ns) } else { 0.0 };
                        }
                    }
                }
            }
        }
    }
}

/// `W^T`: the right operand of `y = x W^T`, `B(l, j) = W[j, l]`.
pub(super) struct Forward<'a>(pub(super) WeightRef<'a>);

/// Columns of a weight expanded at a time: a row of a tile's panel then stays in the first cache.
const EXPANDED_COLUMNS: usize = 256;

/// Most values of a weight kept expanded at a time, at any level.
pub(super) const MAX_EXPANDED_VALUES: usize = 32 * EXPANDED_COLUMNS;

impl Operand for Forward<'_> {
    fn along_k(&self) -> bool {
        true
    }
    fn k_step(&self) -> usize {
        self.0.format.block_len()
    }
    fn bf16(&self) -> Option<(&WeightRef<'_>, Side)> {
        (self.0.format == Format::BF16).then_some((&self.0, Side::Forward))
    }

    #[inline(always)]
    unsafe fn pack<V: Vector>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panels: &mut [f32],
        rows: &mut Buffer,
    ) {
        let w = &self.0;
        let rows = rows.get(nr::<V>() * EXPANDED_COLUMNS).as_mut_ptr();
        for (panel, from) in panels.chunks_exact_mut(k.len() * nr::<V>()).zip(n.clone().step_by(nr::<V>())) {
            let width = nr::<V>().min(n.end - from);
            if w.format == Format::F32 {
                let row = |j: usize| w.row(from + j)[4 * k.start..4 * k.end].as_ptr().cast::<f32>();
                // SAFETY: each row holds k.len() values (at any alignment) from the pointer on.
                unsafe { transpose_rows::<V>(row, k.len(), width, panel, 0) };
                continue;
            }
            for at in k.clone().step_by(EXPANDED_COLUMNS) {
                let len = EXPANDED_COLUMNS.min(k.end - at);
                for j in 0..width {
                    // SAFETY: the buffer has NR runs of EXPANDED_COLUMNS values.
                    let out = unsafe { std::slice::from_raw_parts_mut(rows.add(j * EXPANDED_COLUMNS), len) };
                    expand(V::LEVEL, w, from + j, at..at + len, out);
                }
                // SAFETY: the rows just written.
                unsafe {
                    transpose_rows::<V>(
                        |j| rows.add(j * EXPANDED_COLUMNS).cast_const(),
                        len,
                        width,
                        panel,
                        at - k.start,
                    )
                };
            }
        }
    }
}

/// Rows of a weight asked for ahead of their use.
const PREFETCH_ROWS: usize = 6;

/// `W` itself: the right operand of `dx = dy W`, `B(l, j) = W[l, j]`.
pub(super) struct Backward<'a>(pub(super) WeightRef<'a>);

impl Operand for Backward<'_> {
    fn along_k(&self) -> bool {
        false
    }
    fn n_step(&self) -> usize {
        self.0.format.block_len()
    }
    fn bf16(&self) -> Option<(&WeightRef<'_>, Side)> {
        (self.0.format == Format::BF16).then_some((&self.0, Side::Backward))
    }
    fn direct(&self) -> Option<(*const f32, usize)> {
        let plain = self.0.format == Format::F32 && self.0.order == RowOrder::Plain;
        plain.then(|| (self.0.bytes.as_ptr().cast(), self.0.cols))
    }

    #[inline(always)]
    unsafe fn pack<V: Vector>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panels: &mut [f32],
        rows: &mut Buffer,
    ) {
        let w = &self.0;
        let row = rows.get(n.len());
        let (len, size) = (w.format.block_len(), w.format.block_bytes());
        let piece = n.start / len * size..n.end.div_ceil(len) * size;
        for l in k.clone() {
            // A piece of a row is too short for the CPU to foresee the next. (One of a line or less is not
            // worth the trouble.)
            if piece.len() > 64 && l + PREFETCH_ROWS < k.end {
                let next = &w.row(l + PREFETCH_ROWS)[piece.clone()];
                next.iter().step_by(64).for_each(|byte| V::prefetch(std::ptr::from_ref(byte).cast()));
            }
            let numbers = if w.format == Format::F32 {
                w.row(l)[4 * n.start..4 * n.end].as_ptr().cast::<f32>()
            } else {
                expand(V::LEVEL, w, l, n.clone(), row);
                row.as_ptr()
            };
            for (j, panel) in panels.chunks_exact_mut(k.len() * nr::<V>()).enumerate() {
                let width = nr::<V>().min(n.len() - j * nr::<V>());
                let to = &mut panel[(l - k.start) * nr::<V>()..][..nr::<V>()];
                // SAFETY: `values` has n.len() values, the panel a row of NR.
                unsafe { copy_row::<V>(numbers.add(j * nr::<V>()), width, to) };
            }
        }
    }
}

/// One row of a panel: `width` values from `from`, then zeros.
///
/// # Safety
/// As [`Operand::pack`]; `from` can be read for `width` values at any alignment.
#[inline(always)]
unsafe fn copy_row<V: Vector>(from: *const f32, width: usize, to: &mut [f32]) {
    // SAFETY: `to` has NR values, and `from` has them too where the row is whole.
    unsafe {
        if width == nr::<V>() {
            for v in 0..2 {
                V::load_ptr(from.add(v * V::LANES)).store_ptr(to.as_mut_ptr().add(v * V::LANES));
            }
        } else {
            for (j, to) in to.iter_mut().enumerate() {
                *to = if j < width { from.add(j).read_unaligned() } else { 0.0 };
            }
        }
    }
}

/// A panel from rows that run along the columns of `B`.
///
/// # Safety
/// As [`copy_row`] for each of the `k` rows, `ks` apart.
#[inline(always)]
unsafe fn copy_rows<V: Vector>(from: *const f32, ks: usize, k: usize, width: usize, panel: &mut [f32]) {
    for (l, to) in panel.chunks_exact_mut(nr::<V>()).enumerate().take(k) {
        // SAFETY: the caller's promise.
        unsafe { copy_row::<V>(from.add(l * ks), width, to) };
    }
}

/// A panel (from its row `at` on) from rows that run along `k`: column `j` of `B` is read from `row(j)`.
///
/// # Safety
/// Runs inside [`Vector::enter`]; `row(j)` can be read for `k` values at any alignment for `j < width`;
/// the panel has `at + k` rows.
#[inline(always)]
unsafe fn transpose_rows<V: Vector>(
    row: impl Fn(usize) -> *const f32,
    k: usize,
    width: usize,
    panel: &mut [f32],
    at: usize,
) {
    let nr = nr::<V>();
    // SAFETY: the caller's promises.
    unsafe { transpose_units::<V>(row, k, width, nr, &mut panel[at * nr..(at + k) * nr]) };
}

/// The transpose of `width` rows of `k` units of 32 bits into rows of `nr` (a multiple of 8), with zeros after
/// the last. Bits are moved as they are.
///
/// # Safety
/// Runs inside [`Vector::enter`]; `row(j)` can be read for `k` units at any alignment for `j < width`; `panel` has
/// `k * nr`.
#[inline(always)]
pub(super) unsafe fn transpose_units<V: Vector>(
    row: impl Fn(usize) -> *const f32,
    k: usize,
    width: usize,
    nr: usize,
    panel: &mut [f32],
) {
    for j in (0..nr).step_by(8) {
        let mut done = 0;
        if j + 8 <= width {
            let from: [*const f32; 8] = std::array::from_fn(|i| row(j + i));
            while done + 8 <= k {
                // SAFETY: eight rows of at least done + 8 values; the panel's rows likewise.
                unsafe {
                    let to = panel.as_mut_ptr().add(done * nr + j);
                    V::transpose8(from.map(|p| p.add(done)), to, nr);
                }
                done += 8;
            }
        }
        for i in j..j + 8 {
            if i < width {
                let from = row(i);
                for l in done..k {
                    // SAFETY: row i has k values.
                    panel[l * nr + i] = unsafe { from.add(l).read_unaligned() };
                }
            } else {
                for l in 0..k {
                    panel[l * nr + i] = 0.0;
                }
            }
        }
    }
}

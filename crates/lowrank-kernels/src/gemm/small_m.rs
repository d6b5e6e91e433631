//! `y = x W^T` for short batches: fewer tokens than outputs.
//!
//! The usual way transposes the weight into panels, which costs as much as multiplying it with some thirty
//! tokens. Here the operands change places, `y^T = W x^T`: the rows of the weight are read where they lie
//! (or expanded a few at a time), and it is the tokens that are packed, once for all threads.

use std::ops::Range;

use rayon::prelude::*;

use super::blocked::{self, MAX_BLOCK_K, MIN_PARALLEL_FMAS, TILES_DOWN};
use super::pack::{Dense, Operand};
use super::product::cut;
use super::scratch::{LINE_VALUES, Scratch, with_left, with_scratch};
use super::tile::{MAX_TILE_VALUES, nr, tile};
use crate::WeightRef;
use crate::format::{Format, RowOrder};
use crate::quant::expand::expand;
use crate::simd::Vector;

/// Most tokens: beyond, the packed tokens no longer stay in the second cache.
const MAX_TOKENS: usize = 512;

/// Whether [`run`] is the way for `n` tokens, and its working memory within what `scratch_bytes` announces.
pub(super) fn fits<V: Vector>(w: &WeightRef, n: usize) -> bool {
    n <= MAX_TOKENS
        && n <= w.rows
        && w.cols > 0
        && n.next_multiple_of(nr::<V>()) * w.cols <= blocked::MAX_LEFT_VALUES
        && TILES_DOWN * V::TILE_ROWS * stride(w.cols) <= blocked::MAX_PANEL_VALUES
}

/// Distance of expanded rows, an odd number of lines: see `blocked::in_place`.
fn stride(k: usize) -> usize {
    k.next_multiple_of(2 * LINE_VALUES) + LINE_VALUES
}

/// `y[N,O] = beta y + x[N,K] W[O,K]^T` on up to `threads` threads of the current pool. The number of
/// threads does not change a bit of it.
///
/// # Safety
/// The CPU has the level; `x` and `y` have the shapes; [`fits`] said yes.
pub(super) unsafe fn run<V: Vector>(
    y: &mut [f32],
    x: &[f32],
    w: &WeightRef,
    n: usize,
    beta: f32,
    threads: usize,
) {
    let (k, nr) = (w.cols, nr::<V>());
    let tokens = Dense { data: x.as_ptr(), ks: 1, ns: k };
    let threads = if n * k * w.rows < MIN_PARALLEL_FMAS { 1 } else { threads };
    with_left(|left| {
        let packed = left.get(n.next_multiple_of(nr) * k);
        let pack = |(panel, to): (usize, &mut [f32])| {
            let columns = panel * nr..((panel + 1) * nr).min(n);
            // SAFETY: the columns lie inside x; the level is there.
            unsafe {
                with_scratch(|scratch| {
                    V::enter(
                        #[inline(always)]
                        || tokens.pack::<V>(0..k, columns, to, &mut scratch.rows),
                    );
                });
            }
        };
        match threads {
            1 => packed.chunks_exact_mut(nr * k).enumerate().for_each(pack),
            _ => packed.par_chunks_exact_mut(nr * k).enumerate().for_each(pack),
        }
        let packed: &[f32] = packed;
        let out = Out { y: y.as_mut_ptr(), n, beta };
        let block = TILES_DOWN * V::TILE_ROWS;
        let tiles = w.rows.div_ceil(V::TILE_ROWS);
        let tasks = (threads * blocked::TASKS_PER_THREAD).min(tiles);
        let task = |task: usize| {
            let share =
                task * tiles / tasks * V::TILE_ROWS..((task + 1) * tiles / tasks * V::TILE_ROWS).min(w.rows);
            for row in share.clone().step_by(block) {
                let rows = row..(row + block).min(share.end);
                // SAFETY: no other task writes these columns of y; the caller's promises.
                unsafe { with_scratch(|scratch| block_of_rows::<V>(&out, w, packed, rows, scratch)) };
            }
        };
        match threads {
            1 => (0..tasks).for_each(task),
            _ => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
        }
    });
}

struct Out {
    y: *mut f32,
    n: usize,
    beta: f32,
}

// SAFETY: tasks write disjoint columns.
unsafe impl Sync for Out {}

/// A few rows of the weight times all tokens.
unsafe fn block_of_rows<V: Vector>(
    out: &Out,
    w: &WeightRef,
    packed: &[f32],
    rows: Range<usize>,
    scratch: &mut Scratch,
) {
    let (k, nr) = (w.cols, nr::<V>());
    let (a, ars) = match in_place(w) {
        true => (w.row(rows.start).as_ptr().cast::<f32>(), k),
        false => {
            let expanded = scratch.panels.get(rows.len() * stride(k));
            for (row, to) in rows.clone().zip(expanded.chunks_exact_mut(stride(k))) {
                expand(V::LEVEL, w, row, 0..k, &mut to[..k]);
            }
            (expanded.as_ptr(), stride(k))
        }
    };
    let kc = cut(k, MAX_BLOCK_K, 8);
    // Not cleared between panels: what is stale is read, but not written to y.
    let (mut sums, mut turned) = ([0.0; TILES_DOWN * MAX_TILE_VALUES], [0.0; TILES_DOWN * MAX_TILE_VALUES]);
    for (panel, b) in packed.chunks_exact(nr * k).enumerate() {
        let mut i = 0;
        while i < rows.len() {
            let left = rows.len() - i;
            let height = left.div_ceil(left.div_ceil(V::TILE_ROWS));
            for l in (0..k).step_by(kc) {
                let len = kc.min(k - l);
                let beta = if l == 0 { 0.0 } else { 1.0 };
                // SAFETY: the rows hold k values each, `ars` apart; the panel k rows of NR; the sums
                // TILES_DOWN tiles.
                unsafe {
                    let (a, b) = (a.wrapping_add(i * ars + l), b.as_ptr().add(l * nr));
                    let to = sums.as_mut_ptr().add(i * nr);
                    tile::<V>(height, len, a, ars, 1, b, nr, to, nr, 1.0, to, nr, beta);
                }
            }
            i += height;
        }
        let tokens = panel * nr..((panel + 1) * nr).min(out.n);
        // SAFETY: these tokens and rows lie inside y, and nobody else writes them.
        unsafe {
            V::enter(
                #[inline(always)]
                || put::<V>(out, &sums, &mut turned, tokens, rows.clone(), w.rows),
            )
        };
    }
}

/// Whether the tiles can read rows of the weight where they lie.
fn in_place(w: &WeightRef) -> bool {
    w.format == Format::F32 && w.order == RowOrder::Plain && !blocked::collide(w.cols)
}

/// Writes the transpose of `sums[rows, NR]` into `y[tokens, rows]`.
#[inline(always)]
unsafe fn put<V: Vector>(
    out: &Out,
    sums: &[f32; TILES_DOWN * MAX_TILE_VALUES],
    turned: &mut [f32; TILES_DOWN * MAX_TILE_VALUES],
    tokens: Range<usize>,
    rows: Range<usize>,
    o: usize,
) {
    let nr = nr::<V>();
    let height = rows.len().next_multiple_of(8);
    for i in (0..rows.len()).step_by(8) {
        for t in (0..nr).step_by(8) {
            // SAFETY: eight rows of NR sums (the array holds those of TILES_DOWN whole tiles, a multiple
            // of eight), turned into eight of `height`.
            unsafe {
                let from = std::array::from_fn(|r| sums.as_ptr().add((i + r) * nr + t));
                V::transpose8(from, turned.as_mut_ptr().add(t * height + i), height);
            }
        }
    }
    for (t, token) in tokens.enumerate() {
        // SAFETY: inside y, and no other task's, says the caller.
        let to = unsafe { std::slice::from_raw_parts_mut(out.y.add(token * o + rows.start), rows.len()) };
        let from = &turned[t * height..][..rows.len()];
        if out.beta == 0.0 {
            to.copy_from_slice(from);
        } else {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = out.beta * *to + from);
        }
    }
}

//! A product cut into tasks for the threads, and a task into blocks for the caches.

use std::ops::Range;

use rayon::prelude::*;

use super::pack::Operand;
use super::product::{Product, cut};
use super::scratch::{Buffer, LINE_VALUES, Scratch, with_left, with_scratch};
use super::tile::{MAX_TILE_VALUES, nr, tile};
use crate::simd::Vector;

/// Most of `k` in a block. Long blocks pay: `C` is read and written once for each.
pub(super) const MAX_BLOCK_K: usize = 1024;
/// The same where packing counts, for an operand whose rows run along its columns: each is then packed in
/// longer pieces.
const MAX_PACKED_BLOCK_K: usize = 256;
/// Rows of `A` from which packing counts for little.
const MIN_ROWS_LONG_K: usize = 384;
/// Most values in a packed block of `B`: 300 KB, which the second cache holds beside what passes by.
const MAX_BLOCK_VALUES: usize = 75 << 10;
/// Rows of `A` that meet a panel of `B` while it is in the first cache, in tiles.
pub(super) const TILES_DOWN: usize = 4;
/// Most rows of `A` copied at a time, where it has to be.
const MAX_COPIED_ROWS: usize = 1024;
/// Distance up to which the values of a row of `A` are read where they lie.
pub(super) const MAX_IN_PLACE_STRIDE: usize = 16;
/// Tasks for each thread: enough to even out threads that start late or are disturbed.
pub(super) const TASKS_PER_THREAD: usize = 4;
/// Multiply-adds from which another thread saves more than waking it costs.
pub(super) const MIN_PARALLEL_FMAS: usize = 1 << 18;
/// Rows of `A` that take as long as packing the panels they meet.
const PACKING_ROWS: f64 = 24.0;

/// Most values packed by one thread: columns are rounded up to the longest quantised block, 256.
pub(super) const MAX_PANEL_VALUES: usize =
    if MAX_BLOCK_VALUES > MAX_BLOCK_K * 256 { MAX_BLOCK_VALUES } else { MAX_BLOCK_K * 256 };

/// Most values of a left operand copied at a time. The buffer also serves packed tokens, and thin right
/// operands for k up to a hundred thousand.
pub(super) const MAX_LEFT_VALUES: usize = MAX_COPIED_ROWS * (MAX_BLOCK_K + 2 * LINE_VALUES);

/// Computes the product at the level `A` on up to `threads` threads of the current pool.
///
/// Neither the number of threads nor how the tasks fall on them changes a bit of the result: each
/// value of `C` is the same chain of additions over `k`.
///
/// # Safety
/// The CPU has the level; the pointers of `product` cover its shapes, and nobody else uses `C`.
pub(super) unsafe fn run<V: Vector, B: Operand>(product: &Product, b: &B, threads: usize) {
    let p = product;
    if p.m == 0 || p.n == 0 {
        return;
    }
    // SAFETY: the caller's promises, for parts of the product.
    unsafe {
        if p.k == 0 {
            scale(p);
        } else if in_place(p) {
            tasks::<V, B>(p, 0..p.k, b, threads);
        } else {
            let kc = cut(p.k, MAX_BLOCK_K, b.k_step().max(8));
            for i in (0..p.m).step_by(MAX_COPIED_ROWS) {
                let rows = i..(i + MAX_COPIED_ROWS).min(p.m);
                for l in (0..p.k).step_by(kc) {
                    let k = l..(l + kc).min(p.k);
                    with_left(|left| {
                        let (a, ars) = copy_left(p, rows.clone(), k.clone(), left, threads);
                        let part = Product {
                            m: rows.len(),
                            beta: if l == 0 { p.beta } else { 1.0 },
                            // As if the whole of A lay there, so that `k` keeps its meaning.
                            a: a.wrapping_sub(l),
                            ars,
                            acs: 1,
                            c: p.c.add(i * p.crs),
                            start: match l {
                                0 if !p.start.is_null() => p.start.wrapping_add(i * p.srs),
                                _ => std::ptr::null(),
                            },
                            ..*p
                        };
                        tasks::<V, B>(&part, k, b, threads);
                    });
                }
            }
        }
    }
}

/// What is left of a product over an empty `k`: `C = beta C`.
unsafe fn scale(p: &Product) {
    for i in 0..p.m {
        for j in 0..p.n {
            // SAFETY: inside C, says the caller.
            let at = unsafe { &mut *p.c.add(i * p.crs + j * p.ccs) };
            *at = if p.beta == 0.0 { 0.0 } else { p.beta * *at };
        }
    }
}

/// Whether the tiles can read `A` where it lies. They cannot where every value is in a line of its own,
/// and should not where the rows of a tile fall into the same sets of the first cache and drive each
/// other out (rows a multiple of 4096 bytes apart).
fn in_place(p: &Product) -> bool {
    let few = p.m <= 16 || p.n <= 64;
    if p.acs == 1 { few || !collide(p.ars) } else { p.acs <= MAX_IN_PLACE_STRIDE }
}

/// Whether rows of `f32` this far apart share the sets of the first cache.
pub(super) fn collide(stride: usize) -> bool {
    (stride * size_of::<f32>() + 64) % 4096 <= 128
}

/// Copies `A[rows, k]` to rows that lie well in the caches. Returns the copy and the distance of its rows.
unsafe fn copy_left(
    p: &Product,
    rows: Range<usize>,
    k: Range<usize>,
    left: &mut Buffer,
    threads: usize,
) -> (*const f32, usize) {
    // An odd number of lines apart.
    let stride = k.len().next_multiple_of(2 * LINE_VALUES) + LINE_VALUES;
    let copy = left.get(rows.len() * stride);
    let fill = |(i, to): (usize, &mut [f32])| {
        let from = p.a.wrapping_add((rows.start + i * LINE_VALUES) * p.ars + k.start * p.acs);
        // SAFETY: inside A, says the caller.
        unsafe {
            if p.acs == 1 {
                for (r, to) in to.chunks_exact_mut(stride).enumerate() {
                    to[..k.len()].copy_from_slice(std::slice::from_raw_parts(from.add(r * p.ars), k.len()));
                }
            } else {
                // Down the rows first: then they are the near ones.
                for l in 0..k.len() {
                    for r in 0..to.len() / stride {
                        to[r * stride + l] = *from.add(r * p.ars + l * p.acs);
                    }
                }
            }
        }
    };
    match threads {
        1 => copy.chunks_mut(LINE_VALUES * stride).enumerate().for_each(fill),
        _ => copy.par_chunks_mut(LINE_VALUES * stride).enumerate().for_each(fill),
    }
    (copy.as_ptr(), stride)
}

/// The part `k` of a product whose `A` can be read in place.
unsafe fn tasks<V: Vector, B: Operand>(p: &Product, k: Range<usize>, b: &B, threads: usize) {
    // SAFETY: the caller's promises; tasks are disjoint in C.
    let work = |rows: Range<usize>, cols: Range<usize>| unsafe {
        with_scratch(|scratch| task::<V, B>(p, k.clone(), b, rows, cols, scratch));
    };
    if threads <= 1 || p.m * p.n * k.len() < MIN_PARALLEL_FMAS {
        return work(0..p.m, 0..p.n);
    }
    let step = col_step::<V, B>(b);
    let units = p.n.div_ceil(step);
    let (across, down) = grid(units, p.m, V::TILE_ROWS, threads);
    let tiles = p.m.div_ceil(V::TILE_ROWS);
    // Shares of whole units that differ by one at most, the smaller and the larger ones mixed.
    let share = |i: usize, of: usize, all: usize| i * all / of..(i + 1) * all / of;
    (0..across * down).into_par_iter().with_max_len(1).for_each(|t| {
        let (rows, cols) = (share(t / across, down, tiles), share(t % across, across, units));
        work(
            rows.start * V::TILE_ROWS..(rows.end * V::TILE_ROWS).min(p.m),
            cols.start * step..(cols.end * step).min(p.n),
        );
    });
}

/// How many tasks to cut a product of `units` panels (or quantised blocks) and `m` rows into: across its
/// columns, and down its rows.
///
/// Columns come first, since each cut of the rows packs `B` again. But a few units do not divide evenly
/// among the threads, and then cutting the rows too ends sooner.
fn grid(units: usize, m: usize, mr: usize, threads: usize) -> (usize, usize) {
    let most = (m / (4 * mr)).clamp(1, threads);
    // The time of the busiest thread, in units, with what packing adds.
    let time = |down: usize| {
        let busiest = (units * down).div_ceil(threads) as f64 / down as f64;
        busiest * (1.0 + PACKING_ROWS * (down - 1) as f64 / m as f64)
    };
    let down = (1..=most).min_by(|a, b| time(*a).total_cmp(&time(*b))).unwrap_or(1);
    let wanted = units.min((threads * TASKS_PER_THREAD / down).max(1));
    // As many tasks for one thread as for another, if possible.
    let across = (1..=wanted).rev().find(|across| (across * down).is_multiple_of(threads));
    (across.unwrap_or(wanted), down)
}

/// Blocks of columns are whole panels and, if possible, whole quantised blocks (both powers of two).
fn col_step<V: Vector, B: Operand>(b: &B) -> usize {
    nr::<V>().max(b.n_step())
}

unsafe fn task<V: Vector, B: Operand>(
    p: &Product,
    all: Range<usize>,
    b: &B,
    rows: Range<usize>,
    cols: Range<usize>,
    scratch: &mut Scratch,
) {
    let nr = nr::<V>();
    // An operand that only a few tiles would use is read where it lies rather than packed.
    let direct = if p.m <= 4 * V::TILE_ROWS { b.direct() } else { None };
    let short = direct.is_some() || (p.m < MIN_ROWS_LONG_K && !b.along_k());
    let most = if short { MAX_PACKED_BLOCK_K } else { MAX_BLOCK_K };
    let kc = cut(all.len(), most, b.k_step().max(8));
    let step = col_step::<V, B>(b);
    let nc = cut(cols.len(), MAX_BLOCK_VALUES / kc / step * step, step);
    let Scratch { panels, rows: expanded, .. } = scratch;
    for j in cols.clone().step_by(nc) {
        let block = j..(j + nc).min(cols.end);
        // The last columns are packed in any case: they do not fill a vector.
        let packed = if direct.is_some() { j + block.len() / nr * nr..block.end } else { block.clone() };
        for l in all.clone().step_by(kc) {
            let k = l..(l + kc).min(all.end);
            let panels = panels.get(packed.len().div_ceil(nr) * k.len() * nr);
            // SAFETY: the ranges lie inside the operand; the level is there.
            unsafe {
                V::enter(
                    #[inline(always)]
                    || b.pack::<V>(k.clone(), packed.clone(), panels, expanded),
                )
            };
            let first = l == all.start;
            for i in rows.clone().step_by(TILES_DOWN * V::TILE_ROWS) {
                let rows = i..(i + TILES_DOWN * V::TILE_ROWS).min(rows.end);
                let panel = |j: usize| match direct {
                    Some((data, ks)) if j < packed.start => (data.wrapping_add(l * ks + j), ks),
                    _ => (panels[(j - packed.start) * k.len()..].as_ptr(), nr),
                };
                // SAFETY: the caller's promises.
                unsafe { multiply::<V>(p, rows, block.clone(), k.clone(), panel, first) };
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
/// One block of rows times the panels. `panel(j)` tells where the panel of column `j` starts, and how far
/// apart its rows are.
#[inline(always)]
unsafe fn multiply<V: Vector>(
    p: &Product,
    rows: Range<usize>,
    cols: Range<usize>,
    k: Range<usize>,
    panel: impl Fn(usize) -> (*const f32, usize),
    first: bool,
) {
    let nr = nr::<V>();
    for j in cols.clone().step_by(nr) {
        let (b, bks) = panel(j);
        let width = nr.min(cols.end - j);
        let mut i = rows.start;
        while i < rows.end {
            // Heights are evened out, so that no tile is left with a single row.
            let height = (rows.end - i).div_ceil((rows.end - i).div_ceil(V::TILE_ROWS));
            // SAFETY: all offsets lie inside the shapes the caller of `run` vouches for.
            unsafe {
                let a = p.a.wrapping_add(i * p.ars + k.start * p.acs);
                let c = p.c.add(i * p.crs + j * p.ccs);
                let (old, ors, beta) = p.old(first, c, i, j);
                if width == nr && p.ccs == 1 {
                    tile::<V>(height, k.len(), a, p.ars, p.acs, b, bks, c, p.crs, p.alpha, old, ors, beta);
                } else {
                    let mut sums = [0.0; MAX_TILE_VALUES];
                    let to = sums.as_mut_ptr();
                    tile::<V>(height, k.len(), a, p.ars, p.acs, b, bks, to, nr, p.alpha, to, nr, 0.0);
                    for (r, sums) in sums.chunks_exact(nr).enumerate().take(height) {
                        for (s, &sum) in sums[..width].iter().enumerate() {
                            let at = c.add(r * p.crs + s * p.ccs);
                            *at = if beta == 0.0 { sum } else { beta * *old.add(r * ors + s * p.ccs) + sum };
                        }
                    }
                }
            }
            i += height;
        }
    }
}

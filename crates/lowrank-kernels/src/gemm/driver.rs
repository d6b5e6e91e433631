//! A product cut into tasks for the threads, and a task into blocks for the caches.

use std::ops::Range;

use rayon::prelude::*;

use super::pack::{MAX_ROWS, Operand};
use super::scratch::{Buffer, LINE, Scratch, with_scratch};
use super::tile::{MAX_TILE, nr, tile};
use crate::simd::Arch;

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
}

// SAFETY: tasks read all of A, which nobody writes, and write disjoint parts of C.
unsafe impl Sync for Product {}

/// Most of `k` in a block: a panel of `B` then fills no more than the first cache, and is used by a
/// whole block of rows.
const KC: usize = 384;
/// Rows of `A` in a block: `MC x KC` numbers stay in the second cache.
const MC: usize = 96;
/// Most columns of `B` packed at a time.
const NC: usize = 512;

/// Bytes of working memory the products keep on `threads` threads, at most: packed blocks of the
/// operands. Each thread's share is allocated by its first product and used again by all others.
pub fn scratch_bytes(threads: usize) -> usize {
    // Blocks of k are rounded up to the longest quantised block, 256 numbers.
    let kc = KC.next_multiple_of(256);
    threads * size_of::<f32>() * (kc * NC + MAX_ROWS + MC * kc + 3 * LINE)
}

/// Tasks for each thread: enough to even out threads that start late or are disturbed.
const TASKS: usize = 4;

/// `len` cut into equal runs of a whole number of `step`s, none longer than `most` (but at least a step).
fn cut(len: usize, most: usize, step: usize) -> usize {
    len.div_ceil(len.div_ceil(most.max(1)).max(1)).next_multiple_of(step)
}

/// Computes the product at the level `A` on up to `threads` threads of the current pool.
///
/// Neither the number of threads nor how the tasks fall on them changes a bit of the result: each
/// number of `C` is the same chain of additions over `k`.
///
/// # Safety
/// The CPU has the level; the pointers of `product` cover its shapes, and nobody else uses `C`.
pub(super) unsafe fn run<A: Arch, B: Operand>(product: &Product, b: &B, threads: usize) {
    let p = product;
    if p.m == 0 || p.n == 0 {
        return;
    }
    if p.k == 0 {
        // SAFETY: inside C.
        return unsafe { scale(p) };
    }
    let step = lcm_step(nr::<A>(), b.n_step());
    // SAFETY: the caller's promises; tasks are disjoint in C.
    let work = |rows: Range<usize>, cols: Range<usize>| unsafe {
        with_scratch(|scratch| task::<A, B>(p, b, rows, cols, scratch));
    };
    if threads <= 1 || p.m * p.n * p.k < 1 << 16 {
        return work(0..p.m, 0..p.n);
    }
    let wanted = threads * TASKS;
    let width = cut(p.n, p.n.div_ceil(wanted).max(2 * nr::<A>()), step);
    let across = p.n.div_ceil(width);
    // Rows are cut only where the columns leave threads idle, since each cut packs `B` again.
    let height = if across >= threads { p.m } else { cut(p.m, p.m.div_ceil(wanted / across).max(32), A::MR) };
    let down = p.m.div_ceil(height);
    (0..across * down).into_par_iter().with_max_len(1).for_each(|t| {
        let (i, j) = (t / across * height, t % across * width);
        work(i..(i + height).min(p.m), j..(j + width).min(p.n));
    });
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

/// The least common multiple of two powers of two.
fn lcm_step(a: usize, b: usize) -> usize {
    a.max(b)
}

unsafe fn task<A: Arch, B: Operand>(
    p: &Product,
    b: &B,
    rows: Range<usize>,
    cols: Range<usize>,
    scratch: &mut Scratch,
) {
    let nr = nr::<A>();
    let kc = cut(p.k, KC, b.k_step().max(8));
    let nc = cut(cols.len(), NC, lcm_step(nr, b.n_step()));
    let Scratch { panels, rows: expanded, left } = scratch;
    for j in cols.clone().step_by(nc) {
        let block = j..(j + nc).min(cols.end);
        for l in (0..p.k).step_by(kc) {
            let k = l..(l + kc).min(p.k);
            let panels = panels.get(block.len().div_ceil(nr) * k.len() * nr);
            // SAFETY: the ranges lie inside the operand; the level is there.
            unsafe {
                A::enter(
                    #[inline(always)]
                    || b.pack::<A>(k.clone(), block.clone(), panels, expanded),
                )
            };
            let beta = if l == 0 { p.beta } else { 1.0 };
            for i in rows.clone().step_by(MC) {
                // SAFETY: the caller's promises.
                unsafe {
                    multiply::<A>(p, i..(i + MC).min(rows.end), block.clone(), k.clone(), panels, beta, left)
                };
            }
        }
    }
}

/// One block of rows times the packed panels.
#[inline(always)]
unsafe fn multiply<A: Arch>(
    p: &Product,
    rows: Range<usize>,
    cols: Range<usize>,
    k: Range<usize>,
    panels: &[f32],
    beta: f32,
    left: &mut Buffer,
) {
    let nr = nr::<A>();
    // SAFETY: all offsets lie inside the shapes the caller of `run` vouches for.
    unsafe {
        let (a, ars, aks) = left_block(p, rows.clone(), k.clone(), left);
        for (index, j) in cols.clone().step_by(nr).enumerate() {
            let panel = panels[index * k.len() * nr..].as_ptr();
            let width = nr.min(cols.end - j);
            let mut i = 0;
            while i < rows.len() {
                // Heights are evened out, so that no tile is left with a single row.
                let left = rows.len() - i;
                let height = left.div_ceil(left.div_ceil(A::MR));
                let a = a.add(i * ars);
                let c = p.c.add((rows.start + i) * p.crs + j * p.ccs);
                if width == nr && p.ccs == 1 {
                    tile::<A>(height, k.len(), a, ars, aks, panel, c, p.crs, p.alpha, beta);
                } else {
                    let mut sums = [0.0; MAX_TILE];
                    tile::<A>(height, k.len(), a, ars, aks, panel, sums.as_mut_ptr(), nr, p.alpha, 0.0);
                    for (r, sums) in sums.chunks_exact(nr).enumerate().take(height) {
                        for (s, &sum) in sums[..width].iter().enumerate() {
                            let at = c.add(r * p.crs + s * p.ccs);
                            *at = if beta == 0.0 { sum } else { beta * *at + sum };
                        }
                    }
                }
                i += height;
            }
        }
    }
}

/// Where the tiles read a block of `A`, and its strides: in place, unless that would touch a new line of
/// memory for every single number.
#[inline(always)]
unsafe fn left_block(
    p: &Product,
    rows: Range<usize>,
    k: Range<usize>,
    left: &mut Buffer,
) -> (*const f32, usize, usize) {
    // SAFETY: inside A, says the caller.
    unsafe {
        let a = p.a.add(rows.start * p.ars + k.start * p.acs);
        if p.acs <= 64 {
            return (a, p.ars, p.acs);
        }
        let copy = left.get(rows.len() * k.len());
        for l in 0..k.len() {
            for i in 0..rows.len() {
                copy[i * k.len() + l] = *a.add(i * p.ars + l * p.acs);
            }
        }
        (copy.as_ptr(), k.len(), 1)
    }
}

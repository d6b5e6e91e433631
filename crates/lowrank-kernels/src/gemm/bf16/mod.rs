//! Products of BF16 weights with activations rounded to BF16, on CPUs that multiply several of them and add in
//! f32: pairs (AVX512-BF16's `vdpbf16ps`, twice the rate of f32) or two rows of four by two columns of four (ARM's
//! `bfmmla`).
//!
//! Values are packed in units along `k`, of one pair or two: the left operand row by row, the right one in panels
//! of a tile's columns. A tile of sums (12 x 32, or 8 x 12) stays in registers. The same code runs on
//! plain emulations of the instructions in the tests, on any machine.

#[cfg(target_arch = "aarch64")]
mod arm;
mod kernel;
mod pack;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use rayon::prelude::*;

use kernel::Kernel;
use pack::{ask, pack};

use super::product::{Product, Side};
use super::scratch::{LINE_VALUES, with_left, with_scratch};
use crate::simd::{Level, level};
use crate::{Format, WeightRef};

/// Most of `k` in a block, in values.
const MAX_BLOCK_K: usize = 1024;
/// Rows of the left operand packed at a time.
const MAX_PACKED_ROWS: usize = 1024;
/// Rows that meet a panel while it is in the first cache.
const PANEL_ROWS: usize = 48;
/// Most pairs in a packed block of the right operand.
const MAX_BLOCK_PAIRS: usize = 75 << 10;
/// Tasks for each thread.
const TASKS_PER_THREAD: usize = 4;
/// Most sums of a tile, of any [`Kernel`].
const MAX_TILE_SUMS: usize = 12 * 32;

/// Whether this CPU has the instruction, twice as fast as f32's, and no narrower level was asked for. (Intel's have
/// it at half the rate: 105 GFLOP/s where f32 runs at 168.)
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return level() == Level::Avx512
        && is_x86_feature_detected!("avx512bf16")
        && std::arch::x86_64::__cpuid(0).ecx.to_le_bytes() == *b"cAMD";
    #[cfg(not(target_arch = "x86_64"))]
    return level() == Level::ArmBf16;
}

#[cfg(target_arch = "aarch64")]
pub(super) use arm::Native;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Native;

/// `C[m,n] = beta C + A[m,k] B[k,n]`, `A` and `C` row-major, `A` rounded to BF16.
///
/// # Safety
/// The CPU has the instruction of `K`; the pointers of `p` cover its shapes, and nobody else uses `C`; `w` is
/// BF16.
pub(super) unsafe fn run<K: Kernel>(p: &Product, w: &WeightRef, side: Side, threads: usize) {
    assert_eq!(w.format, Format::BF16);
    // Panels are made of whole units.
    let unit = 2 * K::PAIRS;
    let kc = p.k.div_ceil(p.k.div_ceil(MAX_BLOCK_K).max(1)).next_multiple_of(unit).max(unit);
    for i in (0..p.m).step_by(MAX_PACKED_ROWS) {
        let rows = i..(i + MAX_PACKED_ROWS).min(p.m);
        for l in (0..p.k).step_by(kc) {
            let k = l..(l + kc).min(p.k);
            let first = l == 0;
            with_left(|left| {
                let pairs = k.len().div_ceil(2).next_multiple_of(K::PAIRS);
                // An odd number of lines apart, so that rows do not drive each other out of the first cache.
                let stride = pairs.next_multiple_of(2 * LINE_VALUES) + LINE_VALUES;
                let left = left.get(rows.len() * stride);
                let fill = |(r, to): (usize, &mut [f32])| {
                    // SAFETY: row `rows.start + r` of A has p.k values.
                    let from = unsafe {
                        std::slice::from_raw_parts(p.a.add((rows.start + r) * p.ars + k.start), k.len())
                    };
                    // SAFETY: the caller has the instruction.
                    unsafe {
                        K::enter(
                            #[inline(always)]
                            || K::round_row(from, &mut to[..pairs]),
                        );
                    }
                };
                match threads {
                    1 => left.chunks_exact_mut(stride).enumerate().for_each(fill),
                    _ => left.par_chunks_exact_mut(stride).with_min_len(16).enumerate().for_each(fill),
                }
                let left = Left { data: left.as_ptr().cast(), stride, rows: rows.len() };
                // SAFETY: the caller's promises, for a part of the product.
                unsafe { tasks::<K>(p, &left, rows.start, k.clone(), w, side, first, threads) };
            });
        }
    }
}

/// Rows of pairs.
struct Left {
    data: *const u32,
    stride: usize,
    rows: usize,
}

// SAFETY: only read while it is shared.
unsafe impl Sync for Left {}

#[allow(clippy::too_many_arguments)]
unsafe fn tasks<K: Kernel>(
    p: &Product,
    left: &Left,
    first: usize,
    k: Range<usize>,
    w: &WeightRef,
    side: Side,
    begins: bool,
    threads: usize,
) {
    let wanted = if threads <= 1 { 1 } else { threads * TASKS_PER_THREAD };
    let width = p.n.div_ceil(wanted).next_multiple_of(K::NR);
    let work = |task: usize| {
        let cols = task * width..((task + 1) * width).min(p.n);
        // SAFETY: the caller's promises; tasks have columns of their own.
        with_scratch(|scratch| unsafe {
            let pairs = k.len().div_ceil(2).next_multiple_of(K::PAIRS);
            let nc = (MAX_BLOCK_PAIRS / pairs / K::NR * K::NR).max(K::NR);
            for j in cols.clone().step_by(nc) {
                let block = j..(j + nc).min(cols.end);
                let panels = scratch.panels.get(block.len().div_ceil(K::NR) * K::NR * pairs);
                K::enter(
                    #[inline(always)]
                    || pack::<K>(w, side, k.clone(), block.clone(), panels),
                );
                let next = match block.end < cols.end {
                    true => (k.clone(), block.end..(block.end + nc).min(cols.end)),
                    // The same columns come next, further along `k`.
                    false => (k.end..(k.end + k.len()).min(p.k), cols.start..(cols.start + nc).min(cols.end)),
                };
                let steps = left.rows.div_ceil(PANEL_ROWS) * block.len().div_ceil(K::NR);
                let mut step = 0;
                for i in (0..left.rows).step_by(PANEL_ROWS) {
                    let rows = i..(i + PANEL_ROWS).min(left.rows);
                    for (panel, j) in panels.chunks_exact(K::NR * pairs).zip(block.clone().step_by(K::NR)) {
                        let width = K::NR.min(block.end - j);
                        ask::<K>(w, side, &next.0, &next.1, step, steps);
                        step += 1;
                        let panel = panel.as_ptr().cast();
                        K::enter(
                            #[inline(always)]
                            || down::<K>(p, left, first, rows.clone(), pairs, panel, j, width, begins),
                        );
                    }
                }
            }
        });
    };
    let count = p.n.div_ceil(width);
    match count {
        1 => work(0),
        _ => (0..count).into_par_iter().with_max_len(1).for_each(work),
    }
}

/// Some rows of A times one panel.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn down<K: Kernel>(
    p: &Product,
    left: &Left,
    first: usize,
    rows: Range<usize>,
    pairs: usize,
    panel: *const u32,
    col: usize,
    width: usize,
    begins: bool,
) {
    let mut i = rows.start;
    while i < rows.end {
        // Heights are evened out, so that no tile is left with a single row.
        let height = (rows.end - i).div_ceil((rows.end - i).div_ceil(K::MR));
        // SAFETY: all offsets lie inside the shapes the caller of `run` vouches for.
        unsafe {
            let a = left.data.add(i * left.stride);
            let c = p.c.add((first + i) * p.crs + col);
            let (old, ors, beta) = p.old(begins, c, first + i, col);
            if width == K::NR {
                tile::<K>(height, pairs, a, left.stride, panel, c, p.crs, old, ors, beta);
            } else {
                let mut sums = [0.0; MAX_TILE_SUMS];
                let to = sums.as_mut_ptr();
                tile::<K>(height, pairs, a, left.stride, panel, to, K::NR, to, K::NR, 0.0);
                for (r, sums) in sums.chunks_exact(K::NR).enumerate().take(height) {
                    for (s, &sum) in sums[..width].iter().enumerate() {
                        let at = c.add(r * p.crs + s);
                        *at = if beta == 0.0 { sum } else { beta * *old.add(r * ors + s) + sum };
                    }
                }
            }
        }
        i += height;
    }
}

/// [`Kernel::tile`] at a height known at run time.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn tile<K: Kernel>(
    rows: usize,
    pairs: usize,
    a: *const u32,
    stride: usize,
    b: *const u32,
    c: *mut f32,
    crs: usize,
    old: *const f32,
    ors: usize,
    beta: f32,
) {
    macro_rules! heights {
        ($($r:literal)*) => {
            match rows {
                // SAFETY: the caller's promises, passed on.
                $($r if $r <= K::MR => unsafe { K::tile::<$r>(pairs, a, stride, b, c, crs, old, ors, beta) },)*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12)
}

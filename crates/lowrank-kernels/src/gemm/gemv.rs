//! `y = x W^T` and `dx = dy W` for so few tokens that packing the weight would cost more than the product:
//! decoding. Forward, each row of the weight is expanded in registers, multiplied at once with up to four
//! tokens, and forgotten. Backward (which is forward for a weight stored transposed), each row is scaled and
//! added to the result.

use std::ops::Range;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::quant::avx2;
use crate::quant::expand::expand;
#[cfg(target_arch = "x86_64")]
use crate::quant::nf4;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx2;
use crate::simd::{Level, Portable, Vector};
use crate::{Format, WeightRef};

/// Most tokens this way is taken for.
pub(super) const MAX_TOKENS: usize = 6;
/// Most tokens a row is multiplied with at a time.
const TOKENS_PER_PASS: usize = 4;

/// `y[N,O] = beta y + x[N,K] W[O,K]^T` on the threads of the current pool.
///
/// # Safety
/// `level` is available; `x` has `n * K` values and `y` has `n * O`.
pub(super) unsafe fn linear(level: Level, y: &mut [f32], x: &[f32], w: &WeightRef, n: usize, beta: f32) {
    let out = Out { y: y.as_mut_ptr(), cols: w.rows, beta };
    let threads = rayon::current_num_threads();
    // About as many tasks as evens out the threads, but none too small to be worth handing over.
    let small = (1 << 14) / (n * w.cols).max(1);
    let rows = w.rows.div_ceil(4 * threads).max(small).max(1);
    let task = |task: usize| {
        for row in task * rows..((task + 1) * rows).min(w.rows) {
            for first in (0..n).step_by(TOKENS_PER_PASS) {
                let tokens = TOKENS_PER_PASS.min(n - first);
                // SAFETY: the level is there, and the tokens lie inside x.
                let dots = unsafe { row_dots(level, w, row, x.as_ptr().add(first * w.cols), tokens) };
                for (t, &dot) in dots[..tokens].iter().enumerate() {
                    // SAFETY: inside y; no other task writes this column.
                    unsafe { out.put(first + t, row, dot) };
                }
            }
        }
    };
    let tasks = w.rows.div_ceil(rows);
    match threads == 1 || tasks == 1 {
        true => (0..tasks).for_each(task),
        false => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// Most columns of a piece of the weight: rows and results then stay in the first cache.
const MAX_PIECE_COLUMNS: usize = 512;
/// Rows added to the results in one go.
const ROWS_PER_PASS: usize = 4;

/// `dx[N,K] = beta dx + dy[N,O] W[O,K]` on the threads of the current pool. `n` is at most [`MAX_TOKENS`].
///
/// # Safety
/// The CPU has the level `A`; `dy` has `n * O` values and `dx` has `n * K`.
pub(super) unsafe fn backward<V: Vector>(dx: &mut [f32], dy: &[f32], w: &WeightRef, n: usize, beta: f32) {
    let threads = rayon::current_num_threads();
    let small = (1 << 14) / (n * w.rows).max(1);
    let step = w.format.block_len().max(64);
    let width = w.cols.div_ceil(4 * threads).max(small).clamp(1, MAX_PIECE_COLUMNS).next_multiple_of(step);
    let out = Out { y: dx.as_mut_ptr(), cols: w.cols, beta };
    let out = &out;
    let task = |task: usize| {
        let cols = task * width..((task + 1) * width).min(w.cols);
        // SAFETY: the CPU has the level; tasks have columns of their own.
        unsafe {
            V::enter(
                #[inline(always)]
                || add_rows::<V>(out, dy, w, n, cols),
            )
        };
    };
    let tasks = w.cols.div_ceil(width);
    match threads == 1 || tasks == 1 {
        true => (0..tasks).for_each(task),
        false => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// The columns `cols` (at most [`MAX_PIECE_COLUMNS`]) of the result.
#[inline(always)]
unsafe fn add_rows<V: Vector>(out: &Out, dy: &[f32], w: &WeightRef, n: usize, cols: Range<usize>) {
    let len = cols.len();
    let whole = len / V::LANES * V::LANES;
    let mut rows = [[0.0f32; MAX_PIECE_COLUMNS]; ROWS_PER_PASS];
    // SAFETY: the columns lie in every row of W and of the result, which is this task's alone.
    unsafe {
        let to = |t: usize| out.y.add(t * out.cols + cols.start);
        for t in 0..n {
            let to = std::slice::from_raw_parts_mut(to(t), len);
            match out.beta {
                0.0 => to.fill(0.0),
                beta => to.iter_mut().for_each(|x| *x *= beta),
            }
        }
        for first in (0..w.rows).step_by(ROWS_PER_PASS) {
            let deep = ROWS_PER_PASS.min(w.rows - first);
            let mut from = [rows[0].as_ptr(); ROWS_PER_PASS];
            for (r, row) in rows.iter_mut().enumerate().take(deep) {
                from[r] = match w.format {
                    Format::F32 => w.row(first + r)[4 * cols.start..].as_ptr().cast(),
                    _ => {
                        expand(V::LEVEL, w, first + r, cols.clone(), &mut row[..len]);
                        row.as_ptr()
                    }
                };
                // Pieces of rows are too short and too far apart for the CPU to foresee the next.
                if first + ROWS_PER_PASS + r < w.rows {
                    let (block, size) = (w.format.block_len(), w.format.block_bytes());
                    let next =
                        &w.row(first + ROWS_PER_PASS + r)[cols.start / block * size..cols.end / block * size];
                    next.iter().step_by(64).for_each(|byte| V::prefetch(std::ptr::from_ref(byte).cast()));
                }
            }
            for t in 0..n {
                let (to, by) = (to(t), &dy[t * w.rows + first..][..deep]);
                if let &[a, b, c, d] = by {
                    let scales = [a, b, c, d].map(
                        #[inline(always)]
                        |x| V::splat(x),
                    );
                    for at in (0..whole).step_by(V::LANES) {
                        let mut sum = V::load_ptr(to.add(at));
                        for (scale, from) in scales.iter().zip(&from) {
                            sum = scale.mul_add(V::load_ptr(from.add(at)), sum);
                        }
                        sum.store_ptr(to.add(at));
                    }
                } else {
                    for (scale, from) in by.iter().zip(&from) {
                        for at in (0..whole).step_by(V::LANES) {
                            let sum =
                                V::splat(*scale).mul_add(V::load_ptr(from.add(at)), V::load_ptr(to.add(at)));
                            sum.store_ptr(to.add(at));
                        }
                    }
                }
                for at in whole..len {
                    for (scale, from) in by.iter().zip(&from) {
                        *to.add(at) += scale * from.add(at).read_unaligned();
                    }
                }
            }
        }
    }
}

struct Out {
    y: *mut f32,
    cols: usize,
    beta: f32,
}

// SAFETY: tasks write disjoint columns.
unsafe impl Sync for Out {}

impl Out {
    #[inline(always)]
    unsafe fn put(&self, row: usize, col: usize, sum: f32) {
        // SAFETY: inside y, says the caller.
        let at = unsafe { &mut *self.y.add(row * self.cols + col) };
        *at = if self.beta == 0.0 { sum } else { self.beta * *at + sum };
    }
}

/// The dot products of row `row` of the weight with the first `tokens` (at most four) rows of `x`.
unsafe fn row_dots(
    level: Level,
    w: &WeightRef,
    row: usize,
    x: *const f32,
    tokens: usize,
) -> [f32; TOKENS_PER_PASS] {
    macro_rules! fixed {
        ($dots:ident) => {
            match tokens {
                1 => spread($dots::<1>(w, row, x)),
                2 => spread($dots::<2>(w, row, x)),
                3 => spread($dots::<3>(w, row, x)),
                _ => $dots::<4>(w, row, x),
            }
        };
    }
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 | Level::Amx => fixed!(dots_avx2),
            _ => fixed!(dots_portable),
        }
    }
}

fn spread<const T: usize>(dots: [f32; T]) -> [f32; TOKENS_PER_PASS] {
    let mut all = [0.0; TOKENS_PER_PASS];
    all[..T].copy_from_slice(&dots);
    all
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_avx2<const T: usize>(w: &WeightRef, row: usize, x: *const f32) -> [f32; T] {
    let k = w.cols;
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match w.format {
            Format::NF4 => nf4::avx2::dots::<T>(&nf4::Row::of(w, row), k, x, k),
            format if avx2::is_wide(format) => {
                avx2::with_wide!(format, B => avx2::dots::<B, T>(w.row(row), k, x, k))
            }
            _ => dots_expanded::<Avx2, T>(w, row, x),
        }
    }
}

unsafe fn dots_portable<const T: usize>(w: &WeightRef, row: usize, x: *const f32) -> [f32; T] {
    // SAFETY: the caller's promises, passed on.
    unsafe { dots_expanded::<Portable<4>, T>(w, row, x) }
}

/// The same by way of memory, a piece of the row at a time.
///
/// # Safety
/// Inlined into a function compiled for the level of `V`, on a CPU that has it; as [`row_dots`].
#[inline(always)]
unsafe fn dots_expanded<V: Vector, const T: usize>(w: &WeightRef, row: usize, x: *const f32) -> [f32; T] {
    let k = w.cols;
    const PIECE_VALUES: usize = 256;
    let mut piece = [0.0; PIECE_VALUES];
    let mut dots = [0.0; T];
    // SAFETY: every read lies inside the piece or the tokens.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; T];
        for at in (0..k).step_by(PIECE_VALUES) {
            let len = PIECE_VALUES.min(k - at);
            expand(V::LEVEL, w, row, at..at + len, &mut piece[..len]);
            let whole = len / V::LANES * V::LANES;
            for l in (0..whole).step_by(V::LANES) {
                let v = V::load_ptr(piece.as_ptr().add(l));
                for (t, sums) in sums.iter_mut().enumerate() {
                    let sum = &mut sums[l / V::LANES % 2];
                    *sum = v.mul_add(V::load_ptr(x.add(t * k + at + l)), *sum);
                }
            }
            for (l, number) in piece[..len].iter().enumerate().skip(whole) {
                for (t, dot) in dots.iter_mut().enumerate() {
                    *dot += number * *x.add(t * k + at + l);
                }
            }
        }
        for (dot, sums) in dots.iter_mut().zip(sums) {
            *dot += sums[0].sum() + sums[1].sum();
        }
    }
    dots
}

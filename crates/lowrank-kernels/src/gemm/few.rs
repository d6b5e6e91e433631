//! `y = x W^T` for so few tokens that packing the weight would cost more than the product: each row of
//! the weight is expanded in registers, multiplied at once with up to four tokens, and forgotten.

use rayon::prelude::*;

use crate::quant::{decode, nf4};
use crate::simd::{Arch, Level, Portable};
use crate::{Format, WeightRef};

/// Most tokens this way is taken for.
pub(super) const MOST: usize = 6;
/// Most tokens a row is multiplied with at a time.
const AT_ONCE: usize = 4;

/// `y[N,O] = beta y + x[N,K] W[O,K]^T` on the threads of the current pool.
///
/// # Safety
/// `level` is available; `x` has `n * K` numbers and `y` has `n * O`.
pub(super) unsafe fn linear(level: Level, y: &mut [f32], x: &[f32], w: &WeightRef, n: usize, beta: f32) {
    let out = Out { y: y.as_mut_ptr(), cols: w.rows, beta };
    let threads = rayon::current_num_threads();
    // About as many tasks as evens out the threads, but none too small to be worth handing over.
    let small = (1 << 14) / (n * w.cols).max(1);
    let rows = w.rows.div_ceil(4 * threads).max(small).max(1);
    let task = |task: usize| {
        for row in task * rows..((task + 1) * rows).min(w.rows) {
            for first in (0..n).step_by(AT_ONCE) {
                let tokens = AT_ONCE.min(n - first);
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
unsafe fn row_dots(level: Level, w: &WeightRef, row: usize, x: *const f32, tokens: usize) -> [f32; AT_ONCE] {
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
            Level::Avx2 | Level::Avx512 => fixed!(dots_avx2),
            _ => fixed!(dots_portable),
        }
    }
}

fn spread<const T: usize>(dots: [f32; T]) -> [f32; AT_ONCE] {
    let mut all = [0.0; AT_ONCE];
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
            _ => decode::with_block!(w.format, B => crate::quant::avx2::dots::<B, T>(w.row(row), k, x, k)),
        }
    }
}

/// The same by way of memory, a piece of the row at a time.
unsafe fn dots_portable<const T: usize>(w: &WeightRef, row: usize, x: *const f32) -> [f32; T] {
    let k = w.cols;
    const PIECE: usize = 256;
    const LANES: usize = Portable::LANES;
    let mut piece = [0.0; PIECE];
    let mut dots = [0.0; T];
    // SAFETY: every read lies inside the piece or the tokens.
    unsafe {
        let mut sums = [[Portable::splat(0.0); 2]; T];
        for at in (0..k).step_by(PIECE) {
            let len = PIECE.min(k - at);
            decode::expand(Level::Portable, w, row, at..at + len, &mut piece[..len]);
            let whole = len / LANES * LANES;
            for l in (0..whole).step_by(LANES) {
                let v = Portable::load(piece.as_ptr().add(l));
                for (t, sums) in sums.iter_mut().enumerate() {
                    let sum = &mut sums[l / LANES % 2];
                    *sum = Portable::fma(v, Portable::load(x.add(t * k + at + l)), *sum);
                }
            }
            for (l, number) in piece[..len].iter().enumerate().skip(whole) {
                for (t, dot) in dots.iter_mut().enumerate() {
                    *dot += number * *x.add(t * k + at + l);
                }
            }
        }
        for (dot, sums) in dots.iter_mut().zip(sums) {
            *dot += Portable::sum(sums[0]) + Portable::sum(sums[1]);
        }
    }
    dots
}

//! Products of BF16 weights with activations rounded to BF16, on CPUs that multiply several of them and add in
//! f32: pairs (AVX512-BF16's `vdpbf16ps`, twice the rate of f32) or two rows of four by two columns of four (ARM's
//! `bfmmla`).
//!
//! Numbers are packed in units along `k`, of one pair or two: the left operand row by row, the right one in panels
//! of a tile's columns. A tile of sums (12 x 32, or 8 x 12) stays in registers. The same code runs on
//! plain emulations of the instructions in the tests, on any machine.

use std::ops::Range;

use rayon::prelude::*;

use super::driver::Product;
use super::pack::transpose_units;
use super::scratch::{LINE, with_left, with_scratch};
use crate::halves::round;
use crate::simd::Arch;
use crate::{Format, WeightRef};

/// Most of `k` in a block, in numbers.
const KC: usize = 1024;
/// Rows of the left operand packed at a time.
const ROWS: usize = 1024;
/// Rows that meet a panel while it is in the first cache.
const DOWN: usize = 48;
/// Most pairs in a packed block of the right operand.
const BLOCK: usize = 75 << 10;
/// Rows of the weight asked for ahead of their use.
const AHEAD: usize = 16;
/// Tasks for each thread.
const TASKS: usize = 4;
/// Most sums of a tile, of any [`Kernel`].
const MOST: usize = 12 * 32;

/// How one CPU multiplies a tile.
pub(super) trait Kernel: Send + Sync + 'static {
    /// What packs the operands.
    type Pack: Arch;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Pairs along `k` that lie together for each row and each column.
    const PAIRS: usize;

    /// # Safety
    /// The CPU has the instruction.
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T;
    /// A row of A in pairs, with zeros where there is no number.
    ///
    /// # Safety
    /// Runs inside [`Kernel::enter`].
    #[inline(always)]
    unsafe fn round_row(from: &[f32], to: &mut [f32]) {
        round_row(from, to);
    }
    /// `C = beta old + A B` for `R` (at most `MR`) rows of `pairs` pairs, `stride` apart, and a panel.
    ///
    /// # Safety
    /// Runs inside [`Kernel::enter`]; `pairs` is a multiple of `PAIRS`; the pointers cover the shapes.
    #[allow(clippy::too_many_arguments)]
    unsafe fn tile<const R: usize>(
        pairs: usize,
        a: *const u32,
        stride: usize,
        b: *const u32,
        c: *mut f32,
        crs: usize,
        old: *const f32,
        ors: usize,
        beta: f32,
    );
}

/// An instruction that for vectors of sixteen pairs `a` and `b` adds `a0 b0 + a1 b1` in each lane.
pub(super) trait Dot: Send + Sync + 'static {
    /// Sixteen sums.
    type Sum: Copy;
    /// Sixteen pairs.
    type Pairs: Copy;
    /// What packs the operands.
    type Pack: Arch;

    /// # Safety
    /// The CPU has the instruction.
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T;
    /// # Safety
    /// As [`Dot::enter`].
    unsafe fn zero() -> Self::Sum;
    /// # Safety
    /// As [`Dot::enter`]; `p` can be read for sixteen pairs at any alignment.
    unsafe fn load(p: *const u32) -> Self::Pairs;
    /// # Safety
    /// As [`Dot::enter`].
    unsafe fn splat(pair: u32) -> Self::Pairs;
    /// # Safety
    /// As [`Dot::enter`].
    unsafe fn dot(sum: Self::Sum, a: Self::Pairs, b: Self::Pairs) -> Self::Sum;
    /// As [`Kernel::round_row`].
    ///
    /// # Safety
    /// As [`Dot::enter`].
    #[inline(always)]
    unsafe fn round_row(from: &[f32], to: &mut [f32]) {
        round_row(from, to);
    }
    /// `to = beta old + sum`; with `beta` 0, `old` is not read.
    ///
    /// # Safety
    /// As [`Dot::enter`]; `to` can be written for sixteen numbers.
    unsafe fn store(to: *mut f32, sum: Self::Sum, old: *const f32, beta: f32);
}

/// Whether this CPU has the instruction, twice as fast as f32's, and no narrower level was asked for. (Intel's have
/// it at half the rate: 105 GFLOP/s where f32 runs at 168.)
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::simd::level() == crate::simd::Level::Avx512
        && is_x86_feature_detected!("avx512bf16")
        && std::arch::x86_64::__cpuid(0).ecx.to_le_bytes() == *b"cAMD";
    #[cfg(not(target_arch = "x86_64"))]
    return crate::simd::level() == crate::simd::Level::ArmBf16;
}

#[cfg(target_arch = "aarch64")]
pub(super) use arm::Native;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Native;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::Kernel;
    use crate::simd::Portable;

    /// FEAT_BF16's `bfmmla`: 2 x 4 numbers times 4 x 2.
    pub(crate) struct Native;

    /// Columns of the right operand in pairs.
    const COLS: usize = 6;

    /// `sum += a b^T`, for 2 x 2 sums by rows and twice two rows of four numbers. (Assembly until the intrinsic is
    /// stable.)
    #[inline(always)]
    unsafe fn mmla(mut sum: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
        // SAFETY: the caller vouches for the CPU; registers alone are touched.
        unsafe {
            asm!(
                ".arch_extension bf16",
                "bfmmla {sum:v}.4s, {a:v}.8h, {b:v}.8h",
                sum = inout(vreg) sum,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }

    impl Kernel for Native {
        type Pack = Portable;
        // 4 x 6 of the 32 registers hold sums of 2 x 2, six the right operand, one the left.
        const MR: usize = 8;
        const NR: usize = 2 * COLS;
        const PAIRS: usize = 2;

        #[inline(always)]
        unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
            f()
        }
        unsafe fn tile<const R: usize>(
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
            // SAFETY: the caller vouches for the CPU and for every pointer.
            unsafe {
                let mut sums = [[vdupq_n_f32(0.0); COLS]; 4];
                for l in 0..pairs / 2 {
                    let right: [uint32x4_t; COLS] =
                        std::array::from_fn(|j| vld1q_u32(b.add((l * COLS + j) * 4)));
                    // Spelt out, so that the sums stay in registers.
                    macro_rules! rows {
                        ($($i:literal)*) => {
                            $(if 2 * $i < R {
                                let first = vld1_u32(a.add(2 * $i * stride + 2 * l));
                                let second = match 2 * $i + 1 < R {
                                    true => vld1_u32(a.add((2 * $i + 1) * stride + 2 * l)),
                                    false => vdup_n_u32(0),
                                };
                                let left = vcombine_u32(first, second);
                                sums[$i][0] = mmla(sums[$i][0], left, right[0]);
                                sums[$i][1] = mmla(sums[$i][1], left, right[1]);
                                sums[$i][2] = mmla(sums[$i][2], left, right[2]);
                                sums[$i][3] = mmla(sums[$i][3], left, right[3]);
                                sums[$i][4] = mmla(sums[$i][4], left, right[4]);
                                sums[$i][5] = mmla(sums[$i][5], left, right[5]);
                            })*
                        };
                    }
                    rows!(0 1 2 3);
                }
                for i in 0..R {
                    for (j, pair) in sums[i / 2].as_chunks::<2>().0.iter().enumerate() {
                        let sum = match i % 2 {
                            0 => vcombine_f32(vget_low_f32(pair[0]), vget_low_f32(pair[1])),
                            _ => vcombine_f32(vget_high_f32(pair[0]), vget_high_f32(pair[1])),
                        };
                        let old = old.wrapping_add(i * ors + 4 * j);
                        let sum = if beta == 0.0 { sum } else { vfmaq_n_f32(sum, vld1q_f32(old), beta) };
                        vst1q_f32(c.add(i * crs + 4 * j), sum);
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Dot;
    use crate::simd::Avx512;

    /// AVX512-BF16.
    pub(crate) struct Native;

    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn enter_native<T>(f: impl FnOnce() -> T) -> T {
        f()
    }

    #[inline(always)]
    unsafe fn pairs(bits: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits of anything.
        unsafe { std::mem::transmute(bits) }
    }

    impl Dot for Native {
        type Sum = __m512;
        type Pairs = __m512bh;
        type Pack = Avx512;

        #[inline(always)]
        unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
            // SAFETY: the caller vouches for the CPU.
            unsafe { enter_native(f) }
        }
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(p: *const u32) -> __m512bh {
            // SAFETY: the caller vouches for the CPU and the pointer.
            unsafe { pairs(_mm512_loadu_si512(p.cast())) }
        }
        #[inline(always)]
        unsafe fn splat(pair: u32) -> __m512bh {
            // SAFETY: the caller vouches for the CPU.
            unsafe { pairs(_mm512_set1_epi32(pair as i32)) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, a: __m512bh, b: __m512bh) -> __m512 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm512_dpbf16_ps(sum, a, b) }
        }
        /// By the CPU's own conversion, for which numbers below 2^-126 are zeros.
        #[inline(always)]
        unsafe fn round_row(from: &[f32], to: &mut [f32]) {
            let (runs, rest) = from.as_chunks::<32>();
            let (whole, last) = to.split_at_mut(16 * runs.len());
            for (to, from) in whole.as_chunks_mut::<16>().0.iter_mut().zip(runs) {
                let p = from.as_ptr();
                // SAFETY: the caller vouches for the CPU; a run is read and the words of one are written.
                unsafe {
                    let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(p.add(16)), _mm512_loadu_ps(p));
                    _mm512_storeu_ps(to.as_mut_ptr(), std::mem::transmute::<__m512bh, __m512>(pairs));
                }
            }
            super::round_row(rest, last);
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, sum: __m512, old: *const f32, beta: f32) {
            // SAFETY: the caller vouches for the CPU and the pointer.
            unsafe {
                let sum = match beta {
                    0.0 => sum,
                    beta => _mm512_fmadd_ps(_mm512_set1_ps(beta), _mm512_loadu_ps(old), sum),
                };
                _mm512_storeu_ps(to, sum);
            }
        }
    }
}

/// How the weight is the right operand `B[k, n]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// `W^T`: `B(l, j) = W[j, l]`.
    Forward,
    /// `W`: `B(l, j) = W[l, j]`.
    Backward,
}

/// `C[m,n] = beta C + A[m,k] B[k,n]`, `A` and `C` row-major, `A` rounded to BF16.
///
/// # Safety
/// The CPU has the instruction of `K`; the pointers of `p` cover its shapes, and nobody else uses `C`; `w` is
/// BF16.
pub(super) unsafe fn run<K: Kernel>(p: &Product, w: &WeightRef, side: Side, threads: usize) {
    assert_eq!(w.format, Format::BF16);
    // Panels are made of whole units.
    let unit = 2 * K::PAIRS;
    let kc = p.k.div_ceil(p.k.div_ceil(KC).max(1)).next_multiple_of(unit).max(unit);
    for i in (0..p.m).step_by(ROWS) {
        let rows = i..(i + ROWS).min(p.m);
        for l in (0..p.k).step_by(kc) {
            let k = l..(l + kc).min(p.k);
            let first = l == 0;
            with_left(|left| {
                let pairs = k.len().div_ceil(2).next_multiple_of(K::PAIRS);
                // An odd number of lines apart, so that rows do not drive each other out of the first cache.
                let stride = pairs.next_multiple_of(2 * LINE) + LINE;
                let left = left.get(rows.len() * stride);
                let fill = |(r, to): (usize, &mut [f32])| {
                    // SAFETY: row `rows.start + r` of A has p.k numbers.
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

/// A row of A in pairs, with zeros where there is no number.
#[inline(always)]
fn round_row(from: &[f32], to: &mut [f32]) {
    let (whole, last) = from.as_chunks::<2>();
    for (to, [a, b]) in to.iter_mut().zip(whole) {
        *to = f32::from_bits(round(*a) | round(*b) << 16);
    }
    if let Some(a) = last.first() {
        to[whole.len()] = f32::from_bits(round(*a));
    }
    to[from.len().div_ceil(2)..].fill(0.0);
}

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
    let wanted = if threads <= 1 { 1 } else { threads * TASKS };
    let width = p.n.div_ceil(wanted).next_multiple_of(K::NR);
    let work = |task: usize| {
        let cols = task * width..((task + 1) * width).min(p.n);
        // SAFETY: the caller's promises; tasks have columns of their own.
        with_scratch(|scratch| unsafe {
            let pairs = k.len().div_ceil(2).next_multiple_of(K::PAIRS);
            let nc = (BLOCK / pairs / K::NR * K::NR).max(K::NR);
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
                let steps = left.rows.div_ceil(DOWN) * block.len().div_ceil(K::NR);
                let mut step = 0;
                for i in (0..left.rows).step_by(DOWN) {
                    let rows = i..(i + DOWN).min(left.rows);
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

/// [`WeightRef::row`] of what is known to be BF16, for inner loops.
#[inline(always)]
fn row_of<'a>(w: &WeightRef<'a>, row: usize) -> &'a [u8] {
    &w.bytes[w.stored_row(row) * 2 * w.cols..][..2 * w.cols]
}

/// Asks for share `step` of `steps` of what the next block packs: its rows are too short for the CPU to see a stream.
#[inline(always)]
fn ask<K: Kernel>(
    w: &WeightRef,
    side: Side,
    k: &Range<usize>,
    next: &Range<usize>,
    step: usize,
    steps: usize,
) {
    if k.is_empty() || next.is_empty() {
        return;
    }
    let (rows, cols) = if side == Side::Forward { (next, k) } else { (k, next) };
    let share = |step: usize| rows.start + step * rows.len() / steps;
    (share(step)..share(step + 1)).for_each(|row| ask_row::<K>(w, row, cols));
}

/// Asks for the part `cols` of a row.
#[inline(always)]
fn ask_row<K: Kernel>(w: &WeightRef, row: usize, cols: &Range<usize>) {
    let bytes = &row_of(w, row)[2 * cols.start..2 * cols.end];
    let (line, last) = (bytes.as_ptr().cast::<f32>(), bytes.len().div_ceil(64));
    (0..=last).for_each(|at| K::Pack::prefetch(line.wrapping_add(16 * at)));
}

/// Packs `B[k, n]` in panels: for each unit of `k`, a tile's columns.
#[inline(always)]
unsafe fn pack<K: Kernel>(w: &WeightRef, side: Side, k: Range<usize>, n: Range<usize>, panels: &mut [f32]) {
    let pairs = k.len().div_ceil(2).next_multiple_of(K::PAIRS);
    let columns = |from: usize| from.min(n.end)..(from + K::NR).min(n.end);
    match side {
        Side::Forward => {
            ask::<K>(w, side, &k, &columns(n.start), 0, 1);
            for (panel, from) in panels.chunks_exact_mut(K::NR * pairs).zip(n.clone().step_by(K::NR)) {
                ask::<K>(w, side, &k, &columns(from + K::NR), 0, 1);
                let (width, whole) = (columns(from).len(), k.len() / 2);
                let row = |j: usize| &row_of(w, from + j)[2 * k.start..2 * k.end];
                // What is left for single steps.
                let done = if K::PAIRS == 1 { whole } else { 0 };
                // SAFETY: each row holds `whole` pairs.
                unsafe {
                    let row = |j: usize| row(j).as_ptr().cast();
                    transpose_units::<K::Pack>(row, done, width, K::NR, &mut panel[..done * K::NR]);
                }
                // Nothing, most times.
                for j in 0..if done < pairs { K::NR } else { 0 } {
                    let numbers = if j < width { row(j).as_chunks().0 } else { &[] };
                    let number = |l: usize| numbers.get(l).map_or(0, |bytes| half(*bytes));
                    for pair in done..pairs {
                        let at = (pair / K::PAIRS * K::NR + j) * K::PAIRS + pair % K::PAIRS;
                        panel[at] = f32::from_bits(number(2 * pair) | number(2 * pair + 1) << 16);
                    }
                }
            }
        }
        Side::Backward => {
            for pair in 0..pairs {
                let l = k.start + 2 * pair;
                (l + AHEAD..l + AHEAD + 2).filter(|l| *l < k.end).for_each(|l| ask_row::<K>(w, l, &n));
                let row = |l: usize| row_of(w, l)[2 * n.start..2 * n.end].as_chunks::<2>().0;
                let low = row(l.min(k.end - 1));
                // Beyond the last row stand zeros.
                let high = if l + 1 < k.end { row(l + 1) } else { low };
                let mask = if l + 1 < k.end { !0 } else { u32::from(l < k.end) * 0xffff };
                let units = panels.chunks_exact_mut(K::NR * K::PAIRS);
                let units = units.skip(pair / K::PAIRS).step_by(pairs / K::PAIRS);
                for (to, (low, high)) in units.zip(low.chunks(K::NR).zip(high.chunks(K::NR))) {
                    let (to, rest) = to.split_at_mut(low.len() * K::PAIRS);
                    for (to, (low, high)) in to.chunks_exact_mut(K::PAIRS).zip(low.iter().zip(high)) {
                        to[pair % K::PAIRS] = f32::from_bits((half(*low) | half(*high) << 16) & mask);
                    }
                    rest.fill(0.0);
                }
            }
        }
    }
}

#[inline(always)]
fn half(bytes: [u8; 2]) -> u32 {
    u32::from(u16::from_le_bytes(bytes))
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
            let (old, ors, beta) = p.old(begins, c, col);
            if width == K::NR {
                tile::<K>(height, pairs, a, left.stride, panel, c, p.crs, old, ors, beta);
            } else {
                let mut sums = [0.0; MOST];
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

impl<D: Dot> Kernel for D {
    type Pack = D::Pack;
    const MR: usize = 12;
    const NR: usize = 32;
    const PAIRS: usize = 1;

    #[inline(always)]
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        // SAFETY: the caller's promise.
        unsafe { <D as Dot>::enter(f) }
    }
    #[inline(always)]
    unsafe fn round_row(from: &[f32], to: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { <D as Dot>::round_row(from, to) };
    }
    #[inline(always)]
    unsafe fn tile<const R: usize>(
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
        // SAFETY: the caller vouches for the CPU and for every pointer.
        unsafe {
            let mut sums = [[D::zero(); 2]; R];
            for l in 0..pairs {
                let right = [D::load(b.add(l * 32)), D::load(b.add(l * 32 + 16))];
                // Spelt out, so that the sums stay in registers.
                macro_rules! rows {
                    ($($i:literal)*) => {
                        $(if $i < R {
                            let left = D::splat(*a.add($i * stride + l));
                            sums[$i][0] = D::dot(sums[$i][0], left, right[0]);
                            sums[$i][1] = D::dot(sums[$i][1], left, right[1]);
                        })*
                    };
                }
                rows!(0 1 2 3 4 5 6 7 8 9 10 11);
            }
            for (i, row) in sums.iter().enumerate() {
                D::store(c.add(i * crs), row[0], old.wrapping_add(i * ors), beta);
                D::store(c.add(i * crs + 16), row[1], old.wrapping_add(i * ors + 16), beta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowOrder;
    use crate::simd::Portable;

    /// The instruction in plain Rust, by its description: both products of a lane are added in f32.
    struct Emulated;

    impl Dot for Emulated {
        type Sum = [f32; 16];
        type Pairs = [u32; 16];
        type Pack = Portable;

        unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
            f()
        }
        unsafe fn zero() -> [f32; 16] {
            [0.0; 16]
        }
        unsafe fn load(p: *const u32) -> [u32; 16] {
            // SAFETY: the caller vouches for the pointer.
            unsafe { p.cast::<[u32; 16]>().read_unaligned() }
        }
        unsafe fn splat(pair: u32) -> [u32; 16] {
            [pair; 16]
        }
        unsafe fn dot(sum: [f32; 16], a: [u32; 16], b: [u32; 16]) -> [f32; 16] {
            let low = |x: u32| f32::from_bits(x << 16);
            let high = |x: u32| f32::from_bits(x & 0xffff_0000);
            std::array::from_fn(|i| sum[i] + high(a[i]) * high(b[i]) + low(a[i]) * low(b[i]))
        }
        unsafe fn store(to: *mut f32, sum: [f32; 16], old: *const f32, beta: f32) {
            for (i, sum) in sum.into_iter().enumerate() {
                // SAFETY: the caller vouches for the pointer.
                unsafe { *to.add(i) = if beta == 0.0 { sum } else { beta * *old.add(i) + sum } };
            }
        }
    }

    /// ARM's tile in plain Rust, to test units of two pairs on any machine.
    struct EmulatedUnits;

    impl Kernel for EmulatedUnits {
        type Pack = Portable;
        const MR: usize = 8;
        const NR: usize = 12;
        const PAIRS: usize = 2;

        unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
            f()
        }
        unsafe fn tile<const R: usize>(
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
            for (i, j) in (0..R).flat_map(|i| (0..Self::NR).map(move |j| (i, j))) {
                // SAFETY: the caller vouches for the pointers.
                unsafe {
                    let sum = (0..pairs).fold([0.0; 16], |sum, l| {
                        let right = *b.add((l / 2 * Self::NR + j) * 2 + l % 2);
                        Emulated::dot(sum, [*a.add(i * stride + l); 16], [right; 16])
                    });
                    let old = old.wrapping_add(i * ors + j);
                    *c.add(i * crs + j) = if beta == 0.0 { sum[0] } else { beta * *old + sum[0] };
                }
            }
        }
    }

    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        let mut numbers = vec![0.0; len];
        crate::normal(&mut numbers, 0.0, 1.0, seed, 0);
        numbers
    }

    fn rounded(x: f32) -> f64 {
        f64::from(half::bf16::from_f32(x).to_f32())
    }

    /// Both products of `W: [o,k]` against sums in f64 over the rounded numbers.
    fn case<K: Kernel>(n: usize, o: usize, k: usize, order: RowOrder, beta: f32, threads: usize) {
        let bytes: Vec<u8> =
            numbers(o * k, 1).iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
        let w = WeightRef { format: Format::BF16, rows: o, cols: k, order, bytes: &bytes };
        let mut dense = vec![0.0; o * k];
        dense.chunks_exact_mut(k).enumerate().for_each(|(row, out)| w.expand(row, 0..k, out));
        for side in [Side::Forward, Side::Backward] {
            let (cols, depth) = if side == Side::Forward { (o, k) } else { (k, o) };
            let a = numbers(n * depth, 2);
            let before = if beta == 0.0 { vec![f32::NAN; n * cols] } else { numbers(n * cols, 3) };
            let mut c = before.clone();
            // SAFETY: the operands have their shapes, and the caller has the instruction.
            unsafe {
                run::<K>(&super::super::row_major(n, cols, depth, &a, &mut c, beta), &w, side, threads)
            };
            for i in 0..n {
                for j in 0..cols {
                    let (mut want, mut size) = (0.0f64, 0.0f64);
                    for l in 0..depth {
                        let b = if side == Side::Forward { dense[j * k + l] } else { dense[l * k + j] };
                        let term = rounded(a[i * depth + l]) * f64::from(b);
                        want += term;
                        size += term.abs();
                    }
                    if beta != 0.0 {
                        want += f64::from(beta) * f64::from(before[i * cols + j]);
                        size += f64::from(before[i * cols + j]).abs();
                    }
                    let got = f64::from(c[i * cols + j]);
                    assert!(
                        (got - want).abs() <= 2e-6 * (1.0 + size),
                        "{n} x {o} x {k}: [{i},{j}] {got} {want}"
                    );
                }
            }
        }
    }

    fn cases<K: Kernel>() {
        for (n, o, k) in
            [(1, 1, 1), (7, 33, 65), (12, 32, 64), (13, 31, 3), (50, 67, 130), (97, 64, 37), (25, 96, 2)]
        {
            for (beta, threads) in [(0.0, 1), (1.0, 3)] {
                case::<K>(n, o, k, RowOrder::Plain, beta, threads);
            }
        }
        // Longer than a block of k, more rows than are packed at a time, and llama.cpp's order of rows.
        case::<K>(5, 40, 2085, RowOrder::Plain, 0.0, 2);
        case::<K>(1031, 5, 9, RowOrder::Plain, 0.5, 2);
        case::<K>(14, 72, 48, RowOrder::RopeInterleaved { head_dim: 24 }, 0.0, 2);
    }

    #[test]
    fn pairs_are_packed_and_multiplied_right() {
        cases::<Emulated>();
        cases::<EmulatedUnits>();
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn the_instruction_gives_the_same() {
        #[cfg(target_arch = "x86_64")]
        let there = is_x86_feature_detected!("avx512bf16");
        #[cfg(target_arch = "aarch64")]
        let there = std::arch::is_aarch64_feature_detected!("bf16");
        if !there {
            eprintln!("skipped: this CPU has no instruction for BF16");
            return;
        }
        cases::<Native>();
    }
}

//! What a CPU's instructions for BF16 must do.

use crate::format::bf16_bits;
use crate::simd::Vector;

/// How one CPU multiplies a tile.
pub(in crate::gemm) trait Kernel: Send + Sync + 'static {
    /// What packs the operands.
    type Pack: Vector;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Pairs along `k` that lie together for each row and each column.
    const PAIRS: usize;

    /// # Safety
    /// The CPU has the instruction.
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T;
    /// A row of A in pairs, padded with zeros.
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
pub(in crate::gemm) trait Dot: Send + Sync + 'static {
    /// Sixteen sums.
    type Sum: Copy;
    /// Sixteen pairs.
    type Pairs: Copy;
    /// What packs the operands.
    type Pack: Vector;

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
    /// As [`Dot::enter`]; `to` can be written for sixteen values.
    unsafe fn store(to: *mut f32, sum: Self::Sum, old: *const f32, beta: f32);
}

/// A row of A in pairs, padded with zeros.
#[inline(always)]
pub(super) fn round_row(from: &[f32], to: &mut [f32]) {
    let (whole, last) = from.as_chunks::<2>();
    for (to, [a, b]) in to.iter_mut().zip(whole) {
        *to = f32::from_bits(bf16_bits(*a) | bf16_bits(*b) << 16);
    }
    if let Some(a) = last.first() {
        to[whole.len()] = f32::from_bits(bf16_bits(*a));
    }
    to[from.len().div_ceil(2)..].fill(0.0);
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

//! The tiles on ARM, by `bfmmla`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::kernel::Kernel;
use crate::simd::Portable;

/// FEAT_BF16's `bfmmla`: 2 x 4 values times 4 x 2.
pub(in crate::gemm) struct Native;

/// Columns of the right operand in pairs.
const COLUMN_PAIRS: usize = 6;

/// `sum += a b^T`, for 2 x 2 sums by rows and twice two rows of four values. (Assembly until the intrinsic is
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
    type Pack = Portable<4>;
    // 4 x 6 of the 32 registers hold sums of 2 x 2, six the right operand, one the left.
    const MR: usize = 8;
    const NR: usize = 2 * COLUMN_PAIRS;
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
            let mut sums = [[vdupq_n_f32(0.0); COLUMN_PAIRS]; 4];
            for l in 0..pairs / 2 {
                let right: [uint32x4_t; COLUMN_PAIRS] =
                    std::array::from_fn(|j| vld1q_u32(b.add((l * COLUMN_PAIRS + j) * 4)));
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

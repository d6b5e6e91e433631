//! The products of pairs on x86, by `vdpbf16ps`.

use std::arch::x86_64::*;

use super::kernel::Dot;
use crate::simd::Avx512;

/// AVX512-BF16.
pub(in crate::gemm) struct Native;

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
    /// By the CPU's own conversion, for which values below 2^-126 are zeros.
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
        super::kernel::round_row(rest, last);
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

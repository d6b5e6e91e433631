//! The vectors of AVX2 with FMA and of AVX-512.

use std::arch::x86_64::*;

use super::level::Level;
use super::vector::Vector;

/// Eight lanes of AVX2 with FMA. Tiles of 6 x 16 leave 12 of 16 registers to sums.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

impl Avx2 {
    /// The lanes of `v`.
    #[inline(always)]
    pub(crate) fn of(v: __m256) -> Self {
        Self(v)
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enter_avx2<T>(f: impl FnOnce() -> T) -> T {
    f()
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn enter_avx512<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// [`Vector::transpose8`] by shuffles within halves.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn transpose8(from: [*const f32; 8], to: *mut f32, stride: usize) {
    // SAFETY: the caller's promise on the pointers; AVX2 is there (see `Vector`).
    unsafe {
        for at in [0, 4] {
            let (r0, r1) = (halves(from[0], from[4], at), halves(from[1], from[5], at));
            let (r2, r3) = (halves(from[2], from[6], at), halves(from[3], from[7], at));
            let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            let columns = [
                _mm256_shuffle_ps(a, c, 0x44),
                _mm256_shuffle_ps(a, c, 0xee),
                _mm256_shuffle_ps(b, d, 0x44),
                _mm256_shuffle_ps(b, d, 0xee),
            ];
            for (j, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(to.add((at + j) * stride), column);
            }
        }
    }
}

/// Four values of one run and four of another side by side, so that the rest of a transposition stays within halves.
#[inline(always)]
unsafe fn halves(low: *const f32, high: *const f32, at: usize) -> __m256 {
    // SAFETY: the caller's promise on the pointers; AVX2 is there (see `Vector`).
    unsafe {
        let low = _mm256_castps128_ps256(_mm_loadu_ps(low.add(at)));
        _mm256_insertf128_ps(low, _mm_loadu_ps(high.add(at)), 1)
    }
}

/// [`Vector::opaque`].
#[inline(always)]
// The pointer passes through and is not followed.
#[allow(clippy::pointers_in_nomem_asm_block)]
fn opaque(p: *const f32) -> *const f32 {
    let mut p = p;
    // SAFETY: there is no instruction in it.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags));
    }
    p
}

/// The mask that lets the first `lanes` of eight lanes through.
#[inline(always)]
fn mask8(lanes: usize) -> __m256i {
    const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(lanes <= 8);
    // SAFETY: `lanes <= 8` keeps the eight values inside the table; AVX2 is there (see `Vector`).
    unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - lanes).cast()) }
}

// SAFETY (all blocks below that hold register operations only): these types are used only inside
// `enter`, whose caller vouches for the CPU. Pointers are the caller's promise.
impl Vector for Avx2 {
    const LEVEL: Level = Level::Avx2;
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        // SAFETY: the caller vouches for the CPU.
        unsafe { enter_avx2(f) }
    }
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        opaque(p)
    }
    #[inline(always)]
    unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, stride: usize) {
        unsafe { transpose8(rows, to, stride) }
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load_ptr(p: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, lanes: usize) -> Self {
        Self(unsafe { _mm256_maskload_ps(p, mask8(lanes)) })
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, lanes: usize) {
        unsafe { _mm256_maskstore_ps(p, mask8(lanes), self.0) }
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        Self(unsafe { _mm256_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        Self(unsafe { _mm256_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        Self(unsafe { _mm256_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Self(unsafe {
            let bits = _mm256_castps_si256(self.0);
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits))
        })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn from_i16_pair(low: Self, high: Self) -> Self {
        Self(unsafe {
            let low = _mm256_and_si256(_mm256_cvtps_epi32(low.0), _mm256_set1_epi32(0xffff));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtps_epi32(high.0));
            _mm256_castsi256_ps(_mm256_or_si256(low, high))
        })
    }
    #[inline(always)]
    fn to_i16_pair(self) -> [Self; 2] {
        unsafe {
            let high = _mm256_castps_si256(self.0);
            let low = _mm256_slli_epi32::<16>(high);
            let [low, high] = [_mm256_srai_epi32::<16>(low), _mm256_srai_epi32::<16>(high)];
            [Self(_mm256_cvtepi32_ps(low)), Self(_mm256_cvtepi32_ps(high))]
        }
    }
    #[inline(always)]
    fn copy_sign(self, sign: Self) -> Self {
        let bit = unsafe { _mm256_and_ps(_mm256_set1_ps(-0.0), sign.0) };
        Self(unsafe { _mm256_or_ps(bit, self.abs().0) })
    }
    #[inline(always)]
    fn if_less(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(unsafe { _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, limit.0)) })
    }
    #[inline(always)]
    fn lanes(self) -> [f32; 16] {
        let mut a = [0.0; 16];
        unsafe { _mm256_storeu_ps(a.as_mut_ptr(), self.0) };
        a
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let h = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let h = _mm_add_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)))
        }
    }
    #[inline(always)]
    fn max_lane(self) -> f32 {
        unsafe {
            let h = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let h = _mm_max_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)))
        }
    }
}

/// Sixteen lanes of AVX-512. Tiles of 14 x 32 leave 28 of 32 registers to sums.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

#[inline(always)]
fn mask16(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}

// SAFETY: as for `Avx2`.
impl Vector for Avx512 {
    const LEVEL: Level = Level::Avx512;
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;
    const TILE_ROWS: usize = 14;

    #[inline(always)]
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        // SAFETY: the caller vouches for the CPU.
        unsafe { enter_avx512(f) }
    }
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        opaque(p)
    }
    #[inline(always)]
    unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, stride: usize) {
        unsafe { transpose8(rows, to, stride) }
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load_ptr(p: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, lanes: usize) -> Self {
        Self(unsafe { _mm512_maskz_loadu_ps(mask16(lanes), p) })
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, lanes: usize) {
        unsafe { _mm512_mask_storeu_ps(p, mask16(lanes), self.0) }
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, o.0) })
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Self(unsafe {
            let bits = _mm512_castps_si512(self.0);
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(bits))
        })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn from_i16_pair(low: Self, high: Self) -> Self {
        Self(unsafe {
            let low = _mm512_and_si512(_mm512_cvtps_epi32(low.0), _mm512_set1_epi32(0xffff));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(high.0));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        })
    }
    #[inline(always)]
    fn to_i16_pair(self) -> [Self; 2] {
        unsafe {
            let high = _mm512_castps_si512(self.0);
            let low = _mm512_slli_epi32::<16>(high);
            let [low, high] = [_mm512_srai_epi32::<16>(low), _mm512_srai_epi32::<16>(high)];
            [Self(_mm512_cvtepi32_ps(low)), Self(_mm512_cvtepi32_ps(high))]
        }
    }
    #[inline(always)]
    fn copy_sign(self, sign: Self) -> Self {
        Self(unsafe {
            let top = _mm512_set1_epi32(i32::MIN);
            let bit = _mm512_and_si512(top, _mm512_castps_si512(sign.0));
            let rest = _mm512_andnot_si512(top, _mm512_castps_si512(self.0));
            _mm512_castsi512_ps(_mm512_or_si512(bit, rest))
        })
    }
    #[inline(always)]
    fn if_less(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(unsafe {
            let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0);
            _mm512_mask_blend_ps(mask, no.0, yes.0)
        })
    }
    #[inline(always)]
    fn lanes(self) -> [f32; 16] {
        let mut a = [0.0; 16];
        unsafe { _mm512_storeu_ps(a.as_mut_ptr(), self.0) };
        a
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn max_lane(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

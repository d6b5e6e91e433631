//! The vectors of AVX2 with FMA and of AVX-512.

use super::Vector;
use std::arch::x86_64::*;

/// Eight lanes of AVX2 with FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

/// [`Vector::transpose8`] by shuffles: pairs, then quarters, then halves.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, pitch: usize) {
    // SAFETY: the caller's promise on the pointers; AVX2 is there (see `Vector`).
    unsafe {
        let r = rows.map(|p| _mm256_loadu_ps(p));
        let pair = |a: usize| (_mm256_unpacklo_ps(r[a], r[a + 1]), _mm256_unpackhi_ps(r[a], r[a + 1]));
        let (p0, p1, p2, p3) = (pair(0), pair(2), pair(4), pair(6));
        let low = |a, b| _mm256_shuffle_ps::<0x44>(a, b);
        let high = |a, b| _mm256_shuffle_ps::<0xEE>(a, b);
        let left = [low(p0.0, p1.0), high(p0.0, p1.0), low(p0.1, p1.1), high(p0.1, p1.1)];
        let right = [low(p2.0, p3.0), high(p2.0, p3.0), low(p2.1, p3.1), high(p2.1, p3.1)];
        for i in 0..4 {
            _mm256_storeu_ps(to.add(i * pitch), _mm256_permute2f128_ps::<0x20>(left[i], right[i]));
            _mm256_storeu_ps(to.add((i + 4) * pitch), _mm256_permute2f128_ps::<0x31>(left[i], right[i]));
        }
    }
}

/// The mask that lets the first `lanes` of eight lanes through.
#[inline(always)]
fn mask8(lanes: usize) -> __m256i {
    const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    debug_assert!(lanes <= 8);
    // SAFETY: `lanes <= 8` keeps the eight numbers inside the table; AVX2 is there (see `Vector`).
    unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - lanes).cast()) }
}

// SAFETY (all blocks below that hold register operations only): these types are used only under
// `dispatch!`, which has checked the CPU. Pointers are the caller's promise.
impl Vector for Avx2 {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, pitch: usize) {
        unsafe { transpose8(rows, to, pitch) }
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
            _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)))
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

/// Sixteen lanes of AVX-512F.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

#[inline(always)]
fn mask16(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}

// SAFETY: as for `Avx2`.
impl Vector for Avx512 {
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, pitch: usize) {
        unsafe { transpose8(rows, to, pitch) }
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

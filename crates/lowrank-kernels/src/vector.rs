//! One vocabulary of f32 vectors for the kernels that are more than sums of products.
//!
//! A kernel is written once, generic over [`Vector`], inside [`dispatch!`], which compiles it for
//! AVX-512, AVX2+FMA and plain arrays and takes the one of [`crate::simd::level`] at run time.

/// A register of f32 lanes.
///
/// Every method is `inline(always)`, so that inside [`dispatch!`] it becomes one instruction. Types
/// other than [`Portable`] must be used only there: `dispatch!` is what checks the CPU.
pub(crate) trait Vector: Copy {
    /// Lanes in a register.
    const LANES: usize;
    /// Whether the CPU has 32 registers (else 16): the size of register tiles follows.
    const MANY_REGISTERS: bool;

    fn splat(x: f32) -> Self;
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// `p` must be readable for `LANES` numbers; no alignment is needed.
    unsafe fn load_ptr(p: *const f32) -> Self;
    /// Writes `LANES` numbers.
    ///
    /// # Safety
    /// `p` must be writable for `LANES` numbers; no alignment is needed.
    unsafe fn store_ptr(self, p: *mut f32);
    /// Reads `lanes < LANES` numbers, zero in the other lanes.
    ///
    /// # Safety
    /// `p` must be readable for `lanes` numbers.
    unsafe fn load_part(p: *const f32, lanes: usize) -> Self;
    /// Writes the first `lanes < LANES` numbers.
    ///
    /// # Safety
    /// `p` must be writable for `lanes` numbers.
    unsafe fn store_part(self, p: *mut f32, lanes: usize);
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    /// `self * b + c`.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `o` where either is not a number.
    fn max(self, o: Self) -> Self;
    /// The smaller; `o` where either is not a number.
    fn min(self, o: Self) -> Self;
    /// The lanes' bits moved up to the exponent: `2^(n - 127)` where the low nine bits of a lane are the
    /// integer `n` of `0 ..= 255` (0 gives zero, 255 infinity).
    fn low_bits_to_exponent(self) -> Self;
    fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    fn copy_sign(self, sign: Self) -> Self;
    /// `self < limit ? yes : no`, lane by lane (`no` where a side is not a number).
    fn if_less(self, limit: Self, yes: Self, no: Self) -> Self;
    /// The lanes as an array, zero above `LANES`.
    fn lanes(self) -> [f32; 16];

    /// Writes the eight numbers at each of `rows` as a column of `to`, whose rows are `pitch` apart.
    ///
    /// # Safety
    /// Each row must be readable for 8 numbers, and 8 rows of `to` writable for 8 numbers.
    #[inline(always)]
    unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, pitch: usize) {
        for (j, row) in rows.into_iter().enumerate() {
            for i in 0..8 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(i * pitch + j) = *row.add(i) }
            }
        }
    }

    /// Asks for the cache line at `p`, which need not be readable.
    #[inline(always)]
    fn prefetch(_p: *const f32) {}

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Reads `lanes` numbers of `x` from `at`, zero in the other lanes.
    #[inline(always)]
    fn load(x: &[f32], at: usize, lanes: usize) -> Self {
        assert!(lanes <= Self::LANES && at + lanes <= x.len());
        // SAFETY: the range was checked just above.
        unsafe {
            let p = x.as_ptr().add(at);
            if lanes == Self::LANES { Self::load_ptr(p) } else { Self::load_part(p, lanes) }
        }
    }

    /// Writes the first `lanes` numbers to `y` from `at`.
    #[inline(always)]
    fn store(self, y: &mut [f32], at: usize, lanes: usize) {
        assert!(lanes <= Self::LANES && at + lanes <= y.len());
        // SAFETY: the range was checked just above.
        unsafe {
            let p = y.as_mut_ptr().add(at);
            if lanes == Self::LANES { self.store_ptr(p) } else { self.store_part(p, lanes) }
        }
    }

    /// `self` with lane `lanes` and those above replaced by `fill`.
    #[inline(always)]
    fn fill_above(self, lanes: usize, fill: f32) -> Self {
        if lanes == Self::LANES {
            return self;
        }
        Self::load(&INDEX, 0, Self::LANES).if_less(Self::splat(lanes as f32), self, Self::splat(fill))
    }

    /// `self` with the lanes below lane `lanes` replaced by `fill`.
    #[inline(always)]
    fn fill_below(self, lanes: usize, fill: f32) -> Self {
        Self::load(&INDEX, 0, Self::LANES).if_less(Self::splat(lanes as f32), Self::splat(fill), self)
    }

    /// Sum of the lanes, always in the same order.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut a = self.lanes();
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                a[i] += a[i + half];
            }
            half /= 2;
        }
        a[0]
    }

    /// Largest lane.
    #[inline(always)]
    fn max_lane(self) -> f32 {
        self.lanes()[..Self::LANES].iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
}

/// The numbers of the lanes.
const INDEX: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load_ptr(p: *const f32) -> Self {
        // SAFETY: the caller's promise; [f32; 8] has the alignment of f32.
        Self(unsafe { p.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        // SAFETY: the caller's promise; [f32; 8] has the alignment of f32.
        unsafe { p.cast::<[f32; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, lanes: usize) -> Self {
        let mut a = [0.0; 8];
        // SAFETY: the caller's promise.
        a[..lanes].copy_from_slice(unsafe { std::slice::from_raw_parts(p, lanes) });
        Self(a)
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, lanes: usize) {
        for (i, x) in self.0.into_iter().enumerate().take(lanes) {
            // SAFETY: `i < lanes`, and the caller promises that many.
            unsafe { p.add(i).write(x) }
        }
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        self.zip(o, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // `f32::mul_add` is a library call where the baseline has no fused instruction.
        Self(std::array::from_fn(|i| {
            if cfg!(target_arch = "aarch64") {
                self.0[i].mul_add(b.0[i], c.0[i])
            } else {
                self.0[i] * b.0[i] + c.0[i]
            }
        }))
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn low_bits_to_exponent(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() << 23)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn copy_sign(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }
    #[inline(always)]
    fn if_less(self, limit: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < limit.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn lanes(self) -> [f32; 16] {
        let mut a = [0.0; 16];
        a[..8].copy_from_slice(&self.0);
        a
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
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
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Defines a function whose body, generic over a [`Vector`] type, is compiled once per instruction
/// set and chosen at run time. Helpers called by the body must be `#[inline(always)]`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$V:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn generic<$V: $crate::vector::Vector>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    generic::<$crate::vector::Avx512>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    generic::<$crate::vector::Avx2>($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` names only what this CPU has.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Portable => {}
                }
            }
            generic::<$crate::vector::Portable>($($arg),*)
        }
    };
}

/// Runs the body for `at = 0, LANES, 2 LANES ...` below `n`, with `lanes = LANES` or, at the end, what
/// is left. A macro, not a closure, so that the body is surely compiled with the wide instructions.
macro_rules! for_lanes {
    ($V:ident, $n:expr, |$at:ident, $lanes:ident| $body:block) => {{
        let n: usize = $n;
        let mut $at = 0;
        while $at < n {
            let $lanes = (n - $at).min($V::LANES);
            $body
            $at += $V::LANES;
        }
    }};
}

pub(crate) use {dispatch, for_lanes};

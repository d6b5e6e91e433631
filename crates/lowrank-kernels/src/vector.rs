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
    /// The integer (of two's complement) in the low half of each lane, and the one in the high half.
    fn to_i16_pair(self) -> [Self; 2];
    /// The inverse of [`Vector::to_i16_pair`], rounding to the nearest integer, ties to even. Numbers are in -32768..=32767.
    fn from_i16_pair(low: Self, high: Self) -> Self;
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
    fn from_i16_pair(low: Self, high: Self) -> Self {
        // At this size neighbouring numbers are 1 apart, and the low bits are the integer.
        let bits = |x: f32| (x + 12_582_912.0).to_bits();
        low.zip(high, |low, high| f32::from_bits(bits(low) & 0xffff | bits(high) << 16))
    }
    #[inline(always)]
    fn to_i16_pair(self) -> [Self; 2] {
        let bits = self.0.map(f32::to_bits);
        [bits, bits.map(|bits| bits >> 16)].map(|bits| Self(bits.map(|bits| f32::from(bits as i16))))
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
mod x86;

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
                    $crate::simd::Level::Avx512 | $crate::simd::Level::Amx => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
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

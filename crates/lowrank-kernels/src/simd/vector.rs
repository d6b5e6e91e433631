//! The trait of a vector register: what a kernel may do with it.

use super::level::Level;

/// A register of f32 lanes.
///
/// Every method is `inline(always)`, so that inside [`Vector::enter`] it becomes one instruction. Types other than
/// [`super::Portable`] must be used only there, on a CPU that has their level: [`super::dispatch`] and
/// [`super::at_level`] see to it.
pub(crate) trait Vector: Copy + Send + Sync + 'static {
    /// The level it belongs to.
    const LEVEL: Level;
    /// Lanes in a register.
    const LANES: usize;
    /// Whether the CPU has 32 registers (else 16): the size of register tiles follows.
    const MANY_REGISTERS: bool;
    /// Most rows of a product's tile, which is two registers wide.
    const TILE_ROWS: usize;

    /// Runs `f` in a function compiled for the level.
    ///
    /// # Safety
    /// The CPU has the level.
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T;

    fn splat(x: f32) -> Self;
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `p` must be readable for `LANES` values; no alignment is needed.
    unsafe fn load_ptr(p: *const f32) -> Self;
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `p` must be writable for `LANES` values; no alignment is needed.
    unsafe fn store_ptr(self, p: *mut f32);
    /// Reads `lanes < LANES` values, zero in the other lanes.
    ///
    /// # Safety
    /// `p` must be readable for `lanes` values.
    unsafe fn load_part(p: *const f32, lanes: usize) -> Self;
    /// Writes the first `lanes < LANES` values.
    ///
    /// # Safety
    /// `p` must be writable for `lanes` values.
    unsafe fn store_part(self, p: *mut f32, lanes: usize);
    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn mul(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    /// `self * b + c`.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `o` where either is NaN.
    fn max(self, o: Self) -> Self;
    /// The smaller; `o` where either is NaN.
    fn min(self, o: Self) -> Self;
    /// The lanes' bits moved up to the exponent: `2^(n - 127)` where the low nine bits of a lane are the
    /// integer `n` of `0 ..= 255` (0 gives zero, 255 infinity).
    fn low_bits_to_exponent(self) -> Self;
    fn abs(self) -> Self;
    /// The magnitude of `self` with the sign of `sign`.
    fn copy_sign(self, sign: Self) -> Self;
    /// `self < limit ? yes : no`, lane by lane (`no` where a side is NaN).
    fn if_less(self, limit: Self, yes: Self, no: Self) -> Self;
    /// The integer (of two's complement) in the low half of each lane, and the one in the high half.
    fn to_i16_pair(self) -> [Self; 2];
    /// The inverse of [`Vector::to_i16_pair`], rounding to the nearest integer, ties to even. Values are in -32768..=32767.
    fn from_i16_pair(low: Self, high: Self) -> Self;
    /// The lanes as an array, zero above `LANES`.
    fn lanes(self) -> [f32; 16];

    /// Writes the eight values at each of `rows` as a column of `to`, whose rows are `stride` apart.
    ///
    /// # Safety
    /// Each row can be read for 8 values, and 8 rows of `to` written for 8 values, at any alignment.
    #[inline(always)]
    unsafe fn transpose8(rows: [*const f32; 8], to: *mut f32, stride: usize) {
        for (i, row) in rows.into_iter().enumerate() {
            for j in 0..8 {
                // SAFETY: the caller's promise.
                unsafe { to.add(j * stride + i).write_unaligned(row.add(j).read_unaligned()) };
            }
        }
    }

    /// `p` itself, but the compiler knows nothing of where it came from.
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        p
    }

    /// Asks for the cache line at `p`, which need not be readable.
    #[inline(always)]
    fn prefetch(_p: *const f32) {}

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Reads `lanes` values of `x` from `at`, zero in the other lanes.
    #[inline(always)]
    fn load(x: &[f32], at: usize, lanes: usize) -> Self {
        assert!(lanes <= Self::LANES && at + lanes <= x.len());
        // SAFETY: the range was checked just above.
        unsafe {
            let p = x.as_ptr().add(at);
            if lanes == Self::LANES { Self::load_ptr(p) } else { Self::load_part(p, lanes) }
        }
    }

    /// Writes the first `lanes` values to `y` from `at`.
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

/// The index of each lane.
const INDEX: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

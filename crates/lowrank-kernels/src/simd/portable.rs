//! Vectors in plain Rust, which the compiler turns into the target's own (NEON on aarch64, SSE2 on x86-64).

use super::level::Level;
use super::vector::Vector;

/// `N` lanes in plain Rust: 4 in the products, whose tiles must fit the registers, 8 elsewhere. Products also have tests
/// with 16, the tiles of AVX-512 on any machine.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const N: usize>([f32; N]);

impl<const N: usize> Portable<N> {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

impl<const N: usize> Vector for Portable<N> {
    const LEVEL: Level = Level::Portable;
    const LANES: usize = N;
    const MANY_REGISTERS: bool = false;
    // The registers of NEON (32) hold 8 x 8 sums, those of SSE2 (16) no more than 4 x 8.
    const TILE_ROWS: usize = match N {
        16 => 14,
        _ if cfg!(target_arch = "aarch64") => 8,
        _ => 4,
    };

    #[inline(always)]
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; N])
    }
    #[inline(always)]
    unsafe fn load_ptr(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { p.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, lanes: usize) -> Self {
        let mut a = [0.0; N];
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
        // At this size neighbouring values are 1 apart, and the low bits are the integer.
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
        a[..N].copy_from_slice(&self.0);
        a
    }
}

//! Which vector instructions the kernels use, found once at run time, and the few operations the
//! kernels need of them.

use std::sync::OnceLock;

/// A set of vector instructions, from the plainest to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code)] // Each target has its own.
pub enum Level {
    /// What every CPU of the target has (on aarch64 that is NEON).
    Portable,
    /// NEON, and FEAT_BF16's `bfmmla` for products in BF16.
    ArmBf16,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same, and the tile unit AMX-BF16 for products.
    Amx,
}

impl Level {
    /// The levels this machine can run.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    levels.push(Self::Avx512);
                    if crate::gemm::amx::available() {
                        levels.push(Self::Amx);
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("bf16") {
            levels.push(Self::ArmBf16);
        }
        levels
    }

    /// The word that names the level in `LOWRANK_KERNEL`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::ArmBf16 => "bf16",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

/// The level every kernel runs at: the widest this machine has, or the one that the environment
/// variable `LOWRANK_KERNEL` (`portable`, `bf16`, `avx2`, `avx512` or `amx`) names if the machine has it.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let levels = Level::available();
        let asked = std::env::var("LOWRANK_KERNEL").ok();
        let named = levels.iter().find(|level| asked.as_deref() == Some(level.name()));
        *named.or(levels.last()).expect("the portable level is always there")
    })
}

/// Runs `$body` with `$arch` standing for the [`Arch`] of `$level`, inside a function compiled for it.
///
/// The level must be one of [`Level::available`].
macro_rules! at_level {
    ($level:expr, $arch:ident => $body:expr) => {{
        match $level {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx512 | $crate::simd::Level::Amx => {
                type $arch = $crate::simd::Avx512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => {
                type $arch = $crate::simd::Avx2;
                $body
            }
            _ => {
                type $arch = $crate::simd::Portable;
                $body
            }
        }
    }};
}
pub(crate) use at_level;

/// The vector operations of one level.
///
/// Functions marked unsafe may only run on a CPU that has the level. They are compiled to single
/// instructions only inside [`Arch::enter`], and must therefore be inlined all the way into it.
pub(crate) trait Arch: Copy + Send + Sync + 'static {
    /// A vector of `LANES` f32.
    type V: Copy;
    /// The level itself.
    const LEVEL: Level;
    /// Numbers in a vector.
    const LANES: usize;
    /// Most rows of a tile of the product.
    const MR: usize;

    /// Runs `f` in a function compiled for this level.
    ///
    /// # Safety
    /// The CPU has this level.
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T;

    /// # Safety
    /// The CPU has this level.
    unsafe fn splat(x: f32) -> Self::V;
    /// # Safety
    /// The CPU has this level; `p` can be read for `LANES` numbers (any alignment).
    unsafe fn load(p: *const f32) -> Self::V;
    /// # Safety
    /// The CPU has this level; `p` can be written for `LANES` numbers (any alignment).
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `a * b + c`.
    ///
    /// # Safety
    /// The CPU has this level.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// # Safety
    /// The CPU has this level.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// The sum of the lanes.
    ///
    /// # Safety
    /// The CPU has this level.
    unsafe fn sum(v: Self::V) -> f32;

    /// Writes the transpose of eight runs of eight numbers: `from[i][j]` to `to[j * stride + i]`.
    ///
    /// # Safety
    /// The CPU has this level; the pointers cover the shapes (any alignment).
    #[inline(always)]
    unsafe fn transpose8(from: [*const f32; 8], to: *mut f32, stride: usize) {
        for (i, from) in from.into_iter().enumerate() {
            for j in 0..8 {
                // SAFETY: the caller's promise.
                unsafe { to.add(j * stride + i).write_unaligned(from.add(j).read_unaligned()) };
            }
        }
    }

    /// `p` itself, but the compiler knows nothing of where it came from.
    #[inline(always)]
    fn opaque(p: *const f32) -> *const f32 {
        p
    }

    /// Asks for the line at `p` to be brought into the first cache.
    #[inline(always)]
    fn prefetch(_p: *const f32) {}
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Arch, Level};

    /// AVX2 with FMA: tiles of 6 x 16 leave 12 of 16 registers to sums.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn enter_avx2<T>(f: impl FnOnce() -> T) -> T {
        f()
    }

    impl Arch for Avx2 {
        type V = __m256;
        const LEVEL: Level = Level::Avx2;
        const LANES: usize = 8;
        const MR: usize = 6;

        #[inline(always)]
        unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
            // SAFETY: the caller vouches for the CPU.
            unsafe { enter_avx2(f) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: the caller vouches for the CPU and the pointer.
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            // SAFETY: the caller vouches for the CPU and the pointer.
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
            }
        }
        #[inline(always)]
        unsafe fn transpose8(from: [*const f32; 8], to: *mut f32, stride: usize) {
            // SAFETY: the caller vouches for the CPU and the pointers.
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
        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a prefetch never faults, whatever the address; SSE is always there.
            unsafe { _mm_prefetch(p.cast(), _MM_HINT_T0) }
        }
    }

    /// Four numbers of one run and four of another side by side, so that the rest of a transposition
    /// stays within halves.
    #[inline(always)]
    unsafe fn halves(low: *const f32, high: *const f32, at: usize) -> __m256 {
        // SAFETY: the caller vouches for the CPU and the pointers.
        unsafe {
            let low = _mm256_castps128_ps256(_mm_loadu_ps(low.add(at)));
            _mm256_insertf128_ps(low, _mm_loadu_ps(high.add(at)), 1)
        }
    }

    /// AVX-512: tiles of 14 x 32 leave 28 of 32 registers to sums.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn enter_avx512<T>(f: impl FnOnce() -> T) -> T {
        f()
    }

    impl Arch for Avx512 {
        type V = __m512;
        const LEVEL: Level = Level::Avx512;
        const LANES: usize = 16;
        const MR: usize = 14;

        #[inline(always)]
        unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
            // SAFETY: the caller vouches for the CPU.
            unsafe { enter_avx512(f) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: the caller vouches for the CPU and the pointer.
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: the caller vouches for the CPU and the pointer.
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            // SAFETY: the caller vouches for the CPU.
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        unsafe fn transpose8(from: [*const f32; 8], to: *mut f32, stride: usize) {
            // SAFETY: the caller vouches for the pointers; a CPU with AVX-512 has AVX2.
            unsafe { Avx2::transpose8(from, to, stride) }
        }
        #[inline(always)]
        fn opaque(p: *const f32) -> *const f32 {
            Avx2::opaque(p)
        }
        #[inline(always)]
        fn prefetch(p: *const f32) {
            Avx2::prefetch(p);
        }
    }
}

/// Four numbers in plain Rust, which the compiler turns into the target's own vectors.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Arch for Portable {
    type V = [f32; 4];
    const LEVEL: Level = Level::Portable;
    const LANES: usize = 4;
    // The registers of NEON (32) hold 8 x 8 sums, those of SSE2 (16) no more than 4 x 8.
    const MR: usize = if cfg!(target_arch = "aarch64") { 8 } else { 4 };

    #[inline(always)]
    unsafe fn enter<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for the pointer; an array of f32 needs the alignment of f32 only,
        // and read_unaligned not even that.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        // SAFETY: as for load.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // mul_add is one instruction on aarch64, but a library call on plain x86-64.
        std::array::from_fn(|i| {
            if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] }
        })
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
}

//! Blocks to vectors of eight f32, for AVX2 with F16C: to be stored, or multiplied where they are.
//!
//! Every format comes down to small integers `q`, eight in a register, that stand for `d q + m`. The products are exact (see [`super::blocks`]), so fusing them changes no bit.

use std::arch::x86_64::*;
use std::ops::Range;

use super::blocks::{self, Block, with_block};
use crate::format::Format;
use crate::simd::{Avx2, Vector};

/// A format whose values come eight at a time.
pub(crate) trait Wide: Block {
    /// Values in one visit.
    const SPAN: usize = Self::LEN;

    /// Calls `each(i, v)` for the values `8 i .. 8 i + 8` of the `SPAN` values stored at `p`.
    ///
    /// # Safety
    /// Inlined into a function compiled for AVX2 and F16C, on a CPU that has them; `p` can be read for
    /// `SPAN` values.
    unsafe fn visit(p: *const u8, each: impl FnMut(usize, __m256));
}

/// Whether the values of a format are made in registers. The others are expanded to memory first.
pub(crate) fn is_wide(format: Format) -> bool {
    format.can_quantize()
}

/// Runs `$body` with the type alias `$block` standing for the [`Wide`] block of a format for which [`is_wide`] holds.
macro_rules! with_wide {
    ($format:expr, $block:ident => $body:expr) => {
        $crate::quant::blocks::with_block!(
            $format, $block => $body,
            F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K;
            _ => unreachable!("made in registers")
        )
    };
}
pub(crate) use with_wide;

/// Expands the values `cols` of one stored row.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn expand(format: Format, row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    match is_wide(format) {
        true => with_wide!(format, B => expand_blocks::<B>(row, cols, out)),
        false => with_block!(format, B => blocks::expand_blocks::<B>(row, cols, out)),
    }
}

#[inline(always)]
fn expand_blocks<B: Wide>(row: &[u8], cols: Range<usize>, mut out: &mut [f32]) {
    let mut at = cols.start;
    while at < cols.end {
        let skip = at % B::LEN;
        let whole = skip == 0 && cols.end - at >= B::SPAN;
        let take = match whole {
            true => B::SPAN,
            // What is left of a plain row goes at once, a cut block by itself.
            false if B::LEN == 1 => cols.end - at,
            false => (B::LEN - skip).min(cols.end - at),
        };
        let (now, rest) = out.split_at_mut(take);
        if whole {
            let from = &row[at / B::LEN * B::BYTES..][..B::SPAN / B::LEN * B::BYTES];
            // SAFETY: this function is inlined into `expand`; `from` and `now` hold SPAN values.
            unsafe {
                B::visit(
                    from.as_ptr(),
                    #[inline(always)]
                    |i, v| _mm256_storeu_ps(now.as_mut_ptr().add(8 * i), v),
                )
            };
        } else {
            blocks::expand_blocks::<B>(row, at..at + take, now);
        }
        out = rest;
        at += take;
    }
}

/// The dot products of one stored row of `k` values with `T` vectors of `k` values, `stride` apart.
///
/// # Safety
/// As [`Wide::visit`], and `x` covers its vectors.
#[inline(always)]
pub(crate) unsafe fn dots<B: Wide, const T: usize>(
    row: &[u8],
    k: usize,
    x: *const f32,
    stride: usize,
) -> [f32; T] {
    let row = &row[..k / B::LEN * B::BYTES];
    let whole = k / B::SPAN * B::SPAN;
    // SAFETY: the caller's promises; the visits cover the first `whole` values of the row.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 4]; T];
        for at in (0..whole).step_by(B::SPAN) {
            B::visit(
                row.as_ptr().add(at / B::LEN * B::BYTES),
                #[inline(always)]
                |i, v| {
                    for (t, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_loadu_ps(x.add(t * stride + at + 8 * i));
                        // Few vectors leave registers for more sums, and need them to hide the latency.
                        let lane = if T <= 2 { i % 4 } else { i % 2 };
                        sums[lane] = _mm256_fmadd_ps(v, x, sums[lane]);
                    }
                },
            );
        }
        let mut dots = [0.0; T];
        for (t, (dot, [a, b, c, d])) in dots.iter_mut().zip(sums).enumerate() {
            *dot = Avx2::of(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d))).sum();
            for l in whole..k {
                let mut number = [0.0];
                blocks::expand_blocks::<B>(row, l..l + 1, &mut number);
                *dot += number[0] * *x.add(t * stride + l);
            }
        }
        dots
    }
}

/// The f16 at `p`, in every lane.
#[inline(always)]
unsafe fn half(p: *const u8) -> __m256 {
    // SAFETY: the caller of `visit` vouches for the CPU and for the block.
    unsafe {
        let bits = p.cast::<u16>().read_unaligned();
        _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}

/// The eight bytes at `p`, unsigned, each in a lane of its own.
#[inline(always)]
unsafe fn bytes(p: *const u8) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
}

/// `d q + m`.
#[inline(always)]
unsafe fn numbers(q: __m256i, d: __m256, m: __m256) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), d, m) }
}

/// The lower and the upper four bits of each byte.
#[inline(always)]
unsafe fn nibbles(bytes: __m256i) -> (__m256i, __m256i) {
    // SAFETY: as above.
    unsafe { (_mm256_and_si256(bytes, _mm256_set1_epi32(15)), _mm256_srli_epi32(bytes, 4)) }
}

/// A block of 32 quants of four bits at `p`: the low halves of 16 bytes, then the high halves.
#[inline(always)]
unsafe fn four_bits(p: *const u8, d: __m256, m: __m256, each: &mut impl FnMut(usize, __m256)) {
    // SAFETY: as above.
    unsafe {
        let (a, c) = nibbles(bytes(p));
        let (b, e) = nibbles(bytes(p.add(8)));
        each(0, numbers(a, d, m));
        each(1, numbers(b, d, m));
        each(2, numbers(c, d, m));
        each(3, numbers(e, d, m));
    }
}

/// The same with a fifth bit for each, in the 32 bits at `high`.
#[inline(always)]
unsafe fn five_bits(
    p: *const u8,
    high: *const u8,
    d: __m256,
    m: __m256,
    each: &mut impl FnMut(usize, __m256),
) {
    // SAFETY: as above.
    unsafe {
        let high = _mm256_set1_epi32(high.cast::<i32>().read_unaligned());
        let count = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        // Bit i moves to bit 4 of lane i % 8.
        let lanes = [
            _mm256_srlv_epi32(_mm256_slli_epi32(high, 4), count),
            _mm256_srlv_epi32(_mm256_srli_epi32(high, 4), count),
            _mm256_srlv_epi32(_mm256_srli_epi32(high, 12), count),
            _mm256_srlv_epi32(_mm256_srli_epi32(high, 20), count),
        ];
        let bit = _mm256_set1_epi32(16);
        let (a, c) = nibbles(bytes(p));
        let (b, e) = nibbles(bytes(p.add(8)));
        each(0, numbers(_mm256_or_si256(a, _mm256_and_si256(lanes[0], bit)), d, m));
        each(1, numbers(_mm256_or_si256(b, _mm256_and_si256(lanes[1], bit)), d, m));
        each(2, numbers(_mm256_or_si256(c, _mm256_and_si256(lanes[2], bit)), d, m));
        each(3, numbers(_mm256_or_si256(e, _mm256_and_si256(lanes[3], bit)), d, m));
    }
}

/// `-by d`: the minimum of a format whose quants are centred on `by`.
#[inline(always)]
unsafe fn centred(d: __m256, by: f32) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_mul_ps(d, _mm256_set1_ps(-by)) }
}

/// The scales and minima of the eight parts of a Q4_K or Q5_K block, times those of the block.
#[inline(always)]
unsafe fn k_scales(block: *const u8) -> ([f32; 8], [f32; 8]) {
    // SAFETY: as above; the layout is told by `blocks::k_scale_min`.
    unsafe {
        let words = block.add(4).cast::<u32>();
        let [a, b, c] = [0, 1, 2].map(|i| words.add(i).read_unaligned());
        let low = 0x3f3f_3f3f;
        let scales = u64::from(a & low) | u64::from(c & 0x0f0f_0f0f | (a >> 2) & 0x3030_3030) << 32;
        let mins = u64::from(b & low) | u64::from((c >> 4) & 0x0f0f_0f0f | (b >> 2) & 0x3030_3030) << 32;
        let minus = _mm256_xor_ps(half(block.add(2)), _mm256_set1_ps(-0.0));
        (bytes_times(scales, half(block)), bytes_times(mins, minus))
    }
}

/// Eight unsigned bytes, each times `by`.
#[inline(always)]
unsafe fn bytes_times(bytes: u64, by: __m256) -> [f32; 8] {
    // SAFETY: as above.
    unsafe {
        let q = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)));
        let mut out = [0.0; 8];
        _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(q, by));
        out
    }
}

macro_rules! wide {
    ($name:ident, $span:expr, |$p:ident, $each:ident| $body:block) => {
        impl Wide for blocks::$name {
            const SPAN: usize = $span;
            #[inline(always)]
            unsafe fn visit($p: *const u8, mut $each: impl FnMut(usize, __m256)) {
                // SAFETY: every read lies inside the block, and the CPU is vouched for by the caller.
                unsafe { $body }
            }
        }
    };
}

wide!(F32, 32, |p, each| {
    for i in 0..4 {
        each(i, _mm256_loadu_ps(p.cast::<f32>().add(8 * i)));
    }
});

wide!(F16, 32, |p, each| {
    for i in 0..4 {
        each(i, _mm256_cvtph_ps(_mm_loadu_si128(p.add(16 * i).cast())));
    }
});

wide!(BF16, 32, |p, each| {
    for i in 0..4 {
        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16 * i).cast()));
        each(i, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
    }
});

wide!(Q4_0, 32, |p, each| {
    let d = half(p);
    four_bits(p.add(2), d, centred(d, 8.0), &mut each);
});

wide!(Q4_1, 32, |p, each| { four_bits(p.add(4), half(p), half(p.add(2)), &mut each) });

wide!(Q5_0, 32, |p, each| {
    let d = half(p);
    five_bits(p.add(6), p.add(2), d, centred(d, 16.0), &mut each);
});

wide!(Q5_1, 32, |p, each| { five_bits(p.add(8), p.add(4), half(p), half(p.add(2)), &mut each) });

wide!(Q8_0, 32, |p, each| {
    let d = half(p);
    for i in 0..4 {
        let q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(2 + 8 * i).cast()));
        each(i, _mm256_mul_ps(_mm256_cvtepi32_ps(q), d));
    }
});

wide!(Q4_K, 256, |p, each| {
    let (scales, mins) = k_scales(p);
    for pair in 0..4 {
        let (d0, m0) = (_mm256_set1_ps(scales[2 * pair]), _mm256_set1_ps(mins[2 * pair]));
        let (d1, m1) = (_mm256_set1_ps(scales[2 * pair + 1]), _mm256_set1_ps(mins[2 * pair + 1]));
        for i in 0..4 {
            let (low, high) = nibbles(bytes(p.add(16 + 32 * pair + 8 * i)));
            each(8 * pair + i, numbers(low, d0, m0));
            each(8 * pair + 4 + i, numbers(high, d1, m1));
        }
    }
});

wide!(Q5_K, 256, |p, each| {
    let (scales, mins) = k_scales(p);
    let bit = _mm256_set1_epi32(16);
    for i in 0..4 {
        // The fifth bits of the eight parts, from bit 4 on.
        let fifth = _mm256_slli_epi32(bytes(p.add(16 + 8 * i)), 4);
        for pair in 0..4 {
            let (d0, m0) = (_mm256_set1_ps(scales[2 * pair]), _mm256_set1_ps(mins[2 * pair]));
            let (d1, m1) = (_mm256_set1_ps(scales[2 * pair + 1]), _mm256_set1_ps(mins[2 * pair + 1]));
            let (low, high) = nibbles(bytes(p.add(48 + 32 * pair + 8 * i)));
            let fifth = _mm256_srl_epi32(fifth, _mm_cvtsi32_si128(2 * pair as i32));
            let low = _mm256_or_si256(low, _mm256_and_si256(fifth, bit));
            let high = _mm256_or_si256(high, _mm256_and_si256(_mm256_srli_epi32(fifth, 1), bit));
            each(8 * pair + i, numbers(low, d0, m0));
            each(8 * pair + 4 + i, numbers(high, d1, m1));
        }
    }
});

wide!(Q6_K, 256, |p, each| {
    let d = half(p.add(208));
    let mut scales = [0.0; 16];
    for i in 0..2 {
        let q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(192 + 8 * i).cast()));
        _mm256_storeu_ps(scales.as_mut_ptr().add(8 * i), _mm256_mul_ps(_mm256_cvtepi32_ps(q), d));
    }
    let (two, centre) = (_mm256_set1_epi32(48), _mm256_set1_epi32(32));
    for part in 0..2 {
        let (low, high) = (p.add(64 * part), p.add(128 + 32 * part));
        for i in 0..4 {
            let (q0, q2) = nibbles(bytes(low.add(8 * i)));
            let (q1, q3) = nibbles(bytes(low.add(32 + 8 * i)));
            let h = bytes(high.add(8 * i));
            let quants = [
                (q0, _mm256_slli_epi32(h, 4)),
                (q1, _mm256_slli_epi32(h, 2)),
                (q2, h),
                (q3, _mm256_srli_epi32(h, 2)),
            ];
            for (run, (low, high)) in quants.into_iter().enumerate() {
                let q = _mm256_or_si256(low, _mm256_and_si256(high, two));
                let q = _mm256_cvtepi32_ps(_mm256_sub_epi32(q, centre));
                // Sixteen values share a scale.
                let scale = _mm256_set1_ps(scales[8 * part + 2 * run + i / 2]);
                each(16 * part + 4 * run + i, _mm256_mul_ps(q, scale));
            }
        }
    }
});

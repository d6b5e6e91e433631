//! NF4 of QLoRA (Dettmers et al. 2023) with double quantisation, bit for bit as bitsandbytes computes it
//! (`quantize_4bit(quant_type="nf4", blocksize=64, compress_statistics=True)` in its `functional.py`).
//!
//! 64 values in a row (counted through the whole matrix, row by row) share a scale `s`, and each is one of
//! sixteen quantiles of the normal distribution times `s`. The scales are quantised in turn: `s = DYNAMIC[c] *
//! group + offset`, where 256 scales share `group`, all share `offset` (their mean), and `c` is one byte. That
//! is 4.127 bits a value.
//!
//! A stored matrix is its blocks, row after row, then `offset` and the groups as f32. A block is `c` and 32
//! bytes: value `i` in the low half of byte `i`, value `i + 32` in the high half. (bitsandbytes puts
//! neighbours into one byte and `c` into a tensor of its own.)

use std::ops::Range;

use rayon::prelude::*;

use super::error::QuantizeError;
use crate::format::{NF4_BLOCK_BYTES as BYTES, NF4_BLOCK_LEN as LEN, NF4_GROUP_BLOCKS as GROUP, WeightRef};
use crate::simd::Level;

/// The sixteen levels (`_NF4_QUANT_TABLE` of bitsandbytes).
pub(super) const LEVELS: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// The upper half of the 256 levels of a scale (`create_dynamic_map` of bitsandbytes, in the roundings of
/// torch): 0 comes before it, and before that the same values but 1 with the other sign.
#[rustfmt::skip]
const POSITIVE: [f32; 128] = [
    5.5000004e-7, 3.2500002e-6, 7.75e-6, 2.1249998e-5, 4.375e-5, 6.625e-5, 8.875e-5, 1.5625001e-4,
    2.6875004e-4, 3.8125002e-4, 4.9375003e-4, 6.062501e-4, 7.1875006e-4, 8.3125e-4, 9.437501e-4, 0.0012812499,
    0.00184375, 0.00240625, 0.00296875, 0.0035312497, 0.00409375, 0.0046562497, 0.0052187503, 0.00578125,
    0.00634375, 0.00690625, 0.00746875, 0.00803125, 0.00859375, 0.009156249, 0.00971875, 0.01140625,
    0.01421875, 0.01703125, 0.019843752, 0.02265625, 0.02546875, 0.028281251, 0.03109375, 0.03390625,
    0.036718752, 0.03953125, 0.042343747, 0.04515625, 0.04796875, 0.05078125, 0.05359375, 0.05640625,
    0.059218753, 0.06203125, 0.06484375, 0.067656256, 0.070468746, 0.07328125, 0.07609375, 0.07890625,
    0.08171876, 0.08453125, 0.08734375, 0.09015625, 0.092968754, 0.09578126, 0.09859375, 0.107031256,
    0.12109375, 0.13515624, 0.14921875, 0.16328125, 0.17734376, 0.19140625, 0.20546874, 0.21953125,
    0.23359375, 0.24765624, 0.26171875, 0.27578127, 0.28984374, 0.30390626, 0.31796873, 0.33203125,
    0.34609374, 0.36015624, 0.37421876, 0.38828123, 0.40234375, 0.41640624, 0.43046874, 0.44453126,
    0.45859373, 0.47265625, 0.4867187, 0.50078124, 0.5148437, 0.5289062, 0.54296875, 0.5570313,
    0.5710938, 0.58515626, 0.5992187, 0.61328125, 0.6273438, 0.6414063, 0.65546876, 0.6695312,
    0.68359375, 0.6976563, 0.7117188, 0.72578126, 0.7398437, 0.75390625, 0.7679688, 0.78203124,
    0.79609376, 0.8101562, 0.82421875, 0.8382813, 0.85234374, 0.86640626, 0.8804687, 0.89453125,
    0.9085938, 0.92265624, 0.93671876, 0.9507812, 0.96484375, 0.9789063, 0.99296874, 1.0,
];

/// The levels of a scale in rising order.
const DYNAMIC: [f32; 256] = {
    let mut levels = [0.0; 256];
    let mut i = 0;
    while i < 128 {
        levels[128 + i] = POSITIVE[i];
        if i < 127 {
            levels[126 - i] = -POSITIVE[i];
        }
        i += 1;
    }
    levels
};

/// The blocks of one row and what their scales are made of.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    blocks: &'a [u8],
    /// Number of the row's first block in the matrix.
    first: usize,
    offset: f32,
    groups: &'a [u8],
}

impl<'a> Row<'a> {
    /// Row `row` (Hugging Face's order) of an NF4 matrix.
    pub(crate) fn of(w: &WeightRef<'a>, row: usize) -> Self {
        let across = w.cols / LEN;
        let tail = &w.bytes[w.rows * across * BYTES..];
        Self {
            blocks: w.row(row),
            first: w.stored_row(row) * across,
            offset: float_at(tail, 0),
            groups: &tail[4..],
        }
    }

    /// Block `i` of the row: its scale and the 32 bytes of its values.
    #[inline(always)]
    fn block(&self, i: usize) -> (f32, &'a [u8; 32]) {
        let (code, quants) = self.blocks[i * BYTES..][..BYTES].split_first().expect("33 bytes");
        let group = float_at(self.groups, 4 * ((self.first + i) / GROUP));
        (DYNAMIC[usize::from(*code)] * group + self.offset, quants.try_into().expect("32 bytes"))
    }
}

/// The levels of a value and of a scale: `quant_map` and `nested_quant_map` of bitsandbytes' files.
pub fn nf4_tables() -> (&'static [f32; 16], &'static [f32; 256]) {
    (&LEVELS, &DYNAMIC)
}

/// Puts an NF4 matrix together: `codes` are the scales of its blocks as numbers of levels, `offset` and `groups` what
/// they are made of, and `level(i)` is the number of value `i` of the matrix.
///
/// # Panics
/// Where the lengths are not those of the matrix, or `level` is not below 16.
pub fn pack_nf4(codes: &[u8], offset: f32, groups: &[f32], level: impl Fn(usize) -> u8, out: &mut [u8]) {
    assert_eq!(groups.len(), codes.len().div_ceil(GROUP), "groups of {} blocks", codes.len());
    let (blocks, tail) = out.split_at_mut(codes.len() * BYTES);
    for (i, (block, code)) in blocks.chunks_exact_mut(BYTES).zip(codes).enumerate() {
        block[0] = *code;
        for (j, byte) in block[1..].iter_mut().enumerate() {
            let (low, high) = (level(LEN * i + j), level(LEN * i + 32 + j));
            assert!(low < 16 && high < 16, "levels of four bits");
            *byte = low | high << 4;
        }
    }
    let values = std::iter::once(&offset).chain(groups);
    tail.chunks_exact_mut(4).zip(values).for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
}

/// The scales of the blocks of row `row` (Hugging Face's order) of an NF4 matrix.
///
/// # Panics
/// Where `w` is of another format, or has no such row.
pub fn nf4_scales(w: &WeightRef<'_>, row: usize) -> Vec<f32> {
    assert_eq!(w.format, crate::Format::NF4, "nf4_scales: {}", w.format.name());
    let row = Row::of(w, row);
    (0..row.blocks.len() / BYTES).map(|block| row.block(block).0).collect()
}

#[inline(always)]
fn float_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Expands the values `cols` of a row. `level` must be available.
pub(crate) fn expand(level: Level, row: &Row, cols: Range<usize>, out: &mut [f32]) {
    match level {
        // SAFETY: the level is available, and AVX-512 includes AVX2.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 | Level::Amx => unsafe { avx2::expand(row, cols, out) },
        _ => expand_blocks(row, cols, out, |scale, quants, out| {
            let (low, high) = out.split_at_mut(32);
            for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
                *low = LEVELS[usize::from(q & 15)] * scale;
                *high = LEVELS[usize::from(q >> 4)] * scale;
            }
        }),
    }
}

/// The loop over blocks behind [`expand`]: `block` expands a whole one.
#[inline(always)]
fn expand_blocks(
    row: &Row,
    cols: Range<usize>,
    mut out: &mut [f32],
    block: impl Fn(f32, &[u8; 32], &mut [f32; LEN]),
) {
    let mut at = cols.start;
    while at < cols.end {
        let skip = at % LEN;
        let take = (LEN - skip).min(cols.end - at);
        let (now, rest) = out.split_at_mut(take);
        let (scale, quants) = row.block(at / LEN);
        match <&mut [f32; LEN]>::try_from(&mut *now) {
            Ok(now) => block(scale, quants, now),
            Err(_) => {
                let mut whole = [0.0; LEN];
                block(scale, quants, &mut whole);
                now.copy_from_slice(&whole[skip..skip + take]);
            }
        }
        out = rest;
        at += take;
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::{BYTES, LEN, LEVELS, Row, expand_blocks};
    use crate::simd::{Avx2, Vector};

    /// The levels that the low four bits of each lane name.
    ///
    /// # Safety
    /// Inlined into a function compiled for AVX2, on a CPU that has it.
    #[inline(always)]
    unsafe fn levels(q: __m256i) -> __m256 {
        // SAFETY: the table has sixteen values; the caller vouches for the CPU.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(LEVELS.as_ptr()), _mm256_loadu_ps(LEVELS.as_ptr().add(8)));
            // Three bits choose within a half, the fourth (moved to the sign) chooses the half.
            let (low, high) = (_mm256_permutevar8x32_ps(low, q), _mm256_permutevar8x32_ps(high, q));
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(q, 28)))
        }
    }

    /// Calls `each(i, v)` for the levels `8 i .. 8 i + 8` of a block.
    ///
    /// # Safety
    /// As [`levels`].
    #[inline(always)]
    unsafe fn visit(quants: &[u8; 32], mut each: impl FnMut(usize, __m256)) {
        for i in 0..4 {
            // SAFETY: eight of 32 bytes; the caller vouches for the CPU.
            unsafe {
                let q = _mm256_cvtepu8_epi32(_mm_loadl_epi64(quants.as_ptr().add(8 * i).cast()));
                each(i, levels(q));
                each(i + 4, levels(_mm256_srli_epi32(q, 4)));
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn expand(row: &Row, cols: Range<usize>, out: &mut [f32]) {
        expand_blocks(
            row,
            cols,
            out,
            #[inline(always)]
            |scale, quants, out| {
                // SAFETY: this is inlined into a function for AVX2, and `out` has 8 vectors.
                unsafe {
                    let scale = _mm256_set1_ps(scale);
                    visit(
                        quants,
                        #[inline(always)]
                        |i, v| _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), _mm256_mul_ps(v, scale)),
                    );
                }
            },
        );
    }

    /// The dot products of a row of `k` values with `T` vectors of `k` values, `stride` apart.
    ///
    /// # Safety
    /// Inlined into a function compiled for AVX2 and FMA, on a CPU that has them; `x` covers its vectors.
    #[inline(always)]
    pub(crate) unsafe fn dots<const T: usize>(row: &Row, k: usize, x: *const f32, stride: usize) -> [f32; T] {
        assert_eq!(row.blocks.len(), k / LEN * BYTES, "a row of {k} values");
        // SAFETY: the caller's promises.
        unsafe {
            let mut sums = [_mm256_setzero_ps(); T];
            for at in (0..k).step_by(LEN) {
                let (scale, quants) = row.block(at / LEN);
                // Within a block the levels are summed without their scale.
                let mut block = [[_mm256_setzero_ps(); 2]; T];
                visit(
                    quants,
                    #[inline(always)]
                    |i, v| {
                        for (t, sums) in block.iter_mut().enumerate() {
                            let x = _mm256_loadu_ps(x.add(t * stride + at + 8 * i));
                            sums[i % 2] = _mm256_fmadd_ps(v, x, sums[i % 2]);
                        }
                    },
                );
                let scale = _mm256_set1_ps(scale);
                for (sum, [a, b]) in sums.iter_mut().zip(block) {
                    *sum = _mm256_fmadd_ps(scale, _mm256_add_ps(a, b), *sum);
                }
            }
            sums.map(|sum| Avx2::of(sum).sum())
        }
    }
}

/// Quantises a matrix into `out` (of `Format::matrix_bytes`), whose row `i` is what `fill(i, row)` writes.
pub(crate) fn quantize(
    rows: usize,
    cols: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
    out: &mut [u8],
) -> Result<(), QuantizeError> {
    let across = cols / LEN;
    let (blocks, tail) = out.split_at_mut(rows * across * BYTES);
    let mut scales = vec![0.0f32; rows * across];
    let row_of = |(row, (blocks, scales)): (usize, (&mut [u8], &mut [f32]))| {
        let mut numbers = vec![0.0; cols];
        fill(row, &mut numbers);
        let blocks = blocks.chunks_exact_mut(BYTES);
        for ((block, scale), numbers) in blocks.zip(scales).zip(numbers.chunks_exact(LEN)) {
            *scale = numbers.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            if !numbers.iter().all(|x| x.is_finite()) {
                return Err(QuantizeError::NotFinite { row });
            }
            let inverse = 1.0 / scale.max(1e-38);
            let quant = |x: f32| nearest(&LEVELS, (x * inverse).clamp(-1.0, 1.0)) as u8;
            let (low, high) = numbers.split_at(32);
            for ((to, low), high) in block[1..].iter_mut().zip(low).zip(high) {
                *to = quant(*low) | quant(*high) << 4;
            }
        }
        Ok(())
    };
    let by_row = blocks.par_chunks_exact_mut(across * BYTES).zip(scales.par_chunks_exact_mut(across));
    by_row.enumerate().try_for_each(row_of)?;

    let mean = scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len() as f64;
    let offset = mean as f32;
    tail[..4].copy_from_slice(&offset.to_le_bytes());
    for (g, scales) in scales.chunks(GROUP).enumerate() {
        let group = scales.iter().fold(0.0f32, |most, s| most.max((s - offset).abs()));
        tail[4 + 4 * g..][..4].copy_from_slice(&group.to_le_bytes());
        for (i, scale) in scales.iter().enumerate() {
            let code = nearest(&DYNAMIC, (scale - offset) * (1.0 / group.max(1e-38)));
            blocks[(g * GROUP + i) * BYTES] = code as u8;
        }
    }
    Ok(())
}

/// The index of the level nearest to `x`, the lower of two that are equally near. `levels` rise.
fn nearest(levels: &[f32], x: f32) -> usize {
    let at = levels.partition_point(|level| *level < x);
    if at == 0 || at == levels.len() {
        return at.min(levels.len() - 1);
    }
    if x <= (levels[at - 1] + levels[at]) / 2.0 { at - 1 } else { at }
}

//! f32 to GGUF's K-quants, as ggml's reference quantisers choose them (`quantize_row_q4_K_ref` and its kin), bit for bit.
//!
//! A super-block of 256 values has sub-blocks with a scale each (Q4_K and Q5_K: and a minimum), which are quantised
//! themselves. Each sub-block is fitted alone, by trying scales around the one that its range suggests; then the scales
//! are rounded, and the values get their levels anew. Sums run in the order of the values, since their last bit decides
//! between two scales.

use super::blocks::{f16_to_f32, k_scale_min};
use super::encode::{extreme, put_half};

/// Values of a super-block.
const LEN: usize = 256;
/// Scales below this are taken for zero.
const TINY: f32 = 1e-15;

/// The nearest whole number, ties to even: at 1.5 * 2^23 an f32 has no bits for a fraction.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    x + SHIFT - SHIFT
}

/// Appends `row` as Q4_K. Levels are 0 to 15.
pub(super) fn q4_k(row: &[f32], out: &mut Vec<u8>) {
    for block in row.as_chunks().0 {
        let Affine { header, levels } = affine_block(block, 15.0, -1.0, 20);
        out.extend(header);
        for pair in levels.as_chunks::<64>().0 {
            out.extend((0..32).map(|i| pair[i] | pair[i + 32] << 4));
        }
    }
}

/// Appends `row` as Q5_K. Levels are 0 to 31; their fifth bits come first.
pub(super) fn q5_k(row: &[f32], out: &mut Vec<u8>) {
    for block in row.as_chunks().0 {
        let Affine { header, levels } = affine_block(block, 31.0, -0.5, 15);
        out.extend(header);
        out.extend((0..32).map(|i| (0..8).fold(0, |bits, part| bits | levels[32 * part + i] >> 4 << part)));
        for pair in levels.as_chunks::<64>().0 {
            out.extend((0..32).map(|i| pair[i] & 15 | pair[i + 32] << 4));
        }
    }
}

/// Appends `row` as Q6_K. Levels are -32 to 31, and scales may be negative.
pub(super) fn q6_k(row: &[f32], out: &mut Vec<u8>) {
    for block in row.as_chunks::<LEN>().0 {
        let (mut levels, mut scales) = ([0u8; LEN], [0.0f32; 16]);
        let parts = block.as_chunks::<16>().0;
        for ((x, levels), scale) in parts.iter().zip(levels.as_chunks_mut().0).zip(&mut scales) {
            *scale = symmetric(x, levels);
        }
        let largest = extreme(&scales);
        if largest.abs() < TINY {
            out.resize(out.len() + 210, 0);
            continue;
        }
        let inverse = -128.0 / largest;
        let d = half::f16::from_f32(1.0 / inverse);
        let scales = scales.map(|scale| nearest(inverse * scale).min(127.0) as i8);
        for ((x, levels), scale) in parts.iter().zip(levels.as_chunks_mut::<16>().0).zip(scales) {
            let step = d.to_f32() * f32::from(scale);
            if step != 0.0 {
                *levels = x.map(|x| (nearest(x / step).clamp(-32.0, 31.0) + 32.0) as u8);
            }
        }
        // Of 128 levels the low halves in pairs, of the whole block the upper two bits, then.
        let halves = levels.as_chunks::<128>().0;
        for half in halves {
            out.extend((0..64).map(|i| half[i] & 15 | half[i + 64] << 4));
        }
        for half in halves {
            let upper = |i: usize| (0..4).fold(0, |bits, part| bits | half[32 * part + i] >> 4 << (2 * part));
            out.extend((0..32).map(upper));
        }
        out.extend(scales.map(|scale| scale as u8));
        out.extend(d.to_le_bytes());
    }
}

/// A super-block of Q4_K or Q5_K but for the packing of its levels.
struct Affine {
    /// `d`, `dmin` and the 6-bit scales and minima.
    header: [u8; 16],
    levels: [u8; LEN],
}

/// Fits `x ~ d * scale * level - dmin * min`, where each of eight sub-blocks has its own scale and min (0 to 63).
fn affine_block(x: &[f32; LEN], top: f32, first: f32, steps: u8) -> Affine {
    let mut levels = [0; LEN];
    let (mut scales, mut mins) = ([0.0f32; 8], [0.0f32; 8]);
    let parts = x.as_chunks::<32>().0;
    for (j, (x, levels)) in parts.iter().zip(levels.as_chunks_mut().0).enumerate() {
        (scales[j], mins[j]) = affine(x, top, first, steps, levels);
    }
    let mut header = Vec::with_capacity(16);
    let mut rounded = |values: &[f32; 8]| {
        let most = values.iter().copied().fold(0.0, f32::max);
        let inverse = if most > 0.0 { 63.0 / most } else { 0.0 };
        put_half(most / 63.0, &mut header);
        values.map(|x| (nearest(inverse * x) as i32 as u8).min(63))
    };
    let (scales, mins) = (rounded(&scales), rounded(&mins));
    let mut header: [u8; 16] = [&header[..], &[0; 12]].concat().try_into().expect("four bytes and twelve");
    let packed = &mut header[4..];
    for j in 0..4 {
        // The first four whole, with the upper two bits of the last four above them.
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        packed[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
    let half = |at: usize| f16_to_f32(u16::from_le_bytes([header[at], header[at + 1]]));
    for (j, (x, levels)) in parts.iter().zip(levels.as_chunks_mut::<32>().0).enumerate() {
        let (scale, min) = k_scale_min(&header[4..], j);
        let (step, min) = (half(0) * scale, half(2) * min);
        if step != 0.0 {
            *levels = x.map(|x| nearest((x + min) / step).clamp(0.0, top) as u8);
        }
    }
    Affine { header, levels }
}

/// Fits `x ~ scale * level - min` with levels of 0 to `top` and `min` of at least 0: `(scale, min)`. An error counts
/// more where a value is large.
///
/// Beside the range itself, it tries `steps + 1` scales that have `first`, `first + 0.1` and so on more levels between the
/// best min so far and the largest value: each rounds the values to levels, for which least squares gives scale and min.
fn affine(x: &[f32; 32], top: f32, first: f32, steps: u8, levels: &mut [u8; 32]) -> (f32, f32) {
    let rms = (x.iter().fold(0.0, |sum, x| sum + x * x) / 32.0).sqrt();
    let weights = x.map(|x| rms + x.abs());
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(f32::MIN, f32::max);
    if high <= low {
        return (0.0, -low);
    }
    let sum_w = weights.iter().fold(0.0, |sum, w| sum + w);
    let sum_x = weights.iter().zip(x).fold(0.0, |sum, (w, x)| sum + w * x);
    let levels_by = |inverse: f32, min: f32| x.map(|x| nearest(inverse * (x - min)).clamp(0.0, top));
    let error = |scale: f32, min: f32, levels: &[f32; 32]| {
        let lost = |i: usize| scale * levels[i] + min - x[i];
        (0..32).fold(0.0, |sum, i| sum + weights[i] * (lost(i) * lost(i)))
    };
    let inverse = top / (high - low);
    let (mut scale, mut min) = (1.0 / inverse, low);
    let mut best = levels_by(inverse, min);
    let mut least = error(scale, min, &best);
    for step in 0..=steps {
        let tried = levels_by((first + 0.1 * f32::from(step) + top) / (high - min), min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((x, w), l) in x.iter().zip(&weights).zip(&tried) {
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_min > 0.0 {
                (new_scale, new_min) = (sum_xl / sum_l2, 0.0);
            }
            let new_error = error(new_scale, new_min, &tried);
            if new_error < least {
                (least, scale, min, best) = (new_error, new_scale, new_min, tried);
            }
        }
    }
    *levels = best.map(|level| level as u8);
    (scale, -min)
}

/// Fits `x ~ scale * level` with levels of -32 to 31, which `levels` has plus 32: the scale. Errors count by the square
/// of the value.
///
/// The value of largest magnitude becomes level -32, or one that is up to 0.9 more or less before rounding; for the
/// levels that this gives to all, least squares gives the scale.
fn symmetric(x: &[f32; 16], levels: &mut [u8; 16]) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        return 0.0;
    }
    let fit = |more: f32| {
        let inverse = -(32.0 + more) / extreme;
        let levels = x.map(|x| nearest(inverse * x).clamp(-32.0, 31.0));
        let (mut sum_xl, mut sum_l2) = (0.0, 0.0);
        for (x, l) in x.iter().zip(&levels) {
            let w = x * x;
            sum_xl += w * x * l;
            sum_l2 += w * l * l;
        }
        (levels, sum_xl, sum_l2)
    };
    let (mut best, sum_xl, sum_l2) = fit(0.0);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut most = scale * sum_xl;
    for step in (-9i8..=9).filter(|step| *step != 0) {
        let (tried, sum_xl, sum_l2) = fit(0.1 * f32::from(step));
        if sum_l2 > 0.0 && sum_xl * sum_xl > most * sum_l2 {
            scale = sum_xl / sum_l2;
            (most, best) = (scale * sum_xl, tried);
        }
    }
    *levels = best.map(|level| (level + 32.0) as u8);
    scale
}

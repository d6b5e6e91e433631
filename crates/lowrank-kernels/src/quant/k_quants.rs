//! f32 to GGUF's K-quants, as ggml's reference quantisers choose them (`quantize_row_q4_K_ref` and its kin), bit for bit.
//!
//! A super-block of 256 values has sub-blocks with a scale each (Q4_K and Q5_K: and a minimum), which are quantised
//! themselves. Each sub-block is fitted alone, by trying scales around the one that its range suggests; then the scales
//! are rounded, and the values get their levels anew.
//!
//! The sub-blocks of a super-block are fitted side by side, one in each SIMD lane: value `i` of sub-block `j` is
//! `x[i][j]`. The sums of one sub-block run in the order of its values, since their last bit decides between two scales.

use super::blocks::{f16_to_f32, k_scale_min};
use super::small_blocks::{extreme, put_half};

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

/// `f32::clamp` without a care for NaN.
#[inline(always)]
fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// Value `i` of `N` sub-blocks `j` of `M` values at `[i][j]`.
fn side_by_side<const N: usize, const M: usize>(x: &[f32; LEN]) -> [[f32; N]; M] {
    std::array::from_fn(|i| std::array::from_fn(|j| x[M * j + i]))
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
        out.extend((0..32).map(|i| (0..8).fold(0, |bits, j| bits | levels[32 * j + i] >> 4 << j)));
        for pair in levels.as_chunks::<64>().0 {
            out.extend((0..32).map(|i| pair[i] & 15 | pair[i + 32] << 4));
        }
    }
}

/// Appends `row` as Q6_K. Levels are -32 to 31, stored plus 32; scales may be negative.
pub(super) fn q6_k(row: &[f32], out: &mut Vec<u8>) {
    for block in row.as_chunks::<LEN>().0 {
        let (scales, fitted) = symmetric(&side_by_side(block));
        let largest = extreme(&scales);
        if largest.abs() < TINY {
            out.resize(out.len() + 210, 0);
            continue;
        }
        let inverse = -128.0 / largest;
        let d = half::f16::from_f32(1.0 / inverse);
        let scales = scales.map(|scale| nearest(inverse * scale).min(127.0) as i8);
        let mut levels = [0; LEN];
        for (at, level) in levels.iter_mut().enumerate() {
            let step = d.to_f32() * f32::from(scales[at / 16]);
            let found = within(nearest(block[at] / step), -32.0, 31.0);
            *level = (if step == 0.0 { fitted[at % 16][at / 16] } else { found } + 32.0) as u8;
        }
        let halves = levels.as_chunks::<128>().0;
        // The low four bits, in pairs, and then the upper two.
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
    let (scales, mins, fitted) = affine(&side_by_side(x), top, first, steps);
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
    let mut levels = [0; LEN];
    for (j, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = k_scale_min(&header[4..], j);
        let (step, min) = (half(0) * scale, half(2) * min);
        for (i, level) in levels.iter_mut().enumerate() {
            let found = within(nearest((x[32 * j + i] + min) / step), 0.0, top);
            *level = if step == 0.0 { fitted[i][j] } else { found } as u8;
        }
    }
    Affine { header, levels }
}

/// Fits `x ~ scale * level - min` with levels of 0 to `top` and a `min` of at least 0 to each sub-block: its scale, min and
/// levels. An error counts more where a value is large.
///
/// Beside the range itself, it tries `steps + 1` scales that have `first`, `first + 0.1` and so on more levels between the
/// best min so far and the largest value: each rounds the values to levels, for which least squares gives scale and min.
fn affine(x: &[[f32; 8]; 32], top: f32, first: f32, steps: u8) -> ([f32; 8], [f32; 8], [[f32; 8]; 32]) {
    let zero = [0.0f32; 8];
    let (mut squares, mut min, mut high) = (zero, zero, [f32::MIN; 8]);
    for x in x {
        for j in 0..8 {
            squares[j] += x[j] * x[j];
            min[j] = if x[j] < min[j] { x[j] } else { min[j] };
            high[j] = if x[j] > high[j] { x[j] } else { high[j] };
        }
    }
    let rms = squares.map(|sum| (sum / 32.0).sqrt());
    let weights = x.map(|x| -> [f32; 8] { std::array::from_fn(|j| rms[j] + x[j].abs()) });
    let (mut sum_w, mut sum_x) = (zero, zero);
    for (x, w) in x.iter().zip(&weights) {
        for j in 0..8 {
            sum_w[j] += w[j];
            sum_x[j] += w[j] * x[j];
        }
    }
    // A sub-block of one value has no scale.
    let flat: [bool; 8] = std::array::from_fn(|j| high[j] <= min[j]);
    let level = |x: f32, min: f32, inverse: f32| within(nearest(inverse * (x - min)), 0.0, top);
    let error = |scale: &[f32; 8], min: &[f32; 8], levels: &[[f32; 8]; 32]| {
        let mut sum = zero;
        for ((x, w), l) in x.iter().zip(&weights).zip(levels) {
            for j in 0..8 {
                let lost = scale[j] * l[j] + min[j] - x[j];
                sum[j] += w[j] * (lost * lost);
            }
        }
        sum
    };
    let inverses = |levels: f32, min: &[f32; 8]| -> [f32; 8] {
        std::array::from_fn(|j| if flat[j] { 0.0 } else { levels / (high[j] - min[j]) })
    };
    let inverse = inverses(top, &min);
    let mut scale: [f32; 8] = std::array::from_fn(|j| if flat[j] { 0.0 } else { 1.0 / inverse[j] });
    let mut best = x.map(|x| -> [f32; 8] { std::array::from_fn(|j| level(x[j], min[j], inverse[j])) });
    let mut least = error(&scale, &min, &best);
    let mut tried = [zero; 32];
    for step in 0..=steps {
        let inverse = inverses(first + 0.1 * f32::from(step) + top, &min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for ((x, w), l) in x.iter().zip(&weights).zip(&mut tried) {
            for j in 0..8 {
                l[j] = level(x[j], min[j], inverse[j]);
                sum_l[j] += w[j] * l[j];
                sum_l2[j] += w[j] * l[j] * l[j];
                sum_xl[j] += w[j] * l[j] * x[j];
            }
        }
        let (mut new_scale, mut new_min, mut solved) = (zero, zero, [false; 8]);
        for j in 0..8 {
            let determinant = sum_w[j] * sum_l2[j] - sum_l[j] * sum_l[j];
            solved[j] = determinant > 0.0 && !flat[j];
            new_scale[j] = (sum_w[j] * sum_xl[j] - sum_x[j] * sum_l[j]) / determinant;
            new_min[j] = (sum_l2[j] * sum_x[j] - sum_l[j] * sum_xl[j]) / determinant;
            if new_min[j] > 0.0 {
                (new_scale[j], new_min[j]) = (sum_xl[j] / sum_l2[j], 0.0);
            }
        }
        let new_error = error(&new_scale, &new_min, &tried);
        for j in 0..8 {
            if solved[j] && new_error[j] < least[j] {
                (least[j], scale[j], min[j]) = (new_error[j], new_scale[j], new_min[j]);
                best.iter_mut().zip(&tried).for_each(|(best, tried)| best[j] = tried[j]);
            }
        }
    }
    (scale, min.map(|min| -min), best)
}

/// Fits `x ~ scale * level` with levels of -32 to 31 to each sub-block: its scale and levels. An error counts by the square
/// of the value.
///
/// The value of largest magnitude becomes level -32, or one that is up to 0.9 more or less before rounding; for the
/// levels that this gives to all, least squares gives the scale.
fn symmetric(x: &[[f32; 16]; 16]) -> ([f32; 16], [[f32; 16]; 16]) {
    let zero = [0.0f32; 16];
    let mut extreme = zero;
    for x in x {
        for j in 0..16 {
            extreme[j] = if x[j].abs() > extreme[j].abs() { x[j] } else { extreme[j] };
        }
    }
    let none = extreme.map(|x| x.abs() < TINY);
    let (mut scale, mut most, mut best) = (zero, zero, [[-32.0; 16]; 16]);
    let mut tried = [zero; 16];
    // Zero, which the others must better, comes first.
    for step in [0].into_iter().chain(-9..=-1).chain(1i8..=9) {
        let inverse = extreme.map(|x| -(32.0 + 0.1 * f32::from(step)) / x);
        let (mut sum_xl, mut sum_l2) = (zero, zero);
        for (x, l) in x.iter().zip(&mut tried) {
            for j in 0..16 {
                l[j] = within(nearest(inverse[j] * x[j]), -32.0, 31.0);
                let w = x[j] * x[j];
                sum_xl[j] += w * x[j] * l[j];
                sum_l2[j] += w * l[j] * l[j];
            }
        }
        for j in 0..16 {
            let better = sum_l2[j] > 0.0 && sum_xl[j] * sum_xl[j] > most[j] * sum_l2[j];
            if !none[j] && (step == 0 || better) {
                scale[j] = if sum_l2[j] == 0.0 { 0.0 } else { sum_xl[j] / sum_l2[j] };
                most[j] = scale[j] * sum_xl[j];
                best.iter_mut().zip(&tried).for_each(|(best, tried)| best[j] = tried[j]);
            }
        }
    }
    (scale, best)
}

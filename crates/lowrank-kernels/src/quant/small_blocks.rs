//! f32 to GGUF's blocks of 32 values, as ggml's reference quantisers round them (`quantize_row_q4_0_ref` and its kin).

use half::f16;

/// Appends `x` as f16.
pub(super) fn put_half(x: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(x).to_le_bytes());
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Appends a block as Q8_0.
pub(super) fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let d = block.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
    let id = inverse(d);
    put_half(d, out);
    out.extend(block.iter().map(|x| (x * id).round() as i8 as u8));
}

/// The value of largest magnitude, with its sign (the first of several).
pub(super) fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, &x| if x.abs() > most.abs() { x } else { most })
}

/// Step and least value of levels from 0 to `top` over the range of the values.
fn range(block: &[f32], top: f32) -> (f32, f32) {
    let min = block.iter().copied().fold(f32::MAX, f32::min);
    let max = block.iter().copied().fold(f32::MIN, f32::max);
    ((max - min) / top, min)
}

/// Packs 32 quants of four bits: value `i` in the low half of byte `i`, `i + 16` in the high half.
fn put_nibbles(block: &[f32], quant: impl Fn(f32) -> u8, out: &mut Vec<u8>) {
    let (low, high) = block.split_at(16);
    out.extend(low.iter().zip(high).map(|(&a, &b)| quant(a).min(15) | quant(b).min(15) << 4));
}

/// Packs 32 quants of five bits: the fifth bits, bit `i` of value `i`, then the others as [`put_nibbles`] does.
fn put_five_bits(block: &[f32], quant: impl Fn(f32) -> u8, out: &mut Vec<u8>) {
    let fifth = |bits, (i, &x): (usize, &f32)| bits | u32::from(quant(x).min(31) >> 4) << i;
    out.extend(block.iter().enumerate().fold(0, fifth).to_le_bytes());
    put_nibbles(block, |x| quant(x).min(31) & 15, out);
}

/// Appends a block as Q4_0.
pub(super) fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The value of largest magnitude becomes -8: the range is -8..=7.
    let d = extreme(block) / -8.0;
    let id = inverse(d);
    put_half(d, out);
    put_nibbles(block, |x| (x * id + 8.5) as u8, out);
}

/// Appends a block as Q4_1.
pub(super) fn q4_1(block: &[f32], out: &mut Vec<u8>) {
    let (d, min) = range(block, 15.0);
    let id = inverse(d);
    put_half(d, out);
    put_half(min, out);
    put_nibbles(block, |x| ((x - min) * id + 0.5) as u8, out);
}

/// Appends a block as Q5_0.
pub(super) fn q5_0(block: &[f32], out: &mut Vec<u8>) {
    let d = extreme(block) / -16.0;
    let id = inverse(d);
    put_half(d, out);
    put_five_bits(block, |x| (x * id + 16.5) as u8, out);
}

/// Appends a block as Q5_1.
pub(super) fn q5_1(block: &[f32], out: &mut Vec<u8>) {
    let (d, min) = range(block, 31.0);
    let id = inverse(d);
    put_half(d, out);
    put_half(min, out);
    put_five_bits(block, |x| ((x - min) * id + 0.5) as u8, out);
}

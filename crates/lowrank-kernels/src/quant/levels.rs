//! Block formats whose values are a small integer times a scale that 16 or more values share.
//!
//! Each is one function from a block to integers and scales; everything else follows from it.

use super::block::{Block, half_at};
use super::grids;
use crate::format::WeightRef;

/// Values that share a scale in every format here.
const RUN: usize = 16;

/// A block as integers and scales.
trait Levels: Block {
    /// Writes `LEN` integers, and a scale for each [`RUN`] of them.
    fn levels(block: &[u8], quants: &mut [i8], scales: &mut [f32]);
}

macro_rules! levels {
    ($name:ident, $len:literal, $bytes:literal, |$block:ident, $q:ident, $d:ident| $body:block) => {
        #[allow(non_camel_case_types)]
        pub(crate) struct $name;

        impl Levels for $name {
            #[inline(always)]
            fn levels($block: &[u8], $q: &mut [i8], $d: &mut [f32]) {
                // Fixed sizes let the compiler drop the bounds checks and vectorise.
                let $block: &[u8; $bytes] = $block.try_into().expect("a whole block");
                let $q: &mut [i8; $len] = $q.try_into().expect("room for a whole block");
                let $d: &mut [f32; $len / RUN] = $d.try_into().expect("room for its scales");
                $body
            }
        }

        impl Block for $name {
            const LEN: usize = $len;
            const BYTES: usize = $bytes;
            #[inline(always)]
            fn decode(block: &[u8], out: &mut [f32]) {
                let (mut quants, mut scales) = ([0; $len], [0.0; $len / RUN]);
                Self::levels(block, &mut quants, &mut scales);
                let runs = out.chunks_exact_mut(RUN).zip(quants.chunks_exact(RUN)).zip(scales);
                for ((out, quants), scale) in runs {
                    for (out, q) in out.iter_mut().zip(quants) {
                        *out = f32::from(*q) * scale;
                    }
                }
            }
        }
    };
}

/// Row `row` (Hugging Face's order) as integers, and a scale for each 16 of them; `None` where the format has none.
pub fn row_levels(w: &WeightRef<'_>, row: usize) -> Option<(Vec<i8>, Vec<f32>)> {
    fn all<B: Levels>(row: &[u8]) -> (Vec<i8>, Vec<f32>) {
        let blocks = row.len() / B::BYTES;
        let (mut quants, mut scales) = (vec![0; blocks * B::LEN], vec![0.0; blocks * B::LEN / RUN]);
        let places = quants.chunks_exact_mut(B::LEN).zip(scales.chunks_exact_mut(B::LEN / RUN));
        for ((quants, scales), block) in places.zip(row.chunks_exact(B::BYTES)) {
            B::levels(block, quants, scales);
        }
        (quants, scales)
    }
    macro_rules! of {
        ($($name:ident)*) => {
            match w.format {
                $(crate::Format::$name => Some(all::<$name>(w.row(row))),)*
                _ => None,
            }
        };
    }
    of!(Q3_K Q8_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0 INT4 INT8)
}

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Four bits of a list of them, low ones first.
#[inline(always)]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}

/// The integers that four bits stand for: the low halves of the bytes, then the high ones.
#[inline(always)]
fn look_up(table: &[i8; 16], bytes: &[u8], quants: &mut [i8]) {
    let (low, high) = quants.split_at_mut(bytes.len());
    for ((low, high), q) in low.iter_mut().zip(high).zip(bytes) {
        *low = table[usize::from(q & 15)];
        *high = table[usize::from(q >> 4)];
    }
}

/// Copies an entry of a grid, with a minus where a bit of `signs` is set.
#[inline(always)]
fn put_signed(entry: &[i8], signs: u8, quants: &mut [i8]) {
    for (i, (q, level)) in quants.iter_mut().zip(entry).enumerate() {
        *q = if signs >> i & 1 == 0 { *level } else { -level };
    }
}

/// Eight signs of which seven are stored: the number of minuses is even.
#[inline(always)]
fn even_signs(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}

levels!(Q3_K, 256, 110, |block, q, d| {
    let (high, rest) = block.split_at(32);
    let (low, scales) = rest.split_at(64);
    let super_scale = half_at(block, 108);
    for (run, d) in d.iter_mut().enumerate() {
        let upper = scales[8 + run % 4] >> (2 * (run / 4)) & 3;
        let lower = scales[run % 8] >> (4 * (run / 8)) & 15;
        *d = super_scale * f32::from((lower | upper << 4) as i8 - 32);
    }
    for (part, q) in q.chunks_exact_mut(32).enumerate() {
        let low = &low[part / 4 * 32..][..32];
        let shift = part % 4 * 2;
        for ((q, low), high) in q.iter_mut().zip(low).zip(high) {
            // The third bit, where it is missing, takes four away.
            *q = (low >> shift & 3 | (high >> part & 1) << 2) as i8 - 4;
        }
    }
});

levels!(Q8_K, 256, 292, |block, q, d| {
    *d = [f32::from_bits(u32_at(block, 0)); 16];
    for (q, byte) in q.iter_mut().zip(&block[4..260]) {
        *q = *byte as i8;
    }
});

/// `IQ4_NL`'s levels.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

levels!(IQ4_NL, 32, 18, |block, q, d| {
    *d = [half_at(block, 0); 2];
    look_up(&IQ4, &block[2..], q);
});

levels!(IQ4_XS, 256, 136, |block, q, d| {
    let super_scale = half_at(block, 0);
    let upper = u16_at(block, 2);
    for part in 0..8 {
        let scale = nibble(&block[4..8], part) | ((upper >> (2 * part) & 3) as u8) << 4;
        let scale = super_scale * f32::from(scale as i8 - 32);
        d[2 * part] = scale;
        d[2 * part + 1] = scale;
        look_up(&IQ4, &block[8 + 16 * part..][..16], &mut q[32 * part..][..32]);
    }
});

levels!(IQ2_XXS, 256, 66, |block, q, d| {
    let super_scale = half_at(block, 0);
    for part in 0..8 {
        let from = &block[2 + 8 * part..][..8];
        let word = u32_at(from, 4);
        let scale = super_scale * (0.5 + (word >> 28) as f32) * 0.25;
        d[2 * part] = scale;
        d[2 * part + 1] = scale;
        for i in 0..4 {
            let entry = &grids::IQ2_XXS[usize::from(from[i])];
            put_signed(entry, even_signs(word >> (7 * i)), &mut q[32 * part + 8 * i..][..8]);
        }
    }
});

levels!(IQ2_XS, 256, 74, |block, q, d| {
    let super_scale = half_at(block, 0);
    for (run, d) in d.iter_mut().enumerate() {
        *d = super_scale * (0.5 + f32::from(nibble(&block[66..], run))) * 0.25;
    }
    for (i, q) in q.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 2 + 2 * i);
        put_signed(&grids::IQ2_XS[usize::from(word & 511)], even_signs(u32::from(word >> 9)), q);
    }
});

levels!(IQ2_S, 256, 82, |block, q, d| {
    let super_scale = half_at(block, 0);
    for (run, d) in d.iter_mut().enumerate() {
        *d = super_scale * (0.5 + f32::from(nibble(&block[74..], run))) * 0.25;
    }
    for (i, q) in q.chunks_exact_mut(8).enumerate() {
        let upper = block[66 + i / 4] >> (2 * (i % 4)) & 3;
        let index = usize::from(block[2 + i]) | usize::from(upper) << 8;
        put_signed(&grids::IQ2_S[index], block[34 + i], q);
    }
});

levels!(IQ3_XXS, 256, 98, |block, q, d| {
    let super_scale = half_at(block, 0);
    for part in 0..8 {
        let word = u32_at(block, 66 + 4 * part);
        let scale = super_scale * (0.5 + (word >> 28) as f32) * 0.5;
        d[2 * part] = scale;
        d[2 * part + 1] = scale;
        for i in 0..8 {
            let entry = &grids::IQ3_XXS[usize::from(block[2 + 8 * part + i])];
            let signs = even_signs(word >> (7 * (i / 2))) >> (4 * (i % 2));
            put_signed(entry, signs, &mut q[32 * part + 4 * i..][..4]);
        }
    }
});

levels!(IQ3_S, 256, 110, |block, q, d| {
    let super_scale = half_at(block, 0);
    for (run, d) in d.iter_mut().enumerate() {
        *d = super_scale * f32::from(1 + 2 * nibble(&block[106..], run / 2));
    }
    for (i, q) in q.chunks_exact_mut(4).enumerate() {
        let upper = block[66 + i / 8] >> (i % 8) & 1;
        let index = usize::from(block[2 + i]) | usize::from(upper) << 8;
        put_signed(&grids::IQ3_S[index], block[74 + i / 2] >> (4 * (i % 2)), q);
    }
});

/// Eight times an entry of the grid of `IQ1_S`, plus or minus one: its levels are moved by an eighth.
#[inline(always)]
fn put_moved(index: usize, down: bool, quants: &mut [i8]) {
    let by = if down { -1 } else { 1 };
    for (q, level) in quants.iter_mut().zip(&grids::IQ1_S[index]) {
        *q = 8 * level + by;
    }
}

levels!(IQ1_S, 256, 50, |block, q, d| {
    let super_scale = half_at(block, 0);
    for part in 0..8 {
        let word = u16_at(block, 34 + 2 * part);
        let scale = super_scale * f32::from(2 * (word >> 12 & 7) + 1) * 0.125;
        d[2 * part] = scale;
        d[2 * part + 1] = scale;
        for i in 0..4 {
            let index = usize::from(block[2 + 4 * part + i]) | usize::from(word >> (3 * i) & 7) << 8;
            put_moved(index, word >> 15 == 1, &mut q[32 * part + 8 * i..][..8]);
        }
    }
});

levels!(IQ1_M, 256, 56, |block, q, d| {
    let words: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    // The upper four bits of the words are the scale.
    let bits = words.iter().rev().fold(0, |bits, word| bits << 4 | word >> 12);
    let super_scale = half_at(&bits.to_le_bytes(), 0);
    for (run, d) in d.iter_mut().enumerate() {
        *d = super_scale * f32::from(2 * (words[run / 4] >> (3 * (run % 4)) & 7) + 1) * 0.125;
    }
    for (i, q) in q.chunks_exact_mut(8).enumerate() {
        let upper = nibble(&block[32..48], i);
        put_moved(usize::from(block[i]) | usize::from(upper & 7) << 8, upper & 8 != 0, q);
    }
});

levels!(TQ1_0, 256, 54, |block, q, d| {
    *d = [half_at(block, 52); 16];
    // A byte is a fraction in base three: multiplied by a power of three, its next digit is on top.
    let digits = |bytes: &[u8], count: usize, q: &mut [i8]| {
        let mut power = 1u8;
        for q in q.chunks_exact_mut(bytes.len()).take(count) {
            for (q, byte) in q.iter_mut().zip(bytes) {
                *q = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
            }
            power = power.wrapping_mul(3);
        }
    };
    digits(&block[..32], 5, &mut q[..160]);
    digits(&block[32..48], 5, &mut q[160..240]);
    digits(&block[48..52], 4, &mut q[240..]);
});

levels!(TQ2_0, 256, 66, |block, q, d| {
    *d = [half_at(block, 64); 16];
    for (part, q) in q.chunks_exact_mut(32).enumerate() {
        for (q, byte) in q.iter_mut().zip(&block[part / 4 * 32..][..32]) {
            *q = (byte >> (part % 4 * 2) & 3) as i8 - 1;
        }
    }
});

/// Twice the values of E2M1, the float of four bits.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

levels!(MXFP4, 32, 17, |block, q, d| {
    // Half of `2^(e - 127)`.
    let bits = match block[0] {
        e @ 0..2 => 0x0020_0000 << e,
        e => u32::from(e - 1) << 23,
    };
    *d = [f32::from_bits(bits); 2];
    look_up(&E2M1, &block[1..], q);
});

levels!(NVFP4, 64, 36, |block, q, d| {
    for (run, d) in d.iter_mut().enumerate() {
        *d = 0.5 * e4m3_unsigned(block[run]);
        look_up(&E2M1, &block[4 + 8 * run..][..8], &mut q[16 * run..][..16]);
    }
});

/// E4M3 without its sign; what stands for NaN is 0, as in ggml.
#[inline(always)]
fn e4m3_unsigned(byte: u8) -> f32 {
    let (exponent, fraction) = (u32::from(byte >> 3 & 15), u32::from(byte & 7));
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => fraction as f32 / 512.0,
        _ => f32::from_bits((exponent + 120) << 23 | fraction << 20),
    }
}

levels!(Q1_0, 128, 18, |block, q, d| {
    *d = [half_at(block, 0); 8];
    for (i, q) in q.iter_mut().enumerate() {
        *q = (block[2 + i / 8] >> (i % 8) & 1) as i8 * 2 - 1;
    }
});

levels!(Q2_0, 64, 18, |block, q, d| {
    *d = [half_at(block, 0); 4];
    for (i, q) in q.iter_mut().enumerate() {
        *q = (block[2 + i / 4] >> (2 * (i % 4)) & 3) as i8 - 1;
    }
});

levels!(INT4, 32, 21, |block, q, d| {
    *d = [f32::from_bits(u32_at(block, 0)); 2];
    let add = block[4] as i8;
    let (low, high) = q.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[5..]) {
        *low = (byte & 15) as i8 + add;
        *high = (byte >> 4) as i8 + add;
    }
});

levels!(INT8, 64, 68, |block, q, d| {
    *d = [f32::from_bits(u32_at(block, 0)); 4];
    for (q, byte) in q.iter_mut().zip(&block[4..]) {
        *q = *byte as i8;
    }
});

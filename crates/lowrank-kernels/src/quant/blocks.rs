//! Blocks to f32.
//!
//! Products of a block scale (f16), a sub-scale (at most 7 bits) and a quant (at most 8 bits) fit
//! the 24 bits of an f32, so the order of multiplication changes no bit of the result.

use std::ops::Range;

/// One block format: `BYTES` bytes hold `LEN` values.
pub(crate) trait Block {
    const LEN: usize;
    const BYTES: usize;
    /// Expands one block. `block` has `BYTES` bytes, `out` has `LEN` values.
    fn decode(block: &[u8], out: &mut [f32]);
}

/// Runs `$body` with the type alias `$block` standing for the [`Block`] of `$format`.
macro_rules! with_block {
    ($format:expr, $block:ident => $body:expr) => {{
        match $format {
            $crate::Format::F32 => {
                type $block = $crate::quant::blocks::F32;
                $body
            }
            $crate::Format::F16 => {
                type $block = $crate::quant::blocks::F16;
                $body
            }
            $crate::Format::BF16 => {
                type $block = $crate::quant::blocks::BF16;
                $body
            }
            $crate::Format::Q4_0 => {
                type $block = $crate::quant::blocks::Q4_0;
                $body
            }
            $crate::Format::Q4_1 => {
                type $block = $crate::quant::blocks::Q4_1;
                $body
            }
            $crate::Format::Q5_0 => {
                type $block = $crate::quant::blocks::Q5_0;
                $body
            }
            $crate::Format::Q5_1 => {
                type $block = $crate::quant::blocks::Q5_1;
                $body
            }
            $crate::Format::Q8_0 => {
                type $block = $crate::quant::blocks::Q8_0;
                $body
            }
            $crate::Format::Q4_K => {
                type $block = $crate::quant::blocks::Q4_K;
                $body
            }
            $crate::Format::Q5_K => {
                type $block = $crate::quant::blocks::Q5_K;
                $body
            }
            $crate::Format::Q6_K => {
                type $block = $crate::quant::blocks::Q6_K;
                $body
            }
            // Its blocks cannot be read alone: see the module.
            $crate::Format::NF4 => unreachable!("NF4 has functions of its own"),
        }
    }};
}
pub(crate) use with_block;

/// The loop over the blocks of a row: whole blocks straight into `out`, cut ones by way of a copy.
#[inline(always)]
pub(crate) fn expand_blocks<B: Block>(row: &[u8], cols: Range<usize>, out: &mut [f32]) {
    let mut at = cols.start;
    let mut out = out;
    while at < cols.end {
        let (index, skip) = (at / B::LEN, at % B::LEN);
        let take = (B::LEN - skip).min(cols.end - at);
        let block = &row[index * B::BYTES..(index + 1) * B::BYTES];
        let (now, rest) = out.split_at_mut(take);
        if take == B::LEN {
            B::decode(block, now);
        } else {
            let mut whole = [0.0f32; 256];
            B::decode(block, &mut whole[..B::LEN]);
            now.copy_from_slice(&whole[skip..skip + take]);
        }
        out = rest;
        at += take;
    }
}

/// An f16 by its bits. Free of branches, so that it can be vectorised where the CPU has no conversion.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = (u32::from(bits) & 0x8000) << 16;
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    // Rebias the exponent by 112 with a multiplication, which also makes subnormals normal.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    // Infinities and NaNs keep their mantissa under an exponent of all ones.
    let number = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { scaled };
    f32::from_bits(sign | number)
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

macro_rules! block {
    ($name:ident, $len:literal, $bytes:literal, |$block:ident, $out:ident| $body:block) => {
        #[allow(non_camel_case_types)]
        pub(crate) struct $name;
        impl Block for $name {
            const LEN: usize = $len;
            const BYTES: usize = $bytes;
            #[inline(always)]
            fn decode($block: &[u8], $out: &mut [f32]) {
                // Fixed sizes let the compiler drop the bounds checks and vectorise.
                let $block: &[u8; $bytes] = $block.try_into().expect("a whole block");
                let $out: &mut [f32; $len] = $out.try_into().expect("room for a whole block");
                $body
            }
        }
    };
}

block!(F32, 1, 4, |block, out| {
    out[0] = f32::from_le_bytes(*block);
});

block!(F16, 1, 2, |block, out| {
    out[0] = f16_to_f32(u16::from_le_bytes(*block));
});

block!(BF16, 1, 2, |block, out| {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
});

block!(Q4_0, 32, 18, |block, out| {
    let d = half_at(block, 0);
    for i in 0..16 {
        let q = block[2 + i];
        out[i] = f32::from(i16::from(q & 15) - 8) * d;
        out[i + 16] = f32::from(i16::from(q >> 4) - 8) * d;
    }
});

block!(Q4_1, 32, 20, |block, out| {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        let q = block[4 + i];
        out[i] = f32::from(q & 15) * d + m;
        out[i + 16] = f32::from(q >> 4) * d + m;
    }
});

/// The fifth bits of a Q5_0 or Q5_1 block.
#[inline(always)]
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

block!(Q5_0, 32, 22, |block, out| {
    let d = half_at(block, 0);
    let high = fifth_bits(block, 2);
    for i in 0..16 {
        let q = u32::from(block[6 + i]);
        out[i] = ((q & 15 | (high >> i & 1) << 4) as i32 - 16) as f32 * d;
        out[i + 16] = ((q >> 4 | (high >> (i + 16) & 1) << 4) as i32 - 16) as f32 * d;
    }
});

block!(Q5_1, 32, 24, |block, out| {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = fifth_bits(block, 4);
    for i in 0..16 {
        let q = u32::from(block[8 + i]);
        out[i] = (q & 15 | (high >> i & 1) << 4) as i32 as f32 * d + m;
        out[i + 16] = (q >> 4 | (high >> (i + 16) & 1) << 4) as i32 as f32 * d + m;
    }
});

block!(Q8_0, 32, 34, |block, out| {
    let d = half_at(block, 0);
    for i in 0..32 {
        out[i] = f32::from(block[2 + i] as i8) * d;
    }
});

/// The 6-bit scale and minimum of sub-block `j` (of 8) in a Q4_K or Q5_K block: twelve bytes hold
/// the low six bits of the first four of each, then nibbles whose upper bits sit in the first eight.
#[inline(always)]
pub(super) fn k_scale_min(scales: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        (scales[j + 4] & 15 | scales[j - 4] >> 6 << 4, scales[j + 4] >> 4 | scales[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

block!(Q4_K, 256, 144, |block, out| {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, quants) = block[4..].split_at(12);
    for pair in 0..4 {
        let (s0, m0) = k_scale_min(scales, 2 * pair);
        let (s1, m1) = k_scale_min(scales, 2 * pair + 1);
        let (d0, m0, d1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        for i in 0..32 {
            let q = quants[32 * pair + i];
            out[64 * pair + i] = f32::from(q & 15) * d0 - m0;
            out[64 * pair + 32 + i] = f32::from(q >> 4) * d1 - m1;
        }
    }
});

block!(Q5_K, 256, 176, |block, out| {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, quants) = block[4..].split_at(12);
    let (high, quants) = quants.split_at(32);
    for pair in 0..4 {
        let (s0, m0) = k_scale_min(scales, 2 * pair);
        let (s1, m1) = k_scale_min(scales, 2 * pair + 1);
        let (d0, m0, d1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        for i in 0..32 {
            let (q, h) = (quants[32 * pair + i], high[i] >> (2 * pair));
            out[64 * pair + i] = f32::from(q & 15 | (h & 1) << 4) * d0 - m0;
            out[64 * pair + 32 + i] = f32::from(q >> 4 | (h & 2) << 3) * d1 - m1;
        }
    }
});

block!(Q6_K, 256, 210, |block, out| {
    let d = half_at(block, 208);
    for part in 0..2 {
        let low = &block[64 * part..64 * part + 64];
        let high = &block[128 + 32 * part..160 + 32 * part];
        let scales = &block[192 + 8 * part..200 + 8 * part];
        let scale = |j: usize| d * f32::from(scales[j] as i8);
        let out = &mut out[128 * part..128 * part + 128];
        for half in 0..2 {
            let (d0, d1, d2, d3) = (scale(half), scale(half + 2), scale(half + 4), scale(half + 6));
            for i in 16 * half..16 * half + 16 {
                let h = high[i];
                let number = |q: u8| f32::from(i16::from(q) - 32);
                out[i] = number(low[i] & 15 | (h & 3) << 4) * d0;
                out[i + 32] = number(low[i + 32] & 15 | (h & 12) << 2) * d1;
                out[i + 64] = number(low[i] >> 4 | h & 48) * d2;
                out[i + 96] = number(low[i + 32] >> 4 | (h & 192) >> 2) * d3;
            }
        }
    }
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    #[test]
    fn every_half_converts_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            if theirs.is_nan() {
                assert!(ours.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn block_sizes_agree_with_the_format() {
        for format in Format::ALL.into_iter().filter(|f| *f != Format::NF4) {
            let (len, bytes) = with_block!(format, B => (B::LEN, B::BYTES));
            assert_eq!((len, bytes), (format.block_len(), format.block_bytes()), "{}", format.name());
        }
    }
}

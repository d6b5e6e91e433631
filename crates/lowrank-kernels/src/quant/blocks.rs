//! Blocks to f32.
//!
//! Products of a block scale (f16), a sub-scale (at most 7 bits) and a quant (at most 8 bits) fit
//! the 24 bits of an f32, so the order of multiplication changes no bit of the result.

pub(super) use super::block::expand_blocks;
pub(crate) use super::block::{Block, f16_to_f32};
use super::block::{block, half_at};
pub(crate) use super::levels::*;
pub(crate) use super::packed::*;

/// Runs `$body` with the type alias `$block` standing for the [`Block`] of `$format`.
macro_rules! with_block {
    ($format:expr, $block:ident => $body:expr) => {
        $crate::quant::blocks::with_block!(
            $format, $block => $body,
            F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S
            IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0 INT4 INT8 F8_E4M3 NF4_F32;
            // Its blocks cannot be read alone: see the module.
            $crate::Format::NF4 => unreachable!("NF4 has functions of its own")
        )
    };
    ($format:expr, $block:ident => $body:expr, $($name:ident)*; $rest:pat => $otherwise:expr) => {
        match $format {
            $($crate::Format::$name => {
                type $block = $crate::quant::blocks::$name;
                $body
            })*
            $rest => $otherwise,
        }
    };
}
pub(crate) use with_block;

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

block!(Q2_K, 256, 84, |block, out| {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    let (scales, quants) = block[..80].split_at(16);
    for (run, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = scales[run];
        let (d, m) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        // Each byte has a value of four runs of 32.
        let quants = &quants[run / 8 * 32 + run % 2 * 16..][..16];
        let shift = run % 8 / 2 * 2;
        for (out, q) in out.iter_mut().zip(quants) {
            *out = f32::from(q >> shift & 3) * d - m;
        }
    }
});

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
    fn block_sizes_agree_with_the_format() {
        for format in Format::ALL.into_iter().filter(|f| *f != Format::NF4) {
            let (len, bytes) = with_block!(format, B => (B::LEN, B::BYTES));
            assert_eq!((len, bytes), (format.block_len(), format.block_bytes()), "{}", format.name());
        }
    }
}

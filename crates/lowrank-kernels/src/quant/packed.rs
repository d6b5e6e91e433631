//! The formats that quantized Hugging Face folders become in memory: the codes of their files, in blocks with a scale.

use super::block::{block, f16_to_f32};
use super::levels::u32_at;
use super::nf4::LEVELS;
use crate::Format;

block!(F8_E4M3, 64, 68, |block, out| {
    let scale = f32::from_bits(u32_at(block, 0));
    for (out, byte) in out.iter_mut().zip(&block[4..]) {
        *out = e4m3_to_f32(*byte) * scale;
    }
});

block!(NF4_F32, 64, 36, |block, out| {
    let scale = f32::from_bits(u32_at(block, 0));
    let (low, high) = out.split_at_mut(32);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = LEVELS[usize::from(byte & 15)] * scale;
        *high = LEVELS[usize::from(byte >> 4)] * scale;
    }
});

/// A float of eight bits: sign, four bits of exponent, three of fraction, no infinities.
#[inline(always)]
pub fn e4m3_to_f32(byte: u8) -> f32 {
    // An f16 with the same exponent bits is 2^8 times smaller.
    let half = u16::from(byte & 0x80) << 8 | u16::from(byte & 0x7f) << 7;
    if byte & 0x7f == 0x7f { f32::NAN } else { 256.0 * f16_to_f32(half) }
}

/// Writes a row of codes, with a scale for each block of it, in one of the formats here: integers for [`Format::INT4`]
/// (whose blocks span at most 15) and [`Format::INT8`], bytes for [`Format::F8_E4M3`], the numbers of levels for
/// [`Format::NF4_F32`].
///
/// # Panics
/// Where the lengths do not fit, a code is out of range or the format is another.
pub fn pack_codes(format: Format, codes: &[i16], scales: &[f32], out: &mut [u8]) {
    let (len, bytes) = (format.block_len(), format.block_bytes());
    assert_eq!(codes.len(), scales.len() * len, "codes of {} blocks", scales.len());
    assert_eq!(out.len(), scales.len() * bytes, "bytes of {} blocks", scales.len());
    for ((codes, scale), out) in codes.chunks_exact(len).zip(scales).zip(out.chunks_exact_mut(bytes)) {
        let (head, out) = out.split_at_mut(4);
        head.copy_from_slice(&scale.to_le_bytes());
        match format {
            Format::INT4 => {
                let least = codes.iter().copied().min().unwrap_or(0).min(0);
                out[0] = i8::try_from(least).expect("an offset of four bits and a sign") as u8;
                pack_nibbles(codes, |code| code - least, &mut out[1..]);
            }
            Format::NF4_F32 => pack_nibbles(codes, |code| code, out),
            Format::INT8 => codes
                .iter()
                .zip(out)
                .for_each(|(code, out)| *out = i8::try_from(*code).expect("an integer of eight bits") as u8),
            Format::F8_E4M3 => {
                codes.iter().zip(out).for_each(|(code, out)| *out = u8::try_from(*code).expect("a byte"))
            }
            _ => panic!("{} is no format of codes", format.name()),
        }
    }
}

/// Codes of four bits: the first half in the low bits of the bytes, the second in the high ones.
fn pack_nibbles(codes: &[i16], nibble: impl Fn(i16) -> i16, out: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((low, high), out) in low.iter().zip(high).zip(out) {
        let (low, high) = (nibble(*low), nibble(*high));
        assert!((0..16).contains(&low) && (0..16).contains(&high), "codes of four bits");
        *out = low as u8 | (high as u8) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte by the definition of the type.
    #[test]
    fn floats_of_eight_bits() {
        for byte in 0..=255u8 {
            let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
            let size = match exponent {
                0 => fraction * 2f64.powi(-6),
                _ => (1.0 + fraction) * 2f64.powi(exponent - 7),
            };
            let want = if byte >> 7 == 1 { -size } else { size } as f32;
            let got = e4m3_to_f32(byte);
            match byte & 0x7f {
                0x7f => assert!(got.is_nan()),
                _ => assert_eq!(got.to_bits(), want.to_bits(), "{byte:#x}"),
            }
        }
    }
}

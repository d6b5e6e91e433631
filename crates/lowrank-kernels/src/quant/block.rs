//! What a block format is, and a row of its blocks to f32.

use std::ops::Range;

/// One block format: `BYTES` bytes hold `LEN` values.
pub(crate) trait Block {
    const LEN: usize;
    const BYTES: usize;
    /// Expands one block. `block` has `BYTES` bytes, `out` has `LEN` values.
    fn decode(block: &[u8], out: &mut [f32]);
}

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
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// A [`Block`] by its name, values, bytes and decoder.
macro_rules! block {
    ($name:ident, $len:literal, $bytes:literal, |$block:ident, $out:ident| $body:block) => {
        #[allow(non_camel_case_types)]
        pub(crate) struct $name;
        impl $crate::quant::block::Block for $name {
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
pub(super) use block;

#[cfg(test)]
mod tests {
    use super::*;

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
}

//! A row of a weight to f32, at any level.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::blocks::{self, with_block};
use super::nf4;
use crate::format::{Format, WeightRef};
use crate::simd::{Level, level};

impl WeightRef<'_> {
    /// Writes `W[row, cols]` as f32 into `out`, row in Hugging Face's order.
    ///
    /// `cols` need not start or end at a block. The values are llama.cpp's (of NF4 bitsandbytes'), bit for bit.
    ///
    /// # Panics
    /// Where `row` or `cols` lie outside the matrix, or `out` is not as long as `cols`.
    pub fn expand(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        assert!(
            row < self.rows && cols.end <= self.cols,
            "W[{row}, {cols:?}] of {} x {}",
            self.rows,
            self.cols
        );
        assert_eq!(out.len(), cols.len(), "one value for each column");
        expand(level(), self, row, cols, out);
    }
}

/// Expands `W[row, cols]`. `level` must be available.
pub(crate) fn expand(level: Level, w: &WeightRef, row: usize, cols: Range<usize>, out: &mut [f32]) {
    if w.format == Format::NF4 {
        return nf4::expand(level, &nf4::Row::of(w, row), cols, out);
    }
    let (format, row) = (w.format, w.row(row));
    match level {
        // SAFETY: the level is available, and AVX-512 includes AVX2.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 | Level::Amx => unsafe { avx2::expand(format, row, cols, out) },
        _ => with_block!(format, B => blocks::expand_blocks::<B>(row, cols, out)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowOrder;
    use crate::testing::random_blocks;

    #[test]
    fn every_level_expands_to_the_same_bits() {
        let cols = 1024;
        for format in Format::ALL {
            let mut state = 1u32;
            let bytes = random_blocks(format, 1, cols, || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 8
            });
            let w = WeightRef { format, rows: 1, cols, order: RowOrder::Plain, bytes: &bytes };
            for (start, end) in [(0, cols), (0, 1), (3, 40), (32, 577), (256, 1000), (511, 513)] {
                let run = |level| {
                    let mut out = vec![f32::NAN; end - start];
                    expand(level, &w, 0, start..end, &mut out);
                    // A NaN of F16 or F32 may be made quiet, and zeros have either sign.
                    let bits = |x: &f32| match x {
                        x if x.is_nan() => f32::NAN.to_bits(),
                        x => (x + 0.0).to_bits(),
                    };
                    out.iter().map(bits).collect::<Vec<_>>()
                };
                let want = run(Level::Portable);
                for level in Level::available() {
                    assert_eq!(run(level), want, "{} {} {start}..{end}", level.name(), format.name());
                }
            }
        }
    }
}

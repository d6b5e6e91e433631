//! Frozen weights to f32 and back: GGUF's block formats as `ggml-quants` of llama.cpp defines them, and NF4.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod decode;
mod encode;
pub(crate) mod nf4;

use std::ops::Range;

pub use encode::{QuantizeError, quantize, quantize_matrix};

use crate::WeightRef;
use crate::simd::level;

impl WeightRef<'_> {
    /// Writes `W[row, cols]` as f32 into `out`, row in Hugging Face's order.
    ///
    /// `cols` need not start or end at a block. The numbers are llama.cpp's
    /// (of NF4 bitsandbytes'), bit for bit.
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
        assert_eq!(out.len(), cols.len(), "one number for each column");
        decode::expand(level(), self, row, cols, out);
    }
}

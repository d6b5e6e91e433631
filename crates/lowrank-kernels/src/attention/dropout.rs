//! Dropout of the probabilities: `out_i = sum_j P_ij m_ij v_j` with `m_ij` 0 or `1 / (1 - p)`.
//!
//! The softmax is that of all scores, as in PyTorch. With `dP_ij = m_ij dout_i . v_j` the backward is as without:
//! `dS = P (dP - D)` and `D_i = dout_i . out_i`; only `dV` sees `P m`.

use crate::random::dropout_factors;
use crate::simd::{dispatch, for_lanes};

/// Dropout of attention's probabilities. The factor of query row `i`, head `h` and key position `j` (counted
/// through prefix and own) is value `j` of stream `i heads + h`, so the backward makes it again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDropout {
    /// The probability that a weight is dropped.
    pub p: f32,
    /// The seed of the random values: another one for each layer and step.
    pub seed: u64,
}

impl AttentionDropout {
    /// Rows of `width` factors, `pitch` apart, for the key positions from `first` on; `streams` are the rows'.
    pub(super) fn fill(
        &self,
        factors: &mut [f32],
        pitch: usize,
        width: usize,
        first: usize,
        streams: impl Iterator<Item = usize>,
    ) {
        for (r, stream) in streams.enumerate() {
            dropout_factors(&mut factors[r * pitch..][..width], self.p, self.seed, stream as u64, first);
        }
    }
}

dispatch! {
    /// `x *= factors`, for rows of `width` values, `pitch` apart.
    pub(super) fn weigh<V>(x: &mut [f32], factors: &[f32], pitch: usize, width: usize, rows: usize) {
        for r in 0..rows {
            let (x, factors) = (&mut x[r * pitch..][..width], &factors[r * pitch..][..width]);
            for_lanes!(V, width, |at, lanes| {
                V::load(x, at, lanes).mul(V::load(factors, at, lanes)).store(x, at, lanes);
            });
        }
    }
}

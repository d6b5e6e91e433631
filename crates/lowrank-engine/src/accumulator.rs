//! Gradients that several products add to.

use crate::tensor::Tensor;

/// A gradient that is accumulated: the first product writes, later ones add.
pub struct Accumulator {
    /// The gradient; undefined while [`Accumulator::beta`] would return 0.
    pub tensor: Tensor,
    fresh: bool,
}

impl Accumulator {
    /// Nothing written yet.
    pub fn fresh(tensor: Tensor) -> Self {
        Self { tensor, fresh: true }
    }

    /// Already holds a gradient.
    pub fn holding(tensor: Tensor) -> Self {
        Self { tensor, fresh: false }
    }

    /// The factor of the present values for the next product: 0 the first time, then 1.
    pub fn beta(&mut self) -> f32 {
        if std::mem::replace(&mut self.fresh, false) { 0.0 } else { 1.0 }
    }
}

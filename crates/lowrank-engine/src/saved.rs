//! Saved activations: what a backward pass will read, as it is or as int16.

use crate::device::Device;
use crate::tensor::{Saved, Tensor};

impl Device {
    /// Saves `x` for the backward pass.
    pub(crate) fn save(&self, x: &Tensor) -> Saved {
        if !self.saves_int16() {
            return Saved::F32(x.clone());
        }
        let (rows, cols) = (x.rows(), x.cols());
        let mut values = self.alloc_saved(1, Self::int16_len(rows * cols));
        self.quantize_i16(&mut values, x);
        Saved::I16 { values, rows, cols }
    }

    /// The value that was saved.
    pub(crate) fn restore(&self, saved: &Saved) -> Tensor {
        match saved {
            Saved::F32(x) => x.clone(),
            Saved::I16 { values, rows, cols } => {
                let mut x = self.alloc(*rows, *cols);
                self.dequantize_i16(&mut x, values);
                x
            }
        }
    }

    /// The same, when it is needed for the last time.
    pub(crate) fn take_saved(&self, saved: Saved) -> Tensor {
        match saved {
            Saved::F32(x) => x,
            rounded @ Saved::I16 { .. } => self.restore(&rounded),
        }
    }
}

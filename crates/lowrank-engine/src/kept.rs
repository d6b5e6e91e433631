//! What a backward pass keeps of activations: the numbers as they are, or rounded to 16 bits in half the memory.

use lowrank_kernels::{self as kernels, SavedValues};

use crate::device::Device;
use crate::scope::Scope;
use crate::tape::Recipe;
use crate::tensor::Tensor;

/// A kept value `rows x cols`.
pub(crate) struct Kept {
    tensor: Tensor,
    /// The shape of what was rounded.
    rounded: Option<(usize, usize)>,
}

impl Kept {
    /// Keeps `x`, rounded where the device is told to.
    pub fn new(device: &Device, x: &Tensor) -> Self {
        if !device.rounds_kept() {
            return Self { tensor: x.clone(), rounded: None };
        }
        let (rows, cols) = (x.rows(), x.cols());
        let mut tensor = device.alloc_lasting(1, kernels::i16_len(rows * cols));
        device.run(0, || kernels::quantize_i16(tensor.data_mut(), x.data()));
        Self { tensor, rounded: Some((rows, cols)) }
    }

    /// The numbers.
    pub fn get(&self, device: &Device) -> Tensor {
        let Some((rows, cols)) = self.rounded else { return self.tensor.clone() };
        let mut x = device.alloc(rows, cols);
        device.run(0, || kernels::dequantize_i16(x.data_mut(), self.tensor.data()));
        x
    }

    /// The numbers as they are kept.
    pub fn numbers(&self) -> SavedValues<'_> {
        match self.rounded {
            None => SavedValues::F32(self.tensor.data()),
            Some(_) => SavedValues::I16(self.tensor.data()),
        }
    }

    /// The numbers, when they are needed for the last time.
    pub fn take(self, device: &Device) -> Tensor {
        match self.rounded {
            None => self.tensor,
            Some(_) => self.get(device),
        }
    }
}

impl Recipe for Kept {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        self.get(scope.device)
    }
}

//! A GPU as a backend.

use std::sync::Arc;

use lowrank_engine::{Error, Tensor};

use crate::adapters::Adapter;
use crate::memory::Slice;
use crate::runtime::Runtime;
use crate::shaders::{File, SMALL_THREADS};
use crate::tensor;
use crate::weights::Weights;

/// A GPU, with what it holds.
pub struct Gpu {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) weights: Weights,
}

impl Gpu {
    /// Opens the device of an adapter.
    ///
    /// # Errors
    /// Where the driver refuses.
    pub fn open(adapter: &Adapter) -> Result<Self, Error> {
        Ok(Self { runtime: Arc::new(Runtime::new(adapter)?), weights: Weights::default() })
    }

    /// Bytes of frozen weights in the device's memory.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    pub(crate) fn read(&self, x: &Tensor) -> Slice {
        tensor::read(&self.runtime, x)
    }

    pub(crate) fn write(&self, x: &mut Tensor) -> Slice {
        tensor::write(&self.runtime, x)
    }

    /// Room for values that live as long as the slice.
    pub(crate) fn scratch(&self, values: usize) -> Slice {
        self.runtime.alloc(values).into_slice()
    }

    /// One thread for each of `n` elements; `n` is the first parameter. `data` is bound where `None` stands.
    pub(crate) fn map(
        &self,
        file: File,
        entry: &'static str,
        parameters: &[u32],
        buffers: &[Option<&Slice>],
        data: &[u32],
    ) {
        let groups = (parameters[0] as usize).div_ceil(SMALL_THREADS as usize);
        self.runtime.dispatch((file, entry), [groups, 1], parameters, buffers, data);
    }
}

/// f32 as a shader's data.
pub(crate) fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|x| x.to_bits())
}

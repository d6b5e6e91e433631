//! A device: a backend with what surrounds it in a run.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lowrank_kernels::{self as kernels, Activation, AttentionShape, DisentangledShape, Segment};

use crate::backend::{
    AttentionGradients, AttentionInputs, Backend, Cpu, DistanceGradients, Distances, Lifetime, LowRankRows,
    Mask, NormWeights, Plan, Targets, WeightView,
};
use crate::for_each_operation;
use crate::stream::{BaseStream, Direction};
use crate::tensor::{Mat, MatMut, Saved, Tensor};
use crate::weight::FrozenWeight;

/// How activations are saved for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SavedDtype {
    /// As they are.
    #[default]
    F32,
    /// As int16 with one scale for each 128 values: half the memory. The forward pass stays exact; gradients get the error
    /// of the rounding, a few ten-thousandths of their size.
    Int16,
}

/// Where operations run. A clone is another handle to the same device.
///
/// Its operations are those of [`Backend`]: `device.linear(..)`, `device.attention(..)` and so on.
#[derive(Clone)]
pub struct Device {
    backend: Arc<dyn Backend>,
    flops: Arc<AtomicU64>,
    /// Most working memory that the kernels of one operation take.
    scratch: Arc<AtomicUsize>,
    stream: Option<Arc<BaseStream>>,
    saved_dtype: SavedDtype,
}

impl Device {
    /// The processor this program runs on.
    pub fn cpu() -> Self {
        Self::with_backend(Arc::new(Cpu::new()))
    }

    /// A device that counts bytes and floating-point operations and computes nothing.
    pub fn plan() -> Self {
        Self::with_backend(Arc::new(Plan::new()))
    }

    /// A device of any backend.
    pub fn with_backend(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            flops: Arc::default(),
            scratch: Arc::default(),
            stream: None,
            saved_dtype: SavedDtype::F32,
        }
    }

    /// The same device, on which a model's weights are in memory one block at a time.
    pub fn streaming(self, stream: Option<BaseStream>) -> Self {
        Self { stream: stream.map(Arc::new), ..self }
    }

    /// The same device, which saves activations as `dtype`.
    pub fn with_saved_dtype(self, dtype: SavedDtype) -> Self {
        Self { saved_dtype: dtype, ..self }
    }

    /// How activations are saved.
    pub fn saved_dtype(&self) -> SavedDtype {
        self.saved_dtype
    }

    pub(crate) fn saves_int16(&self) -> bool {
        self.saved_dtype == SavedDtype::Int16
    }

    /// Says that block `block` of the model is about to run. Returns whether weights are streamed at all.
    pub(crate) fn enter_block(&self, block: usize, direction: Direction) -> bool {
        if let Some(stream) = &self.stream {
            stream.enter(block, direction);
        }
        self.stream.is_some()
    }

    /// What runs its operations.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Whether this device only counts.
    pub fn is_plan(&self) -> bool {
        self.backend.is_plan()
    }

    /// A tensor with undefined values.
    pub fn alloc(&self, rows: usize, cols: usize) -> Tensor {
        self.backend.alloc(rows, cols, Lifetime::Temporary)
    }

    /// The same for what the backward pass will read.
    pub(crate) fn alloc_saved(&self, rows: usize, cols: usize) -> Tensor {
        self.backend.alloc(rows, cols, Lifetime::Saved)
    }

    /// The same for what outlives a step and belongs to parameters.
    pub fn alloc_persistent(&self, rows: usize, cols: usize) -> Tensor {
        self.backend.alloc(rows, cols, Lifetime::Persistent)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, rows: usize, cols: usize) -> Tensor {
        let mut tensor = self.alloc(rows, cols);
        self.fill(&mut tensor, 0.0);
        tensor
    }

    /// A tensor with the values of `values`.
    ///
    /// # Panics
    /// Where they are not `rows * cols`.
    pub fn tensor(&self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a {rows} x {cols} tensor");
        let mut tensor = self.alloc(rows, cols);
        self.backend.upload(&mut tensor, values);
        tensor
    }

    /// The values of a tensor; none on a device that only counts.
    pub fn to_vec(&self, x: &Tensor) -> Vec<f32> {
        self.backend.download(x)
    }

    /// `x` to write to: a copy where someone else reads it.
    pub(crate) fn own(&self, mut x: Tensor) -> Tensor {
        if x.is_unique() {
            return x;
        }
        let mut copy = self.alloc(x.rows(), x.cols());
        self.copy(&mut copy, &x);
        copy
    }

    /// How many f32 [`Device::quantize_i16`] writes for `len` values.
    pub(crate) fn int16_len(len: usize) -> usize {
        kernels::i16_len(len)
    }

    pub(crate) fn count(&self, flops: usize) {
        self.flops.fetch_add(flops as u64, Ordering::Relaxed);
    }

    /// Floating-point operations of products and attention so far (a multiply-add counts as two).
    pub fn flops(&self) -> u64 {
        self.flops.load(Ordering::Relaxed)
    }

    /// Most bytes of tensors in use at once since the last [`Device::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.backend.peak_bytes()
    }

    /// The same in whole pages: what tensors take of the process's memory.
    pub fn peak_page_bytes(&self) -> usize {
        self.backend.peak_page_bytes()
    }

    /// Starts counting the peak anew from what is in use now.
    pub fn reset_peak(&self) {
        self.backend.reset_peak();
    }

    /// Gives memory that no tensor holds back to the system.
    pub fn trim(&self) {
        self.backend.trim();
    }

    /// Notes the working memory of attention.
    pub(crate) fn note_scratch(&self, bytes: usize) {
        self.scratch.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Bytes of working memory that the kernels keep for the operations so far, on this pool's threads, where no side of a
    /// matrix is longer than `longest`.
    pub fn scratch_bytes(&self, longest: usize) -> usize {
        kernels::scratch_bytes(rayon::current_num_threads(), longest) + self.scratch.load(Ordering::Relaxed)
    }
}

macro_rules! counted {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty [$flops:expr];)*) => {
        /// The operations of the backend, counted.
        #[allow(clippy::too_many_arguments)]
        impl Device {
            $($(#[$doc])* pub fn $name(&self, $($arg: $ty),*) -> $ret {
                self.count($flops);
                self.backend.$name($($arg),*)
            })*
        }
    };
}
for_each_operation!(counted);

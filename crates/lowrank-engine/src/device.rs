//! Devices: where kernels run, or, for planning, where they are only counted.

use std::sync::atomic::{AtomicU64, Ordering};

use lowrank_kernels as kernels;

use crate::arena::Arena;
use crate::stream::{BaseStream, Direction};
use crate::tensor::Tensor;

/// The processor with its arena, or the Plan device, which runs the same operations with shapes
/// only and counts bytes and floating-point operations.
pub struct Device {
    arena: Arena,
    plan: bool,
    flops: AtomicU64,
    stream: Option<BaseStream>,
    rounds_kept: bool,
}

impl Device {
    /// The processor this program runs on.
    pub fn cpu() -> Self {
        Self::over(Arena::reserve(), false)
    }

    /// The Plan device.
    pub fn plan() -> Self {
        Self::over(Arena::counting(), true)
    }

    fn over(arena: Arena, plan: bool) -> Self {
        Self { arena, plan, flops: AtomicU64::new(0), stream: None, rounds_kept: false }
    }

    /// The same device, on which a model's weights are in memory one block at a time.
    pub fn streaming(self, stream: Option<BaseStream>) -> Self {
        Self { stream, ..self }
    }

    /// The same device, where activations kept for the backward pass are rounded to integers of 16 bits if `rounds`
    /// ([`kernels::quantize_i16`]): they take half the memory, the forward pass stays exact, and gradients get the error of
    /// the rounding, a few ten-thousandths of their size.
    pub fn rounding_kept(self, rounds: bool) -> Self {
        Self { rounds_kept: rounds, ..self }
    }

    pub(crate) fn rounds_kept(&self) -> bool {
        self.rounds_kept
    }

    /// Says that block `block` of the model is about to run. Returns whether weights are streamed at all.
    pub(crate) fn enter_block(&self, block: usize, direction: Direction) -> bool {
        if let Some(stream) = &self.stream {
            stream.enter(block, direction);
        }
        self.stream.is_some()
    }

    /// Whether this device only counts.
    pub fn is_plan(&self) -> bool {
        self.plan
    }

    /// A tensor with undefined numbers.
    pub fn alloc(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(self.arena.take(rows * cols, false), rows, cols)
    }

    /// The same for what the backward pass will read.
    pub(crate) fn alloc_lasting(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(self.arena.take(rows * cols, true), rows, cols)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, rows: usize, cols: usize) -> Tensor {
        let mut tensor = self.alloc(rows, cols);
        tensor.data_mut().fill(0.0);
        tensor
    }

    /// A tensor with the numbers of `data`.
    pub fn tensor(&self, rows: usize, cols: usize, data: &[f32]) -> Tensor {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} tensor");
        let mut tensor = self.alloc(rows, cols);
        if !self.plan {
            tensor.data_mut().copy_from_slice(data);
        }
        tensor
    }

    /// `x` to write to: a copy where someone else reads it.
    pub(crate) fn own(&self, mut x: Tensor) -> Tensor {
        if x.is_unique() {
            return x;
        }
        let mut copy = self.alloc(x.rows(), x.cols());
        self.run(0, || kernels::copy(copy.data_mut(), x.data()));
        copy
    }

    /// Runs a kernel of `flops` floating-point operations, or only counts it.
    pub fn run(&self, flops: usize, kernel: impl FnOnce()) {
        self.flops.fetch_add(flops as u64, Ordering::Relaxed);
        if !self.plan {
            kernel();
        }
    }

    /// Floating-point operations of products and attention so far (a multiply-add counts as two).
    pub fn flops(&self) -> u64 {
        self.flops.load(Ordering::Relaxed)
    }

    /// Most arena bytes in use at once since the last [`Device::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }

    /// Starts counting the peak anew from what is in use now.
    pub fn reset_peak(&self) {
        self.arena.reset_peak();
    }
}

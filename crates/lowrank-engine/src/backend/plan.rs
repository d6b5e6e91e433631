//! The backend that counts: tensors have shapes and places in the arena, and no values.

use std::ops::Range;

use lowrank_kernels::{self as kernels, Activation, AttentionShape, DisentangledShape, Segment};

use super::{
    AttentionGradients, AttentionInputs, Backend, DistanceGradients, Distances, Lifetime, LowRankRows, Mask,
    NormWeights, Targets, WeightView,
};
use crate::arena::Arena;
use crate::buffer::Buffer;
use crate::for_each_operation;
use crate::tensor::{Mat, MatMut, Saved, Tensor};
use crate::weight::FrozenWeight;

/// Runs nothing and places everything as [`super::Cpu`] does, so that the peak it finds is the CPU's.
pub struct Plan {
    arena: Arena,
}

impl Plan {
    /// A plan of which nothing is in use yet.
    pub fn new() -> Self {
        Self { arena: Arena::counting() }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! plan {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty [$flops:expr];)*) => {
        impl Backend for Plan {
            fn name(&self) -> &str {
                "plan"
            }

            fn alloc(&self, rows: usize, cols: usize, lifetime: Lifetime) -> Tensor {
                if lifetime == Lifetime::Persistent {
                    return Tensor::shape_only(rows, cols);
                }
                let block = self.arena.take(rows * cols, lifetime == Lifetime::Saved);
                Tensor::over(Buffer::Shape(Some(block)), rows, cols)
            }

            fn upload(&self, _: &mut Tensor, _: &[f32]) {}

            fn download(&self, _: &Tensor) -> Vec<f32> {
                Vec::new()
            }

            fn is_plan(&self) -> bool {
                true
            }

            fn peak_bytes(&self) -> usize {
                self.arena.peak_bytes()
            }

            fn peak_page_bytes(&self) -> usize {
                self.arena.peak_page_bytes()
            }

            fn reset_peak(&self) {
                self.arena.reset_peak();
            }

            $(fn $name(&self, $(_: $ty),*) -> $ret {
                <$ret>::default()
            })*
        }
    };
}
for_each_operation!(plan);

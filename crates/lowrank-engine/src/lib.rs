//! The engine of Lowrank: tensors, the tape, the coarse operations, frozen weights and memory.

mod error;
mod weight;

pub use error::Error;
pub use lowrank_kernels as kernels;
pub use lowrank_kernels::{Format, RowOrder, WeightRef};
pub use weight::{FrozenWeight, Storage};

//! CPU kernels of Lowrank.
//!
//! Kernels work on slices, know nothing of tensors, and come in forward/backward pairs that stand
//! side by side. Axes: `N` rows (tokens of a packed batch), `D` model width, `K` input features,
//! `O` output features, `H` heads, `V` vocabulary, `R` rank. Matrices are row-major f32 unless said
//! otherwise. "Accumulates" means `+=`.

mod format;
mod gemm;
mod quant;

pub use format::{Format, RowOrder, WeightRef};
pub use gemm::{MatMut, MatRef, gemm, gemm_serial, linear, linear_backward};
pub use quant::{QuantizeError, quantize};

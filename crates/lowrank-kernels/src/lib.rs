//! CPU kernels of Lowrank.
//!
//! Kernels work on slices, know nothing of tensors, and come in forward/backward pairs that stand
//! side by side. Axes: `N` rows (tokens of a packed batch), `D` model width, `K` input features,
//! `O` output features, `H` heads, `V` vocabulary, `R` rank. Matrices are row-major f32 unless said
//! otherwise. "Accumulates" means `+=`.

mod format;

pub use format::{Format, RowOrder, WeightRef};

//! CPU kernels of Lowrank.
//!
//! Kernels work on slices, know nothing of tensors, and come in forward/backward pairs that stand
//! side by side. Axes: `N` rows (tokens of a packed batch), `D` model width, `K` input features,
//! `O` output features, `H` heads, `V` vocabulary, `R` rank. Matrices are row-major f32 unless said
//! otherwise. "Accumulates" means `+=`.

mod activation;
mod adamw;
mod attention;
mod columns;
mod cross_entropy;
mod elementwise;
mod embedding;
mod format;
mod gemm;
mod heap;
mod math;
mod norm;
mod parallel;
mod patches;
mod quant;
mod random;
mod rope;
mod shorts;
mod simd;
mod unfold;
mod vector;

pub use activation::{
    Activation, activate, activate_backward, activate_in_place, gated, gated_backward,
    gated_backward_in_place, gated_in_place,
};
pub use adamw::{AdamW, adamw};
pub use attention::{
    AttentionDropout, AttentionShape, DisentangledGradients, DisentangledInputs, DisentangledShape, Segment,
    attention, attention_backward, disentangled_attention, disentangled_attention_backward,
};
pub use columns::{scale_columns, scale_columns_backward};
pub use cross_entropy::{argmax, cross_entropy, log_softmax, softcap};
pub use elementwise::{add, add_bias, bias_backward, copy, copy_columns, scale, set_bias, sum_squares};
pub use embedding::embedding;
pub use format::{Format, RowOrder, WeightRef};
pub use gemm::{
    LinearRef, MatMut, MatRef, gemm, gemm_serial, linear, linear_backward, linear_backward_bf16, linear_bf16,
    linear_onto, rounds_to_bf16, scratch_bytes,
};
pub use heap::{give_back_program, return_large_blocks, trim_heap};
pub use norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use patches::{Window, patches, patches_backward};
pub use quant::{QuantizeError, quantize, quantize_matrix};
pub use random::{dropout, dropout_backward, normal, uniform};
pub use rope::{rope, rope_backward};
pub use shorts::{Numbers, from_shorts, shorts_len, to_shorts};
pub use unfold::{unfold, unfold_backward};

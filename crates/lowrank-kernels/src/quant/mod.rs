//! Frozen weights to f32 and back: GGUF's block formats as `ggml-quants` of llama.cpp defines them, and NF4.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod blocks;
mod encode;
mod error;
pub(crate) mod expand;
mod k_quants;
pub(crate) mod nf4;
mod small_blocks;

pub use encode::{quantize, quantize_matrix};
pub use error::QuantizeError;
pub use nf4::nf4_scales;

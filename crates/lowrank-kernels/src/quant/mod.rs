//! Frozen weights to f32 and back: GGUF's block formats as `ggml-quants` of llama.cpp defines them, and NF4.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
mod block;
pub(crate) mod blocks;
mod encode;
mod error;
pub(crate) mod expand;
mod grids;
mod k_quants;
mod levels;
pub(crate) mod nf4;
mod packed;
mod small_blocks;

pub use encode::{quantize, quantize_matrix};
pub use error::QuantizeError;
pub use levels::row_levels;
pub use nf4::{nf4_scales, nf4_tables, pack_nf4};
pub use packed::{e4m3_to_f32, pack_codes};

//! CPU kernels of Lowrank.
//!
//! Kernels work on slices, know nothing of tensors, and come in forward/backward pairs that stand
//! side by side. Axes: `N` rows (tokens of a packed batch), `D` model width, `K` input features,
//! `O` output features, `H` heads, `V` vocabulary, `R` rank. Matrices are row-major f32 unless said
//! otherwise. "Accumulates" means `+=`.

mod activation;
mod adalora;
mod adamw;
mod attention;
mod binary_cross_entropy;

mod cross_entropy;
mod dora;
mod elementwise;
mod embedding;
mod format;
mod gather;
mod gemm;
mod heap;
mod int16;
mod loha;
mod lokr;
mod low_rank;
mod low_rank_rows;
mod math;
mod mean_rows;
mod norm;
mod normalize;
mod parallel;
mod quant;
mod random;
mod replace_rows;
mod rope;
mod scale_columns;
mod scale_rows;

mod simd;
mod squared_error;
mod table;
#[cfg(test)]
mod testing;
mod unfold;

pub use activation::{
    Activation, activate, activate_backward, activate_in_place, gated, gated_backward,
    gated_backward_in_place, gated_in_place,
};
pub use adalora::{adalora_importance, adalora_sensitivity};
pub use adamw::{AdamW, adamw};
pub use attention::{
    AttentionDropout, AttentionShape, DisentangledGradients, DisentangledInputs, DisentangledShape, Segment,
    attention, attention_backward, attention_scratch_bytes, disentangled_attention,
    disentangled_attention_backward, disentangled_scratch_bytes, visible_keys,
};
pub use binary_cross_entropy::binary_cross_entropy;
pub use cross_entropy::{argmax, cross_entropy, log_softmax, softcap};
pub use dora::{dora_magnitude_backward, dora_norms, row_norms, weight_squares};
pub use elementwise::{
    add, add_bias, add_scaled_difference, bias_backward, copy, copy_columns, difference, div, fill_columns,
    mul, reciprocal, scale, set_bias, sub, sum_squares,
};
pub use embedding::embedding;
pub use format::{Format, RowOrder, WeightRef};
pub use gather::{
    gather_columns, gather_rows, gather_transposed, gather_transposed_backward, replace_columns,
    scatter_add_rows, scatter_rows,
};
pub use gemm::{
    LinearRef, MatMut, MatRef, gemm, gemm_serial, linear, linear_add, linear_backward, linear_backward_bf16,
    linear_bf16, rounds_to_bf16, scratch_bytes,
};
pub use heap::{evict_program_pages, trim_heap, unmap_large_blocks_when_freed};
pub use int16::{SavedValues, dequantize_i16, i16_len, quantize_i16};
pub use loha::{loha_left, loha_left_backward, loha_right, loha_right_backward};
pub use lokr::{add_kronecker, swap_axes};
pub use low_rank::low_rank_norm;
pub use low_rank_rows::{LowRankFactors, LowRankRows, add_low_rank_rows};
pub use mean_rows::{mean_rows, mean_rows_backward};
pub use norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
pub use normalize::{normalize_rows, normalize_rows_backward};
pub use quant::{
    QuantizeError, e4m3_to_f32, nf4_scales, nf4_tables, pack_codes, pack_nf4, quantize, quantize_matrix,
    row_levels,
};
pub use random::{dropout, dropout_backward, dropout_odds, feature_dropout, normal, uniform};
pub use replace_rows::{replace_rows, replace_rows_backward};
pub use rope::{rope, rope_backward, rope_table};
pub use scale_columns::{scale_columns, scale_columns_backward, scale_columns_in_place};
pub use scale_rows::{keep_columns, scale_rows, scale_rows_in_place};
pub use squared_error::squared_error;
pub use table::{table_change, table_lookup, table_lookup_backward};
pub use unfold::{unfold, unfold_backward};

/// The instructions that every kernel runs with, by their name in `LOWRANK_KERNEL`. Processors that run with others give other bits.
pub fn level_name() -> &'static str {
    simd::level().name()
}

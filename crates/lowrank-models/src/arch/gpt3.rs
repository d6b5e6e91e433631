//! The shapes of GPT-3 (Brown et al. 2020, table 2.1), to plan with: its weights were never published.
//!
//! A `config.json` of `model_type` `gpt3` has GPT-2's fields and `window_size`, the width of the band in which a
//! token of every second layer sees (itself counts). The paper only says that dense and locally banded layers
//! alternate "similar to the Sparse Transformer"; here the first layer is dense and the band 256. Query, key and
//! value are projections of their own: `transformer.h.N.attn.{q_proj,k_proj,v_proj}`, stored like all of GPT-2's.

use serde_json::{Value, json};

/// Name, layers, width, heads. Two rows of the table contradict themselves: 1.3B (24 heads of 128 for a width of
/// 2048) has 16 heads here, 13B (width 5140 for 40 heads of 128) a width of 5120; both then have the parameters
/// that their names say.
const SIZES: [(&str, usize, usize, usize); 8] = [
    ("125m", 12, 768, 12),
    ("350m", 24, 1024, 16),
    ("760m", 24, 1536, 16),
    ("1.3b", 24, 2048, 16),
    ("2.7b", 32, 2560, 32),
    ("6.7b", 32, 4096, 32),
    ("13b", 40, 5120, 40),
    ("175b", 96, 12288, 96),
];

/// The sizes there are.
pub(crate) fn sizes() -> String {
    SIZES.map(|(name, ..)| name).join(", ")
}

/// The `config.json` of a size, for instance `175b`.
pub(crate) fn config(size: &str) -> Option<Value> {
    let (_, layers, width, heads) = SIZES.into_iter().find(|(name, ..)| name.eq_ignore_ascii_case(size))?;
    Some(json!({
        "model_type": "gpt3",
        "vocab_size": 50257,
        "n_positions": 2048,
        "n_embd": width,
        "n_head": heads,
        "n_layer": layers,
        "window_size": 256,
        "torch_dtype": "float16",
    }))
}

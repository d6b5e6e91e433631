//! Tensor names: GGUF's and Hugging Face's.

/// Parts of a name outside the blocks.
const OUTER: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Parts of a name within `blk.N.` and `model.layers.N.`.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What is different in `gemma2` and `gemma3`: there the norm before the MLP is none of Llama's.
const GEMMA_BLOCK: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The long-context factors of Llama 3, which GGUF keeps as a tensor.
pub const ROPE_FACTORS: (&str, &str) = ("rope_freqs.weight", "rope_freqs");

/// The Hugging Face name of a GGUF tensor; a name we do not know stays as it is.
pub fn to_hf(architecture: &str, name: &str) -> String {
    if name == ROPE_FACTORS.0 {
        return ROPE_FACTORS.1.into();
    }
    renamed(architecture, name, "blk.", "model.layers.", |pair, part| (pair.0 == part).then_some(pair.1))
        .unwrap_or_else(|| name.to_owned())
}

/// The GGUF name of a Hugging Face tensor, `None` for one GGUF has no name for.
pub fn from_hf(architecture: &str, name: &str) -> Option<String> {
    if name == ROPE_FACTORS.1 {
        return Some(ROPE_FACTORS.0.into());
    }
    renamed(architecture, name, "model.layers.", "blk.", |pair, part| (pair.1 == part).then_some(pair.0))
}

fn renamed(
    architecture: &str,
    name: &str,
    block_from: &str,
    block_to: &str,
    pick: impl Fn((&'static str, &'static str), &str) -> Option<&'static str>,
) -> Option<String> {
    let (part, ending) = name.rsplit_once('.')?;
    if !matches!(ending, "weight" | "bias") {
        return None;
    }
    if let Some((number, part)) = part.strip_prefix(block_from).and_then(|rest| rest.split_once('.')) {
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let own: &[_] = if matches!(architecture, "gemma2" | "gemma3") { &GEMMA_BLOCK } else { &[] };
        let new = own.iter().chain(&BLOCK).find_map(|pair| pick(*pair, part))?;
        return Some(format!("{block_to}{number}.{new}.{ending}"));
    }
    let new = OUTER.into_iter().find_map(|pair| pick(pair, part))?;
    Some(format!("{new}.{ending}"))
}

/// Whether llama.cpp keeps the rows of this tensor (Hugging Face name) in the interleaved rope order:
/// q and k of the architecture `llama` only, weights and biases.
pub fn permutes_rows(architecture: &str, name: &str) -> bool {
    let part = name.rsplit_once('.').map_or(name, |(part, _)| part);
    architecture == "llama" && (part.ends_with(".self_attn.q_proj") || part.ends_with(".self_attn.k_proj"))
}

/// What llama.cpp adds to the numbers of this tensor (Hugging Face name): Gemma's norms multiply by `1 + w`, and it
/// keeps the sum.
pub fn added(architecture: &str, name: &str) -> f32 {
    let shifted = architecture.starts_with("gemma") && name.ends_with("norm.weight");
    if shifted { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (gguf, hf) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.31.attn_k_norm.weight", "model.layers.31.self_attn.k_norm.weight"),
            ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
            ("rope_freqs.weight", "rope_freqs"),
        ] {
            assert_eq!(to_hf("llama", gguf), hf);
            assert_eq!(from_hf("llama", hf).as_deref(), Some(gguf));
        }
        assert_eq!(to_hf("llama", "blk.x.attn_q.weight"), "blk.x.attn_q.weight");
        assert_eq!(from_hf("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }

    #[test]
    fn gemmas_norms_have_names_and_numbers_of_their_own() {
        for (gguf, hf) in [
            ("blk.3.attn_norm.weight", "model.layers.3.input_layernorm.weight"),
            ("blk.3.post_attention_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
            ("blk.3.ffn_norm.weight", "model.layers.3.pre_feedforward_layernorm.weight"),
            ("blk.3.post_ffw_norm.weight", "model.layers.3.post_feedforward_layernorm.weight"),
        ] {
            assert_eq!(to_hf("gemma2", gguf), hf);
            assert_eq!(from_hf("gemma3", hf).as_deref(), Some(gguf));
            assert_eq!((added("gemma2", hf), added("llama", hf)), (1.0, 0.0));
        }
        assert_eq!(to_hf("gemma", "blk.3.ffn_norm.weight"), "model.layers.3.post_attention_layernorm.weight");
        assert_eq!(added("gemma3", "model.layers.0.mlp.up_proj.weight"), 0.0);
    }

    #[test]
    fn only_q_and_k_of_llama_are_permuted() {
        assert!(permutes_rows("llama", "model.layers.0.self_attn.q_proj.weight"));
        assert!(permutes_rows("llama", "model.layers.0.self_attn.k_proj.bias"));
        assert!(!permutes_rows("llama", "model.layers.0.self_attn.v_proj.weight"));
        assert!(!permutes_rows("llama", "model.layers.0.self_attn.q_norm.weight"));
        assert!(!permutes_rows("qwen2", "model.layers.0.self_attn.q_proj.weight"));
    }
}

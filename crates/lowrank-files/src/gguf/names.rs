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

/// The long-context factors of Llama 3, which GGUF keeps as a tensor.
pub const ROPE_FACTORS: (&str, &str) = ("rope_freqs.weight", "rope_freqs");

/// What an architecture's tensors are called in GGUF, and what llama.cpp does to their values.
#[derive(Clone, Copy, Debug)]
pub struct GgufNames {
    /// Names within a block that differ from the usual ones: GGUF's below `blk.N.`, Hugging Face's below
    /// `model.layers.N.`.
    pub block: &'static [(&'static str, &'static str)],
    /// Modules of a block (Hugging Face names) whose rows llama.cpp stores in the interleaved rope order.
    pub interleaved: &'static [&'static str],
    /// What llama.cpp adds to every value of a norm's weight.
    pub norm_offset: f32,
}

impl GgufNames {
    /// The names most architectures have; rows and values as in Hugging Face's files.
    pub const USUAL: Self = Self { block: &[], interleaved: &[], norm_offset: 0.0 };

    /// The Hugging Face name of a GGUF tensor; a name that is not known stays as it is.
    pub fn to_hf(&self, name: &str) -> String {
        if name == ROPE_FACTORS.0 {
            return ROPE_FACTORS.1.into();
        }
        self.renamed(name, "blk.", "model.layers.", |pair, part| (pair.0 == part).then_some(pair.1))
            .unwrap_or_else(|| name.to_owned())
    }

    /// The GGUF name of a Hugging Face tensor, `None` for one GGUF has no name for.
    pub fn from_hf(&self, name: &str) -> Option<String> {
        if name == ROPE_FACTORS.1 {
            return Some(ROPE_FACTORS.0.into());
        }
        self.renamed(name, "model.layers.", "blk.", |pair, part| (pair.1 == part).then_some(pair.0))
    }

    fn renamed(
        &self,
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
            let new = self.block.iter().chain(&BLOCK).find_map(|pair| pick(*pair, part))?;
            return Some(format!("{block_to}{number}.{new}.{ending}"));
        }
        let new = OUTER.into_iter().find_map(|pair| pick(pair, part))?;
        Some(format!("{new}.{ending}"))
    }

    /// Whether llama.cpp stores the rows of this tensor (Hugging Face name), weight or bias, in the interleaved rope
    /// order.
    pub fn permutes_rows(&self, name: &str) -> bool {
        let part = name.rsplit_once('.').map_or(name, |(part, _)| part);
        let is = |module: &&str| part.strip_suffix(module).is_some_and(|before| before.ends_with('.'));
        self.interleaved.iter().any(is)
    }

    /// What llama.cpp adds to the values of this tensor (Hugging Face name).
    pub fn added(&self, name: &str) -> f32 {
        if name.ends_with("norm.weight") { self.norm_offset } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let names = GgufNames::USUAL;
        for (gguf, hf) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.31.attn_k_norm.weight", "model.layers.31.self_attn.k_norm.weight"),
            ("blk.7.ffn_norm.weight", "model.layers.7.post_attention_layernorm.weight"),
            ("rope_freqs.weight", "rope_freqs"),
        ] {
            assert_eq!(names.to_hf(gguf), hf);
            assert_eq!(names.from_hf(hf).as_deref(), Some(gguf));
        }
        assert_eq!(names.to_hf("blk.x.attn_q.weight"), "blk.x.attn_q.weight");
        assert_eq!(names.from_hf("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }

    #[test]
    fn an_architectures_own_names_come_before_the_usual() {
        let names = GgufNames {
            block: &[("ffn_norm", "pre_feedforward_layernorm")],
            interleaved: &["self_attn.q_proj"],
            norm_offset: 1.0,
        };
        assert_eq!(names.to_hf("blk.3.ffn_norm.weight"), "model.layers.3.pre_feedforward_layernorm.weight");
        assert_eq!(names.added("model.layers.3.pre_feedforward_layernorm.weight"), 1.0);
        assert_eq!(names.added("model.layers.3.mlp.up_proj.weight"), 0.0);
        assert!(names.permutes_rows("model.layers.0.self_attn.q_proj.bias"));
        assert!(!names.permutes_rows("model.layers.0.self_attn.v_proj.weight"));
    }
}

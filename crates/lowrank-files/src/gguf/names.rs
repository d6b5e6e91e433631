//! Tensor names: GGUF's and Hugging Face's.

use lowrank_kernels::RowOrder;

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

/// Where the text model of a larger one lies.
const INSIDE: [&str; 2] = ["model.language_model.", "model.text_model."];

/// The long-context factors of Llama 3, which GGUF keeps as a tensor.
pub const ROPE_FACTORS: (&str, &str) = ("rope_freqs.weight", "rope_freqs");

/// What an architecture's tensors are called in GGUF, and what llama.cpp does to their values.
#[derive(Clone, Copy, Debug)]
pub struct GgufNames {
    /// Names within a block that differ from the usual ones: GGUF's below `blk.N.`, Hugging Face's below
    /// `model.layers.N.`.
    pub block: &'static [(&'static str, &'static str)],
    /// Names outside the blocks that differ from the usual ones.
    pub outer: &'static [(&'static str, &'static str)],
    /// Modules of a block (Hugging Face names) whose rows llama.cpp stores in the interleaved rope order.
    pub interleaved: &'static [&'static str],
    /// Modules of a block whose rows are query, key and value of each head in turn, which llama.cpp stores apart.
    pub parts_apart: &'static [&'static str],
    /// What the paths of blocks begin with, up to their numbers.
    pub layers: &'static str,
    /// What llama.cpp adds to every value of a norm's weight.
    pub norm_offset: f32,
}

impl GgufNames {
    /// The names most architectures have; rows and values as in Hugging Face's files.
    pub const USUAL: Self = Self {
        block: &[],
        outer: &[],
        interleaved: &[],
        parts_apart: &[],
        layers: "model.layers.",
        norm_offset: 0.0,
    };

    /// The Hugging Face name of a GGUF tensor; a name that is not known stays as it is.
    pub fn to_hf(&self, name: &str) -> String {
        if name == ROPE_FACTORS.0 {
            return ROPE_FACTORS.1.into();
        }
        self.renamed(name, "blk.", self.layers, |pair, part| (pair.0 == part).then_some(pair.1))
            .unwrap_or_else(|| name.to_owned())
    }

    /// The GGUF name of a Hugging Face tensor, `None` for one GGUF has no name for. A text model within a larger one has
    /// the names that it has alone.
    pub fn from_hf(&self, name: &str) -> Option<String> {
        let inside = INSIDE.iter().find_map(|prefix| name.strip_prefix(prefix));
        let alone = inside.map(|rest| format!("model.{rest}"));
        let name = alone.as_deref().unwrap_or(name);
        if name == ROPE_FACTORS.1 {
            return Some(ROPE_FACTORS.0.into());
        }
        self.renamed(name, self.layers, "blk.", |pair, part| (pair.1 == part).then_some(pair.0))
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
        let new = self.outer.iter().chain(&OUTER).find_map(|pair| pick(*pair, part))?;
        Some(format!("{new}.{ending}"))
    }

    /// The order in which llama.cpp stores the rows of this tensor (Hugging Face name), weight or bias.
    pub fn order(&self, name: &str, head_dim: usize) -> RowOrder {
        let part = name.rsplit_once('.').map_or(name, |(part, _)| part);
        let is = |module: &&str| part.strip_suffix(module).is_some_and(|before| before.ends_with('.'));
        match (self.interleaved.iter().any(is), self.parts_apart.iter().any(is)) {
            (true, _) => RowOrder::RopeInterleaved { head_dim },
            (_, true) => RowOrder::PartsApart { head_dim },
            _ => RowOrder::Plain,
        }
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
        let inside = "model.language_model.layers.3.mlp.up_proj.weight";
        assert_eq!(names.from_hf(inside).as_deref(), Some("blk.3.ffn_up.weight"));
        assert_eq!(names.from_hf("model.vision_tower.encoder.layers.3.mlp.up_proj.weight"), None);
        assert_eq!(names.to_hf("blk.x.attn_q.weight"), "blk.x.attn_q.weight");
        assert_eq!(names.from_hf("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }

    #[test]
    fn an_architectures_own_names_come_before_the_usual() {
        let names = GgufNames {
            block: &[("ffn_norm", "pre_feedforward_layernorm")],
            interleaved: &["self_attn.q_proj"],
            norm_offset: 1.0,
            ..GgufNames::USUAL
        };
        assert_eq!(names.to_hf("blk.3.ffn_norm.weight"), "model.layers.3.pre_feedforward_layernorm.weight");
        assert_eq!(names.added("model.layers.3.pre_feedforward_layernorm.weight"), 1.0);
        assert_eq!(names.added("model.layers.3.mlp.up_proj.weight"), 0.0);
        let order = |name| names.order(name, 4);
        assert_eq!(order("model.layers.0.self_attn.q_proj.bias"), RowOrder::RopeInterleaved { head_dim: 4 });
        assert_eq!(order("model.layers.0.self_attn.v_proj.weight"), RowOrder::Plain);
    }
}

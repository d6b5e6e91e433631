//! The file types of GGUF: which format each tensor has, as `llama-quantize` mixes them (`llama_tensor_get_type`).

use lowrank_files::Tensors;
use lowrank_kernels::Format;
use serde_json::{Map, Value};

/// What a GGUF file is mostly, by llama.cpp's names (`general.file_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
}

impl FileType {
    /// Every file type, larger files first.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q5_K_S,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_K_M,
        Self::Q4_K_S,
        Self::Q4_1,
        Self::Q4_0,
    ];

    /// The name used in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6_K => "q6_k",
            Self::Q5_K_M => "q5_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q4_K_M => "q4_k_m",
            Self::Q4_K_S => "q4_k_s",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The file type whose matrices all have a plain format.
    pub fn plain(format: Format) -> Option<Self> {
        match format {
            Format::F32 => Some(Self::F32),
            Format::F16 => Some(Self::F16),
            Format::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The value of `general.file_type`.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// The format of most matrices.
    const fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::F16 => Format::F16,
            Self::BF16 => Format::BF16,
            Self::Q8_0 => Format::Q8_0,
            Self::Q6_K => Format::Q6_K,
            Self::Q5_K_M | Self::Q5_K_S => Format::Q5_K,
            Self::Q5_1 => Format::Q5_1,
            Self::Q5_0 => Format::Q5_0,
            Self::Q4_K_M | Self::Q4_K_S => Format::Q4_K,
            Self::Q4_1 => Format::Q4_1,
            Self::Q4_0 => Format::Q4_0,
        }
    }

    /// The format of a tensor, by its GGUF name and its axes, innermost first. A vector is F32, a matrix whose rows are not
    /// a multiple of any block F16.
    pub(crate) fn format_of(self, name: &str, dims: &[usize], stack: &Stack) -> Format {
        let &[cols, _, ..] = dims else { return Format::F32 };
        let format = self.format();
        let format = if format.block_len() == 256 { self.mixed(name, cols, stack) } else { format };
        let format =
            if cols.is_multiple_of(format.block_len()) { format } else { without_super_blocks(format) };
        if cols.is_multiple_of(format.block_len()) { format } else { Format::F16 }
    }

    /// A K-quant's mix: more bits for the output, and in some blocks for the value and down projections.
    fn mixed(self, name: &str, cols: usize, stack: &Stack) -> Format {
        if name == "output.weight" || stack.tied && name == "token_embd.weight" {
            return if cols.is_multiple_of(256) { Format::Q6_K } else { Format::Q8_0 };
        }
        let of_block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((block, part)) = of_block.and_then(|(i, part)| Some((i.parse().ok()?, part))) else {
            return self.format();
        };
        let (values, down) = (part == "attn_v.weight", part == "ffn_down.weight");
        match self {
            Self::Q4_K_M | Self::Q5_K_M if (values || down) && stack.takes_more_bits(block) => Format::Q6_K,
            Self::Q4_K_S if values && block < 4 || down && block < stack.blocks / 8 => Format::Q5_K,
            // The value projection is an eighth of the query's there, so that more bits cost little.
            Self::Q4_K_M | Self::Q4_K_S if values && stack.is_70b => Format::Q5_K,
            _ => self.format(),
        }
    }
}

/// The format in blocks of 32 that stands for one in blocks of 256.
fn without_super_blocks(format: Format) -> Format {
    match format {
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        other => other,
    }
}

/// What of a model decides its mix.
pub(crate) struct Stack {
    blocks: usize,
    /// Whether the embedding is the output too.
    tied: bool,
    /// llama.cpp's type 70B: 80 blocks with grouped heads.
    is_70b: bool,
}

impl Stack {
    pub fn new(config: &Map<String, Value>, tensors: &Tensors) -> Self {
        let number = |name: &str| config.get(name).and_then(Value::as_u64);
        let heads = number("num_attention_heads");
        let grouped = number("num_key_value_heads").is_some_and(|kv| Some(kv) != heads);
        let blocks = number("num_hidden_layers").unwrap_or_default() as usize;
        Self { blocks, tied: !tensors.contains("lm_head.weight"), is_70b: blocks == 80 && grouped }
    }

    /// The first and the last eighth, and every third between.
    fn takes_more_bits(&self, block: usize) -> bool {
        let eighth = self.blocks / 8;
        block < eighth || block >= 7 * self.blocks / 8 || (block - eighth) % 3 == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[derive(serde::Deserialize)]
    struct Case {
        title: String,
        blocks: usize,
        tied: bool,
        grouped: bool,
        cols: HashMap<String, usize>,
        types: HashMap<String, Mix>,
    }

    #[derive(serde::Deserialize)]
    struct Mix {
        most: String,
        others: HashMap<String, Vec<String>>,
    }

    /// `tools/reference/file_types.py` asked llama.cpp.
    #[test]
    fn tensors_have_the_formats_of_llama_quantize() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/fixtures/file_types.json")).unwrap();
        for Case { title, blocks, tied, grouped, cols, types } in cases {
            let stack = Stack { blocks, tied, is_70b: blocks == 80 && grouped };
            assert_eq!(types.len(), 5);
            for (name, mix) in types {
                let file_type = FileType::ALL.into_iter().find(|t| t.name() == name).unwrap();
                let want: HashMap<&str, &str> = mix
                    .others
                    .iter()
                    .flat_map(|(kind, tensors)| tensors.iter().map(|t| (t.as_str(), kind.as_str())))
                    .collect();
                let mut seen = 0;
                for (tensor, cols) in &cols {
                    let of_all = |block: usize| tensor.replace("blk.0.", &format!("blk.{block}."));
                    let blocks = if tensor.starts_with("blk.") { 0..blocks } else { 0..1 };
                    for tensor in blocks.map(of_all) {
                        if tensor.ends_with("_norm.weight") {
                            assert_eq!(file_type.format_of(&tensor, &[*cols], &stack), Format::F32);
                            continue;
                        }
                        let want = want.get(tensor.as_str()).copied();
                        seen += usize::from(want.is_some());
                        let got = file_type.format_of(&tensor, &[*cols, 32], &stack).name();
                        assert_eq!(got, want.unwrap_or(&mix.most), "{tensor} of {title}, {name}");
                    }
                }
                assert_eq!(seen, want.len(), "{title}, {name}");
            }
        }
    }

    #[test]
    fn other_file_types_have_one_format() {
        let stack = Stack { blocks: 4, tied: true, is_70b: false };
        for file_type in FileType::ALL {
            let plain = matches!(file_type, FileType::F32 | FileType::F16 | FileType::BF16);
            if plain || file_type.format().block_len() == 32 {
                for name in ["token_embd.weight", "blk.0.attn_v.weight"] {
                    assert_eq!(file_type.format_of(name, &[64, 8], &stack), file_type.format());
                }
                let narrow = if plain { file_type.format() } else { Format::F16 };
                assert_eq!(file_type.format_of("blk.0.attn_v.weight", &[40, 8], &stack), narrow);
            }
            assert_eq!(file_type.format_of("output_norm.weight", &[64], &stack), Format::F32);
        }
    }
}

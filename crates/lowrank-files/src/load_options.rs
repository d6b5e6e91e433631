//! How a base model's matrices are held in memory: as stored, or converted tensor by tensor while loading.

use lowrank_kernels::Format;
use serde::{Deserialize, Serialize};

use crate::nearest::unknown;

/// What `--quantize` makes of the linear layers of a dense base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// QLoRA's 4-bit normal float with double quantisation: 4.13 bits a weight.
    Nf4,
    /// GGUF's Q8_0: 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
}

impl Quantize {
    /// The storage format.
    pub fn format(self) -> Format {
        match self {
            Self::Nf4 => Format::NF4,
            Self::Q8_0 => Format::Q8_0,
        }
    }
}

impl std::str::FromStr for Quantize {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "nf4" => Ok(Self::Nf4),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(unknown("format", name, ["nf4", "q8_0"])),
        }
    }
}

/// The precision of weights and products (`--precision`). Everything else is f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights as stored, products in f32.
    #[default]
    F32,
    /// F32 and F16 matrices become BF16: half the memory of F32. Where the CPU multiplies BF16 faster
    /// (AVX512-BF16), products round activations to BF16 too; sums stay f32.
    Bf16,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(unknown("precision", name, ["f32", "bf16"])),
        }
    }
}

/// How a base model is held in memory.
///
/// As in QLoRA, only the linear layers are quantised: embeddings, output layer and norms stay dense. Matrices
/// that a file already has quantised stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Quantise dense linear layers.
    pub quantize: Option<Quantize>,
    /// Keep dense matrices as BF16.
    pub precision: Precision,
    /// Keep only a window of blocks in memory, and read the weights again and again.
    pub stream: bool,
    /// Nothing but shapes, for planning: what would be converted gets no bytes.
    pub shapes_only: bool,
}

/// What a matrix is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The weight of a linear layer.
    Linear,
    /// An output layer.
    Output,
}

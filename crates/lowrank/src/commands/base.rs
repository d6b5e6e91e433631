//! How the base model is held in memory: flags of several commands.

use lowrank::files::{LoadOptions, Precision, Quantize};
use serde::Serialize;

/// How the base model is held in memory.
#[derive(clap::Args, Serialize)]
pub struct Flags {
    /// Quantise the linear layers of a dense base while it is read: nf4 (QLoRA's) or q8_0
    #[arg(long, help_heading = "Base model")]
    quantize: Option<Quantize>,
    /// Weights and products of a dense base: f32, or bf16 at half the memory [default: f32]
    #[arg(long, help_heading = "Base model")]
    precision: Option<Precision>,
    /// Keep one block's weights in memory at a time, for a base larger than memory
    #[arg(long, help_heading = "Base model")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream_base: bool,
}

impl Flags {
    /// What they say.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            quantize: self.quantize,
            precision: self.precision.unwrap_or_default(),
            stream: self.stream_base,
            shapes_only: false,
        }
    }
}

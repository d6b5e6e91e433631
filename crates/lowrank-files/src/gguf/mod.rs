//! GGUF files, versions 2 and 3, little-endian.
//!
//! Layout: magic `GGUF`, version, tensor count, metadata count, the metadata, the tensor
//! descriptions, padding to `general.alignment`, the values.

mod cursor;
mod file;
mod names;
mod split;
mod writer;

pub use cursor::Strings;
pub use file::{Gguf, is_gguf, round_f32};
pub use names::{GgufNames, ROPE_FACTORS};
pub use split::gguf_parts;
pub use writer::{GgufWriter, TensorPlan};

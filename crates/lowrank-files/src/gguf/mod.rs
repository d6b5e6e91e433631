//! GGUF files, versions 2 and 3, little-endian.
//!
//! Layout: magic `GGUF`, version, tensor count, metadata count, the metadata, the tensor
//! descriptions, padding to `general.alignment`, the values.

mod cursor;
mod file;
mod names;
mod writer;

pub use cursor::Strings;
pub use file::{Gguf, is_gguf};
pub use names::{ROPE_FACTORS, added, from_hf, permutes_rows, to_hf};
pub use writer::{GgufWriter, TensorPlan};

//! Files of tensors: safetensors, PyTorch's and GGUF, read in place from memory maps and written whole or not at all.
//!
//! * [`Tensors`] are the tensors of a model or adapter, by name, wherever they lie; [`LoadOptions`] say how matrices are
//!   held in memory (as stored, quantised, as BF16, streamed).
//! * [`Gguf`] is an open GGUF file (metadata and tensors), [`GgufWriter`] writes one.
//! * [`write_pytorch`] writes what `torch.load` reads.
//! * [`AtomicFile`] and [`write_atomic`] write a file that appears only when it is whole, [`Staged`] a folder;
//!   [`check_output`] refuses to write over an input, and [`FolderLock`] is held by who writes to a folder.
//! * [`Provenance`] says what made a file.
//! * [`folder`] knows how a Hugging Face folder lays out its weights.
//!
//! Nothing in a file is believed before it is checked: sizes, offsets and overlaps are compared with the file, and every
//! error names the file, the tensor or field, and the fix.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use lowrank_files::{LoadOptions, Quantize, Tensors};
//!
//! let mut tensors = Tensors::open(Path::new("adapter_model.safetensors"))?;
//! tensors.set_load_options(LoadOptions { quantize: Some(Quantize::Nf4), ..LoadOptions::default() });
//! for name in tensors.names() {
//!     println!("{name}: {:?}", tensors.shape(name));
//! }
//! # Ok::<(), lowrank_files::Error>(())
//! ```

mod atomic;
mod conversion;
mod entry;
mod error;
mod gguf;
mod json;
mod load_options;
mod lock;
mod nearest;
mod outputs;
mod packed;
mod panics;
mod planned;
mod provenance;
mod pytorch;
mod quantized;
mod range;
mod safetensors;
mod tensors;

pub mod folder;

pub use atomic::{AtomicFile, write_atomic};
pub use error::{Error, IoError, Result, shortened, shown, shown_at_most};
pub use gguf::{
    Gguf, GgufNames, GgufWriter, ROPE_FACTORS, Strings, TensorPlan, gguf_parts, is_gguf, round_f32,
};
pub use json::{MAX_CONFIG, read_input, read_json, read_limited, read_object, read_optional_object, regular};
pub use load_options::{LoadOptions, Precision, Quantize, Role};
pub use lock::FolderLock;
pub use nearest::{nearest, unknown};
pub use outputs::{Staged, check_output, is_inside, is_same_file};
pub use panics::catch_panic;
pub use provenance::{Provenance, shell_quoted};
pub use pytorch::{PytorchTensor, write_pytorch};
pub use quantized::read_quantized;
pub use range::Range;
pub use tensors::Tensors;

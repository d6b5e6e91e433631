//! Model files, tokenizers, chat templates, architectures and generation.
//!
//! A base model comes from a Hugging Face folder, a GGUF file or a hub id, and looks the same from then
//! on: [`Base`] gives the configuration in `config.json`'s words and every tensor under its
//! Hugging Face name, read in place from the memory-mapped file.

mod arch;
mod architecture;
mod base;
mod config;
mod error;
mod export;
mod gguf;
mod loader;
mod model;
mod parts;
mod tied;
mod wrapper;

pub mod decode;
pub mod heads;
pub mod hub;
pub mod text;

pub use arch::{base_prefix, gguf_architectures, gguf_names, load, model_types};
pub use base::{Base, Kind, base_name};
pub use config::GenerationConfig;
pub use decode::{
    Decoded, Decoder, DecoderOptions, Request, RequestAdapter, Sampling, SearchOptions, Sequence, Strategy,
};
pub use error::{Error, Result};
pub use export::{Changes, FileType, Fill, gguf_formats, save_folder, save_folder_with, save_gguf};
pub use heads::{ClassHead, Head, HeadKind, load_for};
pub use loader::Loader;
pub use model::{Model, ModelInfo, TokenBatch};
pub use text::chat::{ChatTemplate, Conversation, Message};
pub use text::stop::StopFilter;
pub use text::style::style as template_style;
pub use text::templates::{self, CHAT_TEMPLATE_FILE};
pub use text::tokenizer::{StreamDecoder, Texts, Tokenizer};

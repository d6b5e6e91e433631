//! Writing a whole model, streamed: to a Hugging Face folder or to a GGUF file.

mod file_type;
mod folder;
mod gguf;
mod stream;

pub use file_type::FileType;
pub use folder::{Changes, save_folder, save_folder_with};
pub use gguf::{gguf_formats, save_gguf};
pub use stream::Fill;

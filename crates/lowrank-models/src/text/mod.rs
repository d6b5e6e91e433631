//! Between text and tokens: tokenizers and chat templates.

pub mod chat;
mod limits;
pub mod stop;
pub mod style;
pub mod templates;
pub mod tokenizer;

//! Between text and tokens: tokenizers and chat templates.

pub mod chat;
pub mod templates;
pub mod tokenizer;

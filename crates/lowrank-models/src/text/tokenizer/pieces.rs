//! The tokenizers of GGUF files that are no BPE: SentencePiece's Unigram and BERT's WordPiece, made as the
//! `tokenizer.json` that Hugging Face has for them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lowrank_files::Gguf;
use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use super::Roles;
use crate::{Error, Result};

/// SentencePiece's visible space.
pub(super) const SPACE: &str = "▁";

/// Token types of `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// The tokens with their types, `NORMAL` where the file has none.
fn tokens(gguf: &Gguf) -> Result<Vec<(String, i32)>> {
    let key = "tokenizer.ggml.tokens";
    let tokens = gguf.strings(key)?.ok_or_else(|| Error::field(gguf.path(), key, "is missing"))?;
    let types = gguf.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let kind = |id: usize| types.get(id).map_or(NORMAL, |kind| *kind as i32);
    tokens.enumerate().map(|(id, token)| Ok((token?.to_owned(), kind(id)))).collect()
}

fn build(gguf: &Gguf, model: Value, parts: Value) -> Result<Inner> {
    let mut json = json!({ "version": "1.0", "added_tokens": [], "model": model });
    if let (Some(json), Value::Object(parts)) = (json.as_object_mut(), parts) {
        json.extend(parts);
    }
    Inner::from_bytes(json.to_string()).map_err(|e| Error::tokenizer(gguf.path(), e))
}

/// SentencePiece's Unigram, as Hugging Face's conversion of T5's makes it.
pub(super) fn unigram(gguf: &Gguf, roles: Roles) -> Result<Inner> {
    let path = gguf.path();
    let key = "tokenizer.ggml.scores";
    let scores = gguf.numbers(key)?.ok_or_else(|| Error::field(path, key, "is missing"))?;
    let tokens = tokens(gguf)?;
    if scores.len() < tokens.len() {
        return Err(Error::field(
            path,
            key,
            format!("has {} values for {} tokens", scores.len(), tokens.len()),
        ));
    }
    let bytes = tokens.iter().any(|(_, kind)| *kind == BYTE);
    let vocab: Vec<Value> =
        tokens.iter().zip(&scores).map(|((token, _), score)| json!([token, score])).collect();
    let unknown = roles.unk.unwrap_or(2);
    let model = json!({ "type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": bytes });

    let mut normalizers = Vec::new();
    if let Some(map) = gguf.numbers("tokenizer.ggml.precompiled_charsmap")?.filter(|map| !map.is_empty()) {
        let map: Vec<u8> = map.iter().map(|byte| *byte as i16 as u8).collect();
        normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map) }));
    }
    let replace = |pattern: &str, content: &str| json!({ "type": "Replace", "pattern": { "Regex": pattern }, "content": content });
    let merges_spaces = gguf.boolean("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false);
    if merges_spaces {
        normalizers.push(replace("^ +| +$", ""));
        normalizers.push(replace(" {2,}", " "));
    }
    let prefix = gguf.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(false) || merges_spaces;
    let space = json!({
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": if prefix { "always" } else { "never" }, "split": true,
    });
    let parts = json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": space,
        "decoder": space,
    });
    build(gguf, model, parts)
}

/// BERT's WordPiece. GGUF marks the beginnings of words where BERT marks the rest.
pub(super) fn word_piece(gguf: &Gguf, roles: Roles) -> Result<Inner> {
    let tokens = tokens(gguf)?;
    let unknown = roles.unk.and_then(|id| tokens.get(id as usize));
    let unknown = unknown.map_or("[UNK]", |(token, _)| token.as_str());
    let vocab: serde_json::Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, (token, kind))| {
            let token = match token.strip_prefix(SPACE).filter(|rest| !rest.is_empty()) {
                Some(begin) => begin.to_owned(),
                None if *kind == NORMAL && !is_bracketed(token) => format!("##{token}"),
                None => token.clone(),
            };
            (token, json!(id))
        })
        .collect();
    let model = json!({
        "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocab,
    });
    let lowercase = gguf.boolean("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true);
    let strip_accents = gguf.boolean("tokenizer.ggml.normalizer.strip_accents")?.unwrap_or(lowercase);
    let parts = json!({
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
    });
    build(gguf, model, parts)
}

/// A token such as `[CLS]`: llama.cpp's converter leaves these as they are, whatever their type.
fn is_bracketed(token: &str) -> bool {
    token.len() > 2 && token.starts_with('[') && token.ends_with(']')
}

//! Texts, pairs of texts and lists of words as a model for classification reads them: with the special tokens that
//! its tokenizer puts around them, cut to a length.

use serde_json::Value;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{
    EncodeInput, Encoding, InputSequence, PostProcessor, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use super::Tokenizer;
use crate::{Error, Result};

/// The tokens of a text or of a pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// `T` tokens.
    pub ids: Vec<u32>,
    /// Type of each: 1 for the second text of a pair, where the tokenizer tells them apart.
    pub types: Vec<u32>,
    /// Whether each was put there by the tokenizer and is of no text.
    pub special: Vec<bool>,
    /// For words: which word each is of.
    pub words: Vec<Option<u32>>,
    /// Whether something was cut off.
    pub truncated: bool,
}

impl Tokenizer {
    /// The tokens of `first`, or of a pair, at most `max` of them: the longer text loses tokens first, as with
    /// `tokenizer(first, second, truncation=True, max_length=max)`.
    ///
    /// # Errors
    /// Where the tokenizer refuses, or `max` leaves room for special tokens only.
    pub fn encode_texts(&self, first: &str, second: Option<&str>, max: Option<usize>) -> Result<Texts> {
        let first = self.encoding(first, false, false)?;
        let second = second.map(|text| self.encoding(text, false, false)).transpose()?;
        self.assemble(first, second, max)
    }

    /// The tokens of a text that is split into words already
    /// (`tokenizer(words, is_split_into_words=True)`).
    ///
    /// # Errors
    /// As [`Tokenizer::encode_texts`].
    pub fn encode_words(&self, words: &[&str], max: Option<usize>) -> Result<Texts> {
        // transformers wants `add_prefix_space` then: every word begins as after a space.
        let space = if self.joins_words() { " " } else { "" };
        let words: Vec<String> = words.iter().map(|word| format!("{space}{word}")).collect();
        // The fast way of encoding does not say which word a token is of.
        let piece = self
            .call(move |inner| inner.encode(EncodeInput::Single(InputSequence::from(&words[..])), false))?;
        self.assemble(piece, None, max)
    }

    fn assemble(&self, first: Encoding, second: Option<Encoding>, max: Option<usize>) -> Result<Texts> {
        let len = |a: &Encoding, b: &Option<Encoding>| a.len() + b.as_ref().map_or(0, Encoding::len);
        let full = len(&first, &second);
        let (mut a, mut b) = (first, second);
        if let Some(max) = max {
            let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(b.is_some()));
            if max <= added {
                let what = format!("{added} of at most {max} tokens are special: allow more");
                return Err(Error::tokenizer(&self.path, what));
            }
            let params = TruncationParams {
                direction: TruncationDirection::Right,
                max_length: max - added,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            };
            (a, b) = truncate_encodings(a, b, &params).map_err(|e| Error::tokenizer(&self.path, e))?;
        }
        let truncated = len(&a, &b) < full;
        let all = self.call(move |inner| inner.post_process(a, b, true))?;
        Ok(Texts {
            ids: self.known(all.get_ids().to_vec())?,
            types: all.get_type_ids().to_vec(),
            special: all.get_special_tokens_mask().iter().map(|&special| special != 0).collect(),
            words: all.get_word_ids().to_vec(),
            truncated,
        })
    }

    /// Whether a word without a space before it would be read as the rest of the word before (byte-level BPE).
    fn joins_words(&self) -> bool {
        let steps = serde_json::to_value(self.inner.get_pre_tokenizer()).unwrap_or_default();
        let joins = |step: &Value| step["type"] == "ByteLevel" && step["add_prefix_space"] == false;
        joins(&steps) || steps["pretokenizers"].as_array().is_some_and(|steps| steps.iter().any(joins))
    }
}

//! Decoding while tokens arrive.

use std::ops::Deref;

use super::Tokenizer;
use crate::Result;

/// A character takes at most four bytes, so at most four tokens can be waiting for its end; more are
/// bytes that will never be one.
const LONGEST_WAIT: usize = 4;

impl Tokenizer {
    /// A decoder for tokens that arrive one by one.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<&Self> {
        StreamDecoder::new(self, skip_special)
    }
}

/// Turns tokens into text as they arrive and never gives out half a character.
pub struct StreamDecoder<T> {
    tokenizer: T,
    skip_special: bool,
    ids: Vec<u32>,
    /// Tokens before `given` have been given out; they are context for the decoder of those after.
    given: usize,
}

impl<T: Deref<Target = Tokenizer>> StreamDecoder<T> {
    /// A decoder without tokens, which may share its tokenizer.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), given: 0 }
    }

    /// Takes one token; gives the text that is now certain, often empty.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let wait = self.ids.len() - self.given <= LONGEST_WAIT;
        self.take(wait)
    }

    /// The text that was still waiting for the rest of a character.
    ///
    /// # Errors
    /// Where the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        self.take(false)
    }

    fn take(&mut self, wait: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.given], self.skip_special)?;
        let now = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if wait && now.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = now.get(before.len()..).unwrap_or_default().to_owned();
        if !new.is_empty() || !wait {
            // What was just given out stays as the context of what follows.
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(new)
    }
}

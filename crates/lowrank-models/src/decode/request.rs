//! What is asked of the decoder and what it answers.

use super::sampling::{Logprobs, Sampling};
use super::search::{Decoded, SearchOptions};

/// A request that joined the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// How a request's texts are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// Each token when it is its turn: the most likely one, or one drawn at random.
    Sample(Sampling),
    /// The likeliest text that greedy or beam search finds.
    Search(SearchOptions),
}

/// A prompt and how to continue it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Tokens to continue, at least one. They are computed once for all that follows.
    pub prompt: Vec<u32>,
    /// Tokens of a text at most. A text that reaches the end of the model's positions ends there.
    pub max_new_tokens: usize,
    /// Tokens that end a text; they are its last one.
    pub stop_tokens: Vec<u32>,
    /// How the tokens are chosen.
    pub strategy: Strategy,
    /// Texts sampled for the prompt. Number `i` is that of a request alone with `seed + i`. A search finds one.
    pub choices: usize,
    /// Report the log-probability of every sampled token, and those of so many of the most likely ones.
    pub logprobs: Option<usize>,
    /// Keep the keys and values when the only text ends or leaves, for a later prompt that begins with the same tokens
    /// (the next turn of a conversation).
    pub keep: bool,
}

impl Default for Request {
    /// Greedy, 256 tokens.
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            max_new_tokens: 256,
            stop_tokens: Vec::new(),
            strategy: Strategy::Sample(Sampling::default()),
            choices: 1,
            logprobs: None,
            keep: false,
        }
    }
}

impl Request {
    /// Texts that may be followed at once.
    pub(super) fn branches(&self) -> usize {
        match &self.strategy {
            Strategy::Sample(_) => self.choices,
            Strategy::Search(search) => search.num_beams,
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Its last token is a stop token.
    Stop,
    /// It has as many tokens as it may have.
    Length,
}

/// What happened to a request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A sampled text got its next token.
    Token {
        /// Which of the request's texts.
        choice: usize,
        /// The token.
        token: u32,
        /// Its log-probability, where the request asked for it.
        logprobs: Option<Logprobs>,
    },
    /// A sampled text ended.
    Finished {
        /// Which of the request's texts.
        choice: usize,
        /// Why.
        reason: Finish,
    },
    /// A search ended with this text.
    Found(Decoded),
    /// The model gave a logit that is NaN: the request is over, without a text.
    NotFinite,
}

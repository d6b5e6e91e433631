//! What is asked of the decoder and what it answers.

use std::fmt;
use std::sync::Arc;

use lowrank_engine::AdapterIndex;

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

/// The adapter of a request, where a decoder serves several ([`super::Decoder::set_adapters`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestAdapter {
    /// Its place in the routed set, for as long as the request goes on.
    pub index: AdapterIndex,
    /// Virtual tokens that its sequences begin with.
    pub virtual_tokens: usize,
    /// Names its contents and weights: keys and values that are kept are used again under the same number only.
    pub contents: u64,
}

/// What a text may go on with: a grammar, for example.
pub trait Constraint: Send + Sync {
    /// Sets the logits `[V]` of tokens that may not follow to negative infinity.
    fn mask(&mut self, logits: &mut [f32]);
    /// Takes note of the token that was chosen. Returns whether the text is complete: nothing may follow.
    fn accept(&mut self, token: u32) -> bool;
    /// The constraint at its beginning.
    fn start(&self) -> Box<dyn Constraint>;
}

/// A constraint that each text of a request begins with anew.
#[derive(Clone)]
pub struct Constrained(pub Arc<dyn Constraint>);

impl fmt::Debug for Constrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constrained")
    }
}

impl PartialEq for Constrained {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
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
    /// Which adapter its rows have, where the decoder serves several; without one, the base alone.
    pub adapter: Option<RequestAdapter>,
    /// What sampled texts may go on with.
    pub constraint: Option<Constrained>,
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
            adapter: None,
            constraint: None,
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

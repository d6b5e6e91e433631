//! Tokens to text: what a client reads of a request.

use std::sync::Arc;

use lowrank_models::decode::{Finish, Logprobs};
use lowrank_models::{StopFilter, StreamDecoder, Tokenizer};
use serde_json::{Value, json};

use crate::engine::{Ticket, Update};
use crate::error::{Error, Result};

/// A piece of a text, as soon as it is certain.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    pub choice: usize,
    pub text: String,
    /// The tokens behind it with their log-probabilities, where they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// OpenAI's reason, at the end.
    pub finish: Option<&'static str>,
}

/// A token and its log-probability beside those of the most likely ones.
#[derive(Clone, Debug)]
pub struct TokenLogprobs {
    pub token: String,
    pub logprob: f32,
    pub top: Vec<(String, f32)>,
}

impl TokenLogprobs {
    /// As chat completions have it.
    pub fn chat(&self) -> Value {
        let one = |token: &str, logprob: f32| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
        let mut value = one(&self.token, self.logprob);
        value["top_logprobs"] = self.top.iter().map(|(token, logprob)| one(token, *logprob)).collect();
        value
    }
}

/// The texts of a request as they grow.
pub struct Texts {
    ticket: Ticket,
    tokenizer: Arc<Tokenizer>,
    stop_tokens: Vec<u32>,
    choices: Vec<Choice>,
    /// Tokens of the prompt that were in the cache.
    pub cached: usize,
    /// Tokens generated, those that end a text included.
    pub generated: usize,
}

struct Choice {
    stream: StreamDecoder<Arc<Tokenizer>>,
    filter: StopFilter,
    ended: bool,
}

impl Texts {
    /// The texts of a request of `choices` texts that end at `stop_tokens` and at the texts `stop`.
    pub fn new(
        ticket: Ticket,
        tokenizer: Arc<Tokenizer>,
        choices: usize,
        stop_tokens: &[u32],
        stop: &[String],
        show_special: bool,
    ) -> Self {
        let new = || Choice {
            stream: StreamDecoder::new(tokenizer.clone(), !show_special),
            filter: StopFilter::new(stop),
            ended: false,
        };
        let choices = (0..choices).map(|_| new()).collect();
        Self { ticket, tokenizer, stop_tokens: stop_tokens.to_vec(), choices, cached: 0, generated: 0 }
    }

    /// Waits until the request is being computed.
    ///
    /// # Errors
    /// Where it cannot be.
    pub async fn joined(&mut self) -> Result<()> {
        match self.ticket.next().await {
            Some(Update::Joined { cached }) => {
                self.cached = cached;
                Ok(())
            }
            Some(Update::Failed(error)) => Err(error),
            _ => Err(Error::ending()),
        }
    }

    /// The next piece of any of the texts; nothing after all have ended.
    ///
    /// # Errors
    /// Where the request failed.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        while self.choices.iter().any(|choice| !choice.ended) {
            let piece = match self.ticket.next().await {
                Some(Update::Joined { cached }) => {
                    self.cached = cached;
                    continue;
                }
                Some(Update::Token { choice, token, logprobs }) => self.token(choice, token, logprobs)?,
                Some(Update::Finished { choice, reason }) => Some(self.finish(choice, reason)?),
                Some(Update::Failed(error)) => return Err(error),
                None => return Err(Error::ending()),
            };
            if let Some(piece) = piece {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn token(&mut self, at: usize, token: u32, logprobs: Option<Logprobs>) -> Result<Option<Piece>> {
        let choice = &mut self.choices[at];
        if choice.ended {
            return Ok(None);
        }
        self.generated += 1;
        let mut piece = Piece { choice: at, ..Piece::default() };
        let stops = self.stop_tokens.contains(&token);
        if let Some(logprobs) = logprobs.filter(|_| !stops) {
            let name = |token: u32| self.tokenizer.decode(&[token], false).unwrap_or_default();
            let top = logprobs.top.into_iter().map(|(token, logprob)| (name(token), logprob)).collect();
            piece.logprobs.push(TokenLogprobs { token: name(token), logprob: logprobs.chosen, top });
        }
        if !stops {
            let new = choice.stream.push(token).map_err(|e| Error::failed(e.to_string()))?;
            piece.text = choice.filter.push(&new);
        }
        if choice.filter.stopped() {
            choice.ended = true;
            piece.finish = Some("stop");
            self.ticket.end_choice(at);
        }
        Ok((!piece.text.is_empty() || !piece.logprobs.is_empty() || piece.finish.is_some()).then_some(piece))
    }

    fn finish(&mut self, at: usize, reason: Finish) -> Result<Piece> {
        let choice = &mut self.choices[at];
        choice.ended = true;
        let rest = choice.stream.finish().map_err(|e| Error::failed(e.to_string()))?;
        let mut text = choice.filter.push(&rest);
        if !choice.filter.stopped() {
            text += &choice.filter.finish();
        }
        let finish = match reason {
            _ if choice.filter.stopped() => "stop",
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        Ok(Piece { choice: at, text, finish: Some(finish), ..Piece::default() })
    }
}

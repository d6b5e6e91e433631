//! Text in, text out: prompts, chat, stop strings.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lowrank_adapters::AdapterSet;
use lowrank_engine::Device;
use lowrank_models::{Generator, Sampling};

use crate::{Error, Result, Session};

/// When generation ends.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Texts that end it; they are not part of the answer.
    pub stop: Vec<String>,
}

/// Checks that every number of `sampling` is one that makes sense.
///
/// # Errors
/// Names the option and what it may be.
pub fn check_sampling(sampling: &Sampling) -> Result<()> {
    let wrong = |what: &str| Err(Error::Usage(what.to_owned()));
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return wrong("--temperature must be a number from 0");
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return wrong("--top-p must be more than 0 and at most 1");
    }
    if !(0.0..=1.0).contains(&sampling.min_p) {
        return wrong("--min-p must be from 0 to 1");
    }
    if !(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite()) {
        return wrong("--repetition-penalty must be more than 0");
    }
    Ok(())
}

/// What was generated.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// The tokens, the ending one included.
    pub tokens: Vec<u32>,
    /// The text.
    pub text: String,
    /// How long reading the prompt took.
    pub prompt_time: Duration,
    /// How long it took from the first new token to the last.
    pub decode_time: Duration,
}

/// A growing text on a base model with an adapter.
pub struct TextGenerator<'m> {
    session: &'m Session,
    generator: Generator<'m>,
    ends: Vec<u32>,
    stop: Arc<AtomicBool>,
}

impl<'m> TextGenerator<'m> {
    /// An empty text.
    ///
    /// # Errors
    /// Where the model has no tokenizer.
    pub fn new(session: &'m Session, device: &'m Device, adapters: &'m AdapterSet) -> Result<Self> {
        let ends = session.ends()?;
        let generator = Generator::new(&*session.model, device, &adapters.params, &adapters.active)?;
        Ok(Self { session, generator, ends, stop: Arc::default() })
    }

    /// Ends what is generated after the token at hand once `stop` is set.
    pub fn stop_when(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// The tokens of a text to continue: at least one.
    ///
    /// # Errors
    /// Where the tokenizer refuses, or the text is empty and no token begins one.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.session.prompt(text)
    }

    /// Tokens so far.
    pub fn tokens(&self) -> &[u32] {
        self.generator.tokens()
    }

    /// Continues the conversation whose tokens are `all`: what is new since the last answer is appended;
    /// where the template rewrote the past, everything is read again.
    ///
    /// # Errors
    /// As [`TextGenerator::generate`].
    pub fn reply(
        &mut self,
        all: &[u32],
        sampling: &Sampling,
        limits: &Limits,
        show: impl FnMut(&str),
    ) -> Result<Generated> {
        let known = self.tokens().iter().zip(all).take_while(|(a, b)| a == b).count();
        // At least one token must be read again, to give the logits of what follows.
        let keep = known.min(all.len().saturating_sub(1));
        self.generator.truncate(keep);
        self.generate(&all[keep..], sampling, limits, show)
    }

    /// Appends `prompt` and continues it; `show` gets each piece of text as soon as it is certain.
    ///
    /// # Errors
    /// Where the tokenizer refuses, or the prompt is longer than the model's positions reach.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &Sampling,
        limits: &Limits,
        mut show: impl FnMut(&str),
    ) -> Result<Generated> {
        let mut out = Generated::default();
        let tokenizer = self.session.tokenizer()?;
        let mut stream = tokenizer.stream(true);
        let mut text = StopFilter::new(&limits.stop);
        let limit = self.session.model.position_limit().unwrap_or(usize::MAX);
        let limit = limit.saturating_sub(self.generator.virtual_tokens());
        let start = self.tokens().len() + prompt.len();
        if start > limit {
            return Err(Error::Usage(format!(
                "the prompt has {start} tokens; the model's positions end at {limit}"
            )));
        }
        let begin = Instant::now();
        let mut logits = self.generator.feed(prompt);
        let first = Instant::now();
        out.prompt_time = first - begin;
        while out.tokens.len() < limits.max_new_tokens {
            let token = self.generator.sample(logits, sampling);
            out.tokens.push(token);
            if self.ends.contains(&token) {
                break;
            }
            let flow = text.push(&stream.push(token)?, &mut show);
            let stopped = flow.is_break() || self.stop.load(Ordering::Relaxed);
            if stopped || out.tokens.len() == limits.max_new_tokens || self.tokens().len() == limit {
                break;
            }
            logits = self.generator.feed(&[token]);
        }
        out.decode_time = first.elapsed();
        let rest = stream.finish()?;
        if text.push(&rest, &mut show).is_continue() {
            text.finish(&mut show);
        }
        out.text = text.given;
        Ok(out)
    }
}

/// Holds back text that may be the beginning of a stop string.
struct StopFilter<'a> {
    stop: &'a [String],
    given: String,
    held: String,
    stopped: bool,
}

impl<'a> StopFilter<'a> {
    fn new(stop: &'a [String]) -> Self {
        Self { stop, given: String::new(), held: String::new(), stopped: false }
    }

    fn push(&mut self, text: &str, show: &mut impl FnMut(&str)) -> ControlFlow<()> {
        if self.stopped {
            return ControlFlow::Break(());
        }
        self.held.push_str(text);
        let first =
            self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = first {
            self.give(at, show);
            self.stopped = true;
            return ControlFlow::Break(());
        }
        // The longest end of the text that begins a stop string stays.
        let begins = |at: &usize| self.stop.iter().any(|s| s.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        self.give(keep, show);
        ControlFlow::Continue(())
    }

    fn finish(&mut self, show: &mut impl FnMut(&str)) {
        self.give(self.held.len(), show);
    }

    fn give(&mut self, until: usize, show: &mut impl FnMut(&str)) {
        let text: String = self.held.drain(..until).collect();
        if !text.is_empty() {
            show(&text);
            self.given.push_str(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, Vec<String>) {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut shown = Vec::new();
        let mut filter = StopFilter::new(&stop);
        for piece in pieces {
            if filter.push(piece, &mut |t| shown.push(t.to_owned())).is_break() {
                break;
            }
        }
        if !filter.stopped {
            filter.finish(&mut |t| shown.push(t.to_owned()));
        }
        (filter.given, shown)
    }

    #[test]
    fn stop_strings_end_the_text_even_across_pieces() {
        assert_eq!(run(&["\n\n"], &["one\n", "two\n", "\nthree"]).0, "one\ntwo");
        assert_eq!(run(&["END", "ENOUGH"], &["a EN", "OU", "GH b"]).0, "a ");
        assert_eq!(run(&["END"], &["a E", "N"]).0, "a EN");
        assert_eq!(run(&[], &["é", "è"]).1, ["é", "è"]);
        assert_eq!(run(&["x"], &["héllo ", "wörld"]).0, "héllo wörld");
    }

    #[test]
    fn certain_text_is_shown_at_once() {
        assert_eq!(run(&["STOP"], &["a", "S", "o"]).1, ["a", "So"]);
    }
}

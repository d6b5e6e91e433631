//! Text in, text out: prompts, chat, stop strings.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lowrank_adapters::AdapterSet;
use lowrank_engine::Device;
use lowrank_models::decode::Event;
use lowrank_models::{Decoder, DecoderOptions, Request, Sampling, Strategy};

use crate::{Result, Session};

/// When generation ends.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Texts that end it; they are not part of the answer.
    pub stop: Vec<String>,
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

/// Continues texts on a base model with an adapter, one at a time.
pub struct TextGenerator<'m> {
    session: &'m Session,
    decoder: Decoder<'m>,
    ends: Vec<u32>,
    stop: Arc<AtomicBool>,
}

impl<'m> TextGenerator<'m> {
    /// A generator without text.
    ///
    /// # Errors
    /// Where the model has no tokenizer or does not generate.
    pub fn new(session: &'m Session, device: &'m Device, adapters: &'m AdapterSet) -> Result<Self> {
        let ends = session.ends()?;
        let (model, options) = (&*session.model, DecoderOptions::default());
        let decoder = Decoder::new(model, device, &adapters.params, &adapters.active, options)?;
        Ok(Self { session, decoder, ends, stop: Arc::default() })
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

    /// Continues `prompt`; `show` gets each piece of text as soon as it is certain. Where the prompt begins with the
    /// last one and its answer, as a conversation does, only what is new is computed.
    ///
    /// # Errors
    /// Where the tokenizer refuses, a field of `sampling` makes no sense, or the prompt is longer than the model's
    /// positions reach.
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
        let begin = Instant::now();
        let mut first = None;
        let id = self.decoder.join(&Request {
            prompt: prompt.to_vec(),
            max_new_tokens: limits.max_new_tokens,
            stop_tokens: self.ends.clone(),
            strategy: Strategy::Sample(sampling.clone()),
            keep: true,
            ..Request::default()
        })?;
        'text: while !self.decoder.is_idle() {
            for (_, event) in self.decoder.step() {
                let token = match event {
                    Event::Token { token, .. } => token,
                    Event::NotFinite => return Err(lowrank_models::Error::NotFinite.into()),
                    _ => continue,
                };
                first.get_or_insert_with(Instant::now);
                out.tokens.push(token);
                if self.ends.contains(&token) {
                    continue;
                }
                let flow = text.push(&stream.push(token)?, &mut show);
                if flow.is_break() || self.stop.load(Ordering::Relaxed) {
                    break 'text;
                }
            }
        }
        self.decoder.leave(id);
        let first = first.unwrap_or_else(Instant::now);
        (out.prompt_time, out.decode_time) = (first - begin, first.elapsed());
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

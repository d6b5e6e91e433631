//! Text in, text out: prompts, chat, stop strings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lowrank_adapters::AdapterSet;
use lowrank_engine::Device;
use lowrank_models::decode::Event;
use lowrank_models::{Decoder, DecoderOptions, Message, Request, Sampling, StopFilter, Strategy};

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
    /// Whether it was cut at the limit of tokens.
    pub cut: bool,
    /// How long reading the prompt took.
    pub prompt_time: Duration,
    /// How long it took from the first new token to the last.
    pub decode_time: Duration,
}

impl Default for Limits {
    /// 256 tokens.
    fn default() -> Self {
        Self { max_new_tokens: 256, stop: Vec::new() }
    }
}

/// One call each; [`TextGenerator`] has the sampling, the limits, the pieces as they come, and conversations of many turns.
impl Session {
    /// Continues a text by the likeliest tokens, 256 at most, with the adapter of [`Session::with_adapter`].
    ///
    /// # Errors
    /// As [`TextGenerator::generate`].
    pub fn generate(&self, text: &str) -> Result<String> {
        self.likeliest(&self.prompt(text)?, &Limits::default())
    }

    /// Answers a message, likewise.
    ///
    /// # Errors
    /// As [`Session::generate`], and where the model has no chat template.
    pub fn chat(&self, message: &str) -> Result<String> {
        let talk = [Message::new("user", message)];
        let limits = Limits { stop: self.stops()?, ..Limits::default() };
        self.likeliest(&self.chat_prompt(&talk[..].into())?, &limits)
    }

    fn likeliest(&self, tokens: &[u32], limits: &Limits) -> Result<String> {
        let device = self.device();
        let mut generator = TextGenerator::new(self, &device, &self.adapter)?;
        Ok(generator.generate(tokens, &Sampling::default(), limits, |_| {})?.text)
    }
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
        let mut give = |out: &mut Generated, text: String| {
            if !text.is_empty() {
                show(&text);
                out.text.push_str(&text);
            }
        };
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
                give(&mut out, text.push(&stream.push(token)?));
                out.cut = !text.stopped() && out.tokens.len() >= limits.max_new_tokens;
                if text.stopped() || self.stop.load(Ordering::Relaxed) {
                    break 'text;
                }
            }
        }
        self.decoder.leave(id);
        let first = first.unwrap_or_else(Instant::now);
        (out.prompt_time, out.decode_time) = (first - begin, first.elapsed());
        give(&mut out, text.push(&stream.finish()?));
        give(&mut out, text.finish());
        out.cut &= !text.stopped();
        Ok(out)
    }
}

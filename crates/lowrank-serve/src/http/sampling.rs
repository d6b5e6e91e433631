//! What all requests for text say about how to choose it.

use std::collections::BTreeMap;

use lowrank_models::{Sampling, Strategy};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::random;

/// Texts of one request at most.
const MAX_CHOICES: usize = 128;
/// Texts that end an answer at most.
const MAX_STOPS: usize = 16;

/// One text, or a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    One(String),
    Many(Vec<String>),
}

/// The fields of chat and text completions that are the same. `null` is as if the field were not there.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SamplingFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    n: Option<usize>,
    best_of: Option<usize>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    skip_special_tokens: Option<bool>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
}

/// The same, checked.
pub struct Choosing {
    pub strategy: Strategy,
    pub choices: usize,
    pub max_new_tokens: usize,
    pub stop: Vec<String>,
    pub stop_tokens: Vec<u32>,
    pub show_special: bool,
}

impl SamplingFields {
    /// Checks them; `limit` tokens are the most, and `default` those of a request that says nothing.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn choosing(&self, stop_tokens: &[u32], default: usize, limit: usize) -> Result<Choosing> {
        let choices = self.n.unwrap_or(1);
        if choices == 0 || choices > MAX_CHOICES {
            return Err(Error::field(
                "n",
                format!("{choices} is not a whole number from 1 to {MAX_CHOICES}"),
            ));
        }
        if self.best_of.is_some_and(|best| best != choices) {
            return Err(Error::field("best_of", "is not supported: leave it out, or as n"));
        }
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        };
        if stop.len() > MAX_STOPS {
            return Err(Error::field("stop", format!("has more than {MAX_STOPS} texts")));
        }
        let asked = self.max_completion_tokens.or(self.max_tokens);
        if asked == Some(0) {
            return Err(Error::field("max_tokens", "0 is not a whole number of 1 or more"));
        }
        let mut logit_bias = Vec::new();
        for (token, bias) in self.logit_bias.iter().flatten() {
            let token = token
                .parse()
                .map_err(|_| Error::field("logit_bias", format!("{token:?} is not a token id")))?;
            logit_bias.push((token, *bias));
        }
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.and_then(|k| usize::try_from(k).ok()).unwrap_or(0),
            // Some clients send 0 for "greedy".
            top_p: self.top_p.map_or(1.0, |p| if p == 0.0 { f32::MIN_POSITIVE } else { p }),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias,
            seed: self.seed.map_or_else(random::bits, |seed| seed as u64),
        };
        sampling.check().map_err(|e| Error::request(e.to_string()))?;
        let mut ends = if self.ignore_eos == Some(true) { Vec::new() } else { stop_tokens.to_vec() };
        ends.extend(self.stop_token_ids.iter().flatten());
        Ok(Choosing {
            strategy: Strategy::Sample(sampling),
            choices,
            max_new_tokens: asked.unwrap_or(default).min(limit),
            stop,
            stop_tokens: ends,
            show_special: self.skip_special_tokens == Some(false),
        })
    }
}

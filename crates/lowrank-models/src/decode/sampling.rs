//! Sampling: the next token, given the logits of what follows.

use std::borrow::Cow;

use lowrank_engine::kernels;
use lowrank_files::Range;

use crate::{Error, Result};

/// How the next token is chosen. Filters apply in the order of `transformers`: repetition penalty,
/// temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `k` most likely; 0 for all.
    pub top_k: usize,
    /// Only the most likely that together have this probability; 1 for all.
    pub top_p: f32,
    /// Only those with at least this share of the best one's probability; 0 for all.
    pub min_p: f32,
    /// Divides (or, below 0, multiplies) the logits of tokens that occurred (Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f32,
    /// Taken off the logit of every token that the text has already (not the prompt); 0 for none.
    pub presence_penalty: f32,
    /// The same for each time that the text has it.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Of the random choice.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks that every field has a value that makes sense.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<()> {
        for (name, value, range) in [
            ("temperature", self.temperature, Range::Real(0.0, 100.0)),
            ("top_p", self.top_p, Range::Above(0.0, 1.0)),
            ("min_p", self.min_p, Range::Real(0.0, 1.0)),
            ("repetition_penalty", self.repetition_penalty, Range::Above(0.0, 100.0)),
            ("presence_penalty", self.presence_penalty, Range::Real(-2.0, 2.0)),
            ("frequency_penalty", self.frequency_penalty, Range::Real(-2.0, 2.0)),
        ] {
            range.check(value.into()).map_err(|what| Error::Request(format!("`{name}` {what}")))?;
        }
        for (token, bias) in &self.logit_bias {
            let range = Range::Real(-100.0, 100.0);
            let wrong = |what| Error::Request(format!("`logit_bias` of token {token} {what}"));
            range.check((*bias).into()).map_err(wrong)?;
        }
        Ok(())
    }

    /// Chooses the token behind `prompt` and `text`, given its logits `[V]`. The random number depends on the seed and
    /// the tokens' count alone.
    pub(super) fn choose(&self, prompt: &[u32], text: &[u32], logits: &[f32], seed: u64) -> u32 {
        let mut logits = Cow::Borrowed(logits);
        if self.repetition_penalty != 1.0 {
            let logits = logits.to_mut();
            let mut seen = [prompt, text].concat();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                let logit = &mut logits[token as usize];
                *logit = if *logit < 0.0 {
                    *logit * self.repetition_penalty
                } else {
                    *logit / self.repetition_penalty
                };
            }
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            let logits = logits.to_mut();
            let mut seen = text.to_vec();
            seen.sort_unstable();
            for run in seen.chunk_by(|a, b| a == b) {
                logits[run[0] as usize] -= self.presence_penalty + self.frequency_penalty * run.len() as f32;
            }
        }
        for &(token, bias) in &self.logit_bias {
            if let Some(logit) = logits.to_mut().get_mut(token as usize) {
                *logit += bias;
            }
        }
        if self.temperature == 0.0 {
            let mut best = [0];
            kernels::argmax(&logits, logits.len(), &mut best);
            return best[0];
        }
        let mut random = [0.0];
        kernels::uniform(&mut random, 0.0, 1.0, seed, (prompt.len() + text.len()) as u64);
        choose(&logits, self, random[0])
    }
}

/// Log-probabilities at one place of a text: those of the model, before any filter of [`Sampling`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most likely tokens and theirs, best first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of `token` and of the `count` most likely ones: `logit - ln(sum of exp(logits))`.
    pub(super) fn new(logits: &[f32], token: u32, count: usize) -> Self {
        let ln_sum = ln_sum_exp(logits);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        best_first(&mut order, logits, count.min(logits.len()));
        let of = |token: u32| logits[token as usize] - ln_sum;
        Self { chosen: of(token), top: order.into_iter().map(|token| (token, of(token))).collect() }
    }
}

/// The logarithm of the sum of `exp(logits)`.
fn ln_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    most + logits.iter().map(|l| (l - most).exp()).sum::<f32>().ln()
}

/// Keeps the `count` most likely tokens of `order`, best first.
fn best_first(order: &mut Vec<u32>, logits: &[f32], count: usize) {
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, by_logit);
    }
    order.truncate(count);
    order.sort_unstable_by(by_logit);
}

/// Draws from the filtered distribution: `random` in `[0, 1)` picks the place in its cumulative sum.
fn choose(logits: &[f32], how: &Sampling, random: f32) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let count = if how.top_k > 0 { how.top_k.min(logits.len()) } else { logits.len() };
    best_first(&mut order, logits, count);
    let best = logits[order[0] as usize];
    let mut weights: Vec<f32> =
        order.iter().map(|&t| ((logits[t as usize] - best) / how.temperature).exp()).collect();
    if how.top_p < 1.0 {
        let total: f32 = weights.iter().sum();
        let mut sum = 0.0;
        // The token that crosses the limit stays in, and there is always one.
        let keep = weights.iter().take_while(|w| {
            let before = sum;
            sum += **w / total;
            before < how.top_p
        });
        let keep = keep.count().max(1);
        weights.truncate(keep);
    }
    if how.min_p > 0.0 {
        let keep = weights.iter().take_while(|w| **w >= how.min_p * weights[0]).count();
        weights.truncate(keep.max(1));
    }
    let total: f32 = weights.iter().sum();
    let mut left = random * total;
    for (token, weight) in order.iter().zip(&weights) {
        if left < *weight {
            return *token;
        }
        left -= weight;
    }
    order[weights.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(how: &Sampling) -> Vec<u32> {
        // Probabilities 0.5, 0.25, 0.125, 0.125 of tokens 2, 0, 1, 3.
        let logits = [0.25f32, 0.125, 0.5, 0.125].map(f32::ln);
        let mut seen: Vec<u32> = (0..1000).map(|i| choose(&logits, how, i as f32 / 1000.0)).collect();
        seen.dedup();
        seen
    }

    #[test]
    fn filters_leave_the_likely_tokens() {
        let all = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(drawn(&all), [2, 0, 1, 3]);
        assert_eq!(drawn(&Sampling { top_k: 2, ..all.clone() }), [2, 0]);
        assert_eq!(drawn(&Sampling { top_p: 0.5, ..all.clone() }), [2]);
        assert_eq!(drawn(&Sampling { top_p: 0.6, ..all.clone() }), [2, 0]);
        assert_eq!(drawn(&Sampling { min_p: 0.3, ..all.clone() }), [2, 0]);
        assert_eq!(drawn(&Sampling { top_p: 1e-9, min_p: 1.0, ..all }), [2]);
    }

    #[test]
    fn a_draw_follows_the_probabilities() {
        let how = Sampling { temperature: 0.5, ..Sampling::default() };
        let logits = [0.0f32, 1.0, 2.0];
        let total: f32 = logits.iter().map(|l| (l / 0.5).exp()).sum();
        let mut counts = [0; 3];
        for i in 0..10_000 {
            counts[choose(&logits, &how, i as f32 / 10_000.0) as usize] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let want = (logit / 0.5).exp() / total * 10_000.0;
            assert!((*count as f32 - want).abs() < 3.0, "{counts:?}");
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0, -1.0];
        let total: f32 = logits.iter().map(|l| l.exp()).sum();
        let got = Logprobs::new(&logits, 0, 2);
        assert!((got.chosen - (1.0f32.exp() / total).ln()).abs() < 1e-6);
        assert_eq!(got.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
        assert!(Logprobs::new(&logits, 0, 0).top.is_empty());
    }
}

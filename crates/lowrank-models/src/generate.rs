//! Generation: prefill, then one token at a time over the cache of keys and values.

use std::cell::RefCell;

use lowrank_engine::{ActiveAdapters, Device, KvCache, LmHead, Params, Scope, Segment, Tape, kernels};

use crate::model::{Model, TokenBatch};
use crate::{Error, Result};

/// Tokens that one forward pass of the prefill takes: enough for full speed, little memory.
const PREFILL: usize = 512;

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
    /// Of the random choice.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A sequence that grows: the tokens so far and their keys and values.
pub struct Generator<'m> {
    model: &'m dyn Model,
    head: &'m LmHead,
    device: &'m Device,
    params: &'m Params,
    adapters: &'m ActiveAdapters,
    cache: RefCell<KvCache>,
    /// Virtual tokens are the first rows of the cache, once they were read.
    virtual_read: bool,
    tokens: Vec<u32>,
}

impl<'m> Generator<'m> {
    /// An empty sequence on `model` with the adapters `adapters` (with numbers in `params`).
    ///
    /// # Errors
    /// Where the model has no language-model head.
    pub fn new(
        model: &'m dyn Model,
        device: &'m Device,
        params: &'m Params,
        adapters: &'m ActiveAdapters,
    ) -> Result<Self> {
        let Some(head) = model.lm_head() else {
            let what = format!("the model has {} and cannot generate text", model.head().name());
            return Err(Error::Config(what));
        };
        let cache = RefCell::new(KvCache::new(device, 0, &model.kv_widths()));
        Ok(Self { model, head, device, params, adapters, cache, virtual_read: false, tokens: Vec::new() })
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that virtual tokens take.
    pub fn virtual_tokens(&self) -> usize {
        self.adapters.virtual_tokens
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    /// Appends `tokens` (at least one) and returns the logits of what follows, `[V]`.
    pub fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        assert!(!tokens.is_empty(), "something to continue");
        let virtual_tokens = self.virtual_tokens();
        let need = virtual_tokens + self.tokens.len() + tokens.len();
        let have = self.cache.borrow().rows();
        if need > have {
            let rows = need.max(2 * have).next_multiple_of(64);
            self.cache.borrow_mut().grow(self.device, rows);
        }
        if virtual_tokens > 0 && !self.virtual_read {
            self.pass(&virtual_ids(self.model, virtual_tokens), 0, false);
            self.virtual_read = true;
        }
        let mut logits = Vec::new();
        for chunk in tokens.chunks(PREFILL) {
            let start = virtual_tokens + self.tokens.len();
            self.tokens.extend_from_slice(chunk);
            logits = self.pass(chunk, start, start + chunk.len() == need);
        }
        logits
    }

    /// Reads tokens into the rows of the cache from `start` on.
    fn pass(&mut self, tokens: &[u32], start: usize, wants_logits: bool) -> Vec<f32> {
        let n = tokens.len();
        self.cache.borrow_mut().targets = (start..start + n).collect();
        let positions: Vec<u32> = (start..start + n).map(|p| p as u32).collect();
        let lengths = vec![(start + n) as u32; n];
        let last = [n - 1];
        let segments = [Segment { q: 0..n, prefix: 0..0, own: 0..start + n }];
        let scope = Scope { device: self.device, params: self.params, dropout: None };
        let mut tape = Tape::with_cache(scope, self.adapters, &self.cache);
        let batch = TokenBatch {
            tokens,
            positions: &positions,
            lengths: &lengths,
            token_types: &[],
            segments: &segments,
            wanted: Some(&last),
        };
        let h = self.model.hidden(&mut tape, &batch);
        if !wants_logits {
            return Vec::new();
        }
        tape.logits(self.head, &h).data().to_vec()
    }

    /// Chooses the token that follows, given its logits.
    pub fn sample(&self, mut logits: Vec<f32>, how: &Sampling) -> u32 {
        if how.repetition_penalty != 1.0 {
            let mut seen = self.tokens.clone();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                let logit = &mut logits[token as usize];
                *logit = if *logit < 0.0 {
                    *logit * how.repetition_penalty
                } else {
                    *logit / how.repetition_penalty
                };
            }
        }
        if how.temperature == 0.0 {
            let mut best = [0];
            kernels::argmax(&logits, logits.len(), &mut best);
            return best[0];
        }
        let mut random = [0.0];
        kernels::uniform(&mut random, 0.0, 1.0, how.seed, self.tokens.len() as u64);
        choose(&logits, how, random[0])
    }
}

/// The ids of virtual tokens.
pub(crate) fn virtual_ids(model: &dyn Model, count: usize) -> Vec<u32> {
    (model.vocab() as u32..).take(count).collect()
}

/// Draws from the filtered distribution: `random` in `[0, 1)` picks the place in its cumulative sum.
fn choose(logits: &[f32], how: &Sampling, random: f32) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if how.top_k > 0 && how.top_k < order.len() {
        order.select_nth_unstable_by(how.top_k - 1, by_logit);
        order.truncate(how.top_k);
    }
    order.sort_unstable_by(by_logit);
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
}

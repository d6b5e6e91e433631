//! Greedy and beam search over many prompts at a time, as transformers' `generate` does them.
//!
//! Prompts are read in packed passes. Then every prompt owns one lane of the cache per beam: the rows of what that
//! beam generated. A segment's prefix is the prompt, its own rows are the lane's, so that all beams share the
//! prompt's keys and values. A beam that goes on in one way keeps its lane; others get a copy of its rows.

mod search;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use lowrank_engine::{ActiveAdapters, Device, KvCache, LmHead, Params, Scope, Segment, Tape};
use rayon::prelude::*;

use crate::generate::virtual_ids;
use crate::model::{Model, TokenBatch};
use crate::{Error, Result};
use search::Search;

/// Tokens that one forward pass of the prefill takes.
const PREFILL: usize = 512;

/// Whether a beam search ends before nothing can get better (transformers' `early_stopping`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// Where the best beam, at its present length, is worse than all finished ones.
    #[default]
    Likely,
    /// As soon as there are as many finished texts as beams.
    Always,
    /// Where no length it can still reach would make the best beam better.
    Never,
}

/// How to decode.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Texts followed at once; 1 takes the most likely token each time.
    pub num_beams: usize,
    /// A finished text of `n` tokens scores `sum of log-probabilities / n^length_penalty`.
    pub length_penalty: f32,
    /// When a search ends.
    pub early_stopping: EarlyStopping,
    /// No run of so many tokens occurs twice, the prompt included; 0 for no such rule.
    pub no_repeat_ngram_size: usize,
}

impl Default for Decoding {
    /// Greedy, 256 tokens.
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            no_repeat_ngram_size: 0,
        }
    }
}

/// What followed a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The tokens, the ending one included.
    pub tokens: Vec<u32>,
    /// Sum of their log-probabilities, over `n^length_penalty` where beams were searched.
    pub score: f32,
}

/// A base model with an adapter, to decode with.
#[derive(Clone, Copy)]
pub struct Decoder<'m> {
    model: &'m dyn Model,
    head: &'m LmHead,
    device: &'m Device,
    params: &'m Params,
    adapters: &'m ActiveAdapters,
}

/// A prompt on its way.
struct Job<'a> {
    index: usize,
    prompt: &'a [u32],
    /// Its rows of the cache.
    rows: Range<usize>,
    search: Search,
}

impl<'m> Decoder<'m> {
    /// Over `model` with the adapters `adapters` (with numbers in `params`).
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
        Ok(Self { model, head, device, params, adapters })
    }

    /// Continues every prompt (at least one token each) until a token of `ends`, all of them at once. A prompt that
    /// reaches the end of the model's positions ends there.
    ///
    /// # Panics
    /// For an empty prompt, or no beams.
    pub fn decode(&self, prompts: &[&[u32]], ends: &[u32], how: &Decoding) -> Vec<Decoded> {
        let first = virtual_ids(self.model, self.adapters.virtual_tokens);
        let prompts: Vec<Vec<u32>> = prompts.iter().map(|prompt| [&first[..], *prompt].concat()).collect();
        let mut out = vec![Decoded::default(); prompts.len()];
        if how.max_new_tokens == 0 {
            return out;
        }
        let limit = self.model.position_limit().unwrap_or(usize::MAX);
        let (mut start, mut jobs) = (0, Vec::new());
        for (index, prompt) in prompts.iter().enumerate() {
            assert!(prompt.len() > first.len(), "something to continue");
            let rows = start..start + prompt.len();
            start = rows.end;
            let most = how.max_new_tokens.min(limit.saturating_add(1).saturating_sub(prompt.len())).max(1);
            let search = Search::new(how, most, ends, prompt.len());
            jobs.push(Job { index, prompt, rows, search });
        }
        // The last token of a text is never fed.
        let lane = how.max_new_tokens - 1;
        let rows = start + prompts.len() * how.num_beams * lane;
        let cache = RefCell::new(KvCache::new(self.device, rows, &self.model.kv_widths()));

        let first = self.prefill(&jobs, &cache);
        jobs.par_iter_mut().zip(first).for_each(|(job, logits)| job.search.advance(job.prompt, &logits));
        for done in 1.. {
            for job in jobs.extract_if(.., |job| job.search.is_done()) {
                out[job.index] = job.search.finish();
            }
            if jobs.is_empty() {
                break;
            }
            let logits = self.step(&mut jobs, start, done, lane, how.num_beams, &cache);
            let vocab = self.model.vocab();
            let mut rest = &logits[..];
            let mut parts = Vec::new();
            for job in &jobs {
                let (own, others) = rest.split_at(job.search.beams().len() * vocab);
                parts.push(own);
                rest = others;
            }
            jobs.par_iter_mut().zip(parts).for_each(|(job, own)| job.search.advance(job.prompt, own));
        }
        out
    }

    /// The logits after every prompt, `[V]` each.
    fn prefill(&self, jobs: &[Job<'_>], cache: &RefCell<KvCache>) -> Vec<Vec<f32>> {
        let mut logits = vec![Vec::new(); jobs.len()];
        let (mut pass, mut owners) = (Pass::default(), Vec::new());
        for (i, job) in jobs.iter().enumerate() {
            let mut at = 0;
            while at < job.prompt.len() {
                let end = job.prompt.len().min(at + PREFILL - pass.tokens.len());
                pass.add(&job.prompt[at..end], at, 0..0, job.rows.start..job.rows.start + end);
                if end == job.prompt.len() {
                    owners.push(i);
                    pass.wanted.push(pass.tokens.len() - 1);
                }
                at = end;
                if pass.tokens.len() == PREFILL {
                    self.run_prefill(&mut pass, &mut owners, cache, &mut logits);
                }
            }
        }
        self.run_prefill(&mut pass, &mut owners, cache, &mut logits);
        logits
    }

    fn run_prefill(
        &self,
        pass: &mut Pass,
        owners: &mut Vec<usize>,
        cache: &RefCell<KvCache>,
        logits: &mut [Vec<f32>],
    ) {
        let pass = std::mem::take(pass);
        if pass.tokens.is_empty() {
            return;
        }
        let all = self.run(&pass, cache);
        for (i, own) in owners.drain(..).zip(all.chunks_exact(self.model.vocab())) {
            logits[i] = own.to_vec();
        }
    }

    /// Feeds the newest token of every beam, the `done`-th of its text, and returns the logits, `[beams, V]`.
    fn step(
        &self,
        jobs: &mut [Job<'_>],
        lanes: usize,
        done: usize,
        lane: usize,
        beams: usize,
        cache: &RefCell<KvCache>,
    ) -> Vec<f32> {
        let mut pass = Pass::default();
        for job in jobs {
            let first = lanes + job.index * beams * lane;
            job.search.settle(|from, to| {
                cache
                    .borrow_mut()
                    .copy_rows(first + from * lane..first + from * lane + done - 1, first + to * lane);
            });
            for beam in job.search.beams() {
                let own = first + beam.lane * lane;
                let newest = *beam.tokens.last().expect("a token was chosen");
                pass.wanted.push(pass.tokens.len());
                pass.add(&[newest], job.prompt.len() + done - 1, job.rows.clone(), own..own + done);
            }
        }
        self.run(&pass, cache)
    }

    /// One forward pass; the logits of the wanted rows.
    fn run(&self, pass: &Pass, cache: &RefCell<KvCache>) -> Vec<f32> {
        cache.borrow_mut().targets = pass.targets.clone();
        let scope = Scope { device: self.device, params: self.params, dropout: None };
        let mut tape = Tape::with_cache(scope, self.adapters, cache);
        let batch = TokenBatch {
            tokens: &pass.tokens,
            positions: &pass.positions,
            lengths: &pass.lengths,
            token_types: &[],
            segments: &pass.segments,
            wanted: (!pass.wanted.is_empty()).then_some(&pass.wanted[..]),
        };
        let h = self.model.hidden(&mut tape, &batch);
        if pass.wanted.is_empty() {
            return Vec::new();
        }
        tape.logits(self.head, &h).data().to_vec()
    }
}

/// The rows of one forward pass.
#[derive(Default)]
struct Pass {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    lengths: Vec<u32>,
    segments: Vec<Segment>,
    /// The cache row of each.
    targets: Vec<usize>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
}

impl Pass {
    /// Tokens from position `at` of a sequence on. They see `prefix` and `own`, whose last rows are theirs.
    fn add(&mut self, tokens: &[u32], at: usize, prefix: Range<usize>, own: Range<usize>) {
        let q = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((at..at + tokens.len()).map(|p| p as u32));
        self.lengths.resize(q.end, (at + tokens.len()) as u32);
        self.targets.extend(own.end - tokens.len()..own.end);
        self.segments.push(Segment { q, prefix, own });
    }
}

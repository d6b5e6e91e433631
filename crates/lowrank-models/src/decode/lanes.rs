//! Lanes: sequences that grow over one cache, any of them in one forward pass.

use std::ops::Range;

use lowrank_engine::{
    ActiveAdapters, AdapterIndex, Device, LmHead, Params, RowAdapters, Scope, Segment, Tape,
};

use super::rows::{BlockId, Rows};
use crate::model::{Model, TokenBatch};
use crate::{Error, Result};

/// Tokens of a prompt that one pass computes: enough for full speed.
pub(super) const PREFILL_CHUNK: usize = 512;

/// A sequence: the rows of a prompt that it shares with others, if any, then its own.
#[derive(Debug)]
pub(super) struct Lane {
    prompt: Option<BlockId>,
    own: BlockId,
    adapter: Option<AdapterIndex>,
}

/// A base model with its adapters, and the lanes over it.
pub(super) struct Lanes<'m> {
    model: &'m dyn Model,
    head: &'m LmHead,
    device: &'m Device,
    params: &'m Params,
    adapters: ActiveAdapters,
    /// Whether each row has an adapter of its own.
    routed: bool,
    pub rows: Rows,
}

impl<'m> Lanes<'m> {
    /// No lanes, over a cache of at most `capacity` rows.
    ///
    /// # Errors
    /// Where the model has no language-model head.
    pub fn new(
        model: &'m dyn Model,
        device: &'m Device,
        params: &'m Params,
        adapters: &ActiveAdapters,
        capacity: usize,
    ) -> Result<Self> {
        let Some(head) = model.lm_head() else {
            let what = format!("the model has {} and cannot generate text", model.head().name());
            return Err(Error::Config(what));
        };
        let rows = Rows::new(device, &model.info().kv_widths, capacity);
        Ok(Self { model, head, device, params, adapters: adapters.clone(), routed: false, rows })
    }

    /// From the next pass on, each row has the adapter of its lane among those of `adapters`.
    pub fn route(&mut self, adapters: ActiveAdapters) {
        (self.adapters, self.routed) = (adapters, true);
    }

    /// Whether each row has an adapter of its own.
    pub fn is_routed(&self) -> bool {
        self.routed
    }

    /// Values of one row of logits.
    pub fn vocab(&self) -> usize {
        self.model.info().vocab
    }

    /// The ids of the `count` virtual tokens that a sequence begins with.
    pub fn virtual_ids(&self, count: usize) -> Vec<u32> {
        (self.model.info().vocab as u32..).take(count).collect()
    }

    /// Virtual tokens of every sequence, where all have the same adapters.
    pub fn virtual_tokens(&self) -> usize {
        self.adapters.virtual_tokens
    }

    /// Bytes of a row of the cache.
    pub fn row_bytes(&self) -> usize {
        2 * size_of::<f32>() * self.model.info().kv_widths.iter().sum::<usize>()
    }

    /// Tokens of a sequence at most, those of `virtual_tokens` not counted.
    pub fn position_limit(&self, virtual_tokens: usize) -> usize {
        let limit = self.model.info().position_limit.unwrap_or(usize::MAX);
        limit.saturating_sub(virtual_tokens)
    }

    /// An empty lane that may come to have `limit` tokens, whose rows have `adapter` in a routed set.
    pub fn open(&mut self, limit: usize, adapter: Option<AdapterIndex>) -> Lane {
        Lane { prompt: None, own: self.rows.open(limit), adapter }
    }

    /// The place of a lane's adapter in a set that has changed.
    pub fn set_adapter(&self, lane: &mut Lane, adapter: Option<AdapterIndex>) {
        lane.adapter = adapter;
    }

    /// A lane that goes on behind the tokens of `prompt` with at most `limit` of its own. The rows of the prompt are
    /// those of all its branches: nothing may be appended to it after one of them.
    pub fn branch(&mut self, prompt: &Lane, limit: usize) -> Lane {
        assert!(prompt.prompt.is_none(), "a lane of its own has branches");
        let shared = self.rows.share(&prompt.own);
        Lane { prompt: Some(shared), own: self.rows.open(limit), adapter: prompt.adapter }
    }

    /// Frees the rows that no other lane reads.
    pub fn close(&mut self, lane: Lane) {
        self.rows.release(lane.own);
        if let Some(prompt) = lane.prompt {
            self.rows.release(prompt);
        }
    }

    /// Tokens of a lane.
    pub fn len(&self, lane: &Lane) -> usize {
        let prompt = lane.prompt.as_ref().map_or(0, |prompt| self.rows.used(prompt).len());
        prompt + self.rows.used(&lane.own).len()
    }

    /// Keeps the first `len` tokens of a lane without shared rows and lets it come to have `limit`.
    pub fn truncate(&mut self, lane: &Lane, len: usize, limit: usize) {
        assert!(lane.prompt.is_none(), "shared rows stay");
        self.rows.truncate(&lane.own, len, limit);
    }

    /// The length beyond which a sequence has other keys ([`Model::rope_switch`]).
    pub fn switch(&self) -> Option<usize> {
        self.model.rope_switch()
    }

    /// Drops the tokens of a lane that are its own.
    pub fn clear(&mut self, lane: &Lane) {
        self.rows.clear(&lane.own);
    }

    /// Appends `tokens` and reads nothing, some at a time: they are part of a sequence of `length` tokens.
    pub fn refill(&mut self, lane: &Lane, tokens: &[u32], length: usize) {
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            let mut pass = Pass::default();
            self.reserve(lane, chunk.len());
            self.append(&mut pass, lane, chunk, length);
            self.run(pass);
        }
    }

    /// Makes room for `more` tokens. All lanes of a pass reserve before the first of them appends.
    pub fn reserve(&mut self, lane: &Lane, more: usize) {
        self.rows.reserve(&lane.own, more);
    }

    /// The own tokens of `to` become those of `from`: both are branches of one prompt.
    pub fn copy(&mut self, from: &Lane, to: &Lane) {
        let more = self.rows.used(&from.own).len().saturating_sub(self.rows.used(&to.own).len());
        self.rows.reserve(&to.own, more);
        self.rows.copy(&from.own, &to.own);
    }

    /// Appends `tokens` to a lane in the pass `pass`, where more tokens follow up to `length`: a rope may depend on it.
    pub fn append(&mut self, pass: &mut Pass, lane: &Lane, tokens: &[u32], length: usize) {
        let own = self.rows.extend(&lane.own, tokens.len());
        let prompt = lane.prompt.as_ref().map_or(0..0, |prompt| self.rows.used(prompt));
        pass.add(tokens, prompt, own, length, lane.adapter);
    }

    /// Runs a pass; returns the logits of its output rows, `[outputs, V]`.
    pub fn run(&self, mut pass: Pass) -> Vec<f32> {
        // A pass whose outputs nobody reads computes one row in its last block.
        let last = [pass.tokens.len() - 1];
        let cache = self.rows.cache();
        cache.borrow_mut().targets = std::mem::take(&mut pass.targets);
        let scope = Scope::inference(self.device, self.params);
        let adapters = self.routed.then(|| RowAdapters::new(pass.tokens.len(), &pass.adapters));
        let mut tape = Tape::with_cache(scope, &self.adapters, cache);
        let batch = TokenBatch {
            tokens: &pass.tokens,
            positions: &pass.positions,
            lengths: &pass.lengths,
            token_types: &[],
            segments: &pass.segments,
            output_rows: Some(if pass.outputs.is_empty() { &last } else { &pass.outputs }),
            adapters: adapters.as_ref(),
        };
        let h = self.model.hidden(&mut tape, &batch);
        if pass.outputs.is_empty() {
            return Vec::new();
        }
        self.device.to_vec(&tape.logits(self.head, &h))
    }
}

/// The rows of one forward pass.
#[derive(Default)]
pub(super) struct Pass {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    lengths: Vec<u32>,
    segments: Vec<Segment>,
    /// The cache row of each.
    targets: Vec<usize>,
    /// Rows whose logits are read.
    outputs: Vec<usize>,
    /// The rows of each adapter.
    adapters: Vec<(Range<usize>, AdapterIndex)>,
}

impl Pass {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Says that the logits behind the last row are read.
    pub fn read_last(&mut self) {
        self.outputs.push(self.tokens.len() - 1);
    }

    /// Tokens that see the rows `prompt` and `own` of the cache; the last ones of `own` are theirs.
    fn add(
        &mut self,
        tokens: &[u32],
        prompt: Range<usize>,
        own: Range<usize>,
        length: usize,
        adapter: Option<AdapterIndex>,
    ) {
        let (n, len) = (tokens.len(), prompt.len() + own.len());
        let q = self.tokens.len()..self.tokens.len() + n;
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((len - n..len).map(|p| p as u32));
        self.lengths.resize(q.end, len.max(length) as u32);
        self.targets.extend(own.end - n..own.end);
        self.adapters.extend(adapter.map(|adapter| (q.clone(), adapter)));
        self.segments.push(Segment { q, prefix: prompt, own });
    }
}

//! One sequence that a caller feeds by hand and whose logits it reads.

use lowrank_engine::{ActiveAdapters, Device, Params};

use super::lanes::{Lane, Lanes, PREFILL_CHUNK, Pass};
use crate::Result;
use crate::model::Model;

/// A growing sequence of given tokens: scoring and comparing, where the [`Decoder`](super::Decoder) chooses tokens.
pub struct Sequence<'m> {
    lanes: Lanes<'m>,
    lane: Lane,
    virtual_ids: Vec<u32>,
}

impl<'m> Sequence<'m> {
    /// An empty sequence on `model` with the adapters `adapters` (whose values are in `params`).
    ///
    /// # Errors
    /// Where the model has no language-model head.
    pub fn new(
        model: &'m dyn Model,
        device: &'m Device,
        params: &'m Params,
        adapters: &'m ActiveAdapters,
    ) -> Result<Self> {
        let mut lanes = Lanes::new(model, device, params, adapters, usize::MAX)?;
        let (lane, virtual_ids) = (lanes.open(usize::MAX, None), lanes.virtual_ids(lanes.virtual_tokens()));
        Ok(Self { lanes, lane, virtual_ids })
    }

    /// Keeps the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.lanes.truncate(&self.lane, self.virtual_ids.len() + len, usize::MAX);
    }

    /// Appends `tokens` (at least one) and returns the logits of what follows, `[V]`.
    pub fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        assert!(!tokens.is_empty(), "at least one token");
        let first = self.lanes.len(&self.lane) == 0;
        let tokens = if first { &[&self.virtual_ids, tokens].concat()[..] } else { tokens };
        let mut logits = Vec::new();
        let length = self.lanes.len(&self.lane) + tokens.len();
        let mut chunks = tokens.chunks(PREFILL_CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            let mut pass = Pass::default();
            self.lanes.reserve(&self.lane, chunk.len());
            self.lanes.append(&mut pass, &self.lane, chunk, length);
            if chunks.peek().is_none() {
                pass.read_last();
            }
            logits = self.lanes.run(pass);
        }
        logits
    }
}

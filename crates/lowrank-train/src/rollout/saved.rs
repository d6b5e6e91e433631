//! Completions in a checkpoint: those that later steps learn from again.

use serde::{Deserialize, Serialize};

/// A batch of sampled completions. Numbers are kept as their bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedRollout {
    /// Number of the batch, from 0.
    pub batch: u64,
    pub(super) micro_batches: Vec<Vec<SavedSample>>,
    pub(super) old_logps: Vec<Vec<u32>>,
    pub(super) ref_logps: Vec<Vec<u32>>,
    pub(super) metrics: Vec<(String, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedSample {
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) prompt_len: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) advantage: u32,
    pub(super) scale: u32,
    pub(super) weight: Option<u32>,
}

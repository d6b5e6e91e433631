//! How a run goes on from step to step.

use crate::Schedule;

/// How long a run goes on and what it does on the way.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    /// Optimiser steps in all.
    pub total_steps: u64,
    /// The learning rate of each.
    pub schedule: Schedule,
    /// Completions of one prompt share it.
    pub share_prefix: bool,
    /// Shards of a step's batch at most: what ranks share, each of them one or more.
    pub shards: usize,
    /// Evaluate after every so many steps; 0 only at the end.
    pub eval_steps: u64,
    /// Save a checkpoint after every so many steps; 0 only at the end.
    pub save_steps: u64,
    /// Examples in a batch of evaluation.
    pub eval_batch_size: usize,
    /// Stop after this many evaluations in a row that were not better; 0 never.
    pub early_stopping_patience: u64,
    /// How much lower a held-out loss must be to be better for that.
    pub early_stopping_threshold: f64,
    /// The adapter of the lowest held-out loss is what is written at the end.
    pub load_best_model_at_end: bool,
    /// Checkpoints that are kept, the last one counted.
    pub save_total_limit: u64,
}

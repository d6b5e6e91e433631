//! What a run will need, from the Plan device: the same step, with shapes only.

use lowrank_engine::{Device, Params};
use lowrank_train::PackedBatch;
use serde::Serialize;

use crate::finetune::prepare;
use crate::{Result, Session, TrainOptions};

/// Memory and work of a training run.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Bytes of the base model's weights, as they lie in memory.
    pub base_bytes: usize,
    /// Parameters of the base model.
    pub base_parameters: usize,
    /// Trainable parameters.
    pub trainable_parameters: usize,
    /// Bytes of parameters, gradients and the optimiser's two moments.
    pub adapter_bytes: usize,
    /// Most bytes of activations and their gradients at once, in the largest step.
    pub activation_bytes: usize,
    /// Bytes of the kernels' scratch buffers.
    pub scratch_bytes: usize,
    /// Bytes of the program, its tokenizer and its data.
    pub process_bytes: usize,
    /// The sum: peak resident memory.
    pub peak_bytes: usize,
    /// Floating-point operations of one epoch.
    pub flops_per_epoch: u64,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Optimiser steps in one epoch.
    pub steps_per_epoch: u64,
    /// Tokens in one epoch.
    pub tokens_per_epoch: usize,
    /// Rows that are computed for them: less, where completions share a prompt.
    pub rows_per_epoch: usize,
}

/// Steps whose batches are planned one by one; of longer runs a sample stands for the rest.
const PLANNED_STEPS: u64 = 512;

/// Plans the run that `options` describe. A session opened with `shapes_only` is enough.
///
/// # Errors
/// As [`prepare`].
pub fn forecast(session: &Session, options: &TrainOptions) -> Result<Forecast> {
    let mut prepared = prepare(session, options, Device::plan())?;
    session.forget_tokenizer();
    let process_bytes = lowrank_train::memory::current_rss_bytes().unwrap_or(0) as usize;
    let per_epoch = prepared.batches.steps_per_epoch();
    let share = prepared.loop_options.share_prefix;
    let (mut tokens, mut rows, mut planned) = (0, 0, 0);
    let steps = per_epoch.min(PLANNED_STEPS).min(prepared.loop_options.total_steps.max(1));
    for step in prepared.batches.starting_at(0).take(steps as usize) {
        let micro: Vec<PackedBatch> = step
            .micro_batches
            .iter()
            .map(|batch| {
                let examples = prepared.train.examples.batch(batch.iter().copied());
                prepared.stepper.pack(&examples.iter().collect::<Vec<_>>(), share, 0)
            })
            .collect();
        tokens += micro.iter().map(|b| b.real_tokens).sum::<usize>();
        rows += micro.iter().map(PackedBatch::rows).sum::<usize>();
        prepared.stepper.gradients(&micro)?;
        planned += 1;
    }
    let whole = |sum: f64| sum / planned as f64 * per_epoch as f64;
    let device = prepared.stepper.device();
    let params: &Params = &prepared.stepper.adapters.params;
    let adapter_bytes = params.training_bytes();
    let tensors = &session.base.tensors;
    let mut forecast = Forecast {
        base_bytes: tensors.resident_bytes() as usize,
        base_parameters: tensors.parameters(),
        trainable_parameters: params.count(),
        adapter_bytes,
        activation_bytes: device.peak_bytes(),
        scratch_bytes: lowrank_engine::kernels::scratch_bytes(rayon::current_num_threads()),
        process_bytes,
        peak_bytes: 0,
        flops_per_epoch: whole(device.flops() as f64) as u64,
        steps: prepared.loop_options.total_steps,
        steps_per_epoch: per_epoch,
        tokens_per_epoch: whole(tokens as f64) as usize,
        rows_per_epoch: whole(rows as f64) as usize,
    };
    forecast.peak_bytes = forecast.base_bytes
        + forecast.adapter_bytes
        + forecast.activation_bytes
        + forecast.scratch_bytes
        + forecast.process_bytes;
    Ok(forecast)
}

//! What a run will need, from the Plan device: the same step, with shapes only.

use lowrank_engine::Device;
use lowrank_train::memory::{current_rss_bytes, peak_rss_bytes, program_rss_bytes};
use lowrank_train::{Example, Examples, LoopOptions, PackedBatch, Shard, Step, split};
use serde::Serialize;

use crate::device::DeviceChoice;
use crate::finetune::{Prepared, prepare};
use crate::shape_plan::longest_side;
use crate::{Error, Result, Session, TrainOptions};

/// Memory and work of a training run.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// Bytes of the base model's weights, as they lie in memory.
    pub base_bytes: usize,
    /// Parameters of the base model.
    pub base_parameters: usize,
    /// Trainable parameters.
    pub trainable_parameters: usize,
    /// Bytes of parameters, gradients, the optimiser's two moments and what the method keeps beside them.
    pub adapter_bytes: usize,
    /// Most bytes of activations and their gradients at once, in the largest batch of training or evaluation, in whole
    /// pages.
    pub activation_bytes: usize,
    /// Bytes of the kernels' scratch buffers.
    pub scratch_bytes: usize,
    /// Bytes of the program, its data and its threads.
    pub process_bytes: usize,
    /// Most bytes before the first step (reading and tokenizing the data, converting weights, finding initial values), while
    /// generating samples, and while saving: these take the memory of the activations.
    pub preparation_bytes: usize,
    /// Peak resident memory: the sum of base, adapter, activations, scratch and process, or `preparation_bytes` where that
    /// is more.
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

/// Steps that are looked through for the batches with the most tokens and the most targets.
const SEARCHED_STEPS: u64 = 100_000;

/// How many of those are planned, by tokens and by targets.
const HEAVIEST: usize = 4;

/// Code and constants of the program and its libraries that a training run reads, measured on x86-64. How much of them is
/// resident now depends on how much of their files the system has read.
const PROGRAM_BYTES: u64 = 10_000_000;

/// The same before the first step, when the pages that only started the program are still there.
const PREPARING_BYTES: u64 = 20_000_000;

/// What each thread has: its stack and its part of the heap.
const THREAD_BYTES: usize = 128 << 10;

/// Plans the run that `options` describe. A session opened with `shapes_only` is enough.
///
/// # Errors
/// As [`prepare`].
pub fn forecast(session: &Session, options: &TrainOptions) -> Result<Forecast> {
    if options.device != DeviceChoice::Cpu {
        let what =
            "`device`: a plan is of a run on the processor, whose memory alone is forecast: leave it out";
        return Err(Error::Usage(what.into()));
    }
    let rss = |bytes: Option<u64>| bytes.unwrap_or(0) as usize;
    let before = rss(peak_rss_bytes());
    let mut prepared = prepare(session, options, Device::plan())?;
    // A process that had more before says nothing of reading and tokenizing.
    let reading = Some(rss(peak_rss_bytes())).filter(|peak| *peak > before).unwrap_or(0);
    let preparing = PREPARING_BYTES.saturating_sub(program_rss_bytes()) as usize;
    let (reading, read) = (reading + preparing, rss(current_rss_bytes()) + preparing);
    session.forget_tokenizer();
    let looking = plan_looking(session, &prepared)?;
    let per_epoch = prepared.batches.steps_per_epoch();
    let (mut tokens, mut rows, mut planned, mut most_rows) = (0, 0, 0, 0);
    let steps = per_epoch.min(PLANNED_STEPS).min(prepared.loop_options.total_steps.max(1));
    for step in prepared.batches.starting_at(0).take(steps as usize) {
        let shards = lay_out(&prepared, &step);
        let batches = || shards.iter().flatten();
        tokens += batches().map(|b| b.real_tokens).sum::<usize>();
        rows += batches().map(PackedBatch::rows).sum::<usize>();
        most_rows = most_rows.max(batches().map(PackedBatch::rows).max().unwrap_or(0));
        prepared.stepper.gradients_of(&shards)?;
        planned += 1;
    }
    let whole = |sum: f64| sum / planned as f64 * per_epoch as f64;
    let mut flops_per_epoch = whole(prepared.stepper.device().flops() as f64) as u64;
    let most_rows = plan_heaviest(&mut prepared)?.max(most_rows);

    let (device, adapters) = (prepared.stepper.device(), &prepared.stepper.adapters);
    let activation_bytes = device.peak_page_bytes();
    let sampling = prepared.samples.as_ref().map(|samples| {
        device.reset_peak();
        samples.plan(&prepared.stepper) + device.peak_page_bytes()
    });
    let completing = prepared.rollouts.as_ref().map(|rollouts| {
        device.reset_peak();
        let at_once = options.completions_of_step() / options.num_generations;
        let plan = rollouts.plan_sampling(&prepared.stepper, &prepared.train.examples, at_once);
        flops_per_epoch += (plan.flops_per_prompt * prepared.train.examples.len()) as u64;
        plan.bytes + device.peak_page_bytes()
    });
    let reference = prepared.rollouts.as_ref().and_then(|rollouts| rollouts.reference.as_ref());
    let reference_bytes = reference.map_or(0, |set| size_of::<f32>() * set.params.count());
    let tensors = &session.base.tensors;
    let adapter_bytes = adapters.params.training_bytes()
        + adapters.cached_bytes()
        + prepared.stepper.spare_bytes()
        + reference_bytes;
    let mut forecast = Forecast {
        base_bytes: tensors.resident_bytes() as usize,
        base_parameters: tensors.parameters(),
        trainable_parameters: adapters.params.count(),
        adapter_bytes,
        activation_bytes,
        scratch_bytes: device.scratch_bytes(longest_side(session, most_rows)),
        process_bytes: process_bytes(),
        preparation_bytes: 0,
        peak_bytes: 0,
        flops_per_epoch,
        steps: prepared.loop_options.total_steps,
        steps_per_epoch: per_epoch,
        tokens_per_epoch: whole(tokens as f64) as usize,
        rows_per_epoch: whole(rows as f64) as usize,
    };
    let Forecast { base_bytes, adapter_bytes, scratch_bytes, process_bytes, .. } = forecast;
    let (converted, conversion) = tensors.conversion_bytes();
    let lasting = base_bytes + adapter_bytes + scratch_bytes + process_bytes;
    let start = match options.init_adapter {
        None => adapters.start_bytes(most_rows)?,
        Some(_) => 0,
    };
    let values: usize = adapters.params.iter().map(|(_, p)| size_of::<f32>() * p.rows * p.cols).sum();
    forecast.preparation_bytes = [
        reading + converted,
        process_bytes + converted + conversion,
        // The base is read, and the tokenizer is still there.
        if start > 0 { read + base_bytes + values + looking + start } else { 0 },
        lasting + adapters.saving_bytes()?,
        // Tokens are generated without the tokenizer, and turned into text without the decoder.
        sampling.map_or(0, |bytes| lasting + bytes),
        sampling.map_or(0, |_| reading + lasting - process_bytes),
        // Completions are read in every step, so the tokenizer stays.
        completing.map_or(0, |bytes| reading + lasting - process_bytes + bytes),
    ]
    .into_iter()
    .max()
    .unwrap_or(0);
    let tokenizer = completing.map_or(0, |_| reading.saturating_sub(process_bytes));
    forecast.peak_bytes = (lasting + tokenizer + forecast.activation_bytes).max(forecast.preparation_bytes);
    Ok(forecast)
}

/// The shards of a step.
pub(crate) fn lay_out(prepared: &Prepared<'_>, step: &Step) -> Vec<Shard> {
    if let Some(rollouts) = &prepared.rollouts {
        let prompts = prepared.train.examples.batch(step.micro_batches.iter().flatten().copied());
        return rollouts.plan_shards(&prepared.stepper, &prompts, &prepared.loop_options);
    }
    let LoopOptions { share_prefix, shards, .. } = prepared.loop_options;
    let examples = |batch: &Vec<usize>| prepared.train.examples.batch(batch.iter().copied());
    let micro_batches: Vec<Vec<Example>> = step.micro_batches.iter().map(examples).collect();
    prepared.stepper.lay_out(&micro_batches, share_prefix, shards, step.step)
}

/// Bytes of the process without weights and tensors.
pub(crate) fn process_bytes() -> usize {
    let Some(all) = current_rss_bytes() else { return 0 };
    let program = program_rss_bytes();
    (all.saturating_sub(program) + program.max(PROGRAM_BYTES)) as usize
        + THREAD_BYTES * rayon::current_num_threads()
}

/// Bytes of the passes over the training data that initial values come from, if they do.
fn plan_looking(session: &Session, prepared: &Prepared<'_>) -> Result<usize> {
    /// Batches that stand for all.
    const BATCHES: usize = 16;
    if !prepared.stepper.adapters.starts_from_data()? {
        return Ok(0);
    }
    let (scorer, device) = (prepared.stepper.scorer(), prepared.stepper.device());
    let steps = prepared.batches.starting_at(0).take(BATCHES);
    let mut rows = 0;
    for batch in steps.flat_map(|step| step.micro_batches).take(BATCHES) {
        let examples = prepared.train.examples.batch(batch);
        let packed = scorer.pack(&examples.iter().collect::<Vec<_>>(), false, 0);
        rows = rows.max(packed.rows());
        scorer.score(&packed);
    }
    let bytes = device.peak_page_bytes() + device.scratch_bytes(longest_side(session, rows));
    device.reset_peak();
    Ok(bytes)
}

/// Plans the batches with the most tokens and with the most targets, of all steps and of the evaluation: the peak is one
/// of theirs. Returns the most rows of one.
fn plan_heaviest(prepared: &mut Prepared<'_>) -> Result<usize> {
    let mut rows = 0;
    if prepared.rollouts.is_some() {
        return plan_longest_prompts(prepared);
    }
    let share = prepared.loop_options.share_prefix;
    let total = prepared.loop_options.total_steps.min(SEARCHED_STEPS);
    let steps = prepared.batches.starting_at(0).take(total as usize);
    let most = prepared.loop_options.shards;
    let batches = steps.flat_map(|step| {
        let examples = |batch: &Vec<usize>| prepared.train.examples.batch(batch.iter().copied());
        let micro_batches: Vec<Vec<Example>> = step.micro_batches.iter().map(examples).collect();
        let index = |(batch, i): (usize, usize)| step.micro_batches[batch][i];
        let parts = split(&micro_batches, share, most).into_iter().flatten();
        parts.map(move |part| part.into_iter().map(index).collect::<Vec<usize>>()).collect::<Vec<_>>()
    });
    for batch in heaviest(&prepared.train.examples, batches) {
        let examples = prepared.train.examples.batch(batch);
        let packed = prepared.stepper.pack(&examples.iter().collect::<Vec<_>>(), share, 0);
        rows = rows.max(packed.rows());
        prepared.stepper.gradients(&[packed])?;
    }
    let Some(eval) = &prepared.eval else { return Ok(rows) };
    let size = prepared.loop_options.eval_batch_size.max(1);
    let ranges = (0..eval.examples.len()).step_by(size);
    let batches = ranges.map(|start| (start..eval.examples.len().min(start + size)).collect());
    for batch in heaviest(&eval.examples, batches) {
        let examples = eval.examples.batch(batch);
        let scorer = prepared.stepper.scorer();
        let packed = scorer.pack(&examples.iter().collect::<Vec<_>>(), share, 0);
        rows = rows.max(packed.rows());
        scorer.score(&packed);
    }
    Ok(rows)
}

/// Plans the steps whose prompts have the most tokens, with completions as long as they may be. Returns the most rows of a batch.
fn plan_longest_prompts(prepared: &mut Prepared<'_>) -> Result<usize> {
    let total = prepared.loop_options.total_steps.min(SEARCHED_STEPS) as usize;
    let prompts = |step: &Step| step.micro_batches.iter().flatten().copied().collect::<Vec<usize>>();
    let sizes: Vec<usize> = prepared.train.examples.iter().map(|example| example.tokens.len()).collect();
    let mut steps: Vec<(usize, Step)> = (prepared.batches.starting_at(0).take(total))
        .map(|step| (prompts(&step).iter().map(|&prompt| sizes[prompt]).sum(), step))
        .collect();
    steps.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    let mut rows = 0;
    for (_, step) in steps.into_iter().take(HEAVIEST) {
        let shards = lay_out(prepared, &step);
        rows = rows.max(shards.iter().flatten().map(PackedBatch::rows).max().unwrap_or(0));
        prepared.stepper.gradients_of(&shards)?;
    }
    Ok(rows)
}

/// Those of `batches` with the most tokens and those with the most targets.
fn heaviest(examples: &Examples, batches: impl Iterator<Item = Vec<usize>>) -> Vec<Vec<usize>> {
    let sizes: Vec<[usize; 2]> = examples.iter().map(|e| [e.tokens.len(), e.labels()]).collect();
    let mut most: [Vec<(usize, Vec<usize>)>; 2] = Default::default();
    for batch in batches {
        for (which, most) in most.iter_mut().enumerate() {
            let size = batch.iter().map(|&example| sizes[example][which]).sum();
            if most.len() < HEAVIEST || most.last().is_some_and(|(least, _)| size > *least) {
                most.push((size, batch.clone()));
                most.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
                most.truncate(HEAVIEST);
            }
        }
    }
    most.into_iter().flatten().map(|(_, batch)| batch).collect()
}

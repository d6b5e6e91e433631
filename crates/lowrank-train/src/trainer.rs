//! The training loop.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lowrank_engine::Param;

use crate::checkpoint::{self, RunState};
use crate::error::Kept;
use crate::evaluate::evaluate;
use crate::log::{RunLog, StepRecord};
use crate::loop_options::LoopOptions;
use crate::ranks::{all_well, any, on_first};
use crate::rollout::Rollouts;
use crate::samples::Samples;
use crate::step::Stepper;
use crate::{Batches, Error, Example, Examples, memory};

/// The data of a run.
pub struct RunData<'a> {
    /// To train on.
    pub train: &'a Examples,
    /// In which order.
    pub batches: &'a Batches,
    /// Held out.
    pub eval: Option<&'a Examples>,
    /// What the model continues on the way.
    pub samples: Option<Samples<'a>>,
    /// What the model samples and learns from, where the examples are prompts.
    pub rollouts: Option<RefCell<Rollouts<'a>>>,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Steps done in all.
    pub steps: u64,
    /// Whether it was stopped from outside before its last step.
    pub interrupted: bool,
    /// Whether it stopped because the held-out loss fell no more.
    pub stopped_early: bool,
    /// Loss of the first step that this call ran.
    pub first_loss: Option<f64>,
    /// Mean loss of the last ten steps.
    pub last_loss: Option<f64>,
    /// Loss of the last step.
    pub final_loss: Option<f64>,
    /// Whether there were enough steps to say that the loss fell, and it did not by a twentieth.
    pub loss_stayed: bool,
    /// Whether there were enough steps to say that the loss rose, and it did.
    pub loss_rose: bool,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The last held-out loss.
    pub eval_loss: Option<f64>,
    /// The last held-out metrics of the task.
    pub eval_metrics: Vec<(&'static str, f64)>,
    /// The lowest held-out loss and its step.
    pub best: Option<(u64, f64)>,
    /// Whether the adapter that was written is that of this step, and not the last one.
    pub wrote_best: bool,
    /// Seconds in training steps.
    pub train_s: f64,
    /// Tokens seen.
    pub tokens: u64,
    /// Examples seen.
    pub examples: u64,
}

/// Trains until the last step, or until `stop` is set: then the step at hand is finished and saved.
///
/// # Errors
/// Where a loss is not finite, or a file cannot be written. The last checkpoint stays as it is, unless it is what made the loss
/// so: then the one before it takes its place.
pub fn run(
    stepper: &mut Stepper<'_>,
    data: &RunData<'_>,
    options: &LoopOptions,
    run_dir: &Path,
    state: &mut RunState,
    log: &mut RunLog,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let learning_rate = options.schedule.peak;
    let mut summary = Summary { best: state.best, learning_rate, ..Summary::default() };
    log.progress.set_epochs(data.batches.epochs_after(options.total_steps));
    let mut recent = Vec::new();
    let (mut evaluated_at, mut sampled_at) = (None, None);
    if state.step == 0 && options.total_steps > 0 {
        sample(stepper, data, state, log)?;
        sampled_at = Some(0);
    }
    // The next step says whether the last checkpoint is good.
    let mut unproven = state.step > 0;
    for step in data.batches.starting_at(state.step) {
        if state.step >= options.total_steps {
            break;
        }
        if options.early_stopping_patience > 0 && state.not_better >= options.early_stopping_patience {
            summary.stopped_early = true;
            break;
        }
        if any(stepper.communicator(), stop.load(Ordering::Relaxed))? {
            summary.interrupted = true;
            break;
        }
        let started = Instant::now();
        let (shards, rollout_metrics) = match &data.rollouts {
            Some(rollouts) => {
                let mut rollouts = rollouts.borrow_mut();
                let rollout = rollouts.prepare(stepper, data.train, &step, options, state)?;
                for record in std::mem::take(&mut rollout.records) {
                    log.completion(&record)?;
                }
                (rollout.shards.clone(), rollout.metrics.clone())
            }
            None => {
                let micro_batches: Vec<Vec<Example>> =
                    step.micro_batches.iter().map(|batch| data.train.batch(batch.iter().copied())).collect();
                let shards = stepper.lay_out(&micro_batches, options.share_prefix, options.shards, step.step);
                (shards, BTreeMap::new())
            }
        };
        let learning_rate = options.schedule.at(step.step);
        let outcome = match stepper.step_over(&shards, learning_rate) {
            // On all ranks: the loss and the gradient are those of all.
            Err(Error::NotFinite(mut what)) => {
                let comm = stepper.communicator();
                let kept = if comm.is_first() { kept(run_dir, unproven) } else { Ok(Kept::NoCheckpoint) };
                what.checkpoint = all_well(comm, kept)?;
                return all_well(comm, Err(Error::NotFinite(what)));
            }
            outcome => outcome?,
        };
        if std::mem::take(&mut unproven) {
            on_first(stepper.communicator(), || checkpoint::confirm(run_dir, "last"))?;
        }
        let step_s = started.elapsed().as_secs_f64();

        state.step += 1;
        state.epoch = data.batches.epochs_after(state.step);
        let tokens = shards.iter().flatten().map(|b| b.real_tokens as u64).sum();
        let examples = shards.iter().flatten().map(|b| b.examples as u64).sum();
        summary.train_s += step_s;
        summary.tokens += tokens;
        summary.examples += examples;
        summary.first_loss.get_or_insert(outcome.loss);
        recent.push(outcome.loss);
        log.step(&StepRecord {
            step: state.step,
            epoch: state.epoch,
            loss: outcome.loss,
            learning_rate,
            grad_norm: outcome.grad_norm,
            tokens,
            examples,
            tokens_per_s: tokens as f64 / step_s,
            step_s,
            peak_rss_bytes: memory::peak_rss_bytes(),
            metrics: (outcome.metrics.iter().map(|(name, value)| ((*name).to_owned(), Some(*value))))
                .chain(rollout_metrics.into_iter().map(|(name, value)| (name, Some(value))))
                .collect(),
        })?;

        let done = state.step;
        let every = |n: u64| n > 0 && done.is_multiple_of(n);
        if every(options.eval_steps) {
            run_evaluation(stepper, data, options, run_dir, state, log, &mut summary)?;
            evaluated_at = Some(state.step);
        }
        let sample_steps = data.samples.as_ref().map_or(0, |samples| samples.prompts.steps);
        if every(if sample_steps > 0 { sample_steps } else { options.eval_steps }) {
            sample(stepper, data, state, log)?;
            sampled_at = Some(state.step);
        }
        if every(options.save_steps) && state.step < options.total_steps {
            save(stepper, run_dir, "last", state)?;
            if options.save_total_limit > 1 {
                on_first(stepper.communicator(), || {
                    checkpoint::keep(run_dir, state.step, &stepper.adapters, options.save_total_limit - 1)
                })?;
            }
            unproven = true;
        }
    }
    log.flush()?;
    if evaluated_at != Some(state.step) && !summary.interrupted {
        run_evaluation(stepper, data, options, run_dir, state, log, &mut summary)?;
    }
    if sampled_at != Some(state.step) && !summary.interrupted {
        sample(stepper, data, state, log)?;
    }
    save(stepper, run_dir, "last", state)?;
    let best = options.load_best_model_at_end && !summary.interrupted;
    summary.wrote_best = best && state.best.is_some_and(|(step, _)| step != state.step);
    on_first(stepper.communicator(), || {
        match summary.wrote_best {
            true => checkpoint::export(run_dir, "best")?,
            false => stepper.adapters.save(run_dir)?,
        }
        match summary.interrupted {
            true => Ok(()),
            false => checkpoint::confirm(run_dir, "last"),
        }
    })?;
    let tail = &recent[recent.len().saturating_sub(10)..];
    summary.last_loss = (!tail.is_empty()).then(|| tail.iter().sum::<f64>() / tail.len() as f64);
    summary.final_loss = recent.last().copied();
    // The loss of completions says nothing of how good they are.
    let recent = if data.rollouts.is_some() { Vec::new() } else { recent };
    let stayed = |first: f64, last: f64| recent.len() >= 20 && last > 0.95 * first && last <= 1.1 * first;
    summary.loss_stayed =
        summary.first_loss.zip(summary.last_loss).is_some_and(|(first, last)| stayed(first, last));
    let rose = |first: f64, last: f64| recent.len() >= 10 && last > 1.1 * first;
    summary.loss_rose =
        summary.first_loss.zip(summary.last_loss).is_some_and(|(first, last)| rose(first, last));
    summary.steps = state.step;
    Ok(summary)
}

/// What is left to go on from after a step that was not finite; where the last checkpoint leads there, the one before it takes its
/// place.
fn kept(run_dir: &Path, unproven: bool) -> Result<Kept, Error> {
    Ok(match unproven {
        true => checkpoint::roll_back(run_dir, "last")?.map_or(Kept::None, Kept::Former),
        false if checkpoint::exists(run_dir) => Kept::Last,
        false => Kept::NoCheckpoint,
    })
}

fn run_evaluation(
    stepper: &Stepper<'_>,
    data: &RunData<'_>,
    options: &LoopOptions,
    run_dir: &Path,
    state: &mut RunState,
    log: &mut RunLog,
    summary: &mut Summary,
) -> Result<(), Error> {
    let Some(examples) = data.eval else { return Ok(()) };
    let result = match &data.rollouts {
        Some(rollouts) => rollouts.borrow_mut().evaluate(stepper, examples)?,
        None => evaluate(&stepper.scorer(), examples, options.eval_batch_size, options.share_prefix)?,
    };
    log.eval(&result.record(state.step, state.epoch))?;
    summary.eval_loss = Some(result.loss);
    summary.eval_metrics = result.metrics.into_iter().collect();
    let before = state.best.map_or(f64::INFINITY, |(_, best)| best);
    let better = result.loss < before - options.early_stopping_threshold;
    state.not_better = if better { 0 } else { state.not_better + 1 };
    if result.loss.is_finite() && result.loss < before {
        state.best = Some((state.step, result.loss));
        summary.best = state.best;
        save(stepper, run_dir, "best", state)?;
        // Its loss is computed already.
        on_first(stepper.communicator(), || checkpoint::confirm(run_dir, "best"))?;
    }
    Ok(())
}

/// Generates the samples of the step, in the memory that the activations had. A run goes on without them where they cannot be
/// had.
fn sample(
    stepper: &Stepper<'_>,
    data: &RunData<'_>,
    state: &RunState,
    log: &mut RunLog,
) -> Result<(), Error> {
    let Some(samples) = &data.samples else { return Ok(()) };
    stepper.device().trim();
    let made = samples.generate(stepper, (state.step, state.epoch));
    stepper.device().trim();
    lowrank_kernels::trim_heap();
    match made {
        Ok(records) => records.iter().try_for_each(|record| log.sample(record)),
        Err(error @ Error::Comm(_)) => Err(error),
        Err(error) => {
            log.progress.message(&format!("warning: no samples at step {}: {error}", state.step));
            Ok(())
        }
    }
}

/// Saves a checkpoint, unless something in it is no number any more: in the memory that the activations had, and leaving
/// none of its own behind.
fn save(stepper: &Stepper<'_>, run_dir: &Path, name: &str, state: &RunState) -> Result<(), Error> {
    on_first(stepper.communicator(), || {
        let broken = |p: &Param| !p.values().iter().all(|x| x.is_finite());
        if let Some((_, param)) = stepper.adapters.params.iter().find(|(_, p)| broken(p)) {
            return Err(Error::NotFiniteParameter { step: state.step, name: param.name.clone() });
        }
        stepper.device().trim();
        let saved = checkpoint::save(run_dir, name, &stepper.adapters, &stepper.optimizer, state);
        lowrank_kernels::trim_heap();
        saved
    })
}

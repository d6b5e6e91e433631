//! Fine-tuning: from options to an adapter folder.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lowrank_adapters::AdapterSet;
use lowrank_adapters::calibrate::Inputs;
use lowrank_engine::{Device, Param};
use lowrank_files::LoadOptions;
use lowrank_models::hub::Repository;
use lowrank_train::log::{JsonLog, Progress, RunLog, TensorBoard};
use lowrank_train::{
    BatchOptions, Batches, Dataset, LoopOptions, Rollouts, RunData, RunState, SamplePrompts, Samples,
    Schedule, StepOptions, Stepper, Summary, TrainingInputs, checkpoint,
};

use crate::options::TrainOptions;
use crate::push::{push_run, repository_of};
use crate::reference::{self, Reference};
use crate::run_folder::{LOG_FILE, RunFolder, SetAside};
use crate::session::Session;
use crate::texts::until;
use crate::training_args::TrainingArgs;
use crate::{Error, Result, card, ranks, rollouts, same_run, sample_prompts};

/// What is trained: the adapter on its model and the examples.
pub struct Prepared<'m> {
    /// Model, adapter, optimiser.
    pub stepper: Stepper<'m>,
    /// Examples to train on.
    pub train: Dataset,
    /// Held-out examples.
    pub eval: Option<Dataset>,
    /// Their order.
    pub batches: Batches,
    /// How long to go on.
    pub loop_options: LoopOptions,
    /// What is continued on the way.
    pub samples: Option<SamplePrompts>,
    /// What is sampled and learned from.
    pub rollouts: Option<Rollouts<'m>>,
    reference: Option<Reference>,
    pub(crate) state: RunState,
}

/// Reads data and adapter and makes everything ready on `device`.
///
/// # Errors
/// Where data, adapter or options are wrong.
pub fn prepare<'m>(session: &'m Session, options: &TrainOptions, device: Device) -> Result<Prepared<'m>> {
    options.check()?;
    let options = &options.resolved(&*session.model);
    let device = options.saving_on(device);
    let loaded = session.base.tensors.load_options();
    if (LoadOptions { shapes_only: false, ..loaded }) != options.load_options() {
        return Err(Error::Usage(
            "the session was opened with another `quantize`, `precision` or `stream_base`".into(),
        ));
    }
    let task = session.task.task;
    if task != options.task && task != crate::task::meant(options.task, &session.base) {
        let (have, want) = (task.name(), options.task.name());
        return Err(Error::Usage(format!("the session was opened for the task {have}, not {want}")));
    }
    if options.base_dropout && !session.model.has_dropout() {
        let kind =
            session.base.config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        return Err(Error::Usage(format!(
            "`base_dropout` is for models that were trained with dropout (bert, roberta, xlm-roberta, distilbert, deberta-v2, gpt2), not for {kind}"
        )));
    }
    let train = session.read_data(&options.data, options, false)?;
    let (train, eval) = match &options.eval_data {
        Some(path) => (train, Some(session.read_data(path, options, false)?)),
        None if options.eval_split > 0.0 => {
            let (train, eval) = train.split(options.eval_split, options.seed)?;
            (train, Some(eval))
        }
        None => (train, None),
    };
    let share_prefix = !options.no_share_prefix;
    let rollouts = rollouts::of_run(session, options)?;
    // Examples are prompts where their completions are sampled.
    let (batch_size, accumulation, repeats) = match &rollouts {
        Some(_) => (options.completions_of_step() / options.num_generations, 1, options.num_iterations),
        None => (options.batch_size, options.gradient_accumulation_steps, 1),
    };
    let batches = Batches::new(
        &train.examples,
        BatchOptions {
            batch_size,
            gradient_accumulation_steps: accumulation,
            shuffle: !options.no_shuffle,
            seed: options.seed,
            prompt_group: if share_prefix && rollouts.is_none() { options.prompt_group } else { 1 },
        },
    )?
    .with_repeats(repeats);
    let by_epochs = (options.epochs * batches.steps_per_epoch() as f64).ceil() as u64;
    let total_steps = options.max_steps.unwrap_or(by_epochs);
    let schedule = Schedule {
        scheduler: options.lr_scheduler,
        peak: options.learning_rate.unwrap_or_default(),
        warmup_steps: match options.warmup_steps {
            0 => (options.warmup_ratio * total_steps as f64).ceil() as u64,
            steps => steps,
        },
        total_steps,
    };

    let step_options = StepOptions {
        checkpoint_activations: options.checkpoint_activations,
        weight_decay: options.weight_decay,
        max_grad_norm: options.max_grad_norm,
        seed: options.seed,
    };
    let mut fingerprint = options.fingerprint();
    fingerprint.insert("data".into(), checkpoint::data_fingerprint(&train.examples));
    if !device.is_plan() {
        fingerprint.insert("model".into(), checkpoint::base_fingerprint(&session.base.tensors));
    }
    let eval_data = eval.as_ref().map(|eval| checkpoint::data_fingerprint(&eval.examples));
    let (adapters, optimizer, state) = if options.resume {
        let (adapters, optimizer, mut state) =
            checkpoint::load(&options.out, session.sites(), options.weight_decay, |set| options.apply(set))?;
        if (1..=state.step).contains(&state.total_steps) && total_steps > state.step {
            // A run that is over may go on for longer.
            for key in ["epochs", "max_steps"] {
                state.fingerprint.insert(key.to_owned(), fingerprint[key].clone());
            }
        }
        state.check(&fingerprint, &options.out)?;
        state.total_steps = total_steps;
        if state.eval_data != eval_data {
            // The lowest loss was that of other data.
            (state.best, state.eval_data) = (None, eval_data);
        }
        (adapters, Some(optimizer), state)
    } else {
        let masking = session.masking(options.seed)?;
        let mut inputs = TrainingInputs::new(&*session.model, &device, &train.examples, &batches, masking);
        let mut adapters = start(session, options, total_steps, &mut inputs, device.is_plan())?;
        device.reset_peak();
        device.trim();
        options.apply(&mut adapters)?;
        (adapters, None, RunState { total_steps, fingerprint, eval_data, ..RunState::default() })
    };
    let (mut train, mut eval) = (train, eval);
    let reference = reference::attach(session, options, &device, &mut train, eval.as_mut())?;
    let mut stepper = Stepper::new(&*session.model, adapters, device, step_options)
        .for_task(session.task.clone(), session.masking(options.seed)?)
        .with_communicator(session.comm.clone())
        .with_base_dropout(options.base_dropout);
    stepper.adapters.task = session.task.to_json();
    stepper.adapters.chat_template = session.chat_template().map(str::to_owned);
    if let Some(optimizer) = optimizer {
        stepper.optimizer = optimizer;
    }
    options.set_optimizer(&mut stepper.optimizer);
    let samples = sample_prompts::read(session, options, &train.report)?;
    if let Some(samples) = &samples {
        samples.check(&stepper).map_err(|what| Error::Usage(format!("`sample_prompts`: {what}")))?;
    }
    if let Some(rollouts) = &rollouts {
        rollouts.check(&stepper, &train.examples)?;
        eval.iter().try_for_each(|eval| rollouts.check(&stepper, &eval.examples))?;
    }
    let loop_options = LoopOptions {
        total_steps,
        schedule,
        share_prefix,
        shards: options.shards_of(stepper.adapters.params.count()),
        eval_steps: options.eval_steps,
        save_steps: options.save_steps,
        eval_batch_size: options.batch_size,
        early_stopping_patience: options.early_stopping_patience,
        early_stopping_threshold: options.early_stopping_threshold,
        load_best_model_at_end: options.load_best_model_at_end || options.early_stopping_patience > 0,
        save_total_limit: options.save_total_limit,
    };
    Ok(Prepared { stepper, train, eval, batches, loop_options, samples, rollouts, reference, state })
}

/// The adapter that training starts from.
fn start(
    session: &Session,
    options: &TrainOptions,
    total_steps: u64,
    inputs: &mut dyn Inputs,
    plan: bool,
) -> Result<AdapterSet> {
    Ok(match &options.init_adapter {
        Some(dir) => {
            let mut set = session.load_adapter(dir)?;
            options.check_init(&set.config, dir, &*session.model)?;
            set.config.base_model_name_or_path = Some(options.base_name());
            set
        }
        None => {
            let config = options.lora(&*session.model, total_steps)?;
            match plan {
                true => AdapterSet::planned_new(config, session.sites())?,
                false => AdapterSet::new_on_data(config, session.sites(), options.seed, session, inputs)?,
            }
        }
    })
}

/// Trains as `options` say and writes the adapter folder. Setting `stop` ends the run after the step at
/// hand, with everything saved.
///
/// # Errors
/// Where input is wrong, the folder holds another run (without `force` or `resume`), a loss is not
/// finite, or a file cannot be written; [`Error::NotPushed`] where the run is complete and only its upload failed.
pub fn finetune(session: &Session, options: &TrainOptions, stop: &AtomicBool) -> Result<Summary> {
    let show = |total, done| Progress::new(total, done, Duration::from_secs(10));
    finetune_with(session, options, stop, show)
}

/// [`finetune`] that reports to what `progress` makes, given the steps in all and those already done.
///
/// # Errors
/// As [`finetune`].
pub fn finetune_with(
    session: &Session,
    options: &TrainOptions,
    stop: &AtomicBool,
    progress: impl FnOnce(u64, u64) -> Progress,
) -> Result<Summary> {
    options.check()?;
    let comm = &*session.comm.clone();
    let out = &options.out;
    let options = &options.resolved(&*session.model);
    let first = comm.is_first();
    let folder = if first { RunFolder::open(options).map(Some) } else { Ok(None) };
    let folder = ranks::all_well(comm, folder)?;
    let mut prepared = ranks::all_well(comm, prepare(session, options, session.device()))?;
    let Prepared { stepper, state, loop_options, .. } = &prepared;
    same_run::check(comm, state, loop_options, &stepper.adapters.params)?;
    let done = prepared.state.step;
    let mut progress =
        if first { progress(prepared.loop_options.total_steps, done) } else { Progress::hidden() };
    report_data(&prepared, &mut progress);
    let data = (&prepared.train.examples, &prepared.batches);
    // What completions of prompts take is not known before they are sampled.
    let shared = match prepared.rollouts {
        Some(_) => Vec::new(),
        None => same_run::report(comm, data, &prepared.loop_options, done),
    };
    for line in shared {
        progress.message(&line);
    }
    let warnings = prepared.stepper.adapters.warnings(session.sites());
    for warning in warnings.into_iter().chain(prepared.loop_options.schedule.warning()) {
        progress.message(&format!("warning: {warning}"));
    }
    let begun = match &folder {
        Some(folder) => begin(folder, options, done).map(Some),
        None => Ok(None),
    };
    let (repository, replaced, logs) = ranks::all_well(comm, begun)?.unwrap_or_default();
    let mut log = RunLog {
        json: logs.json,
        tensorboard: logs.tensorboard,
        progress,
        every: options.logging_steps,
        waiting: Vec::new(),
    };
    let stops = if prepared.samples.is_some() { session.stops()? } else { Vec::new() };
    // The tokenizer is read for the samples, and dropped again.
    let to_text = |made: &[Vec<u32>]| {
        let tokenizer = session.tokenizer()?;
        let texts = made.iter().map(|tokens| Ok(until(&tokenizer.decode(tokens, true)?, &stops)));
        let texts = texts.collect();
        drop(tokenizer);
        session.forget_tokenizer();
        texts
    };
    let samples = prepared.samples.as_ref().map(|prompts| Samples { prompts, to_text: &to_text });
    let data = RunData {
        samples,
        rollouts: prepared.rollouts.take().map(RefCell::new),
        train: &prepared.train.examples,
        batches: &prepared.batches,
        eval: prepared.eval.as_ref().map(|e| &e.examples),
    };
    let reference = prepared.reference.take().filter(|_| first);
    let replace = || {
        if first {
            TrainingArgs::now(options).write(out)?;
        }
        if let Some(reference) = reference {
            reference.save(out)?;
        }
        // Nothing is left that could be refused.
        replaced.map_or(Ok(()), SetAside::discard)
    };
    ranks::all_well(comm, replace())?;
    session.forget_tokenizer();
    let summary = lowrank_train::run(
        &mut prepared.stepper,
        &data,
        &prepared.loop_options,
        out,
        &mut prepared.state,
        &mut log,
        stop,
    );
    log.progress.finish();
    let summary = summary.map_err(|error| explained(error, session, &prepared.stepper.adapters, done))?;
    if !first {
        return Ok(summary);
    }
    if !card::write(out, options, &prepared.stepper.adapters, &prepared.train.report, &summary)? {
        log.progress.message(&format!("{} is not this run's and stays", out.join(card::FILE).display()));
    }
    if let Some(repository) = repository.filter(|_| !summary.interrupted) {
        let pushed = push_run(&repository, options, &summary)?;
        log.progress.message(&format!("uploaded to {}", pushed.page));
    }
    Ok(summary)
}

/// The logs of a run.
#[derive(Default)]
struct Logs {
    json: Option<JsonLog>,
    tensorboard: Option<TensorBoard>,
}

/// What the first rank opens before a run: the repository to upload to, the former run set aside, and the logs.
type Begun = (Option<Repository>, Option<SetAside>, Logs);

fn begin(folder: &RunFolder, options: &TrainOptions, done: u64) -> Result<Begun> {
    let repository = repository_of(options)?;
    let replaced = if options.resume { None } else { Some(folder.set_aside()?) };
    let path = options.log_json.clone().unwrap_or_else(|| options.out.join(LOG_FILE));
    let json = match done {
        0 => JsonLog::create(&path)?,
        _ => JsonLog::resume(&path, done)?,
    };
    let board = |dir: &PathBuf| TensorBoard::create(dir, (done > 0).then_some(done));
    let tensorboard = options.tensorboard.as_ref().map(board).transpose()?;
    Ok((repository, replaced, Logs { json: Some(json), tensorboard }))
}

/// Says what is trained.
fn report_data(prepared: &Prepared<'_>, progress: &mut Progress) {
    let set = &prepared.stepper.adapters;
    let rate = prepared.loop_options.schedule.peak;
    progress.message(&format!(
        "{} layers adapted, {} trainable parameters, learning rate {rate:e}",
        set.layers.len(),
        set.params.count()
    ));
    for (what, data) in [("train", Some(&prepared.train)), ("eval", prepared.eval.as_ref())] {
        let Some(report) = data.map(|d| &d.report) else { continue };
        progress.message(&format!("{what}: {report}"));
        for warning in report.warnings() {
            progress.message(&format!("  {warning}"));
        }
    }
}

/// The error with the tensor that caused it: a loss is not finite either where the base or the adapter is broken, and then no
/// option of training helps.
fn explained(error: lowrank_train::Error, session: &Session, adapters: &AdapterSet, done: u64) -> Error {
    let lowrank_train::Error::NotFinite(mut what) = error else { return error.into() };
    let first = what.step == done + 1;
    let of_adapter = || {
        let found = |p: &Param| p.values().iter().find(|x| !x.is_finite()).copied();
        let (param, x) = adapters.params.iter().find_map(|(_, p)| Some((p, found(p)?)))?;
        Some(format!("The adapter is broken: {} holds {x} before the first step", param.name))
    };
    what.cause = broken_tensor(session).or_else(|| of_adapter().filter(|_| first));
    lowrank_train::Error::NotFinite(what).into()
}

/// The first tensor of the base that holds something else than finite numbers.
fn broken_tensor(session: &Session) -> Option<String> {
    const VALUES: usize = 4 << 20;
    let tensors = &session.base.tensors;
    for name in tensors.names() {
        let Some((rows, cols)) = tensors.matrix_shape(name) else { continue };
        let step = (VALUES / cols.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let range = start..rows.min(start + step);
            let mut values = vec![0.0; range.len() * cols];
            if tensors.read_rows(name, range, &mut values).is_err() {
                break;
            }
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let (file, x) = (session.base.source.display(), values[at]);
                let place = format!("row {}, column {}", start + at / cols, at % cols);
                return Some(format!("The base is broken: {name} of {file} holds {x} at {place}"));
            }
        }
    }
    None
}

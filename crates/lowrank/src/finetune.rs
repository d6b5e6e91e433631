//! Fine-tuning: from options to an adapter folder.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lowrank_adapters::AdapterSet;
use lowrank_adapters::calibrate::Inputs;
use lowrank_engine::Device;
use lowrank_files::LoadOptions;
use lowrank_train::log::{JsonLog, Progress, RunLog, TensorBoard};
use lowrank_train::{
    BatchOptions, Batches, Dataset, LoopOptions, RunData, RunState, Schedule, StepOptions, Stepper, Summary,
    TrainingInputs, checkpoint,
};

use crate::options::{TrainOptions, holds_a_run};
use crate::session::Session;
use crate::{Error, Result, card};

/// The log of a run in its folder.
pub const LOG_FILE: &str = "log.jsonl";

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
    state: RunState,
}

/// Reads data and adapter and makes everything ready on `device`.
///
/// # Errors
/// Where data, adapter or options are wrong.
pub fn prepare<'m>(session: &'m Session, options: &TrainOptions, device: Device) -> Result<Prepared<'m>> {
    options.check()?;
    let device = options.saving_on(device);
    let loaded = session.base.tensors.load_options();
    if (LoadOptions { shapes_only: false, ..loaded }) != options.load_options() {
        return Err(Error::Usage(
            "the session was opened with another `quantize`, `precision` or `stream_base`".into(),
        ));
    }
    if session.task.task != options.task {
        let (have, want) = (session.task.task.name(), options.task.name());
        return Err(Error::Usage(format!("the session was opened for the task {have}, not {want}")));
    }
    let train = session.read_data(&options.data, options, false)?;
    let eval = options.eval_data.as_ref().map(|path| session.read_data(path, options, false)).transpose()?;
    let share_prefix = !options.no_share_prefix;
    let batches = Batches::new(
        &train.examples,
        BatchOptions {
            batch_size: options.batch_size,
            gradient_accumulation_steps: options.gradient_accumulation_steps,
            shuffle: !options.no_shuffle,
            seed: options.seed,
            prompt_group: if share_prefix { options.prompt_group } else { 1 },
        },
    )?;
    let by_epochs = (options.epochs * batches.steps_per_epoch() as f64).ceil() as u64;
    let total_steps = options.max_steps.unwrap_or(by_epochs);
    let schedule = Schedule {
        scheduler: options.lr_scheduler,
        peak: options.learning_rate,
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
        state.check(&fingerprint, &options.out)?;
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
        options.apply(&mut adapters)?;
        (adapters, None, RunState { step: 0, epoch: 0.0, best: None, fingerprint, eval_data })
    };
    let mut stepper = Stepper::new(&*session.model, adapters, device, step_options)
        .for_task(session.task.clone(), session.masking(options.seed)?);
    stepper.adapters.task = session.task.to_json();
    stepper.adapters.chat_template = session.chat_template().map(str::to_owned);
    if let Some(optimizer) = optimizer {
        stepper.optimizer = optimizer;
    }
    stepper.optimizer.form = options.adamw_form();
    let loop_options = LoopOptions {
        total_steps,
        schedule,
        share_prefix,
        eval_steps: options.eval_steps,
        save_steps: options.save_steps,
        eval_batch_size: options.batch_size,
    };
    Ok(Prepared { stepper, train, eval, batches, loop_options, state })
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
            set.config.base_model_name_or_path = Some(options.model.clone());
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
/// finite, or a file cannot be written.
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
    let out = &options.out;
    if !options.resume && holds_a_run(out) {
        if !options.force {
            let dir = out.display();
            return Err(Error::Usage(format!(
                "{dir} holds another run: use `resume` to continue it or `force` to replace it"
            )));
        }
        remove_run(out)?;
    }
    let mut prepared = prepare(session, options, session.device())?;
    let mut progress = progress(prepared.loop_options.total_steps, prepared.state.step);
    report_data(&prepared, &mut progress);
    let warnings = prepared.stepper.adapters.warnings(session.sites());
    for warning in warnings.into_iter().chain(prepared.loop_options.schedule.warning()) {
        progress.message(&format!("warning: {warning}"));
    }
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let done = prepared.state.step;
    let path = options.log_json.clone().unwrap_or_else(|| out.join(LOG_FILE));
    let json = match done {
        0 => JsonLog::create(&path)?,
        _ => JsonLog::resume(&path, done)?,
    };
    let tensorboard =
        options.tensorboard.as_ref().map(|dir| TensorBoard::create(dir, (done > 0).then_some(done)));
    let mut log = RunLog { json: Some(json), tensorboard: tensorboard.transpose()?, progress };
    let data = RunData {
        train: &prepared.train.examples,
        batches: &prepared.batches,
        eval: prepared.eval.as_ref().map(|e| &e.examples),
    };
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
    let summary = summary?;
    card::write(out, options, &prepared.stepper.adapters, &prepared.train.report, &summary)?;
    Ok(summary)
}

fn report_data(prepared: &Prepared<'_>, progress: &mut Progress) {
    for (what, data) in [("train", Some(&prepared.train)), ("eval", prepared.eval.as_ref())] {
        let Some(report) = data.map(|d| &d.report) else { continue };
        progress.message(&format!("{what}: {report}"));
        for warning in report.warnings() {
            progress.message(&format!("  {warning}"));
        }
    }
}

/// Removes what a run writes and nothing else.
fn remove_run(out: &Path) -> Result<()> {
    let checkpoints = out.join("checkpoints");
    if checkpoints.exists() {
        fs::remove_dir_all(&checkpoints).map_err(Error::io(&checkpoints))?;
    }
    for name in [
        lowrank_adapters::CONFIG_FILE,
        lowrank_adapters::TENSORS_FILE,
        lowrank_adapters::TASK_FILE,
        lowrank_adapters::CHAT_TEMPLATE_FILE,
        LOG_FILE,
    ] {
        let path = out.join(name);
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

//! How fast a run will be on this machine: a few of its own steps, timed.

use std::time::{Duration, Instant};

use lowrank_train::Task;
use serde::Serialize;

use crate::finetune::prepare;
use crate::forecast::{Forecast, lay_out};
use crate::{Error, Result, Session, TrainOptions};

/// How long steps are timed.
const TIMED: Duration = Duration::from_secs(5);

/// The speed of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Tokens a second.
    pub tokens_per_s: f64,
    /// Seconds of an epoch, without evaluations.
    pub epoch_s: f64,
    /// Floating-point operations a second.
    pub flops_per_s: f64,
    /// Steps that were timed.
    pub steps: u64,
}

/// Takes steps of the run for five seconds, the first to warm up, and writes nothing. The work of the other steps is
/// known from `forecast`.
///
/// # Errors
/// As [`prepare`], and where a loss is not finite.
pub fn measure_speed(session: &Session, options: &TrainOptions, forecast: &Forecast) -> Result<Speed> {
    if options.task == Task::Grpo {
        let what =
            "`speed` times steps over given texts, and `task` grpo samples its own: run it for a few steps";
        return Err(Error::Usage(what.into()));
    }
    let mut prepared = prepare(session, options, session.device())?;
    session.forget_tokenizer();
    let started = Instant::now();
    let (mut seconds, mut flops, mut steps) = (0.0, 0, 0);
    for step in prepared.batches.starting_at(0) {
        let shards = lay_out(&prepared, &step);
        let (before, begun) = (prepared.stepper.device().flops(), Instant::now());
        prepared.stepper.step_over(&shards, 0.0)?;
        let warm = step.step > 0;
        // A step that takes all the time is not done twice.
        if warm || started.elapsed() > TIMED {
            seconds += begun.elapsed().as_secs_f64();
            flops += prepared.stepper.device().flops() - before;
            steps += 1;
        }
        if started.elapsed() > TIMED {
            break;
        }
    }
    let flops_per_s = flops as f64 / seconds;
    let epoch_s = forecast.flops_per_epoch as f64 / flops_per_s;
    Ok(Speed { tokens_per_s: forecast.tokens_per_epoch as f64 / epoch_s, epoch_s, flops_per_s, steps })
}

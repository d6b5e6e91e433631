//! What a run tells: JSON lines for programs, TensorBoard for curves, a progress bar for people.

mod json;
mod progress;
mod tensorboard;

pub use json::JsonLog;
pub use progress::{Progress, Report};
pub use tensorboard::TensorBoard;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;

/// One optimiser step. A number that is not finite is `null` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Mean loss over the labelled tokens of the step, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// L2 norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Tokens in the examples of the step, shared prompts counted for each.
    pub tokens: u64,
    /// Examples in the step.
    pub examples: u64,
    /// `tokens / step_s`.
    pub tokens_per_s: f64,
    /// Wall time of the step in seconds.
    pub step_s: f64,
    /// Most resident memory so far in bytes; `null` where the system does not say.
    pub peak_rss_bytes: Option<u64>,
}

/// One evaluation on held-out data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Mean loss over all targets.
    #[serde(deserialize_with = "null_is_nan")]
    pub eval_loss: f64,
    /// Targets.
    pub eval_labels: u64,
    /// Examples.
    pub eval_examples: u64,
    /// Wall time in seconds.
    pub eval_s: f64,
    /// The metrics of the task ([`crate::Evaluation`]), each with `eval_` before its name.
    #[serde(flatten)]
    pub metrics: BTreeMap<String, Option<f64>>,
}

impl EvalRecord {
    /// The metrics by their plain names.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&str, f64)> {
        let plain = |name: &'_ str| name.len() - name.trim_start_matches("eval_").len();
        self.metrics.iter().map(move |(name, value)| (&name[plain(name)..], value.unwrap_or(f64::NAN)))
    }
}

fn null_is_nan<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// All the logs of a run.
pub struct RunLog {
    /// JSON lines, where asked for.
    pub json: Option<JsonLog>,
    /// TensorBoard events, where asked for.
    pub tensorboard: Option<TensorBoard>,
    /// The progress bar, or lines, or nothing.
    pub progress: Progress,
}

impl RunLog {
    /// Records a step everywhere.
    ///
    /// # Errors
    /// Where a log file cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), Error> {
        self.progress.step(record);
        if let Some(json) = &mut self.json {
            json.write(record)?;
        }
        if let Some(board) = &mut self.tensorboard {
            let mut scalars = vec![
                ("train/loss", record.loss),
                ("train/learning_rate", record.learning_rate),
                ("train/grad_norm", record.grad_norm),
                ("train/epoch", record.epoch),
                ("train/tokens_per_s", record.tokens_per_s),
            ];
            scalars.extend(record.peak_rss_bytes.map(|bytes| ("train/peak_rss_bytes", bytes as f64)));
            board.scalars(record.step, &scalars)?;
        }
        Ok(())
    }

    /// Records an evaluation everywhere.
    ///
    /// # Errors
    /// Where a log file cannot be written.
    pub fn eval(&mut self, record: &EvalRecord) -> Result<(), Error> {
        self.progress.eval(record);
        if let Some(json) = &mut self.json {
            json.write(record)?;
        }
        if let Some(board) = &mut self.tensorboard {
            let names: Vec<(String, f64)> = record.named().map(|(n, v)| (format!("eval/{n}"), v)).collect();
            let mut scalars = vec![("eval/loss", record.eval_loss)];
            scalars.extend(names.iter().map(|(name, value)| (name.as_str(), *value)));
            board.scalars(record.step, &scalars)?;
        }
        Ok(())
    }
}

//! What is logged of a step and of an evaluation.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One optimiser step. A value that is not finite is `null` in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// What the loss says besides: for preferences TRL's `rewards/chosen` and so on.
    #[serde(flatten)]
    pub metrics: BTreeMap<String, Option<f64>>,
}

impl StepRecord {
    /// One record of several steps in a row: means, sums of tokens, examples and time, and the rest of the last.
    pub(crate) fn mean(steps: &[Self]) -> Option<Self> {
        let last = steps.last()?.clone();
        let mean = |of: fn(&Self) -> f64| steps.iter().map(of).sum::<f64>() / steps.len() as f64;
        let tokens = steps.iter().map(|step| step.tokens).sum();
        let step_s = steps.iter().map(|step| step.step_s).sum::<f64>();
        let names: BTreeSet<&String> = steps.iter().flat_map(|step| step.metrics.keys()).collect();
        let of_name = |name: &&String| {
            let values: Vec<f64> = steps.iter().filter_map(|step| *step.metrics.get(*name)?).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            ((*name).clone(), Some(mean).filter(|mean| mean.is_finite()))
        };
        Some(Self {
            metrics: names.iter().map(of_name).collect(),
            loss: mean(|step| step.loss),
            grad_norm: mean(|step| step.grad_norm),
            tokens,
            examples: steps.iter().map(|step| step.examples).sum(),
            tokens_per_s: if steps.len() == 1 { last.tokens_per_s } else { tokens as f64 / step_s },
            step_s,
            ..last
        })
    }
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

/// A text that the model generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Optimiser steps done; 0 is the model before training.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// What is continued.
    pub sample_prompt: String,
    /// The text behind it.
    pub sample_text: String,
    /// Its tokens, the ending one included.
    pub sample_tokens: u64,
    /// Wall time of all texts of the step in seconds.
    pub sample_s: f64,
    /// The reward, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_reward: Option<f64>,
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

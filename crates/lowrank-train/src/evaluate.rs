//! Held-out loss and the metrics of each task.

use std::time::Instant;

use serde::Serialize;

use crate::log::EvalRecord;
use crate::objective::{self, Metrics, Prediction, Tally};
use crate::scorer::Scorer;
use crate::{Error, Examples};

/// What an evaluation came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss over all targets by their weights: nats, or squared errors.
    pub loss: f64,
    /// By name. Language models: `perplexity`, `token_accuracy`, and `exact_match`, the share of examples that greedy
    /// decoding would reproduce. Classification: `accuracy`, `f1` (of the second of two classes) or `f1_macro`,
    /// `matthews_correlation`. Multi-label: `accuracy`, the share of texts whose classes are all right, `f1_micro`,
    /// `f1_macro`. Regression: `pearson`, `spearman`, means over the outputs. Words: `accuracy`, and for BIO tags `precision`,
    /// `recall` and `f1` of entities. Hidden tokens: `perplexity`, `accuracy`. Embeddings: `accuracy`, how often a
    /// text's own partner is the nearest of its batch, and `cosine`, their mean similarity; `pearson` and `spearman` of
    /// the cosines with the similarities that the data name. Preferences: TRL's `rewards/chosen`, `rewards/rejected`,
    /// `rewards/margins`, `rewards/accuracies`, `logps/chosen`, `logps/rejected`, and `kl` for KTO. Reward models: `accuracy`,
    /// `margin`, `mean_reward`.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Targets.
    pub labels: usize,
    /// Examples.
    pub examples: usize,
    /// Seconds.
    pub seconds: f64,
    /// The examples of the first batch for which the model gives no numbers, `FILE:LINE` each; empty where all is well.
    #[serde(skip)]
    pub not_finite: Vec<String>,
    /// For classes and values, what the model says of each example.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

impl Evaluation {
    /// The same, where every loss and output is a number.
    ///
    /// # Errors
    /// Names the examples of the first batch where one is not.
    pub fn checked(self) -> Result<Self, Error> {
        match self.not_finite.is_empty() {
            true => Ok(self),
            false => Err(Error::NoNumbers { examples: self.not_finite }),
        }
    }

    pub(crate) fn record(&self, step: u64, epoch: f64) -> EvalRecord {
        EvalRecord {
            step,
            epoch,
            eval_loss: self.loss,
            metrics: self
                .metrics
                .iter()
                .map(|(name, value)| (format!("eval_{name}"), Some(*value)))
                .collect(),
            eval_labels: self.labels as u64,
            eval_examples: self.examples as u64,
            eval_s: self.seconds,
        }
    }
}

/// Scores `examples` in batches of `batch_size`.
pub fn evaluate(
    scorer: &Scorer<'_>,
    examples: &Examples,
    batch_size: usize,
    share_prefix: bool,
) -> Evaluation {
    let started = Instant::now();
    let objective = objective::of_task(scorer.task().task);
    let mut tally = Tally::default();
    let mut not_finite = Vec::new();
    for (i, chunk) in examples.batches(batch_size).enumerate() {
        // Tokens are hidden in the same way in every evaluation.
        let batch = scorer.pack(&chunk.iter().collect::<Vec<_>>(), share_prefix, EVAL_PASS + i as u64);
        let scores = scorer.score(&batch);
        let finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
        if not_finite.is_empty() && !(finite(&scores.losses) && finite(&scores.outputs)) {
            not_finite = chunk.iter().map(|example| example.id.to_string()).collect();
        }
        objective.tally(&mut tally, &chunk, &scores);
        tally.metrics.merge(&scores.metrics);
        tally.losses.extend(scores.losses);
        tally.hits.extend(scores.hits);
        tally.weights.extend(batch.weights);
    }
    let loss = tally.mean_loss();
    Evaluation {
        loss,
        metrics: objective.metrics(scorer.task(), &tally, loss, examples),
        labels: tally.losses.len(),
        examples: examples.len(),
        seconds: started.elapsed().as_secs_f64(),
        not_finite,
        predictions: tally.predictions,
    }
}

/// Passes that no training step has.
const EVAL_PASS: u64 = 1 << 36;

//! Held-out loss, perplexity, token accuracy, exact match.

use std::time::Instant;

use serde::Serialize;

use crate::log::EvalRecord;
use crate::step::Stepper;
use crate::{Example, pack};

/// What an evaluation came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss over all labelled tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Share of labelled tokens that are the most likely one.
    pub token_accuracy: f64,
    /// Share of examples in which all labelled tokens are: those that greedy decoding would reproduce.
    pub exact_match: f64,
    /// Labelled tokens.
    pub labels: usize,
    /// Examples.
    pub examples: usize,
    /// Seconds.
    pub seconds: f64,
}

impl Evaluation {
    pub(crate) fn record(&self, step: u64, epoch: f64) -> EvalRecord {
        EvalRecord {
            step,
            epoch,
            eval_loss: self.loss,
            eval_perplexity: self.perplexity,
            eval_token_accuracy: Some(self.token_accuracy),
            eval_labels: self.labels as u64,
            eval_examples: self.examples as u64,
            eval_s: self.seconds,
        }
    }
}

/// Scores `examples` in batches of `batch_size`.
pub fn evaluate(
    stepper: &Stepper<'_>,
    examples: &[Example],
    batch_size: usize,
    share_prefix: bool,
) -> Evaluation {
    let started = Instant::now();
    let (mut loss, mut labels, mut hits, mut exact) = (0.0, 0, 0, 0);
    for chunk in examples.chunks(batch_size.max(1)) {
        let batch: Vec<&Example> = chunk.iter().collect();
        let scores = stepper.score(&pack(&batch, share_prefix));
        loss += scores.losses.iter().map(|l| f64::from(*l)).sum::<f64>();
        labels += scores.losses.len();
        hits += scores.hits.iter().filter(|hit| **hit).count();
        let mut rest = &scores.hits[..];
        for example in chunk {
            let (own, others) = rest.split_at(example.labels());
            exact += usize::from(own.iter().all(|hit| *hit));
            rest = others;
        }
    }
    let loss = loss / labels.max(1) as f64;
    Evaluation {
        loss,
        perplexity: loss.exp(),
        token_accuracy: hits as f64 / labels.max(1) as f64,
        exact_match: exact as f64 / examples.len().max(1) as f64,
        labels,
        examples: examples.len(),
        seconds: started.elapsed().as_secs_f64(),
    }
}

//! Held-out loss and the metrics of each task.

use std::time::Instant;

use lowrank_comm::Communicator;
use serde::Serialize;

use crate::log::EvalRecord;
use crate::objective::{self, Means, Metrics, Prediction, Scores, Tally};
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

/// Scores `examples` in batches of `batch_size`, which the ranks share; all get the same result.
///
/// # Errors
/// Where another rank does not answer.
pub fn evaluate(
    scorer: &Scorer<'_>,
    examples: &Examples,
    batch_size: usize,
    share_prefix: bool,
) -> Result<Evaluation, Error> {
    let started = Instant::now();
    let objective = objective::of_task(scorer.task().task);
    let mut tally = Tally::default();
    let mut not_finite = Vec::new();
    let comm = scorer.communicator();
    let mut own = Vec::new();
    for (i, chunk) in examples.batches(batch_size).enumerate().filter(|(i, _)| i % comm.size() == comm.rank())
    {
        // Tokens are hidden in the same way in every evaluation.
        let batch = scorer.pack(&chunk.iter().collect::<Vec<_>>(), share_prefix, EVAL_PASS + i as u64);
        own.push((scorer.score(&batch), batch.weights));
    }
    let mut scored = share(comm, own)?;
    for (i, chunk) in examples.batches(batch_size).enumerate() {
        let (scores, weights) = scored[i % comm.size()].next().ok_or_else(|| unlike(i % comm.size()))?;
        let finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
        if not_finite.is_empty() && !(finite(&scores.losses) && finite(&scores.outputs)) {
            not_finite = chunk.iter().map(|example| example.id.to_string()).collect();
        }
        objective.tally(&mut tally, &chunk, &scores);
        tally.metrics.merge(&scores.metrics);
        tally.losses.extend(scores.losses);
        tally.hits.extend(scores.hits);
        tally.weights.extend(weights);
    }
    let loss = tally.mean_loss();
    Ok(Evaluation {
        loss,
        metrics: objective.metrics(scorer.task(), &tally, loss, examples),
        labels: tally.losses.len(),
        examples: examples.len(),
        seconds: started.elapsed().as_secs_f64(),
        not_finite,
        predictions: tally.predictions,
    })
}

/// The scores and weights of a batch.
type Scored = (Scores, Vec<f32>);

/// The batches of every rank, in the order in which it scored them.
fn share(comm: &dyn Communicator, own: Vec<Scored>) -> Result<Vec<std::vec::IntoIter<Scored>>, Error> {
    if comm.size() == 1 {
        return Ok(vec![own.into_iter()]);
    }
    let mut bytes = Vec::new();
    for (scores, weights) in &own {
        let hits: Vec<f32> = scores.hits.iter().map(|hit| f32::from(u8::from(*hit))).collect();
        for list in [&scores.losses, &scores.outputs, &hits, weights] {
            bytes.extend((list.len() as u64).to_le_bytes());
            bytes.extend(list.iter().flat_map(|x| x.to_le_bytes()));
        }
        scores.metrics.write(&mut bytes);
    }
    let all = comm.all_gather(&bytes)?.into_iter().enumerate();
    all.map(|(rank, bytes)| Ok(read(&bytes).ok_or_else(|| unlike(rank))?.into_iter())).collect()
}

fn read(mut bytes: &[u8]) -> Option<Vec<Scored>> {
    let list = |bytes: &mut &[u8]| {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (values, rest) = rest.split_at_checked(4 * usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        *bytes = rest;
        let value = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
        Some(values.chunks_exact(4).map(value).collect::<Vec<_>>())
    };
    let mut scored = Vec::new();
    while !bytes.is_empty() {
        let (losses, outputs) = (list(&mut bytes)?, list(&mut bytes)?);
        let hits = list(&mut bytes)?.into_iter().map(|hit| hit > 0.0).collect();
        let weights = list(&mut bytes)?;
        scored.push((Scores { losses, hits, outputs, metrics: Means::read(&mut bytes)? }, weights));
    }
    Some(scored)
}

/// The error of a rank that scored other batches.
fn unlike(rank: usize) -> Error {
    Error::Options(format!("rank {rank} evaluated other batches: all ranks need the same data and options"))
}

/// Passes that no training step has.
const EVAL_PASS: u64 = 1 << 36;

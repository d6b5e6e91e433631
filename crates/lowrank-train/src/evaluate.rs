//! Held-out loss and the metrics of each task.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::data::Target;
use crate::log::EvalRecord;
use crate::step::Stepper;
use crate::task::{Task, TaskSpec};
use crate::{Example, Examples, metrics};

/// What an evaluation came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss over all targets: nats, or squared errors.
    pub loss: f64,
    /// By name. Language models: `perplexity`, `token_accuracy`, and `exact_match`, the share of examples that greedy
    /// decoding would reproduce. Classification: `accuracy`, `f1` (of the second of two classes) or `f1_macro`,
    /// `matthews_correlation`. Regression: `pearson`, `spearman`. Words: `accuracy`, and for BIO tags `precision`,
    /// `recall` and `f1` of entities. Hidden tokens: `perplexity`, `accuracy`. Embeddings: `accuracy`, how often a
    /// text's own partner is the nearest of its batch, and `cosine`, their mean similarity; `pearson` and `spearman` of
    /// the cosines with the similarities that the data name.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, f64>,
    /// Targets.
    pub labels: usize,
    /// Examples.
    pub examples: usize,
    /// Seconds.
    pub seconds: f64,
    /// For classes and values, what the model says of each example.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

/// What the model says of one example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The likeliest class of the text, or of each word.
    pub classes: Vec<u32>,
    /// What the head gave: a score for each class (of each word), or the value.
    pub outputs: Vec<f32>,
}

impl Evaluation {
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

/// All that batches gave, in the order of the examples.
#[derive(Default)]
struct Tally {
    losses: Vec<f32>,
    hits: Vec<bool>,
    exact: usize,
    cosines: Vec<f32>,
    predictions: Vec<Prediction>,
}

/// Scores `examples` in batches of `batch_size`.
pub fn evaluate(
    stepper: &Stepper<'_>,
    examples: &Examples,
    batch_size: usize,
    share_prefix: bool,
) -> Evaluation {
    let started = Instant::now();
    let mut tally = Tally::default();
    for (i, chunk) in examples.batches(batch_size).enumerate() {
        let batch: Vec<&Example> = chunk.iter().collect();
        // Tokens are hidden in the same way in every evaluation.
        let scores = stepper.score(&stepper.pack(&batch, share_prefix, EVAL_PASS + i as u64));
        tally.add(stepper.task(), &chunk, scores);
    }
    let labels = tally.losses.len();
    let loss = tally.losses.iter().map(|l| f64::from(*l)).sum::<f64>() / labels.max(1) as f64;
    Evaluation {
        loss,
        metrics: tally.metrics(stepper.task(), loss, examples),
        labels,
        examples: examples.len(),
        seconds: started.elapsed().as_secs_f64(),
        predictions: tally.predictions,
    }
}

/// Passes that no training step has.
const EVAL_PASS: u64 = 1 << 36;

impl Tally {
    fn add(&mut self, spec: &TaskSpec, chunk: &[Example], scores: crate::Scores) {
        match spec.task {
            Task::Lm => {
                let mut rest = &scores.hits[..];
                for example in chunk {
                    let (own, others) = rest.split_at(example.labels());
                    self.exact += usize::from(own.iter().all(|hit| *hit));
                    rest = others;
                }
            }
            Task::Embedding => {
                let n = chunk.len();
                self.cosines.extend((0..n).map(|i| scores.outputs[i * n + i]));
            }
            Task::Mlm => {}
            _ => {
                let outputs = scores.outputs.len() / scores.losses.len().max(1);
                let mut rest = &scores.outputs[..];
                for example in chunk {
                    let (own, others) = rest.split_at(example.labels() * outputs);
                    let best = |row: &[f32]| {
                        let mut best = [0];
                        lowrank_kernels::argmax(row, row.len(), &mut best);
                        best[0]
                    };
                    let classes = own.chunks_exact(outputs).map(best).collect();
                    self.predictions.push(Prediction { classes, outputs: own.to_vec() });
                    rest = others;
                }
            }
        }
        self.losses.extend(scores.losses);
        self.hits.extend(scores.hits);
    }

    fn metrics(&self, spec: &TaskSpec, loss: f64, examples: &Examples) -> BTreeMap<&'static str, f64> {
        let share = |hits: usize, of: usize| hits as f64 / of.max(1) as f64;
        let hits = share(self.hits.iter().filter(|hit| **hit).count(), self.hits.len());
        let mut out = BTreeMap::new();
        match spec.task {
            Task::Lm => {
                out.insert("perplexity", loss.exp());
                out.insert("token_accuracy", hits);
                out.insert("exact_match", share(self.exact, examples.len()));
            }
            Task::Mlm => {
                out.insert("perplexity", loss.exp());
                out.insert("accuracy", hits);
            }
            Task::Embedding => {
                out.insert("accuracy", hits);
                let sum: f64 = self.cosines.iter().map(|c| f64::from(*c)).sum();
                out.insert("cosine", sum / self.cosines.len().max(1) as f64);
                let said: Option<Vec<f64>> = examples.iter().map(|e| e.similarity.map(f64::from)).collect();
                if let Some(said) = said.filter(|said| !said.is_empty()) {
                    let cosines: Vec<f64> = self.cosines.iter().map(|c| f64::from(*c)).collect();
                    out.insert("pearson", metrics::pearson(&cosines, &said));
                    out.insert("spearman", metrics::spearman(&cosines, &said));
                }
            }
            Task::Regression => {
                let wanted = examples.iter().map(|e| match e.target {
                    Target::Value { value, .. } => f64::from(value),
                    _ => f64::NAN,
                });
                let given = self.predictions.iter().map(|p| f64::from(p.outputs[0]));
                let (wanted, given): (Vec<f64>, Vec<f64>) = (wanted.collect(), given.collect());
                out.insert("pearson", metrics::pearson(&given, &wanted));
                out.insert("spearman", metrics::spearman(&given, &wanted));
            }
            Task::Classification | Task::PairClassification | Task::TokenClassification => {
                let gold: Vec<Vec<u32>> = examples.iter().map(|example| classes(&example)).collect();
                let predicted: Vec<&Vec<u32>> = self.predictions.iter().map(|p| &p.classes).collect();
                if spec.task == Task::TokenClassification {
                    words(&mut out, &spec.labels, &predicted, &gold);
                    return out;
                }
                let gold: Vec<u32> = gold.concat();
                let predicted: Vec<u32> = predicted.into_iter().flatten().copied().collect();
                out.insert("accuracy", metrics::accuracy(&predicted, &gold));
                out.insert("matthews_correlation", metrics::matthews(&predicted, &gold));
                match spec.labels.len() {
                    2 => out.insert("f1", metrics::f1(&predicted, &gold, 1)),
                    _ => out.insert("f1_macro", metrics::f1_macro(&predicted, &gold)),
                };
            }
        }
        out
    }
}

fn classes(example: &Example) -> Vec<u32> {
    match &example.target {
        Target::Classes(labels) => labels.iter().map(|label| label.target).collect(),
        _ => Vec::new(),
    }
}

/// Accuracy of tags and, where they are BIO tags, the scores of entities.
fn words(
    out: &mut BTreeMap<&'static str, f64>,
    labels: &[String],
    predicted: &[&Vec<u32>],
    gold: &[Vec<u32>],
) {
    let all: Vec<u32> = predicted.iter().flat_map(|tags| tags.iter().copied()).collect();
    out.insert("accuracy", metrics::accuracy(&all, &gold.concat()));
    let tag = |label: &String| label == "O" || label.split_once('-').is_some_and(|(p, _)| p.len() == 1);
    if !labels.iter().all(tag) {
        return;
    }
    let entities = |tags: &[u32]| {
        let names: Vec<&str> = tags.iter().map(|&tag| labels[tag as usize].as_str()).collect();
        metrics::entities(&names)
    };
    let predicted: Vec<_> = predicted.iter().map(|tags| entities(tags)).collect();
    let gold: Vec<_> = gold.iter().map(|tags| entities(tags)).collect();
    let (precision, recall, f1) = metrics::entity_scores(&predicted, &gold);
    out.extend([("precision", precision), ("recall", recall), ("f1", f1)]);
}

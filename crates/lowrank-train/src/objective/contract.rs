//! What every loss implements.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lowrank_engine::{Grads, Tape, Var};
use lowrank_models::Head;

use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples};

/// Metrics by name.
pub type Metrics = BTreeMap<&'static str, f64>;

/// Means in the making: sums and counts by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Means(BTreeMap<&'static str, (f64, u64)>);

impl Means {
    /// Adds a value.
    pub fn add(&mut self, name: &'static str, value: f64) {
        let (sum, count) = self.0.entry(name).or_default();
        *sum += value;
        *count += 1;
    }

    /// Adds the values of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (name, (sum, count)) in &other.0 {
            let own = self.0.entry(name).or_default();
            *own = (own.0 + sum, own.1 + count);
        }
    }

    /// Appends all to a message to another rank.
    pub fn write(&self, message: &mut Vec<u8>) {
        message.extend((self.0.len() as u64).to_le_bytes());
        for (name, (sum, count)) in &self.0 {
            message.extend((name.len() as u64).to_le_bytes());
            message.extend(name.as_bytes());
            message.extend(sum.to_le_bytes());
            message.extend(count.to_le_bytes());
        }
    }

    /// Takes from the front of a message what [`Means::write`] appended.
    pub fn read(message: &mut &[u8]) -> Option<Self> {
        fn word(message: &mut &[u8]) -> Option<[u8; 8]> {
            let (word, rest) = message.split_first_chunk::<8>()?;
            *message = rest;
            Some(*word)
        }
        let mut means = Self::default();
        for _ in 0..u64::from_le_bytes(word(message)?) {
            let length = usize::try_from(u64::from_le_bytes(word(message)?)).ok()?;
            let (name, rest) = message.split_at_checked(length)?;
            *message = rest;
            let (sum, count) = (f64::from_le_bytes(word(message)?), u64::from_le_bytes(word(message)?));
            means.0.insert(known_name(std::str::from_utf8(name).ok()?), (sum, count));
        }
        Some(means)
    }

    /// The means.
    pub fn means(&self) -> Metrics {
        self.0.iter().map(|(name, (sum, count))| (*name, sum / *count as f64)).collect()
    }
}

/// The name of a metric that another rank or a reward has. Names are few, so each is kept for good.
pub(crate) fn known_name(name: &str) -> &'static str {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.push(kept);
    kept
}

/// A loss `l_i` for each target of a batch, and the metrics of the tasks that are trained with it.
///
/// The loss of a step is `sum_i w_i l_i / sum_i w_i` over the targets of all its micro-batches, with the weights
/// `w_i` of [`PackedBatch::weights`].
pub(crate) trait Objective: Sync {
    /// Whether it scores such a batch under such a head.
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool;

    /// The tasks that it trains.
    fn tasks(&self) -> &'static [Task];

    /// Scores the targets of `batch` for a task under a head, on the hidden states of its output rows, `h: [N,D]`. While recording, seeds the
    /// backward pass with the gradient of `sum_i weights[i] losses[i]`; adapters of an output layer accumulate into
    /// `grads`.
    ///
    /// # Panics
    /// Where [`Objective::matches`] says no.
    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        of: (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        grads: &mut Grads,
    ) -> Scores;

    /// Adds to `tally` what the metrics need of a batch without gradients, besides losses, hits and [`Scores::metrics`].
    fn tally(&self, _tally: &mut Tally, _chunk: &[Example], _scores: &Scores) {}

    /// The metrics of `spec` over all batches; `loss` is their mean.
    fn metrics(&self, spec: &TaskSpec, tally: &Tally, loss: f64, examples: &Examples) -> Metrics;
}

/// Losses and outputs of a batch.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// The loss of each target: `-log p(target)` in nats, a mean of such losses over classes, or a squared error.
    pub losses: Vec<f32>,
    /// Whether the likeliest class (token, text) is the target, for each; without gradient only.
    pub hits: Vec<bool>,
    /// Without gradient, what the head gave for each target: scores of classes, values, or the cosines of a text with the texts of the batch. Empty for language models, whose logits never exist all at once.
    pub outputs: Vec<f32>,
    /// What the loss says besides, such as the rewards of completions.
    pub(crate) metrics: Means,
}

impl Scores {
    /// Adds a value to a metric of the batch.
    pub(crate) fn metric(&mut self, name: &'static str, value: f64) {
        self.metrics.add(name, value);
    }
}

impl From<lowrank_engine::Scores> for Scores {
    fn from(scores: lowrank_engine::Scores) -> Self {
        Self { losses: scores.losses, hits: scores.hits, ..Self::default() }
    }
}

/// What the model says of one example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The likeliest class of the text, or of each word; multi-label: those with a probability above 0.5.
    pub classes: Vec<u32>,
    /// What the head gave: a score for each class (of each word), or the values.
    pub outputs: Vec<f32>,
}

/// What the batches of an evaluation gave, in the order of the examples.
#[derive(Default)]
pub(crate) struct Tally {
    /// The loss of each target.
    pub losses: Vec<f32>,
    /// The weight of each target.
    pub weights: Vec<f32>,
    /// Whether the likeliest class is the target, for each.
    pub hits: Vec<bool>,
    /// Examples whose targets are all hits.
    pub exact: usize,
    /// The cosine of each pair of texts.
    pub cosines: Vec<f32>,
    /// For classes and values, what the model says of each example.
    pub predictions: Vec<Prediction>,
    /// What the loss says besides.
    pub metrics: Means,
}

impl Tally {
    /// `sum_i w_i l_i / sum_i w_i`; 0 without targets.
    pub fn mean_loss(&self) -> f64 {
        let sum = |terms: &mut dyn Iterator<Item = f64>| terms.sum::<f64>();
        let weighted = |(l, w): (&f32, &f32)| f64::from(*w) * f64::from(*l);
        let total = sum(&mut self.weights.iter().map(|w| f64::from(*w)));
        sum(&mut self.losses.iter().zip(&self.weights).map(weighted)) / positive(total)
    }

    /// The share of targets that are hits.
    pub fn hit_rate(&self) -> f64 {
        self.hits.iter().filter(|hit| **hit).count() as f64 / self.hits.len().max(1) as f64
    }

    /// Adds a prediction for each example of `chunk`.
    pub fn add_predictions(&mut self, chunk: &[Example], scores: &Scores) {
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

/// A sum of weights to divide by: 1 where it is 0.
pub(crate) fn positive(total: f64) -> f64 {
    if total > 0.0 { total } else { 1.0 }
}

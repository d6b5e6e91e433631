//! Cross-entropy over the next token.

use lowrank_engine::{Grads, Tape, TokenLoss, Var};
use lowrank_models::Head;

use super::contract::{Metrics, Objective, Scores, Tally};
use super::options::LossType;
use crate::pack::PackedBatch;
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Examples};

/// `l_i = -log softmax(W h_r)[t]` for each label with row `r` and token `t`: `W: [V,D]` is the model's output layer. The
/// logits are computed in chunks, so that `[N,V]` never exist at once.
///
/// With `label_smoothing_factor` `e`, `l_i` is `(1 - e)` times this and `e` times the mean of `-log softmax(W h_r)` over all tokens.
/// With `loss_type` dft, `l_i = -p_i log p_i` with a probability `p_i` of which no gradient is taken (Wu et al. 2025).
pub(crate) struct Language;

impl Objective for Language {
    fn matches(&self, head: &Head, batch: &PackedBatch) -> bool {
        matches!(head, Head::Language(_)) && batch.completions.is_empty() && batch.samples.is_empty()
    }

    fn tasks(&self) -> &'static [Task] {
        &[Task::Lm]
    }

    fn score<'m>(
        &self,
        tape: &mut Tape<'m>,
        (spec, head): (&TaskSpec, &'m Head),
        h: Var<'m>,
        batch: &PackedBatch,
        weights: &[f32],
        grads: &mut Grads,
    ) -> Scores {
        let Head::Language(head) = head else { panic!("next-token loss under {}", head.name()) };
        let labels = batch.labels_of_wanted();
        // Evaluations give the cross-entropy and its perplexity.
        let label_smoothing = if tape.records() { spec.loss.label_smoothing_factor as f32 } else { 0.0 };
        if label_smoothing > 0.0 {
            let how = TokenLoss { label_smoothing, ..TokenLoss::default() };
            return tape.cross_entropy_of(how, head, &h, &labels, weights, grads).into();
        }
        if !tape.records() || !spec.loss.losses.iter().any(|(kind, _)| *kind == LossType::Dft) {
            return tape.cross_entropy(head, &h, &labels, weights, grads).into();
        }
        let losses = tape.token_losses(head, &h, &labels);
        let probabilities = losses.iter().map(|loss| (-loss).exp());
        let weights: Vec<f32> = probabilities.zip(weights).map(|(p, weight)| p * weight).collect();
        let mut scores: Scores = tape.cross_entropy(head, &h, &labels, &weights, grads).into();
        scores.losses.iter_mut().for_each(|loss| *loss *= (-*loss).exp());
        scores
    }

    fn tally(&self, tally: &mut Tally, chunk: &[Example], scores: &Scores) {
        let mut rest = &scores.hits[..];
        for example in chunk {
            let (own, others) = rest.split_at(example.labels());
            tally.exact += usize::from(own.iter().all(|hit| *hit));
            rest = others;
        }
    }

    fn metrics(&self, _: &TaskSpec, tally: &Tally, loss: f64, examples: &Examples) -> Metrics {
        let exact = tally.exact as f64 / examples.len().max(1) as f64;
        let token_accuracy = tally.hit_rate();
        Metrics::from([
            ("perplexity", loss.exp()),
            ("token_accuracy", token_accuracy),
            ("exact_match", exact),
        ])
    }
}

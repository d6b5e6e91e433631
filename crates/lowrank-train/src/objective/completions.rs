//! What losses of whole completions have in common: log-probabilities first, then the weight of each token's loss.

use std::ops::Range;

use lowrank_engine::{Grads, Label, LmHead, Tape, TokenLoss, Var};
use lowrank_models::Head;

use super::pair_losses::Completion;
use crate::pack::PackedBatch;

/// The tokens of a pair of completions among the labels of its batch.
pub(super) struct PairTokens {
    /// Of the prompt, where its tokens are labelled.
    pub prompt: Range<usize>,
    /// Of both completions: the chosen and the rejected, or the own and the one of another prompt.
    pub completions: [Range<usize>; 2],
}

/// The tokens of each pair.
pub(super) fn tokens(batch: &PackedBatch) -> Vec<PairTokens> {
    let mut at = 0;
    let mut take = |count: usize| {
        at += count;
        at - count..at
    };
    let of_pair = |pair: &crate::pack::PackedPair| PairTokens {
        prompt: take(pair.prompt_labels),
        completions: pair.labels.map(&mut take),
    };
    batch.completions.iter().map(of_pair).collect()
}

/// The log-probabilities of a pair's completions, from the losses of their tokens and the reference.
pub(super) fn completions(tokens: &PairTokens, losses: &[f32], reference: [f32; 2]) -> [Completion; 2] {
    [0, 1].map(|i| {
        let range = tokens.completions[i].clone();
        let sum: f64 = losses[range.clone()].iter().map(|loss| f64::from(*loss)).sum();
        Completion {
            // As the reference is kept, so that the model that is the reference differs from it by nothing.
            logp: f64::from(-sum as f32),
            reference: reference[i].into(),
            tokens: range.len(),
        }
    })
}

/// The log-probabilities of both completions of each pair.
pub(crate) fn completion_logps<'m>(
    tape: &mut Tape<'m>,
    head: &'m Head,
    h: &Var<'m>,
    batch: &PackedBatch,
) -> Vec<[f32; 2]> {
    let losses = TokenLosses::of(tape, head, h, batch).losses;
    let logps = |pair: &PairTokens| completions(pair, &losses, [0.0; 2]).map(|y| y.logp as f32);
    tokens(batch).iter().map(logps).collect()
}

/// The log-probability of each token of each sampled completion, at a temperature.
pub(crate) fn sample_logps<'m>(
    tape: &mut Tape<'m>,
    head: &'m Head,
    h: &Var<'m>,
    batch: &PackedBatch,
    temperature: f32,
) -> Vec<Vec<f32>> {
    let losses = TokenLosses::at(temperature, tape, head, h, batch).losses;
    let mut rest = losses.into_iter().map(|loss| -loss);
    batch.samples.iter().map(|sample| rest.by_ref().take(sample.labels).collect()).collect()
}

fn at(temperature: f32) -> TokenLoss {
    TokenLoss { temperature, ..TokenLoss::default() }
}

/// The losses of the tokens of a batch, with what the gradient needs.
pub(super) struct TokenLosses<'m> {
    temperature: f32,
    head: &'m LmHead,
    labels: Vec<Label>,
    /// `-log p` of each.
    pub losses: Vec<f32>,
}

impl<'m> TokenLosses<'m> {
    /// Of the labels of `batch` on its hidden states `h`.
    pub fn of(tape: &mut Tape<'m>, head: &'m Head, h: &Var<'m>, batch: &PackedBatch) -> Self {
        Self::at(1.0, tape, head, h, batch)
    }

    /// The same of the distribution at a temperature.
    pub fn at(
        temperature: f32,
        tape: &mut Tape<'m>,
        head: &'m Head,
        h: &Var<'m>,
        batch: &PackedBatch,
    ) -> Self {
        let Head::Language(head) = head else { panic!("a loss of completions under {}", head.name()) };
        let labels = batch.labels_of_wanted().into_owned();
        let losses = tape.token_losses_of(at(temperature), head, h, &labels);
        Self { temperature, head, labels, losses }
    }

    /// Without the losses, for a gradient that does not depend on them.
    pub fn unscored(temperature: f32, head: &'m Head, batch: &PackedBatch) -> Self {
        let Head::Language(head) = head else { panic!("a loss of completions under {}", head.name()) };
        Self { temperature, head, labels: batch.labels_of_wanted().into_owned(), losses: Vec::new() }
    }

    /// Seeds the backward pass with the gradient of `sum_i weights[i] losses[i]`.
    pub fn seed(&self, tape: &mut Tape<'m>, h: &Var<'m>, weights: &[f32], grads: &mut Grads) {
        if tape.records() {
            tape.cross_entropy_of(at(self.temperature), self.head, h, &self.labels, weights, grads);
        }
    }
}

//! The training data as adapters look at it before training ([`lowrank_adapters::calibrate`]).

use std::collections::VecDeque;
use std::iter::Peekable;

use lowrank_adapters::calibrate::{Inputs, Rows};
use lowrank_engine::{ActiveAdapters, Device, Label, Params, Record, Scope, Tape};
use lowrank_models::{Model, TokenBatch};

use crate::batches::Steps;
use crate::{Batches, Example, Examples, Masking, PackedBatch, Target, pack};

/// The batches of a run, in its order, without their losses.
pub struct TrainingInputs<'a> {
    model: &'a dyn Model,
    device: &'a Device,
    examples: &'a Examples,
    masking: Option<Masking>,
    steps: Peekable<Steps<'a>>,
    /// The epoch it is in, and its micro-batches of the step at hand that are still to come.
    epoch: u64,
    waiting: VecDeque<Vec<usize>>,
    /// Batches so far.
    seen: u64,
    batch: PackedBatch,
    params: Params,
}

impl<'a> TrainingInputs<'a> {
    /// From the first batch on.
    pub fn new(
        model: &'a dyn Model,
        device: &'a Device,
        examples: &'a Examples,
        batches: &'a Batches,
        masking: Option<Masking>,
    ) -> Self {
        Self {
            model,
            device,
            examples,
            masking,
            steps: batches.starting_at(0).peekable(),
            epoch: 0,
            waiting: VecDeque::new(),
            seen: 0,
            batch: pack(&[], false),
            params: Params::default(),
        }
    }
}

impl Inputs for TrainingInputs<'_> {
    fn next(&mut self) -> Option<Rows> {
        if self.waiting.is_empty() {
            let epoch = self.steps.peek()?.epoch;
            if std::mem::replace(&mut self.epoch, epoch) != epoch {
                return None;
            }
            self.waiting = self.steps.next()?.micro_batches.into();
        }
        let indices = self.waiting.pop_front()?;
        let stored: Vec<Example> = self.examples.batch(indices).into_iter().map(first_text).collect();
        let examples = Masking::apply(self.masking.as_ref(), &stored.iter().collect::<Vec<_>>(), self.seen);
        self.seen += 1;
        // Whole examples, as the layers see them in generation, and no losses.
        let whole = |example: &Example| Example {
            target: match &example.target {
                Target::Pair(first) => Target::Pair(*first),
                _ => Target::Classes(Vec::new()),
            },
            ..example.clone()
        };
        let mut rows = Rows::default();
        for (example, stored) in examples.iter().zip(&stored) {
            let (start, n) = (rows.learned.len(), example.tokens.len());
            rows.examples.push(start..start + n);
            rows.learned.extend(learned(example, &stored.target));
        }
        let whole: Vec<Example> = examples.iter().map(|example| whole(example)).collect();
        self.batch = pack(&whole.iter().collect::<Vec<_>>(), false);
        Some(rows)
    }

    fn run(&mut self, adapters: &ActiveAdapters) {
        let scope = Scope::inference(self.device, &self.params);
        let mut tape = Tape::new(scope, adapters, Record::Nothing);
        // Every row is looked at on its way.
        let batch = TokenBatch { output_rows: None, ..self.batch.token_batch() };
        self.model.hidden(&mut tape, &batch);
    }
}

/// Of two completions, the prompt with the first.
fn first_text(mut example: Example) -> Example {
    if let Target::Completions { first, .. } | Target::Rewards { first, .. } = example.target {
        example.tokens.truncate(example.prompt_len + first);
    }
    example
}

/// Which tokens of an example are to be learned: all, where the loss is that of the whole text.
fn learned(example: &Example, was: &Target) -> Vec<bool> {
    match was {
        Target::Next => {
            let mut learned = example.loss_mask.clone();
            // Nothing predicts the first token of a text, but it is one of it.
            if let Some(first) = learned.first_mut() {
                *first |= example.prompt_len == 0;
            }
            learned
        }
        Target::Masked => {
            let mut learned = vec![false; example.tokens.len()];
            if let Target::Classes(labels) = &example.target {
                labels.iter().for_each(|Label { row, .. }| learned[*row as usize] = true);
            }
            learned
        }
        Target::Completions { .. } => (0..example.tokens.len()).map(|at| at >= example.prompt_len).collect(),
        Target::Classes(_)
        | Target::ClassSet { .. }
        | Target::Values { .. }
        | Target::Pair(_)
        | Target::Prompt(_)
        | Target::Rewards { .. } => vec![true; example.tokens.len()],
    }
}

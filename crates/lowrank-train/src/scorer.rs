//! Forward passes without optimiser or gradients: losses, predictions and embeddings.

use lowrank_adapters::AdapterSet;
use lowrank_comm::{Communicator, Single};
use lowrank_engine::{Device, Grads, Record, Scope, Tape};
use lowrank_models::{Model, TokenBatch};

use crate::objective::{self, Scores};
use crate::pack::{PackedBatch, pack};
use crate::task::Task;
use crate::task_spec::TaskSpec;
use crate::{Example, Masking, Target};

/// A model with an adapter, for a task.
#[derive(Clone, Copy)]
pub struct Scorer<'a> {
    model: &'a dyn Model,
    adapters: &'a AdapterSet,
    device: &'a Device,
    task: &'a TaskSpec,
    masking: Option<Masking>,
    comm: &'a dyn Communicator,
}

/// The task of a scorer that was given none.
static LANGUAGE: TaskSpec = TaskSpec::new(Task::Lm, Vec::new());

impl<'a> Scorer<'a> {
    /// Scores next tokens.
    pub fn new(model: &'a dyn Model, adapters: &'a AdapterSet, device: &'a Device) -> Self {
        Self { model, adapters, device, task: &LANGUAGE, masking: None, comm: &Single }
    }

    /// The same for another task; `masking` is for masked language models.
    pub fn for_task(self, task: &'a TaskSpec, masking: Option<Masking>) -> Self {
        Self { task, masking, ..self }
    }

    /// The same for several ranks, which share the batches of an evaluation.
    pub fn with_communicator(self, comm: &'a dyn Communicator) -> Self {
        Self { comm, ..self }
    }

    /// The ranks that share its work.
    pub fn communicator(&self) -> &'a dyn Communicator {
        self.comm
    }

    /// What it scores.
    pub fn task(&self) -> &'a TaskSpec {
        self.task
    }

    /// Lays out a batch; where tokens are to be hidden, `pass` says which.
    pub fn pack(&self, examples: &[&Example], share_prefix: bool, pass: u64) -> PackedBatch {
        let examples = Masking::apply(self.masking.as_ref(), examples, pass);
        let examples: Vec<&Example> = examples.iter().map(|example| &**example).collect();
        let active = &self.adapters.active;
        if active.virtual_tokens == 0 {
            return pack(&examples, share_prefix);
        }
        // What precedes a prefix is no row, so nothing predicts a text's first token.
        let first = VirtualTokens {
            ids: (self.model.info().vocab as u32..).take(active.virtual_tokens).collect(),
            predict_first: active.prefix.is_none(),
        };
        let longer: Vec<Example> = examples.iter().map(|example| first.before(example)).collect();
        let mut batch = pack(&longer.iter().collect::<Vec<_>>(), share_prefix);
        batch.real_tokens -= longer.len() * active.virtual_tokens;
        batch
    }

    /// Scores the targets of a batch.
    pub fn score(&self, batch: &PackedBatch) -> Scores {
        let mut tape = self.tape();
        let h = self.model.hidden(&mut tape, &batch.token_batch());
        let head = self.model.head();
        let objective = objective::of_batch(head, batch);
        objective.score(&mut tape, (self.task, head), h, batch, &batch.weights, &mut Grads::default())
    }

    /// The log-probabilities of both completions of each prompt of a batch.
    ///
    /// # Panics
    /// Where the model has no language-model head.
    pub fn completion_logps(&self, batch: &PackedBatch) -> Vec<[f32; 2]> {
        let mut tape = self.tape();
        let h = self.model.hidden(&mut tape, &batch.token_batch());
        objective::completion_logps(&mut tape, self.model.head(), &h, batch)
    }

    /// The log-probability of each token of each sampled completion of a batch, at a temperature.
    ///
    /// # Panics
    /// Where the model has no language-model head.
    pub fn sample_logps(&self, batch: &PackedBatch, temperature: f32) -> Vec<Vec<f32>> {
        let mut tape = self.tape();
        let h = self.model.hidden(&mut tape, &batch.token_batch());
        objective::sample_logps(&mut tape, self.model.head(), &h, batch, temperature)
    }

    /// The sentence embedding of each text of a batch: the mean of its hidden states, at length 1.
    pub fn embed(&self, batch: &PackedBatch) -> Vec<Vec<f32>> {
        let mut tape = self.tape();
        let h = self.model.hidden(&mut tape, &TokenBatch { output_rows: None, ..batch.token_batch() });
        let texts: Vec<_> = batch.segments.iter().map(|segment| segment.q.clone()).collect();
        let mean = tape.mean_rows(&h, &texts);
        let y = tape.normalize(&mean).tensor;
        self.device.to_vec(&y).chunks_exact(y.cols()).map(<[f32]>::to_vec).collect()
    }

    fn tape<'t>(&'t self) -> Tape<'t> {
        let scope = Scope::inference(self.device, &self.adapters.params);
        Tape::new(scope, &self.adapters.active, Record::Nothing)
    }
}

/// The virtual tokens that every text begins with.
struct VirtualTokens {
    ids: Vec<u32>,
    predict_first: bool,
}

impl VirtualTokens {
    /// The example with them before it, as part of its prompt.
    fn before(&self, example: &Example) -> Example {
        let next = matches!(example.target, Target::Next | Target::Completions { .. });
        assert!(next, "virtual tokens are for language models");
        let mut longer = example.clone();
        longer.tokens = [&self.ids[..], &example.tokens].concat();
        longer.loss_mask = vec![false; self.ids.len()];
        longer.loss_mask.extend(&example.loss_mask);
        if let Some(mask) = longer.loss_mask.get_mut(self.ids.len()) {
            *mask &= self.predict_first;
        }
        longer.prompt_len += self.ids.len();
        longer
    }
}

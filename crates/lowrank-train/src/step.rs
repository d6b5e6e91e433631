//! One optimiser step, the same code for training and for planning.

use lowrank_adapters::AdapterSet;
use lowrank_engine::{AdamW, Device, DropoutKey, Grads, Record, Scope, Tape};
use lowrank_models::{Model, TokenBatch};

use crate::objective::{self, Scores};
use crate::{Error, Example, Masking, PackedBatch, Target, TaskSpec, pack};

/// What a step needs to know besides its batches.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    /// Keep only block inputs and run each block again in the backward pass.
    pub checkpoint_activations: bool,
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// Longest gradient; 0 does not clip.
    pub max_grad_norm: f64,
    /// Of dropout.
    pub seed: u64,
}

/// What a step came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Mean loss over the labelled tokens, in nats, and the adapter's penalty where it has one.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// A model with the adapter that is trained on it.
pub struct Stepper<'m> {
    model: &'m dyn Model,
    /// The adapter.
    pub adapters: AdapterSet,
    /// The optimiser with its moments.
    pub optimizer: AdamW,
    grads: Grads,
    device: Device,
    options: StepOptions,
    task: TaskSpec,
    masking: Option<Masking>,
}

impl<'m> Stepper<'m> {
    /// Ready for the first step. On the Plan device nothing is computed and everything counted.
    pub fn new(model: &'m dyn Model, adapters: AdapterSet, device: Device, options: StepOptions) -> Self {
        let optimizer = AdamW::new(&adapters.params, options.weight_decay);
        let grads = Grads::zeros(&adapters.params);
        let (task, masking) = (TaskSpec::default(), None);
        Self { model, adapters, optimizer, grads, device, options, task, masking }
    }

    /// The same for another task than the next token; `masking` is for masked language models.
    pub fn for_task(self, task: TaskSpec, masking: Option<Masking>) -> Self {
        Self { task, masking, ..self }
    }

    /// What it is trained for.
    pub fn task(&self) -> &TaskSpec {
        &self.task
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

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The gradients of the last step.
    pub fn grads(&self) -> &Grads {
        &self.grads
    }

    /// Runs the micro-batches forward and backward: the loss is the mean over all their labelled tokens,
    /// the gradients are left in [`Stepper::grads`].
    ///
    /// # Errors
    /// Where the loss or its gradient is no finite number.
    pub fn gradients(&mut self, micro_batches: &[PackedBatch]) -> Result<Outcome, Error> {
        self.grads.clear(&self.device);
        let labels: usize = micro_batches.iter().map(PackedBatch::targets).sum();
        let mut loss = 0.0;
        for (i, batch) in micro_batches.iter().enumerate() {
            let pass = (self.optimizer.step << 16) | i as u64;
            let scores = self.accumulate(batch, 1.0 / labels.max(1) as f32, pass);
            loss += scores.losses.iter().map(|l| f64::from(*l)).sum::<f64>();
        }
        let penalty = match &self.adapters.training_hook {
            Some(hook) => hook.penalty(&self.device, &self.adapters.params, &mut self.grads),
            None => 0.0,
        };
        let outcome =
            Outcome { loss: penalty + loss / labels.max(1) as f64, grad_norm: self.grads.norm(&self.device) };
        if !outcome.loss.is_finite() || !outcome.grad_norm.is_finite() {
            let examples = micro_batches.iter().flat_map(|b| &b.ids).map(ToString::to_string).collect();
            return Err(Error::NotFinite {
                step: self.optimizer.step + 1,
                loss: outcome.loss,
                grad_norm: outcome.grad_norm,
                examples,
            });
        }
        Ok(outcome)
    }

    /// One optimiser step with learning rate `lr`.
    ///
    /// # Errors
    /// As [`Stepper::gradients`]; then nothing was changed.
    pub fn step(&mut self, micro_batches: &[PackedBatch], lr: f64) -> Result<Outcome, Error> {
        let outcome = self.gradients(micro_batches)?;
        let max = self.options.max_grad_norm;
        if max > 0.0 {
            // torch.nn.utils.clip_grad_norm_ adds the same 1e-6.
            let factor = max / (outcome.grad_norm + 1e-6);
            if factor < 1.0 {
                self.grads.scale(&self.device, factor as f32);
            }
        }
        self.optimizer.update(&self.device, &mut self.adapters.params, &self.grads, lr);
        if let Some(hook) = &mut self.adapters.training_hook {
            hook.after_step(&self.device, self.optimizer.step, &mut self.adapters.params, &self.grads);
        }
        Ok(outcome)
    }

    fn accumulate(&mut self, batch: &PackedBatch, scale: f32, pass: u64) -> Scores {
        let record = if self.options.checkpoint_activations { Record::Checkpoints } else { Record::All };
        let dropout = Some(DropoutKey { seed: self.options.seed, pass });
        let scope = Scope { device: &self.device, params: &self.adapters.params, dropout };
        let mut tape = Tape::new(scope, &self.adapters.active, record);
        let h = self.model.hidden(&mut tape, &token_batch(batch));
        let scores = objective::score(&mut tape, self.model.head(), h, batch, scale, &mut self.grads);
        tape.backward(&mut self.grads);
        scores
    }

    /// Scores a batch without training on it.
    pub fn score(&self, batch: &PackedBatch) -> Scores {
        let scope = Scope { device: &self.device, params: &self.adapters.params, dropout: None };
        let mut tape = Tape::new(scope, &self.adapters.active, Record::Nothing);
        let h = self.model.hidden(&mut tape, &token_batch(batch));
        objective::score(&mut tape, self.model.head(), h, batch, 1.0, &mut Grads::default())
    }

    /// The sentence embedding of each text of a batch: the mean of its hidden states, at length 1.
    pub fn embed(&self, batch: &PackedBatch) -> Vec<Vec<f32>> {
        let scope = Scope { device: &self.device, params: &self.adapters.params, dropout: None };
        let mut tape = Tape::new(scope, &self.adapters.active, Record::Nothing);
        let h = self.model.hidden(&mut tape, &TokenBatch { output_rows: None, ..token_batch(batch) });
        let texts: Vec<_> = batch.segments.iter().map(|segment| segment.q.clone()).collect();
        let mean = tape.mean_rows(&h, &texts);
        let y = tape.normalize(&mean).tensor;
        self.device.to_vec(&y).chunks_exact(y.cols()).map(<[f32]>::to_vec).collect()
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
        assert_eq!(example.target, Target::Next, "virtual tokens are for language models");
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

pub(crate) fn token_batch(batch: &PackedBatch) -> TokenBatch<'_> {
    let PackedBatch { tokens, positions, lengths, token_types, segments, output_rows, .. } = batch;
    TokenBatch { tokens, positions, lengths, token_types, segments, output_rows: output_rows.as_deref() }
}

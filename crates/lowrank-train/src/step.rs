//! One optimiser step, the same code for training and for planning.

use lowrank_adapters::AdapterSet;
use lowrank_engine::{AdamW, Device, DropoutKey, Grads, Record, Scope, Tape};
use lowrank_models::Model;

use crate::error::{Kept, NotFinite};
use crate::objective::{self, Means, Metrics, Scores, positive};
use crate::scorer::Scorer;
use crate::{Error, Example, Masking, PackedBatch, TaskSpec};

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
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Weighted mean loss over the targets, in nats or squared errors, and the adapter's penalty where it has one.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// What the loss says besides: means over the examples of the step.
    pub metrics: Metrics,
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
        self.scorer().pack(examples, share_prefix, pass)
    }

    /// The model with the adapter as it is now, to score with.
    pub fn scorer(&self) -> Scorer<'_> {
        Scorer::new(self.model, &self.adapters, &self.device).for_task(&self.task, self.masking)
    }

    /// The base model.
    pub(crate) fn model(&self) -> &'m dyn Model {
        self.model
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The gradients of the last step.
    pub fn grads(&self) -> &Grads {
        &self.grads
    }

    /// Runs the micro-batches forward and backward: the loss is `sum_i w_i l_i / sum_i w_i` over all their
    /// targets, with their weights `w_i`; the gradients are left in [`Stepper::grads`].
    ///
    /// # Errors
    /// Where the loss or its gradient is no finite number.
    pub fn gradients(&mut self, micro_batches: &[PackedBatch]) -> Result<Outcome, Error> {
        self.grads.clear(&self.device);
        let weights = micro_batches.iter().flat_map(|batch| &batch.weights);
        let total = positive(weights.map(|w| f64::from(*w)).sum());
        let (mut loss, mut metrics) = (0.0, Means::default());
        for (i, batch) in micro_batches.iter().enumerate() {
            let pass = (self.optimizer.step << 16) | i as u64;
            let scores = self.accumulate(batch, 1.0 / total as f32, pass);
            let weighted = |(l, w): (&f32, &f32)| f64::from(*w) * f64::from(*l);
            metrics.merge(&scores.metrics);
            loss += scores.losses.iter().zip(&batch.weights).map(weighted).sum::<f64>();
        }
        let penalty = match &self.adapters.training_hook {
            Some(hook) => hook.penalty(&self.device, &self.adapters.params, &mut self.grads),
            None => 0.0,
        };
        let (loss, grad_norm) = (penalty + loss / total, self.grads.norm(&self.device));
        let outcome = Outcome { loss, grad_norm, metrics: metrics.means() };
        if !outcome.loss.is_finite() || !outcome.grad_norm.is_finite() {
            let examples = micro_batches.iter().flat_map(|b| &b.ids).map(ToString::to_string).collect();
            return Err(Error::NotFinite(Box::new(NotFinite {
                step: self.optimizer.step + 1,
                loss: outcome.loss,
                grad_norm: outcome.grad_norm,
                examples,
                checkpoint: Kept::NoCheckpoint,
                cause: None,
            })));
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
        if let Some(hook) = &self.adapters.training_hook {
            hook.before_update(&self.device, &mut self.grads);
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
        let scope = Scope { device: &self.device, params: &self.adapters.params, dropout, rows: None };
        let mut tape = Tape::new(scope, &self.adapters.active, record);
        let h = self.model.hidden(&mut tape, &batch.token_batch());
        let weights: Vec<f32> = batch.weights.iter().map(|w| w * scale).collect();
        let head = self.model.head();
        let objective = objective::of_batch(head, batch);
        let scores = objective.score(&mut tape, (&self.task, head), h, batch, &weights, &mut self.grads);
        tape.backward(&mut self.grads);
        scores
    }
}

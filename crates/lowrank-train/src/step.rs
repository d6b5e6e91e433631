//! One optimiser step, the same code for training and for planning.

use std::ops::Range;
use std::sync::Arc;

use lowrank_adapters::AdapterSet;
use lowrank_comm::{Communicator, Single, SumTree, all_reduce_sum};
use lowrank_engine::{AdamW, Device, DropoutKey, Grads, Record, Scope, Tape};
use lowrank_models::Model;

use crate::error::{Kept, NotFinite};
use crate::objective::{self, Means, Metrics, Scores, positive};
use crate::scorer::Scorer;
use crate::shards::{Shard, split};
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
    /// For the gradients of shards until they are added.
    spare: Vec<Grads>,
    device: Device,
    options: StepOptions,
    task: TaskSpec,
    masking: Option<Masking>,
    comm: Arc<dyn Communicator>,
    base_dropout: bool,
}

impl<'m> Stepper<'m> {
    /// Ready for the first step. On the Plan device nothing is computed and everything counted.
    pub fn new(model: &'m dyn Model, adapters: AdapterSet, device: Device, options: StepOptions) -> Self {
        let optimizer = AdamW::new(&adapters.params, options.weight_decay);
        let grads = Grads::zeros(&adapters.params);
        let (task, masking, spare, comm) = (TaskSpec::default(), None, Vec::new(), Arc::new(Single));
        let base_dropout = false;
        Self { model, adapters, optimizer, grads, spare, device, options, task, masking, comm, base_dropout }
    }

    /// The same with the base model's own dropouts in training, or without.
    pub fn with_base_dropout(self, base_dropout: bool) -> Self {
        Self { base_dropout, ..self }
    }

    /// The same as one of several ranks, which share the shards of a step and each take the whole step.
    pub fn with_communicator(self, comm: Arc<dyn Communicator>) -> Self {
        Self { comm, ..self }
    }

    /// The ranks that share its steps.
    pub fn communicator(&self) -> &dyn Communicator {
        &*self.comm
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

    /// Lays out the micro-batches of step `step` (from 0) as at most `most` shards ([`split`]).
    pub fn lay_out(
        &self,
        micro_batches: &[Vec<Example>],
        share_prefix: bool,
        most: usize,
        step: u64,
    ) -> Vec<Shard> {
        let mut pass = step << 16;
        let mut shards = Vec::new();
        for parts in split(micro_batches, share_prefix, most) {
            let mut shard = Vec::new();
            for part in parts {
                let chosen: Vec<&Example> = part.iter().map(|&(batch, i)| &micro_batches[batch][i]).collect();
                shard.push(self.pack(&chosen, share_prefix, pass));
                pass += 1;
            }
            shards.push(shard);
        }
        shards
    }

    /// The model with the adapter as it is now, to score with.
    pub fn scorer(&self) -> Scorer<'_> {
        let scorer = Scorer::new(self.model, &self.adapters, &self.device);
        scorer.for_task(&self.task, self.masking).with_communicator(&*self.comm)
    }

    /// The same model with another adapter.
    pub(crate) fn scorer_with<'s>(&'s self, adapters: &'s AdapterSet) -> Scorer<'s> {
        let scorer = Scorer::new(self.model, adapters, &self.device);
        scorer.for_task(&self.task, self.masking).with_communicator(&*self.comm)
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

    /// Bytes of the gradients of shards that wait to be added.
    pub fn spare_bytes(&self) -> usize {
        self.spare.len() * self.grads.count() * size_of::<f32>()
    }

    /// [`Stepper::gradients_of`] micro-batches that are not split.
    ///
    /// # Errors
    /// As [`Stepper::gradients_of`].
    pub fn gradients(&mut self, micro_batches: &[PackedBatch]) -> Result<Outcome, Error> {
        self.gradients_of(&[micro_batches])
    }

    /// Runs the shards of a step forward and backward, each rank its own: the loss is `sum_i w_i l_i / sum_i w_i` over
    /// all their targets, with their weights `w_i`; the gradients are left in [`Stepper::grads`].
    ///
    /// # Errors
    /// Where the loss or its gradient is no finite number, or another rank does not answer.
    pub fn gradients_of(&mut self, shards: &[impl AsRef<[PackedBatch]>]) -> Result<Outcome, Error> {
        let shards: Vec<&[PackedBatch]> = shards.iter().map(AsRef::as_ref).collect();
        let batches = || shards.iter().copied().flatten();
        let total = positive(batches().flat_map(|batch| &batch.weights).map(|w| f64::from(*w)).sum());
        let (loss, metrics) = self.sum_shards(&shards, total)?;
        let penalty = match &self.adapters.training_hook {
            Some(hook) => hook.penalty(&self.device, &self.adapters.params, &mut self.grads),
            None => 0.0,
        };
        let (loss, grad_norm) = (penalty + loss / total, self.grads.norm(&self.device));
        let outcome = Outcome { loss, grad_norm, metrics: metrics.means() };
        if !outcome.loss.is_finite() || !outcome.grad_norm.is_finite() {
            return Err(Error::NotFinite(Box::new(NotFinite {
                step: self.optimizer.step + 1,
                loss: outcome.loss,
                grad_norm: outcome.grad_norm,
                examples: batches().flat_map(|b| &b.ids).map(ToString::to_string).collect(),
                checkpoint: Kept::NoCheckpoint,
                cause: None,
            })));
        }
        Ok(outcome)
    }

    /// One optimiser step with learning rate `lr` over micro-batches that are not split.
    ///
    /// # Errors
    /// As [`Stepper::step_over`].
    pub fn step(&mut self, micro_batches: &[PackedBatch], lr: f64) -> Result<Outcome, Error> {
        self.step_over(&[micro_batches], lr)
    }

    /// One optimiser step over shards with learning rate `lr`.
    ///
    /// # Errors
    /// As [`Stepper::gradients_of`]; then nothing was changed.
    pub fn step_over(&mut self, shards: &[impl AsRef<[PackedBatch]>], lr: f64) -> Result<Outcome, Error> {
        let outcome = self.gradients_of(shards)?;
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

    /// Leaves the sum of the gradients of `shards` in `grads`, and returns the sum of their weighted losses and of their metrics. All
    /// are added in an order that does not depend on the ranks.
    fn sum_shards(&mut self, shards: &[&[PackedBatch]], total: f64) -> Result<(f64, Means), Error> {
        let (tree, comm) = (SumTree::new(shards.len()), self.comm.clone());
        let (rank, size) = (comm.rank(), comm.size());
        let mut said = vec![Said::default(); shards.len()];
        self.spare.push(std::mem::take(&mut self.grads));
        let nodes = tree.nodes(rank, size);
        let mut sums: Vec<Grads> =
            nodes.iter().map(|node| self.sum_node(node, shards, total, &mut said)).collect();
        if size == 1 {
            self.grads = sums.swap_remove(0);
        } else {
            let values: Vec<Vec<f32>> = sums.iter().map(|sum| sum.to_vec(&self.device)).collect();
            self.spare.extend(sums);
            self.grads = self.spare.pop().expect("the one that was put there");
            let mut sum = vec![0.0; self.grads.count()];
            all_reduce_sum(&*comm, tree, &values, &mut sum)?;
            self.grads.set(&self.device, &sum);
            said = share(&*comm, &said[tree.share(rank, size)])?;
        }
        let (mut loss, mut metrics) = (0.0, Means::default());
        for shard in &said {
            loss += shard.loss;
            metrics.merge(&shard.metrics);
        }
        Ok((loss, metrics))
    }

    /// The gradients of a node of the tree; the loss of each shard is written to `said`.
    fn sum_node(
        &mut self,
        node: &Range<usize>,
        shards: &[&[PackedBatch]],
        total: f64,
        said: &mut [Said],
    ) -> Grads {
        if let Some([left, right]) = SumTree::children(node) {
            let mut sum = self.sum_node(&left, shards, total, said);
            let other = self.sum_node(&right, shards, total, said);
            sum.add(&self.device, &other);
            self.spare.push(other);
            return sum;
        }
        let mut grads = self.spare.pop().unwrap_or_else(|| Grads::zeros(&self.adapters.params));
        grads.clear(&self.device);
        let first: usize = shards[..node.start].iter().map(|shard| shard.len()).sum();
        for (i, batch) in shards[node.start].iter().enumerate() {
            let pass = (self.optimizer.step << 16) | (first + i) as u64;
            let scores = self.accumulate(batch, 1.0 / total as f32, pass, &mut grads);
            let weighted = |(l, w): (&f32, &f32)| f64::from(*w) * f64::from(*l);
            said[node.start].metrics.merge(&scores.metrics);
            said[node.start].loss += scores.losses.iter().zip(&batch.weights).map(weighted).sum::<f64>();
        }
        grads
    }

    fn accumulate(&self, batch: &PackedBatch, scale: f32, pass: u64, grads: &mut Grads) -> Scores {
        let record = if self.options.checkpoint_activations { Record::Checkpoints } else { Record::All };
        let dropout = Some(DropoutKey { seed: self.options.seed, pass, base: self.base_dropout });
        let noise = self.task.loss.neftune_noise_alpha.map(|alpha| alpha as f32);
        let scope = Scope { device: &self.device, params: &self.adapters.params, dropout, noise, rows: None };
        let mut tape = Tape::new(scope, &self.adapters.active, record);
        let h = self.model.hidden(&mut tape, &batch.token_batch());
        let weights: Vec<f32> = batch.weights.iter().map(|w| w * scale).collect();
        let head = self.model.head();
        let objective = objective::of_batch(head, batch);
        let scores = objective.score(&mut tape, (&self.task, head), h, batch, &weights, grads);
        tape.backward(grads);
        scores
    }
}

/// What a shard came to besides its gradients.
#[derive(Clone, Default)]
struct Said {
    /// The weighted sum of its losses.
    loss: f64,
    metrics: Means,
}

/// What the shards of all ranks came to, in their order.
fn share(comm: &dyn Communicator, own: &[Said]) -> Result<Vec<Said>, Error> {
    let mut bytes = Vec::new();
    for shard in own {
        bytes.extend(shard.loss.to_le_bytes());
        shard.metrics.write(&mut bytes);
    }
    let all = comm.all_gather(&bytes)?.concat();
    let mut rest = &all[..];
    let mut next = || {
        let (loss, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        Some(Said { loss: f64::from_le_bytes(*loss), metrics: Means::read(&mut rest)? })
    };
    let mut shards = Vec::new();
    while let Some(shard) = next() {
        shards.push(shard);
    }
    Ok(shards)
}

//! The tape: what ran forward, to be run backward once.
//!
//! A [`Var`] is a tensor and, where it requires a gradient, a [`VarId`]. An operation of which no input requires a
//! gradient and that has no adapter is not recorded: work below the first trainable site leaves nothing behind. Running
//! backward consumes the nodes one by one, so that what they saved is freed as soon as it was used.

use std::cell::RefCell;
use std::rc::Rc;

use crate::accumulator::Accumulator;
use crate::adapter::ActiveAdapters;
use crate::cache::KvCache;
use crate::device::Device;
use crate::params::Grads;
use crate::scope::Scope;
use crate::tensor::{Saved, Tensor};

/// Id of a value that requires a gradient.
pub type VarId = usize;

/// A value on the tape.
#[derive(Clone)]
pub struct Var<'m> {
    /// The value.
    pub tensor: Tensor,
    /// `None`: no gradient is required.
    pub id: Option<VarId>,
    /// How to compute it again from what is saved anyway.
    pub(crate) recompute: Option<Rc<dyn Recompute + 'm>>,
}

impl<'m> Var<'m> {
    /// A value without gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, id: None, recompute: None }
    }

    /// A value whose gradient is not asked for again by what made it: an output of an operation.
    pub(crate) fn output(tensor: Tensor, id: Option<VarId>) -> Self {
        Self { tensor, id, recompute: None }
    }

    /// What a backward pass saves of it: how to compute it again, where that is known.
    pub(crate) fn save(&self, scope: &Scope<'_>) -> Rc<dyn Recompute + 'm> {
        let Some(recompute) = &self.recompute else { return Rc::new(scope.device.save(&self.tensor)) };
        recompute.save(scope.device, &self.tensor);
        recompute.clone()
    }
}

/// A saved value: cheap to compute again from its inputs (a norm, an activation), or the value itself.
pub(crate) trait Recompute {
    /// Says that the value, which is `tensor`, will be asked for.
    fn save(&self, _device: &Device, _tensor: &Tensor) {}

    /// Computes the value, or returns the one computed a moment ago.
    fn get(&self, scope: &Scope<'_>) -> Tensor;
}

impl Recompute for Saved {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        scope.device.restore(self)
    }
}

/// One recorded operation.
pub(crate) trait Node<'m> {
    /// Takes the gradient of its output from `back` and accumulates those of its inputs.
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>);
}

/// The gradients of values during the backward pass.
pub(crate) struct Backward<'g, 'm> {
    pub scope: Scope<'m>,
    pub adapters: &'m ActiveAdapters,
    pub grads: &'g mut Grads,
    pub(crate) vars: Vec<Option<Tensor>>,
}

impl Backward<'_, '_> {
    /// The finished gradient of an output; `None` where nothing depended on it.
    pub fn take(&mut self, id: VarId) -> Option<Tensor> {
        self.vars[id].take()
    }

    /// The gradient of an input, to accumulate into and [`Backward::put`] back.
    pub fn open(&mut self, id: VarId, rows: usize, cols: usize) -> Accumulator {
        match self.vars[id].take() {
            Some(tensor) => Accumulator::holding(tensor),
            None => Accumulator::fresh(self.scope.alloc(rows, cols)),
        }
    }

    /// Gives an opened gradient back.
    pub fn put(&mut self, id: VarId, gradient: Accumulator) {
        self.vars[id] = Some(gradient.tensor);
    }

    /// Accumulates a whole gradient, by moving it where there was none.
    pub fn add(&mut self, id: VarId, gradient: Tensor) {
        match &mut self.vars[id] {
            Some(have) => self.scope.device.add(have, &gradient),
            slot => *slot = Some(gradient),
        }
    }
}

/// Whether and how a tape records.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// Nothing is kept: inference, or the first run of a checkpointed block.
    Nothing,
    /// Everything the backward pass needs.
    All,
    /// Only the inputs of blocks; each block runs again in the backward pass.
    Checkpoints,
}

/// Records one forward pass.
pub struct Tape<'m> {
    /// Device, parameters, dropout.
    pub scope: Scope<'m>,
    /// The adapters in use.
    pub adapters: &'m ActiveAdapters,
    /// Keys and values of earlier tokens, when generating.
    pub cache: Option<&'m RefCell<KvCache>>,
    pub(crate) record: Record,
    pub(crate) nodes: Vec<Box<dyn Node<'m> + 'm>>,
    pub(crate) next: VarId,
    /// Blocks of the model so far.
    pub(crate) blocks: usize,
    pub(crate) seeds: Vec<(VarId, Tensor)>,
    /// Rows of virtual tokens, and which of them each is.
    pub(crate) virtual_rows: Rc<[(usize, usize)]>,
}

impl<'m> Tape<'m> {
    /// An empty tape.
    pub fn new(scope: Scope<'m>, adapters: &'m ActiveAdapters, record: Record) -> Self {
        Self {
            scope,
            adapters,
            cache: None,
            record,
            nodes: Vec::new(),
            next: 0,
            blocks: 0,
            seeds: Vec::new(),
            virtual_rows: Rc::default(),
        }
    }

    /// A tape for inference that reads and extends `cache`.
    pub fn with_cache(scope: Scope<'m>, adapters: &'m ActiveAdapters, cache: &'m RefCell<KvCache>) -> Self {
        Self { cache: Some(cache), ..Self::new(scope, adapters, Record::Nothing) }
    }

    /// Whether a backward pass will follow.
    pub fn records(&self) -> bool {
        self.record != Record::Nothing
    }

    /// A new id for an output, where `needed`.
    pub(crate) fn id(&mut self, needed: bool) -> Option<VarId> {
        needed.then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Whether an operation has to keep what its backward pass needs.
    pub(crate) fn keeps(&self, out: Option<VarId>) -> bool {
        out.is_some() && self.record != Record::Nothing
    }

    pub(crate) fn push(&mut self, node: impl Node<'m> + 'm) {
        self.nodes.push(Box::new(node));
    }

    /// Says that `gradient` is (part of) the gradient of the loss with respect to `var`.
    pub fn seed(&mut self, var: &Var<'m>, gradient: Tensor) {
        if let Some(id) = var.id {
            self.seeds.push((id, gradient));
        }
    }

    /// Runs backward from the seeds and accumulates into `grads`.
    pub fn backward(self, grads: &mut Grads) {
        self.backward_to(grads, []);
    }

    /// The same; returns the gradients of some values of the tape.
    pub(crate) fn backward_to<const N: usize>(
        self,
        grads: &mut Grads,
        wanted: [Option<VarId>; N],
    ) -> [Option<Tensor>; N] {
        let vars = vec![None; self.next];
        let mut back = Backward { scope: self.scope, adapters: self.adapters, grads, vars };
        for (id, gradient) in self.seeds {
            back.add(id, gradient);
        }
        for node in self.nodes.into_iter().rev() {
            node.backward(&mut back);
        }
        wanted.map(|id| id.and_then(|id| back.take(id)))
    }
}

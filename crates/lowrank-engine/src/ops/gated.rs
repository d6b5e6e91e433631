//! Gated activation: `h = act(gate) * up` (SwiGLU and its kin).

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels::{self as kernels, Activation};

use crate::device::Device;
use crate::kept::Kept;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recipe, Tape, Var, VarId};
use crate::tensor::Tensor;

impl<'m> Tape<'m> {
    /// `gate, up: [N,F]` to `[N,F]`.
    pub fn gated(&mut self, gate: Var<'m>, up: Var<'m>, activation: Activation) -> Var<'m> {
        let device = self.scope.device;
        let out = self.id(gate.id.is_some() || up.id.is_some());
        if !self.keeps(out) {
            return Var { tensor: gated(device, gate.tensor, &up.tensor, activation), id: out, recipe: None };
        }
        let out_id = out.expect("kept, so it has a number");
        let ids = (gate.id, up.id);
        let [kept_gate, kept_up] = [&gate, &up].map(|x| Kept::new(device, &x.tensor));
        let h = gated(device, gate.tensor, &up.tensor, activation);
        let recipe =
            Rc::new(GatedRecipe { gate: kept_gate, up: kept_up, activation, again: RefCell::new(None) });
        self.push(GatedNode { recipe: recipe.clone(), ids, out: out_id });
        Var { tensor: h, id: out, recipe: Some(recipe) }
    }
}

/// `act(gate) * up`, in the place of `gate` where no one else reads it.
fn gated(device: &Device, mut gate: Tensor, up: &Tensor, activation: Activation) -> Tensor {
    if gate.is_unique() {
        device.run(0, || kernels::gated_in_place(gate.data_mut(), up.data(), activation));
        return gate;
    }
    let mut h = device.alloc(gate.rows(), gate.cols());
    device.run(0, || kernels::gated(h.data_mut(), gate.data(), up.data(), activation));
    h
}

struct GatedRecipe {
    gate: Kept,
    up: Kept,
    activation: Activation,
    again: RefCell<Option<Tensor>>,
}

impl Recipe for GatedRecipe {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || {
            let device = scope.device;
            gated(device, self.gate.get(device), &self.up.get(device), self.activation)
        };
        self.again.borrow_mut().get_or_insert_with(compute).clone()
    }
}

struct GatedNode {
    recipe: Rc<GatedRecipe>,
    ids: (Option<VarId>, Option<VarId>),
    out: VarId,
}

impl<'m> Node<'m> for GatedNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dh) = back.take(self.out) else { return };
        // Those that read the output have run backward, so the inputs are ours to overwrite.
        let GatedRecipe { gate, up, activation, .. } = Rc::try_unwrap(self.recipe)
            .ok()
            .expect("no operation holds an activation longer than its backward");
        let (device, rows, cols) = (back.scope.device, dh.rows(), dh.cols());
        let [gate, up] = if device.rounds_kept() {
            let (mut dgate, mut dup) = (device.own(dh), device.alloc(rows, cols));
            device.run(0, || {
                let (dgate, dup) = (dgate.data_mut(), dup.data_mut());
                kernels::gated_backward(dgate, dup, gate.numbers(), up.numbers(), activation);
            });
            [dgate, dup]
        } else {
            let [mut gate, mut up] = [gate, up].map(|x| x.take(device));
            device.run(0, || {
                kernels::gated_backward_in_place(gate.data_mut(), up.data_mut(), dh.data(), activation);
            });
            [gate, up]
        };
        for (id, gradient) in [(self.ids.0, gate), (self.ids.1, up)] {
            if let Some(id) = id {
                back.add(id, gradient);
            }
        }
    }
}

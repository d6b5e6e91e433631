//! Gated activation: `h = act(gate) * up` (SwiGLU and its kin).

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels::Activation;

use crate::device::Device;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recompute, Tape, Var, VarId};
use crate::tensor::{Saved, Tensor};

impl<'m> Tape<'m> {
    /// `gate, up: [N,F]` to `[N,F]`.
    pub fn gated(&mut self, gate: Var<'m>, up: Var<'m>, activation: Activation) -> Var<'m> {
        let device = self.scope.device;
        let out = self.id(gate.id.is_some() || up.id.is_some());
        if !self.keeps(out) {
            return Var::output(gated(device, gate.tensor, &up.tensor, activation), out);
        }
        let out_id = out.expect("recorded, so it has an id");
        let ids = (gate.id, up.id);
        let [saved_gate, saved_up] = [&gate, &up].map(|x| device.save(&x.tensor));
        let h = gated(device, gate.tensor, &up.tensor, activation);
        let recompute = Rc::new(GatedRecompute {
            gate: saved_gate,
            up: saved_up,
            activation,
            cached: RefCell::new(None),
        });
        self.push(GatedNode { recompute: recompute.clone(), ids, out: out_id });
        Var { tensor: h, id: out, recompute: Some(recompute) }
    }
}

/// `act(gate) * up`, in the place of `gate` where no one else reads it.
fn gated(device: &Device, mut gate: Tensor, up: &Tensor, activation: Activation) -> Tensor {
    if gate.is_unique() {
        device.gated_in_place(&mut gate, up, activation);
        return gate;
    }
    let mut h = device.alloc(gate.rows(), gate.cols());
    device.gated(&mut h, &gate, up, activation);
    h
}

struct GatedRecompute {
    gate: Saved,
    up: Saved,
    activation: Activation,
    cached: RefCell<Option<Tensor>>,
}

impl Recompute for GatedRecompute {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || {
            let device = scope.device;
            gated(device, device.restore(&self.gate), &device.restore(&self.up), self.activation)
        };
        self.cached.borrow_mut().get_or_insert_with(compute).clone()
    }
}

struct GatedNode {
    recompute: Rc<GatedRecompute>,
    ids: (Option<VarId>, Option<VarId>),
    out: VarId,
}

impl<'m> Node<'m> for GatedNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dh) = back.take(self.out) else { return };
        // Those that read the output have run backward, so the inputs are ours to overwrite.
        let GatedRecompute { gate, up, activation, .. } = Rc::try_unwrap(self.recompute)
            .ok()
            .expect("no operation holds an activation longer than its backward");
        let (device, rows, cols) = (back.scope.device, dh.rows(), dh.cols());
        let [gate, up] = if device.saves_int16() {
            let (mut dgate, mut dup) = (device.own(dh), device.alloc(rows, cols));
            device.gated_backward(&mut dgate, &mut dup, &gate, &up, activation);
            [dgate, dup]
        } else {
            let [mut gate, mut up] = [gate, up].map(|x| device.take_saved(x));
            device.gated_backward_in_place(&mut gate, &mut up, &dh, activation);
            [gate, up]
        };
        for (id, gradient) in [(self.ids.0, gate), (self.ids.1, up)] {
            if let Some(id) = id {
                back.add(id, gradient);
            }
        }
    }
}

//! Activation: `y = act(x)`, element by element.

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels::Activation;

use crate::device::Device;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recompute, Tape, Var, VarId};
use crate::tensor::{Saved, Tensor};

impl<'m> Tape<'m> {
    /// `x: [N,F]` to the same shape.
    pub fn activate(&mut self, x: Var<'m>, activation: Activation) -> Var<'m> {
        let device = self.scope.device;
        let out = self.id(x.id.is_some());
        let (true, Some(id), Some(out_id)) = (self.keeps(out), x.id, out) else {
            return Var::output(activated(device, x.tensor, activation), out);
        };
        let saved = device.save(&x.tensor);
        let y = activated(device, x.tensor, activation);
        let recompute = Rc::new(ActivationRecompute { x: saved, activation, cached: RefCell::new(None) });
        self.push(ActivationNode { recompute: recompute.clone(), x: id, out: out_id });
        Var { tensor: y, id: out, recompute: Some(recompute) }
    }
}

/// `act(x)`, in the place of `x` where no one else reads it.
fn activated(device: &Device, mut x: Tensor, activation: Activation) -> Tensor {
    if x.is_unique() {
        device.activate_in_place(&mut x, activation);
        return x;
    }
    let mut y = device.alloc(x.rows(), x.cols());
    device.activate(&mut y, &x, activation);
    y
}

/// The output of an activation from its input.
struct ActivationRecompute {
    x: Saved,
    activation: Activation,
    cached: RefCell<Option<Tensor>>,
}

impl Recompute for ActivationRecompute {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || activated(scope.device, scope.device.restore(&self.x), self.activation);
        self.cached.borrow_mut().get_or_insert_with(compute).clone()
    }
}

struct ActivationNode {
    recompute: Rc<ActivationRecompute>,
    x: VarId,
    out: VarId,
}

impl<'m> Node<'m> for ActivationNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let ActivationRecompute { x, activation, cached } = &*self.recompute;
        // All that read the output have run backward.
        cached.take();
        let Some(dy) = back.take(self.out) else { return };
        let mut dx = back.scope.device.own(dy);
        back.scope.device.activate_backward(&mut dx, x, *activation);
        back.add(self.x, dx);
    }
}

//! Activation: `y = act(x)`, number by number.

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels::{self as kernels, Activation};

use crate::device::Device;
use crate::kept::Kept;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recipe, Tape, Var, VarId};
use crate::tensor::Tensor;

impl<'m> Tape<'m> {
    /// `x: [N,F]` to the same shape.
    pub fn activate(&mut self, x: Var<'m>, activation: Activation) -> Var<'m> {
        let device = self.scope.device;
        let out = self.id(x.id.is_some());
        let (true, Some(id), Some(out_id)) = (self.keeps(out), x.id, out) else {
            return Var { tensor: activated(device, x.tensor, activation), id: out, recipe: None };
        };
        let kept = Kept::new(device, &x.tensor);
        let y = activated(device, x.tensor, activation);
        let recipe = Rc::new(ActivationRecipe { x: kept, activation, again: RefCell::new(None) });
        self.push(ActivationNode { recipe: recipe.clone(), x: id, out: out_id });
        Var { tensor: y, id: out, recipe: Some(recipe) }
    }
}

/// `act(x)`, in the place of `x` where no one else reads it.
fn activated(device: &Device, mut x: Tensor, activation: Activation) -> Tensor {
    if x.is_unique() {
        device.run(0, || kernels::activate_in_place(x.data_mut(), activation));
        return x;
    }
    let mut y = device.alloc(x.rows(), x.cols());
    device.run(0, || kernels::activate(y.data_mut(), x.data(), activation));
    y
}

/// The output of an activation from its input.
struct ActivationRecipe {
    x: Kept,
    activation: Activation,
    again: RefCell<Option<Tensor>>,
}

impl Recipe for ActivationRecipe {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || activated(scope.device, self.x.get(scope.device), self.activation);
        self.again.borrow_mut().get_or_insert_with(compute).clone()
    }
}

struct ActivationNode {
    recipe: Rc<ActivationRecipe>,
    x: VarId,
    out: VarId,
}

impl<'m> Node<'m> for ActivationNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let ActivationRecipe { x, activation, again } = &*self.recipe;
        // All that read the output have run backward.
        again.take();
        let Some(dy) = back.take(self.out) else { return };
        let mut dx = back.scope.device.own(dy);
        back.scope.device.run(0, || kernels::activate_backward(dx.data_mut(), x.numbers(), *activation));
        back.add(self.x, dx);
    }
}

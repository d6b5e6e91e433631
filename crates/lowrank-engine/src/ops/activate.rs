//! Activation: `y = act(x)`, number by number.

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels::{self as kernels, Activation};

use crate::kept::Kept;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recipe, Tape, Var, VarId};
use crate::tensor::Tensor;

impl<'m> Tape<'m> {
    /// `x: [N,F]` to the same shape.
    pub fn activate(&mut self, x: Var<'m>, activation: Activation) -> Var<'m> {
        let device = self.scope.device;
        let mut y = device.alloc(x.tensor.rows(), x.tensor.cols());
        device.run(0, || kernels::activate(y.data_mut(), x.tensor.data(), activation));
        let out = self.id(x.id.is_some());
        let (true, Some(id), Some(out_id)) = (self.keeps(out), x.id, out) else {
            return Var { tensor: y, id: out, recipe: None };
        };
        let recipe = Rc::new(ActivationRecipe {
            x: Kept::new(device, &x.tensor),
            activation,
            again: RefCell::new(None),
        });
        self.push(ActivationNode { recipe: recipe.clone(), x: id, out: out_id });
        Var { tensor: y, id: out, recipe: Some(recipe) }
    }
}

/// The output of an activation from its input.
struct ActivationRecipe {
    x: Kept,
    activation: Activation,
    again: RefCell<Option<Tensor>>,
}

impl Recipe for ActivationRecipe {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || {
            let x = self.x.get(scope.device);
            let mut y = scope.alloc(x.rows(), x.cols());
            scope.device.run(0, || kernels::activate(y.data_mut(), x.data(), self.activation));
            y
        };
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
        let (rows, cols) = x.shape();
        let mut dx = back.open(self.x, rows, cols);
        let accumulate = dx.beta() != 0.0;
        back.scope.device.run(0, || {
            kernels::activate_backward(dx.tensor.data_mut(), x.numbers(), dy.data(), *activation, accumulate);
        });
        back.put(self.x, dx);
    }
}

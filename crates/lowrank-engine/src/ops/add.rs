//! Sum of two values: `y = a + b`. (Residuals of linear layers are added inside the product.)

use lowrank_kernels as kernels;

use crate::tape::{Backward, Node, Tape, Var, VarId};

impl<'m> Tape<'m> {
    /// `a, b: [N,D]` to the same shape, in `a`'s place where no one else reads it.
    pub fn add(&mut self, a: Var<'m>, b: &Var<'m>) -> Var<'m> {
        let device = self.scope.device;
        let ids = (a.id, b.id);
        // A recipe makes its numbers anew and does not hold these.
        let mut y = device.own(a.tensor);
        device.run(0, || kernels::add(y.data_mut(), b.tensor.data()));
        let out = self.id(ids.0.is_some() || ids.1.is_some());
        if let (true, Some(out)) = (self.keeps(out), out) {
            self.push(AddNode { ids, out });
        }
        Var { tensor: y, id: out, recipe: None }
    }
}

struct AddNode {
    ids: (Option<VarId>, Option<VarId>),
    out: VarId,
}

impl<'m> Node<'m> for AddNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        match self.ids {
            (Some(a), Some(b)) => {
                // The gradients grow on their own from here: one of them needs numbers of its own.
                let mut copy = back.scope.alloc(dy.rows(), dy.cols());
                back.scope.device.run(0, || kernels::copy(copy.data_mut(), dy.data()));
                back.add(a, copy);
                back.add(b, dy);
            }
            (Some(id), None) | (None, Some(id)) => back.add(id, dy),
            (None, None) => {}
        }
    }
}

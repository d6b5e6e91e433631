//! Sum of two values: `y = a + b`. (Residuals of linear layers are added inside the product.)

use crate::tape::{Backward, Node, Tape, Var, VarId};

impl<'m> Tape<'m> {
    /// `a, b: [N,D]` to the same shape, in `a`'s place where no one else reads it.
    pub fn add(&mut self, a: Var<'m>, b: &Var<'m>) -> Var<'m> {
        let device = self.scope.device;
        let ids = (a.id, b.id);
        // What computes it again does not hold this tensor.
        let mut y = device.own(a.tensor);
        device.add(&mut y, &b.tensor);
        let out = self.id(ids.0.is_some() || ids.1.is_some());
        if let (true, Some(out)) = (self.keeps(out), out) {
            self.push(AddNode { ids, out });
        }
        Var::output(y, out)
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
                // The gradients grow on their own from here: one of them needs memory of its own.
                let mut copy = back.scope.alloc(dy.rows(), dy.cols());
                back.scope.device.copy(&mut copy, &dy);
                back.add(a, copy);
                back.add(b, dy);
            }
            (Some(id), None) | (None, Some(id)) => back.add(id, dy),
            (None, None) => {}
        }
    }
}

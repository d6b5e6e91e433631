//! Multiplication with constants: `y = factor x`, and `y[i,:] = factors[i] x[i,:]`.

use crate::tape::{Backward, Node, Tape, Var, VarId};
use crate::tensor::Tensor;

/// What each row is multiplied with.
enum Factor {
    One(f32),
    Rows(Tensor),
}

impl<'m> Tape<'m> {
    /// `x: [N,D]` times `factor`, in its place where no one else reads it.
    pub fn scale(&mut self, x: Var<'m>, factor: f32) -> Var<'m> {
        self.times(x, Factor::One(factor))
    }

    /// Each row of `x: [N,D]` times its own of `factors: [N]`.
    pub fn scale_rows(&mut self, x: Var<'m>, factors: Tensor) -> Var<'m> {
        assert_eq!(x.tensor.rows(), factors.len(), "factors of rows");
        self.times(x, Factor::Rows(factors))
    }

    fn times(&mut self, x: Var<'m>, factor: Factor) -> Var<'m> {
        let device = self.scope.device;
        let id = x.id;
        // What computes it again does not hold this tensor.
        let mut y = device.own(x.tensor);
        factor.apply(device, &mut y);
        let out = self.id(id.is_some());
        if let (true, Some(x), Some(out)) = (self.keeps(out), id, out) {
            self.push(ScaleNode { factor, x, out });
        }
        Var::output(y, out)
    }
}

impl Factor {
    fn apply(&self, device: &crate::Device, x: &mut Tensor) {
        match self {
            Self::One(factor) => device.scale(x, *factor),
            Self::Rows(factors) => device.scale_rows(x, factors),
        }
    }
}

struct ScaleNode {
    factor: Factor,
    x: VarId,
    out: VarId,
}

impl<'m> Node<'m> for ScaleNode {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let device = back.scope.device;
        let mut dx = device.own(dy);
        self.factor.apply(device, &mut dx);
        back.add(self.x, dx);
    }
}

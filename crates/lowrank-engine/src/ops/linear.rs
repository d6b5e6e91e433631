//! Linear layer over a frozen weight, with its adapter: `y = x W^T + b [+ residual] [+ adapter(x)]`.

use std::rc::Rc;

use crate::layer::Linear;
use crate::tape::{Backward, Node, Recompute, Tape, Var, VarId};
use crate::tensor::Tensor;

impl<'m> Tape<'m> {
    /// `x: [N,K]` to `[N,O]`. A `residual: [N,O]` is added inside the product, in its place where no one else reads it.
    pub fn linear(&mut self, layer: &'m Linear, x: &Var<'m>, mut residual: Option<Var<'m>>) -> Var<'m> {
        let (n, k, o) = (x.tensor.rows(), layer.in_features(), layer.out_features());
        assert_eq!(x.tensor.cols(), k, "input features of a linear layer");
        let scope = self.scope;
        let adapter = self.adapters.get(layer.site);
        let residual_id = residual.as_ref().and_then(|r| r.id);
        let alone = residual.as_mut().is_some_and(|r| r.tensor.is_unique());
        let (mut y, added, beta) = match residual.map(|r| r.tensor) {
            // What computes it again does not hold this tensor.
            Some(r) if alone || adapter.is_some() => (scope.device.own(r), None, 1.0),
            residual => (scope.alloc(n, o), residual, 0.0),
        };
        let saved = match (adapter, &added) {
            (Some(adapter), _) => Some(adapter.forward(&scope, layer, &x.tensor, &mut y, beta)),
            (None, Some(residual)) => {
                scope.device.linear_add(&mut y, &x.tensor, layer.view(), Some(residual));
                None
            }
            (None, None) => {
                layer.forward(&scope, &x.tensor, &mut y, beta);
                None
            }
        };

        let out = self.id(x.id.is_some() || residual_id.is_some() || adapter.is_some());
        if self.keeps(out) {
            let adapted = saved.map(|saved| Adapted { saved, x: x.save(&scope) });
            let out = out.expect("recorded, so it has an id");
            self.push(LinearNode { layer, adapted, x: x.id, residual: residual_id, out });
        }
        Var::output(y, out)
    }
}

struct Adapted<'m> {
    x: Rc<dyn Recompute + 'm>,
    saved: Vec<Tensor>,
}

struct LinearNode<'m> {
    layer: &'m Linear,
    adapted: Option<Adapted<'m>>,
    x: Option<VarId>,
    residual: Option<VarId>,
    out: VarId,
}

impl<'m> Node<'m> for LinearNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let Some(dy) = back.take(self.out) else { return };
        let mut dx = self.x.map(|id| back.open(id, dy.rows(), self.layer.in_features()));
        match self.adapted {
            Some(Adapted { x, saved }) => {
                let adapter = back.adapters.get(self.layer.site).expect("it was there in the forward pass");
                let x = x.get(&back.scope);
                adapter.backward(&back.scope, self.layer, back.grads, &x, &dy, saved, dx.as_mut());
            }
            None => {
                if let Some(dx) = &mut dx {
                    self.layer.backward(&back.scope, &dy, dx);
                }
            }
        }
        if let (Some(id), Some(dx)) = (self.x, dx) {
            back.put(id, dx);
        }
        if let Some(id) = self.residual {
            back.add(id, dy);
        }
    }
}

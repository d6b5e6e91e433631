//! Linear layer over a frozen weight, with its adapter: `y = x W^T + b [+ residual] [+ adapter(x)]`.

use lowrank_kernels as kernels;

use crate::adapter::SiteId;
use crate::tape::{Backward, Node, Saved, Tape, Var, VarId};
use crate::tensor::Tensor;
use crate::weight::FrozenWeight;

/// A frozen linear layer of `K` inputs and `O` outputs.
pub struct Linear {
    /// Where adapters attach.
    pub site: SiteId,
    /// `W: [O,K]`, or `[K,O]` where stored transposed.
    pub weight: FrozenWeight,
    /// `b: [O]`.
    pub bias: Option<Vec<f32>>,
    /// Whether the weight is stored transposed (GPT-2). It is read as it lies all the same: the products of
    /// the forward and the backward pass change places.
    pub transposed: bool,
}

impl Linear {
    /// `K`.
    pub fn in_features(&self) -> usize {
        if self.transposed { self.weight.rows() } else { self.weight.cols() }
    }

    /// `O`.
    pub fn out_features(&self) -> usize {
        if self.transposed { self.weight.cols() } else { self.weight.rows() }
    }

    /// `y[N,O] = beta y + x[N,K] W^T`.
    fn product(&self, y: &mut [f32], x: &[f32], n: usize, beta: f32) {
        let product = if self.transposed { kernels::linear_backward } else { kernels::linear };
        product(y, x, &self.weight.view(), n, beta);
    }

    /// `dx[N,K] = beta dx + dy[N,O] W`.
    fn product_backward(&self, dx: &mut [f32], dy: &[f32], n: usize, beta: f32) {
        let product = if self.transposed { kernels::linear } else { kernels::linear_backward };
        product(dx, dy, &self.weight.view(), n, beta);
    }
}

impl<'m> Tape<'m> {
    /// `x: [N,K]` to `[N,O]`. A `residual: [N,O]` is added inside the product.
    pub fn linear(&mut self, layer: &'m Linear, x: &Var<'m>, residual: Option<&Var<'m>>) -> Var<'m> {
        let (n, k, o) = (x.tensor.rows(), layer.in_features(), layer.out_features());
        assert_eq!(x.tensor.cols(), k, "input features of a linear layer");
        let device = self.scope.device;
        let mut y = device.alloc(n, o);
        device.run(2 * n * k * o, || {
            let data = y.data_mut();
            if let Some(r) = residual {
                data.copy_from_slice(r.tensor.data());
            }
            let beta = if residual.is_some() { 1.0 } else { 0.0 };
            layer.product(data, x.tensor.data(), n, beta);
            if let Some(bias) = &layer.bias {
                kernels::add_bias(data, bias, n, o);
            }
        });
        let adapter = self.adapters.get(layer.site);
        let saved = adapter.map(|a| a.forward(&self.scope, &x.tensor, &mut y));

        let residual_id = residual.and_then(|r| r.id);
        let out = self.id(x.id.is_some() || residual_id.is_some() || adapter.is_some());
        if self.keeps(out) {
            let adapted = saved.map(|saved| Adapted { saved, x: x.save() });
            let out = out.expect("kept, so it has a number");
            self.push(LinearNode { layer, adapted, x: x.id, residual: residual_id, out });
        }
        Var { tensor: y, id: out, recipe: None }
    }
}

struct Adapted<'m> {
    x: Saved<'m>,
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
        let (n, k, o) = (dy.rows(), self.layer.in_features(), self.layer.out_features());
        let mut dx = self.x.map(|id| back.open(id, n, k));
        if let Some(dx) = &mut dx {
            let beta = dx.beta();
            back.scope.device.run(2 * n * k * o, || {
                self.layer.product_backward(dx.tensor.data_mut(), dy.data(), n, beta);
            });
        }
        if let Some(Adapted { x, saved }) = self.adapted {
            let adapter = back.adapters.get(self.layer.site).expect("it was there in the forward pass");
            let x = x.get(&back.scope);
            adapter.backward(&back.scope, back.grads, &x, &dy, saved, dx.as_mut());
        }
        if let (Some(id), Some(dx)) = (self.x, dx) {
            back.put(id, dx);
        }
        if let Some(id) = self.residual {
            back.add(id, dy);
        }
    }
}

//! A frozen linear layer: `y = x W^T + b`.

use crate::accumulator::Accumulator;
use crate::backend::WeightView;
use crate::scope::Scope;
use crate::site::SiteId;
use crate::tensor::Tensor;
use crate::weight::FrozenWeight;

/// A frozen linear layer of `K` inputs and `O` outputs.
pub struct Linear {
    /// Where adapters attach.
    pub site: SiteId,
    /// `W: [O,K]`, or `[K,O]` where stored transposed.
    pub weight: FrozenWeight,
    /// `b: [O]`.
    pub bias: Option<Tensor>,
    /// Whether the weight is stored transposed (GPT-2). It is read as it lies all the same: forward and backward swap
    /// kernels.
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

    /// The same layer with another bias. The weight is shared.
    pub fn with_bias(&self, bias: Tensor) -> Self {
        let Self { site, weight, transposed, .. } = self;
        Self { site: *site, weight: weight.clone(), bias: Some(bias), transposed: *transposed }
    }

    /// The layer as a backend reads it.
    pub fn view(&self) -> WeightView<'_> {
        WeightView { weight: &self.weight, bias: self.bias.as_ref(), transposed: self.transposed }
    }

    /// `y = beta y + x W^T + b` for `x: [N,K]`, `y: [N,O]`; `beta` is 1, or 0, with which `y` is only written.
    pub fn forward(&self, scope: &Scope<'_>, x: &Tensor, y: &mut Tensor, beta: f32) {
        let Some(bias) = &self.bias else { return self.product(scope, x, y, beta) };
        if beta == 0.0 {
            return scope.device.linear_add(y, x, self.view(), None);
        }
        scope.device.add_bias(y, bias);
        self.product(scope, x, y, 1.0);
    }

    /// The same without bias.
    pub fn product(&self, scope: &Scope<'_>, x: &Tensor, y: &mut Tensor, beta: f32) {
        scope.device.linear(y, x, self.view(), beta);
    }

    /// `dx += dy W` for `dy: [N,O]`, `dx: [N,K]`.
    pub fn backward(&self, scope: &Scope<'_>, dy: &Tensor, dx: &mut Accumulator) {
        let beta = dx.beta();
        scope.device.linear_backward(&mut dx.tensor, dy, self.view(), beta);
    }
}

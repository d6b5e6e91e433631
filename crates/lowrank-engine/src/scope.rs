//! What every operation can reach: the device, the parameters and the dropout key.

use crate::backend::Mask;
use crate::device::Device;
use crate::params::{ParamId, Params};
use crate::row_adapters::RowAdapters;
use crate::tensor::{Mat, MatMut, Tensor};

/// Names one forward pass for the counter-based random numbers, so that a recomputed dropout is the
/// same dropout.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// A count that no other forward pass of the run has.
    pub pass: u64,
    /// Whether the base model's own dropouts act too.
    pub base: bool,
}

/// The surroundings of an operation.
#[derive(Clone, Copy)]
pub struct Scope<'m> {
    /// Where operations run.
    pub device: &'m Device,
    /// The trainable parameters.
    pub params: &'m Params,
    /// `None` outside training: dropout does nothing.
    pub dropout: Option<DropoutKey>,
    /// Size of the noise that is added to embeddings in training (NEFTune).
    pub noise: Option<f32>,
    /// The adapter of each row, where a batch has several. For inference only.
    pub rows: Option<&'m RowAdapters>,
}

impl<'m> Scope<'m> {
    /// The surroundings of inference.
    pub fn inference(device: &'m Device, params: &'m Params) -> Self {
        Self { device, params, dropout: None, noise: None, rows: None }
    }

    /// A tensor with undefined values.
    pub fn alloc(&self, rows: usize, cols: usize) -> Tensor {
        self.device.alloc(rows, cols)
    }

    /// A parameter as an operand.
    pub fn param(&self, id: ParamId) -> Mat<'m> {
        self.params.mat(id)
    }

    /// `c = alpha * a b + beta * c`; with `beta` 0, `c` is only written.
    pub fn gemm(&self, alpha: f32, a: Mat<'_>, b: Mat<'_>, beta: f32, c: MatMut<'_>) {
        self.device.gemm(alpha, a, b, beta, c);
    }

    /// Inverted dropout: zero with probability `p`, else `x / (1 - p)`; the same values for the same
    /// `stream` within one pass. Outside training, or with `p` 0, it is `x` itself.
    pub fn dropout(&self, x: &Tensor, p: f32, stream: u64) -> Tensor {
        let Some(key) = self.dropout.filter(|_| p > 0.0) else { return x.clone() };
        let mut y = self.alloc(x.rows(), x.cols());
        self.device.dropout(&mut y, x, key.mask(p, stream));
        y
    }

    /// Backward of [`Scope::dropout`]: adds `mask * dy / (1 - p)` to `dx` where `accumulate`, else writes it.
    pub fn dropout_backward(&self, dx: &mut Tensor, dy: &Tensor, p: f32, stream: u64, accumulate: bool) {
        let key = self.dropout.expect("dropout was applied in the forward pass");
        self.device.dropout_backward(dx, dy, key.mask(p, stream), accumulate);
    }

    /// Adds the product of `a: [N,R]` and `b: [R,K]` to `dx: [N,K]`, through the dropout that made the input of the forward
    /// pass.
    pub fn gemm_through_dropout(&self, a: Mat<'_>, b: Mat<'_>, dx: &mut Tensor, p: f32, stream: u64) {
        if self.drops(p) {
            let mut dropped = self.alloc(dx.rows(), dx.cols());
            self.gemm(1.0, a, b, 0.0, dropped.mat_mut());
            self.dropout_backward(dx, &dropped, p, stream, true);
        } else {
            self.gemm(1.0, a, b, 1.0, dx.mat_mut());
        }
    }

    /// Whether dropout with probability `p` does anything here.
    pub fn drops(&self, p: f32) -> bool {
        self.dropout.is_some() && p > 0.0
    }
}

impl DropoutKey {
    fn mask(self, p: f32, stream: u64) -> Mask {
        Mask { p, seed: self.seed, stream: self.stream(stream) }
    }

    /// The random stream of a site (its number) in this pass.
    pub fn stream(self, stream: u64) -> u64 {
        // Streams of one pass are site numbers: far fewer than 2^24.
        (self.pass << 24) | stream
    }
}

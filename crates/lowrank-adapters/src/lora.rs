//! LoRA (Hu et al. 2021): `y += scaling * dropout(x) A^T B^T`.

use lowrank_engine::{Accumulator, Adapter, Grads, ParamId, Scope, Tensor};

/// LoRA at one linear site: `A: [R,K]`, `B: [O,R]`, so that `W0 x + scaling * B A x`.
#[derive(Clone, Debug)]
pub struct Lora {
    /// `A`, random at the start.
    pub a: ParamId,
    /// `B`, zero at the start: training begins at the base model.
    pub b: ParamId,
    /// Rank.
    pub r: usize,
    /// `alpha / r`.
    pub scaling: f32,
    /// Probability of zeroing a number of the input.
    pub dropout: f32,
    /// Names this site's random numbers.
    pub stream: u64,
}

impl Adapter for Lora {
    fn forward(&self, scope: &Scope<'_>, x: &Tensor, y: &mut Tensor) -> Vec<Tensor> {
        let x = scope.dropout(x, self.dropout, self.stream);
        let mut u = scope.alloc(x.rows(), self.r);
        scope.gemm(1.0, x.mat(), scope.param(self.a).t(), 0.0, u.mat_mut());
        scope.gemm(self.scaling, u.mat(), scope.param(self.b).t(), 1.0, y.mat_mut());
        vec![u]
    }

    /// With `u = x A^T`: `du = s dy B`, `dB += s dy^T u`, `dA += du^T x`, `dx += du A`.
    fn backward(
        &self,
        scope: &Scope<'_>,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        saved: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let (u, x) = (&saved[0], scope.dropout(x, self.dropout, self.stream));
        let mut du = scope.alloc(u.rows(), self.r);
        scope.gemm(self.scaling, dy.mat(), scope.param(self.b), 0.0, du.mat_mut());
        scope.gemm(self.scaling, dy.mat().t(), u.mat(), 1.0, grads.mat_mut(self.b));
        scope.gemm(1.0, du.mat().t(), x.mat(), 1.0, grads.mat_mut(self.a));
        let Some(dx) = dx else { return };
        let beta = dx.beta();
        if scope.drops(self.dropout) {
            let mut dropped = scope.alloc(x.rows(), x.cols());
            scope.gemm(1.0, du.mat(), scope.param(self.a), 0.0, dropped.mat_mut());
            scope.dropout_backward(&mut dx.tensor, &dropped, self.dropout, self.stream, beta != 0.0);
        } else {
            scope.gemm(1.0, du.mat(), scope.param(self.a), beta, dx.tensor.mat_mut());
        }
    }
}

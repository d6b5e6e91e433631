//! LoHa (Hyeon-Woo et al. 2022, FedPara): a Hadamard product of two low-rank matrices,
//! `y = W0 x + b + s ((W1a W1b) * (W2a W2b)) x`.
//!
//! The product is never formed: it is the matrix `P Q` of rank `R^2` with `P[o, ij] = W1a[o,i] W2a[o,j]` and
//! `Q[ij, k] = W1b[i,k] W2b[j,k]`, so a layer costs what a LoRA of that rank costs.

use std::sync::Arc;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, Tensor, kernels};

use crate::config::LoraConfig;
use crate::contract::{InitContext, Method, Target, Variant, WeightRows, linear_only};
use crate::error::Error;
use crate::init;
use crate::low_rank::LowRank;
use crate::methods::lycoris::{self, OutputDropout};

/// LoHa at one linear site: `W1a, W2a: [O,R]`, `W1b, W2b: [R,K]`.
#[derive(Debug)]
pub struct Loha {
    /// `W1a, W1b, W2a, W2b`.
    pub w: [ParamId; 4],
    /// `R`.
    pub r: usize,
    /// `s = alpha / R`.
    pub scaling: f32,
    dropout: OutputDropout,
}

/// `P[row, ij] = a[row, i] b[row, j]` for `a, b: [rows, R]`.
fn pairs_of_columns(p: &mut [f32], a: &[f32], b: &[f32], r: usize) {
    for ((p, a), b) in p.chunks_exact_mut(r * r).zip(a.chunks_exact(r)).zip(b.chunks_exact(r)) {
        for (p, a) in p.chunks_exact_mut(r).zip(a) {
            p.iter_mut().zip(b).for_each(|(p, b)| *p = a * b);
        }
    }
}

/// `Q[ij, k] = a[i, k] b[j, k]` for `a, b: [R, K]`.
fn pairs_of_rows(q: &mut [f32], a: &[f32], b: &[f32], k: usize) {
    let mut q = q.chunks_exact_mut(k);
    for a in a.chunks_exact(k) {
        for b in b.chunks_exact(k) {
            let q = q.next().expect("R^2 rows");
            q.iter_mut().zip(a).zip(b).for_each(|((q, a), b)| *q = a * b);
        }
    }
}

/// The gradients of both factors of [`pairs_of_columns`], accumulated into one of them: of `a` given `b`, or
/// with `second`, of `b` given `a`.
fn columns_backward(grad: &mut [f32], dp: &[f32], other: &[f32], r: usize, second: bool) {
    for ((g, dp), other) in grad.chunks_exact_mut(r).zip(dp.chunks_exact(r * r)).zip(other.chunks_exact(r)) {
        for i in 0..r {
            for j in 0..r {
                let (own, its) = if second { (j, i) } else { (i, j) };
                g[own] += dp[i * r + j] * other[its];
            }
        }
    }
}

/// The same for [`pairs_of_rows`].
fn rows_backward(grad: &mut [f32], dq: &[f32], other: &[f32], r: usize, second: bool) {
    let k = grad.len() / r;
    for i in 0..r {
        for j in 0..r {
            let (own, its) = if second { (j, i) } else { (i, j) };
            let dq = &dq[(i * r + j) * k..][..k];
            let g = &mut grad[own * k..(own + 1) * k];
            g.iter_mut().zip(dq).zip(&other[its * k..]).for_each(|((g, dq), o)| *g += dq * o);
        }
    }
}

impl Loha {
    /// `P: [O, R^2]`, its rows times what dropout leaves of them, and `Q: [R^2, K]`.
    fn product(&self, scope: &Scope<'_>, k: usize, o: usize) -> (Tensor, Tensor) {
        let rank = self.r * self.r;
        let (mut p, mut q) = (scope.alloc(o, rank), scope.alloc(rank, k));
        let [w1a, w1b, w2a, w2b] = self.w.map(|id| &scope.params.get(id).value[..]);
        let dropped = self.dropout.factors(scope, o);
        scope.device.run(0, || {
            pairs_of_columns(p.data_mut(), w1a, w2a, self.r);
            pairs_of_rows(q.data_mut(), w1b, w2b, k);
            for (row, factor) in p.data_mut().chunks_exact_mut(rank).zip(dropped.iter().flatten()) {
                kernels::scale(row, *factor);
            }
        });
        (p, q)
    }

    /// The change as a product.
    fn factors(&self, params: &Params) -> (Vec<f32>, Vec<f32>) {
        let rank = self.r * self.r;
        let [w1a, w1b, w2a, w2b] = self.w.map(|id| &params.get(id).value[..]);
        let k = w1b.len() / self.r;
        let (mut p, mut q) = (vec![0.0; w1a.len() * self.r], vec![0.0; rank * k]);
        pairs_of_columns(&mut p, w1a, w2a, self.r);
        pairs_of_rows(&mut q, w1b, w2b, k);
        (p, q)
    }
}

impl Adapter for Loha {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        base.forward(scope, x, y, beta);
        self.add(scope, base, x, y, 1.0);
        Vec::new()
    }

    /// LoRA's gradients of `P` and `Q`, taken on to the four matrices.
    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        _: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let (n, k, o, r) = (x.rows(), x.cols(), dy.cols(), self.r);
        let rank = r * r;
        let (p, q) = self.product(scope, k, o);
        let (mut u, mut du) = (scope.alloc(n, rank), scope.alloc(n, rank));
        scope.gemm(1.0, x.mat(), q.mat().t(), 0.0, u.mat_mut());
        scope.gemm(self.scaling, dy.mat(), p.mat(), 0.0, du.mat_mut());
        let (mut dp, mut dq) = (scope.alloc(o, rank), scope.alloc(rank, k));
        scope.gemm(self.scaling, dy.mat().t(), u.mat(), 0.0, dp.mat_mut());
        scope.gemm(1.0, du.mat().t(), x.mat(), 0.0, dq.mat_mut());
        let [w1a, w1b, w2a, w2b] = self.w.map(|id| &scope.params.get(id).value[..]);
        let dropped = self.dropout.factors(scope, o);
        scope.device.run(0, || {
            for (row, factor) in dp.data_mut().chunks_exact_mut(rank).zip(dropped.iter().flatten()) {
                kernels::scale(row, *factor);
            }
            columns_backward(grads.get_mut(self.w[0]), dp.data(), w2a, r, false);
            columns_backward(grads.get_mut(self.w[2]), dp.data(), w1a, r, true);
            rows_backward(grads.get_mut(self.w[1]), dq.data(), w2b, r, false);
            rows_backward(grads.get_mut(self.w[3]), dq.data(), w1b, r, true);
        });
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        scope.gemm(1.0, du.mat(), q.mat(), 1.0, dx.tensor.mat_mut());
    }

    fn add(&self, scope: &Scope<'_>, _: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        let (p, q) = self.product(scope, x.cols(), y.cols());
        let mut u = scope.alloc(x.rows(), self.r * self.r);
        scope.gemm(1.0, x.mat(), q.mat().t(), 0.0, u.mat_mut());
        scope.gemm(weight * self.scaling, u.mat(), p.mat().t(), 1.0, y.mat_mut());
    }
}

impl Variant for Loha {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        self.w.to_vec()
    }

    /// All as Kaiming has it but `W2b`, which is zero.
    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        for (i, id) in self.w.into_iter().enumerate() {
            let param = params.get_mut(id);
            param.value = match i {
                3 => vec![0.0; param.rows * param.cols],
                _ => init::kaiming(param.rows, param.cols, start.seed, start.stream + i as u64),
            };
        }
        Ok(())
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let (p, q) = self.factors(params);
        Some(LowRank { a: &q, b: &p, r: self.r * self.r, scaling: self.scaling }.norm())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        let (p, q) = self.factors(params);
        let change = LowRank { a: &q, b: &p, r: self.r * self.r, scaling: self.scaling };
        change.add_rows(at.site, factor, at.rows.clone(), w);
        Ok(())
    }
}

/// `peft_type` LOHA.
pub struct LohaMethod;

impl Method for LohaMethod {
    fn peft_type(&self) -> &'static str {
        "LOHA"
    }

    fn names(&self) -> &'static [&'static str] {
        &["loha"]
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        lycoris::FOREIGN
    }

    fn rank_and_alpha(&self, config: &LoraConfig) -> Result<(usize, f64), Error> {
        lycoris::rank_and_alpha(config)
    }

    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        lycoris::configure(config);
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        lycoris::check(config)
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let plan = |target: &Target| {
            let site = &sites[target.site];
            linear_only(site)?;
            let (r, k, o) = (target.r, site.in_features, site.out_features);
            let mut matrix =
                |name: &str, rows, cols| params.push(format!("{}.{name}", site.path), rows, cols, Vec::new());
            let w = [
                matrix("hada_w1_a", o, r),
                matrix("hada_w1_b", r, k),
                matrix("hada_w2_a", o, r),
                matrix("hada_w2_b", r, k),
            ];
            let dropout = OutputDropout::new(config, true, target.site as u64)?;
            let scaling = (target.alpha / r as f64) as f32;
            Ok(Arc::new(Loha { w, r, scaling, dropout }) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        match (&shape("hada_w1_a")?[..], &shape("hada_w1_b")?[..]) {
            (&[o, _], &[_, k]) => Some((k, o)),
            _ => None,
        }
    }
}

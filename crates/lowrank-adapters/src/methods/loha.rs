//! LoHa (Hyeon-Woo et al. 2022, FedPara): the change is an element-wise product of two low-rank matrices,
//! `y = W0 x + b + s ((W1a W1b) * (W2a W2b)) x`.
//!
//! # Shapes
//! `W1a, W2a: [O,R]`, `W1b, W2b: [R,K]`, `s = alpha / R`. `W2b` starts as zero.
//!
//! The `O x K` product is never formed. It equals `P Q` of rank `R^2` with `P[o, ij] = W1a[o,i] W2a[o,j]` and
//! `Q[ij, k] = W1b[i,k] W2b[j,k]`, so a layer costs as much as a LoRA of rank `R^2`.

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

impl Loha {
    /// `P: [O, R^2]`, its rows times what dropout leaves of them, and `Q: [R^2, K]`.
    fn product(&self, scope: &Scope<'_>, k: usize, o: usize) -> (Tensor, Tensor) {
        let rank = self.r * self.r;
        let (mut p, mut q) = (scope.alloc(o, rank), scope.alloc(rank, k));
        let [w1a, w1b, w2a, w2b] = self.w.map(|id| scope.params.tensor(id));
        scope.device.loha_left(&mut p, w1a, w2a);
        scope.device.loha_right(&mut q, w1b, w2b);
        if let Some(factors) = self.dropout.factors(scope, o) {
            scope.device.scale_rows(&mut p, &factors);
        }
        (p, q)
    }

    /// The change as a product.
    fn factors(&self, params: &Params) -> (Vec<f32>, Vec<f32>) {
        let rank = self.r * self.r;
        let [w1a, w1b, w2a, w2b] = self.w.map(|id| params.values(id));
        let k = w1b.len() / self.r;
        let (mut p, mut q) = (vec![0.0; w1a.len() * self.r], vec![0.0; rank * k]);
        kernels::loha_left(&mut p, w1a, w2a, self.r);
        kernels::loha_right(&mut q, w1b, w2b, self.r);
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
        let (n, k, o, rank) = (x.rows(), x.cols(), dy.cols(), self.r * self.r);
        let (p, q) = self.product(scope, k, o);
        let (mut u, mut du) = (scope.alloc(n, rank), scope.alloc(n, rank));
        scope.gemm(1.0, x.mat(), q.mat().t(), 0.0, u.mat_mut());
        scope.gemm(self.scaling, dy.mat(), p.mat(), 0.0, du.mat_mut());
        let (mut dp, mut dq) = (scope.alloc(o, rank), scope.alloc(rank, k));
        scope.gemm(self.scaling, dy.mat().t(), u.mat(), 0.0, dp.mat_mut());
        scope.gemm(1.0, du.mat().t(), x.mat(), 0.0, dq.mat_mut());
        if let Some(factors) = self.dropout.factors(scope, o) {
            scope.device.scale_rows(&mut dp, &factors);
        }
        let [w1a, w1b, w2a, w2b] = self.w.map(|id| scope.params.tensor(id));
        let [da, db] = grads.pair_mut([self.w[0], self.w[2]].map(Some));
        scope.device.loha_left_backward(da, db, &dp, w1a, w2a);
        let [da, db] = grads.pair_mut([self.w[1], self.w[3]].map(Some));
        scope.device.loha_right_backward(da, db, &dq, w1b, w2b);
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
            param.set(match i {
                3 => vec![0.0; param.rows * param.cols],
                _ => init::kaiming(param.rows, param.cols, start.seed, start.stream + i as u64),
            });
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

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("loha", "")]
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        lycoris::FOREIGN
    }

    fn unused_fields(&self) -> &'static [&'static str] {
        lycoris::UNUSED
    }

    fn fields(&self) -> &'static [&'static str] {
        &["alpha", "rank_dropout", "module_dropout"]
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

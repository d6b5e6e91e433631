//! DoRA (Liu et al. 2024): magnitude and direction of each output feature are trained apart,
//! `y = m / c * (W0 + s B A) x + b` with `c_o = ||(W0 + s B A)_o||`.
//!
//! # Shapes
//! `A: [R,K]`, `B: [O,R]`, `m, c: [O]`; `m` starts as `c`.
//!
//! As in the paper (section 4.3) and in PEFT, `c` follows the weights but has no gradient. It is computed once for each version
//! of the parameters and without forming `B A`: `c^2 = ||W0||^2 + 2 s rowsum(B * (W0 A^T)) + s^2 rowsum((B A A^T) * B)`, of
//! which the first term never changes.

use std::sync::{Arc, Mutex, OnceLock};

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor, kernels,
};

use crate::base::whole_weight;
use crate::config::LoraConfig;
use crate::contract::{InitContext, Method, Target, Variant, WeightRows};
use crate::error::Error;
use crate::methods::lora::{Lora, LoraMethod};

/// DoRA at one linear site.
#[derive(Debug)]
pub struct Dora {
    /// `A`, `B` and the scaling.
    pub lora: Lora,
    /// `m: [O]`, the norms of the base's rows at the start.
    pub magnitude: ParamId,
    /// `||W0_o||^2`.
    base_squares: OnceLock<Vec<f64>>,
    /// `c` of one version of the parameters.
    norms: Mutex<Option<(u64, Tensor)>>,
}

impl Dora {
    /// `c: [1,O]` for the present parameters, computed where it is not known.
    fn norms(&self, scope: &Scope<'_>, base: &Linear) -> Tensor {
        let (device, version) = (scope.device, scope.params.version());
        let mut known = self.norms.lock().expect("no panic holds the lock");
        if let Some((of, norms)) = &*known
            && *of == version
            && norms.is_shape_only() == device.is_plan()
        {
            return norms.clone();
        }
        let (r, o) = (self.lora.r, base.out_features());
        let (a, b) = (scope.params.tensor(self.lora.a), scope.params.tensor(self.lora.b));
        let (mut p, mut aa) = (scope.alloc(r, o), scope.alloc(r, r));
        device.linear(&mut p, a, base.view(), 0.0);
        device.gemm(1.0, a.mat(), a.mat().t(), 0.0, aa.mat_mut());
        // It outlives the step, so it is not in the memory of one.
        let mut norms = match device.is_plan() {
            true => Tensor::shape_only(1, o),
            false => Tensor::vector(vec![0.0; o]),
        };
        match device.is_plan() {
            true => device.dora_norms(&mut norms, &[], b, &p, &aa, self.lora.scaling),
            false => {
                let squares = self.base_squares.get_or_init(|| device.weight_squares(base.view()));
                device.dora_norms(&mut norms, squares, b, &p, &aa, self.lora.scaling);
            }
        }
        *known = Some((version, norms.clone()));
        norms
    }

    /// `c: [1,O]` of the rows of a whole weight `w: [O,K]` that is at hand.
    fn norms_of(
        &self,
        params: &Params,
        w: impl FnOnce() -> Result<Vec<f32>, Error>,
    ) -> Result<Tensor, Error> {
        let mut known = self.norms.lock().expect("no panic holds the lock");
        if let Some((of, norms)) = &*known
            && *of == params.version()
            && !norms.is_shape_only()
        {
            return Ok(norms.clone());
        }
        let norms = Tensor::vector(row_norms(&w()?, params.get(self.magnitude).cols));
        *known = Some((params.version(), norms.clone()));
        Ok(norms)
    }

    /// `m / c: [1,O]`.
    fn factors(&self, scope: &Scope<'_>, norms: &Tensor) -> Tensor {
        let mut factors = scope.alloc(1, norms.cols());
        scope.device.copy(&mut factors, scope.params.tensor(self.magnitude));
        scope.device.div(&mut factors, norms);
        factors
    }

    /// `z = W0 x + s B A x`, without the base's bias, and `u = A x`.
    fn direction(&self, scope: &Scope<'_>, base: &Linear, x: &Tensor) -> (Tensor, Tensor) {
        let mut z = scope.alloc(x.rows(), base.out_features());
        base.product(scope, x, &mut z, 0.0);
        let mut u = scope.alloc(x.rows(), self.lora.r);
        scope.gemm(1.0, x.mat(), scope.param(self.lora.a).t(), 0.0, u.mat_mut());
        scope.gemm(self.lora.scaling, u.mat(), scope.param(self.lora.b).t(), 1.0, z.mat_mut());
        (z, u)
    }
}

/// The norms of the `o` rows of `w`.
fn row_norms(w: &[f32], o: usize) -> Vec<f32> {
    let mut norms = vec![0.0; o];
    kernels::row_norms(&mut norms, w, w.len() / o.max(1));
    norms
}

impl Adapter for Dora {
    /// With dropout, what is dropped is the input of the change alone, as in PEFT:
    /// `y = W0 x + b + (m/c - 1) W0 x' + m/c s B A x'` for the dropped `x'`.
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let (n, drops) = (x.rows(), scope.drops(self.lora.dropout));
        let kept = scope.dropout(x, self.lora.dropout, self.lora.stream);
        let factors = self.factors(scope, &self.norms(scope, base));
        let (z, u) = self.direction(scope, base, &kept);
        let mut beta = beta;
        if drops {
            let mut dropped = scope.alloc(n, x.cols());
            scope.device.copy(&mut dropped, x);
            scope.device.sub(&mut dropped, &kept);
            base.product(scope, &dropped, y, beta);
            beta = 1.0;
        }
        scope.device.scale_columns(y, &z, &factors, beta);
        if let Some(bias) = &base.bias {
            scope.device.add_bias(y, bias);
        }
        vec![z, u]
    }

    /// With `dz = m/c dy`: `dm += sum_n dy z / c`, the rest is LoRA's with `dz` for `dy`.
    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        saved: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let Lora { a, b, r, scaling, dropout, stream, .. } = self.lora;
        let (z, u) = (&saved[0], &saved[1]);
        let (n, o) = (dy.rows(), dy.cols());
        let kept = scope.dropout(x, dropout, stream);
        let norms = self.norms(scope, base);
        let factors = self.factors(scope, &norms);
        let mut dz = scope.alloc(n, o);
        scope.device.dora_magnitude_backward(grads.get_mut(self.magnitude), dy, z, &norms);
        scope.device.scale_columns(&mut dz, dy, &factors, 0.0);
        let mut du = scope.alloc(n, r);
        scope.gemm(scaling, dz.mat(), scope.param(b), 0.0, du.mat_mut());
        scope.gemm(scaling, dz.mat().t(), u.mat(), 1.0, grads.mat_mut(b));
        if grads.wants(a) {
            scope.gemm(1.0, du.mat().t(), kept.mat(), 1.0, grads.mat_mut(a));
        }
        let Some(dx) = dx else { return };
        if !scope.drops(dropout) {
            base.backward(scope, &dz, dx);
            scope.gemm(1.0, du.mat(), scope.param(a), 1.0, dx.tensor.mat_mut());
            return;
        }
        // W0 (x - x') gives `dy W0` to x and takes it from x'.
        base.backward(scope, dy, dx);
        scope.device.sub(&mut dz, dy);
        let mut dropped = Accumulator::fresh(scope.alloc(n, x.cols()));
        base.backward(scope, &dz, &mut dropped);
        scope.gemm(1.0, du.mat(), scope.param(a), 1.0, dropped.tensor.mat_mut());
        scope.dropout_backward(&mut dx.tensor, &dropped.tensor, dropout, stream, true);
    }
}

impl Variant for Dora {
    /// The squared norms of the base's rows, and the norms.
    fn cached_bytes(&self, out_features: usize) -> usize {
        out_features * (size_of::<f64>() + size_of::<f32>())
    }

    fn rank(&self) -> Option<usize> {
        Some(self.lora.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.lora.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        vec![self.lora.a, self.lora.b, self.magnitude]
    }

    /// `m = c`, so that training begins where `A` and `B` do.
    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        self.lora.init(params, start)?;
        let mut w = whole_weight(start.base, &start.site)?;
        let o = start.site.out_features;
        let straight = Site { kind: SiteKind::Linear, ..start.site.clone() };
        self.lora.change(params).add_rows(&straight, 1.0, 0..o, &mut w);
        params.set(self.magnitude, row_norms(&w, o));
        Ok(())
    }

    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        self.lora.merge(params, at, w)?;
        let m = params.values(self.magnitude);
        if at.site.kind == SiteKind::TransposedLinear {
            // The rows at hand are not the output features: their norms take the whole weight.
            let o = at.site.out_features;
            let norms = self.norms_of(params, || {
                let mut whole = whole_weight(at.base, at.site)?;
                let straight = Site { kind: SiteKind::Linear, ..at.site.clone() };
                self.lora.change(params).add_rows(&straight, 1.0, 0..o, &mut whole);
                Ok(whole)
            })?;
            let mut factors = m.to_vec();
            kernels::div(&mut factors, norms.values());
            w.chunks_exact_mut(o).for_each(|row| kernels::mul(row, &factors));
            return Ok(());
        }
        for (row, m) in w.chunks_exact_mut(at.site.in_features).zip(&m[at.rows.clone()]) {
            kernels::scale(row, m / kernels::sum_squares(row).sqrt() as f32);
        }
        Ok(())
    }

    fn unmerge(&self, _: &Params, at: &WeightRows<'_>, _: &mut [f32]) -> Result<(), Error> {
        Err(Error::Config(format!(
            "{}: merging a DoRA leaves no trace of the base weight's norms, so it cannot be taken out; keep the base model",
            at.site.path
        )))
    }
}

/// `peft_type` LORA with `use_dora`.
pub struct DoraMethod;

impl Method for DoraMethod {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn title(&self) -> &'static str {
        "LoRA adapter"
    }

    fn has_bias_field(&self) -> bool {
        true
    }

    fn matches(&self, config: &LoraConfig) -> bool {
        config.is_set("use_dora")
    }

    fn fields(&self) -> &'static [&'static str] {
        LoraMethod.fields()
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        config.check_lora()
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
            let lora = Lora::plan(config, target, site, params)?;
            let name = format!("{}.lora_magnitude_vector", site.path);
            let magnitude = params.push_vector(name, site.out_features, Vec::new());
            let (base_squares, norms) = (OnceLock::new(), Mutex::default());
            Ok(Arc::new(Dora { lora, magnitude, base_squares, norms }) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        LoraMethod.features(shape)
    }
}

//! DoRA (Liu et al. 2024): magnitude and direction of each output feature apart,
//! `y = m / c * (W0 + s B A) x + b` with `c_o = ||(W0 + s B A)_o||`.
//!
//! As the paper (section 4.3) and PEFT have it, `c` follows the weights but gets no gradient. It is computed when the
//! weights have changed, and not by forming `B A`:
//! `c^2 = ||W0||^2 + 2 s rowsum(B * (W0 A^T)) + s^2 rowsum((B A A^T) * B)`, where the first term never changes.

use std::sync::{Arc, Mutex, OnceLock};

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor, kernels,
};
use lowrank_kernels::{MatMut, MatRef};

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
    norms: Mutex<Option<(u64, Arc<[f32]>)>>,
}

impl Dora {
    /// `c: [O]` for the present parameters.
    fn norms(&self, params: &Params, base: &Linear) -> Arc<[f32]> {
        self.known_norms(params, || {
            let (r, k, o, s) = (self.lora.r, base.in_features(), base.out_features(), self.lora.scaling);
            let (a, b) = (&params.get(self.lora.a).value, &params.get(self.lora.b).value);
            let mut p = vec![0.0; r * o];
            let product = if base.transposed { kernels::linear_backward } else { kernels::linear };
            product(&mut p, a, &base.weight.view(), r, 0.0);
            let mut aa = vec![0.0; r * r];
            let rows = MatRef::row_major(a, k);
            kernels::gemm(r, r, k, 1.0, rows, rows.t(), 0.0, MatMut::row_major(&mut aa, r));
            let s = f64::from(s);
            let norm = |(row, (b, square)): (usize, (&[f32], &f64))| {
                let mut sum = *square;
                for (i, &bi) in b.iter().enumerate() {
                    sum += 2.0 * s * f64::from(bi) * f64::from(p[i * o + row]);
                    let around = b.iter().zip(&aa[i * r..]).map(|(x, y)| f64::from(*x) * f64::from(*y));
                    sum += s * s * f64::from(bi) * around.sum::<f64>();
                }
                sum.max(0.0).sqrt() as f32
            };
            let squares = self.base_squares.get_or_init(|| row_squares(base));
            b.chunks_exact(r).zip(squares).enumerate().map(norm).collect()
        })
    }

    /// `c` of this version of the parameters, computed where it is not known.
    fn known_norms(&self, params: &Params, compute: impl FnOnce() -> Arc<[f32]>) -> Arc<[f32]> {
        let mut known = self.norms.lock().expect("no panic holds the lock");
        match &*known {
            Some((version, norms)) if *version == params.version() => norms.clone(),
            _ => {
                let norms = compute();
                *known = Some((params.version(), norms.clone()));
                norms
            }
        }
    }

    /// `m / c`, where the device has numbers at all.
    fn factors(&self, scope: &Scope<'_>, base: &Linear) -> Vec<f32> {
        let mut factors = Vec::new();
        let (r, k, o) = (self.lora.r, base.in_features(), base.out_features());
        scope.device.run(2 * r * k * (o + r), || {
            let norms = self.norms(scope.params, base);
            factors = divide(&scope.params.get(self.magnitude).value, &norms);
        });
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

fn divide(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

/// The squared norm of every output feature's weights.
fn row_squares(base: &Linear) -> Vec<f64> {
    let (view, cols) = (base.weight.view(), base.weight.cols());
    let mut row = vec![0.0; cols];
    let mut squares = vec![0.0; base.out_features()];
    for i in 0..base.weight.rows() {
        view.expand(i, 0..cols, &mut row);
        if base.transposed {
            squares.iter_mut().zip(&row).for_each(|(s, x)| *s += f64::from(*x) * f64::from(*x));
        } else {
            squares[i] = kernels::sum_squares(&row);
        }
    }
    squares
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
        let factors = self.factors(scope, base);
        let (z, u) = self.direction(scope, base, &kept);
        let mut beta = beta;
        if drops {
            let mut dropped = scope.alloc(n, x.cols());
            scope.device.run(0, || {
                let numbers = dropped.data_mut().iter_mut().zip(x.data()).zip(kept.data());
                numbers.for_each(|((d, x), k)| *d = x - k);
            });
            base.product(scope, &dropped, y, beta);
            beta = 1.0;
        }
        scope.device.run(0, || {
            kernels::scale_columns(y.data_mut(), z.data(), &factors, n, beta);
            if let Some(bias) = &base.bias {
                kernels::add_bias(y.data_mut(), bias, n, bias.len());
            }
        });
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
        let factors = self.factors(scope, base);
        let mut dz = scope.alloc(n, o);
        scope.device.run(0, || {
            let norms = self.norms(scope.params, base);
            let mut sums = vec![0.0; o];
            kernels::scale_columns_backward(&mut sums, dy.data(), z.data(), n);
            let grad = grads.get_mut(self.magnitude).iter_mut();
            grad.zip(sums).zip(&*norms).for_each(|((g, sum), c)| *g += sum / c);
            kernels::scale_columns(dz.data_mut(), dy.data(), &factors, n, 0.0);
        });
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
        scope.device.run(0, || {
            dz.data_mut().iter_mut().zip(dy.data()).for_each(|(dz, dy)| *dz -= dy);
        });
        let mut dropped = Accumulator::fresh(scope.alloc(n, x.cols()));
        base.backward(scope, &dz, &mut dropped);
        scope.gemm(1.0, du.mat(), scope.param(a), 1.0, dropped.tensor.mat_mut());
        scope.dropout_backward(&mut dx.tensor, &dropped.tensor, dropout, stream, true);
    }
}

impl Variant for Dora {
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
        let (k, o) = (start.site.in_features, start.site.out_features);
        let straight = Site { kind: SiteKind::Linear, ..start.site.clone() };
        self.lora.change(params).add_rows(&straight, 1.0, 0..o, &mut w);
        let norms = w.chunks_exact(k).map(|row| kernels::sum_squares(row).sqrt() as f32);
        params.get_mut(self.magnitude).value = norms.collect();
        Ok(())
    }

    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        self.lora.merge(params, at, w)?;
        let m = &params.get(self.magnitude).value;
        if at.site.kind == SiteKind::TransposedLinear {
            // The rows at hand are not the output features: their norms take the whole weight.
            let mut whole = whole_weight(at.base, at.site)?;
            let k = at.site.in_features;
            let norms = self.known_norms(params, || {
                let straight = Site { kind: SiteKind::Linear, ..at.site.clone() };
                self.lora.change(params).add_rows(&straight, 1.0, 0..at.site.out_features, &mut whole);
                whole.chunks_exact(k).map(|row| kernels::sum_squares(row).sqrt() as f32).collect()
            });
            let factors = divide(m, &norms);
            for row in w.chunks_exact_mut(at.site.out_features) {
                row.iter_mut().zip(&factors).for_each(|(w, f)| *w *= f);
            }
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

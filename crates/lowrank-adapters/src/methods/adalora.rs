//! AdaLoRA (Zhang et al. 2023): LoRA in the form of a singular value decomposition, `y = W0 x + b + s B (E * (A x))`, whose ranks
//! are pruned during training.
//!
//! # Shapes
//! `A: [R,K]`, `B: [O,R]` (both normal at the start), `E: [R,1]` (zero at the start), `s = alpha / r0` with the rank `r0` at the
//! start.
//!
//! A penalty keeps the rows of `A` and the columns of `B` nearly orthogonal. The budget (`Budget`) of all ranks falls during
//! training, and the ranks that matter least lose their `E`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Adapter, Device, Grads, Linear, ParamId, Params, Scope, Site, Tensor, kernels,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::LoraConfig;
use crate::contract::{AdaptedSite, Exported, InitContext, Method, Target, Variant, WeightRows, linear_only};
use crate::error::Error;
use crate::low_rank::LowRank;
use crate::training_hook::TrainingHook;

/// AdaLoRA at one linear site.
#[derive(Debug)]
pub struct AdaLora {
    /// `A: [R,K]`, right singular vectors.
    pub a: ParamId,
    /// `B: [O,R]`, left singular vectors.
    pub b: ParamId,
    /// `E: [R,1]`, singular values, zero at the start.
    pub e: ParamId,
    /// `R` as it is now: 0 where the budget left nothing.
    pub r: usize,
    /// `alpha / (r0 + 1e-5)` with the rank `r0` that training started from.
    pub scaling: f32,
    /// Probability that dropout zeroes an input value.
    pub dropout: f32,
    /// Stream of this site's random numbers.
    pub stream: u64,
}

impl AdaLora {
    /// `t = A x` and `E * t`.
    fn project(&self, scope: &Scope<'_>, x: &Tensor) -> (Tensor, Tensor) {
        let (mut t, mut scaled) = (scope.alloc(x.rows(), self.r), scope.alloc(x.rows(), self.r));
        scope.gemm(1.0, x.mat(), scope.param(self.a).t(), 0.0, t.mat_mut());
        scope.device.scale_columns(&mut scaled, &t, scope.params.tensor(self.e), 0.0);
        (t, scaled)
    }

    /// `E * A`, so that the change is a product of two matrices.
    fn scaled_a(&self, params: &Params) -> Vec<f32> {
        let (a, e) = (params.get(self.a), params.values(self.e));
        a.values().chunks_exact(a.cols).zip(e).flat_map(|(row, e)| row.iter().map(move |x| e * x)).collect()
    }
}

impl Adapter for AdaLora {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        base.forward(scope, x, y, beta);
        if self.r == 0 {
            return Vec::new();
        }
        let x = scope.dropout(x, self.dropout, self.stream);
        let (t, scaled) = self.project(scope, &x);
        scope.gemm(self.scaling, scaled.mat(), scope.param(self.b).t(), 1.0, y.mat_mut());
        vec![t, scaled]
    }

    /// LoRA's, with `E` between: `dE += sum_n ds t`, `dt = E ds`.
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
        if self.r == 0 {
            return dx.map_or((), |dx| base.backward(scope, dy, dx));
        }
        let (n, x) = (dy.rows(), scope.dropout(x, self.dropout, self.stream));
        let (t, scaled) = (&saved[0], &saved[1]);
        let (mut ds, mut dt) = (scope.alloc(n, self.r), scope.alloc(n, self.r));
        scope.gemm(self.scaling, dy.mat(), scope.param(self.b), 0.0, ds.mat_mut());
        scope.gemm(self.scaling, dy.mat().t(), scaled.mat(), 1.0, grads.mat_mut(self.b));
        scope.device.scale_columns_backward(grads.get_mut(self.e), &ds, t);
        scope.device.scale_columns(&mut dt, &ds, scope.params.tensor(self.e), 0.0);
        scope.gemm(1.0, dt.mat().t(), x.mat(), 1.0, grads.mat_mut(self.a));
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        scope.gemm_through_dropout(dt.mat(), scope.param(self.a), &mut dx.tensor, self.dropout, self.stream);
    }

    fn add(&self, scope: &Scope<'_>, _: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        if self.r == 0 {
            return;
        }
        let (_, scaled) = self.project(scope, x);
        scope.gemm(weight * self.scaling, scaled.mat(), scope.param(self.b).t(), 1.0, y.mat_mut());
    }
}

impl Variant for AdaLora {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        vec![self.a, self.b, self.e]
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        for (id, stream) in [(self.a, start.stream), (self.b, start.stream + 1)] {
            params.get_mut(id).fill_with(|x| kernels::normal(x, 0.0, 0.02, start.seed, stream));
        }
        params.set(self.e, vec![0.0; self.r]);
        Ok(())
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let (a, b) = (self.scaled_a(params), params.values(self.b));
        Some(LowRank { a: &a, b, r: self.r, scaling: self.scaling }.norm())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        if self.r == 0 {
            return Ok(());
        }
        let (a, b) = (self.scaled_a(params), params.values(self.b));
        let change = LowRank { a: &a, b, r: self.r, scaling: self.scaling };
        change.add_rows(at.site, factor, at.rows.clone(), w);
        Ok(())
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Extra {
    target_r: usize,
    init_r: usize,
    tinit: u64,
    tfinal: u64,
    #[serde(rename = "deltaT")]
    delta_t: u64,
    beta1: f32,
    beta2: f32,
    orth_reg_weight: f64,
    total_step: Option<u64>,
}

impl Default for Extra {
    fn default() -> Self {
        Self {
            target_r: 8,
            init_r: 12,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
        }
    }
}

/// The three parameters of a site and the name of its `E`.
#[derive(Clone)]
struct Triplet {
    name: String,
    a: ParamId,
    b: ParamId,
    e: ParamId,
    r: usize,
}

/// The budget of ranks. Importance of a number is the product of two running means, of `|p dp|` and of how much that
/// varies; that of a rank is its `E`'s plus the means of its row of `A` and column of `B`. From step `tinit` to
/// `total_step - tfinal` the budget falls from all ranks to `target_r` for each site, as a cube; every `deltaT` steps
/// the `E` of ranks beyond it become zero.
struct Budget {
    extra: Extra,
    sites: Vec<Triplet>,
    /// Running means of `|p dp|` and of its deviation, by parameter.
    sensitivity: BTreeMap<usize, [Tensor; 2]>,
    /// Which ranks are kept, by site, once any were dropped.
    kept: Option<Vec<Vec<bool>>>,
}

impl Clone for Budget {
    /// With running means of its own.
    fn clone(&self) -> Self {
        let copy = |x: &Tensor| Tensor::from_vec(x.rows(), x.cols(), x.to_vec());
        let sensitivity = self.sensitivity.iter().map(|(i, pair)| (*i, pair.each_ref().map(copy)));
        Self {
            extra: self.extra.clone(),
            sites: self.sites.clone(),
            sensitivity: sensitivity.collect(),
            kept: self.kept.clone(),
        }
    }
}

impl Budget {
    fn new(extra: Extra, sites: Vec<Triplet>) -> Self {
        Self { extra, sites, sensitivity: BTreeMap::new(), kept: None }
    }

    fn ids(&self) -> impl Iterator<Item = ParamId> + '_ {
        self.sites.iter().flat_map(|s| [s.a, s.b, s.e])
    }

    /// The budget at `step`, and whether it is applied.
    fn at(&self, step: u64) -> (usize, bool) {
        let Extra { tinit, tfinal, delta_t, target_r, .. } = self.extra;
        let total = self.extra.total_step.unwrap_or(0);
        let all: usize = self.sites.iter().map(|s| s.r).sum();
        let target = target_r * self.sites.len();
        if step <= tinit {
            return (all, false);
        }
        if step > total.saturating_sub(tfinal) {
            return (target, true);
        }
        let left = 1.0 - (step - tinit) as f64 / (total - tfinal - tinit) as f64;
        let budget = (all as f64 - target as f64) * left.powi(3) + target as f64;
        (budget as usize, step.is_multiple_of(delta_t.max(1)))
    }

    fn update_sensitivity(&mut self, device: &Device, params: &Params, grads: &Grads) {
        let Extra { beta1, beta2, .. } = self.extra;
        let ids: Vec<ParamId> = self.ids().collect();
        for (i, id) in ids.into_iter().enumerate() {
            let (value, grad) = (params.tensor(id), grads.get(id));
            let zeros = || Tensor::vector(vec![0.0; value.len()]);
            let [mean, deviation] = self.sensitivity.entry(i).or_insert_with(|| [zeros(), zeros()]);
            device.adalora_sensitivity(mean, deviation, value, grad, beta1, beta2);
        }
    }

    /// The importance of each rank of site `i`; 0 before the first step.
    fn importance(&self, device: &Device, i: usize) -> Vec<f32> {
        let mut scores = device.zeros(1, self.sites[i].r);
        let [a, b, e] = [0, 1, 2].map(|part| self.sensitivity.get(&(3 * i + part)));
        if let (Some(a), Some(b), Some(e)) = (a, b, e) {
            device.adalora_importance(&mut scores, a.each_ref(), b.each_ref(), e.each_ref());
        }
        device.to_vec(&scores)
    }

    /// Keeps the `budget` most important ranks.
    fn allocate(&mut self, device: &Device, budget: usize, params: &mut Params) {
        let scores: Vec<Vec<f32>> = (0..self.sites.len()).map(|i| self.importance(device, i)).collect();
        let mut all: Vec<f32> = scores.concat();
        all.sort_unstable_by(f32::total_cmp);
        // PEFT's kthvalue: the largest score that is dropped.
        let dropped = all.len().saturating_sub(budget);
        let Some(&threshold) = dropped.checked_sub(1).and_then(|last| all.get(last)) else { return };
        self.kept = Some(scores.iter().map(|s| s.iter().map(|score| *score > threshold).collect()).collect());
        self.mask(params);
    }

    fn mask(&self, params: &mut Params) {
        for (site, kept) in self.sites.iter().zip(self.kept.iter().flatten()) {
            let keep = |(e, kept): (&f32, &bool)| if *kept { *e } else { 0.0 };
            let e = params.values(site.e).iter().zip(kept).map(keep).collect();
            params.set(site.e, e);
        }
    }
}

impl TrainingHook for Budget {
    /// `orth_reg_weight` times the mean of `||A A^T - I||` and `||B^T B - I||` over all sites.
    fn penalty(&self, device: &Device, params: &Params, grads: &mut Grads) -> f64 {
        let factor = self.extra.orth_reg_weight / (2 * self.sites.len()).max(1) as f64;
        let mut total = 0.0;
        for site in self.sites.iter().filter(|site| site.r > 0) {
            let r = site.r;
            let identity: Vec<f32> = (0..r * r).map(|i| if i % (r + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let identity = device.tensor(r, r, &identity);
            for (id, rows) in [(site.a, true), (site.b, false)] {
                let m = params.mat(id);
                let (left, right) = if rows { (m, m.t()) } else { (m.t(), m) };
                let mut gram = device.alloc(r, r);
                device.gemm(1.0, left, right, 0.0, gram.mat_mut());
                device.sub(&mut gram, &identity);
                let norm = device.sum_squares(&gram).sqrt();
                total += norm;
                // The gradient of ||G|| with symmetric G = A A^T - I is 2 G A / ||G||.
                let scale = (2.0 * factor / norm.max(f64::MIN_POSITIVE)) as f32;
                let (left, right) = if rows { (gram.mat(), m) } else { (m, gram.mat()) };
                device.gemm(scale, left, right, 1.0, grads.mat_mut(id));
            }
        }
        factor * total
    }

    fn after_step(&mut self, device: &Device, step: u64, params: &mut Params, grads: &Grads) {
        let last = self.extra.total_step.unwrap_or(0).saturating_sub(self.extra.tfinal);
        if step < last {
            self.update_sensitivity(device, params, grads);
        }
        let (budget, apply) = self.at(step);
        if step > last {
            self.mask(params);
        } else if apply || step == last {
            self.allocate(device, budget, params);
        }
        if step == last {
            self.sensitivity.clear();
        }
    }

    /// Mean and deviation of every value's sensitivity.
    fn bytes(&self, params: &Params) -> usize {
        self.ids().map(|id| 2 * size_of::<f32>() * params.tensor(id).len()).sum()
    }

    fn state(&self) -> Vec<(String, Vec<f32>)> {
        let mut state = Vec::new();
        for (i, [mean, deviation]) in &self.sensitivity {
            state.push((format!("sensitivity.{i}"), mean.to_vec()));
            state.push((format!("deviation.{i}"), deviation.to_vec()));
        }
        for (site, kept) in self.sites.iter().zip(self.kept.iter().flatten()) {
            let kept = kept.iter().map(|kept| f32::from(u8::from(*kept))).collect();
            state.push((format!("{KEPT}{}", site.name), kept));
        }
        state
    }

    fn restore(&mut self, name: &str, value: Vec<f32>) {
        let unset = || [(); 2].map(|()| Tensor::vector(Vec::new()));
        let number = |prefix: &str| name.strip_prefix(prefix).and_then(|i| i.parse::<usize>().ok());
        if let Some(i) = number("sensitivity.") {
            self.sensitivity.entry(i).or_insert_with(unset)[0] = Tensor::vector(value);
        } else if let Some(i) = number("deviation.") {
            self.sensitivity.entry(i).or_insert_with(unset)[1] = Tensor::vector(value);
        } else if let Some(at) =
            name.strip_prefix(KEPT).and_then(|name| self.sites.iter().position(|s| s.name == name))
        {
            let kept = self.kept.get_or_insert_with(|| self.sites.iter().map(|s| vec![true; s.r]).collect());
            kept[at] = value.iter().map(|kept| *kept != 0.0).collect();
        }
    }

    fn clone_box(&self) -> Box<dyn TrainingHook> {
        Box::new(self.clone())
    }
}

/// Prefix of the names of kept ranks in the hook's state.
const KEPT: &str = "kept.";

/// `peft_type` ADALORA.
pub struct AdaloraMethod;

impl Method for AdaloraMethod {
    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("adalora", "")]
    }

    fn has_bias_field(&self) -> bool {
        true
    }

    /// Its ranks are `init_r` and `target_r`, and its start is one; it writes `rank_pattern` itself.
    fn unused_fields(&self) -> &'static [&'static str] {
        &["r", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"]
    }

    fn fields(&self) -> &'static [&'static str] {
        &[
            "target_r",
            "init_r",
            "tinit",
            "tfinal",
            "deltaT",
            "beta1",
            "beta2",
            "orth_reg_weight",
            "total_step",
            "trainable_token_indices",
        ]
    }

    fn rank_and_alpha(&self, config: &LoraConfig) -> Result<(usize, f64), Error> {
        Ok((config.parse_extra::<Extra>()?.init_r, config.lora_alpha))
    }

    fn configure(&self, config: &mut LoraConfig, _: &[Site], total_steps: u64) {
        config.default_to("total_step", total_steps);
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        let extra: Extra = config.parse_extra()?;
        let wrong = |what: &str| Err(Error::Config(what.into()));
        if extra.init_r == 0 || extra.target_r > extra.init_r {
            return wrong("init_r must be at least 1 and not less than target_r");
        }
        if !(0.0..1.0).contains(&extra.beta1) || !(0.0..1.0).contains(&extra.beta2) {
            return wrong("beta1 and beta2 must be at least 0 and less than 1");
        }
        if !(extra.orth_reg_weight >= 0.0 && extra.orth_reg_weight.is_finite()) {
            return wrong("orth_reg_weight must be a number from 0");
        }
        let Some(total) = extra.total_step.filter(|total| *total > 0) else {
            return wrong("total_step is missing: AdaLoRA's budget needs the number of steps");
        };
        if extra.tinit.saturating_add(extra.tfinal) >= total {
            return wrong(
                "tinit + tfinal must be less than total_step, or no steps are left to lower the budget",
            );
        }
        config.check_lora()
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let extra: Extra = config.parse_extra()?;
        let alpha = if config.lora_alpha > 0.0 { config.lora_alpha } else { extra.init_r as f64 };
        let scaling = (alpha / (extra.init_r as f64 + 1e-5)) as f32;
        let plan = |target: &Target| {
            let site = &sites[target.site];
            linear_only(site)?;
            let (k, o, path) = (site.in_features, site.out_features, &site.path);
            // A finished run names the ranks that are left.
            let r = match config.rank_pattern.get(&format!("{path}.lora_E")) {
                None => extra.init_r,
                Some(Value::Array(kept)) => kept.iter().filter(|kept| **kept == Value::Bool(true)).count(),
                Some(other) => {
                    let what = format!("rank_pattern gives {other} for {path}: true and false are expected");
                    return Err(Error::Config(what));
                }
            };
            Ok(Arc::new(AdaLora {
                a: params.push(format!("{path}.lora_A"), r, k, Vec::new()),
                b: params.push(format!("{path}.lora_B"), o, r, Vec::new()),
                e: params.push(format!("{path}.lora_E"), r, 1, Vec::new()),
                r,
                scaling,
                dropout: config.lora_dropout,
                stream: target.site as u64,
            }) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn training_hook(
        &self,
        config: &LoraConfig,
        layers: &[AdaptedSite],
    ) -> Result<Option<Box<dyn TrainingHook>>, Error> {
        let triplet = |layer: &AdaptedSite| {
            let [a, b, e] = layer.variant.params()[..] else { unreachable!("A, B and E") };
            let r = layer.variant.rank().unwrap_or(0);
            Triplet { name: format!("{}.lora_E", layer.site.path), a, b, e, r }
        };
        let sites = layers.iter().map(triplet).collect();
        Ok(Some(Box::new(Budget::new(config.parse_extra()?, sites))))
    }

    fn exports(&self) -> bool {
        true
    }

    /// Without the ranks that the budget left out, which `rank_pattern` then names, as PEFT saves it.
    fn export(
        &self,
        config: &LoraConfig,
        params: &Params,
        layers: &[AdaptedSite],
        hook: Option<&dyn TrainingHook>,
    ) -> Result<Option<Exported>, Error> {
        let state = hook.map(|hook| hook.state()).unwrap_or_default();
        let kept: BTreeMap<&str, Vec<bool>> = state
            .iter()
            .filter_map(|(name, kept)| {
                Some((name.strip_prefix(KEPT)?, kept.iter().map(|k| *k != 0.0).collect()))
            })
            .collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let mut config = config.clone();
        config.rank_pattern = kept.iter().map(|(name, kept)| ((*name).to_owned(), json!(kept))).collect();
        let mut values = BTreeMap::new();
        for layer in layers {
            let path = &layer.site.path;
            let Some(kept) = kept.get(format!("{path}.lora_E").as_str()) else { continue };
            for which in ["lora_A", "lora_B", "lora_E"] {
                let Some(old) = params.find(&format!("{path}.{which}")) else { continue };
                let rows = old.values().chunks_exact(old.cols.max(1));
                let value = match which {
                    "lora_B" => {
                        rows.flat_map(|row| row.iter().zip(kept).filter(|x| *x.1).map(|x| *x.0)).collect()
                    }
                    _ => rows.zip(kept).filter(|x| *x.1).flat_map(|x| x.0).copied().collect(),
                };
                values.insert(old.name.clone(), value);
            }
        }
        Ok(Some(Exported { config, values }))
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B", "lora_E"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        match (&shape("lora_A")?[..], &shape("lora_B")?[..]) {
            (&[_, k], &[o, _]) => Some((k, o)),
            _ => None,
        }
    }
}

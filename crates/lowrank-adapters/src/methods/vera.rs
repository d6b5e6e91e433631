//! VeRA (Kopiczko et al. 2024): one pair of random projections for all layers and two trained vectors for each layer,
//! `y = W0 x + b + lambda_b * (B (lambda_d * (A dropout(x))))`.
//!
//! # Shapes
//! `A: [R, largest K]` and `B: [largest O, R]` are frozen and shared; a layer uses the corner of its size. `lambda_d: [R]` starts
//! as `d_initial`, `lambda_b: [O]` as zero.
//!
//! The projections come from PyTorch's generator (`init/torch_random.rs`), seeded with `projection_prng_key`, so a file without
//! them (`save_projection` false) gives the same values as in PEFT.

use std::sync::Arc;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, Tensor};
use serde::Deserialize;

use crate::config::LoraConfig;
use crate::contract::{InitContext, Method, Target, Variant, WeightRows, linear_only};
use crate::error::Error;
use crate::init::torch_random::Generator;
use crate::low_rank::LowRank;

/// VeRA at one linear site.
#[derive(Debug)]
pub struct Vera {
    /// `A`, shared and not trained.
    pub a: ParamId,
    /// `B`, likewise.
    pub b: ParamId,
    /// `lambda_b: [O]`, zero at the start.
    pub lambda_b: ParamId,
    /// `lambda_d: [R]`.
    pub lambda_d: ParamId,
    /// Rank.
    pub r: usize,
    /// Probability that dropout zeroes an input value.
    pub dropout: f32,
    /// Stream of this site's random numbers.
    pub stream: u64,
    d_initial: f32,
}

impl Vera {
    /// `t = A x` and `v = B (lambda_d * t)`.
    fn project(&self, scope: &Scope<'_>, x: &Tensor, o: usize) -> (Tensor, Tensor) {
        let (n, k) = (x.rows(), x.cols());
        let mut t = scope.alloc(n, self.r);
        scope.gemm(1.0, x.mat(), scope.param(self.a).corner(self.r, k).t(), 0.0, t.mat_mut());
        let mut scaled = scope.alloc(n, self.r);
        scope.device.scale_columns(&mut scaled, &t, scope.params.tensor(self.lambda_d), 0.0);
        let mut v = scope.alloc(n, o);
        scope.gemm(1.0, scaled.mat(), scope.param(self.b).corner(o, self.r).t(), 0.0, v.mat_mut());
        (t, v)
    }

    /// `A` with rows times `lambda_d` and `B` with rows times `lambda_b`: the change as a product.
    fn factors(&self, params: &Params, k: usize, o: usize) -> (Vec<f32>, Vec<f32>) {
        let scaled = |matrix: ParamId, lambda: ParamId, cols: usize| {
            let (matrix, lambda) = (params.get(matrix), params.values(lambda));
            let rows = matrix.values().chunks_exact(matrix.cols).zip(lambda);
            rows.flat_map(|(row, l)| row[..cols].iter().map(move |x| l * x)).collect()
        };
        debug_assert_eq!(params.values(self.lambda_b).len(), o);
        (scaled(self.a, self.lambda_d, k), scaled(self.b, self.lambda_b, self.r))
    }
}

impl Adapter for Vera {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        base.forward(scope, x, y, beta);
        let x = scope.dropout(x, self.dropout, self.stream);
        let (t, v) = self.project(scope, &x, y.cols());
        scope.device.scale_columns(y, &v, scope.params.tensor(self.lambda_b), 1.0);
        vec![t, v]
    }

    /// `dlambda_b += sum_n dy v`, `ds = (lambda_b dy) B`, `dlambda_d += sum_n ds t`, `dx += dy W0 + (lambda_d ds) A`.
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
        let (n, k, o, r) = (x.rows(), x.cols(), dy.cols(), self.r);
        let (t, v) = (&saved[0], &saved[1]);
        let mut dv = scope.alloc(n, o);
        scope.device.scale_columns_backward(grads.get_mut(self.lambda_b), dy, v);
        scope.device.scale_columns(&mut dv, dy, scope.params.tensor(self.lambda_b), 0.0);
        let mut ds = scope.alloc(n, r);
        scope.gemm(1.0, dv.mat(), scope.param(self.b).corner(o, r), 0.0, ds.mat_mut());
        scope.device.scale_columns_backward(grads.get_mut(self.lambda_d), &ds, t);
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        let mut dt = scope.alloc(n, r);
        scope.device.scale_columns(&mut dt, &ds, scope.params.tensor(self.lambda_d), 0.0);
        let a = scope.param(self.a).corner(r, k);
        scope.gemm_through_dropout(dt.mat(), a, &mut dx.tensor, self.dropout, self.stream);
    }

    fn add(&self, scope: &Scope<'_>, _: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        let (_, mut v) = self.project(scope, x, y.cols());
        scope.device.scale(&mut v, weight);
        scope.device.scale_columns(y, &v, scope.params.tensor(self.lambda_b), 1.0);
    }
}

impl Variant for Vera {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn params(&self) -> Vec<ParamId> {
        vec![self.lambda_b, self.lambda_d]
    }

    fn init(&self, params: &mut Params, _: &InitContext<'_>) -> Result<(), Error> {
        params.get_mut(self.lambda_b).fill_with(|_| {});
        params.set(self.lambda_d, vec![self.d_initial; self.r]);
        Ok(())
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        let (k, o) = (params.get(self.a).cols, params.get(self.lambda_b).cols);
        let (a, b) = self.factors(params, k, o);
        Some(LowRank { a: &a, b: &b, r: self.r, scaling: 1.0 }.norm())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        let (a, b) = self.factors(params, at.site.in_features, at.site.out_features);
        LowRank { a: &a, b: &b, r: self.r, scaling: 1.0 }.add_rows(at.site, factor, at.rows.clone(), w);
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Extra {
    projection_prng_key: u64,
    save_projection: bool,
    vera_dropout: f32,
    d_initial: f32,
}

impl Default for Extra {
    fn default() -> Self {
        Self { projection_prng_key: 0, save_projection: true, vera_dropout: 0.0, d_initial: 0.1 }
    }
}

/// `peft_type` VERA.
pub struct VeraMethod;

impl Method for VeraMethod {
    fn peft_type(&self) -> &'static str {
        "VERA"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("vera", "")]
    }

    fn has_bias_field(&self) -> bool {
        true
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &[
            "lora_alpha",
            "lora_dropout",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "init_lora_weights",
            "exclude_modules",
        ]
    }

    /// Its dropout is that of LoRA where nobody says another.
    fn unused_fields(&self) -> &'static [&'static str] {
        &["lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "exclude_modules"]
    }

    fn fields(&self) -> &'static [&'static str] {
        &["projection_prng_key", "save_projection", "vera_dropout", "d_initial"]
    }

    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        config.default_to("vera_dropout", config.lora_dropout);
        // PEFT's loader decides by this field whether it makes the projections anew, and its default is no.
        config.default_to("save_projection", true);
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        let extra: Extra = config.parse_extra()?;
        if config.r == 0 {
            return Err(Error::Config("r must be at least 1".into()));
        }
        if !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty() {
            return Err(Error::Config(
                "VERA has one rank for all layers: no rank_pattern, no alpha_pattern".into(),
            ));
        }
        if !(0.0..1.0).contains(&extra.vera_dropout) {
            let p = extra.vera_dropout;
            return Err(Error::Config(format!("vera_dropout is {p}; it must be at least 0 and less than 1")));
        }
        Ok(())
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let extra: Extra = config.parse_extra()?;
        let (r, chosen) = (config.r, || targets.iter().map(|t| &sites[t.site]));
        chosen().try_for_each(linear_only)?;
        let k = chosen().map(|s| s.in_features).max().unwrap_or(0);
        let o = chosen().map(|s| s.out_features).max().unwrap_or(0);
        // Kaiming's bound with PyTorch's default gain, one generator for both.
        let mut generator = Generator::new(extra.projection_prng_key);
        let mut shared = |name: &str, rows: usize, cols: usize| {
            let bound = (6.0 / cols as f64).sqrt();
            let value = (0..rows * cols).map(|_| generator.uniform(-bound, bound)).collect();
            let id = params.push(format!("base_model.{name}"), rows, cols, value);
            let param = params.get_mut(id);
            (param.trained, param.saved) = (false, extra.save_projection);
            id
        };
        let (a, b) = (shared("vera_A", r, k), shared("vera_B", o, r));
        let plan = |target: &Target| {
            let site = &sites[target.site];
            let mut vector =
                |name: &str, len| params.push_vector(format!("{}.{name}", site.path), len, Vec::new());
            let lambda_b = vector("vera_lambda_b", site.out_features);
            let lambda_d = vector("vera_lambda_d", r);
            let (dropout, stream) = (extra.vera_dropout, target.site as u64);
            let vera = Vera { a, b, lambda_b, lambda_d, r, dropout, stream, d_initial: extra.d_initial };
            Arc::new(vera) as Arc<dyn Variant>
        };
        Ok(targets.iter().map(plan).collect())
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["vera_lambda_b", "vera_lambda_d", "base_model.vera_A", "base_model.vera_B"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        // A layer's tensors say how long its output is; of inputs the shared projection knows the longest.
        let k = shape("base_model.vera_A").and_then(|a| a.get(1).copied()).unwrap_or(0);
        match shape("vera_lambda_b")?[..] {
            [o] => Some((k, o)),
            _ => None,
        }
    }
}

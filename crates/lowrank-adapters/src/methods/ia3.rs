//! IA3 (Liu et al. 2022): one trained factor for each output feature, `y = l * (W0 x + b)`, or, in feed-forward modules, for each
//! input feature, `y = W0 (l * x) + b`.
//!
//! # Shapes
//! `l: [O]`, or `[K]` in feed-forward modules; all factors start as 1.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor};
use serde::Deserialize;

use crate::config::{LoraConfig, Targets};
use crate::contract::{InitContext, Method, Target, Variant, WeightRows, linear_only};
use crate::error::Error;
use crate::target::matching;

/// IA3 at one linear site.
#[derive(Debug)]
pub struct Ia3 {
    /// `l`.
    pub factors: ParamId,
    /// Whether it scales the input.
    pub feedforward: bool,
}

impl Adapter for Ia3 {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let (n, l) = (x.rows(), scope.params.tensor(self.factors));
        if self.feedforward {
            let mut scaled = scope.alloc(n, x.cols());
            scope.device.scale_columns(&mut scaled, x, l, 0.0);
            base.forward(scope, &scaled, y, beta);
            return Vec::new();
        }
        let mut z = scope.alloc(n, y.cols());
        base.forward(scope, x, &mut z, 0.0);
        scope.device.scale_columns(y, &z, l, beta);
        vec![z]
    }

    /// Outputs: `dl += sum_n dy z`, `dx += (l dy) W0`. Inputs, with `d = dy W0`: `dl += sum_n d x`, `dx += l d`.
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
        let (n, l) = (x.rows(), scope.params.tensor(self.factors));
        if self.feedforward {
            let mut inner = Accumulator::fresh(scope.alloc(n, x.cols()));
            base.backward(scope, dy, &mut inner);
            let inner = inner.tensor;
            scope.device.scale_columns_backward(grads.get_mut(self.factors), &inner, x);
            let Some(dx) = dx else { return };
            let beta = dx.beta();
            return scope.device.scale_columns(&mut dx.tensor, &inner, l, beta);
        }
        scope.device.scale_columns_backward(grads.get_mut(self.factors), dy, &saved[0]);
        let Some(dx) = dx else { return };
        let mut scaled = scope.alloc(n, dy.cols());
        scope.device.scale_columns(&mut scaled, dy, l, 0.0);
        base.backward(scope, &scaled, dx);
    }
}

impl Ia3 {
    /// Multiplies rows `at.rows` of a weight as it is stored by `factor(l)`.
    fn scale(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32], factor: impl Fn(f32) -> f32) {
        let l = params.values(self.factors);
        let transposed = at.site.kind == SiteKind::TransposedLinear;
        let cols = if transposed { at.site.out_features } else { at.site.in_features };
        let rows = w.chunks_exact_mut(cols).zip(at.rows.clone());
        if self.feedforward == transposed {
            rows.for_each(|(w, row)| w.iter_mut().for_each(|w| *w *= factor(l[row])));
        } else {
            rows.for_each(|(w, _)| w.iter_mut().zip(l).for_each(|(w, l)| *w *= factor(*l)));
        }
    }
}

impl Variant for Ia3 {
    fn params(&self) -> Vec<ParamId> {
        vec![self.factors]
    }

    fn init(&self, params: &mut Params, _: &InitContext<'_>) -> Result<(), Error> {
        params.get_mut(self.factors).fill_with(|l| l.fill(1.0));
        Ok(())
    }

    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        self.scale(params, at, w, |l| l);
        Ok(())
    }

    fn unmerge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        if params.values(self.factors).contains(&0.0) {
            return Err(Error::Config(format!(
                "{}: a factor of this IA3 is 0, so it cannot be taken out of a merged weight",
                at.site.path
            )));
        }
        self.scale(params, at, w, |l| 1.0 / l);
        Ok(())
    }

    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        if !self.feedforward {
            let l = &params.values(self.factors)[range];
            bias.iter_mut().zip(l).for_each(|(b, l)| *b *= l);
        }
    }

    fn unmerge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        if !self.feedforward {
            let l = &params.values(self.factors)[range];
            bias.iter_mut().zip(l).for_each(|(b, l)| *b /= l);
        }
    }
}

#[derive(Deserialize)]
struct Extra {
    feedforward_modules: Option<Targets>,
}

/// Targets, and which of them are feed-forward, by what a model has (`peft/utils/constants.py`).
const DEFAULTS: [(&[&str], &str); 3] = [
    (&["k_proj", "v_proj", "down_proj"], "down_proj"),
    (&["c_attn", "mlp.c_proj"], "mlp.c_proj"),
    (&["key", "value", "output.dense"], "output.dense"),
];

/// `peft_type` IA3.
pub struct Ia3Method;

impl Method for Ia3Method {
    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("ia3", "")]
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &[
            "r",
            "lora_alpha",
            "lora_dropout",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
            "layers_to_transform",
            "layers_pattern",
            "bias",
            "init_lora_weights",
        ]
    }

    fn fields(&self) -> &'static [&'static str] {
        &["feedforward_modules"]
    }

    /// PEFT's modules for models of such names.
    fn configure(&self, config: &mut LoraConfig, sites: &[Site], _: u64) {
        if config.target_modules.is_some() {
            return;
        }
        let has = |end: &str| sites.iter().any(|site| site.path.ends_with(end));
        let known = DEFAULTS.iter().find(|(names, _)| names.iter().all(|name| has(&format!(".{name}"))));
        if let Some((names, feedforward)) = known {
            config.target_modules = Some(Targets::Names(names.iter().map(ToString::to_string).collect()));
            config.default_to("feedforward_modules", vec![*feedforward]);
        }
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        config.parse_extra::<Extra>().map(|_| ())
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let extra: Extra = config.parse_extra()?;
        let feedforward = match &extra.feedforward_modules {
            Some(modules) => matching(modules, sites)?,
            None => vec![false; sites.len()],
        };
        let plan = |target: &Target| {
            let (site, feedforward) = (&sites[target.site], feedforward[target.site]);
            linear_only(site)?;
            let len = if feedforward { site.in_features } else { site.out_features };
            let factors = params.push_vector(format!("{}.ia3_l", site.path), len, Vec::new());
            params.get_mut(factors).shape = if feedforward { vec![1, len] } else { vec![len, 1] };
            Ok(Arc::new(Ia3 { factors, feedforward }) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["ia3_l"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        match shape("ia3_l")?[..] {
            // Whichever side it is on.
            [1, 1] => Some((1, 1)),
            [1, k] => Some((k, 0)),
            [o, 1] => Some((0, o)),
            _ => None,
        }
    }
}

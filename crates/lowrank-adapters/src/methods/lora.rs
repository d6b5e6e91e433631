//! LoRA (Hu et al. 2021): a frozen layer plus a trained low-rank change, `y = W0 x + b + s B A dropout(x)`.
//!
//! # Shapes
//! `x: [N,K]`, `y: [N,O]`, `W0: [O,K]`, `A: [R,K]` (random at the start), `B: [O,R]` (zero at the start), `s = alpha / R`, or
//! `alpha / sqrt(R)` with `use_rslora` (Kalajdzievski 2023). Other starts are [`crate::InitLoraWeights`].

use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, LowRankFactors, ParamId, Params, Scope, Site, SiteKind, Tensor,
};

use crate::base::{stored_weight, whole_weight};
use crate::config::LoraConfig;
use crate::contract::{InitContext, Method, Target, Variant, WeightRows, linear_only};
use crate::error::Error;
use crate::init::{InitLoraWeights, Randomness};
use crate::low_rank::LowRank;
use crate::methods::embedding::{self, EmbeddingLora};

/// LoRA at one linear site: `A: [R,K]`, `B: [O,R]`.
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
    /// Probability that dropout zeroes an input value.
    pub dropout: f32,
    /// Stream of this site's random numbers.
    pub stream: u64,
    /// How `A` and `B` start.
    pub init: InitLoraWeights,
}

impl Adapter for Lora {
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
        let mut u = scope.alloc(x.rows(), self.r);
        scope.gemm(1.0, x.mat(), scope.param(self.a).t(), 0.0, u.mat_mut());
        scope.gemm(self.scaling, u.mat(), scope.param(self.b).t(), 1.0, y.mat_mut());
        vec![u]
    }

    /// With `u = x A^T`: `du = s dy B`, `dB += s dy^T u`, `dA += du^T x`, `dx += dy W0 + du A`.
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
        let (u, x) = (&saved[0], scope.dropout(x, self.dropout, self.stream));
        let mut du = scope.alloc(u.rows(), self.r);
        scope.gemm(self.scaling, dy.mat(), scope.param(self.b), 0.0, du.mat_mut());
        scope.gemm(self.scaling, dy.mat().t(), u.mat(), 1.0, grads.mat_mut(self.b));
        if grads.wants(self.a) {
            scope.gemm(1.0, du.mat().t(), x.mat(), 1.0, grads.mat_mut(self.a));
        }
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        scope.gemm_through_dropout(du.mat(), scope.param(self.a), &mut dx.tensor, self.dropout, self.stream);
    }

    fn low_rank<'a>(&'a self, params: &'a Params, weight: f32, out: &mut Vec<LowRankFactors<'a>>) -> bool {
        let (a, b) = (params.mat(self.a), params.mat(self.b));
        out.push(LowRankFactors { a, b, scaling: weight * self.scaling });
        true
    }

    fn add(&self, scope: &Scope<'_>, _: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        let mut u = scope.alloc(x.rows(), self.r);
        scope.gemm(1.0, x.mat(), scope.param(self.a).t(), 0.0, u.mat_mut());
        scope.gemm(weight * self.scaling, u.mat(), scope.param(self.b).t(), 1.0, y.mat_mut());
    }
}

impl Lora {
    /// LoRA at `target` of `sites`, its parameters added to `params`.
    ///
    /// # Errors
    /// If the site is no linear layer.
    pub fn plan(
        config: &LoraConfig,
        target: &Target,
        site: &Site,
        params: &mut Params,
    ) -> Result<Self, Error> {
        linear_only(site)?;
        let (r, k, o) = (target.r, site.in_features, site.out_features);
        Ok(Self {
            a: params.push(format!("{}.lora_A.weight", site.path), r, k, Vec::new()),
            b: params.push(format!("{}.lora_B.weight", site.path), o, r, Vec::new()),
            r,
            scaling: config.scaling(r, target.alpha),
            dropout: config.lora_dropout,
            stream: target.site as u64,
            init: InitLoraWeights::parse(config)?,
        })
    }

    /// `A` and `B` as training starts.
    ///
    /// # Errors
    /// If the base's weight is needed and cannot be read.
    pub fn factors(&self, start: &InitContext<'_>) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let (site, random) = (&start.site, Randomness { seed: start.seed, stream: start.stream });
        let shape = (site.out_features, site.in_features, self.r);
        let weight = || match self.init {
            InitLoraWeights::Loftq if start.base.quantised(site).is_none() => {
                let what = "loftq makes up for quantising, and this base is computed with as it is stored";
                Err(Error::Config(format!("{}: {what} (`quantize` nf4)", site.path)))
            }
            InitLoraWeights::Loftq => {
                let (mut lost, used) = (stored_weight(start.base, site)?, whole_weight(start.base, site)?);
                lost.iter_mut().zip(used).for_each(|(w, q)| *w -= q);
                Ok(lost)
            }
            _ => whole_weight(start.base, site),
        };
        let observed = start.base.observed(site);
        // Where the data do not reach the layer, EVA starts as LoRA does.
        let init = match self.init {
            InitLoraWeights::Eva if observed.is_none() && start.base.observes() => InitLoraWeights::Kaiming,
            init => init,
        };
        init.factors(shape, self.scaling, random, weight, observed)
    }

    /// `s B A`.
    pub fn change<'a>(&self, params: &'a Params) -> LowRank<'a> {
        LowRank { a: params.values(self.a), b: params.values(self.b), r: self.r, scaling: self.scaling }
    }
}

impl Variant for Lora {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        vec![self.a, self.b]
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let (a, b) = self.factors(start)?;
        params.set(self.a, a);
        params.set(self.b, b);
        Ok(())
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        Some(self.change(params).norm())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        self.change(params).add_rows(at.site, factor, at.rows.clone(), w);
        Ok(())
    }
}

/// Fields of PEFT's `LoraConfig` that [`LoraConfig`] has not, and that of [`crate::methods::merged_linear`].
pub(crate) const FIELDS: [&str; 7] = [
    "use_dora",
    "eva_config",
    "corda_config",
    "loftq_config",
    "trainable_token_indices",
    "ensure_weight_tying",
    "enable_lora",
];

/// `peft_type` LORA.
pub struct LoraMethod;

impl Method for LoraMethod {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[("lora", "")]
    }

    fn title(&self) -> &'static str {
        "LoRA adapter"
    }

    fn has_bias_field(&self) -> bool {
        true
    }

    fn fields(&self) -> &'static [&'static str] {
        &FIELDS
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
            if site.kind == SiteKind::Embedding {
                return Ok(EmbeddingLora::plan(config, target, site, params));
            }
            let lora = Lora::plan(config, target, site, params)?;
            Ok(Arc::new(lora) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["lora_A.weight", "lora_B.weight", embedding::SUFFIXES[0], embedding::SUFFIXES[1]]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        let pair = |[a, b]: [&str; 2]| Some((shape(a)?, shape(b)?));
        let (a, b) = pair(["lora_A.weight", "lora_B.weight"]).or_else(|| pair(embedding::SUFFIXES))?;
        (a.len() == 2 && b.len() == 2).then(|| (a[1], b[0]))
    }

    fn kind(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        let embedding = shape(embedding::SUFFIXES[0]).is_some();
        (if embedding { SiteKind::Embedding } else { SiteKind::Linear }, false)
    }
}

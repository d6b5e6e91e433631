//! LoRA that starts as a part of the base's weight: PiSSA (Meng et al. 2024), OLoRA (Büyükakyüz 2024), CorDA (Yang et al. 2024).
//!
//! These methods train `A` and `B` on the residual base `W0 - s B0 A0`. Lowrank never changes the base; it subtracts the start
//! in the product instead: `y = W0 x + b + s (B A - B0 A0) x`, a LoRA of twice the rank with one half frozen. That is also what
//! is saved, as PEFT does when it converts such an adapter.
//!
//! # Shapes
//! `A, A0: [R,K]`, `B, B0: [O,R]`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor};
use serde_json::{Map, Value};

use crate::config::LoraConfig;
use crate::contract::{AdaptedSite, Exported, InitContext, Method, Target, Variant, WeightRows};
use crate::error::Error;
use crate::init::InitLoraWeights;
use crate::methods::lora::Lora;
use crate::methods::lora::LoraMethod;
use crate::training_hook::TrainingHook;

/// A LoRA and what it started from.
#[derive(Debug)]
pub struct Residual {
    /// `A` and `B`.
    pub lora: Lora,
    /// `A0` and `B0` as a LoRA that is not trained, with the scaling's sign turned.
    pub start: Lora,
}

impl Residual {
    fn remember(&self, params: &mut Params, a: Vec<f32>, b: Vec<f32>) {
        params.set(self.start.a, a);
        params.set(self.start.b, b);
    }
}

impl Adapter for Residual {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let saved = self.lora.forward(scope, base, x, y, beta);
        // In PEFT the start is part of the base, which sees the input before dropout.
        self.start.add(scope, base, x, y, 1.0);
        saved
    }

    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        saved: Vec<Tensor>,
        mut dx: Option<&mut Accumulator>,
    ) {
        self.lora.backward(scope, base, grads, x, dy, saved, dx.as_deref_mut());
        let Some(dx) = dx else { return };
        let mut du = scope.alloc(dy.rows(), self.start.r);
        scope.gemm(self.start.scaling, dy.mat(), scope.param(self.start.b), 0.0, du.mat_mut());
        scope.gemm(1.0, du.mat(), scope.param(self.start.a), 1.0, dx.tensor.mat_mut());
    }

    fn add(&self, scope: &Scope<'_>, base: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        self.lora.add(scope, base, x, y, weight);
        self.start.add(scope, base, x, y, weight);
    }
}

impl Variant for Residual {
    fn rank(&self) -> Option<usize> {
        Some(self.lora.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.lora.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        vec![self.lora.a, self.lora.b]
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let (a, b) = self.lora.factors(start)?;
        self.remember(params, a.clone(), b.clone());
        params.set(self.lora.a, a);
        params.set(self.lora.b, b);
        Ok(())
    }

    /// PEFT's file of such an adapter that was not converted holds `A` and `B` only.
    fn finish_load(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        if !self.lora.init.is_exact() {
            return Err(Error::Config(format!(
                "{}: this adapter started from a random decomposition of its base or from its training data; have PEFT \
                 convert it with path_initial_model_for_weight_conversion",
                start.site.path
            )));
        }
        let (a, b) = self.lora.factors(start)?;
        self.remember(params, a, b);
        Ok(())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        self.lora.add_delta(params, at, factor, w)?;
        self.start.add_delta(params, at, factor, w)
    }
}

/// `peft_type` LORA with a word of `init_lora_weights` that starts from the base's weight.
pub struct ResidualMethod;

impl Method for ResidualMethod {
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
        InitLoraWeights::parse(config).is_ok_and(InitLoraWeights::moves_base)
    }

    fn fields(&self) -> &'static [&'static str] {
        LoraMethod.fields()
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        if config.is_set("use_dora") {
            let word = &config.init_lora_weights;
            return Err(Error::Config(format!("use_dora with init_lora_weights {word} is not supported")));
        }
        if config.use_rslora && !(config.rank_pattern.is_empty() && config.alpha_pattern.is_empty()) {
            // Twice the rank is no constant factor of alpha / sqrt(r) for all sites then; PEFT refuses it too.
            return Err(Error::Config(
                "use_rslora with rank_pattern or alpha_pattern cannot start from the base's weight".into(),
            ));
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
        let plan = |target: &Target| {
            let (r, site) = (target.r, &sites[target.site]);
            let lora = Lora::plan(config, target, site, params)?;
            let mut frozen = |name: &str, rows: usize, cols: usize| {
                let id = params.push(format!("{}.{name}.start", site.path), rows, cols, Vec::new());
                let param = params.get_mut(id);
                (param.trained, param.saved) = (false, false);
                id
            };
            let (a, b) = (frozen("lora_A", r, site.in_features), frozen("lora_B", site.out_features, r));
            let start = Lora { a, b, scaling: -lora.scaling, dropout: 0.0, ..lora.clone() };
            Ok(Arc::new(Residual { lora, start }) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
    }

    fn exports(&self) -> bool {
        true
    }

    /// A plain LoRA: `B' = [B, B0]`, `A' = [A; -A0]`, twice the rank and so twice alpha (`sqrt(2)` times with rsLoRA).
    fn export(
        &self,
        config: &LoraConfig,
        params: &Params,
        layers: &[AdaptedSite],
        _: Option<&dyn TrainingHook>,
    ) -> Result<Option<Exported>, Error> {
        let mut config = config.clone();
        config.init_lora_weights = Value::Bool(true);
        config.other.remove("corda_config");
        config.r *= 2;
        let doubled = |map: &Map<String, Value>| -> Map<String, Value> {
            let twice = |value: &Value| match value.as_u64() {
                Some(whole) => (2 * whole).into(),
                None => value.as_f64().map_or_else(|| value.clone(), |x| (2.0 * x).into()),
            };
            map.iter().map(|(key, value)| (key.clone(), twice(value))).collect()
        };
        config.rank_pattern = doubled(&config.rank_pattern);
        config.alpha_pattern = doubled(&config.alpha_pattern);
        config.lora_alpha *= if config.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
        let mut values = BTreeMap::new();
        for layer in layers {
            let param = |end: &str| params.find(&format!("{}.{end}", layer.site.path));
            let pair =
                |name: &str| Some((param(&format!("{name}.weight"))?, param(&format!("{name}.start"))?));
            let (Some((a, a0)), Some((b, b0))) = (pair("lora_A"), pair("lora_B")) else { continue };
            let stacked = a.values().iter().copied().chain(a0.values().iter().map(|x| -x)).collect();
            let rows = b.values().chunks_exact(b.cols).zip(b0.values().chunks_exact(b.cols));
            let beside = rows.flat_map(|(b, b0)| b.iter().chain(b0)).copied().collect();
            values.extend([(a.name.clone(), stacked), (b.name.clone(), beside)]);
        }
        Ok(Some(Exported { config, values }))
    }

    fn suffixes(&self) -> &'static [&'static str] {
        LoraMethod.suffixes()
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        LoraMethod.features(shape)
    }

    fn kind(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        LoraMethod.kind(shape)
    }
}

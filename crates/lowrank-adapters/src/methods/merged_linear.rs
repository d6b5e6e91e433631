//! LoRA on some parts of a fused layer (loralib's `MergedLinear`; Hu et al. 2021 adapt queries and values of GPT-2's `c_attn` this
//! way). The outputs are split into equal parts, and each part that `enable_lora` marks has an `A` and a `B` of its own.
//!
//! # Shapes
//! With `G` marked parts of rank `R / G`, that is LoRA of rank `R` whose `B: [O,R]` is zero except for one block for each marked
//! part, `B = [B_q 0; 0 0; 0 B_v]`. It is stored in that form, as a PEFT adapter of rank `R`. `A` and the stacked blocks are
//! loralib's `lora_A` and `lora_B`; each part is scaled by `alpha / R`.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor};
use serde_json::Value;

use crate::config::LoraConfig;
use crate::contract::{InitContext, Method, Target, Variant, WeightRows};
use crate::error::Error;
use crate::init::InitLoraWeights;
use crate::methods::lora::{Lora, LoraMethod};

/// The field of `adapter_config.json`: a list of true and false, one for each part.
pub const FIELD: &str = "enable_lora";

/// LoRA at some parts of a linear site.
#[derive(Clone, Debug)]
pub struct MergedLinear {
    lora: Lora,
    enable: Vec<bool>,
}

impl MergedLinear {
    /// For each row of `B`, its columns that are trained (none in a part that is not marked).
    fn trained(&self, out_features: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let part = out_features / self.enable.len();
        let marked = self.enable.iter().filter(|on| **on).count();
        let rank = self.lora.r / marked;
        (0..out_features).map(move |row| {
            let before = self.enable[..row / part].iter().filter(|on| **on).count();
            if self.enable[row / part] { before * rank..(before + 1) * rank } else { 0..0 }
        })
    }
}

impl Adapter for MergedLinear {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        self.lora.forward(scope, base, x, y, beta)
    }

    /// LoRA's; the gradient of `B` outside the blocks is zero.
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
        self.lora.backward(scope, base, grads, x, dy, saved, dx);
        let trained: Vec<Range<usize>> = self.trained(dy.cols()).collect();
        scope.device.keep_columns(grads.get_mut(self.lora.b), &trained);
    }

    fn add(&self, scope: &Scope<'_>, base: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        self.lora.add(scope, base, x, y, weight);
    }
}

impl Variant for MergedLinear {
    fn rank(&self) -> Option<usize> {
        self.lora.rank()
    }

    fn scaling(&self) -> Option<f32> {
        self.lora.scaling()
    }

    fn params(&self) -> Vec<ParamId> {
        self.lora.params()
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        self.lora.init(params, start)
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        self.lora.delta_norm(params)
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        self.lora.add_delta(params, at, factor, w)
    }
}

/// `peft_type` LORA with `enable_lora`.
pub struct MergedLinearMethod;

/// The parts that `config` marks.
fn enabled(config: &LoraConfig) -> Result<Vec<bool>, Error> {
    let list = config.other.get(FIELD).and_then(Value::as_array);
    let parts: Option<Vec<bool>> = list.and_then(|list| list.iter().map(Value::as_bool).collect());
    let parts = parts.filter(|parts| parts.contains(&true));
    parts.ok_or_else(|| {
        Error::Config(format!("{FIELD} must be a list of true and false, one for each part, with a true"))
    })
}

impl Method for MergedLinearMethod {
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
        config.is_set(FIELD)
    }

    fn fields(&self) -> &'static [&'static str] {
        LoraMethod.fields()
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        config.check_lora()?;
        if config.is_set("use_dora") {
            return Err(Error::Config(format!("{FIELD} with use_dora is not supported")));
        }
        let start = InitLoraWeights::parse(config)?;
        if start.moves_base() || start.needs_data() {
            let word = &config.init_lora_weights;
            return Err(Error::Config(format!("{FIELD} with init_lora_weights {word} is not supported")));
        }
        let marked = enabled(config)?.iter().filter(|on| **on).count();
        if !config.r.is_multiple_of(marked) {
            return Err(Error::Config(format!(
                "r is {}, which cannot be shared by the {marked} parts that {FIELD} marks",
                config.r
            )));
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
        let enable = enabled(config)?;
        let marked = enable.iter().filter(|on| **on).count();
        let plan = |target: &Target| {
            let site = &sites[target.site];
            if !site.out_features.is_multiple_of(enable.len()) || !target.r.is_multiple_of(marked) {
                return Err(Error::Config(format!(
                    "{}: {} outputs and rank {} cannot be cut into the {} parts of {FIELD}, {marked} of them marked",
                    site.path,
                    site.out_features,
                    target.r,
                    enable.len()
                )));
            }
            let lora = Lora::plan(config, target, site, params)?;
            Ok(Arc::new(MergedLinear { lora, enable: enable.clone() }) as Arc<dyn Variant>)
        };
        targets.iter().map(plan).collect()
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

//! Biases trained beside an adapter (`bias` in `adapter_config.json`): `y = adapted(x) - b0 + b` at a layer with an adapter
//! ([`TrainedBias`]), `y = W x + b` at one without ([`Bias`]). `b: [O]` starts as the base's bias `b0`.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Accumulator, Adapter, Grads, Linear, NormParams, ParamId, Params, Scope, Site, Tensor};

use crate::config::LoraConfig;
use crate::contract::{InitContext, Variant, WeightRows};
use crate::error::Error;

/// Which biases are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Biases {
    None,
    /// Those of every layer.
    All,
    /// Those of the layers with an adapter.
    Adapted,
}

impl Biases {
    /// What `config` asks for: `none`, `all`, or the method's name and `_only` (`lora_only`). `has_field`: whether the
    /// method has this field.
    ///
    /// # Errors
    /// If the field has another value, or the method does not have it.
    pub fn of(config: &LoraConfig, has_field: bool) -> Result<Self, Error> {
        let only = format!("{}_only", config.peft_type.to_lowercase());
        match config.bias.as_str() {
            "none" => Ok(Self::None),
            bias if !has_field => {
                Err(Error::Config(format!("bias is {bias:?}, but {} has no such field", config.peft_type)))
            }
            "all" => Ok(Self::All),
            said if said == only || said == "lora_only" => Ok(Self::Adapted),
            said => Err(Error::Config(format!("bias is {said:?}; it may be none, all or {only}"))),
        }
    }

    /// Whether that of `site`, which has an adapter or not, is.
    pub fn train(self, site: &Site, adapted: bool) -> bool {
        site.bias && (self == Self::All || self == Self::Adapted && adapted)
    }
}

/// The bias of `site` with what is at the site already; its parameter is added to `params`.
pub(crate) fn plan(site: &Site, inner: Option<Arc<dyn Variant>>, params: &mut Params) -> Arc<dyn Variant> {
    let Some(inner) = inner else { return Bias::plan(site, params) };
    // PEFT wraps a layer with an adapter; the layer itself is its `base_layer`.
    let bias = params.push_vector(format!("{}.base_layer.bias", site.path), site.out_features, Vec::new());
    Arc::new(TrainedBias { inner, bias })
}

/// A trained copy of the bias of a linear layer or a norm.
#[derive(Clone, Debug)]
pub struct Bias {
    /// `b: [O]`.
    pub bias: ParamId,
}

impl Bias {
    /// That of the layer at `site`, its parameter added to `params`.
    pub fn plan(site: &Site, params: &mut Params) -> Arc<dyn Variant> {
        let bias = params.push_vector(format!("{}.bias", site.path), site.out_features, Vec::new());
        Arc::new(Self { bias })
    }
}

impl Adapter for Bias {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        base.product(scope, x, y, beta);
        scope.device.add_bias(y, scope.params.tensor(self.bias));
        Vec::new()
    }

    /// `db += sum of dy`, `dx += dy W`.
    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        _: &Tensor,
        dy: &Tensor,
        _: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        scope.device.bias_backward(grads.get_mut(self.bias), dy);
        if let Some(dx) = dx {
            base.backward(scope, dy, dx);
        }
    }

    fn norm(&self) -> NormParams {
        NormParams { weight: None, bias: Some(self.bias) }
    }
}

impl Variant for Bias {
    fn params(&self) -> Vec<ParamId> {
        vec![self.bias]
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let bias = params.get_mut(self.bias);
        let mut value = vec![0.0; bias.cols];
        start.base.read_bias(&start.site.path, &mut value)?;
        bias.set(value);
        Ok(())
    }

    fn merge(&self, _: &Params, _: &WeightRows<'_>, _: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn unmerge(&self, _: &Params, at: &WeightRows<'_>, _: &mut [f32]) -> Result<(), Error> {
        Err(crate::contract::gone(&format!("the bias of {} was trained", at.site.path)))
    }

    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        bias.copy_from_slice(&params.values(self.bias)[range]);
    }
}

/// A trained bias of a linear layer with an adapter.
#[derive(Clone)]
pub struct TrainedBias {
    /// The adapter at the layer.
    pub inner: Arc<dyn Variant>,
    /// `b: [O]`.
    pub bias: ParamId,
}

impl Adapter for TrainedBias {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let own = base.with_bias(scope.params.tensor(self.bias).clone());
        self.inner.forward(scope, &own, x, y, beta)
    }

    /// `db += sum of dy`; the rest is the adapter's.
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
        scope.device.bias_backward(grads.get_mut(self.bias), dy);
        self.inner.backward(scope, base, grads, x, dy, saved, dx);
    }
}

impl Variant for TrainedBias {
    fn rank(&self) -> Option<usize> {
        self.inner.rank()
    }

    fn scaling(&self) -> Option<f32> {
        self.inner.scaling()
    }

    fn params(&self) -> Vec<ParamId> {
        let mut params = self.inner.params();
        params.push(self.bias);
        params
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        self.inner.init(params, start)?;
        let mut value = vec![0.0; start.site.out_features];
        start.base.read_bias(&start.site.path, &mut value)?;
        params.set(self.bias, value);
        Ok(())
    }

    fn finish_load(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        self.inner.finish_load(params, start)
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        self.inner.delta_norm(params)
    }

    fn check_merge(&self, site: &Site) -> Result<(), Error> {
        self.inner.check_merge(site)
    }

    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        self.inner.merge(params, at, w)
    }

    fn unmerge(&self, _: &Params, at: &WeightRows<'_>, _: &mut [f32]) -> Result<(), Error> {
        Err(crate::contract::gone(&format!("the bias of {} was trained", at.site.path)))
    }

    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        let own = params.values(self.bias);
        bias.copy_from_slice(&own[range.clone()]);
        self.inner.merge_bias(params, range, bias);
    }
}

#[cfg(test)]
mod tests {
    use lowrank_engine::SiteKind;

    use super::*;
    use crate::config::Targets;
    use crate::set::AdapterSet;

    fn sites() -> Vec<Site> {
        let site = |path: &str, kind, bias| Site {
            path: path.to_owned(),
            kind,
            in_features: 4,
            out_features: 4,
            bias,
        };
        vec![
            site("layers.0.query", SiteKind::Linear, true),
            site("layers.0.key", SiteKind::Linear, true),
            site("layers.0.up", SiteKind::Linear, false),
            site("layers.0.norm", SiteKind::Norm, true),
            site("layers.0.conv", SiteKind::Convolution, true),
            site("classifier", SiteKind::Linear, true),
        ]
    }

    fn planned(bias: &str, peft_type: &str) -> Result<AdapterSet, String> {
        let config = LoraConfig {
            bias: bias.into(),
            peft_type: peft_type.into(),
            target_modules: Some(Targets::parse("query,up")),
            modules_to_save: Some(vec!["classifier".into()]),
            ..LoraConfig::default()
        };
        AdapterSet::planned(config, &sites()).map_err(|e| e.to_string())
    }

    fn biases(bias: &str, peft_type: &str) -> Vec<String> {
        let set = planned(bias, peft_type).unwrap();
        let names = set.params.iter().map(|(_, p)| p.name.clone());
        names.filter(|name| name.ends_with(".bias")).collect()
    }

    #[test]
    fn which_are_trained_and_what_they_are_called() {
        assert_eq!(biases("none", "LORA"), ["classifier.bias"]);
        assert_eq!(biases("lora_only", "LORA"), ["classifier.bias", "layers.0.query.base_layer.bias"]);
        let all = [
            "classifier.bias",
            "layers.0.query.base_layer.bias",
            "layers.0.key.bias",
            "layers.0.norm.bias",
            "layers.0.conv.bias",
        ];
        assert_eq!(biases("all", "LORA"), all);
        assert_eq!(biases("vera_only", "VERA"), ["classifier.bias", "layers.0.query.base_layer.bias"]);
    }

    #[test]
    fn other_words_are_refused() {
        let error = planned("some", "LORA").err().unwrap();
        assert!(error.contains("bias is \"some\"; it may be none, all or lora_only"), "{error}");
        let error = planned("all", "IA3").err().unwrap();
        assert!(error.contains("IA3 has no such field"), "{error}");
    }

    /// A folder is looked at without its base, too, and read where the names are those of before `base_layer`.
    #[test]
    fn files_come_back() {
        let mut set = planned("all", "LORA").unwrap();
        set.each_param(|param| {
            param.set((0..param.rows * param.cols).map(|i| i as f32).collect());
            Ok(())
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        set.save(dir.path()).unwrap();
        let alone = AdapterSet::load_alone(dir.path()).unwrap();
        let names = |set: &AdapterSet| {
            let mut names: Vec<String> = set.params.iter().map(|(_, p)| p.name.clone()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&alone), names(&set));
        let file = dir.path().join(crate::TENSORS_FILE);
        let bytes = std::fs::read(&file).unwrap();
        let mut older = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
        older.iter_mut().for_each(|(name, _)| *name = name.replace(".base_layer", ""));
        std::fs::write(&file, safetensors::serialize(older, None).unwrap()).unwrap();
        let again = AdapterSet::load(dir.path(), &sites()).unwrap();
        for ((_, a), (_, b)) in set.params.iter().zip(again.params.iter()) {
            assert_eq!((&a.name, a.values()), (&b.name, b.values()));
        }
    }
}

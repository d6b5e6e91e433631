//! Layers trained whole, for `modules_to_save` and full fine-tuning. Their weights start as the base's. A linear layer is
//! `y = x W^T + b`, an embedding `y_i = E[id_i]`; a norm has its weight and bias.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, NormParams, ParamId, Params, Scope, Site, SiteKind, Tensor,
};

use crate::config::{LoraConfig, is_part_of};
use crate::contract::{InitContext, Repeated, Variant, WeightRows};
use crate::error::Error;

/// PEFT adds these to `modules_to_save` wherever the task is classification, whether they exist or not.
pub const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// A trained copy of a layer.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `W: [O,K]`, or `[K,O]` where stored transposed; `E: [V,D]` of an embedding, `[D]` of a norm.
    pub weight: ParamId,
    /// `b`, where the layer has one.
    pub bias: Option<ParamId>,
    transposed: bool,
    /// Whether the weight is another site's parameter: that of the embedding a head is tied to.
    shares: bool,
}

impl LoraConfig {
    /// Checks that every name of `modules_to_save` is that of a layer.
    pub(crate) fn check_saved(&self, sites: &[Site]) -> Result<(), Error> {
        for name in self.modules_to_save.iter().flatten().filter(|name| !CLASSIFIERS.contains(&name.as_str()))
        {
            if !sites.iter().any(|site| is_part_of(name, &site.path)) {
                let what = format!("modules_to_save: no layer's path ends with {name:?}");
                return Err(Error::Config(what));
            }
        }
        Ok(())
    }
}

impl Saved {
    /// The layer at `site`, its parameters added to `params`.
    pub fn plan(site: &Site, params: &mut Params) -> Arc<Self> {
        let (k, o) = (site.in_features, site.out_features);
        let name = format!("{}.weight", site.path);
        let weight = match site.kind {
            SiteKind::Norm => params.push_vector(name, o, Vec::new()),
            SiteKind::TransposedLinear | SiteKind::Embedding => params.push(name, k, o, Vec::new()),
            _ => params.push(name, o, k, Vec::new()),
        };
        Self::with(site, weight, false, params)
    }

    /// The head at `site`, whose weight is the one of `table`, an embedding: both train one parameter.
    pub fn tied(site: &Site, table: &Self, params: &mut Params) -> Arc<Self> {
        Self::with(site, table.weight, true, params)
    }

    fn with(site: &Site, weight: ParamId, shares: bool, params: &mut Params) -> Arc<Self> {
        let name = || format!("{}.bias", site.path);
        let bias = site.bias.then(|| params.push_vector(name(), site.out_features, Vec::new()));
        Arc::new(Self { weight, bias, transposed: site.kind == SiteKind::TransposedLinear, shares })
    }
}

impl Adapter for Saved {
    fn forward(&self, scope: &Scope<'_>, _: &Linear, x: &Tensor, y: &mut Tensor, beta: f32) -> Vec<Tensor> {
        let w = scope.param(self.weight);
        scope.gemm(1.0, x.mat(), if self.transposed { w } else { w.t() }, beta, y.mat_mut());
        if let Some(bias) = self.bias {
            scope.device.add_bias(y, scope.params.tensor(bias));
        }
        Vec::new()
    }

    /// `dW += dy^T x`, `db += sum of dy`, `dx += dy W`.
    fn backward(
        &self,
        scope: &Scope<'_>,
        _: &Linear,
        grads: &mut Grads,
        x: &Tensor,
        dy: &Tensor,
        _: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let dw = grads.mat_mut(self.weight);
        match self.transposed {
            true => scope.gemm(1.0, x.mat().t(), dy.mat(), 1.0, dw),
            false => scope.gemm(1.0, dy.mat().t(), x.mat(), 1.0, dw),
        }
        if let Some(bias) = self.bias {
            scope.device.bias_backward(grads.get_mut(bias), dy);
        }
        if let Some(dx) = dx {
            let (w, beta) = (scope.param(self.weight), dx.beta());
            scope.gemm(1.0, dy.mat(), if self.transposed { w.t() } else { w }, beta, dx.tensor.mat_mut());
        }
    }

    fn embed(&self, scope: &Scope<'_>, ids: &[u32], scale: f32, y: &mut Tensor) -> Vec<Tensor> {
        let rows: Vec<Option<u32>> = ids.iter().map(|id| Some(*id)).collect();
        scope.device.table_lookup(y, scope.params.tensor(self.weight), &rows, scale);
        Vec::new()
    }

    /// `dE[id_i] += scale dy_i`.
    fn embed_backward(
        &self,
        scope: &Scope<'_>,
        grads: &mut Grads,
        ids: &[u32],
        scale: f32,
        dy: &Tensor,
        _: Vec<Tensor>,
    ) {
        let rows: Vec<Option<u32>> = ids.iter().map(|id| Some(*id)).collect();
        scope.device.table_lookup_backward(grads.get_mut(self.weight), dy, &rows, scale);
    }

    fn norm(&self) -> NormParams {
        NormParams { weight: Some(self.weight), bias: self.bias }
    }
}

impl Variant for Saved {
    fn params(&self) -> Vec<ParamId> {
        let own = (!self.shares).then_some(self.weight);
        own.into_iter().chain(self.bias).collect()
    }

    fn shares_weight(&self) -> bool {
        self.shares
    }

    fn repeated(&self, params: &Params) -> Vec<Repeated> {
        let weight = params.get(self.weight);
        let (shape, value) = (weight.shape.clone(), weight.values().to_vec());
        let own = self.shares.then_some(Repeated { name: "weight".to_owned(), shape, value });
        own.into_iter().collect()
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        let path = &start.site.path;
        if !self.shares {
            let weight = params.get_mut(self.weight);
            let mut value = vec![0.0; weight.rows * weight.cols];
            // The rows of a vector are its numbers.
            let rows = if start.site.kind == SiteKind::Norm { weight.cols } else { weight.rows };
            start.base.read_rows(path, 0..rows, &mut value)?;
            weight.set(value);
        }
        if let Some(bias) = self.bias {
            let bias = params.get_mut(bias);
            let mut value = vec![0.0; bias.cols];
            start.base.read_bias(path, &mut value)?;
            bias.set(value);
        }
        Ok(())
    }

    fn merge(&self, params: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        let weight = params.get(self.weight);
        let cols = if at.site.kind == SiteKind::Norm { 1 } else { weight.cols };
        w.copy_from_slice(&weight.values()[at.rows.start * cols..at.rows.end * cols]);
        Ok(())
    }

    fn unmerge(&self, _: &Params, at: &WeightRows<'_>, _: &mut [f32]) -> Result<(), Error> {
        Err(crate::contract::gone(&format!("{} was trained whole", at.site.path)))
    }

    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        if let Some(id) = self.bias {
            bias.copy_from_slice(&params.values(id)[range]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_peft() {
        let config = |names: &[&str]| LoraConfig {
            modules_to_save: Some(names.iter().map(ToString::to_string).collect()),
            ..LoraConfig::default()
        };
        let c = config(&["classifier", "score"]);
        for path in ["classifier", "score", "classifier.dense", "classifier.out_proj", "pre_classifier"] {
            assert!(c.saves(path), "{path}");
        }
        for path in ["bert.pooler.dense", "classifiers", "scores.dense", "lm_head"] {
            assert!(!c.saves(path), "{path}");
        }
        assert!(config(&["pooler.dense"]).saves("bert.pooler.dense"));
        assert!(!config(&[""]).saves("classifier"));
        assert!(!LoraConfig::default().saves("classifier"));
    }
}

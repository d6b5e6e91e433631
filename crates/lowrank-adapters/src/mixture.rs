//! Several adapters at one site, each with a weight: `y = base(x) + sum_i w_i (adapted_i(x) - base(x))`. For inference only.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{Adapter, Linear, LowRankFactors, ParamId, Params, Scope, Tensor, kernels};

use crate::contract::{InitContext, Variant, WeightRows};
use crate::error::Error;

/// One of the adapters.
#[derive(Clone)]
pub struct Part {
    /// What it computes at this site.
    pub variant: Arc<dyn Variant>,
    /// The parameters of the set it is from.
    pub params: Arc<Params>,
    /// Its weight.
    pub weight: f32,
}

/// The adapters of one site. They bring their own parameters; those of the pass are not read.
pub struct Mixture {
    /// In the order they are added.
    pub parts: Vec<Part>,
}

impl Mixture {
    /// The one adapter, where it is one with weight 1: then nothing need be a difference.
    fn single(&self) -> Option<&Part> {
        match &self.parts[..] {
            [part] if part.weight == 1.0 => Some(part),
            _ => None,
        }
    }
}

impl Adapter for Mixture {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        if let Some(part) = self.single() {
            return part.variant.forward(&Scope { params: &part.params, ..*scope }, base, x, y, beta);
        }
        base.forward(scope, x, y, beta);
        self.add(scope, base, x, y, 1.0);
        Vec::new()
    }

    fn embed(&self, scope: &Scope<'_>, ids: &[u32], scale: f32, y: &mut Tensor) -> Vec<Tensor> {
        if let Some(part) = self.single() {
            return part.variant.embed(&Scope { params: &part.params, ..*scope }, ids, scale, y);
        }
        let (mut base, mut own) = (scope.alloc(y.rows(), y.cols()), scope.alloc(y.rows(), y.cols()));
        scope.device.copy(&mut base, y);
        for part in &self.parts {
            let scope = Scope { params: &part.params, ..*scope };
            scope.device.copy(&mut own, &base);
            part.variant.embed(&scope, ids, scale, &mut own);
            scope.device.add_scaled_difference(y, &own, &base, part.weight);
        }
        Vec::new()
    }

    /// The store mixes no norms.
    fn norm_tensors<'a>(&'a self, _: &'a Params) -> [Option<&'a Tensor>; 2] {
        self.single().map(|part| part.variant.norm_tensors(&part.params)).unwrap_or_default()
    }

    fn low_rank<'a>(&'a self, _: &'a Params, weight: f32, out: &mut Vec<LowRankFactors<'a>>) -> bool {
        self.parts.iter().all(|part| part.variant.low_rank(&part.params, weight * part.weight, out))
    }

    fn add(&self, scope: &Scope<'_>, base: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        for part in &self.parts {
            let scope = Scope { params: &part.params, ..*scope };
            part.variant.add(&scope, base, x, y, weight * part.weight);
        }
    }
}

impl Variant for Mixture {
    fn params(&self) -> Vec<ParamId> {
        Vec::new()
    }

    fn init(&self, _: &mut Params, _: &InitContext<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn merge(&self, _: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        let base = w.to_vec();
        let mut own = base.clone();
        for part in &self.parts {
            own.copy_from_slice(&base);
            part.variant.merge(&part.params, at, &mut own)?;
            kernels::add_scaled_difference(w, &own, &base, part.weight);
        }
        Ok(())
    }

    fn unmerge(&self, _: &Params, at: &WeightRows<'_>, w: &mut [f32]) -> Result<(), Error> {
        if let Some(part) = self.single() {
            return part.variant.unmerge(&part.params, at, w);
        }
        let merged = w.to_vec();
        let mut own = merged.clone();
        for part in &self.parts {
            if part.variant.delta_norm(&part.params).is_none() {
                return Err(Error::Config(format!(
                    "{}: several adapters can be taken out only where each adds to the weight; this one scales it",
                    at.site.path
                )));
            }
            own.copy_from_slice(&merged);
            part.variant.unmerge(&part.params, at, &mut own)?;
            kernels::add_scaled_difference(w, &own, &merged, part.weight);
        }
        Ok(())
    }

    fn merge_bias(&self, _: &Params, range: Range<usize>, bias: &mut [f32]) {
        let base = bias.to_vec();
        for part in &self.parts {
            let mut own = base.clone();
            part.variant.merge_bias(&part.params, range.clone(), &mut own);
            kernels::add_scaled_difference(bias, &own, &base, part.weight);
        }
    }

    fn unmerge_bias(&self, _: &Params, range: Range<usize>, bias: &mut [f32]) {
        if let Some(part) = self.single() {
            part.variant.unmerge_bias(&part.params, range, bias);
        }
    }
}

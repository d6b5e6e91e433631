//! BitFit (Ben Zaken et al. 2021): the biases of the model are trained, nothing else.
//!
//! PEFT has no such method, so `peft_type` BITFIT is ours: the folder holds the biases as [`super::full`] names them.

use std::ops::Range;
use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, NormNumbers, ParamId, Params, Scope, Site, SiteKind, Tensor, kernels,
};

use super::full::NO_RANK;
use super::{Place, Start, Variant};
use crate::target::Target;
use crate::{Error, LoraConfig, Targets};

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
        let (n, o) = (y.rows(), y.cols());
        let bias = &scope.params.get(self.bias).value;
        scope.device.run(0, || kernels::add_bias(y.data_mut(), bias, n, o));
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
        scope.device.run(0, || {
            kernels::bias_backward(grads.get_mut(self.bias), dy.data(), dy.rows(), dy.cols());
        });
        if let Some(dx) = dx {
            base.backward(scope, dy, dx);
        }
    }

    fn norm<'a>(&'a self, params: &'a Params) -> NormNumbers<'a> {
        NormNumbers { bias: Some(&params.get(self.bias).value), ..NormNumbers::default() }
    }

    fn norm_params(&self) -> [Option<ParamId>; 2] {
        [None, Some(self.bias)]
    }
}

impl Variant for Bias {
    fn params(&self) -> Vec<ParamId> {
        vec![self.bias]
    }

    fn init(&self, params: &mut Params, start: &Start<'_>) -> Result<(), Error> {
        let bias = params.get_mut(self.bias);
        let mut value = vec![0.0; bias.cols];
        start.base.read_bias(&start.site.path, &mut value)?;
        bias.value = value;
        Ok(())
    }

    fn merge(&self, _: &Params, _: &Place<'_>, _: &mut [f32]) -> Result<(), Error> {
        Ok(())
    }

    fn unmerge(&self, _: &Params, at: &Place<'_>, _: &mut [f32]) -> Result<(), Error> {
        Err(super::gone(&format!("the bias of {} was trained", at.site.path)))
    }

    fn merge_bias(&self, params: &Params, range: Range<usize>, bias: &mut [f32]) {
        bias.copy_from_slice(&params.get(self.bias).value[range]);
    }
}

/// `peft_type` BITFIT.
pub struct Method;

impl super::Method for Method {
    fn peft_type(&self) -> &'static str {
        "BITFIT"
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &NO_RANK
    }

    /// Every bias, where nobody says which.
    fn configure(&self, config: &mut LoraConfig, _: &[Site], _: u64) {
        config.target_modules.get_or_insert_with(|| Targets::Pattern(".*".to_owned()));
    }

    fn adapts(&self, site: &Site) -> bool {
        site.bias
    }

    fn check(&self, _: &LoraConfig) -> Result<(), Error> {
        Ok(())
    }

    fn attach(
        &self,
        _: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        Ok(targets.iter().map(|target| Bias::plan(&sites[target.site], params)).collect())
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["bias"]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        Some((0, *shape("bias")?.first()?))
    }

    fn kind(&self, _: &dyn Fn(&str) -> Option<Vec<usize>>) -> (SiteKind, bool) {
        (SiteKind::Linear, true)
    }
}

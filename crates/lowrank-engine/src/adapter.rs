//! What the engine knows of adapters: something added at a site.

use std::sync::Arc;

use crate::accumulator::Accumulator;
use crate::backend::LowRankFactors;
use crate::layer::Linear;
use crate::params::{Grads, ParamId, Params};
use crate::row_adapters::AdapterIndex;
use crate::scope::Scope;
use crate::site::SiteId;
use crate::tensor::Tensor;

/// The parameters that a norm is computed with in place of the base's weight and bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NormParams {
    /// `w: [D]`.
    pub weight: Option<ParamId>,
    /// `b: [D]`.
    pub bias: Option<ParamId>,
}

/// An adapter at a site. At a linear layer it computes the site in place of its base, which it may call and never changes.
pub trait Adapter: Send + Sync {
    /// `y = beta y + adapted(x)` for `x: [N,K]`, `y: [N,O]`; the base's bias is part of what is adapted, and with
    /// `beta` 0, `y` is only written. Returns what the backward pass needs. An adapter that is never attached to a linear
    /// layer leaves this and [`Adapter::backward`] as they are; one that is for inference alone, the latter.
    ///
    /// # Panics
    /// Where an adapter leaves it as it is.
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let _ = (scope, base, x, y, beta);
        panic!("this adapter is not for linear layers")
    }

    /// What [`Adapter::add`] with `weight` adds, where that is low-rank changes and nothing else. Returns whether it is.
    fn low_rank<'a>(&'a self, params: &'a Params, weight: f32, out: &mut Vec<LowRankFactors<'a>>) -> bool {
        let _ = (params, weight, out);
        false
    }

    /// Given `dy: [N,O]`, accumulates the gradients of the adapter's parameters and, where asked, of `x`.
    ///
    /// # Panics
    /// Where an adapter leaves it as it is.
    #[allow(clippy::too_many_arguments)]
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
        let _ = (scope, base, grads, x, dy, saved, dx);
        panic!("this adapter is for inference at linear layers, or not for them")
    }

    /// At an embedding: makes `y[i] = scale adapted(ids[i])` of `y: [N,D]`, which holds `scale` times the base's rows.
    /// Returns what the backward pass needs. An adapter that is never attached to an embedding leaves this as it is.
    fn embed(&self, scope: &Scope<'_>, ids: &[u32], scale: f32, y: &mut Tensor) -> Vec<Tensor> {
        let _ = (scope, ids, scale, y);
        unreachable!("this adapter is for linear layers")
    }

    /// Given `dy: [N,D]`, accumulates the gradients of the adapter's parameters at an embedding.
    fn embed_backward(
        &self,
        scope: &Scope<'_>,
        grads: &mut Grads,
        ids: &[u32],
        scale: f32,
        dy: &Tensor,
        saved: Vec<Tensor>,
    ) {
        let _ = (scope, grads, ids, scale, dy, saved);
        unreachable!("this adapter is for linear layers")
    }

    /// At a norm: the parameters that take the place of the base's weight and bias.
    fn norm(&self) -> NormParams {
        NormParams::default()
    }

    /// At a norm: the tensors that take the place of the base's weight and bias, those of [`Adapter::norm`] or of
    /// parameters that the adapter brings along.
    fn norm_tensors<'a>(&'a self, params: &'a Params) -> [Option<&'a Tensor>; 2] {
        let NormParams { weight, bias } = self.norm();
        [weight, bias].map(|id| id.map(|id| params.tensor(id)))
    }

    /// The same for the rows of one adapter, where rows have adapters of their own.
    fn norm_tensors_of<'a>(&'a self, params: &'a Params, index: AdapterIndex) -> [Option<&'a Tensor>; 2] {
        let _ = index;
        self.norm_tensors(params)
    }

    /// `y += weight (adapted(x) - base(x))`: the adapter as one of several. Without gradient.
    fn add(&self, scope: &Scope<'_>, base: &Linear, x: &Tensor, y: &mut Tensor, weight: f32) {
        let mut change = scope.alloc(y.rows(), y.cols());
        base.forward(scope, x, &mut change, 0.0);
        scope.device.scale(&mut change, -1.0);
        self.forward(scope, base, x, &mut change, 1.0);
        scope.device.scale(&mut change, weight);
        scope.device.add(y, &change);
    }
}

/// Keys and values that are parameters: those of virtual tokens, in every layer's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// `[virtual tokens, layers * 2 * width]`: of each token, the key and the value of every layer.
    pub param: ParamId,
}

/// The adapters that are active: at most one at each site. Switching adapters is passing another set.
#[derive(Clone, Default)]
pub struct ActiveAdapters {
    by_site: Vec<Option<Arc<dyn Adapter>>>,
    /// Every sequence begins with so many virtual tokens, whose ids are those from the size of the vocabulary on.
    pub virtual_tokens: usize,
    /// Where they come with keys and values of their own.
    pub prefix: Option<Prefix>,
    /// The same of each adapter, where rows have adapters of their own, with the parameters it is among.
    pub prefixes: Vec<Option<(Prefix, Arc<Params>)>>,
}

impl ActiveAdapters {
    /// Attaches `adapter` at `site`, in place of what was there.
    pub fn attach(&mut self, site: SiteId, adapter: Arc<dyn Adapter>) {
        if self.by_site.len() <= site.0 {
            self.by_site.resize(site.0 + 1, None);
        }
        self.by_site[site.0] = Some(adapter);
    }

    /// The adapter at `site`.
    pub fn get(&self, site: SiteId) -> Option<&dyn Adapter> {
        self.by_site.get(site.0)?.as_deref()
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.by_site.iter().all(Option::is_none) && self.virtual_tokens == 0
    }
}

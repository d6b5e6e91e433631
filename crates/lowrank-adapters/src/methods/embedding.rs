//! LoRA on an embedding: `y_i = E[id_i] + s B A[:, id_i]`.
//!
//! # Shapes
//! `E: [V,D]`, `A: [R,V]` (zero at the start), `B: [D,R]` (normal at the start), as in PEFT. There is no dropout.

use std::sync::Arc;

use lowrank_engine::{Adapter, Grads, ParamId, Params, Scope, Site, Tensor, kernels};

use crate::config::LoraConfig;
use crate::contract::{InitContext, Target, Variant, WeightRows};
use crate::error::Error;
use crate::low_rank::LowRank;

/// Endings of its tensors' names.
pub const SUFFIXES: [&str; 2] = ["lora_embedding_A", "lora_embedding_B"];

/// LoRA on the rows of a table.
#[derive(Clone, Debug)]
pub struct EmbeddingLora {
    /// `A: [R,V]`.
    pub a: ParamId,
    /// `B: [D,R]`.
    pub b: ParamId,
    r: usize,
    scaling: f32,
}

impl EmbeddingLora {
    /// LoRA at `target`, an embedding, its parameters added to `params`.
    pub fn plan(config: &LoraConfig, target: &Target, site: &Site, params: &mut Params) -> Arc<dyn Variant> {
        let (r, v, d) = (target.r, site.in_features, site.out_features);
        let [a, b] = SUFFIXES.map(|suffix| format!("{}.{suffix}", site.path));
        Arc::new(Self {
            a: params.push(a, r, v, Vec::new()),
            b: params.push(b, d, r, Vec::new()),
            r,
            scaling: config.scaling(r, target.alpha),
        })
    }

    fn change<'a>(&self, params: &'a Params) -> LowRank<'a> {
        LowRank { a: params.values(self.a), b: params.values(self.b), r: self.r, scaling: self.scaling }
    }
}

impl Adapter for EmbeddingLora {
    fn embed(&self, scope: &Scope<'_>, ids: &[u32], scale: f32, y: &mut Tensor) -> Vec<Tensor> {
        let mut u = scope.alloc(ids.len(), self.r);
        scope.device.gather_transposed(&mut u, scope.params.tensor(self.a), ids);
        scope.gemm(scale * self.scaling, u.mat(), scope.param(self.b).t(), 1.0, y.mat_mut());
        vec![u]
    }

    /// With `u_i = A[:, id_i]`: `dB += s dy^T u`, `dA[:, id_i] += s B^T dy_i`.
    fn embed_backward(
        &self,
        scope: &Scope<'_>,
        grads: &mut Grads,
        ids: &[u32],
        scale: f32,
        dy: &Tensor,
        saved: Vec<Tensor>,
    ) {
        let s = scale * self.scaling;
        scope.gemm(s, dy.mat().t(), saved[0].mat(), 1.0, grads.mat_mut(self.b));
        let mut du = scope.alloc(ids.len(), self.r);
        scope.gemm(s, dy.mat(), scope.param(self.b), 0.0, du.mat_mut());
        scope.device.gather_transposed_backward(grads.get_mut(self.a), &du, ids);
    }
}

impl Variant for EmbeddingLora {
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
        let v = start.site.in_features;
        params.set(self.a, vec![0.0; self.r * v]);
        let normal = |b: &mut [f32]| kernels::normal(b, 0.0, 1.0, start.seed, start.stream);
        params.get_mut(self.b).fill_with(normal);
        Ok(())
    }

    fn delta_norm(&self, params: &Params) -> Option<f64> {
        Some(self.change(params).norm())
    }

    /// If the output layer shares the table, merging changes it too, as in PEFT.
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

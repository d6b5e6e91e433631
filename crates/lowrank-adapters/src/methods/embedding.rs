//! LoRA on an embedding, `y_i = E[id_i] + s B A[:, id_i]`, and on the head that shares its table, `y = x E^T + s (x B) A`.
//!
//! # Shapes
//! `E: [V,D]`, `A: [R,V]` (zero at the start), `B: [D,R]` (normal at the start), as in PEFT. There is no dropout.

use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Adapter, Grads, Linear, ParamId, Params, Scope, Site, SiteKind, Tensor, kernels,
};

use crate::config::LoraConfig;
use crate::contract::{InitContext, Repeated, Target, Variant, WeightRows};
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

/// The same at a head that shares the table (PEFT's `ensure_weight_tying`).
#[derive(Clone, Debug)]
pub struct TiedHeadLora {
    a: ParamId,
    b: ParamId,
    r: usize,
    scaling: f32,
    dropout: f32,
    stream: u64,
}

impl TiedHeadLora {
    /// At the head `stream` of the list of sites. `None` if `table` is not LoRA on an embedding.
    pub fn of(
        table: &dyn Variant,
        config: &LoraConfig,
        stream: usize,
        params: &Params,
    ) -> Option<Arc<dyn Variant>> {
        let &[a, b] = &table.params()[..] else { return None };
        let named = [a, b].into_iter().zip(SUFFIXES).all(|(id, end)| params.get(id).name.ends_with(end));
        let (r, scaling) = (table.rank()?, table.scaling()?);
        let (dropout, stream) = (config.lora_dropout, stream as u64);
        named.then(|| Arc::new(Self { a, b, r, scaling, dropout, stream }) as Arc<dyn Variant>)
    }
}

impl Adapter for TiedHeadLora {
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
        scope.gemm(1.0, x.mat(), scope.param(self.b), 0.0, u.mat_mut());
        scope.gemm(self.scaling, u.mat(), scope.param(self.a), 1.0, y.mat_mut());
        vec![u]
    }

    /// With `u = x B`: `du = s dy A^T`, `dA += s u^T dy`, `dB += x^T du`, `dx += dy E + du B^T`.
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
        scope.gemm(self.scaling, dy.mat(), scope.param(self.a).t(), 0.0, du.mat_mut());
        scope.gemm(self.scaling, u.mat().t(), dy.mat(), 1.0, grads.mat_mut(self.a));
        scope.gemm(1.0, x.mat().t(), du.mat(), 1.0, grads.mat_mut(self.b));
        let Some(dx) = dx else { return };
        base.backward(scope, dy, dx);
        scope.gemm_through_dropout(
            du.mat(),
            scope.param(self.b).t(),
            &mut dx.tensor,
            self.dropout,
            self.stream,
        );
    }
}

impl Variant for TiedHeadLora {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn scaling(&self) -> Option<f32> {
        Some(self.scaling)
    }

    fn params(&self) -> Vec<ParamId> {
        Vec::new()
    }

    fn shares_weight(&self) -> bool {
        true
    }

    fn repeated(&self, params: &Params) -> Vec<Repeated> {
        let transposed = |end: &str, id: ParamId| {
            let from = params.get(id);
            let (rows, cols) = (from.rows, from.cols);
            let value = (0..rows * cols).map(|i| from.values()[i % rows * cols + i / rows]).collect();
            Repeated { name: end.to_owned(), shape: vec![cols, rows], value }
        };
        vec![transposed("lora_A.weight", self.b), transposed("lora_B.weight", self.a)]
    }

    fn init(&self, _: &mut Params, _: &InitContext<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn add_delta(
        &self,
        params: &Params,
        at: &WeightRows<'_>,
        factor: f32,
        w: &mut [f32],
    ) -> Result<(), Error> {
        // The rows of the head are those of the table.
        let table = Site {
            kind: SiteKind::Embedding,
            in_features: at.site.out_features,
            out_features: at.site.in_features,
            ..at.site.clone()
        };
        let (a, b) = (params.values(self.a), params.values(self.b));
        LowRank { a, b, r: self.r, scaling: self.scaling }.add_rows(&table, factor, at.rows.clone(), w);
        Ok(())
    }
}

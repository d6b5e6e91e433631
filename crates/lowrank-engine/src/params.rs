//! Trainable parameters, their gradients and AdamW.

use lowrank_kernels as kernels;

use crate::tensor::{Mat, MatMut};

/// Names a parameter in [`Params`] and its gradient in [`Grads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// One trainable matrix.
#[derive(Clone, Debug)]
pub struct Param {
    /// PEFT's name, e.g. `model.layers.0.self_attn.q_proj.lora_A`.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row-major numbers; empty while only planning.
    pub value: Vec<f32>,
}

/// All parameters that a run may change.
#[derive(Clone, Default)]
pub struct Params {
    list: Vec<Param>,
}

impl Params {
    /// Adds a parameter. `value` holds `rows * cols` numbers, or none while only planning.
    pub fn push(&mut self, name: String, rows: usize, cols: usize, value: Vec<f32>) -> ParamId {
        assert!(value.is_empty() || value.len() == rows * cols, "{name}: {rows} x {cols}");
        self.list.push(Param { name, rows, cols, value });
        ParamId(self.list.len() - 1)
    }

    /// The parameter.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    /// The parameter, to change.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Param {
        &mut self.list[id.0]
    }

    /// A view for products.
    pub fn mat(&self, id: ParamId) -> Mat<'_> {
        let p = self.get(id);
        Mat::new(&p.value, p.rows, p.cols)
    }

    /// All parameters in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// Number of trainable numbers.
    pub fn count(&self) -> usize {
        self.list.iter().map(|p| p.rows * p.cols).sum()
    }

    /// Number of parameters (matrices).
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Gradients, accumulated until the optimiser steps.
#[derive(Default)]
pub struct Grads {
    list: Vec<(usize, usize, Vec<f32>)>,
}

impl Grads {
    /// Zero gradients for every parameter.
    pub fn zeros(params: &Params) -> Self {
        let zero = |p: &Param| (p.rows, p.cols, vec![0.0; p.value.len()]);
        Self { list: params.list.iter().map(zero).collect() }
    }

    /// The gradient of a parameter.
    pub fn get(&self, id: ParamId) -> &[f32] {
        &self.list[id.0].2
    }

    /// The gradient of a parameter, to accumulate into.
    pub fn get_mut(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.list[id.0].2
    }

    /// The same as a result of a product.
    pub fn mat_mut(&mut self, id: ParamId) -> MatMut<'_> {
        let (rows, cols, data) = &mut self.list[id.0];
        MatMut::new(data, *rows, *cols)
    }

    /// The norm of all gradients as one vector.
    pub fn norm(&self) -> f64 {
        self.list.iter().map(|(_, _, g)| kernels::sum_squares(g)).sum::<f64>().sqrt()
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f32) {
        for (_, _, g) in &mut self.list {
            g.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        for (_, _, g) in &mut self.list {
            g.fill(0.0);
        }
    }
}

/// AdamW (Loshchilov & Hutter 2019) with its moments, as `torch.optim.AdamW` computes it.
#[derive(Clone)]
pub struct AdamW {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps taken so far.
    pub step: u64,
    /// First moments, one per parameter.
    pub m: Vec<Vec<f32>>,
    /// Second moments, one per parameter.
    pub v: Vec<Vec<f32>>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(params: &Params, weight_decay: f64) -> Self {
        let zeros: Vec<Vec<f32>> = params.list.iter().map(|p| vec![0.0; p.value.len()]).collect();
        Self { weight_decay, step: 0, m: zeros.clone(), v: zeros }
    }

    /// One step with learning rate `lr` and torch's defaults: betas 0.9 and 0.999, eps 1e-8.
    pub fn update(&mut self, params: &mut Params, grads: &Grads, lr: f64) {
        self.step += 1;
        let weight_decay = self.weight_decay;
        let settings = kernels::AdamW { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
        for (i, p) in params.list.iter_mut().enumerate() {
            kernels::adamw(
                &mut p.value,
                &grads.list[i].2,
                &mut self.m[i],
                &mut self.v[i],
                &settings,
                self.step,
            );
        }
    }
}

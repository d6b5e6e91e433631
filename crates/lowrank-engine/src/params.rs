//! Trainable parameters, their gradients and AdamW.

use std::sync::atomic::{AtomicU64, Ordering};

use lowrank_kernels as kernels;

use crate::tensor::{Mat, MatMut};

/// Names a parameter in [`Params`] and its gradient in [`Grads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// One matrix of an adapter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name in PEFT's file, without `base_model.model.`, e.g.
    /// `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Its shape in the file: `[rows, cols]` unless said otherwise (a vector is a matrix of one row here).
    pub shape: Vec<usize>,
    /// Whether training changes it. What it does not change has neither gradient nor moments.
    pub trained: bool,
    /// Whether it is in the adapter's file.
    pub saved: bool,
    /// Its learning rate as a multiple of the run's.
    pub lr_ratio: f64,
    /// Row-major numbers; empty while only planning.
    pub value: Vec<f32>,
}

/// All parameters of an adapter.
#[derive(Clone, Default)]
pub struct Params {
    list: Vec<Param>,
    version: u64,
}

/// Versions are never used twice, in whatever [`Params`].
fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Params {
    /// Adds a trained parameter. `value` holds `rows * cols` numbers, or none while only planning.
    pub fn push(&mut self, name: String, rows: usize, cols: usize, value: Vec<f32>) -> ParamId {
        assert!(value.is_empty() || value.len() == rows * cols, "{name}: {rows} x {cols}");
        let shape = vec![rows, cols];
        self.list.push(Param { name, rows, cols, shape, trained: true, saved: true, lr_ratio: 1.0, value });
        self.version = next_version();
        ParamId(self.list.len() - 1)
    }

    /// Adds a trained vector of `len` numbers, as one row.
    pub fn push_vector(&mut self, name: String, len: usize, value: Vec<f32>) -> ParamId {
        let id = self.push(name, 1, len, value);
        self.get_mut(id).shape = vec![len];
        id
    }

    /// The parameter.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    /// The parameter, to change.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Param {
        self.version = next_version();
        &mut self.list[id.0]
    }

    /// A number that changes with every change of a parameter and that no other content has: what was
    /// computed from parameters of the same version still holds.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The parameter of this name.
    pub fn find(&self, name: &str) -> Option<&Param> {
        self.list.iter().find(|p| p.name == name)
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
        self.list.iter().filter(|p| p.trained).map(|p| p.rows * p.cols).sum()
    }

    /// Bytes of all parameters with the gradients and both moments of those that are trained.
    pub fn training_bytes(&self) -> usize {
        let all: usize = self.list.iter().map(|p| p.rows * p.cols).sum();
        (all + 3 * self.count()) * size_of::<f32>()
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
    list: Vec<Grad>,
}

struct Grad {
    rows: usize,
    cols: usize,
    trained: bool,
    value: Vec<f32>,
}

/// How many numbers a gradient or moment of `p` has.
fn trained_len(p: &Param) -> usize {
    if p.trained { p.value.len() } else { 0 }
}

impl Grads {
    /// Zero gradients for every trained parameter.
    pub fn zeros(params: &Params) -> Self {
        let zero = |p: &Param| Grad {
            rows: p.rows,
            cols: p.cols,
            trained: p.trained,
            value: vec![0.0; trained_len(p)],
        };
        Self { list: params.list.iter().map(zero).collect() }
    }

    /// Whether a gradient of this parameter is wanted.
    pub fn wants(&self, id: ParamId) -> bool {
        self.list[id.0].trained
    }

    /// The gradient of a parameter; empty where none is wanted.
    pub fn get(&self, id: ParamId) -> &[f32] {
        &self.list[id.0].value
    }

    /// The gradient of a parameter, to accumulate into; empty where none is wanted.
    pub fn get_mut(&mut self, id: ParamId) -> &mut [f32] {
        &mut self.list[id.0].value
    }

    /// The gradients of two different parameters; nothing for those that are not given or not trained.
    pub fn pair_mut(&mut self, ids: [Option<ParamId>; 2]) -> [Option<&mut [f32]>; 2] {
        let [mut first, mut second] = [None, None];
        for (i, grad) in self.list.iter_mut().enumerate().filter(|(_, grad)| grad.trained) {
            if ids[0] == Some(ParamId(i)) {
                first = Some(&mut grad.value[..]);
            } else if ids[1] == Some(ParamId(i)) {
                second = Some(&mut grad.value[..]);
            }
        }
        [first, second]
    }

    /// The same as a result of a product.
    pub fn mat_mut(&mut self, id: ParamId) -> MatMut<'_> {
        let grad = &mut self.list[id.0];
        MatMut::new(&mut grad.value, grad.rows, grad.cols)
    }

    /// The norm of all gradients as one vector.
    pub fn norm(&self) -> f64 {
        self.list.iter().map(|g| kernels::sum_squares(&g.value)).sum::<f64>().sqrt()
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f32) {
        for grad in &mut self.list {
            grad.value.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self) {
        for grad in &mut self.list {
            grad.value.fill(0.0);
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
    /// First moments, one per parameter; empty for those that are not trained.
    pub m: Vec<Vec<f32>>,
    /// Second moments, likewise.
    pub v: Vec<Vec<f32>>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(params: &Params, weight_decay: f64) -> Self {
        let zeros: Vec<Vec<f32>> = params.list.iter().map(|p| vec![0.0; trained_len(p)]).collect();
        Self { weight_decay, step: 0, m: zeros.clone(), v: zeros }
    }

    /// One step with learning rate `lr` (times each parameter's ratio) and torch's defaults: betas 0.9 and
    /// 0.999, eps 1e-8.
    pub fn update(&mut self, params: &mut Params, grads: &Grads, lr: f64) {
        self.step += 1;
        params.version = next_version();
        let (beta1, beta2, eps, weight_decay) = (0.9, 0.999, 1e-8, self.weight_decay);
        for (i, p) in params.list.iter_mut().enumerate().filter(|(_, p)| p.trained) {
            let settings = kernels::AdamW { lr: lr * p.lr_ratio, beta1, beta2, eps, weight_decay };
            let (grad, m, v) = (&grads.list[i].value, &mut self.m[i], &mut self.v[i]);
            kernels::adamw(&mut p.value, grad, m, v, &settings, self.step);
        }
    }
}

//! Trainable parameters, their gradients and AdamW.

use std::sync::atomic::{AtomicU64, Ordering};

use lowrank_kernels as kernels;

use crate::device::Device;
use crate::tensor::{Mat, MatMut, Tensor};

/// Names a parameter in [`Params`] and its gradient in [`Grads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// One matrix of an adapter.
#[derive(Debug)]
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
    /// Whether weight decay goes for it.
    pub decay: bool,
    /// The values; a shape only while planning.
    pub value: Tensor,
}

impl Param {
    /// The values; none while only planning.
    pub fn values(&self) -> &[f32] {
        self.value.values()
    }

    /// Gives it new values.
    ///
    /// # Panics
    /// Where they are not `rows * cols`.
    pub fn set(&mut self, values: Vec<f32>) {
        self.value = Tensor::from_vec(self.rows, self.cols, values);
    }

    /// Gives it the values that `fill` writes over zeros.
    pub fn fill_with(&mut self, fill: impl FnOnce(&mut [f32])) {
        let mut values = vec![0.0; self.rows * self.cols];
        fill(&mut values);
        self.set(values);
    }
}

impl Clone for Param {
    /// A parameter of its own: training one does not change the other.
    fn clone(&self) -> Self {
        let (name, shape) = (self.name.clone(), self.shape.clone());
        let value = match self.value.is_shape_only() {
            true => self.value.clone(),
            false => Tensor::from_vec(self.rows, self.cols, self.value.to_vec()),
        };
        Self { name, shape, value, ..*self }
    }
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
    /// Adds a trained parameter. `value` holds `rows * cols` values, or none while only planning.
    pub fn push(&mut self, name: String, rows: usize, cols: usize, value: Vec<f32>) -> ParamId {
        let value = match value.is_empty() {
            true => Tensor::shape_only(rows, cols),
            false => Tensor::from_vec(rows, cols, value),
        };
        let shape = vec![rows, cols];
        let (trained, saved, lr_ratio, decay) = (true, true, 1.0, true);
        self.list.push(Param { name, rows, cols, shape, trained, saved, lr_ratio, decay, value });
        self.version = next_version();
        ParamId(self.list.len() - 1)
    }

    /// Adds a trained vector of `len` values, as one row.
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

    /// A count that changes with every change of a parameter and that no other content has: what was
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
        self.tensor(id).mat()
    }

    /// Its tensor.
    pub fn tensor(&self, id: ParamId) -> &Tensor {
        &self.get(id).value
    }

    /// Its values; none while only planning.
    pub fn values(&self, id: ParamId) -> &[f32] {
        self.get(id).values()
    }

    /// Gives it new values.
    ///
    /// # Panics
    /// Where they are not `rows * cols`.
    pub fn set(&mut self, id: ParamId, values: Vec<f32>) {
        self.get_mut(id).set(values);
    }

    /// All parameters in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    /// How many values are trained.
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
    trained: bool,
    value: Tensor,
}

/// Zeros of the shape of a gradient or moment of `p`: a shape only while planning, without rows where it is not trained.
fn zeros_like(p: &Param) -> Tensor {
    match (p.trained, p.value.is_shape_only()) {
        (true, true) => Tensor::shape_only(p.rows, p.cols),
        (true, false) => Tensor::from_vec(p.rows, p.cols, vec![0.0; p.rows * p.cols]),
        (false, _) => Tensor::from_vec(0, p.cols, Vec::new()),
    }
}

impl Grads {
    /// Zero gradients for every trained parameter.
    pub fn zeros(params: &Params) -> Self {
        let zero = |p: &Param| Grad { trained: p.trained, value: zeros_like(p) };
        Self { list: params.list.iter().map(zero).collect() }
    }

    /// Whether a gradient of this parameter is wanted.
    pub fn wants(&self, id: ParamId) -> bool {
        self.list[id.0].trained
    }

    /// The gradient of a parameter; empty where none is wanted.
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.list[id.0].value
    }

    /// Its values; none where none is wanted.
    pub fn values(&self, id: ParamId) -> &[f32] {
        self.get(id).values()
    }

    /// The gradient of a parameter, to accumulate into; empty where none is wanted.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.list[id.0].value
    }

    /// The gradients of two different parameters; nothing for those that are not given or not trained.
    pub fn pair_mut(&mut self, ids: [Option<ParamId>; 2]) -> [Option<&mut Tensor>; 2] {
        let [mut first, mut second] = [None, None];
        for (i, grad) in self.list.iter_mut().enumerate().filter(|(_, grad)| grad.trained) {
            if ids[0] == Some(ParamId(i)) {
                first = Some(&mut grad.value);
            } else if ids[1] == Some(ParamId(i)) {
                second = Some(&mut grad.value);
            }
        }
        [first, second]
    }

    /// The same as a result of a product.
    pub fn mat_mut(&mut self, id: ParamId) -> MatMut<'_> {
        self.get_mut(id).mat_mut()
    }

    /// The norm of all gradients as one vector.
    pub fn norm(&self, device: &Device) -> f64 {
        self.list.iter().map(|grad| device.sum_squares(&grad.value)).sum::<f64>().sqrt()
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, device: &Device, factor: f32) {
        self.list.iter_mut().for_each(|grad| device.scale(&mut grad.value, factor));
    }

    /// Adds the gradients of the same parameters.
    pub fn add(&mut self, device: &Device, other: &Grads) {
        self.list
            .iter_mut()
            .zip(&other.list)
            .for_each(|(grad, other)| device.add(&mut grad.value, &other.value));
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.list.iter().map(|grad| grad.value.rows() * grad.value.cols()).sum()
    }

    /// All values, one gradient after the other; none while only planning.
    pub fn to_vec(&self, device: &Device) -> Vec<f32> {
        self.list.iter().flat_map(|grad| device.to_vec(&grad.value)).collect()
    }

    /// Gives every gradient the values that [`Grads::to_vec`] gave.
    ///
    /// # Panics
    /// Where they are too few.
    pub fn set(&mut self, device: &Device, values: &[f32]) {
        let mut rest = values;
        for grad in &mut self.list {
            let (own, others) = rest.split_at(grad.value.rows() * grad.value.cols());
            device.backend().upload(&mut grad.value, own);
            rest = others;
        }
    }

    /// Sets every gradient to zero.
    pub fn clear(&mut self, device: &Device) {
        self.list.iter_mut().for_each(|grad| device.fill(&mut grad.value, 0.0));
    }
}

/// Whose AdamW it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdamWForm {
    /// `torch.optim.AdamW`: eps 1e-8.
    #[default]
    Torch,
    /// That of transformers before 5, which PEFT's `LoraFAOptimizer` is made of: eps 1e-6 is added to the root of the
    /// second moment before its correction, and the new value decays, not the old one.
    Transformers,
}

/// AdamW (Loshchilov & Hutter 2019) with its moments.
pub struct AdamW {
    /// Whose it is.
    pub form: AdamWForm,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decays of the means of gradients and of their squares.
    pub betas: (f64, f64),
    /// Added to the root of the second moment; where it is not given, 1e-8, and 1e-6 in transformers' form.
    pub eps: Option<f64>,
    /// Steps taken so far.
    pub step: u64,
    /// First moments, one per parameter; without rows for those that are not trained.
    pub m: Vec<Tensor>,
    /// Second moments, likewise.
    pub v: Vec<Tensor>,
}

impl AdamW {
    /// Before the first step.
    pub fn new(params: &Params, weight_decay: f64) -> Self {
        let zeros = || params.list.iter().map(zeros_like).collect();
        let (form, betas, eps) = (AdamWForm::default(), (0.9, 0.999), None);
        Self { form, weight_decay, betas, eps, step: 0, m: zeros(), v: zeros() }
    }

    /// One step with learning rate `lr` (times each parameter's ratio).
    pub fn update(&mut self, device: &Device, params: &mut Params, grads: &Grads, lr: f64) {
        self.step += 1;
        params.version = next_version();
        let (beta1, beta2) = self.betas;
        let eps = self.eps.unwrap_or(match self.form {
            AdamWForm::Torch => 1e-8,
            AdamWForm::Transformers => 1e-6,
        });
        for (i, p) in params.list.iter_mut().enumerate().filter(|(_, p)| p.trained) {
            let (lr, weight_decay) = (lr * p.lr_ratio, if p.decay { self.weight_decay } else { 0.0 });
            let settings = match self.form {
                AdamWForm::Torch => kernels::AdamW { lr, beta1, beta2, eps, weight_decay },
                AdamWForm::Transformers => {
                    // With `c` for the correction's root and `d` for what decay leaves: `d (p - lr c m / (sqrt(v) + eps))`.
                    let root = (1.0 - beta2.powf(self.step as f64)).sqrt();
                    let left = 1.0 - lr * weight_decay;
                    let weight_decay = weight_decay / left;
                    kernels::AdamW { lr: lr * left, beta1, beta2, eps: eps / root, weight_decay }
                }
            };
            let (grad, m, v) = (&grads.list[i].value, &mut self.m[i], &mut self.v[i]);
            device.adamw(&mut p.value, grad, m, v, &settings, self.step);
        }
    }
}

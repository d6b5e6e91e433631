//! Root-mean-square norm: `y = x / sqrt(mean(x^2) + eps) * (offset + w)`, over rows of `D`.

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels as kernels;

use crate::adapter::{Accumulator, SiteId};
use crate::kept::Kept;
use crate::params::ParamId;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recipe, Tape, Var, VarId};
use crate::tensor::Tensor;

/// A frozen RMS norm (Zhang & Sennrich 2019).
pub struct RmsNorm {
    /// Where a weight of another's may take the place of `weight`.
    pub site: SiteId,
    /// `w: [D]`.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 0 for the Llama family, 1 for Gemma.
    pub offset: f32,
}

impl<'m> Tape<'m> {
    /// `x: [N, m * D]` to the same shape: each run of `D` numbers is normed on its own (the whole row
    /// of a model's width, or each head's part of it).
    pub fn rms_norm(&mut self, norm: &'m RmsNorm, x: &Var<'m>) -> Var<'m> {
        let d = norm.weight.len();
        let (rows, cols) = (x.tensor.rows(), x.tensor.cols());
        let n = rows * cols / d;
        let trained = self.adapters.get(norm.site);
        let params = self.scope.params;
        let weight = trained.and_then(|t| t.norm(params).weight).unwrap_or(&norm.weight);
        let trained = trained.map_or([None; 2], |t| t.norm_params());
        let out = self.id(x.id.is_some() || trained != [None; 2]);
        let keeps = self.keeps(out) || self.keeps_inputs();
        let device = self.scope.device;
        let mut y = device.alloc(rows, cols);
        let mut rstd = device.alloc(if keeps { n } else { 0 }, 1);
        device.run(0, || {
            kernels::rms_norm(
                y.data_mut(),
                rstd.data_mut(),
                x.tensor.data(),
                weight,
                norm.eps,
                n,
                d,
                norm.offset,
            );
        });
        if !keeps {
            return Var { tensor: y, id: out, recipe: None };
        }
        let recipe = Rc::new(NormRecipe {
            norm,
            weight,
            x: Kept::new(device, &x.tensor),
            rstd,
            again: RefCell::new(None),
        });
        if let Some(out) = out {
            self.push(NormNode { recipe: recipe.clone(), trained, x: x.id, out });
        }
        Var { tensor: y, id: out, recipe: Some(recipe) }
    }

    /// Whether inputs of adapters are kept at all.
    fn keeps_inputs(&self) -> bool {
        self.keeps(Some(0))
    }
}

/// The output of a norm from its input.
struct NormRecipe<'m> {
    norm: &'m RmsNorm,
    weight: &'m [f32],
    x: Kept,
    rstd: Tensor,
    again: RefCell<Option<Tensor>>,
}

impl Recipe for NormRecipe<'_> {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || {
            let x = self.x.get(scope.device);
            let mut y = scope.alloc(x.rows(), x.cols());
            let (d, n) = (self.norm.weight.len(), self.rstd.rows());
            scope.device.run(0, || {
                kernels::rms_norm(
                    y.data_mut(),
                    &mut [],
                    x.data(),
                    self.weight,
                    self.norm.eps,
                    n,
                    d,
                    self.norm.offset,
                );
            });
            y
        };
        self.again.borrow_mut().get_or_insert_with(compute).clone()
    }
}

struct NormNode<'m> {
    recipe: Rc<NormRecipe<'m>>,
    trained: [Option<ParamId>; 2],
    x: Option<VarId>,
    out: VarId,
}

impl<'m> Node<'m> for NormNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let NormRecipe { norm, weight, x, rstd, again } = &*self.recipe;
        // All that read the output have run backward.
        again.take();
        let Some(dy) = back.take(self.out) else { return };
        let x = x.get(back.scope.device);
        let mut dx = match self.x {
            Some(id) => back.open(id, x.rows(), x.cols()),
            None => Accumulator::fresh(back.scope.alloc(x.rows(), x.cols())),
        };
        let accumulate = dx.beta() != 0.0;
        let [dweight, _] = back.grads.pair_mut(self.trained);
        back.scope.device.run(0, || {
            kernels::rms_norm_backward(
                dx.tensor.data_mut(),
                dy.data(),
                x.data(),
                weight,
                rstd.data(),
                rstd.rows(),
                norm.weight.len(),
                norm.offset,
                accumulate,
                dweight,
            );
        });
        if let Some(id) = self.x {
            back.put(id, dx);
        }
    }
}

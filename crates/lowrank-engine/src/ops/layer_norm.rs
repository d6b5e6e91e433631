//! Layer norm: `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b`, over rows of `D`.

use std::cell::RefCell;
use std::rc::Rc;

use lowrank_kernels as kernels;

use crate::adapter::{NormNumbers, SiteId};
use crate::kept::Kept;
use crate::params::ParamId;
use crate::scope::Scope;
use crate::tape::{Backward, Node, Recipe, Tape, Var, VarId};
use crate::tensor::Tensor;

/// A frozen layer norm (Ba et al. 2016).
pub struct LayerNorm {
    /// Where a weight and a bias of another's may take the place of these.
    pub site: SiteId,
    /// `w: [D]`.
    pub weight: Vec<f32>,
    /// `b: [D]`.
    pub bias: Option<Vec<f32>>,
    /// Added to the variance.
    pub eps: f32,
}

/// A layer norm with the numbers it is computed with.
#[derive(Clone, Copy)]
struct Numbers<'m> {
    weight: &'m [f32],
    bias: Option<&'m [f32]>,
    eps: f32,
}

impl Numbers<'_> {
    /// `y`, and mean and `1 / sqrt(var + eps)` of each row where `stats` has room for them.
    fn run(&self, y: &mut Tensor, stats: Option<(&mut Tensor, &mut Tensor)>, x: &Tensor) {
        let (mean, rstd) = match stats {
            Some((mean, rstd)) => (mean.data_mut(), rstd.data_mut()),
            None => Default::default(),
        };
        let (n, d) = (x.rows(), x.cols());
        kernels::layer_norm(y.data_mut(), mean, rstd, x.data(), self.weight, self.bias, self.eps, n, d);
    }
}

impl<'m> Tape<'m> {
    /// `x: [N,D]` to the same shape.
    pub fn layer_norm(&mut self, norm: &'m LayerNorm, x: &Var<'m>) -> Var<'m> {
        let (n, d) = (x.tensor.rows(), x.tensor.cols());
        assert_eq!(d, norm.weight.len(), "width of a layer norm");
        let device = self.scope.device;
        let trained = self.adapters.get(norm.site);
        let params = self.scope.params;
        let NormNumbers { weight, bias } = trained.map(|t| t.norm(params)).unwrap_or_default();
        let trained = trained.map_or([None; 2], |t| t.norm_params());
        let norm = Numbers {
            weight: weight.unwrap_or(&norm.weight),
            bias: bias.or(norm.bias.as_deref()),
            eps: norm.eps,
        };
        let out = self.id(x.id.is_some() || trained != [None; 2]);
        let mut y = device.alloc(n, d);
        // Adapters above may want the output again even where its input needs no gradient.
        if !self.keeps(Some(0)) {
            device.run(0, || norm.run(&mut y, None, &x.tensor));
            return Var { tensor: y, id: out, recipe: None };
        }
        let (mut mean, mut rstd) = (device.alloc(n, 1), device.alloc(n, 1));
        device.run(0, || norm.run(&mut y, Some((&mut mean, &mut rstd)), &x.tensor));
        let recipe = Rc::new(NormRecipe {
            norm,
            x: Kept::new(device, &x.tensor),
            mean,
            rstd,
            again: RefCell::new(None),
        });
        if let Some(out) = out {
            self.push(NormNode { recipe: recipe.clone(), trained, x: x.id, out });
        }
        Var { tensor: y, id: out, recipe: Some(recipe) }
    }
}

/// The output of a norm from its input.
struct NormRecipe<'m> {
    norm: Numbers<'m>,
    x: Kept,
    mean: Tensor,
    rstd: Tensor,
    again: RefCell<Option<Tensor>>,
}

impl Recipe for NormRecipe<'_> {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || {
            let x = self.x.get(scope.device);
            let mut y = scope.alloc(x.rows(), x.cols());
            scope.device.run(0, || self.norm.run(&mut y, None, &x));
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
        let NormRecipe { norm, x, mean, rstd, again } = &*self.recipe;
        // All that read the output have run backward.
        again.take();
        let Some(dy) = back.take(self.out) else { return };
        let x = x.get(back.scope.device);
        let (mut dx, dy) = match self.x.and_then(|id| back.take(id)) {
            Some(dx) => (dx, Some(dy)),
            None => (back.scope.device.own(dy), None),
        };
        let [dweight, dbias] = back.grads.pair_mut(self.trained);
        back.scope.device.run(0, || {
            kernels::layer_norm_backward(
                dx.data_mut(),
                dy.as_ref().map(Tensor::data),
                x.data(),
                norm.weight,
                mean.data(),
                rstd.data(),
                x.rows(),
                x.cols(),
                dweight,
                dbias,
            );
        });
        if let Some(id) = self.x {
            back.add(id, dx);
        }
    }
}

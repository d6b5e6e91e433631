//! Norms over rows: root-mean-square, `y = x / sqrt(mean(x^2) + eps) * (offset + w)`, and layer norm,
//! `y = (x - mean(x)) / sqrt(var(x) + eps) * (offset + w) + b`.

use std::cell::RefCell;
use std::rc::Rc;

use crate::accumulator::Accumulator;
use crate::adapter::NormParams;
use crate::backend::NormWeights;
use crate::device::Device;
use crate::params::ParamId;
use crate::scope::Scope;
use crate::site::SiteId;
use crate::tape::{Backward, Node, Recompute, Tape, Var, VarId};
use crate::tensor::{Saved, Tensor};

/// A frozen RMS norm (Zhang & Sennrich 2019).
pub struct RmsNorm {
    /// Where a trained weight may take the place of `weight`.
    pub site: SiteId,
    /// `w: [D]`.
    pub weight: Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight: 0 for the Llama family, 1 for Gemma.
    pub offset: f32,
}

/// A frozen layer norm (Ba et al. 2016).
pub struct LayerNorm {
    /// Where a trained weight and bias may take the place of these.
    pub site: SiteId,
    /// `w: [D]`.
    pub weight: Tensor,
    /// `b: [D]`.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub eps: f32,
    /// Added to the weight: 1 for Nemotron, else 0.
    pub offset: f32,
}

impl<'m> Tape<'m> {
    /// `x: [N, m * D]` to the same shape: each run of `D` values is normed on its own (the whole row
    /// of a model's width, or each head's part of it).
    pub fn rms_norm(&mut self, norm: &'m RmsNorm, x: &Var<'m>) -> Var<'m> {
        let weights = NormWeights { weight: &norm.weight, bias: None, eps: norm.eps, offset: norm.offset };
        self.norm(norm.site, weights, Kind::Rms, x)
    }

    /// `x: [N,D]` to the same shape.
    pub fn layer_norm(&mut self, norm: &'m LayerNorm, x: &Var<'m>) -> Var<'m> {
        assert_eq!(x.tensor.cols(), norm.weight.len(), "width of a layer norm");
        let bias = norm.bias.as_ref();
        let weights = NormWeights { weight: &norm.weight, bias, eps: norm.eps, offset: norm.offset };
        self.norm(norm.site, weights, Kind::Layer, x)
    }

    fn norm(&mut self, site: SiteId, mut weights: NormWeights<'m>, kind: Kind, x: &Var<'m>) -> Var<'m> {
        let (device, params) = (self.scope.device, self.scope.params);
        let (adapter, base) = (self.adapters.get(site), weights);
        let trained = adapter.map(|adapter| adapter.norm()).unwrap_or_default();
        let [weight, bias] = adapter.map(|adapter| adapter.norm_tensors(params)).unwrap_or_default();
        weights.weight = weight.unwrap_or(weights.weight);
        weights.bias = bias.or(weights.bias);
        let out = self.id(x.id.is_some() || trained != NormParams::default());
        let mut y = device.alloc(x.tensor.rows(), x.tensor.cols());
        // Adapters above may want the output again even where its input needs no gradient.
        if !self.keeps(Some(0)) {
            if let (Some(adapter), Some(rows)) = (adapter, self.scope.rows) {
                kind.run(device, &mut y, None, &x.tensor, base);
                for (index, rows) in rows.groups(x.tensor.rows()) {
                    let [weight, bias] = adapter.norm_tensors_of(params, index);
                    let weights = NormWeights {
                        weight: weight.unwrap_or(base.weight),
                        bias: bias.or(base.bias),
                        ..base
                    };
                    let mut own = device.alloc(rows.len(), x.tensor.cols());
                    device.gather_rows(&mut own, &x.tensor, &rows);
                    let mut normed = device.alloc(rows.len(), x.tensor.cols());
                    kind.run(device, &mut normed, None, &own, weights);
                    device.scatter_rows(&mut y, &normed, &rows);
                }
                return Var::output(y, out);
            }
            kind.run(device, &mut y, None, &x.tensor, weights);
            return Var::output(y, out);
        }
        let mut stats = kind.stats(device, &x.tensor, weights);
        kind.run(device, &mut y, Some(&mut stats), &x.tensor, weights);
        let x_saved = device.save(&x.tensor);
        let recompute =
            Rc::new(NormRecompute { weights, kind, x: x_saved, stats, cached: RefCell::new(None) });
        if let Some(out) = out {
            self.push(NormNode { recompute: recompute.clone(), trained, x: x.id, out });
        }
        Var { tensor: y, id: out, recompute: Some(recompute) }
    }
}

/// Which norm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rms,
    Layer,
}

impl Kind {
    /// Room for what the backward pass needs of each run: `1 / sqrt(..)`, and a layer norm's mean before it.
    fn stats(self, device: &Device, x: &Tensor, weights: NormWeights<'_>) -> Vec<Tensor> {
        match self {
            Self::Rms => vec![device.alloc(x.len() / weights.weight.len(), 1)],
            Self::Layer => vec![device.alloc(x.rows(), 1), device.alloc(x.rows(), 1)],
        }
    }

    fn run(
        self,
        device: &Device,
        y: &mut Tensor,
        stats: Option<&mut Vec<Tensor>>,
        x: &Tensor,
        weights: NormWeights<'_>,
    ) {
        match (self, stats.map(Vec::as_mut_slice)) {
            (Self::Rms, Some([rstd])) => device.rms_norm(y, rstd, x, weights),
            (Self::Rms, _) => device.rms_norm(y, &mut device.alloc(0, 1), x, weights),
            (Self::Layer, Some([mean, rstd])) => device.layer_norm(y, Some([mean, rstd]), x, weights),
            (Self::Layer, _) => device.layer_norm(y, None, x, weights),
        }
    }
}

/// The output of a norm from its input.
struct NormRecompute<'m> {
    weights: NormWeights<'m>,
    kind: Kind,
    x: Saved,
    stats: Vec<Tensor>,
    cached: RefCell<Option<Tensor>>,
}

impl Recompute for NormRecompute<'_> {
    fn get(&self, scope: &Scope<'_>) -> Tensor {
        let compute = || {
            let x = scope.device.restore(&self.x);
            let mut y = scope.alloc(x.rows(), x.cols());
            self.kind.run(scope.device, &mut y, None, &x, self.weights);
            y
        };
        self.cached.borrow_mut().get_or_insert_with(compute).clone()
    }
}

struct NormNode<'m> {
    recompute: Rc<NormRecompute<'m>>,
    trained: NormParams,
    x: Option<VarId>,
    out: VarId,
}

impl<'m> Node<'m> for NormNode<'m> {
    fn backward(self: Box<Self>, back: &mut Backward<'_, 'm>) {
        let NormRecompute { weights, kind, x, stats, cached } = &*self.recompute;
        // All that read the output have run backward.
        cached.take();
        let Some(dy) = back.take(self.out) else { return };
        let device = back.scope.device;
        let x = device.restore(x);
        let ids: [Option<ParamId>; 2] = [self.trained.weight, self.trained.bias];
        match (kind, &stats[..]) {
            (Kind::Rms, [rstd]) => {
                let mut dx = match self.x {
                    Some(id) => back.open(id, x.rows(), x.cols()),
                    None => Accumulator::fresh(device.alloc(x.rows(), x.cols())),
                };
                let accumulate = dx.beta() != 0.0;
                let [dweight, _] = back.grads.pair_mut(ids);
                device.rms_norm_backward(&mut dx.tensor, dweight, &dy, &x, rstd, *weights, accumulate);
                if let Some(id) = self.x {
                    back.put(id, dx);
                }
            }
            (_, stats) => {
                let (mut dx, dy) = match self.x.and_then(|id| back.take(id)) {
                    Some(dx) => (dx, Some(dy)),
                    None => (device.own(dy), None),
                };
                let stats = [&stats[0], &stats[1]];
                let gradients = back.grads.pair_mut(ids);
                device.layer_norm_backward(&mut dx, gradients, dy.as_ref(), &x, stats, *weights);
                if let Some(id) = self.x {
                    back.add(id, dx);
                }
            }
        }
    }
}

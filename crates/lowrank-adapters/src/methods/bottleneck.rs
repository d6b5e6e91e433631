//! Adapter layers: a bottleneck after a sublayer, `y = t + W_u act(W_d t + b_d) + b_u`, with `t` the output of the sublayer before
//! it is added to the residual (section 5.1 of the LoRA paper).
//!
//! # Shapes
//! `W_d: [R,D]`, `b_d: [R]`, `W_u: [D,R]`, `b_u: [D]`; the weights start near zero, so the layer starts near the identity.
//!
//! - `houlsby` (Houlsby et al. 2019): after the attention and after the MLP of every block.
//! - `pfeiffer` (Pfeiffer et al. 2021): after the MLP only; with `drop_layers` not in the lowest blocks (AdapterDrop, Rücklé et
//!   al. 2020).
//! - `lin` (Lin et al. 2020): after the MLP, with a layer norm before the bottleneck.
//!
//! PEFT has none of these: `peft_type` BOTTLENECK and its names are Lowrank's own; `r` is the width of the bottleneck. An adapter
//! layer cannot be merged: it takes part in every forward pass.

use std::sync::Arc;

use lowrank_engine::{
    Accumulator, Activation, Adapter, Grads, Linear, NormWeights, ParamId, Params, Saved, Scope, Site,
    SiteKind, Tensor, kernels,
};
use serde::Deserialize;

use crate::config::{LoraConfig, OneOrMany, Targets};
use crate::contract::{BaseInfo, InitContext, Method, Target, Variant};
use crate::error::Error;
use crate::target::{layer_count, matching};

/// A bottleneck behind one linear layer.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// `W_d: [R,D]` and `b_d: [R]`.
    pub down: [ParamId; 2],
    /// `W_u: [D,R]` and `b_u: [D]`.
    pub up: [ParamId; 2],
    /// Weight and bias of its layer norm, `[D]`, where it has one.
    pub norm: Option<[ParamId; 2]>,
    r: usize,
    activation: Activation,
}

/// Of the layer norm: PyTorch's own.
const EPS: f32 = 1e-5;
/// Deviation of `W_d` and `W_u` at the start, so that the layer is nearly the identity (Houlsby et al. 2019).
const DEVIATION: f32 = 1e-2;

/// The layer norm before the bottleneck.
fn norm_weights<'a>(scope: &Scope<'a>, norm: [ParamId; 2]) -> NormWeights<'a> {
    let [weight, bias] = norm.map(|id| scope.params.tensor(id));
    NormWeights { weight, bias: Some(bias), eps: EPS, offset: 0.0 }
}

impl Bottleneck {
    /// What the bottleneck reads of `t`, with the mean and `1 / deviation` of each row where it is normed.
    fn read(&self, scope: &Scope<'_>, t: &Tensor) -> (Tensor, Option<[Tensor; 2]>) {
        let Some(norm) = self.norm else { return (t.clone(), None) };
        let (n, d) = (t.rows(), t.cols());
        let (mut x, mut mean, mut rstd) = (scope.alloc(n, d), scope.alloc(n, 1), scope.alloc(n, 1));
        let stats = Some([&mut mean, &mut rstd]);
        scope.device.layer_norm(&mut x, stats, t, norm_weights(scope, norm));
        (x, Some([mean, rstd]))
    }

    fn activated(&self, scope: &Scope<'_>, u: &Tensor) -> Tensor {
        let mut a = scope.alloc(u.rows(), u.cols());
        scope.device.activate(&mut a, u, self.activation);
        a
    }
}

impl Adapter for Bottleneck {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        let (n, d) = (y.rows(), y.cols());
        let mut t = scope.alloc(n, d);
        base.forward(scope, x, &mut t, 0.0);
        let (read, _) = self.read(scope, &t);
        let mut u = scope.alloc(n, self.r);
        scope.gemm(1.0, read.mat(), scope.param(self.down[0]).t(), 0.0, u.mat_mut());
        scope.device.add_bias(&mut u, scope.params.tensor(self.down[1]));
        let a = self.activated(scope, &u);
        scope.gemm(1.0, a.mat(), scope.param(self.up[0]).t(), beta, y.mat_mut());
        scope.device.add_bias(y, scope.params.tensor(self.up[1]));
        scope.device.add(y, &t);
        vec![t, u]
    }

    /// `dW_u += dy^T a`, `db_u += sum of dy`, `du = dy W_u * act'(u)`, `dW_d += du^T x`, `db_d += sum of du`, and
    /// `dt = dy + du W_d` (through the norm), from which the base goes on.
    fn backward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        grads: &mut Grads,
        _: &Tensor,
        dy: &Tensor,
        saved: Vec<Tensor>,
        dx: Option<&mut Accumulator>,
    ) {
        let (t, u) = (&saved[0], &saved[1]);
        let (n, d) = (t.rows(), t.cols());
        let a = self.activated(scope, u);
        scope.gemm(1.0, dy.mat().t(), a.mat(), 1.0, grads.mat_mut(self.up[0]));
        scope.device.bias_backward(grads.get_mut(self.up[1]), dy);
        // First the gradient of `a`, in its place.
        let mut du = a;
        scope.gemm(1.0, dy.mat(), scope.param(self.up[0]), 0.0, du.mat_mut());
        scope.device.activate_backward(&mut du, &Saved::F32(u.clone()), self.activation);
        let (read, stats) = self.read(scope, t);
        scope.gemm(1.0, du.mat().t(), read.mat(), 1.0, grads.mat_mut(self.down[0]));
        scope.device.bias_backward(grads.get_mut(self.down[1]), &du);
        // Below it there may be nothing to train, but its norm is.
        if dx.is_none() && self.norm.is_none() {
            return;
        }
        let mut dt = scope.alloc(n, d);
        scope.device.copy(&mut dt, dy);
        match (self.norm, stats) {
            (Some(norm), Some([mean, rstd])) => {
                let mut dread = scope.alloc(n, d);
                scope.gemm(1.0, du.mat(), scope.param(self.down[0]), 0.0, dread.mat_mut());
                let (gradients, stats) = (grads.pair_mut(norm.map(Some)), [&mean, &rstd]);
                let norm = norm_weights(scope, norm);
                scope.device.layer_norm_backward(&mut dt, gradients, Some(&dread), t, stats, norm);
            }
            _ => scope.gemm(1.0, du.mat(), scope.param(self.down[0]), 1.0, dt.mat_mut()),
        }
        if let Some(dx) = dx {
            base.backward(scope, &dt, dx);
        }
    }
}

impl Variant for Bottleneck {
    fn rank(&self) -> Option<usize> {
        Some(self.r)
    }

    fn params(&self) -> Vec<ParamId> {
        self.down.into_iter().chain(self.up).chain(self.norm.into_iter().flatten()).collect()
    }

    fn init(&self, params: &mut Params, start: &InitContext<'_>) -> Result<(), Error> {
        for id in self.params() {
            params.get_mut(id).fill_with(|_| {});
        }
        for (stream, id) in [(0, self.down[0]), (1, self.up[0])] {
            let normal =
                |x: &mut [f32]| kernels::normal(x, 0.0, DEVIATION, start.seed, start.stream + stream);
            params.get_mut(id).fill_with(normal);
        }
        if let Some([weight, _]) = self.norm {
            params.get_mut(weight).fill_with(|w| w.fill(1.0));
        }
        Ok(())
    }

    fn check_merge(&self, site: &Site) -> Result<(), Error> {
        let path = &site.path;
        Err(Error::Config(format!("{path}: an adapter layer cannot be merged into the weight before it")))
    }
}

#[derive(Deserialize)]
struct Extra {
    #[serde(default)]
    form: Form,
    non_linearity: Option<String>,
    #[serde(default)]
    drop_layers: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    #[default]
    Houlsby,
    Pfeiffer,
    Lin,
}

impl Extra {
    fn activation(&self) -> Result<Activation, Error> {
        // adapter-hub's defaults.
        let name = match (&self.non_linearity, self.form) {
            (Some(name), _) => name,
            (None, Form::Houlsby) => "swish",
            (None, _) => "relu",
        };
        Ok(match name {
            "swish" | "silu" => Activation::Silu,
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "tanh" => Activation::Tanh,
            other => {
                let what = format!("non_linearity is {other:?}; it may be swish, relu, gelu or tanh");
                return Err(Error::Config(what));
            }
        })
    }
}

/// The last layer of the attention and of the MLP, by what a model has.
const SUBLAYERS: [(&str, &str); 4] = [
    (r".*\.o_proj", r".*\.down_proj"),
    (r".*\.attn\.c_proj", r".*\.mlp\.c_proj"),
    (r".*\.attention\.output\.dense", r".*\.\d+\.output\.dense"),
    (r".*\.attention\.out_lin", r".*\.ffn\.lin2"),
];

/// Blocks without adapter layer in AdapterDrop (`adapter-d`) by default: the paper's five.
const DROPPED: usize = 5;

/// `peft_type` BOTTLENECK.
pub struct BottleneckMethod;

impl Method for BottleneckMethod {
    fn peft_type(&self) -> &'static str {
        "BOTTLENECK"
    }

    fn names(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("adapter-h", "adapter layers of Houlsby"),
            ("adapter-p", "of Pfeiffer"),
            ("adapter-l", "of Lin"),
            ("adapter-d", "AdapterDrop, with drop_layers=5 in peft_options"),
        ]
    }

    fn title(&self) -> &'static str {
        "Adapter layers"
    }

    fn in_peft(&self) -> bool {
        false
    }

    fn takes_target_modules(&self) -> bool {
        false
    }

    /// The form of each name; `adapter-d` leaves the lowest blocks without adapter layers.
    fn select(&self, name: &str, _: usize, config: &mut LoraConfig, _: &BaseInfo) -> Result<(), Error> {
        let form = match name {
            "adapter-h" => "houlsby",
            "adapter-l" => "lin",
            "adapter-p" | "adapter-d" => "pfeiffer",
            _ => return Ok(()),
        };
        config.other.insert("form".to_owned(), form.into());
        if name == "adapter-d" {
            config.default_to("drop_layers", DROPPED);
        }
        Ok(())
    }

    fn foreign_fields(&self) -> &'static [&'static str] {
        &["lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"]
    }

    fn fields(&self) -> &'static [&'static str] {
        &["form", "non_linearity", "drop_layers"]
    }

    /// The layers behind which its form puts adapter layers, and only the blocks that are not dropped.
    fn configure(&self, config: &mut LoraConfig, sites: &[Site], _: u64) {
        let Ok(extra) = config.parse_extra::<Extra>() else { return };
        let has = |pattern: &str| {
            let wanted = Targets::Pattern(pattern.to_owned());
            matching(&wanted, sites).is_ok_and(|found| found.contains(&true))
        };
        if config.target_modules.is_none() {
            let known = SUBLAYERS.into_iter().find(|(attention, mlp)| has(attention) && has(mlp));
            config.target_modules = known.map(|(attention, mlp)| {
                Targets::Pattern(match extra.form {
                    Form::Houlsby => format!("{attention}|{mlp}"),
                    _ => mlp.to_owned(),
                })
            });
        }
        if extra.drop_layers > 0 {
            let chosen = config.layers_to_transform.take();
            let wanted =
                |layer: &usize| chosen.as_ref().is_none_or(|chosen| chosen.as_slice().contains(layer));
            let kept = (extra.drop_layers..layer_count(sites)).filter(wanted);
            config.layers_to_transform = Some(OneOrMany::Many(kept.collect()));
        }
    }

    fn adapts(&self, site: &Site) -> bool {
        matches!(site.kind, SiteKind::Linear | SiteKind::TransposedLinear)
    }

    fn check(&self, config: &LoraConfig) -> Result<(), Error> {
        if config.r == 0 {
            return Err(Error::Config("r must be at least 1".into()));
        }
        config.parse_extra::<Extra>()?.activation()?;
        if matches!(&config.layers_to_transform, Some(OneOrMany::Many(layers)) if layers.is_empty()) {
            return Err(Error::Config("drop_layers leaves no block with an adapter layer".into()));
        }
        Ok(())
    }

    fn attach(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        sites: &[Site],
        params: &mut Params,
    ) -> Result<Vec<Arc<dyn Variant>>, Error> {
        let extra: Extra = config.parse_extra()?;
        let activation = extra.activation()?;
        let plan = |target: &Target| {
            let (site, r) = (&sites[target.site], target.r);
            let d = site.out_features;
            let name = |part: &str| format!("{}.adapter_{part}", site.path);
            let down = [
                params.push(name("down.weight"), r, d, Vec::new()),
                params.push_vector(name("down.bias"), r, Vec::new()),
            ];
            let up = [
                params.push(name("up.weight"), d, r, Vec::new()),
                params.push_vector(name("up.bias"), d, Vec::new()),
            ];
            let parts = ["norm.weight", "norm.bias"];
            let norm = (extra.form == Form::Lin)
                .then(|| parts.map(|part| params.push_vector(name(part), d, Vec::new())));
            Arc::new(Bottleneck { down, up, norm, r, activation }) as Arc<dyn Variant>
        };
        Ok(targets.iter().map(plan).collect())
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &[
            "adapter_down.weight",
            "adapter_down.bias",
            "adapter_up.weight",
            "adapter_up.bias",
            "adapter_norm.weight",
            "adapter_norm.bias",
        ]
    }

    fn features(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>) -> Option<(usize, usize)> {
        match (&shape("adapter_down.weight")?[..], &shape("adapter_up.weight")?[..]) {
            ([_, d], [o, _]) if d == o => Some((0, *o)),
            _ => None,
        }
    }
}

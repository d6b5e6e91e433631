//! How the optimiser treats each parameter of an adapter: transformers' groups of weight decay, LoRA+ and LoRA-FA.

use std::sync::LazyLock;

use faer::MatRef;
use faer::linalg::solvers::DenseSolveCore;
use lowrank_engine::{Device, Grads, Param, ParamId, Params, SiteKind, Tensor};
use regex::Regex;

use crate::error::Error;
use crate::methods::embedding::SUFFIXES as EMBEDDING;
use crate::set::AdapterSet;
use crate::training_hook::TrainingHook;

/// LoRA+ (Hayou et al. 2024): learning rates as multiples of the run's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPlus {
    /// Of `B` and of vectors.
    pub lr_ratio: f64,
    /// Of a LoRA on an embedding.
    pub embedding_ratio: f64,
}

/// What transformers' Trainer leaves out of weight decay by name (`get_decay_parameter_names`).
static BIAS_OR_NORM: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)").expect("a valid pattern")
});

impl AdapterSet {
    /// Weight decay as transformers' Trainer groups it: for everything but biases and norms.
    pub fn group_weight_decay(&mut self) {
        let norms = self.vectors_of_norms(|_| true);
        self.change_params(|id, p| {
            p.decay = !norms.contains(&id) && !BIAS_OR_NORM.is_match(&p.name.to_lowercase())
        });
    }

    /// LoRA+ with the groups of PEFT's `create_loraplus_optimizer`: `B` and vectors learn faster, a LoRA on an embedding
    /// at a rate of its own. Weight decay goes for all but biases and the vectors of PyTorch's LayerNorm.
    pub fn set_loraplus(&mut self, plus: LoraPlus) {
        // Norms without bias are no LayerNorm: RMSNorm is a class of each model.
        let norms = self.vectors_of_norms(|bias| bias);
        self.change_params(|id, p| {
            let vector = p.shape.len() == 1;
            p.lr_ratio = match () {
                () if EMBEDDING.iter().any(|suffix| p.name.ends_with(suffix)) => plus.embedding_ratio,
                () if vector || p.name.contains("lora_B") => plus.lr_ratio,
                () => 1.0,
            };
            p.decay = !vector || !norms.contains(&id) && !p.name.contains("bias");
        });
    }

    /// LoRA-FA (Zhang et al. 2023) as PEFT's `create_lorafa_optimizer`: `A` keeps its initial values, and the gradient of
    /// `B` is the one whose change of the weight is nearest to full fine-tuning's, `dB (A A^T)^-1 / s^2`. (PEFT rounds
    /// this product to BF16, Lowrank does not.) The optimiser is [`lowrank_engine::AdamWForm::Transformers`].
    ///
    /// # Errors
    /// For another method than LoRA on linear layers.
    pub fn set_lora_fa(&mut self) -> Result<(), Error> {
        let plain = self.config.peft_type == "LORA"
            && !["use_dora", "enable_lora"].iter().any(|f| self.config.is_set(f));
        let embedding =
            self.params.iter().find(|(_, p)| EMBEDDING.iter().any(|suffix| p.name.ends_with(suffix)));
        if let (false, _) | (_, Some(_)) = (plain, embedding) {
            let what = "`lora_fa` is for LoRA on linear layers, without DoRA and `enable_lora`";
            return Err(Error::Config(what.into()));
        }
        let find = |name: String| self.params.iter().find(|(_, p)| p.name == name).map(|(id, _)| id);
        let mut projections = Vec::new();
        for layer in &self.layers {
            let [a, b] = ["lora_A", "lora_B"].map(|part| find(format!("{}.{part}.weight", layer.site.path)));
            if let (Some(a), Some(b), Some(scaling)) = (a, b, layer.variant.scaling()) {
                projections.push((b, projection(self.params.get(a), scaling)));
            }
        }
        self.change_params(|_, p| p.trained &= !p.name.contains("lora_A"));
        self.training_hook = Some(Box::new(Projected { projections }));
        Ok(())
    }

    /// Parameters of norms, of those with a bias or without as `wanted` says.
    fn vectors_of_norms(&self, wanted: impl Fn(bool) -> bool) -> Vec<ParamId> {
        let norms = self.layers.iter().filter(|l| l.site.kind == SiteKind::Norm && wanted(l.site.bias));
        norms.flat_map(|layer| layer.variant.params()).collect()
    }

    fn change_params(&mut self, change: impl Fn(ParamId, &mut Param)) {
        let ids: Vec<ParamId> = self.params.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| change(id, self.params.get_mut(id)));
    }
}

/// `(A A^T + 1e-8)^-1 / s^2`; zeros while only planning.
fn projection(a: &Param, scaling: f32) -> Tensor {
    let (r, k) = (a.rows, a.cols);
    if a.values().is_empty() {
        return Tensor::from_vec(r, r, vec![0.0; r * r]);
    }
    let row = |i: usize| &a.values()[i * k..(i + 1) * k];
    let product = |i: usize, j: usize| {
        row(i).iter().zip(row(j)).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    let mut gram: Vec<f64> = (0..r * r).map(|at| product(at / r, at % r)).collect();
    (0..r).for_each(|i| gram[i * r + i] += 1e-8);
    let inverse = MatRef::from_row_major_slice(&gram, r, r).partial_piv_lu().inverse();
    let square = f64::from(scaling) * f64::from(scaling);
    Tensor::from_vec(r, r, (0..r * r).map(|at| (inverse[(at / r, at % r)] / square) as f32).collect())
}

/// The gradient of each `B` in LoRA-FA times its matrix.
struct Projected {
    projections: Vec<(ParamId, Tensor)>,
}

impl TrainingHook for Projected {
    fn before_update(&self, device: &Device, grads: &mut Grads) {
        for (b, projection) in &self.projections {
            let grad = grads.get(*b);
            let mut projected = device.alloc(grad.rows(), grad.cols());
            device.gemm(1.0, grad.mat(), projection.mat(), 0.0, projected.mat_mut());
            device.copy(grads.get_mut(*b), &projected);
        }
    }

    fn after_step(&mut self, _: &Device, _: u64, _: &mut Params, _: &Grads) {}

    fn bytes(&self, _: &Params) -> usize {
        self.projections.iter().map(|(_, p)| 4 * p.rows() * p.cols()).sum()
    }

    /// It follows from the values of `A`.
    fn state(&self) -> Vec<(String, Vec<f32>)> {
        Vec::new()
    }

    fn restore(&mut self, _: &str, _: Vec<f32>) {}

    fn clone_box(&self) -> Box<dyn TrainingHook> {
        let copy = |(b, p): &(ParamId, Tensor)| (*b, Tensor::from_vec(p.rows(), p.cols(), p.to_vec()));
        Box::new(Self { projections: self.projections.iter().map(copy).collect() })
    }
}

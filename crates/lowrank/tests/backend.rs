//! The seam for devices is complete: a backend that only notes the names of operations and hands them on gives the same
//! bits, and sees every operation of a training step.

mod common;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use common::{example, fixture};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, LoraConfig, Targets as TargetModules};
use lowrank::engine::kernels::{self, DisentangledShape};
use lowrank::engine::{
    Activation, AttentionGradients, AttentionInputs, AttentionShape, Backend, Cpu, Device, DistanceGradients,
    Distances, FrozenWeight, Lifetime, LowRankRows, Mask, Mat, MatMut, NormWeights, Saved, SavedDtype,
    Segment, Targets, Tensor, WeightView,
};
use lowrank::train::{StepOptions, Stepper, pack};

/// The processor, and the names of what it was asked for.
struct Recording {
    cpu: Cpu,
    names: Arc<Mutex<Vec<&'static str>>>,
}

macro_rules! recording {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty [$flops:expr];)*) => {
        impl Backend for Recording {
            fn name(&self) -> &str {
                "recording"
            }

            fn alloc(&self, rows: usize, cols: usize, lifetime: Lifetime) -> Tensor {
                self.cpu.alloc(rows, cols, lifetime)
            }

            fn upload(&self, x: &mut Tensor, values: &[f32]) {
                self.cpu.upload(x, values);
            }

            fn download(&self, x: &Tensor) -> Vec<f32> {
                self.cpu.download(x)
            }

            fn peak_bytes(&self) -> usize {
                self.cpu.peak_bytes()
            }

            fn reset_peak(&self) {
                self.cpu.reset_peak();
            }

            $(fn $name(&self, $($arg: $ty),*) -> $ret {
                self.names.lock().unwrap().push(stringify!($name));
                self.cpu.$name($($arg),*)
            })*
        }
    };
}
lowrank_engine::for_each_operation!(recording);

/// Two steps of all linear layers of a model with dropout and clipping: losses, gradients' norms and parameters, in bits.
fn bits(session: &Session, device: Device, options: StepOptions) -> Vec<u64> {
    let config = LoraConfig {
        r: 2,
        lora_dropout: 0.1,
        target_modules: Some(TargetModules::parse("all-linear")),
        ..LoraConfig::default()
    };
    let set = AdapterSet::new(config, session.sites(), 1).unwrap();
    let examples =
        [[3, 4, 5, 6, 7], [3, 4, 5, 8, 9]].map(|ids| example(&ids, &[-100, -100, -100, ids[3], ids[4]]));
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    let mut stepper = Stepper::new(&*session.model, set, device, options);
    let mut bits = Vec::new();
    for _ in 0..2 {
        let outcome = stepper.step(std::slice::from_ref(&batch), 1e-2).unwrap();
        bits.extend([outcome.loss.to_bits(), outcome.grad_norm.to_bits()]);
    }
    let values = stepper.adapters.params.iter().flat_map(|(_, p)| p.values().to_vec());
    bits.extend(values.map(|x| u64::from(x.to_bits())));
    bits
}

#[test]
fn another_backend_gives_the_same_bits_and_sees_every_operation() {
    let always = ["adamw", "cross_entropy", "dropout", "dropout_backward", "fill", "gather_rows", "gemm"];
    let always =
        always.into_iter().chain(["linear", "linear_backward", "scale", "scatter_add_rows", "sum_squares"]);
    let always: BTreeSet<&str> = always.chain(["attention", "attention_backward", "embedding"]).collect();
    let cases: [(&str, SavedDtype, &[&str]); 3] = [
        (
            "llama_gqa_tied",
            SavedDtype::Int16,
            &[
                "gated_in_place",
                "gated_backward",
                "rms_norm",
                "rms_norm_backward",
                "rope",
                "rope_backward",
                "rope_table",
                "quantize_i16",
                "dequantize_i16",
            ],
        ),
        (
            "gpt2_all",
            SavedDtype::F32,
            &[
                "layer_norm",
                "layer_norm_backward",
                "activate",
                "activate_backward",
                "linear_add",
                "copy_columns",
            ],
        ),
        ("gemma2_caps", SavedDtype::F32, &["rms_norm", "gated", "gated_backward_in_place", "rope"]),
    ];
    for (case, saved, own) in cases {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        for checkpoint_activations in [false, true] {
            let options =
                StepOptions { checkpoint_activations, weight_decay: 0.01, max_grad_norm: 1e-3, seed: 3 };
            let names = Arc::<Mutex<Vec<&str>>>::default();
            let recording = Arc::new(Recording { cpu: Cpu::new(), names: names.clone() });
            let device = Device::with_backend(recording).with_saved_dtype(saved);
            let ours = bits(&session, device, options);
            let cpu = bits(&session, Device::cpu().with_saved_dtype(saved), options);
            assert_eq!(ours, cpu, "{case}");
            let seen: BTreeSet<&str> = names.lock().unwrap().iter().copied().collect();
            let missing: Vec<_> = always.iter().chain(own).filter(|name| !seen.contains(*name)).collect();
            assert!(missing.is_empty(), "{case}: not seen: {missing:?}; seen: {seen:?}");
        }
    }
}

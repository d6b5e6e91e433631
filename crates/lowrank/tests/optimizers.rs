//! Learning rates, weight decay and LoRA-FA's gradients are those of transformers' Trainer and PEFT's optimizers: the
//! parameters after some steps are theirs. `tools/reference/optimizers.py` made the fixtures.

mod common;

use common::{Expected, close_norm, example, fixture};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, LoraConfig, LoraPlus, Targets};
use lowrank::engine::{AdamWForm, Device};
use lowrank::train::{Example, StepOptions, Stepper, pack};

const STEPS: usize = 4;
const LR: f64 = 3e-3;

/// Trains the case's adapter (all weights of the base, where it has none) and compares every parameter.
fn check(case: &str, base: &str, form: AdamWForm, prepare: impl FnOnce(&mut AdapterSet)) {
    let base = fixture("variants").join(base);
    let session = Session::open(base.to_str().unwrap()).unwrap();
    let data = Expected::file(&base.join("batch.safetensors"));
    let examples: Vec<Example> = (0..3)
        .map(|i| example(&data.ints(&format!("ids_{i}")), &data.ints(&format!("labels_{i}"))))
        .collect();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    let dir = fixture("optimizers").join(case);
    let mut adapters = match dir.join("adapter").exists() {
        true => AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap(),
        false => {
            let all = Some(Targets::Pattern(".*".into()));
            let config =
                LoraConfig { peft_type: "FULL".into(), target_modules: all, ..LoraConfig::default() };
            AdapterSet::new_on(config, session.sites(), 0, &session).unwrap()
        }
    };
    prepare(&mut adapters);
    let options =
        StepOptions { checkpoint_activations: false, weight_decay: 0.5, max_grad_norm: 0.0, seed: 0 };
    let mut stepper = Stepper::new(&*session.model, adapters, Device::cpu(), options);
    stepper.optimizer.form = form;
    for _ in 0..STEPS {
        stepper.step(std::slice::from_ref(&batch), LR).unwrap();
    }
    let expected = Expected::open(&dir);
    let mut compared = 0;
    for (_, param) in stepper.adapters.params.iter() {
        // A bias of the keys moves all scores of a query alike: its gradient is rounding alone, and so is its step.
        let (values, keys) =
            match param.name.ends_with("c_attn.bias") || param.name.ends_with("c_attn.base_layer.bias") {
                true => (param.values()[..param.cols / 3].to_vec(), false),
                false => (param.values().to_vec(), param.name.ends_with("k_proj.bias")),
            };
        if keys {
            continue;
        }
        let key = match param.name.starts_with("base_model") {
            true => param.name.clone(),
            false => format!("base_model.model.{}", param.name),
        };
        let want = expected.floats(&key);
        close_norm(&format!("{case}: {key}"), &values, &want[..values.len()], 2e-5);
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn trainer_leaves_biases_and_norms_out_of_decay() {
    for (case, base) in
        [("full_llama", "llama"), ("full_gpt2", "gpt2"), ("trainer_llama", "llama"), ("trainer_gpt2", "gpt2")]
    {
        check(case, base, AdamWForm::Torch, AdapterSet::group_weight_decay);
    }
}

#[test]
fn loraplus() {
    let plus = LoraPlus { lr_ratio: 4.0, embedding_ratio: 5e-3 / LR };
    for (case, base) in [("loraplus_llama", "llama"), ("loraplus_gpt2", "gpt2")] {
        check(case, base, AdamWForm::Torch, |adapters| adapters.set_loraplus(plus));
    }
}

#[test]
fn lora_fa() {
    for (case, base) in [("lora_fa", "llama"), ("lora_fa_rslora", "gpt2")] {
        check(case, base, AdamWForm::Transformers, |adapters| adapters.set_lora_fa().unwrap());
    }
}

//! LoRA on queries and values of GPT-2's fused layer, as loralib's `MergedLinear` trains it.
//! `tools/reference/merged_linear.py` made the fixture.

mod common;

use common::{Expected, close, example, fixture, logits};
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Format};
use lowrank::train::{StepOptions, Stepper, pack};
use lowrank::{MergeTarget, Session, TrainOptions};

#[test]
fn trains_and_merges_as_loralib() {
    let base = fixture("gpt2_c_attn");
    let data = Expected::open(&base);
    let dir = fixture("merged_linear");
    let expected = Expected::open(&dir);
    let session = Session::open(base.to_str().unwrap()).unwrap();
    let adapters = AdapterSet::load(&dir, session.sites()).unwrap();

    let tokens: Vec<u32> = data.ints("ids_1").iter().map(|t| *t as u32).collect();
    close("logits", &logits(&session, &adapters, &tokens), &expected.floats("logits_1"), 1e-4);
    let out = tempfile::tempdir().unwrap();
    lowrank::merge(&session, &adapters, out.path(), MergeTarget::Folder(Format::F32)).unwrap();
    let merged = Session::open(out.path().to_str().unwrap()).unwrap();
    let got = logits(&merged, &AdapterSet::none(), &tokens);
    close("merged logits", &got, &expected.floats("merged_logits_1"), 1e-4);

    let examples: Vec<_> = (0..3)
        .map(|i| example(&data.ints(&format!("ids_{i}")), &data.ints(&format!("labels_{i}"))))
        .collect();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    let options =
        StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };
    let mut stepper = Stepper::new(&*session.model, adapters, Device::cpu(), options);
    stepper.gradients(std::slice::from_ref(&batch)).unwrap();
    for (id, param) in stepper.adapters.params.iter() {
        let want = expected.floats(&format!("grad.base_model.model.{}", param.name));
        close(&format!("gradient of {}", param.name), stepper.grads().values(id), &want, 1e-4);
    }
    for (step, want) in expected.floats("losses").iter().enumerate() {
        let loss = stepper.step(std::slice::from_ref(&batch), 3e-3).unwrap().loss as f32;
        assert!((loss - want).abs() < 1e-3, "step {step}: loss {loss} for {want}");
    }
    for (_, param) in stepper.adapters.params.iter() {
        let want = expected.floats(&format!("last.base_model.model.{}", param.name));
        close(&format!("{} after 20 steps", param.name), param.values(), &want, 1e-3);
        if param.name.ends_with("lora_B.weight") {
            // Keys have no adapter, and no part sees another's A.
            let zeros = param.values().iter().filter(|x| **x == 0.0).count();
            assert_eq!(zeros, 192 * 8 - 2 * 64 * 4, "{}", param.name);
        }
    }
}

#[test]
fn options_give_each_part_its_rank() {
    let session = Session::open(fixture("gpt2_c_attn").to_str().unwrap()).unwrap();
    let options = TrainOptions {
        r: 4,
        lora_alpha: 32.0,
        enable_lora: vec![true, false, true],
        ..TrainOptions::default()
    };
    let config = options.lora(&*session.model, 1).unwrap();
    assert_eq!((config.r, config.lora_alpha), (8, 64.0));
    let set = AdapterSet::new(config, session.sites(), 1).unwrap();
    assert_eq!(set.layers[0].variant.rank(), Some(8));
    assert_eq!(set.layers[0].variant.scaling(), Some(8.0));

    let bad = TrainOptions { enable_lora: vec![true; 5], ..options.clone() };
    let error =
        AdapterSet::new(bad.lora(&*session.model, 1).unwrap(), session.sites(), 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("5 parts"), "{error}");
    let none = TrainOptions { enable_lora: vec![false; 3], ..options };
    let error =
        AdapterSet::new(none.lora(&*session.model, 1).unwrap(), session.sites(), 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("enable_lora"), "{error}");
}

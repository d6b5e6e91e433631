//! The same numbers as transformers + PEFT, on tiny models of each feature of every architecture.
//! `tools/reference/*_tiny.py` made the fixtures.

mod common;

use common::{Expected, close, example, fixture, logits};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::Device;
use lowrank::train::{Example, StepOptions, Stepper, pack};
use serde_json::json;

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

fn examples(expected: &Expected) -> Vec<Example> {
    (0..3)
        .map(|i| example(&expected.ints(&format!("ids_{i}")), &expected.ints(&format!("labels_{i}"))))
        .collect()
}

fn check(case: &str) {
    let dir = fixture(case);
    let expected = Expected::open(&dir);
    let session = Session::open(dir.to_str().unwrap()).unwrap();
    let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();

    for i in 0..3 {
        let tokens: Vec<u32> = expected.ints(&format!("ids_{i}")).iter().map(|t| *t as u32).collect();
        let base = logits(&session, &AdapterSet::none(), &tokens);
        close(
            &format!("{case}: base logits {i}"),
            &base,
            &expected.floats(&format!("base_logits_{i}")),
            1e-4,
        );
        let adapted = logits(&session, &adapters, &tokens);
        close(&format!("{case}: logits {i}"), &adapted, &expected.floats(&format!("logits_{i}")), 1e-4);
    }

    let examples = examples(&expected);
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..PLAIN };
        let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), options);
        let outcome = stepper.gradients(std::slice::from_ref(&batch)).unwrap();
        close(&format!("{case}: loss"), &[outcome.loss as f32], &expected.floats("loss"), 1e-5);
        close(
            &format!("{case}: grad norm"),
            &[outcome.grad_norm as f32],
            &expected.floats("grad_norm"),
            1e-4,
        );
        for (id, param) in stepper.adapters.params.iter() {
            let want = expected.floats(&format!("grad.base_model.model.{}", param.name));
            close(&format!("{case}: gradient of {}", param.name), stepper.grads().values(id), &want, 1e-4);
        }
    }

    // Accumulating over micro-batches is the same step.
    let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), PLAIN);
    let micro = [pack(&[&examples[0]], true), pack(&[&examples[1], &examples[2]], true)];
    let outcome = stepper.gradients(&micro).unwrap();
    close(&format!("{case}: accumulated loss"), &[outcome.loss as f32], &expected.floats("loss"), 1e-5);
    close(
        &format!("{case}: accumulated norm"),
        &[outcome.grad_norm as f32],
        &expected.floats("grad_norm"),
        1e-4,
    );

    let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), PLAIN);
    for (step, want) in expected.floats("losses").iter().enumerate() {
        let outcome = stepper.step(std::slice::from_ref(&batch), 3e-3).unwrap();
        let difference = (outcome.loss as f32 - want).abs();
        assert!(difference < 1e-3, "{case}: step {step}: loss {} for {want}", outcome.loss);
    }
}

macro_rules! cases {
    ($($case:ident),*) => { $(#[test] fn $case() { check(stringify!($case)); })* };
}

cases!(
    gemma_mqa,
    gemma2_caps,
    gemma2_head,
    gemma3_hub,
    gemma3_parameters,
    gpt2_c_attn,
    gpt2_all,
    gpt3_banded,
    llama_mha,
    llama_gqa_tied,
    llama_bias,
    llama_embedding,
    llama_tokens,
    qwen2_bias,
    qwen3_qk_norm,
    mistral_window,
    phi3_longrope,
    phi3_partial,
    rope_linear,
    rope_dynamic,
    rope_yarn,
    rope_yarn_options,
    rope_llama3
);

/// Gemma from GGUF, with llama.cpp's names and numbers, is the same model as from safetensors.
#[test]
fn gemma_from_gguf() {
    for (case, built_in) in [
        ("gemma2_caps", json!({"query_pre_attn_scalar": 20})),
        ("gemma3_hub", json!({"query_pre_attn_scalar": 20, "sliding_window_pattern": 2})),
    ] {
        let dir = fixture(case);
        let expected = Expected::open(&dir);
        let mut session = Session::open(dir.join("model.gguf").to_str().unwrap()).unwrap();
        let folder = Session::open(dir.to_str().unwrap()).unwrap();
        let mut config = session.base.config.clone();
        // What llama.cpp does not store but knows by a model's size is another for these tiny ones.
        config.as_object_mut().unwrap().extend(built_in.as_object().unwrap().clone());
        for (field, value) in config.as_object().unwrap() {
            let same = folder.base.config.get(field).is_none_or(|want| want == value || value.is_null());
            assert!(same, "{case}: {field} is {value}");
        }
        session.model = lowrank::models::load(&config, &session.base.tensors).unwrap();
        let tokens: Vec<u32> = expected.ints("ids_2").iter().map(|t| *t as u32).collect();
        let got = logits(&session, &AdapterSet::none(), &tokens);
        close(&format!("{case}: logits from GGUF"), &got, &expected.floats("base_logits_2"), 1e-4);
    }
}

/// Merged weights give the logits that PEFT's merge_and_unload gives, after a round trip through files.
#[test]
fn merged_models_equal_pefts() {
    for case in [
        "llama_mha",
        "llama_gqa_tied",
        "llama_embedding",
        "llama_tokens",
        "qwen3_qk_norm",
        "gpt2_c_attn",
        "gpt2_all",
        "gemma2_caps",
        "phi3_partial",
    ] {
        let dir = fixture(case);
        let expected = Expected::open(&dir);
        let mut session = Session::open(dir.to_str().unwrap()).unwrap();
        let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = lowrank::MergeTarget::Folder(lowrank::engine::Format::F32);
        lowrank::merge(&session, &adapters, out.path(), target).unwrap();
        let merged = Session::open(out.path().to_str().unwrap()).unwrap();
        let tokens: Vec<u32> = expected.ints("ids_1").iter().map(|t| *t as u32).collect();
        let got = logits(&merged, &AdapterSet::none(), &tokens);
        close(&format!("{case}: merged logits"), &got, &expected.floats("merged_logits_1"), 1e-4);
        let verified = lowrank::verify_merge(&session, &adapters, &merged, &tokens).unwrap();
        assert!(verified.max_difference < 1e-3 * verified.max_logit, "{verified:?}");
        assert_eq!(verified.same_best, tokens.len());

        // In memory, and out again to the bit.
        let base = logits(&session, &AdapterSet::none(), &tokens);
        session.merge_weights(&adapters).unwrap();
        let got = logits(&session, &AdapterSet::none(), &tokens);
        close(&format!("{case}: merged in memory"), &got, &expected.floats("merged_logits_1"), 1e-4);
        session.unmerge_weights().unwrap();
        assert_eq!(logits(&session, &AdapterSet::none(), &tokens), base, "{case}");
    }
}

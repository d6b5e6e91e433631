//! Models on a GPU: the numbers of the CPU and of transformers + PEFT. Any Vulkan device will do, also one in software.
#![cfg(feature = "gpu")]

mod common;

use std::sync::{Arc, OnceLock};

use common::{
    Expected, close, example, fixture, lowrank, lowrank_ok, overriding, tiny_data, tiny_gguf, tiny_model,
};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::{Device, SavedDtype};
use lowrank::gpu::{Gpu, adapters};
use lowrank::models::FileType;
use lowrank::train::{StepOptions, Stepper, pack};

/// One device for all tests, so that shaders are compiled once; `None`, said aloud, where there is none.
fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Arc<Gpu>>> = OnceLock::new();
    let open = || Some(Arc::new(Gpu::open(adapters().first()?).unwrap()));
    let found = GPU.get_or_init(open).clone();
    if found.is_none() {
        lowrank_testing::skipped("there is no Vulkan device (Debian: mesa-vulkan-drivers)");
    }
    Some(Device::with_backend(found?))
}

/// The device as the command names it.
fn name() -> Option<&'static str> {
    gpu().map(|_| "gpu:0")
}

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

/// Losses, gradients and twenty steps of a fixture on the GPU: against transformers + PEFT, and against the CPU.
fn check(case: &str) {
    let Some(gpu) = gpu() else { return };
    let dir = fixture(case);
    let expected = Expected::open(&dir);
    let session = Session::open(dir.to_str().unwrap()).unwrap();
    let adapters = AdapterSet::load(&dir.join("adapter"), session.sites()).unwrap();
    let examples: Vec<_> = (0..3)
        .map(|i| example(&expected.ints(&format!("ids_{i}")), &expected.ints(&format!("labels_{i}"))))
        .collect();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);

    let mut stepper = Stepper::new(&*session.model, adapters.clone(), gpu.clone(), PLAIN);
    let outcome = stepper.gradients(std::slice::from_ref(&batch)).unwrap();
    close(&format!("{case}: loss"), &[outcome.loss as f32], &expected.floats("loss"), 1e-5);
    for (id, param) in stepper.adapters.params.iter() {
        let want = expected.floats(&format!("grad.base_model.model.{}", param.name));
        close(&format!("{case}: gradient of {}", param.name), stepper.grads().values(id), &want, 1e-4);
    }

    let mut on_gpu = Stepper::new(&*session.model, adapters.clone(), gpu, PLAIN);
    let mut on_cpu = Stepper::new(&*session.model, adapters, Device::cpu(), PLAIN);
    let losses = expected.floats("losses");
    for step in 0..20 {
        let got = on_gpu.step(std::slice::from_ref(&batch), 3e-3).unwrap().loss;
        let want = on_cpu.step(std::slice::from_ref(&batch), 3e-3).unwrap().loss;
        assert!((got - want).abs() <= 1e-4, "{case}: step {step}: loss {got}, {want} on the CPU");
        if let Some(peft) = losses.get(step) {
            assert!((got as f32 - peft).abs() < 1e-3, "{case}: step {step}: loss {got}, {peft} in PEFT");
        }
    }
}

macro_rules! cases {
    ($($case:ident),*) => { $(#[test] fn $case() { check(stringify!($case)); })* };
}

cases!(
    gemma_mqa,
    gemma2_caps,
    gemma3_hub,
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
    phi3_partial
);

/// Steps of a new adapter with dropout, clipping, int16 activations and checkpoints.
fn losses(session: &Session, device: Device, config: &LoraConfig, checkpoint_activations: bool) -> Vec<f64> {
    let set = AdapterSet::new(config.clone(), session.sites(), 1).unwrap();
    let examples =
        [[3, 4, 5, 6, 7], [3, 4, 5, 8, 9]].map(|ids| example(&ids, &[-100, -100, -100, ids[3], ids[4]]));
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    let options = StepOptions { checkpoint_activations, weight_decay: 0.01, max_grad_norm: 0.1, seed: 3 };
    let mut stepper = Stepper::new(&*session.model, set, device, options);
    let mut step = || stepper.step(std::slice::from_ref(&batch), 1e-2).unwrap().loss;
    (0..20).map(|_| step()).collect()
}

#[test]
fn dropout_rounded_activations_and_checkpoints() {
    let Some(gpu) = gpu() else { return };
    let config = LoraConfig {
        r: 2,
        lora_dropout: 0.1,
        target_modules: Some(Targets::parse("all-linear")),
        ..LoraConfig::default()
    };
    for case in ["llama_gqa_tied", "gpt2_all", "gemma2_caps"] {
        let session = Session::open(fixture(case).to_str().unwrap()).unwrap();
        for (saved, checkpoints) in [(SavedDtype::Int16, false), (SavedDtype::F32, true)] {
            let want = losses(&session, Device::cpu().with_saved_dtype(saved), &config, checkpoints);
            let got = losses(&session, gpu.clone().with_saved_dtype(saved), &config, checkpoints);
            for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() <= 1e-4, "{case}: step {step}: loss {got}, {want} on the CPU");
            }
        }
    }
}

/// The losses that a run of the command logs.
fn logged(out: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(std::path::Path::new(out).join(lowrank::LOG_FILE)).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

fn same_run(model: &str, more: &[&str], tolerance: f64) {
    let Some(name) = name() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    tiny_data(&data, 12);
    let run = |device: &str| {
        let out = dir.path().join(device.replace(':', "")).to_str().unwrap().to_owned();
        let data = data.to_str().unwrap();
        let mut args = vec!["train", "--model", model, "--data", data, "--out", &out, "--device", device];
        args.extend([
            "--max-steps",
            "20",
            "--batch-size",
            "2",
            "--logging-steps",
            "1",
            "--learning-rate",
            "3e-3",
        ]);
        let args = overriding(&args, more);
        let ran = lowrank_ok(&args);
        assert_eq!(ran.err.contains("device: gpu:0 "), device == name, "{}", ran.err);
        logged(&out)
    };
    let (want, got) = (run("cpu"), run(name));
    assert_eq!((want.len(), got.len()), (20, 20), "{more:?}");
    for (step, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(
            (got - want).abs() <= tolerance,
            "{model} {more:?}: step {step}: loss {got}, {want} on the CPU"
        );
    }
}

#[test]
fn methods() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    for (more, tolerance) in [
        (&["--use-dora"][..], 1e-4),
        (&["--method", "loha"], 1e-4),
        (&["--method", "full", "--learning-rate", "3e-4"], 1e-4),
        (&["--method", "prefix"], 1e-4),
        (&["--quantize", "q8_0", "--lora-dropout", "0.1"], 1e-4),
        // The processor rounds the other factor of these products to BF16 too; a GPU has it in f32.
        (&["--precision", "bf16"], 1e-2),
    ] {
        same_run(&model, more, tolerance);
    }
}

#[test]
fn quantized_files() {
    let dir = tempfile::tempdir().unwrap();
    same_run(&tiny_gguf(dir.path(), FileType::Q4_1), &["--gradient-accumulation-steps", "2"], 1e-4);
}

#[test]
fn generation_and_evaluation() {
    let Some(name) = name() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    let data = dir.path().join("data.jsonl");
    tiny_data(&data, 12);
    let on = |device: &str| {
        let text = lowrank_ok(&[
            "generate",
            "--model",
            &model,
            "--prompt",
            "red and",
            "--max-new-tokens",
            "12",
            "--temperature",
            "0",
            "--device",
            device,
        ]);
        let args =
            ["eval", "--model", &model, "--data", data.to_str().unwrap(), "--json", "--device", device];
        let eval: serde_json::Value = serde_json::from_str(&lowrank_ok(&args).out).unwrap();
        (text.out, eval["loss"].as_f64().unwrap())
    };
    let ((text, loss), (cpu_text, cpu_loss)) = (on(name), on("cpu"));
    assert_eq!(text, cpu_text);
    assert!((loss - cpu_loss).abs() <= 1e-5, "{loss}, {cpu_loss} on the CPU");
}

#[test]
fn devices_are_listed_and_wrong_ones_refused() {
    let list = lowrank_ok(&["devices", "--json"]).out;
    let lines: Vec<serde_json::Value> =
        list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["device"], "cpu");
    assert_eq!(lines.len(), 1 + adapters().len());
    assert!(lowrank_ok(&["devices"]).out.starts_with("cpu "));
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path());
    tiny_data(&dir.path().join("data.jsonl"), 4);
    let data = dir.path().join("data.jsonl");
    let ran = lowrank(&["plan", "--model", &model, "--data", data.to_str().unwrap(), "--device", "gpu"]);
    assert!(ran.code == 2 && ran.err.contains("a plan is of a run on the processor"), "{}", ran.err);
    for (device, why) in [("gpu:999", "gpu:999"), ("cuda", "auto, cpu, gpu, gpu:N")] {
        let ran = lowrank(&["generate", "--model", &model, "--prompt", "a", "--device", device]);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains(why) || adapters().is_empty(), "{}", ran.err);
    }
}

/// Two steps of a real model, with weights as its file has them.
#[test]
fn smollm2() {
    let (Some(model), Some(gpu)) = (common::real_model(), gpu()) else { return };
    let session = Session::open(&model).unwrap();
    let config =
        LoraConfig { r: 4, target_modules: Some(Targets::parse("all-linear")), ..LoraConfig::default() };
    let ids: Vec<i64> = (0..24).map(|i| 100 + 37 * i).collect();
    let labels: Vec<i64> = ids.iter().enumerate().map(|(i, id)| if i < 12 { -100 } else { *id }).collect();
    let example = example(&ids, &labels);
    let batch = pack(&[&example], true);
    let run = |device: Device| {
        let set = AdapterSet::new(config.clone(), session.sites(), 1).unwrap();
        let mut stepper = Stepper::new(&*session.model, set, device, PLAIN);
        [(); 2].map(|()| stepper.step(std::slice::from_ref(&batch), 1e-3).unwrap().loss)
    };
    let (want, got) = (run(Device::cpu()), run(gpu));
    for (want, got) in want.iter().zip(got) {
        assert!((got - want).abs() <= 1e-4 * want, "loss {got}, {want} on the CPU");
    }
}

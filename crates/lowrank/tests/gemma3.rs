//! The real Gemma 3 270M (Q4_K_M), whose SentencePiece tokenizer begins every text, against transformers + PEFT.
//! `tools/reference/gemma3.py` made the fixtures of `fixtures/gemma3`.

mod common;

use std::path::Path;

use common::{Expected, fixture, lowrank_ok};
use lowrank::adapters::AdapterSet;
use lowrank::engine::Device;
use lowrank::models::{Base, Sampling};
use lowrank::train::{DataOptions, StepOptions, Stepper, Template, pack};
use lowrank::{Limits, Session, TextGenerator};
use serde_json::Value;

fn model() -> Option<String> {
    Some(lowrank_testing::gemma3()?.to_str().unwrap().to_owned())
}

fn json(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(fixture("gemma3").join(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// `lowrank eval`'s loss of one text.
fn loss(dir: &Path, model: &str, text: &str) -> f64 {
    let data = dir.join("text.jsonl");
    std::fs::write(&data, serde_json::json!({"text": text}).to_string()).unwrap();
    let ran = lowrank_ok(&["eval", "--model", model, "--data", data.to_str().unwrap(), "--json"]);
    serde_json::from_str::<Value>(&ran.out).unwrap()["loss"].as_f64().unwrap()
}

#[test]
fn tokens_and_perplexity_are_the_references() {
    let Some(model) = model() else { return };
    let dir = tempfile::tempdir().unwrap();
    let session = Session::open(&model).unwrap();
    for case in json("texts.json") {
        let text = case["text"].as_str().unwrap();
        assert_eq!(
            session.tokenizer().unwrap().encode_with_special_tokens(text).unwrap(),
            ids(&case["ids"]),
            "{text:?}"
        );
        // A text's label after its last word is the end token, which the reference's loss leaves out.
        let want = case["loss_with_eos"].as_f64().unwrap();
        let got = loss(dir.path(), &model, text);
        assert!((got - want).abs() < 2e-4, "{text:?}: {got} for {want}");
    }
}

#[test]
fn greedy_texts_and_chat_are_the_references() {
    let Some(model) = model() else { return };
    let session = Session::open(&model).unwrap();
    let (device, adapters) = (Device::cpu(), AdapterSet::none());
    for case in json("generations.json") {
        let prompt = ids(&case["prompt_ids"]);
        let text = case["text"].as_str().unwrap();
        assert_eq!(
            session.tokenizer().unwrap().encode_with_special_tokens(text).unwrap(),
            prompt,
            "{text:?}"
        );
        let mut generator = TextGenerator::new(&session, &device, &adapters).unwrap();
        let want = ids(&case["ids"]);
        let limits = Limits { max_new_tokens: want.len(), stop: Vec::new() };
        let got = generator.generate(&prompt, &Sampling::default(), &limits, |_| ()).unwrap();
        assert_eq!(got.tokens, want, "{text:?}");
    }
}

#[test]
fn ten_steps_are_the_references() {
    let Some(model) = model() else { return };
    let session = Session::open(&model).unwrap();
    let dir = fixture("gemma3");
    let expected = Expected::open(&dir);
    let options = DataOptions {
        prompt_template: Some(Template::parse("{prompt}\\n").unwrap()),
        ..DataOptions::default()
    };
    let data =
        lowrank::train::data::read(&fixture("smollm2/rows.jsonl"), &options, &session.encoder().unwrap())
            .unwrap();
    let rows = data.examples.batch(0..40);
    let (lengths, prompts) = (expected.ints("row_lengths"), expected.ints("prompt_lengths"));
    for (i, checksum) in expected.ints("row_checksums").iter().enumerate() {
        let sum: i64 = rows[i].tokens.iter().zip(1..).map(|(token, t): (_, i64)| t * i64::from(*token)).sum();
        let got = (rows[i].tokens.len() as i64, rows[i].prompt_len as i64, sum);
        assert_eq!(got, (lengths[i], prompts[i], *checksum), "row {i}");
    }
    let plain = StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 0 };
    let adapters = AdapterSet::load(&dir.join("start_adapter"), session.sites()).unwrap();
    let mut stepper = Stepper::new(&*session.model, adapters, Device::cpu(), plain);
    let (losses, norms) = (expected.floats("losses"), expected.floats("grad_norms"));
    for (step, batch) in rows.chunks(4).enumerate() {
        let batch = pack(&batch.iter().collect::<Vec<_>>(), true);
        let outcome = stepper.step(&[batch], 5e-4).unwrap();
        let (loss, norm) = (outcome.loss as f32, outcome.grad_norm as f32);
        assert!((loss - losses[step]).abs() < 1e-3, "step {step}: loss {loss} for {}", losses[step]);
        assert!(
            (norm - norms[step]).abs() < 1e-2 * norms[step],
            "step {step}: norm {norm} for {}",
            norms[step]
        );
    }
}

/// Base + adapter, and the GGUF file merged from them, give a text the same loss.
#[test]
fn merged_to_gguf_says_the_same() {
    let Some(model) = model() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (adapter, out) = (fixture("gemma3").join("start_adapter"), dir.path().join("merged.gguf"));
    let (adapter, out) = (adapter.to_str().unwrap(), out.to_str().unwrap());
    lowrank_ok(&["merge", "--model", &model, "--adapter", adapter, "--out", out, "--dtype", "f32"]);
    let text = json("texts.json")[0]["text"].as_str().unwrap().to_owned();
    let data = dir.path().join("text.jsonl");
    let merged = loss(dir.path(), out, &text);
    let ran = lowrank_ok(&[
        "eval",
        "--model",
        &model,
        "--adapter",
        adapter,
        "--data",
        data.to_str().unwrap(),
        "--json",
    ]);
    let apart = serde_json::from_str::<Value>(&ran.out).unwrap()["loss"].as_f64().unwrap();
    let base = loss(dir.path(), &model, &text);
    assert!((merged - apart).abs() < 1e-4, "{merged} for {apart}");
    assert!((base - apart).abs() > 1e-3, "the adapter changes nothing");
}

/// Merged into its own types (Q4_K_M), the file has every other tensor's bytes, and generates.
#[test]
fn merged_into_its_own_types_it_generates() {
    let Some(model) = model() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (adapter, out) = (fixture("gemma3").join("start_adapter"), dir.path().join("merged.gguf"));
    let (adapter, out) = (adapter.to_str().unwrap(), out.to_str().unwrap());
    lowrank_ok(&["merge", "--model", &model, "--adapter", adapter, "--out", out]);
    let (base, merged) = (Base::open(&model).unwrap(), Base::open(out).unwrap());
    let (mut kept, mut changed) = (0, 0);
    for name in base.tensors.names() {
        assert_eq!(merged.tensors.format(name), base.tensors.format(name), "{name}");
        match name.ends_with("q_proj.weight") || name.ends_with("v_proj.weight") {
            true => changed += 1,
            false => {
                kept += 1;
                assert!(merged.tensors.stored(name).unwrap() == base.tensors.stored(name).unwrap(), "{name}");
            }
        }
    }
    assert!(changed == 36 && kept > 100, "{changed} changed, {kept} kept");
    let text = json("texts.json")[0]["text"].as_str().unwrap().to_owned();
    let (before, after) = (loss(dir.path(), &model, &text), loss(dir.path(), out, &text));
    assert!((before - after).abs() < 0.5, "{after} for {before}");
    let said = lowrank_ok(&[
        "generate",
        "--model",
        out,
        "--prompt",
        "The capital of France is",
        "--max-new-tokens",
        "8",
    ]);
    assert!(said.out.contains("Paris"), "{}", said.out);
}

//! The base's own dropouts: loss and gradients of transformers + PEFT in training mode, where its masks are made of our random
//! numbers (`tools/reference/base_dropout.py`).

mod common;

use std::fs;

use common::{Expected, close, fixture, lowrank, tiny_data, tiny_model};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Label};
use lowrank::files::LoadOptions;
use lowrank::train::{Example, StepOptions, Stepper, Target, Task, pack};

const OPTIONS: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 5 };

fn check(base: &str, case: &str, task: Task) {
    let heads = fixture("heads");
    let dir = fixture("base_dropout").join(case.replace('/', "_"));
    let (given, expected) = (Expected::open(&heads.join(case)), Expected::open(&dir));
    let model = tempfile::tempdir().unwrap();
    fs::copy(dir.join("config.json"), model.path().join("config.json")).unwrap();
    fs::copy(heads.join(base).join("model.safetensors"), model.path().join("model.safetensors")).unwrap();
    let adapter = heads.join(case).join("adapter");
    let source = model.path().to_str().unwrap();
    let session =
        Session::for_adapter(source, LoadOptions::default(), Some(&adapter), Some(task), None).unwrap();
    let adapters = AdapterSet::load(&adapter, session.sites()).unwrap();
    let last = !session.model.info().is_encoder;
    let examples: Vec<Example> = (0..3)
        .map(|i| {
            let numbers = |name: &str| -> Vec<u32> {
                given.ints(&format!("{name}_{i}")).iter().map(|x| *x as u32).collect()
            };
            let tokens = numbers("ids");
            let row = if last { tokens.len() as u32 - 1 } else { 0 };
            let target = match task {
                Task::Regression => Target::Values { row, values: given.floats(&format!("labels_{i}")) },
                _ => Target::Classes(vec![Label { row, target: numbers("labels")[0] }]),
            };
            let types = given.names().contains(&format!("types_{i}"));
            let token_types = if types { numbers("types") } else { Vec::new() };
            Example { tokens, token_types, target, ..Example::default() }
        })
        .collect();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    let stepper = |options: StepOptions, dropout: bool| {
        Stepper::new(&*session.model, adapters.clone(), Device::cpu(), options)
            .for_task(session.task.clone(), None)
            .with_base_dropout(dropout)
    };
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..OPTIONS };
        let mut with = stepper(options, true);
        let outcome = with.gradients(std::slice::from_ref(&batch)).unwrap();
        close(&format!("{case}: loss"), &[outcome.loss as f32], &expected.floats("loss"), 1e-5);
        let mut left: Vec<String> = expected.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
        for (id, param) in with.adapters.params.iter() {
            let name = format!("grad.base_model.model.{}", param.name);
            close(&format!("{case}: {name}"), with.grads().values(id), &expected.floats(&name), 1e-4);
            left.retain(|n| *n != name);
        }
        assert!(left.is_empty(), "{case}: not trained: {left:?}");
    }
    // Without the option and in evaluation nothing is dropped.
    let plain = stepper(OPTIONS, false).gradients(std::slice::from_ref(&batch)).unwrap().loss;
    close(&format!("{case}: loss without"), &[plain as f32], &given.floats("losses")[..1], 1e-5);
    let scored = |dropout: bool| stepper(OPTIONS, dropout).scorer().score(&batch).outputs;
    assert_eq!(scored(true), scored(false), "{case}");
}

#[test]
fn bert() {
    check("bert", "bert/pair", Task::PairClassification);
}

#[test]
fn roberta() {
    check("roberta", "roberta/regression", Task::Regression);
}

#[test]
fn distilbert() {
    check("distilbert", "distilbert/classes", Task::Classification);
}

#[test]
fn deberta() {
    check("../deberta_conv", "deberta/bias_all", Task::Classification);
}

#[test]
fn gpt2() {
    check("../gpt2_c_attn", "gpt2/classes", Task::Classification);
}

#[test]
fn models_without_dropout_refuse_the_option() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data, out) = (tiny_model(dir.path()), dir.path().join("data.jsonl"), dir.path().join("out"));
    tiny_data(&data, 4);
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let ran = lowrank(&["train", "--model", &model, "--data", data, "--out", out, "--base-dropout"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("--base-dropout is for models that were trained with dropout"), "{}", ran.err);
    assert!(ran.err.contains("not for llama"), "{}", ran.err);
}

#[test]
fn probabilities_are_checked() {
    let model = tempfile::tempdir().unwrap();
    let heads = fixture("heads").join("bert");
    let config = fs::read_to_string(fixture("base_dropout").join("bert_pair/config.json")).unwrap();
    fs::write(model.path().join("config.json"), config.replace("0.25", "1.25")).unwrap();
    fs::copy(heads.join("model.safetensors"), model.path().join("model.safetensors")).unwrap();
    let source = model.path().to_str().unwrap();
    let opened = Session::for_adapter(source, LoadOptions::default(), None, Some(Task::Mlm), None);
    let error = opened.err().expect("a probability above 1").to_string();
    assert!(error.contains("attention_probs_dropout_prob is 1.25"), "{error}");
}

//! The same numbers as transformers + PEFT for every head of encoders and decoders, on tiny models.
//! `tools/reference/heads_tiny.py` made the fixtures.

mod common;

use common::{Expected, close, fixture};
use lowrank::Session;
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Label};
use lowrank::files::LoadOptions;
use lowrank::train::{Example, StepOptions, Stepper, Target, Task, pack};

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

fn tokens(expected: &Expected, name: &str) -> Vec<u32> {
    expected.ints(name).iter().map(|t| *t as u32).collect()
}

/// The example that the fixture's `i`th is for `task`, read by the first or the last token.
fn example(expected: &Expected, i: usize, task: Task, reads_last: bool) -> Example {
    let ids = tokens(expected, &format!("ids_{i}"));
    let row = if reads_last { ids.len() as u32 - 1 } else { 0 };
    let labels = |name: &str| expected.ints(name);
    let name = format!("labels_{i}");
    let types = format!("types_{i}");
    let token_types = if expected.names().contains(&types) { tokens(expected, &types) } else { Vec::new() };
    let (mut all, target) = (
        ids.clone(),
        match task {
            Task::Regression => Target::Values { row, values: expected.floats(&name) },
            Task::MultiLabelClassification => {
                let vector = expected.floats(&name);
                let set = (0..).zip(vector).filter(|(_, there)| *there == 1.0).map(|(class, _)| class);
                Target::ClassSet { row, classes: set.collect() }
            }
            Task::Classification | Task::PairClassification => {
                Target::Classes(vec![Label { row, target: labels(&name)[0] as u32 }])
            }
            Task::Embedding => Target::Pair(ids.len()),
            _ => Target::Classes(
                (0..)
                    .zip(labels(&name))
                    .filter(|(_, label)| *label >= 0)
                    .map(|(row, label)| Label { row, target: label as u32 })
                    .collect(),
            ),
        },
    );
    if task == Task::Embedding {
        all.extend(tokens(expected, &format!("second_{i}")));
    }
    Example { tokens: all, token_types, target, ..Example::default() }
}

fn check(base: &str, case: &str, task: Option<Task>) {
    let dir = fixture("heads").join(case);
    let model = fixture("heads").join(base);
    let expected = Expected::open(&dir);
    let adapter = dir.join("adapter");
    let session =
        Session::for_adapter(model.to_str().unwrap(), LoadOptions::default(), Some(&adapter), task, None)
            .unwrap();
    let adapters = AdapterSet::load(&adapter, session.sites()).unwrap();
    let decoder = !session.model.info().is_encoder;
    let task = session.task.task;
    let examples: Vec<Example> = (0..3).map(|i| example(&expected, i, task, decoder)).collect();
    let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
    if matches!(task, Task::Classification | Task::MultiLabelClassification | Task::Regression) {
        assert_eq!(
            batch.output_rows.as_ref().map(Vec::len),
            Some(3),
            "{case}: the head reads one row of a text"
        );
    }

    let stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), PLAIN)
        .for_task(session.task.clone(), None);
    let scores = stepper.scorer().score(&batch);
    if !matches!(task, Task::Mlm | Task::Embedding) {
        let want: Vec<f32> = (0..3).flat_map(|i| expected.floats(&format!("outputs_{i}"))).collect();
        close(&format!("{case}: outputs"), &scores.outputs, &want, 1e-4);
    }
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..PLAIN };
        let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), options);
        let outcome = stepper.gradients(std::slice::from_ref(&batch)).unwrap();
        close(
            &format!("{case}: grad norm"),
            &[outcome.grad_norm as f32],
            &expected.floats("grad_norm"),
            1e-4,
        );
        let mut left: Vec<String> = expected.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
        for (id, param) in stepper.adapters.params.iter() {
            let name = format!("grad.base_model.model.{}", param.name);
            if name.ends_with(".key.bias") {
                // A key's bias moves no probability: its gradient is rounding alone.
                let largest = |numbers: &[f32]| numbers.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let rounding = 1e-6 * outcome.grad_norm as f32;
                assert!(largest(stepper.grads().values(id)) < rounding, "{case}: {name}");
                assert!(largest(&expected.floats(&name)) < rounding, "{case}: {name}");
                left.retain(|n| *n != name);
                continue;
            }
            close(&format!("{case}: {name}"), stepper.grads().values(id), &expected.floats(&name), 1e-4);
            left.retain(|n| *n != name);
        }
        assert!(left.is_empty(), "{case}: parameters that PEFT trains and we do not: {left:?}");
    }

    let mut stepper = Stepper::new(&*session.model, adapters.clone(), Device::cpu(), PLAIN);
    for (step, want) in expected.floats("losses").iter().enumerate() {
        let outcome = stepper.step(std::slice::from_ref(&batch), 3e-3).unwrap();
        let difference = (outcome.loss as f32 - want).abs();
        assert!(difference < 1e-3 * want.max(1.0), "{case}: step {step}: loss {} for {want}", outcome.loss);
    }

    // What is saved is what was loaded, under the names that PEFT gave.
    let out = tempfile::tempdir().unwrap();
    adapters.save(out.path()).unwrap();
    let names = |dir: &std::path::Path| {
        let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> =
            file.tensors().into_iter().map(|(n, t)| (n, t.shape().to_vec(), t.data().to_vec())).collect();
        all.sort();
        all
    };
    let mut want = names(&adapter);
    if adapters.config.bias == "all" {
        // PEFT also writes what `modules_to_save` replaced, and its own copies a second time.
        want.retain(|(name, ..)| !name.contains(".original_module.") && !name.contains(".modules_to_save."));
    }
    assert_eq!(names(out.path()), want, "{case}");
}

#[test]
fn bert_pair() {
    check("bert", "bert/pair", Some(Task::PairClassification));
}

#[test]
fn bert_tokens() {
    check("bert", "bert/token", None);
}

#[test]
fn bert_masked() {
    check("bert", "bert/mlm", Some(Task::Mlm));
}

#[test]
fn bert_embedding() {
    check("bert", "bert/embedding", None);
}

#[test]
fn roberta_regression() {
    check("roberta", "roberta/regression", Some(Task::Regression));
}

#[test]
fn several_labels_of_a_text() {
    for (base, case) in [
        ("bert", "bert/multi_label"),
        ("roberta", "roberta/multi_label"),
        ("../llama_gqa_tied", "llama/multi_label"),
    ] {
        check(base, case, Some(Task::MultiLabelClassification));
    }
}

#[test]
fn several_values_of_a_text() {
    for (base, case) in
        [("bert", "bert/values"), ("roberta", "roberta/values"), ("../llama_gqa_tied", "llama/values")]
    {
        check(base, case, Some(Task::Regression));
    }
}

#[test]
fn roberta_masked() {
    check("roberta", "roberta/mlm", Some(Task::Mlm));
}

#[test]
fn distilbert_classes() {
    check("distilbert", "distilbert/classes", None);
}

#[test]
fn distilbert_masked() {
    check("distilbert", "distilbert/mlm", Some(Task::Mlm));
}

#[test]
fn gpt2_classes() {
    check("../gpt2_c_attn", "gpt2/classes", None);
}

#[test]
fn llama_classes() {
    check("../llama_gqa_tied", "llama/classes", Some(Task::Classification));
}

#[test]
fn llama_tokens() {
    check("../llama_gqa_tied", "llama/token", Some(Task::TokenClassification));
}

#[test]
fn biases_of_roberta() {
    check("roberta", "roberta/bias_all", Some(Task::Classification));
}

#[test]
fn biases_of_adapted_layers() {
    check("bert", "bert/bias_lora", None);
}

#[test]
fn biases_of_gpt2() {
    check("../gpt2_c_attn", "gpt2/bias_all", None);
}

/// The convolution's, and that of the norm of the distances, which all blocks read.
#[test]
fn biases_of_deberta() {
    check("../deberta_conv", "deberta/bias_all", Some(Task::Classification));
}

/// Files of a classifier have no language-model head, whatever `tie_word_embeddings` says.
#[test]
fn classifiers_need_no_language_model_head() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let base = fixture("phi3_longrope");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    config["id2label"] = serde_json::json!({"0": "no", "1": "yes"});
    std::fs::create_dir(at("model")).unwrap();
    std::fs::write(at("model/config.json"), config.to_string()).unwrap();
    let file = std::fs::read(base.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let score: Vec<u8> = (0..96).flat_map(|i| ((i % 7) as f32 / 8.0 - 0.375).to_le_bytes()).collect();
    let score = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 48], &score).unwrap();
    let mut tensors = file.tensors();
    tensors.retain(|(name, _)| name != "lm_head.weight");
    tensors.push(("score.weight".into(), score));
    std::fs::write(at("model/model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();

    let open = |name: &str| {
        let task = Some(Task::Classification);
        Session::for_adapter(&at(name), LoadOptions::default(), None, task, None).unwrap()
    };
    let session = open("model");
    assert_eq!(session.sites().last().unwrap().path, "score");
    let target = lowrank::MergeTarget::Folder(lowrank::engine::Format::F32);
    lowrank::merge(&session, &AdapterSet::none(), at("merged").as_ref(), target).unwrap();
    let scores = |session: &Session| {
        let tokens = vec![5, 9, 21, 3];
        let target = Target::Classes(vec![Label { row: 3, target: 1 }]);
        let example = Example { tokens, target, ..Example::default() };
        let (adapters, device) = (AdapterSet::none(), Device::cpu());
        session.scorer(&adapters, &device).unwrap().score(&pack(&[&example], true)).outputs
    };
    assert_eq!(scores(&open("merged")), scores(&session));
    let error = Session::open(&at("merged")).err().unwrap().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("tie_word_embeddings"), "{error}");
}

/// A merged model has the trained biases, of layers and of norms, and gives what base and adapter give.
#[test]
fn trained_biases_merge() {
    for (base, case) in [("roberta", "roberta/bias_all"), ("../gpt2_c_attn", "gpt2/bias_all")] {
        let (model, dir) = (fixture("heads").join(base), fixture("heads").join(case));
        let (expected, adapter) = (Expected::open(&dir), dir.join("adapter"));
        let task = Some(Task::Classification);
        let session =
            Session::for_adapter(model.to_str().unwrap(), LoadOptions::default(), Some(&adapter), task, None)
                .unwrap();
        let adapters = AdapterSet::load(&adapter, session.sites()).unwrap();
        let mut seen = 0;
        for layer in &adapters.layers {
            let name = format!("{}.bias", layer.site.path);
            let trained = ["", ".base_layer"].iter().find_map(|at| {
                adapters.params.find(&format!("{}{at}.bias", layer.site.path)).map(|p| p.values().to_vec())
            });
            let mut merged = vec![0.0; layer.site.out_features];
            adapters.merge_rows(&session, &name, 0..layer.site.out_features, &mut merged).unwrap();
            if let Some(trained) = trained {
                assert_eq!(merged, trained, "{name}");
                seen += 1;
            }
        }
        let all = expected.names().iter().filter(|n| n.starts_with("grad.") && n.ends_with("bias")).count();
        assert_eq!(seen, all, "{case}");
        // They cannot be taken out again: nothing says what they were.
        let adapted = |path: &str| path.ends_with("c_attn") || path.ends_with("query");
        let layer = adapters.layers.iter().find(|layer| adapted(&layer.site.path)).unwrap();
        let name = format!("{}.weight", layer.site.path);
        let error = adapters.unmerge_rows(&session, &name, 0..1, &mut []).unwrap_err().to_string();
        assert!(error.contains("bias of") && error.contains("was trained"), "{error}");
    }
}

/// What PEFT wrote says `SEQ_CLS`, and `problem_type` of the base what that is.
#[test]
fn the_base_says_what_peft_trained() {
    for (case, problem, task) in [
        ("bert/multi_label", "multi_label_classification", Task::MultiLabelClassification),
        ("bert/values", "regression", Task::Regression),
        ("bert/pair", "single_label_classification", Task::Classification),
    ] {
        let model = tempfile::tempdir().unwrap();
        let base = fixture("heads/bert");
        std::fs::copy(base.join("model.safetensors"), model.path().join("model.safetensors")).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
        config["problem_type"] = problem.into();
        std::fs::write(model.path().join("config.json"), config.to_string()).unwrap();
        let adapter = fixture("heads").join(case).join("adapter");
        let open = |task: Option<Task>| {
            let model = model.path().to_str().unwrap();
            Session::for_adapter(model, LoadOptions::default(), Some(&adapter), task, None)
        };
        for asked in [None, Some(Task::Classification)] {
            let spec = open(asked).unwrap().task;
            let outputs = if task == Task::Regression { spec.outputs } else { spec.labels.len() };
            assert_eq!(
                (spec.task, outputs),
                (task, if task == Task::MultiLabelClassification { 5 } else { 3 })
            );
        }
        assert_eq!(open(Some(Task::PairClassification)).unwrap().task.task, Task::PairClassification);
    }
}

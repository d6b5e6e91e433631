//! The LoRA paper's baselines: gradients against finite differences, the numbers of transformers and PEFT
//! (`tools/reference/baselines.py` made the fixtures), and each from the command line.

mod common;

use std::path::Path;

use common::{Expected, close, example, fixture, lowrank, lowrank_ok, nudge, tiny_data, tiny_model};
use lowrank::adapters::AdapterSet;
use lowrank::engine::{Device, Label, kernels};
use lowrank::files::LoadOptions;
use lowrank::models::{Decoded, Decoder, DecoderOptions, Request, Sequence};
use lowrank::train::{Example, PackedBatch, StepOptions, Stepper, Target, Task, pack};
use lowrank::{Session, TrainOptions};
use serde_json::Value;

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

fn open(case: &str) -> Session {
    Session::open(fixture(case).to_str().unwrap()).unwrap()
}

/// What `--method` makes of the model.
fn start(session: &Session, method: &str) -> AdapterSet {
    start_with(session, TrainOptions { method: Some(method.into()), ..TrainOptions::default() })
}

fn start_with(session: &Session, options: TrainOptions) -> AdapterSet {
    let options = TrainOptions { task: session.task.task, ..options };
    let config = options.lora(&*session.model, 20).unwrap();
    AdapterSet::new_on(config, session.sites(), 3, session).unwrap()
}

/// The texts of a language model's fixture.
fn examples(case: &str) -> Vec<Example> {
    let expected = Expected::open(&fixture(case));
    let one = |i: usize| {
        let labels = expected.ints(&format!("labels_{i}"));
        let mut example = example(&expected.ints(&format!("ids_{i}")), &labels);
        // Virtual tokens predict the first one too.
        example.loss_mask[0] = labels[0] >= 0;
        example
    };
    (0..3).map(one).collect()
}

fn texts(case: &str) -> PackedBatch {
    pack(&examples(case).iter().collect::<Vec<_>>(), true)
}

/// The same behind the virtual tokens of `set`.
fn texts_behind(case: &str, session: &Session, set: &AdapterSet) -> PackedBatch {
    let stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
    stepper.pack(&examples(case).iter().collect::<Vec<_>>(), true, 0)
}

/// BERT with a new classifier for three classes, and the pairs of its fixture.
fn bert() -> (Session, PackedBatch) {
    let dir = fixture("heads").join("bert/pair");
    let model = fixture("heads").join("bert");
    let task = Some(Task::PairClassification);
    let adapter = dir.join("adapter");
    let session =
        Session::for_adapter(model.to_str().unwrap(), LoadOptions::default(), Some(&adapter), task, None)
            .unwrap();
    let expected = Expected::open(&dir);
    let tokens = |name: String| -> Vec<u32> { expected.ints(&name).iter().map(|t| *t as u32).collect() };
    let one = |i: usize| Example {
        tokens: tokens(format!("ids_{i}")),
        token_types: tokens(format!("types_{i}")),
        target: Target::Classes(vec![Label { row: 0, target: tokens(format!("labels_{i}"))[0] }]),
        ..Example::default()
    };
    let all: Vec<Example> = (0..3).map(one).collect();
    let batch = pack(&all.iter().collect::<Vec<_>>(), true);
    (session, batch)
}

/// The norm of a gradient, and a sum in which every number has a weight of its own.
fn summary(gradient: &[f32]) -> [f32; 2] {
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let sum: f64 = gradient.iter().enumerate().map(|(i, g)| f64::from(*g) * (0.7 * i as f64).cos()).sum();
    [norm as f32, sum as f32]
}

/// Gradients and the losses of 20 steps against the fixture `name`, whose random start `set` gets.
fn check(name: &str, session: &Session, mut set: AdapterSet, batch: &PackedBatch) {
    let expected = Expected::file(&fixture("baselines").join(format!("{name}.safetensors")));
    let ids: Vec<_> = set.params.iter().map(|(id, p)| (id, p.name.clone())).collect();
    for (id, param) in ids {
        let start = format!("start.{param}");
        if expected.names().contains(&start) {
            set.params.set(id, expected.floats(&start));
        }
    }
    for checkpoint_activations in [false, true] {
        let options = StepOptions { checkpoint_activations, ..PLAIN };
        let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), options);
        stepper.gradients(std::slice::from_ref(batch)).unwrap();
        let mut left: Vec<String> = expected.names().into_iter().filter(|n| n.starts_with("grad.")).collect();
        for (id, param) in stepper.adapters.params.iter() {
            let key = format!("grad.{}", param.name);
            assert!(left.contains(&key), "{name}: {} is trained here only", param.name);
            let want = expected.floats(&key);
            let got = summary(stepper.grads().values(id));
            for (got, want_one) in got.iter().zip(&want) {
                // A key's bias moves no probability: its gradient is rounding alone.
                let slack = 2e-4 * want[0].max(1e-3);
                assert!((got - want_one).abs() < slack, "{name}: {}: {got} for {want_one}", param.name);
            }
            left.retain(|n| *n != key);
        }
        assert!(left.is_empty(), "{name}: trained there only: {left:?}");
    }
    let mut stepper = Stepper::new(&*session.model, set, Device::cpu(), PLAIN);
    for (step, want) in expected.floats("losses").iter().enumerate() {
        let outcome = stepper.step(std::slice::from_ref(batch), 3e-3).unwrap();
        let difference = (outcome.loss as f32 - want).abs();
        assert!(difference < 1e-3, "{name}: step {step}: loss {} for {want}", outcome.loss);
    }
}

#[test]
fn full_fine_tuning_of_a_model_with_a_tied_head() {
    let session = open("llama_gqa_tied");
    check("llama_full", &session, start(&session, "full"), &texts("llama_gqa_tied"));
}

#[test]
fn full_fine_tuning_of_gpt2() {
    let session = open("gpt2_all");
    check("gpt2_full", &session, start(&session, "full"), &texts("gpt2_all"));
}

#[test]
fn the_top_block() {
    let session = open("llama_gqa_tied");
    check("llama_top1", &session, start(&session, "top1"), &texts("llama_gqa_tied"));
}

#[test]
fn biases() {
    let session = open("gpt2_all");
    check("gpt2_bitfit", &session, start(&session, "bitfit"), &texts("gpt2_all"));
}

#[test]
fn a_bert_classifier_whole_by_its_biases_and_by_its_head() {
    for (name, method) in [("bert_full", "full"), ("bert_bitfit", "bitfit"), ("bert_probe", "linear-probe")] {
        let (session, batch) = bert();
        check(name, &session, start(&session, method), &batch);
    }
}

/// Adapter layers of bottleneck 5.
fn layers(session: &Session, method: &str) -> AdapterSet {
    start_with(session, TrainOptions { method: Some(method.into()), r: 5, ..TrainOptions::default() })
}

#[test]
fn adapter_layers() {
    let (llama, gpt2) = (open("llama_gqa_tied"), open("gpt2_all"));
    check("llama_houlsby", &llama, layers(&llama, "adapter-h"), &texts("llama_gqa_tied"));
    check("gpt2_pfeiffer", &gpt2, layers(&gpt2, "adapter-p"), &texts("gpt2_all"));
    check("llama_lin", &llama, layers(&llama, "adapter-l"), &texts("llama_gqa_tied"));
}

/// PEFT's folder `name`: logits, gradients and steps, and what is written back.
fn check_virtual(name: &str, base: &str) {
    let session = open(base);
    let dir = fixture("baselines").join(name);
    let set = AdapterSet::load(&dir, session.sites()).unwrap();
    let expected = Expected::file(&dir.with_extension("safetensors"));
    let device = Device::cpu();
    for (i, example) in examples(base).iter().enumerate() {
        let mut sequence = Sequence::new(&*session.model, &device, &set.params, &set.active).unwrap();
        // Some tokens at once and others one by one are the same text.
        let (first, rest) = example.tokens.split_at(example.tokens.len() / 2);
        let mut logits = sequence.feed(first);
        let vocab = logits.len();
        let want = expected.floats(&format!("logits_{i}"));
        for (row, token) in (first.len()..).zip(rest) {
            close(name, &logits, &want[(row - 1) * vocab..row * vocab], 1e-4);
            logits = sequence.feed(&[*token]);
        }
        close(name, &logits, &want[want.len() - vocab..], 1e-4);
        sequence.truncate(first.len() - 1);
        let again = sequence.feed(&first[first.len() - 1..]);
        close(name, &again, &want[(first.len() - 1) * vocab..first.len() * vocab], 1e-4);
    }
    // The decoder continues a prompt with the likeliest tokens of those logits, also beside another.
    let prompt = &examples(base)[0].tokens[..];
    let mut sequence = Sequence::new(&*session.model, &device, &set.params, &set.active).unwrap();
    let mut logits = sequence.feed(prompt);
    let mut want = Vec::new();
    for _ in 0..6 {
        let mut best = [0];
        kernels::argmax(&logits, logits.len(), &mut best);
        want.extend(best);
        logits = sequence.feed(&best);
    }
    let options = DecoderOptions::default();
    let mut decoder = Decoder::new(&*session.model, &device, &set.params, &set.active, options).unwrap();
    let request = Request { prompt: prompt.to_vec(), max_new_tokens: want.len(), ..Request::default() };
    let check_text = |_, texts: Vec<Decoded>| {
        assert_eq!(texts[0].tokens, want, "{name}");
        Ok(())
    };
    decoder.complete(&[request.clone(), request], 2, check_text).unwrap();

    check(name, &session, set.clone(), &texts_behind(base, &session, &set));
    let out = tempfile::tempdir().unwrap();
    set.save(out.path()).unwrap();
    let [mine, theirs] = [out.path(), &dir].map(|dir| Expected::file(&dir.join("adapter_model.safetensors")));
    assert_eq!(mine.names(), theirs.names());
    assert_eq!(mine.floats("prompt_embeddings"), theirs.floats("prompt_embeddings"));
    let fields = |dir: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
    };
    for (field, value) in fields(out.path()).as_object().unwrap() {
        assert_eq!(value, &fields(&dir)[field], "{name}: {field}");
    }
    AdapterSet::load_alone(&dir).unwrap();
}

#[test]
fn prompts() {
    check_virtual("llama_prompt", "llama_gqa_tied");
    check_virtual("gpt2_prompt", "gpt2_all");
}

/// Completions of one prompt share it and the virtual tokens before it, with the numbers of each alone.
#[test]
fn sharing_prompts_behind_virtual_tokens_changes_no_number() {
    let session = open("llama_gqa_tied");
    let one = |completion: i64| {
        let ids: Vec<i64> = (0..7).map(|i| 11 * (i + 3) % 96).chain((0..5).map(|i| completion + i)).collect();
        let labels: Vec<i64> = ids.iter().enumerate().map(|(i, t)| if i < 7 { -100 } else { *t }).collect();
        example(&ids, &labels)
    };
    let all = [one(40), one(7), one(61)];
    let all: Vec<&Example> = all.iter().collect();
    for method in ["prompt", "prefix"] {
        let set = moved(start(&session, method));
        let mut stepper = Stepper::new(&*session.model, set, Device::cpu(), PLAIN);
        let [(shared, loss, grads), (apart, want_loss, want)] = [true, false].map(|share| {
            let batch = stepper.pack(&all, share, 0);
            let rows = batch.rows();
            let loss = stepper.gradients(&[batch]).unwrap().loss;
            let (id, _) = stepper.adapters.params.iter().next().unwrap();
            (rows, loss, stepper.grads().values(id).to_vec())
        });
        assert!(shared < apart, "{method}: {shared} rows, {apart} apart");
        close(method, &[loss as f32], &[want_loss as f32], 1e-5);
        close(method, &grads, &want, 1e-4);
    }
}

#[test]
fn prefixes() {
    check_virtual("llama_prefix", "llama_gqa_tied");
    check_virtual("gpt2_prefix", "gpt2_all");
}

/// The derivative along random directions, over all parameters at once, each moved in proportion to its size.
fn check_direction(name: &str, session: &Session, set: &AdapterSet, batch: &PackedBatch) {
    let batch = std::slice::from_ref(batch);
    let loss = |set: &AdapterSet| {
        let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
        stepper.gradients(batch).unwrap().loss
    };
    let mut stepper = Stepper::new(&*session.model, set.clone(), Device::cpu(), PLAIN);
    stepper.gradients(batch).unwrap();
    for seed in 0..3 {
        let (mut there, mut back) = (set.clone(), set.clone());
        let (mut along, mut length, eps) = (0.0, 0.0, 5e-4f32);
        for (stream, (id, param)) in set.params.iter().enumerate() {
            let mut direction = vec![0.0; param.value.len()];
            kernels::normal(&mut direction, 0.0, 1.0, 100 + seed, stream as u64);
            for (i, d) in direction.iter().enumerate() {
                nudge(&mut there.params, id, i, eps * d);
                nudge(&mut back.params, id, i, -eps * d);
                let slope = f64::from(stepper.grads().values(id)[i]) * f64::from(*d);
                along += slope;
                length += slope * slope;
            }
        }
        let slope = (loss(&there) - loss(&back)) / (2.0 * f64::from(eps));
        let scale = length.sqrt();
        assert!(
            (slope - along).abs() < 2e-2 * scale,
            "{name}: slope {slope}, gradient {along}, scale {scale}"
        );
    }
}

/// Numbers that are all random, so that every gradient has something to say.
fn moved(mut set: AdapterSet) -> AdapterSet {
    let ids: Vec<_> = set.params.iter().map(|(id, _)| id).collect();
    for (stream, id) in ids.into_iter().enumerate() {
        let mut values = set.params.values(id).to_vec();
        let mut noise = vec![0.0; values.len()];
        kernels::normal(&mut noise, 0.0, 0.1, 41, stream as u64);
        values.iter_mut().zip(noise).for_each(|(x, noise)| *x += noise);
        set.params.set(id, values);
    }
    set
}

/// Norms of every kind, biases, tables, tied and own heads: what the architectures have.
#[test]
fn gradients_of_all_weights_are_the_slopes_of_the_loss() {
    let cases = [
        "llama_mha",
        "llama_gqa_tied",
        "qwen2_bias",
        "qwen3_qk_norm",
        "gemma2_caps",
        "gpt2_all",
        "phi3_partial",
    ];
    for case in cases {
        let session = open(case);
        check_direction(case, &session, &start(&session, "full"), &texts(case));
    }
    for method in ["adapter-h", "adapter-p", "adapter-l"] {
        let session = open("gemma2_caps");
        check_direction(method, &session, &moved(layers(&session, method)), &texts("gemma2_caps"));
    }
    for case in ["qwen3_qk_norm", "mistral_window", "gemma2_caps", "gpt2_all", "rope_dynamic"] {
        for method in ["prompt", "prefix"] {
            let session = open(case);
            let set = moved(start(&session, method));
            check_direction(
                &format!("{method} on {case}"),
                &session,
                &set,
                &texts_behind(case, &session, &set),
            );
        }
    }
    let (session, batch) = bert();
    for method in ["full", "bitfit", "adapter-h", "adapter-l"] {
        check_direction(method, &session, &start(&session, method), &batch);
    }
}

/// Every parameter of the model is trained, a tied head once, and a plan counts what a run takes.
#[test]
fn nothing_is_left_out_and_the_plan_is_exact() {
    for case in ["llama_mha", "llama_gqa_tied", "qwen3_qk_norm", "gpt2_all", "gemma3_hub"] {
        let session = open(case);
        let set = start(&session, "full");
        assert_eq!(set.params.count(), session.base.tensors.parameters(), "{case}");
        let batch = texts(case);
        let planned = AdapterSet::planned(set.config.clone(), session.sites()).unwrap();
        for checkpoint_activations in [false, true] {
            let options = StepOptions { checkpoint_activations, ..PLAIN };
            let mut real = Stepper::new(&*session.model, set.clone(), Device::cpu(), options);
            let mut plan = Stepper::new(&*session.model, planned.clone(), Device::plan(), options);
            real.gradients(std::slice::from_ref(&batch)).unwrap();
            plan.gradients(std::slice::from_ref(&batch)).unwrap();
            assert_eq!(real.device().peak_bytes(), plan.device().peak_bytes(), "{case}");
            assert_eq!(real.device().flops(), plan.device().flops(), "{case}");
        }
    }
}

struct Place {
    dir: tempfile::TempDir,
    model: String,
    data: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        let data = dir.path().join("data.jsonl");
        tiny_data(&data, 24);
        Self { model, data: data.to_str().unwrap().into(), dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, out: &str, more: &[&str]) -> common::Ran {
        let fixed = ["train", "--model", &self.model, "--data", &self.data, "--eval-data", &self.data];
        let rest = ["--out", out, "--batch-size", "4", "--threads", "1"];
        let rate = if more.contains(&"--learning-rate") { &[][..] } else { &["--learning-rate", "0.01"] };
        lowrank(&[&fixed[..], &rest[..], rate, more].concat())
    }

    fn eval(&self, more: &[&str]) -> f64 {
        let ran =
            lowrank_ok(&[&["eval", "--data", &self.data, "--json", "--threads", "1"][..], more].concat());
        serde_json::from_str::<Value>(&ran.out).unwrap()["loss"].as_f64().unwrap()
    }
}

/// The last held-out loss of a run's log.
fn held_out(out: &str) -> f64 {
    let log = std::fs::read_to_string(Path::new(out).join("log.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter_map(|r| r["eval_loss"].as_f64()).next_back().unwrap()
}

/// Trains `method`, and what is saved gives the same loss in `eval`, and a text in `generate`.
fn round_trip(place: &Place, method: &str, more: &[&str]) -> (String, f64) {
    let out = place.path(method);
    let base = place.eval(&["--model", &place.model]);
    let ran = place.train(&out, &[&["--method", method, "--max-steps", "12"][..], more].concat());
    assert_eq!(ran.code, 0, "{method}: {}", ran.err);
    let loss = place.eval(&["--model", &place.model, "--adapter", &out]);
    close(method, &[loss as f32], &[held_out(&out) as f32], 1e-5);
    assert!(loss < base - 0.01, "{method}: {base} became {loss}");
    let text = [
        "generate",
        "--model",
        &place.model,
        "--adapter",
        &out,
        "--prompt",
        "red and",
        "--max-new-tokens",
        "4",
    ];
    assert!(!lowrank_ok(&text).out.trim().is_empty(), "{method}");
    (out, loss)
}

#[test]
fn whole_models_are_trained_saved_and_used() {
    let place = Place::new();
    for method in ["full", "top1", "linear-probe"] {
        let (out, loss) = round_trip(&place, method, &[]);
        lowrank_ok(&["inspect", &out]);
        if method == "linear-probe" {
            continue;
        }
        // Merged, it is a model that needs no adapter.
        let merged = place.path(&format!("{method}-merged"));
        let merge = ["merge", "--model", &place.model, "--adapter", &out, "--out", &merged, "--dtype", "f32"];
        lowrank_ok(&merge);
        close(method, &[place.eval(&["--model", &merged]) as f32], &[loss as f32], 1e-5);
    }
}

#[test]
fn adapter_layers_are_trained_saved_and_used() {
    let place = Place::new();
    for (method, more) in [
        ("adapter-h", &[][..]),
        ("adapter-p", &[]),
        ("adapter-l", &[]),
        ("adapter-d", &["--peft-option", "drop_layers=1"]),
    ] {
        let (out, _) = round_trip(&place, method, more);
        lowrank_ok(&["inspect", &out]);
        let config = std::fs::read_to_string(Path::new(&out).join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["peft_type"], "BOTTLENECK");
        if method == "adapter-d" {
            assert_eq!(config["layers_to_transform"], serde_json::json!([1]));
        }
        let merged = place.path("merged");
        let ran = lowrank(&["merge", "--model", &place.model, "--adapter", &out, "--out", &merged]);
        assert!(ran.code == 2 && ran.err.contains("cannot be merged"), "{}", ran.err);
        assert!(!Path::new(&merged).exists(), "{method}: half a model was left");
    }
    let ran = place.train(&place.path("none"), &["--method", "adapter-d"]);
    assert!(ran.code == 2 && ran.err.contains("drop_layers"), "{}", ran.err);
    let odd = ["--method", "adapter-p", "--peft-option", "non_linearity=maxout"];
    let ran = place.train(&place.path("odd"), &odd);
    assert!(ran.code == 2 && ran.err.contains("non_linearity"), "{}", ran.err);
}

#[test]
fn virtual_tokens_are_trained_saved_and_used() {
    let place = Place::new();
    for method in ["prompt", "prefix"] {
        let rate = ["--peft-option", "num_virtual_tokens=6", "--learning-rate", "0.1"];
        let (out, _) = round_trip(&place, method, &rate);
        lowrank_ok(&["inspect", &out]);
        let plan = ["plan", "--model", &place.model, "--data", &place.data, "--out", "x", "--method", method];
        lowrank_ok(&plan);
        let merged = place.path("merged");
        let ran = lowrank(&["merge", "--model", &place.model, "--adapter", &out, "--out", &merged]);
        assert!(ran.code == 2 && ran.err.contains("not part of the weights"), "{}", ran.err);
        let half = format!("{out}:0.5");
        let text = ["generate", "--model", &place.model, "--adapter", &half, "--prompt", "red"];
        let ran = lowrank(&text);
        assert!(ran.code == 2 && ran.err.contains("cannot be mixed"), "{}", ran.err);
    }
    let none = ["--method", "prompt", "--peft-option", "num_virtual_tokens=0"];
    let ran = place.train(&place.path("none"), &none);
    assert!(ran.code == 2 && ran.err.contains("num_virtual_tokens"), "{}", ran.err);
}

#[test]
fn a_stopped_full_run_ends_with_the_same_bits() {
    let place = Place::new();
    let file = |out: &str| std::fs::read(Path::new(out).join("adapter_model.safetensors")).unwrap();
    let (whole, part) = (place.path("whole"), place.path("part"));
    assert_eq!(place.train(&whole, &["--method", "full", "--epochs", "2"]).code, 0);
    let stop = ["--method", "full", "--epochs", "2", "--save-steps", "5"];
    assert_eq!(place.train(&part, &stop).code, 0);
    assert_eq!(place.train(&part, &[&stop[..], &["--resume"]].concat()).code, 0);
    assert!(file(&whole) == file(&part));
}

#[test]
fn wrong_methods_are_named() {
    let place = Place::new();
    let out = place.path("out");
    for (method, want) in [
        ("bitfit", "biases"),
        ("top9", "has 2 blocks"),
        ("top0", "choose one of lora"),
        ("magic", "choose one of lora"),
    ] {
        let ran = place.train(&out, &["--method", method]);
        assert_eq!(ran.code, 2, "{method}: {}", ran.err);
        assert!(ran.err.contains(want), "{method}: {}", ran.err);
    }
    for (more, want) in
        [(["--peft-type", "ia3"], "two methods"), (["--target-modules", "q_proj"], "chooses its own modules")]
    {
        let ran = place.train(&out, &[&["--method", "full"][..], &more].concat());
        assert!(ran.code == 2 && ran.err.contains(want), "{}", ran.err);
    }
}

//! What is planned is what a step takes, to the byte and to the operation: every method on every architecture, with
//! dropout, with and without checkpointed blocks, with saved activations as int16 and as f32.

mod common;

use common::{example, fixture, lowrank_ok, tiny_data, tiny_model};
use lowrank::adapters::NamedMethod;
use lowrank::adapters::{AdapterSet, LoraConfig, Targets};
use lowrank::engine::{Device, Label, SavedDtype};
use lowrank::files::LoadOptions;
use lowrank::models::{Decoder, DecoderOptions, Request};
use lowrank::train::{Example, PackedBatch, SamplePrompt, SamplePrompts, StepOptions, Stepper, Target, Task};
use lowrank::{Session, TrainOptions};
use serde_json::{Map, Value, json};

/// Language models: one of each architecture, and what changes their memory (windows, caps, norms, biases, tied heads).
const DECODERS: [&str; 11] = [
    "llama_mha",
    "llama_gqa_tied",
    "mistral_window",
    "qwen2_bias",
    "qwen3_qk_norm",
    "gemma2_caps",
    "gemma3_hub",
    "gemma_mqa",
    "gpt2_all",
    "gpt3_banded",
    "phi3_partial",
];

const ENCODERS: [(&str, Task); 4] = [
    ("heads/bert", Task::Mlm),
    ("heads/distilbert", Task::Mlm),
    ("heads/roberta", Task::Mlm),
    ("deberta_conv", Task::Classification),
];

fn open(case: &str, task: Option<Task>) -> Session {
    let labels = (task == Some(Task::Classification)).then(|| ["a", "b", "c"].map(str::to_owned).to_vec());
    let path = fixture(case);
    Session::for_adapter(path.to_str().unwrap(), LoadOptions::default(), None, task, labels).unwrap()
}

/// Texts of different lengths; of a language model two share their prompt.
fn examples(task: Task) -> Vec<Example> {
    let text = |n: i64, seed: i64| (0..n).map(|i| (seed * (i + 3) + i) % 40).collect::<Vec<i64>>();
    let target = |n: u32| match task {
        Task::Classification => Target::Classes(vec![Label { row: 0, target: 1 }]),
        _ => Target::Classes((1..n).step_by(3).map(|row| Label { row, target: row }).collect()),
    };
    let of = |(n, seed): (i64, i64)| match task {
        Task::Lm => {
            let ids = [text(9, 11), text(n, seed)].concat();
            let labels: Vec<i64> =
                ids.iter().enumerate().map(|(i, t)| if i < 9 { -100 } else { *t }).collect();
            example(&ids, &labels)
        }
        _ => Example {
            tokens: text(n, seed).iter().map(|t| *t as u32).collect(),
            target: target(n as u32),
            ..Example::default()
        },
    };
    [(7, 5), (20, 3), (13, 1)].map(of).to_vec()
}

/// Peak bytes and operations of the gradients of one batch.
fn measure(session: &Session, set: &AdapterSet, device: Device, options: StepOptions) -> (usize, u64) {
    let mut stepper = Stepper::new(&*session.model, set.clone(), device, options);
    let texts = examples(session.task.task);
    let batch: PackedBatch = stepper.pack(&texts.iter().collect::<Vec<_>>(), true, 0);
    stepper.gradients(std::slice::from_ref(&batch)).unwrap();
    (stepper.device().peak_bytes(), stepper.device().flops())
}

/// Checks `config` on `session` in every way to run.
fn check(what: &str, session: &Session, config: &LoraConfig) {
    let set = AdapterSet::new_on(config.clone(), session.sites(), 3, session).unwrap();
    let planned = AdapterSet::planned(config.clone(), session.sites()).unwrap();
    for checkpoint_activations in [false, true] {
        for saved in [SavedDtype::F32, SavedDtype::Int16] {
            let options =
                StepOptions { checkpoint_activations, weight_decay: 0.0, max_grad_norm: 0.0, seed: 3 };
            let real = measure(session, &set, Device::cpu().with_saved_dtype(saved), options);
            let plan = measure(session, &planned, Device::plan().with_saved_dtype(saved), options);
            assert_eq!(
                plan, real,
                "{what}: checkpoint {checkpoint_activations}, saved as {saved:?}: bytes, operations"
            );
        }
    }
}

/// All names of methods that a user can give, with fields that make something of them on tiny models.
fn options(name: &str) -> TrainOptions {
    let fields = match name {
        "loha" | "lokr" => json!({"rank_dropout": 0.3, "module_dropout": 0.2}),
        "adalora" => json!({"init_r": 3, "target_r": 1}),
        "prompt" | "prefix" => json!({"num_virtual_tokens": 4}),
        "adapter-d" => json!({"drop_layers": 1}),
        _ => json!({}),
    };
    let (method, default) = (name.replace('N', "1"), TrainOptions::default());
    let unused = NamedMethod::parse(&method).unwrap().method.unused_fields();
    TrainOptions {
        method: Some(method),
        r: if unused.contains(&"r") { default.r } else { 2 },
        lora_dropout: if unused.contains(&"lora_dropout") { 0.0 } else { 0.2 },
        peft_options: fields.as_object().unwrap().clone(),
        ..TrainOptions::default()
    }
}

/// Other ways to train that are no method of their own name.
fn variations() -> Vec<(&'static str, TrainOptions)> {
    let fields = |value: Value| -> Map<String, Value> { value.as_object().unwrap().clone() };
    let lora = || TrainOptions { r: 2, lora_dropout: 0.2, ..TrainOptions::default() };
    let all = || Some(Targets::parse("all-linear"));
    vec![
        ("all-linear", TrainOptions { target_modules: all(), ..lora() }),
        ("without dropout", TrainOptions { lora_dropout: 0.0, target_modules: all(), ..lora() }),
        ("DoRA", TrainOptions { use_dora: true, target_modules: all(), ..lora() }),
        ("DoRA without dropout", TrainOptions { use_dora: true, lora_dropout: 0.0, ..lora() }),
        ("PiSSA", TrainOptions { init_lora_weights: json!("pissa"), ..lora() }),
        ("OLoRA", TrainOptions { init_lora_weights: json!("olora"), ..lora() }),
        ("LoRA-FA", TrainOptions { lora_fa: true, ..lora() }),
        ("biases", TrainOptions { bias: "all".into(), ..lora() }),
        ("biases of LoRA's layers", TrainOptions { bias: "lora_only".into(), ..lora() }),
        (
            "tokens",
            TrainOptions { peft_options: fields(json!({"trainable_token_indices": [9, 3]})), ..lora() },
        ),
    ]
}

fn check_all(case: &str, session: &Session) -> Vec<&'static str> {
    let mut done = Vec::new();
    let named = NamedMethod::names().map(|name| (name, options(name)));
    for (name, options) in named.chain(variations()) {
        let options = TrainOptions { task: session.task.task, ..options };
        // Not every method is for every model: virtual tokens are for language models.
        let Ok(config) = options.lora(&*session.model, 20) else { continue };
        if AdapterSet::planned(config.clone(), session.sites()).is_err() {
            continue;
        }
        check(&format!("{name} on {case}"), session, &config);
        done.push(name);
    }
    done
}

#[test]
fn every_method_on_every_language_model() {
    let mut bitfit = false;
    for case in DECODERS {
        let done = check_all(case, &open(case, None));
        // A model without biases has nothing for BitFit.
        let unmeasured = NamedMethod::names().find(|name| *name != "bitfit" && !done.contains(name));
        assert_eq!(unmeasured, None, "{case}: only {done:?}");
        bitfit |= done.contains(&"bitfit");
    }
    assert!(bitfit);
}

#[test]
fn methods_on_encoders() {
    for (case, task) in ENCODERS {
        let done = check_all(case, &open(case, Some(task)));
        assert!(done.len() > 10, "{case}: only {done:?}");
    }
}

/// Evaluation runs on the plan as well: its batches are in the peak.
#[test]
fn evaluation_on_every_head() {
    let heads = DECODERS.map(|case| (case, None)).into_iter();
    let heads = heads.chain(ENCODERS.map(|(case, task)| (case, Some(task))));
    for (case, task) in heads {
        let session = open(case, task);
        let peak = |device: Device| {
            let set = AdapterSet::none();
            let scorer = session.scorer(&set, &device);
            let texts = examples(session.task.task);
            let batch = match &scorer {
                Ok(scorer) => scorer.pack(&texts.iter().collect::<Vec<_>>(), true, 0),
                Err(_) => return None,
            };
            scorer.unwrap().score(&batch);
            Some(device.peak_bytes())
        };
        assert_eq!(peak(Device::plan()), peak(Device::cpu()), "{case}");
    }
}

/// The planned peak of a whole process holds, and a tiny model's is at most 5 MB too high.
#[cfg(target_os = "linux")]
#[test]
fn the_peak_of_a_run_is_what_was_planned() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (model, data, out, log) =
        (tiny_model(dir.path()), path("data.jsonl"), path("out"), path("log.jsonl"));
    tiny_data(data.as_ref(), 30);
    for more in [
        &[][..],
        &["--checkpoint-activations"],
        &["--use-dora"],
        &["--init-lora-weights", "eva", "--r", "4"],
        &["--init-lora-weights", "pissa"],
        &["--method", "adalora", "--eval-data", &data],
        &["--method", "full"],
        &["--precision", "bf16"],
        &["--quantize", "q8_0", "--batch-size", "30"],
        &["--sample-prompts", &data, "--sample-max-new-tokens", "40"],
    ] {
        let run =
            ["--model", &model, "--data", &data, "--out", &out, "--max-steps", "4", "--save-steps", "1"];
        let args = [&run[..], &["--threads", "2"], more].concat();
        let plan: Value =
            serde_json::from_str(&lowrank_ok(&[&["plan", "--json"], &args[..]].concat()).out).unwrap();
        lowrank_ok(&[&["train", "--force", "--log-json", &log], &args[..]].concat());
        let lines = std::fs::read_to_string(&log).unwrap();
        let steps = lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["peak_rss_bytes"].as_u64());
        let (peak, planned) = (steps.max().unwrap(), plan["peak_bytes"].as_u64().unwrap());
        assert!(
            (peak..peak + 5_000_000).contains(&planned),
            "{more:?}: {peak} bytes, planned {planned}: {plan}"
        );
    }
}

/// Generating a sample takes on the device what its plan says.
#[test]
fn samples_take_what_was_planned() {
    let session = open("llama_gqa_tied", None);
    for (name, length, new) in [("lora", 7, 30), ("lora", 40, 2), ("lora", 5, 1), ("prefix", 9, 12)] {
        let config = options(name).lora(&*session.model, 20).unwrap();
        let set = AdapterSet::new_on(config.clone(), session.sites(), 3, &session).unwrap();
        let planned = AdapterSet::planned(config, session.sites()).unwrap();
        let step =
            StepOptions { checkpoint_activations: false, weight_decay: 0.0, max_grad_norm: 0.0, seed: 3 };
        let tokens: Vec<u32> = (0..length).collect();
        let device = Device::cpu();
        let real = {
            let mut decoder =
                Decoder::new(&*session.model, &device, &set.params, &set.active, DecoderOptions::default())
                    .unwrap();
            device.reset_peak();
            let request = Request { prompt: tokens.clone(), max_new_tokens: new, ..Request::default() };
            decoder.generate(&request).unwrap();
            device.peak_bytes()
        };
        let stepper = Stepper::new(&*session.model, planned, Device::plan(), step);
        let prompts = SamplePrompts {
            prompts: vec![SamplePrompt { text: String::new(), tokens }],
            max_new_tokens: new,
            ..SamplePrompts::default()
        };
        stepper.device().reset_peak();
        let beside = prompts.plan(&stepper);
        let plan = stepper.device().peak_bytes();
        assert!(
            (real..=real + real / 10).contains(&plan),
            "{name}, {length} and {new} tokens: {real} bytes, planned {plan}"
        );
        assert!(beside >= 4 * session.model.info().vocab);
    }
}

/// LoRA on parts of a fused layer.
#[test]
fn parts_of_a_fused_layer() {
    let session = open("gpt2_c_attn", None);
    let options = TrainOptions {
        r: 2,
        lora_dropout: 0.2,
        enable_lora: vec![true, false, true],
        target_modules: Some(Targets::parse("c_attn")),
        ..TrainOptions::default()
    };
    check("enable_lora", &session, &options.lora(&*session.model, 20).unwrap());
}

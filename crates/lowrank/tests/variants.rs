//! Every variant of LoRA gives PEFT's numbers. `tools/reference/variants.py` made the fixtures.

mod common;

use std::path::Path;

use common::{Expected, close, example, fixture, logits};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, AdapterStore, LoraConfig};
use lowrank::engine::{Device, Format};
use lowrank::train::{Example, PackedBatch, RunState, StepOptions, Stepper, checkpoint, pack};
use serde_json::{Value, json};

const PLAIN: StepOptions =
    StepOptions { checkpoint_activations: false, weight_decay: 0.01, max_grad_norm: 0.0, seed: 0 };

struct Case {
    name: &'static str,
    session: Session,
    expected: Expected,
    batch: PackedBatch,
    tokens: Vec<u32>,
}

impl Case {
    fn open(name: &'static str, base: &str) -> Self {
        let base = fixture("variants").join(base);
        let session = Session::open(base.to_str().unwrap()).unwrap();
        let data = Expected::file(&base.join("batch.safetensors"));
        let examples: Vec<Example> = (0..3)
            .map(|i| example(&data.ints(&format!("ids_{i}")), &data.ints(&format!("labels_{i}"))))
            .collect();
        let batch = pack(&examples.iter().collect::<Vec<_>>(), true);
        let tokens = examples[1].tokens.clone();
        let expected = Expected::open(&fixture("variants").join(name));
        Self { name, session, expected, batch, tokens }
    }

    fn load(&self) -> AdapterSet {
        let dir = fixture("variants").join(self.name).join("adapter");
        AdapterSet::load(&dir, self.session.sites()).unwrap()
    }

    fn close(&self, what: &str, got: &[f32], key: &str, tolerance: f32) {
        close(&format!("{}: {what}", self.name), got, &self.expected.floats(key), tolerance);
    }

    /// Logits, gradients and twenty steps.
    fn check(&self, adapters: &AdapterSet, gradients: bool) -> AdapterSet {
        let got = logits(&self.session, adapters, &self.tokens);
        self.close("logits", &got, "logits_1", 1e-4);
        let losses = self.expected.floats("losses");
        for checkpoint_activations in [false, true] {
            let options = StepOptions { checkpoint_activations, ..PLAIN };
            let mut stepper = Stepper::new(&*self.session.model, adapters.clone(), Device::cpu(), options);
            let outcome = stepper.gradients(std::slice::from_ref(&self.batch)).unwrap();
            close("loss", &[outcome.loss as f32], &losses[..1], 1e-5);
            for (id, param) in stepper.adapters.params.iter().filter(|(_, p)| p.trained && gradients) {
                let key = format!("grad.base_model.model.{}", param.name);
                self.close(&key, stepper.grads().get(id), &key, 1e-4);
            }
        }
        let mut stepper = Stepper::new(&*self.session.model, adapters.clone(), Device::cpu(), PLAIN);
        for (step, want) in losses.iter().enumerate() {
            let outcome = stepper.step(std::slice::from_ref(&self.batch), 3e-3).unwrap();
            let difference = (outcome.loss as f32 - want).abs();
            assert!(difference < 1e-4 * want, "{}: step {step}: {} for {want}", self.name, outcome.loss);
        }
        let got = logits(&self.session, &stepper.adapters, &self.tokens);
        self.close("logits after 20 steps", &got, "trained_logits_1", 1e-3);
        stepper.adapters
    }

    /// Merged into files and back, and taken out again.
    fn check_merging(&self, adapters: &AdapterSet) {
        let out = tempfile::tempdir().unwrap();
        let target = lowrank::MergeTarget::Folder(Format::F32);
        lowrank::merge(&self.session, adapters, out.path(), target).unwrap();
        let merged = Session::open(out.path().to_str().unwrap()).unwrap();
        let got = logits(&merged, &AdapterSet::none(), &self.tokens);
        self.close("merged logits", &got, "merged_logits_1", 1e-4);
    }

    /// Written as PEFT writes it.
    fn check_file(&self, adapters: &AdapterSet, theirs: &Path) {
        let out = tempfile::tempdir().unwrap();
        adapters.save(out.path()).unwrap();
        let config = |dir: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, want) = (config(out.path()), config(theirs));
        for (key, value) in ours.as_object().unwrap() {
            let same = match (value.as_f64(), want[key].as_f64()) {
                (Some(a), Some(b)) => a as f32 == b as f32,
                _ if *value == serde_json::json!({}) => value == &want[key] || want[key].is_null(),
                _ => value == &want[key] || (value.is_null() && want.get(key).is_none()),
            };
            assert!(same, "{}: {key} is {value}, PEFT's is {}", self.name, want[key]);
        }
        let read = |dir: &Path| Expected::file(&dir.join("adapter_model.safetensors"));
        let (ours, want) = (read(out.path()), read(theirs));
        let sorted = |e: &Expected| {
            let mut names = e.names();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&want));
        for name in want.names() {
            assert_eq!(ours.shape(&name), want.shape(&name), "{}: {name}", self.name);
            close(&format!("{}: {name}", self.name), &ours.floats(&name), &want.floats(&name), 1e-3);
        }
    }
}

fn check(name: &'static str, base: &str) {
    let case = Case::open(name, base);
    let adapters = case.load();
    case.check_file(&adapters, &fixture("variants").join(name).join("adapter"));
    case.check_merging(&adapters);
    let trained = case.check(&adapters, true);
    let finished = fixture("variants").join(name).join("trained");
    if finished.exists() {
        case.check_file(&trained, &finished);
        let loaded = AdapterSet::load(&finished, case.session.sites()).unwrap();
        let got = logits(&case.session, &loaded, &case.tokens);
        case.close("logits of the finished adapter", &got, "trained_logits_1", 1e-4);
    }
}

/// What starts from the base's weight: the same start up to signs of singular vectors, the same training, and a
/// plain LoRA as the file.
fn check_fresh(name: &'static str, base: &str) {
    let case = Case::open(name, base);
    let config = std::fs::read(fixture("variants").join(name).join("config.json")).unwrap();
    let config: LoraConfig = serde_json::from_slice(&config).unwrap();
    let adapters = AdapterSet::new_on(config, case.session.sites(), 0, &case.session).unwrap();
    for layer in &adapters.layers {
        let [a, b] = layer.variant.params()[..] else { panic!("A and B") };
        let (a, b) = (adapters.params.get(a), adapters.params.get(b));
        let (k, o, s) = (a.cols, b.rows, layer.variant.scaling().unwrap());
        let change: Vec<f32> = (0..o * k)
            .map(|at| {
                s * (0..a.rows).map(|i| b.value[at / k * a.rows + i] * a.value[i * k + at % k]).sum::<f32>()
            })
            .collect();
        case.close("start", &change, &format!("change.{}", layer.site.path), 1e-4);
    }
    let trained = case.check(&adapters, false);

    let out = tempfile::tempdir().unwrap();
    trained.save(out.path()).unwrap();
    let plain = AdapterSet::load(out.path(), case.session.sites()).unwrap();
    assert_eq!(plain.config.init_lora_weights, Value::Bool(true));
    assert_eq!((plain.config.r, plain.config.lora_alpha), (8, 16.0));
    let got = logits(&case.session, &plain, &case.tokens);
    case.close("logits of the plain LoRA", &got, "trained_logits_1", 1e-3);
}

#[test]
fn pissa() {
    check_fresh("pissa", "llama");
    check_fresh("pissa_gpt2", "gpt2");
}

#[test]
fn olora() {
    check_fresh("olora", "llama");
}

/// `B` learns faster, everything else as ever.
#[test]
fn loraplus() {
    let case = Case::open("loraplus", "llama");
    let mut adapters = case.load();
    adapters.set_loraplus_lr_ratio(4.0);
    case.check(&adapters, true);
}

#[test]
fn lora_fa() {
    let case = Case::open("lora_fa", "llama");
    let mut adapters = case.load();
    let all = adapters.params.count();
    adapters.freeze_a();
    assert!(adapters.params.count() < all);
    case.check(&adapters, true);
}

/// The configurations that `lowrank train` makes of a few words.
fn configurations() -> Vec<(&'static str, LoraConfig)> {
    let words = [
        ("dora", json!({"peft_type": "LORA", "r": 2, "use_dora": true, "lora_dropout": 0.2})),
        (
            "pissa",
            json!({"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa_niter_4", "lora_dropout": 0.2}),
        ),
        ("orthogonal", json!({"peft_type": "LORA", "r": 2, "init_lora_weights": "orthogonal"})),
        ("ia3", json!({"peft_type": "IA3", "feedforward_modules": ["down_proj"]})),
        ("vera", json!({"peft_type": "VERA", "r": 4, "save_projection": false, "vera_dropout": 0.2})),
        ("loha", json!({"peft_type": "LOHA", "r": 2, "rank_dropout": 0.3, "module_dropout": 0.1})),
        ("lokr", json!({"peft_type": "LOKR", "r": 2, "rank_dropout": 0.3, "rank_dropout_scale": true})),
        (
            "adalora",
            json!({"peft_type": "ADALORA", "init_r": 3, "target_r": 1, "tinit": 1, "tfinal": 2, "total_step": 8}),
        ),
        (
            "adalora with biases",
            json!({"peft_type": "ADALORA", "init_r": 2, "target_r": 1, "tinit": 1, "tfinal": 2, "total_step": 8,
                   "bias": "all"}),
        ),
        (
            "biases and tokens",
            json!({"peft_type": "LORA", "r": 2, "lora_dropout": 0.2, "bias": "all",
                   "trainable_token_indices": [9, 3]}),
        ),
    ];
    let config = |mut words: Value| -> LoraConfig {
        words["target_modules"] = json!(["q_proj", "v_proj", "down_proj"]);
        serde_json::from_value(words).unwrap()
    };
    words.map(|(name, words)| (name, config(words))).to_vec()
}

/// Eight steps give the same bits in one go and with a checkpoint after five, and the plan is exact.
#[test]
fn every_variant_resumes_bit_by_bit_and_is_planned_to_the_byte() {
    let case = Case::open("dora", "llama");
    let sites = case.session.sites();
    let batch = std::slice::from_ref(&case.batch);
    for (name, config) in configurations() {
        let options = StepOptions { seed: 3, max_grad_norm: 1.0, ..PLAIN };
        let start = AdapterSet::new_on(config.clone(), sites, 5, &case.session).unwrap();
        let steps = |stepper: &mut Stepper<'_>, n: usize| {
            (0..n).for_each(|_| assert!(stepper.step(batch, 1e-2).unwrap().loss > 0.0));
        };
        let mut whole = Stepper::new(&*case.session.model, start.clone(), Device::cpu(), options);
        steps(&mut whole, 8);

        let planned = AdapterSet::planned(config, sites).unwrap();
        let mut plan = Stepper::new(&*case.session.model, planned, Device::plan(), options);
        plan.gradients(batch).unwrap();
        assert_eq!(plan.adapters.params.count(), whole.adapters.params.count(), "{name}: parameters");
        assert_eq!(plan.device().peak_bytes(), whole.device().peak_bytes(), "{name}: bytes");

        let mut first = Stepper::new(&*case.session.model, start, Device::cpu(), options);
        steps(&mut first, 5);
        let run = tempfile::tempdir().unwrap();
        let state = RunState { step: 5, epoch: 0.0, best: None, fingerprint: serde_json::Map::new() };
        checkpoint::save(run.path(), "last", &first.adapters, &first.optimizer, &state).unwrap();
        let (adapters, optimizer, _) = checkpoint::load(run.path(), sites, 0.01, |_| {}).unwrap();
        let mut second = Stepper::new(&*case.session.model, adapters, Device::cpu(), options);
        second.optimizer = optimizer;
        steps(&mut second, 3);
        for ((_, a), (_, b)) in whole.adapters.params.iter().zip(second.adapters.params.iter()) {
            assert_eq!(a.value, b.value, "{name}: {}", a.name);
        }
        // What is written gives what was trained, and is written the same again.
        let folders = [run.path().join("a"), run.path().join("b")];
        second.adapters.save(&folders[0]).unwrap();
        let loaded = AdapterSet::load_on(&folders[0], sites, &case.session).unwrap();
        loaded.save(&folders[1]).unwrap();
        let bytes = |dir: &Path| std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        assert_eq!(bytes(&folders[0]), bytes(&folders[1]), "{name}");
        let got = logits(&case.session, &loaded, &case.tokens);
        close(name, &got, &logits(&case.session, &second.adapters, &case.tokens), 1e-5);
    }
}

/// Merging and taking out again leaves the base.
#[test]
fn unmerging_restores_the_base() {
    for name in ["lora_fa", "ia3", "vera", "loha", "lokr", "adalora"] {
        let case = Case::open(name, "llama");
        let adapters = case.load();
        let (merged, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = lowrank::MergeTarget::Folder(Format::F32);
        lowrank::merge(&case.session, &adapters, merged.path(), target).unwrap();
        let session = Session::open(merged.path().to_str().unwrap()).unwrap();
        lowrank::unmerge(&session, &adapters, again.path(), target).unwrap();
        let restored = Session::open(again.path().to_str().unwrap()).unwrap();
        let got = logits(&restored, &AdapterSet::none(), &case.tokens);
        close(name, &got, &logits(&case.session, &AdapterSet::none(), &case.tokens), 1e-5);
    }
    let case = Case::open("dora", "llama");
    let out = tempfile::tempdir().unwrap();
    let target = lowrank::MergeTarget::Folder(Format::F32);
    let refused = lowrank::unmerge(&case.session, &case.load(), out.path(), target).unwrap_err().to_string();
    assert!(refused.contains("keep the base model"), "{refused}");
}

/// Several adapters of different kinds at once: the same at run time and merged, and the weights count.
#[test]
fn adapters_mix() {
    let case = Case::open("dora", "llama");
    let mut store = AdapterStore::default();
    let names = ["dora", "ia3", "vera", "loha", "lokr", "adalora", "lora_fa"];
    for name in names {
        let dir = fixture("variants").join(name).join("adapter");
        store.load(name, &dir, case.session.sites(), &case.session).unwrap();
        // One alone is what it is without the store.
        let alone = AdapterSet::load(&dir, case.session.sites()).unwrap();
        let got = logits(&case.session, &store.select(name).unwrap(), &case.tokens);
        assert_eq!(got, logits(&case.session, &alone, &case.tokens), "{name}");
    }
    let weights: Vec<(&str, f32)> = names.iter().zip(1u8..).map(|(n, i)| (*n, f32::from(i) / 9.0)).collect();
    let mixed = store.mix(&weights).unwrap();
    let got = logits(&case.session, &mixed, &case.tokens);
    let out = tempfile::tempdir().unwrap();
    let losses = lowrank::merge(&case.session, &mixed, out.path(), lowrank::MergeTarget::Folder(Format::F32));
    assert!(losses.unwrap().is_empty(), "f32 loses nothing");
    let merged = Session::open(out.path().to_str().unwrap()).unwrap();
    close("merged mixture", &logits(&merged, &AdapterSet::none(), &case.tokens), &got, 1e-4);

    let base = logits(&case.session, &AdapterSet::none(), &case.tokens);
    let nothing = store.mix(&names.map(|name| (name, 0.0))).unwrap();
    close("weights of 0", &logits(&case.session, &nothing, &case.tokens), &base, 1e-6);
    assert!(store.mix(&[("dora", f32::NAN)]).is_err());
    let unknown = store.select("poems").err().unwrap().to_string();
    assert!(unknown.contains("poems") && unknown.contains("lokr"), "{unknown}");

    // Rounding costs what it says.
    let losses =
        lowrank::merge(&case.session, &mixed, out.path(), lowrank::MergeTarget::Folder(Format::BF16));
    let losses = losses.unwrap();
    assert_eq!(losses.len(), mixed.layers.len());
    assert!(losses.iter().all(|loss| loss.relative_error > 1e-4 && loss.relative_error < 4e-3), "{losses:?}");
}

macro_rules! cases {
    ($($case:ident on $base:ident),* $(,)?) => {
        $(#[test] fn $case() { check(stringify!($case), stringify!($base)); })*
    };
}

cases!(
    dora on llama,
    dora_gpt2 on gpt2,
    ia3 on llama,
    ia3_gpt2 on gpt2,
    vera on llama,
    vera_unsaved on llama,
    loha on llama,
    lokr on llama,
    lokr_factor on llama,
    adalora on llama,
);

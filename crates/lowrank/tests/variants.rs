//! Every variant of LoRA gives PEFT's numbers. `tools/reference/variants.py` made the fixtures.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Expected, close, example, fixture, logits, lowrank_ok};
use lowrank::Session;
use lowrank::adapters::{AdapterSet, AdapterStore, LoraConfig, LoraPlus};
use lowrank::engine::{Device, Format};
use lowrank::train::{
    BatchOptions, Batches, Example, Examples, PackedBatch, RunState, StepOptions, Stepper, TrainingInputs,
    checkpoint, pack,
};
use serde_json::{Map, Value, json};

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

    /// The adapter as training starts, after it looked at the data of `base` in batches of two.
    fn started(&self, base: &str) -> AdapterSet {
        let config = std::fs::read(fixture("variants").join(self.name).join("config.json")).unwrap();
        let config: LoraConfig = serde_json::from_slice(&config).unwrap();
        let data = Expected::file(&fixture("variants").join(base).join("data.safetensors"));
        let examples: Examples = (0..6)
            .map(|i| {
                let (ids, labels) = (data.ints(&format!("ids_{i}")), data.ints(&format!("labels_{i}")));
                let prompt_len = labels.iter().take_while(|l| **l < 0).count();
                Example { prompt_len, ..example(&ids, &labels) }
            })
            .collect();
        let options = BatchOptions { batch_size: 2, shuffle: false, ..BatchOptions::default() };
        let batches = Batches::new(&examples, options).unwrap();
        let (session, device) = (&self.session, Device::cpu());
        let mut inputs = TrainingInputs::new(&*session.model, &device, &examples, &batches, None);
        AdapterSet::new_on_data(config, session.sites(), 0, session, &mut inputs).unwrap()
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
                self.close(&key, stepper.grads().values(id), &key, 1e-4);
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
    let adapters = case.started(base);
    for layer in &adapters.layers {
        let [a, b] = layer.variant.params()[..] else { panic!("A and B") };
        let (a, b) = (adapters.params.get(a), adapters.params.get(b));
        let (k, o, s) = (a.cols, b.rows, layer.variant.scaling().unwrap());
        let change: Vec<f32> = (0..o * k)
            .map(|at| {
                s * (0..a.rows)
                    .map(|i| b.values()[at / k * a.rows + i] * a.values()[i * k + at % k])
                    .sum::<f32>()
            })
            .collect();
        // What CorDA trains has gone through the inverse of a matrix in single precision.
        let tolerance = if name.starts_with("corda") { 1e-3 } else { 1e-4 };
        case.close("start", &change, &format!("change.{}", layer.site.path), tolerance);
    }
    let trained = case.check(&adapters, false);

    let out = tempfile::tempdir().unwrap();
    trained.save(out.path()).unwrap();
    let plain = AdapterSet::load(out.path(), case.session.sites()).unwrap();
    assert_eq!(plain.config.init_lora_weights, Value::Bool(true));
    assert_eq!((plain.config.r, plain.config.lora_alpha), (8, 16.0));
    assert!(!plain.config.other.contains_key("corda_config"));
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

#[test]
fn corda() {
    check_fresh("corda", "llama");
    check_fresh("corda_kpm", "gpt2");
}

/// The components, ranks and alphas that PEFT finds in the same batches; then the same training and file.
#[test]
fn eva() {
    for name in ["eva", "eva_whiten"] {
        let case = Case::open(name, "llama");
        let adapters = case.started("llama");
        let config: Value = serde_json::from_slice(
            &std::fs::read(fixture("variants").join(name).join("adapter/adapter_config.json")).unwrap(),
        )
        .unwrap();
        let patterns = (&adapters.config.rank_pattern, &adapters.config.alpha_pattern);
        assert!(!patterns.0.is_empty(), "{name}: ranks move");
        let sorted = |map: &Map<String, Value>| -> BTreeMap<String, f64> {
            map.iter().map(|(key, value)| (key.clone(), value.as_f64().unwrap())).collect()
        };
        let wanted = |field: &str| sorted(config[field].as_object().unwrap());
        assert_eq!(sorted(patterns.0), wanted("rank_pattern"), "{name}");
        assert_eq!(sorted(patterns.1), wanted("alpha_pattern"), "{name}");
        for layer in &adapters.layers {
            let [a, b] = layer.variant.params()[..] else { panic!("A and B") };
            case.close("components", adapters.params.values(a), &format!("a.{}", layer.site.path), 1e-3);
            assert!(adapters.params.values(b).iter().all(|x| *x == 0.0));
        }
        case.check(&adapters, false);

        // PEFT's file is ours, and ours comes back whole.
        let theirs = case.load();
        let out = tempfile::tempdir().unwrap();
        adapters.save(out.path()).unwrap();
        let again = AdapterSet::load(out.path(), case.session.sites()).unwrap();
        assert_eq!(again.params.count(), theirs.params.count(), "{name}");
        for ((_, ours), (_, theirs)) in again.params.iter().zip(theirs.params.iter()) {
            assert_eq!((&ours.name, &ours.shape), (&theirs.name, &theirs.shape), "{name}");
        }
        assert_eq!(again.config.other["eva_config"], config["eva_config"], "{name}");
    }
}

/// What cannot be looked at, or not well enough, is refused with what to do.
#[test]
fn starts_that_need_data_say_so() {
    let case = Case::open("eva", "llama");
    let config = |words: Value| -> LoraConfig {
        let mut all = json!({"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "r": 4});
        all.as_object_mut().unwrap().extend(words.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    };
    let examples = Examples::from(vec![example(&[3, 4, 5, 6, 7, 8], &[-100, -100, 5, 6, 7, 8])]);
    let batches = Batches::new(&examples, BatchOptions::default()).unwrap();
    let (session, device) = (&case.session, Device::cpu());
    let refused = |words: Value, part: &str| {
        let mut inputs = TrainingInputs::new(&*session.model, &device, &examples, &batches, None);
        let made = AdapterSet::new_on_data(config(words), session.sites(), 0, session, &mut inputs);
        let said = made.err().unwrap().to_string();
        assert!(said.contains(part), "{said}");
    };
    refused(json!({"init_lora_weights": "eva"}), "`batch_size`");
    refused(json!({"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}), "rho");
    refused(json!({"init_lora_weights": "eva", "eva_config": {"tau": 2.0}}), "tau");
    refused(json!({"init_lora_weights": "eva", "eva_config": {"rho": 9.0}}), "lower r or rho");
    refused(json!({"init_lora_weights": "corda", "corda_config": {"corda_method": "other"}}), "corda_config");
    let blind = AdapterSet::new_on(config(json!({"init_lora_weights": "eva"})), session.sites(), 0, session);
    assert!(blind.err().unwrap().to_string().contains("need data"));
}

/// `B` learns faster, everything else as ever.
#[test]
fn loraplus() {
    let case = Case::open("loraplus", "llama");
    let mut adapters = case.load();
    adapters.set_loraplus(LoraPlus { lr_ratio: 4.0, embedding_ratio: 1.0 });
    case.check(&adapters, true);
}

#[test]
fn lora_fa() {
    let case = Case::open("lora_fa", "llama");
    let mut adapters = case.load();
    let all = adapters.params.count();
    // The reference freezes `A` and leaves the optimizer as it is; `tests/optimizers.rs` has PEFT's.
    adapters.set_lora_fa().unwrap();
    adapters.training_hook = None;
    assert!(adapters.params.count() < all);
    case.check(&adapters, true);
}

/// Tensors in `adapter_model.bin`, as PEFT wrote them before safetensors, for every way to read an adapter.
#[test]
fn older_files_of_peft_load() {
    let case = Case::open("lora_fa", "llama");
    let (older, sites) = (fixture("variants/older"), case.session.sites());
    let got = logits(&case.session, &AdapterSet::load(&older, sites).unwrap(), &case.tokens);
    case.close("logits", &got, "logits_1", 1e-4);
    let alone = AdapterSet::load_alone(&older).unwrap();
    assert_eq!(alone.params.count(), case.load().params.count());
    let out = tempfile::tempdir().unwrap();
    let older = older.to_str().unwrap();
    assert!(lowrank_ok(&["inspect", older]).out.contains("q_proj"));
    assert!(lowrank_ok(&["diff", older, fixture("variants/lora_fa/adapter").to_str().unwrap()]).code == 0);

    // Damaged, it is refused by name.
    let broken = out.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::copy(Path::new(older).join("adapter_config.json"), broken.join("adapter_config.json")).unwrap();
    let bytes = std::fs::read(Path::new(older).join("adapter_model.bin")).unwrap();
    std::fs::write(broken.join("adapter_model.bin"), &bytes[..bytes.len() / 2]).unwrap();
    let said = AdapterSet::load(&broken, sites).err().unwrap().to_string();
    assert!(said.contains("adapter_model.bin"), "{said}");
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
    let targets = Some(lowrank::adapters::Targets::parse("q_proj,down_proj"));
    let lora_fa = ("LoRA-FA", LoraConfig { r: 3, target_modules: targets, ..LoraConfig::default() });
    for (name, config) in configurations().into_iter().chain([lora_fa]) {
        let options = StepOptions { seed: 3, max_grad_norm: 1.0, ..PLAIN };
        let prepare = |set: &mut AdapterSet| if name == "LoRA-FA" { set.set_lora_fa() } else { Ok(()) };
        let mut start = AdapterSet::new_on(config.clone(), sites, 5, &case.session).unwrap();
        prepare(&mut start).unwrap();
        let steps = |stepper: &mut Stepper<'_>, n: usize| {
            (0..n).for_each(|_| assert!(stepper.step(batch, 1e-2).unwrap().loss > 0.0));
        };
        let mut whole = Stepper::new(&*case.session.model, start.clone(), Device::cpu(), options);
        steps(&mut whole, 8);

        let mut planned = AdapterSet::planned(config, sites).unwrap();
        prepare(&mut planned).unwrap();
        let mut plan = Stepper::new(&*case.session.model, planned, Device::plan(), options);
        plan.gradients(batch).unwrap();
        assert_eq!(plan.adapters.params.count(), whole.adapters.params.count(), "{name}: parameters");
        assert_eq!(plan.device().peak_bytes(), whole.device().peak_bytes(), "{name}: bytes");

        let mut first = Stepper::new(&*case.session.model, start, Device::cpu(), options);
        steps(&mut first, 5);
        let run = tempfile::tempdir().unwrap();
        let state = RunState { step: 5, ..RunState::default() };
        checkpoint::save(run.path(), "last", &first.adapters, &first.optimizer, &state).unwrap();
        let (adapters, optimizer, _) = checkpoint::load(run.path(), sites, 0.01, prepare).unwrap();
        let mut second = Stepper::new(&*case.session.model, adapters, Device::cpu(), options);
        second.optimizer = optimizer;
        steps(&mut second, 3);
        for ((_, a), (_, b)) in whole.adapters.params.iter().zip(second.adapters.params.iter()) {
            assert_eq!(a.values(), b.values(), "{name}: {}", a.name);
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

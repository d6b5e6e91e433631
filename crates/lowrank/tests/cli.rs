//! The command as a user runs it, on a tiny model.

mod common;

use std::fs;
use std::path::Path;

use common::{fixture, lowrank, lowrank_ok, overriding, tiny_data, tiny_model};
use serde_json::{Value, json};

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("train.jsonl"), 30);
        tiny_data(&dir.path().join("eval.jsonl"), 7);
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// `lowrank train` with what every run needs, and `more`.
    fn train(&self, out: &str, more: &[&str]) -> common::Ran {
        let (data, out) = (self.path("train.jsonl"), self.path(out));
        let mut args = vec!["train", "--model", &self.model, "--data", &data, "--out", &out];
        args.extend(["--batch-size", "4", "--learning-rate", "0.02", "--max-steps", "8", "--threads", "1"]);
        lowrank(&overriding(&args, more))
    }
}

fn log(path: &str) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn tensors(dir: &str) -> Vec<u8> {
    fs::read(Path::new(dir).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn trains_logs_evaluates_and_writes_an_adapter() {
    let place = Place::new();
    let (json, board) = (place.path("log.jsonl"), place.path("board"));
    let eval = place.path("eval.jsonl");
    let more =
        ["--log-json", &json, "--tensorboard", &board, "--eval-data", &eval, "--eval-steps", "4", "--r", "2"];
    let ran = place.train("a", &more);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let lines = log(&json);
    let steps: Vec<&Value> = lines.iter().filter(|l| l.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 8);
    for key in [
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "examples",
        "tokens_per_s",
        "step_s",
    ] {
        assert!(steps[0][key].is_number(), "{key}: {}", steps[0]);
    }
    assert!(steps[7]["loss"].as_f64() < steps[0]["loss"].as_f64());
    assert_eq!(lines.iter().filter(|l| l.get("eval_loss").is_some()).count(), 2);
    assert!(fs::read_dir(&board).unwrap().next().is_some());
    let config: Value =
        serde_json::from_slice(&fs::read(place.path("a/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((config["peft_type"].as_str(), config["r"].as_u64()), (Some("LORA"), Some(2)));
    assert!(fs::read_to_string(place.path("a/README.md")).unwrap().contains("library_name: peft"));
    for name in ["last", "best"] {
        assert!(Path::new(&place.path("a/checkpoints")).join(name).join("optimizer.safetensors").exists());
    }
}

#[test]
fn the_same_run_gives_the_same_bits() {
    let place = Place::new();
    assert_eq!(place.train("whole", &["--lora-dropout", "0.1"]).code, 0);
    assert_eq!(place.train("again", &["--lora-dropout", "0.1"]).code, 0);
    assert_eq!(tensors(&place.path("whole")), tensors(&place.path("again")));

    let refused = place.train("again", &["--lora-dropout", "0.2", "--resume"]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("--lora-dropout was 0.1"), "{}", refused.err);
    // A run that is done has nothing left to do.
    assert_eq!(place.train("again", &["--lora-dropout", "0.1", "--resume"]).code, 0);
    assert_eq!(tensors(&place.path("whole")), tensors(&place.path("again")));
}

/// Nothing that was given is dropped: a second value is refused.
#[test]
fn an_option_is_given_once() {
    let place = Place::new();
    let data = place.path("eval.jsonl");
    let refuses = |more: &[&str], word: &str| {
        let train = place.path("train.jsonl");
        let base = ["train", "--model", &place.model, "--data", &train, "--out", &place.path("x")];
        let ran = lowrank(&[&base[..], more].concat());
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{more:?}: {}", ran.err);
        assert!(!Path::new(&place.path("x")).exists());
    };
    refuses(&["--model", &data], "'--model <MODEL>' cannot be used multiple times");
    refuses(&["--seed", "1", "--seed", "2"], "--seed");
    refuses(
        &["--rank-pattern", "q_proj=1", "--rank-pattern", "q_proj=2"],
        "--rank-pattern gives q_proj twice",
    );
    refuses(&["--peft-option", "alpha=1", "--peft-option", "alpha=2"], "--peft-option gives alpha twice");
    let file = place.path("run.toml");
    fs::write(&file, "learning-rate = 1\nlearning_rate = 2\n").unwrap();
    refuses(&["--config", &file], "--learning-rate is given twice");
    let ran = lowrank(&["eval", "--model", &place.model, "--model", &place.model, "--data", &data]);
    assert!(ran.code == 2 && ran.err.contains("multiple times"), "{}", ran.err);

    // Lists and tables are joined, and those of a file with those of the command line.
    fs::write(&file, "rank-pattern = { q_proj = 3, v_proj = 4 }\n").unwrap();
    let joined = ["--config", &file, "--rank-pattern", "q_proj=2", "--rank-pattern", "k_proj=5"];
    let modules = ["--modules-to-save", "model.norm", "--modules-to-save", "lm_head"];
    let targets = ["--target-modules", "q_proj,k_proj,v_proj"];
    assert_eq!(place.train("joined", &[&joined[..], &modules, &targets].concat()).code, 0);
    let config: Value =
        serde_json::from_slice(&fs::read(place.path("joined/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["rank_pattern"], json!({"q_proj": 2, "v_proj": 4, "k_proj": 5}));
    assert_eq!(config["modules_to_save"], json!(["model.norm", "lm_head"]));
}

/// A run goes on with the data and the base that it began with, wherever they lie now.
#[test]
fn a_run_that_goes_on_is_still_the_same() {
    let place = Place::new();
    let eval = place.path("eval.jsonl");
    let more = ["--eval-data", &eval, "--save-steps", "4"];
    assert_eq!(place.train("a", &more).code, 0);
    let refuses = |change: &[&str], words: &[&str]| {
        let ran = place.train("a", &[&more[..], change, &["--resume"]].concat());
        assert_eq!(ran.code, 2, "{change:?}: {}", ran.err);
        words.iter().for_each(|word| assert!(ran.err.contains(word), "{word}: {}", ran.err));
    };
    refuses(&["--warmup-steps", "2"], &["--warmup-steps was 0 and is 2"]);
    assert_eq!(place.train("start", &[]).code, 0);
    refuses(&["--init-adapter", &place.path("start")], &["--init-adapter was null"]);
    let moved = place.path("moved.jsonl");
    fs::copy(place.path("train.jsonl"), &moved).unwrap();
    assert_eq!(place.train("a", &[&more[..], &["--data", &moved, "--resume"]].concat()).code, 0);
    let text = fs::read_to_string(&moved).unwrap();
    fs::write(&moved, text.replacen("red", "rod", 1)).unwrap();
    refuses(
        &["--data", &moved],
        &["--data was \"30 examples with checksum", "resume with the options and files"],
    );

    // Another base of the same shape.
    let other = place.path("other");
    fs::create_dir(&other).unwrap();
    for file in fs::read_dir(&place.model).unwrap().map(|file| file.unwrap()) {
        fs::copy(file.path(), Path::new(&other).join(file.file_name())).unwrap();
    }
    let file = Path::new(&other).join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.tensor("model.norm.weight").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[at..at + 4].copy_from_slice(&1.5f32.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    refuses(&["--model", &other], &["--model was", "tensors with checksum"]);

    // The lowest loss is forgotten with the data that it was of.
    let state = |name: &str| -> Value {
        let path = Path::new(&place.path("a/checkpoints")).join(name).join("trainer_state.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let best = state("last")["best"].clone();
    fs::write(&eval, fs::read_to_string(&eval).unwrap().replace("gold", "cold")).unwrap();
    let ran = place.train("a", &[&more[..], &["--resume"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(best.is_array() && state("last")["best"] != best, "{best}");
}

/// Every variant from the command line: it trains, its parameters are those planned, and it merges.
#[test]
fn variants_train_and_merge() {
    let place = Place::new();
    let (model, data) = (&place.model, place.path("train.jsonl"));
    let cases: [(&str, &[&str]); 10] = [
        ("dora", &["--use-dora"]),
        ("pissa", &["--init-lora-weights", "pissa"]),
        ("plus", &["--loraplus-lr-ratio", "4", "--loraplus-lr-embedding", "1e-3"]),
        ("fa", &["--lora-fa"]),
        ("ia3", &["--peft-type", "ia3"]),
        ("vera", &["--peft-type", "vera"]),
        ("loha", &["--peft-type", "loha"]),
        ("lokr", &["--peft-type", "lokr", "--peft-option", "decompose_factor=4"]),
        ("adalora", &["--peft-type", "adalora", "--peft-option", "target_r=2", "--peft-option", "tfinal=2"]),
        ("olora", &["--init-lora-weights", "olora"]),
    ];
    for (name, more) in cases {
        let ran = place.train(name, more);
        assert_eq!(ran.code, 0, "{name}: {}", ran.err);
        let mut plan = vec!["plan", "--model", model, "--data", &data, "--out", "x", "--json"];
        plan.extend(more);
        let plan: Value = serde_json::from_str(&lowrank_ok(&plan).out).unwrap();
        assert!(plan["trainable_parameters"].as_u64() > Some(0), "{name}");
        let (adapter, out) = (place.path(name), place.path(&format!("{name}-merged")));
        lowrank_ok(&["inspect", &adapter]);
        let merge = ["merge", "--model", model, "--adapter", &adapter, "--out", &out, "--dtype", "f32"];
        lowrank_ok(&[&merge[..], &["--tolerance", "1e-3"]].concat());
    }
    let (a, b) = (place.path("dora"), format!("{}:0.5", place.path("loha")));
    let ask = ["generate", "--model", model, "--prompt", "red", "--max-new-tokens", "3"];
    lowrank_ok(&[&ask[..], &["--adapter", &a, "--adapter", &b]].concat());
    let refused = place.train("x", &["--peft-type", "adaption_prompt"]);
    assert!(refused.code == 2 && refused.err.contains("LOKR"), "{}", refused.err);
    let refused = place.train("x", &["--init-lora-weights", "magic"]);
    assert!(refused.code == 2 && refused.err.contains("pissa_niter"), "{}", refused.err);
}

#[test]
fn a_folder_with_a_run_is_not_overwritten() {
    let place = Place::new();
    assert_eq!(place.train("a", &[]).code, 0);
    let before = tensors(&place.path("a"));
    let ran = place.train("a", &["--seed", "7"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--force") && ran.err.contains("--resume"), "{}", ran.err);
    assert_eq!(tensors(&place.path("a")), before);
    assert_eq!(place.train("a", &["--seed", "7", "--force"]).code, 0);
    assert_ne!(tensors(&place.path("a")), before);
}

#[test]
fn flags_win_over_the_file() {
    let place = Place::new();
    let file = place.path("run.toml");
    let (model, data, out) = (&place.model, place.path("train.jsonl"), place.path("b"));
    let text =
        format!("model = {model:?}\ndata = {data:?}\nout = {out:?}\nr = 5\nlora-alpha = 3\nmax_steps = 2\n");
    fs::write(&file, &text).unwrap();
    lowrank_ok(&["train", "--config", &file, "--r", "3"]);
    let config: Value =
        serde_json::from_slice(&fs::read(place.path("b/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(3), Some(3.0)));
    fs::write(&file, text + "rnak = 4\n").unwrap();
    let ran = lowrank(&["train", "--config", &file, "--force"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("rnak"), "{}", ran.err);
}

#[test]
fn starts_from_another_adapter() {
    let place = Place::new();
    assert_eq!(place.train("first", &[]).code, 0);
    let first = place.path("first");
    assert_eq!(place.train("second", &["--init-adapter", &first, "--learning-rate", "0"]).code, 0);
    assert_eq!(tensors(&first), tensors(&place.path("second")));
}

#[test]
fn generates_evaluates_merges_plans_and_inspects() {
    let place = Place::new();
    assert_eq!(place.train("a", &[]).code, 0);
    let (model, adapter, data) = (&place.model, place.path("a"), place.path("eval.jsonl"));

    let greedy = [
        "generate",
        "--model",
        model,
        "--adapter",
        &adapter,
        "--prompt",
        "red and",
        "--max-new-tokens",
        "12",
    ];
    let text = lowrank_ok(&greedy).out;
    assert_eq!(text, lowrank_ok(&greedy).out);
    let mut sampled = greedy.to_vec();
    sampled.extend(["--temperature", "1.5", "--top-k", "40", "--top-p", "0.95", "--seed", "3"]);
    assert_eq!(lowrank_ok(&sampled).out, lowrank_ok(&sampled).out);
    let chat = ["generate", "--model", model, "--chat", "--prompt", "hello", "--max-new-tokens", "5"];
    lowrank_ok(&chat);

    let eval = ["eval", "--model", model, "--data", &data, "--json"];
    let base: Value = serde_json::from_str(&lowrank_ok(&eval).out).unwrap();
    let mut with = eval.to_vec();
    with.extend(["--adapter", &adapter]);
    let adapted: Value = serde_json::from_str(&lowrank_ok(&with).out).unwrap();
    assert!(adapted["loss"].as_f64() < base["loss"].as_f64(), "{adapted} {base}");

    for (out, dtype) in [("merged", "f32"), ("merged.gguf", "f32"), ("half", "bf16"), ("m8.gguf", "q8_0")] {
        let out = place.path(out);
        let ran =
            lowrank(&["merge", "--model", model, "--adapter", &adapter, "--out", &out, "--dtype", dtype]);
        // A tokenizer of single characters has no form in GGUF.
        if out.ends_with("gguf") && ran.code != 0 {
            assert!(ran.err.contains("tokenizer"), "{}", ran.err);
            continue;
        }
        assert_eq!(ran.code, 0, "{}", ran.err);
        let merged: Value =
            serde_json::from_str(&lowrank_ok(&["eval", "--model", &out, "--data", &data, "--json"]).out)
                .unwrap();
        let (a, b) = (merged["loss"].as_f64().unwrap(), adapted["loss"].as_f64().unwrap());
        assert!((a - b).abs() < if dtype == "f32" { 1e-5 } else { 0.05 }, "{dtype}: {a} for {b}");
    }
    let existing = place.path("merged");
    assert_eq!(lowrank(&["merge", "--model", model, "--adapter", &adapter, "--out", &existing]).code, 2);

    let train = place.path("train.jsonl");
    let out = place.path("none");
    let plan = lowrank_ok(&["plan", "--model", model, "--data", &train, "--out", &out, "--json"]).out;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert!(plan["activation_bytes"].as_u64() > Some(0));
    assert!(!Path::new(&out).exists(), "planning writes nothing");

    let found: Value = serde_json::from_str(&lowrank_ok(&["inspect", &adapter, "--json"]).out).unwrap();
    assert_eq!(found["summary"]["sites"], 14);
    let found: Value = serde_json::from_str(&lowrank_ok(&["inspect", model, "--json"]).out).unwrap();
    assert_eq!(found["summary"]["kind"], "llama");
    for (name, value) in [
        ("context length", serde_json::json!(128)),
        ("formats", "BF16 (20)".into()),
        ("tokenizer", "BPE".into()),
        ("tokens of the tokenizer", 96.into()),
        ("begin token", "<s>".into()),
        ("begin token is added", false.into()),
        ("end token", "</s>".into()),
        ("ends of an answer", serde_json::json!(["</s>"])),
        ("chat template", "its own".into()),
    ] {
        assert_eq!(found["summary"][name], value, "{name}: {}", found["summary"]);
    }
    let shown = lowrank_ok(&["inspect", model]).out;
    let facts = shown.rsplit("\n\n").next().unwrap();
    for line in
        ["chat template            its own", "begin token is added     no", "tokenizer                BPE"]
    {
        assert!(facts.contains(line), "{facts}");
    }
    assert!(lowrank_ok(&["inspect", model]).out.contains("model.layers.1.mlp.up_proj.weight"));
}

/// QLoRA from end to end: the base becomes NF4 while it is read, in every command the same.
#[test]
fn a_quantised_base_trains_evaluates_and_generates() {
    let place = Place::new();
    let (eval, train) = (place.path("eval.jsonl"), place.path("train.jsonl"));
    let eval_of = |more: &[&str]| -> f64 {
        let mut args = vec!["eval", "--model", &place.model, "--data", &eval, "--json"];
        args.extend(more);
        let found: Value = serde_json::from_str(&lowrank_ok(&args).out).unwrap();
        found["loss"].as_f64().unwrap()
    };
    let dense = eval_of(&[]);
    for quantize in ["nf4", "q8_0"] {
        let form = ["--quantize", quantize, "--precision", "bf16"];
        let ran = place.train(quantize, &form);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let adapter = place.path(quantize);
        let base = eval_of(&form);
        assert!(base != dense, "{quantize} changes the numbers");
        assert!((base - dense).abs() < 0.2, "{quantize}, but not by much: {base} for {dense}");
        assert!(eval_of(&[&form[..], &["--adapter", &adapter]].concat()) < base);
        let ask = ["generate", "--model", &place.model, "--prompt", "red", "--max-new-tokens", "3"];
        lowrank_ok(&[&ask[..], &form, &["--adapter", &adapter]].concat());

        // The numbers of a run that goes on must stay those of its beginning.
        let ran = place.train(quantize, &["--resume"]);
        assert_eq!(ran.code, 2);
        assert!(ran.err.contains("quantize"), "{}", ran.err);
    }
    let base_bytes = |more: &[&str]| {
        let mut args = vec!["plan", "--model", &place.model, "--data", &train, "--out", "x", "--json"];
        args.extend(more);
        let plan: Value = serde_json::from_str(&lowrank_ok(&args).out).unwrap();
        plan["base_bytes"].as_u64().unwrap()
    };
    let (whole, q8, nf4) =
        (base_bytes(&[]), base_bytes(&["--quantize", "q8_0"]), base_bytes(&["--quantize", "nf4"]));
    assert!(whole > q8 && q8 > nf4, "{whole} {q8} {nf4}");

    let ran = place.train("x", &["--quantize", "q4"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("nf4") && ran.err.contains("q8_0"), "{}", ran.err);
}

#[test]
fn bad_input_names_what_is_wrong_and_exits_with_2() {
    let place = Place::new();
    let refuses = |more: &[&str], words: &[&str]| {
        let ran = place.train("x", more);
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.err);
        for word in words {
            assert!(ran.err.contains(word), "{more:?}: no {word:?} in {}", ran.err);
        }
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
    };
    refuses(&["--target-modules", "c_attn"], &["c_attn", "q_proj", "down_proj"]);
    refuses(&["--r", "0"], &["--r", "must be a whole number from 1 to 65536"]);
    refuses(&["--lora-dropout", "1.5"], &["--lora-dropout"]);
    refuses(&["--batch-size", "0"], &["--batch-size"]);
    refuses(&["--lr-scheduler", "step"], &["linear", "cosine"]);
    refuses(&["--learning-rate", "nan"], &["--learning-rate"]);
    refuses(&["--resume"], &["no checkpoint"]);

    let bad = place.path("bad.jsonl");
    fs::write(&bad, "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": 3}\n").unwrap();
    refuses(&["--data", &bad], &["bad.jsonl:2", "--skip-bad-lines"]);
    let ran = place.train("y", &["--data", &bad, "--skip-bad-lines"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("1 bad line"), "{}", ran.err);

    // An adapter for another base says which site differs.
    let other = fixture("qwen3_qk_norm").join("adapter");
    let adapter = other.to_str().unwrap();
    let ran = lowrank(&["generate", "--model", &place.model, "--adapter", adapter, "--prompt", "a"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("does not fit the base model") && ran.err.contains("layers."), "{}", ran.err);

    // A truncated weight file.
    let file = Path::new(&place.model).join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refuses(&[], &["model.safetensors"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let place = Place::new();
    assert_eq!(place.train("start", &[]).code, 0);
    // An adapter with an infinite number in it: the next loss is none.
    let file = Path::new(&place.path("start")).join("adapter_model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let ran = place.train("x", &["--init-adapter", &place.path("start")]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("step 1") && ran.err.contains("train.jsonl:"), "{}", ran.err);
    assert!(ran.err.contains("The adapter is broken") && ran.err.contains("lora_"), "{}", ran.err);
    assert!(!Path::new(&place.path("x/adapter_model.safetensors")).exists(), "nothing broken is written");
}

/// Ctrl-C finishes the step at hand, saves, and says how to go on; the resumed run ends with the bits of
/// the run that was never stopped.
#[cfg(unix)]
#[test]
fn an_interrupted_run_resumes_to_the_same_bits() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let place = Place::new();
    let more = ["--max-steps", "400", "--lora-dropout", "0.1", "--save-steps", "0"];
    assert_eq!(place.train("whole", &more).code, 0);
    let (data, out, json) = (place.path("train.jsonl"), place.path("cut"), place.path("cut.jsonl"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(["train", "--model", &place.model, "--data", &data, "--out", &out, "--batch-size", "4"])
        .args(["--learning-rate", "0.02", "--threads", "1", "--log-json", &json])
        .args(more)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while fs::read_to_string(&json).map_or(0, |t| t.lines().count()) < 5 {
        assert!(started.elapsed() < Duration::from_secs(60), "the run got going");
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let code = child.wait().unwrap().code();
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    let mut resumed = more.to_vec();
    resumed.push("--resume");
    let ran = place.train("cut", &resumed);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(tensors(&place.path("whole")), tensors(&out));
}

/// GPT-3 by its shape alone: the arithmetic of the paper of LoRA.
#[test]
fn gpt3_is_planned_without_weights() {
    let plan = |model: &str| -> Value {
        let args = ["--preset", "paper", "--batch-size", "1", "--max-seq-len", "2048", "--json"];
        serde_json::from_str(&lowrank_ok(&[&["plan", "--model", model], &args[..]].concat()).out).unwrap()
    };
    let (layers, d) = (96u64, 12288u64);
    let block = 12 * d * d + 13 * d;
    let parameters = (50257 + 2048) * d + layers * block + 2 * d;
    // r 4 on q and v: A of 4 x d and B of d x 4.
    let trainable = layers * 2 * (4 * d + 4 * d);
    let large = plan("gpt3:175b");
    assert_eq!(large["base_parameters"], parameters);
    assert_eq!(large["full"]["weight_bytes"], 2 * parameters);
    assert_eq!(large["full"]["total_bytes"], 14 * parameters);
    assert_eq!(large["lora"]["trainable_parameters"], trainable);
    assert_eq!(large["lora"]["total_bytes"], 2 * parameters + 16 * trainable);
    assert_eq!(large["lora"]["checkpoint_bytes"], 4 * trainable);
    assert!(large["activation_bytes"].as_u64().unwrap() > 4 * 2048 * d * layers);
    // Every name in the paper's table is the number of parameters, near enough.
    for (name, millions) in [
        ("125m", 125.0),
        ("350m", 350.0),
        ("760m", 760.0),
        ("1.3b", 1300.0),
        ("2.7b", 2700.0),
        ("6.7b", 6700.0),
        ("13b", 13000.0),
        ("175b", 175000.0),
    ] {
        let model = format!("gpt3:{name}");
        let count = plan(&model)["base_parameters"].as_f64().unwrap() / 1e6;
        assert!((count / millions - 1.0).abs() < 0.03, "{name}: {count} million");
    }
}

/// A folder with a configuration only is planned as the model itself.
#[test]
fn a_configuration_alone_is_planned() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("gpt3_banded");
    std::fs::copy(model.join("config.json"), dir.path().join("config.json")).unwrap();
    let plan = |model: &Path| -> Value {
        let args = ["plan", "--model", model.to_str().unwrap(), "--batch-size", "2", "--json"];
        serde_json::from_str(&lowrank_ok(&args).out).unwrap()
    };
    let (alone, whole) = (plan(dir.path()), plan(&model));
    assert_eq!(alone, whole);
    let table = lowrank_ok(&["plan", "--model", dir.path().to_str().unwrap()]).out;
    assert!(table.contains("full fine-tuning") && table.contains("checkpoint"), "{table}");

    let refused = |model: &str, says: &str| {
        let ran = lowrank(&["plan", "--model", model]);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains(says), "{}", ran.err);
    };
    refused("gpt3:1t", "125m, 350m");
    for (change, says) in [
        (json!({"n_layer": 1_000_000_000u64}), "n_layer: is 1000000000; expected a whole number"),
        (json!({"n_embd": "wide"}), "n_embd"),
        (json!({"window_size": null}), "window_size"),
        (json!({"model_type": "gpt5"}), "choose one of bert"),
    ] {
        let text = std::fs::read_to_string(model.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        refused(dir.path().to_str().unwrap(), says);
    }
}

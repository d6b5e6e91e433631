//! What users of Trainer and TRL look for: their names of options, held-out shares, early stopping, the best adapter at the
//! end, several checkpoints, and longer runs.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{lowrank, lowrank_ok, tiny_data, tiny_model};
use lowrank::{ALIASES, TrainOptions};
use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
    model: String,
    data: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (model, data) = (tiny_model(dir.path()), dir.path().join("train.jsonl"));
        tiny_data(&data, 30);
        Self { model, data: data.to_str().unwrap().to_owned(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let base = [
            "train",
            "--model",
            &self.model,
            "--data",
            &self.data,
            "--out",
            out,
            "--threads",
            "1",
            "--r",
            "2",
        ];
        [&base[..], more].concat()
    }

    fn train(&self, name: &str, more: &[&str]) -> String {
        let out = self.path(name);
        lowrank_ok(&self.args(out.to_str().unwrap(), more)).err
    }

    fn adapter(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name).join("adapter_model.safetensors")).unwrap()
    }

    fn log(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(name).join("log.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn evaluations(log: &[Value]) -> Vec<(u64, f64)> {
    let of = |record: &Value| Some((record["step"].as_u64()?, record["eval_loss"].as_f64()?));
    log.iter().filter_map(of).collect()
}

#[test]
fn the_names_of_other_trainers_are_the_same_options() {
    let place = Place::new();
    let own = ["--learning-rate", "3e-3", "--batch-size", "4", "--epochs", "1", "--max-seq-len", "60"];
    let theirs = [
        "--lr",
        "3e-3",
        "--per-device-train-batch-size",
        "4",
        "--num-train-epochs",
        "1",
        "--max-length",
        "60",
    ];
    place.train("own", &own);
    place.train("theirs", &theirs);
    assert_eq!(place.adapter("own"), place.adapter("theirs"));
    // Every alias is an option, and names one.
    let mut seen = std::collections::HashSet::new();
    for (name, aliases) in ALIASES {
        assert!(TrainOptions::FIELDS.iter().any(|field| field.name == *name), "{name}");
        for alias in *aliases {
            assert!(!TrainOptions::FIELDS.iter().any(|field| field.name == *alias), "{alias}");
            assert!(seen.insert(alias), "{alias} names two options");
        }
    }
    // In a TOML file too, and not both.
    let table = |text: &str| TrainOptions::from_table(text.parse().unwrap());
    let options = table("num-train-epochs = 2\nlr = 0.5\nlora_target_modules = \"q_proj\"").unwrap();
    assert_eq!((options.epochs, options.learning_rate), (2.0, Some(0.5)));
    let error = table("num_train_epochs = 2\nepochs = 3.0").unwrap_err().to_string();
    assert!(error.contains("epochs") && error.contains("twice"), "{error}");
}

#[test]
fn lists_may_have_spaces() {
    let place = Place::new();
    let modules = |name: &str| {
        let config = fs::read_to_string(place.path(name).join("adapter_config.json")).unwrap();
        serde_json::from_str::<Value>(&config).unwrap()["target_modules"].clone()
    };
    place.train("spaces", &["--max-steps", "1", "--target-modules", "q_proj", "v_proj"]);
    place.train("commas", &["--max-steps", "1", "--target-modules", "q_proj,v_proj"]);
    assert_eq!(modules("spaces"), modules("commas"));
    assert_eq!(modules("commas").as_array().unwrap().len(), 2);
}

/// A decoder's defaults: all linear layers, and a rate by its width.
#[test]
fn defaults_of_decoders_and_presets() {
    let place = Place::new();
    let config = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(place.path(name).join("adapter_config.json")).unwrap())
            .unwrap()
    };
    let rate = |name: &str| {
        let card = fs::read_to_string(place.path(name).join("README.md")).unwrap();
        let row = card.lines().find(|line| line.starts_with("| learning_rate |")).unwrap().to_owned();
        row.split('|').nth(2).unwrap().trim().parse::<f64>().unwrap()
    };
    let steps = ["--max-steps", "1"];
    let said = place.train("plain", &steps);
    assert_eq!(config("plain")["target_modules"], "all-linear");
    assert!(said.contains("14 layers adapted"), "{said}");
    // 5e-4 * (2000 / 64)^0.781
    assert_eq!(rate("plain"), 7.4e-3);
    assert!(said.contains("learning rate 7.4e-3"), "{said}");
    place.train("peft", &[&steps[..], &["--preset", "peft"]].concat());
    assert_eq!(config("peft")["target_modules"].as_array().unwrap().len(), 2);
    assert_eq!(rate("peft"), 2e-4);
    let base =
        ["train", "--model", &place.model, "--data", &place.data, "--threads", "1", "--preset", "paper"];
    let out = place.path("paper");
    lowrank_ok(
        &[&base[..], &["--max-steps", "1", "--lora-alpha", "7", "--out", out.to_str().unwrap()]].concat(),
    );
    let paper = config("paper");
    assert_eq!((&paper["r"], &paper["lora_dropout"]), (&4.into(), &0.1.into()));
    assert_eq!(paper["lora_alpha"].as_f64(), Some(7.0), "what is given is kept");
    // Another method has PEFT's modules and the flat rate.
    place.train("vera", &[&steps[..], &["--method", "vera"]].concat());
    assert_eq!(rate("vera"), 2e-4);
}

#[test]
fn a_share_is_held_out_and_prompts_stay_together() {
    let place = Place::new();
    let said = place.train("split", &["--max-steps", "2", "--eval-split", "0.2"]);
    let count = |what: &str| -> usize {
        let line = said.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{said}"));
        line.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let (train, eval) = (count("train: "), count("eval: "));
    assert_eq!(train + eval, 30, "{said}");
    assert!((6..=12).contains(&eval), "{said}");
    assert_eq!(evaluations(&place.log("split")).len(), 1);
    // The same seed holds out the same, and resuming does too.
    place.train("again", &["--max-steps", "2", "--eval-split", "0.2"]);
    assert_eq!(place.adapter("split"), place.adapter("again"));
    let one = place.path("one.jsonl");
    tiny_data(&one, 1);
    let out = place.path("none");
    let args =
        ["train", "--model", &place.model, "--data", one.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let ran = lowrank(&[&args[..], &["--eval-split", "0.5"]].concat());
    assert!(ran.code == 2 && ran.err.contains("--eval-split"), "{}", ran.err);
    let ran = lowrank(&[&args[..], &["--eval-split", "0.5", "--eval-data", &place.data]].concat());
    assert!(ran.code == 2 && ran.err.contains("not both"), "{}", ran.err);
}

#[test]
fn training_stops_early_and_writes_the_best() {
    let place = Place::new();
    let eval = place.path("eval.jsonl");
    // Other answers to the same prompts: the better the training data are learned, the worse these.
    let text = fs::read_to_string(&place.data).unwrap();
    fs::write(&eval, text.replace("\"completion\":\" ", "\"completion\":\" zz")).unwrap();
    let more = [
        "--eval-data",
        eval.to_str().unwrap(),
        "--eval-steps",
        "2",
        "--max-steps",
        "60",
        "--learning-rate",
        "0.02",
        "--batch-size",
        "8",
    ];
    let said = place.train("whole", &more);
    let all = evaluations(&place.log("whole"));
    let best = all.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(best.0 < 40 && all.last().unwrap().1 > 1.05 * best.1, "{all:?}");
    assert!(said.contains("being memorised") && said.contains(&format!("at step {}", best.0)), "{said}");

    let said = place.train("early", &[&more[..], &["--early-stopping-patience", "3"]].concat());
    let seen = evaluations(&place.log("early"));
    assert!(said.contains("stopped early"), "{said}");
    // The patience of three evaluations is over at the first that follows three in a row that were no better.
    let mut lowest = f64::INFINITY;
    let mut worse = 0;
    for (i, (_, loss)) in seen.iter().enumerate() {
        worse = if *loss < lowest { 0 } else { worse + 1 };
        lowest = lowest.min(*loss);
        assert!(worse < 3 || i + 1 == seen.len(), "{seen:?}");
    }
    assert_eq!(worse, 3);
    assert_eq!(seen[..], all[..seen.len()]);
    let best = seen.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!(said.contains(&format!("the adapter is that of step {}", best.0)), "{said}");
    let kept = fs::read(place.path("early/checkpoints/best/adapter_model.safetensors")).unwrap();
    assert_eq!(place.adapter("early"), kept);
    // A run that stopped early stays so.
    let said = place.train("early", &[&more[..], &["--early-stopping-patience", "3", "--resume"]].concat());
    assert!(said.contains("stopped early"), "{said}");

    place.train("best", &[&more[..], &["--load-best-model-at-end"]].concat());
    let best = fs::read(place.path("best/checkpoints/best/adapter_model.safetensors")).unwrap();
    assert_eq!(place.adapter("best"), best);
    assert_ne!(place.adapter("whole"), best);
    for flag in [&["--load-best-model-at-end"][..], &["--early-stopping-patience", "2"]] {
        let out = place.path("x");
        let ran = lowrank(&place.args(out.to_str().unwrap(), flag));
        assert!(ran.code == 2 && ran.err.contains("--eval-data"), "{}", ran.err);
    }
}

#[test]
fn so_many_checkpoints_are_kept() {
    let place = Place::new();
    place.train("run", &["--max-steps", "11", "--save-steps", "2", "--save-total-limit", "3"]);
    let folder = place.path("run/checkpoints");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["last", "step-10", "step-8"]);
    // Each is an adapter, and that of its step.
    place.train("ten", &["--max-steps", "11", "--save-steps", "10", "--save-total-limit", "2"]);
    let file = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).unwrap();
    assert_eq!(file(&folder.join("step-10")), file(&place.path("ten/checkpoints/step-10")));
    lowrank_ok(&[
        "eval",
        "--model",
        &place.model,
        "--data",
        &place.data,
        "--adapter",
        folder.join("step-8").to_str().unwrap(),
    ]);
}

#[test]
fn logs_may_be_of_several_steps() {
    let place = Place::new();
    place.train("each", &["--max-steps", "10"]);
    place.train("some", &["--max-steps", "10", "--logging-steps", "4"]);
    let (each, some) = (place.log("each"), place.log("some"));
    let steps: Vec<u64> = some.iter().map(|record| record["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 8, 10]);
    let mean = |range: std::ops::Range<usize>| {
        let n = range.len() as f64;
        each[range].iter().map(|record| record["loss"].as_f64().unwrap()).sum::<f64>() / n
    };
    for (record, range) in some.iter().zip([0..4, 4..8, 8..10]) {
        assert!((record["loss"].as_f64().unwrap() - mean(range)).abs() < 1e-9);
    }
    assert_eq!(place.adapter("each"), place.adapter("some"));
}

/// A run that is over goes on for longer; its numbers are those of a run that was cut off at that point.
#[test]
fn a_finished_run_goes_on() {
    let place = Place::new();
    let more = ["--lr-scheduler", "constant"];
    place.train("short", &[&more[..], &["--max-steps", "6"]].concat());
    place.train("short", &[&more[..], &["--max-steps", "10", "--resume"]].concat());
    place.train("long", &[&more[..], &["--max-steps", "10"]].concat());
    assert_eq!(place.adapter("short"), place.adapter("long"));
    // Other options are still those of the run.
    let out = place.path("short");
    let args =
        place.args(out.to_str().unwrap(), &["--max-steps", "12", "--resume", "--lr-scheduler", "linear"]);
    let ran = lowrank(&args);
    assert!(ran.code != 0 && ran.err.contains("lr-scheduler"), "{}", ran.err);
}

#[test]
fn adams_settings_count() {
    let place = Place::new();
    let steps = ["--max-steps", "3"];
    place.train("plain", &steps);
    place.train(
        "same",
        &[&steps[..], &["--adam-beta1", "0.9", "--adam-beta2", "0.999", "--adam-epsilon", "1e-8"]].concat(),
    );
    assert_eq!(place.adapter("plain"), place.adapter("same"));
    for (name, value) in [("--adam-beta1", "0.5"), ("--adam-beta2", "0.9"), ("--adam-epsilon", "1e-3")] {
        place.train(&name[2..], &[&steps[..], &[name, value]].concat());
        assert_ne!(place.adapter("plain"), place.adapter(&name[2..]), "{name}");
    }
}

#[test]
fn what_hardly_learns_says_so() {
    let place = Place::new();
    let said = place.train("flat", &["--max-steps", "24", "--learning-rate", "1e-9"]);
    assert!(said.contains("hardly anything was learned") && said.contains("--learning-rate"), "{said}");
    let said = place.train("well", &["--max-steps", "24", "--learning-rate", "0.01"]);
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn shells_and_manuals() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = lowrank_ok(&["completions", shell]).out;
        assert!(script.contains("learning-rate"), "{shell}");
    }
    let page = lowrank_ok(&["man"]).out;
    assert!(page.contains(".TH lowrank") && page.contains("Exit codes"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    lowrank_ok(&["man", "--out", folder.path().to_str().unwrap()]);
    let page = fs::read_to_string(folder.path().join("lowrank-train.1")).unwrap();
    assert!(page.contains("target\\-modules"), "{page}");
}

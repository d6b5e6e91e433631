//! Runs on preferences by the command: what it writes and logs, resuming, forecasts and evaluation.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        common::tiny_model(place.dir.path());
        let pair = |i: usize| {
            let (chosen, rejected) = ("good ".repeat(1 + i % 3), "bad ".repeat(1 + i % 2));
            format!("{{\"prompt\":\"is it {i}? \",\"chosen\":\"{chosen}\",\"rejected\":\"{rejected}\"}}\n")
        };
        let single = |i: usize| {
            let (text, label) = if i.is_multiple_of(2) { ("good", true) } else { ("bad", false) };
            format!("{{\"prompt\":\"is it {i}? \",\"completion\":\"{text}\",\"label\":{label}}}\n")
        };
        std::fs::write(place.path("pairs.jsonl"), (0..12).map(pair).collect::<String>()).unwrap();
        std::fs::write(place.path("single.jsonl"), (0..12).map(single).collect::<String>()).unwrap();
        std::fs::write(
            place.path("texts.jsonl"),
            "{\"text\":\"good\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n",
        )
        .unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &str) -> Output {
        let args = args.split_whitespace().map(|arg| match arg.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => arg.to_owned(),
        });
        Command::new(env!("CARGO_BIN_EXE_lowrank")).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    fn ok(&self, args: &str) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn fails(&self, args: &str, words: &[&str]) {
        let out = self.run(args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{args}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{args}: {word:?} is not in {text}"));
    }
}

fn log(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const DPO: &str = "train --model @model --data @pairs.jsonl --task preference --batch-size 4 --learning-rate 1e-3 --threads 1";

#[test]
fn dpo_learns_and_a_resumed_run_ends_as_the_whole_one() {
    let place = Place::new();
    place.ok(&format!("{DPO} --eval-split 0.2 --epochs 12 --out @whole"));
    let steps: Vec<Value> =
        log(&place.path("whole")).into_iter().filter(|r| r.get("loss").is_some()).collect();
    let first = &steps[0];
    assert!((first["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{first}");
    assert_eq!(first["rewards/margins"], 0.0);
    let last = steps.last().unwrap();
    assert!(last["rewards/margins"].as_f64().unwrap() > 0.01, "{last}");
    let eval: Vec<Value> =
        log(&place.path("whole")).into_iter().filter(|r| r.get("eval_loss").is_some()).collect();
    assert!(eval.last().unwrap()["eval_rewards/accuracies"].as_f64().unwrap() > 0.5, "{eval:?}");
    assert!(!place.path("whole/task.json").exists(), "the adapter is one of a language model");

    place.ok(&format!("{DPO} --eval-split 0.2 --epochs 6 --out @parts"));
    let kept = std::fs::read(place.path("parts/reference_logps.safetensors")).unwrap();
    place.ok(&format!("{DPO} --eval-split 0.2 --epochs 12 --out @parts --resume"));
    assert_eq!(std::fs::read(place.path("parts/reference_logps.safetensors")).unwrap(), kept);
    place.ok(&format!("{DPO} --eval-split 0.2 --epochs 6 --lr-scheduler constant --out @constant"));
    place.ok(&format!("{DPO} --eval-split 0.2 --epochs 12 --lr-scheduler constant --out @constant --resume"));
    place.ok(&format!("{DPO} --eval-split 0.2 --epochs 12 --lr-scheduler constant --out @once"));
    let adapter = |name: &str| std::fs::read(place.path(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("constant"), adapter("once"));

    // The adapter is read as any other, and compared with the base model.
    let text = place.ok(
        "eval --model @model --adapter @whole --data @pairs.jsonl --task preference --json --threads 1 --batch-size 3",
    );
    let eval: Value = serde_json::from_str(&text).unwrap();
    assert!(eval["rewards/margins"].as_f64().unwrap() > 0.01, "{eval}");
    place.ok("generate --model @model --adapter @whole --prompt good --max-new-tokens 2");
    let text = place.ok(
        "eval --model @model --adapter @whole --data @pairs.jsonl --task preference --json --threads 1 --ref-adapter @whole",
    );
    let eval: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(eval["rewards/margins"], 0.0, "against itself: {eval}");
}

#[test]
fn the_reference_is_the_adapter_that_training_starts_from() {
    let place = Place::new();
    place.ok(&format!("{DPO} --epochs 6 --out @first"));
    for (option, same) in [("", true), ("--ref-adapter none", false), ("--ref-adapter @first", true)] {
        place.ok(&format!("{DPO} --epochs 1 --init-adapter @first --out @second --force {option}"));
        let margin = log(&place.path("second"))[0]["rewards/margins"].as_f64().unwrap();
        assert_eq!(margin == 0.0, same, "{option}: {margin}");
    }
}

#[test]
fn kto_orpo_and_rewards_learn() {
    let place = Place::new();
    let losses =
        |dir: &str| -> Vec<f64> { log(&place.path(dir)).iter().filter_map(|r| r["loss"].as_f64()).collect() };
    let kto = DPO.replace("pairs", "single").replace("preference", "kto");
    place.ok(&format!("{kto} --epochs 12 --out @kto"));
    let orpo = format!("{DPO} --loss-type orpo,sft --loss-weights 1,0.5 --epochs 12 --out @orpo");
    place.ok(&orpo);
    let reward = DPO.replace("preference", "reward");
    place.ok(&format!("{reward} --epochs 12 --out @reward"));
    for dir in ["kto", "orpo", "reward"] {
        let losses = losses(dir);
        assert!(losses.last().unwrap() < &(0.98 * losses[0]), "{dir}: {losses:?}");
        assert!(!place.path(dir).join("reference_logps.safetensors").exists() || dir == "kto");
    }
    let task: Value =
        serde_json::from_slice(&std::fs::read(place.path("reward/task.json")).unwrap()).unwrap();
    assert_eq!(task["task"], "reward");
    let text = place.ok("eval --model @model --adapter @reward --data @pairs.jsonl --json");
    let eval: Value = serde_json::from_str(&text).unwrap();
    assert!(eval["accuracy"].as_f64().unwrap() > 0.9, "{eval}");
    let lines = place.ok("predict --model @model --adapter @reward --data @texts.jsonl");
    assert_eq!(lines.lines().filter(|line| line.contains("\"value\":")).count(), 2, "{lines}");
}

#[test]
fn forecasts_hold_and_wrong_options_are_refused() {
    let place = Place::new();
    let text = place.ok(&format!("{} --epochs 1 --json", DPO.replacen("train", "plan", 1)));
    let plan: Value = serde_json::from_str(&text).unwrap();
    place.ok(&format!("{DPO} --epochs 1 --out @run"));
    let peak = log(&place.path("run")).last().unwrap()["peak_rss_bytes"].as_u64();
    if let Some(peak) = peak {
        let planned = plan["peak_bytes"].as_u64().unwrap();
        assert!(planned + 5_000_000 > peak, "planned {planned}, was {peak}");
    }
    let cases: [(&str, &[&str]); 10] = [
        ("--loss-type robust --label-smoothing 0.5", &["below 0.5"]),
        ("--loss-type kto", &["--loss-type kto is for --task kto"]),
        ("--loss-type dop", &["dpo"]),
        ("--loss-type dpo,sft --loss-weights 1", &["1 numbers for 2 losses"]),
        ("--loss-type exo_pair", &["label", "above 0"]),
        ("--loss-type orpo --ref-adapter none", &["has none here"]),
        ("--ref-adapter nowhere", &["no such adapter"]),
        ("--beta 0", &["beta"]),
        ("--loss-on-prompt", &["is for"]),
        ("--rejected-column worse", &["\"worse\" is missing", "rejected"]),
    ];
    for (args, words) in cases {
        place.fails(&format!("{DPO} --out @refused {args}"), words);
    }
}

//! Runs that sample and reward completions, by the command: what they write and log, resuming, processes, forecasts, rewards of every
//! kind.

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
        let row = |i: usize| format!("{{\"prompt\":\"say {i}: \",\"answer\":{i},\"text\":[\"e\",\"ee\"]}}\n");
        std::fs::write(place.path("prompts.jsonl"), (0..8).map(row).collect::<String>()).unwrap();
        let talk = |i: usize| {
            let turns = format!("{{\"role\":\"user\",\"content\":\"say {i}\"}}");
            format!(
                "{{\"messages\":[{turns},{{\"role\":\"assistant\",\"content\":\"{i}\"}}],\"answer\":\"{i}\"}}\n"
            )
        };
        std::fs::write(place.path("talks.jsonl"), (0..4).map(talk).collect::<String>()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &str, more: &[&str]) -> Output {
        let args = args.split_whitespace().map(|arg| match arg.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => arg.to_owned(),
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        command.args(args).args(more).current_dir(self.dir.path()).output().unwrap()
    }

    fn ok(&self, args: &str, more: &[&str]) -> String {
        let out = self.run(args, more);
        assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn fails(&self, args: &str, more: &[&str], code: i32, words: &[&str]) {
        let out = self.run(args, more);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{args}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{args}: {word:?} is not in {text}"));
    }

    fn adapter(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name).join("adapter_model.safetensors")).unwrap()
    }
}

fn log(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The values of a key in the order of the log.
fn values(dir: &Path, key: &str) -> Vec<f64> {
    log(dir).iter().filter_map(|record| record[key].as_f64()).collect()
}

const GRPO: &str = "train --task grpo --model @model --data @prompts.jsonl --batch-size 16 --num-generations 8 \
                    --max-completion-length 6 --learning-rate 2e-2 --threads 1 --lr-scheduler constant";

/// The command with these options, in place of its own.
fn with(options: &str) -> String {
    let mut words: Vec<&str> = GRPO.split_whitespace().collect();
    for option in options.split_whitespace().filter(|word| word.starts_with("--")) {
        if let Some(at) = words.iter().position(|word| *word == option) {
            words.drain(at..at + 2);
        }
    }
    format!("{} {options}", words.join(" "))
}

#[test]
fn a_reward_rises() {
    let place = Place::new();
    place.ok(&format!("{GRPO} --epochs 10 --eval-split 0.25 --out @out"), &["--reward-funcs", "regex:e"]);
    let rewards = values(&place.path("out"), "reward");
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    let (first, last) = (mean(&rewards[..5]), mean(&rewards[rewards.len() - 5..]));
    assert!(last > first + 0.3, "{first} to {last}: {rewards:?}");
    let records = log(&place.path("out"));
    let step = records.iter().find(|record| record.get("loss").is_some()).unwrap();
    for key in [
        "reward_std",
        "rewards/regex/mean",
        "rewards/regex/std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "clip_ratio/region_mean",
        "sampling_s",
    ] {
        assert!(step[key].is_number(), "{key}: {step}");
    }
    let sample = records.iter().find(|record| record.get("sample_text").is_some()).unwrap();
    assert!(
        sample["sample_reward"].is_number() && sample["sample_prompt"].as_str().unwrap().starts_with("say ")
    );
    let eval = records.iter().rfind(|record| record.get("eval_loss").is_some()).unwrap();
    assert_eq!(eval["eval_loss"].as_f64().unwrap(), -eval["eval_reward"].as_f64().unwrap());
    assert!(eval["eval_reward"].as_f64().unwrap() > 0.5, "{eval}");
    assert!(!place.path("out/task.json").exists(), "the adapter is one of a language model");
    place.ok("generate --model @model --adapter @out --prompt say --max-new-tokens 2", &[]);
}

#[test]
fn runs_have_the_same_bits() {
    let place = Place::new();
    let more = ["--reward-funcs", "regex:[aeiou]", "--reward-funcs", "length:3", "--reward-weights", "1,0.5"];
    let run = format!(
        "{GRPO} --num-iterations 3 --beta 0.05 --loss-type grpo --max-steps 8 --lora-dropout 0.1 --temperature 0.9 --top-k 40"
    );
    place.ok(&format!("{run} --out @whole"), &more);
    place.ok(&format!("{run} --out @again"), &more);
    assert_eq!(place.adapter("whole"), place.adapter("again"));
    // Steps 4 and 5 learn from the completions of step 3, which the checkpoint has.
    place.ok(&format!("{} --out @parts", run.replace("--max-steps 8", "--max-steps 4")), &more);
    place.ok(&format!("{run} --out @parts --resume"), &more);
    assert_eq!(place.adapter("whole"), place.adapter("parts"));
    let without_times = |name: &str| -> Vec<Value> {
        let mut records = log(&place.path(name));
        for record in &mut records {
            let map = record.as_object_mut().unwrap();
            map.retain(|key, _| !key.ends_with("_s") && key != "peak_rss_bytes");
        }
        records
    };
    assert_eq!(without_times("whole"), without_times("parts"));
    let ratios = values(&place.path("whole"), "clip_ratio/region_mean");
    assert!(ratios[0] == 0.0 && ratios.iter().any(|ratio| *ratio > 0.0), "{ratios:?}");
    assert!(values(&place.path("whole"), "kl").iter().all(|kl| *kl >= 0.0));
    place.ok(&format!("{run} --out @shared --processes 2"), &more);
    assert_eq!(place.adapter("whole"), place.adapter("shared"));
    place.ok(&format!("{run} --out @other --seed 7"), &more);
    assert_ne!(place.adapter("whole"), place.adapter("other"));
}

#[test]
fn every_loss_runs() {
    let place = Place::new();
    let more = ["--reward-funcs", "regex:[aeiou]"];
    for option in [
        "--loss-type dr_grpo --scale-rewards none",
        "--loss-type bnpo --scale-rewards batch --batch-size 8 --gradient-accumulation-steps 2",
        "--loss-type rloo --beta 0.1 --num-iterations 2",
        "--importance-sampling-level sequence --num-iterations 2 --epsilon 0.003 --epsilon-high 0.004",
        "--mask-truncated-completions --max-completion-length 2",
        "--no-share-prefix --beta 0.1 --no-bias-correction-kl",
    ] {
        place.ok(&format!("{} --max-steps 4 --out @out --force", with(option)), &more);
        assert!(values(&place.path("out"), "loss").iter().all(|loss| loss.is_finite()), "{option}");
    }
}

#[cfg(unix)]
#[test]
fn rewards_of_every_kind() {
    let place = Place::new();
    std::fs::write(place.path("schema.json"), "{\"type\": \"integer\"}").unwrap();
    let script = "while read -r line; do case \"$line\" in *'\"completion\":\"\"'*) echo null;; *) echo 0.25;; esac; done";
    std::fs::write(place.path("reward.sh"), script).unwrap();
    let pairs =
        |i: usize| format!("{{\"prompt\":\"say {i}: \",\"chosen\":\"eee\",\"rejected\":\"xx{i}\"}}\n");
    std::fs::write(place.path("pairs.jsonl"), (0..8).map(pairs).collect::<String>()).unwrap();
    place.ok("train --task reward --model @model --data @pairs.jsonl --epochs 20 --learning-rate 1e-2 --out @judge --threads 1", &[]);
    let command = format!("command:sh {}", place.path("reward.sh").display());
    let judge = format!("adapter:{}", place.path("judge").display());
    let more = [
        "--reward-funcs",
        "exact_match:text",
        "--reward-funcs",
        "numeric:answer",
        "--reward-funcs",
        "json_schema:schema.json",
        "--reward-funcs",
        &command,
        "--reward-funcs",
        &judge,
        "--reward-funcs",
        "regex:a",
        "--reward-funcs",
        "regex:b",
    ];
    place.ok(&format!("{GRPO} --max-steps 2 --out @out"), &more);
    let record = log(&place.path("out")).into_iter().find(|record| record.get("loss").is_some()).unwrap();
    for name in ["exact_match", "numeric", "json_schema", "command", "adapter", "regex", "regex_2"] {
        assert!(record[format!("rewards/{name}/mean")].is_number(), "{name}: {record}");
    }
    assert_eq!(record["rewards/command/mean"], 0.25);

    // The reward of the model is what it predicts.
    let sample = log(&place.path("out")).into_iter().find(|r| r.get("sample_text").is_some()).unwrap();
    place.ok(&format!("{GRPO} --max-steps 1 --out @judged"), &["--reward-funcs", &judge]);
    let judged = log(&place.path("judged")).into_iter().find(|r| r.get("sample_text").is_some()).unwrap();
    assert_eq!(judged["sample_text"], sample["sample_text"]);
    let row = serde_json::json!({"prompt": judged["sample_prompt"], "completion": judged["sample_text"]});
    std::fs::write(place.path("one.jsonl"), format!("{row}\n")).unwrap();
    let said = place.ok("predict --model @model --adapter @judge --data @one.jsonl --threads 1", &[]);
    let said: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let (have, want) = (judged["sample_reward"].as_f64().unwrap(), said["value"].as_f64().unwrap());
    assert!((have - want).abs() < 1e-4, "{have} for {want}");

    let talks = GRPO.replace("prompts.jsonl", "talks.jsonl");
    place.ok(
        &format!("{talks} --max-steps 1 --out @talks"),
        &["--reward-funcs", "numeric:answer", "--reward-funcs", &judge],
    );

    // What goes wrong is said, with the exit code of a failure or of wrong input.
    let fails = |funcs: &str, code: i32, words: &[&str]| {
        place.fails(
            &format!("{GRPO} --max-steps 1 --out @bad --force"),
            &["--reward-funcs", funcs],
            code,
            words,
        );
    };
    fails("command:sh -c 'exit 3'", 1, &["reward command", "ended (exit status: 3)", "twice"]);
    fails("command:sh -c 'echo good; sleep 1'", 1, &["answered \"good\""]);
    fails(
        "exact_match:missing",
        2,
        &["prompts.jsonl:1", "\"missing\" is missing; there is prompt, answer, text"],
    );
    fails("numeric:text", 2, &["prompts.jsonl:1", "which has no number"]);
    fails("judge:x", 2, &["\"judge:x\" is not a reward; there is exact_match:COLUMN"]);
    fails("regex:(", 2, &["not a valid pattern"]);
    fails("length:none", 2, &["no number of tokens"]);
    fails("adapter:out", 2, &["was trained for the task lm, not reward"]);
}

#[test]
fn forecasts_hold_and_wrong_options_are_refused() {
    let place = Place::new();
    let more = ["--reward-funcs", "regex:[aeiou]"];
    let run = with("--num-iterations 2 --beta 0.1 --max-completion-length 40 --max-steps 4");
    let text = place.ok(&format!("{} --json", run.replacen("train", "plan", 1)), &more);
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(plan["steps_per_epoch"], 8);
    place.ok(&format!("{run} --out @out"), &more);
    let peak = values(&place.path("out"), "peak_rss_bytes").into_iter().fold(0.0, f64::max);
    if peak > 0.0 {
        let planned = plan["peak_bytes"].as_f64().unwrap();
        assert!(planned > 0.9 * peak && planned < 3.0 * peak, "planned {planned}, had {peak}");
    }

    place.fails(GRPO, &["--out", "x"], 2, &["needs a reward", "--reward-funcs"]);
    for (option, words) in [
        ("--num-generations 7", &["16 completions", "multiple of --num-generations 7"][..]),
        ("--loss-type sigmoid", &["is for --task preference"]),
        ("--loss-type grpo,dapo", &["is one loss"]),
        ("--reward-weights 1,2", &["2 numbers for 1 rewards"]),
        ("--loss-type rloo --scale-rewards group", &["none or batch"]),
        ("--ref-adapter none", &["--ref-adapter is for losses with a reference"]),
        ("--loss-on-prompt", &["--loss-on-prompt"]),
        ("--temperature 0", &["--temperature"]),
    ] {
        place.fails(&format!("{} --out @bad", with(option)), &more, 2, words);
    }
    let lm = GRPO.replace("--task grpo", "--task lm");
    place.fails(&format!("{lm} --out @bad"), &more, 2, &["--reward-funcs is for --task grpo"]);
    place.fails(
        "eval --task grpo --model @model --data @prompts.jsonl",
        &[],
        2,
        &["has a reward in place of a loss"],
    );
}

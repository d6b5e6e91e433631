//! `docs/log.md` names every key of `log.jsonl`: runs of every task, and the records themselves.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{lowrank_ok, tiny_bert, tiny_data, tiny_model};
use serde_json::{Map, Value};

/// The keys in the first column of the tables of `docs/log.md`.
fn documented() -> BTreeSet<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/log.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    rows.flat_map(|cell| cell.trim_end_matches('`').split("`, `").map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The records of a run.
fn run(dir: &Path, task: &str, model: &str, name: &str, rows: &str) -> Vec<Map<String, Value>> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (data, out) = (path(name), path(&format!("{task}-{name}-out")));
    fs::write(&data, rows).unwrap();
    let args = [
        "train",
        "--task",
        task,
        "--model",
        model,
        "--data",
        &data,
        "--eval-data",
        &data,
        "--out",
        &out,
        "--max-steps",
        "2",
        "--batch-size",
        "4",
        "--threads",
        "1",
    ];
    let samples = ["--sample-prompts", "Hello", "--sample-max-new-tokens", "3"];
    let more: &[&str] = match task {
        "lm" => &samples,
        "preference" => &["--loss-type", "sigmoid,sft"],
        "grpo" => &["--reward-funcs", "regex:e", "--num-generations", "4", "--beta", "0.1"],
        _ => &[],
    };
    lowrank_ok(&[&args[..], more].concat());
    let log = fs::read_to_string(Path::new(&out).join("log.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_key_is_on_the_page() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (llama, bert) = (tiny_model(dir), tiny_bert(dir));
    tiny_data(&dir.join("lm.jsonl"), 8);
    let lm = fs::read_to_string(dir.join("lm.jsonl")).unwrap();
    let rows = |row: &dyn Fn(usize) -> String| (0..8).map(|i| row(i) + "\n").collect::<String>();
    let text = |i: usize| ["the film was good", "the plot was bad", "a fine story"][i % 3];
    let classes = |n: usize| rows(&|i| format!(r#"{{"text": "{}", "label": "{}"}}"#, text(i), i % n));
    let sets = rows(&|i| {
        format!(r#"{{"text": "{}", "labels": {}}}"#, text(i), ["[\"a\"]", "[\"a\", \"b\"]"][i % 2])
    });
    let numbers = rows(&|i| format!(r#"{{"text": "{}", "label": {i}.5}}"#, text(i)));
    let tags = |tag: &str| {
        rows(&|i| format!(r#"{{"tokens": ["the", "film"], "tags": ["O", "{}"]}}"#, ["O", tag][i % 2]))
    };
    let pairs = rows(&|i| format!(r#"{{"text": "{}", "text_pair": "{}"}}"#, text(i), text(i + 1)));
    let chosen = rows(&|i| {
        let (good, bad) = (text(i), text(i + 1));
        format!(r#"{{"prompt": "it {i}: ", "chosen": "{good}", "rejected": "{bad}"}}"#)
    });
    let known = documented();
    let mut written = BTreeSet::new();
    for (task, model, name, data) in [
        ("lm", &llama, "lm-rows.jsonl", lm),
        ("classification", &bert, "two.jsonl", classes(2)),
        ("classification", &bert, "three.jsonl", classes(3)),
        ("multi-label-classification", &bert, "sets.jsonl", sets),
        ("regression", &bert, "numbers.jsonl", numbers),
        ("token-classification", &bert, "bio.jsonl", tags("B-X")),
        ("token-classification", &bert, "words.jsonl", tags("X")),
        ("mlm", &bert, "texts.jsonl", rows(&|i| format!(r#"{{"text": "{}"}}"#, text(i)))),
        ("embedding", &bert, "pairs.jsonl", pairs),
        ("preference", &llama, "chosen.jsonl", chosen.clone()),
        ("kto", &llama, "rated.jsonl", chosen.clone()),
        ("grpo", &llama, "prompts.jsonl", chosen.clone()),
        ("reward", &llama, "better.jsonl", chosen),
    ] {
        let records = run(dir, task, model, name, &data);
        assert!(records.iter().any(|record| record.contains_key("eval_loss")), "{task}: no evaluation");
        // A reward of task grpo has a name.
        let keys = records.iter().flat_map(Map::keys).map(|key| key.replace("/regex/", "/NAME/"));
        for key in keys {
            assert!(known.contains(&key), "docs/log.md does not name `{key}`, which a run of {task} writes");
            written.insert(key);
        }
    }
    let missing: Vec<&String> = known.difference(&written).collect();
    assert!(missing.is_empty(), "docs/log.md names {missing:?}, which no run here writes");
}

//! Tasks other than language modelling from the command line, on a tiny BERT with a tokenizer of words.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{WORDS, lowrank, lowrank_ok, overriding, tiny_bert};
use serde_json::{Value, json};

struct Case {
    dir: tempfile::TempDir,
    model: String,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_bert(dir.path());
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn train(&self, task: &str, data: &str, more: &[&str]) -> String {
        let out = self.path("adapter");
        let args = ["train", "--task", task, "--model", &self.model, "--data", data, "--out", &out];
        let usual =
            ["--learning-rate", "5e-3", "--epochs", "30", "--batch-size", "6", "--force", "--threads", "1"];
        lowrank_ok(&overriding(&[&args, &usual[..]].concat(), more));
        out
    }

    fn eval(&self, adapter: &str, data: &str) -> Value {
        let args = ["eval", "--model", &self.model, "--adapter", adapter, "--data", data, "--json"];
        serde_json::from_str(&lowrank_ok(&args).out).unwrap()
    }

    /// The adapter merged in f32, its outputs those of before.
    fn merge(&self, adapter: &str) -> String {
        let out = self.path("merged");
        let args = ["merge", "--model", &self.model, "--adapter", adapter, "--out", &out, "--dtype", "f32"];
        let ran = lowrank_ok(
            &[&args, &["--probe", "the film was good", "--tolerance", "1e-4", "--force"][..]].concat(),
        );
        assert!(ran.out.contains("outputs differ by at most"), "{}", ran.out);
        out
    }

    fn refused(&self, args: &[&str], parts: &[&str]) {
        let ran = lowrank(args);
        assert_eq!(ran.code, 2, "{}", ran.err);
        for part in parts {
            assert!(ran.err.contains(part), "{part:?} in {}", ran.err);
        }
    }
}

/// GLUE's SST-2 form: a sentence and 1 where it is kind.
fn sentences(rows: usize) -> String {
    let mut text = "sentence\tlabel\n".to_owned();
    for i in 0..rows {
        let label = i % 2;
        let word = WORDS[if label == 1 { i / 2 % 3 } else { 3 + i / 2 % 3 }];
        let (thing, tail) = (WORDS[6 + i / 6 % 2], ["", " and very", " a story"][i % 3]);
        text.push_str(&format!("the {thing} was {word}{tail} \t{label}\n"));
    }
    text
}

#[test]
fn sentences_are_classified() {
    let case = Case::new();
    let data = case.write("train.tsv", &sentences(48));
    let adapter = case.train("classification", &data, &["--eval-data", &data]);
    let task: Value =
        serde_json::from_slice(&fs::read(PathBuf::from(&adapter).join("task.json")).unwrap()).unwrap();
    assert_eq!(task, json!({"task": "classification", "labels": ["0", "1"]}));
    let path = PathBuf::from(&adapter).join("adapter_config.json");
    let config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(config["modules_to_save"], json!(["classifier", "score"]));
    assert_eq!(config["task_type"], "SEQ_CLS");

    let result = case.eval(&adapter, &data);
    assert_eq!(result["accuracy"], 1.0, "{result}");
    assert_eq!(result["matthews_correlation"], 1.0, "{result}");
    // The last checkpoint says what it is for, too.
    let checkpoint = case.path("adapter/checkpoints/last");
    assert_eq!(case.eval(&checkpoint, &data)["accuracy"], 1.0);

    let texts =
        case.write("texts.jsonl", "{\"text\": \"the film was bad\"}\n{\"text\": \"the film was fine\"}\n");
    let args = ["predict", "--model", &case.model, "--adapter", &adapter, "--data", &texts];
    let lines: Vec<Value> =
        lowrank_ok(&args).out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!([&lines[0]["label"], &lines[1]["label"]], ["0", "1"]);
    let sum = lines[0]["scores"]["0"].as_f64().unwrap() + lines[0]["scores"]["1"].as_f64().unwrap();
    assert!((sum - 1.0).abs() < 1e-5);

    // Merged, the head comes along: the folder stands alone and is what transformers calls a classifier.
    let merged = case.merge(&adapter);
    let config: Value =
        serde_json::from_slice(&fs::read(PathBuf::from(&merged).join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({"0": "0", "1": "1"}));
    assert_eq!(config["label2id"], json!({"0": 0, "1": 1}));
    let args = ["--model", &merged, "--task", "classification", "--data"];
    let alone = lowrank_ok(&[&["eval"], &args[..], &[&data, "--json"]].concat()).out;
    assert_eq!(serde_json::from_str::<Value>(&alone).unwrap()["accuracy"], 1.0);
    let again = lowrank_ok(&[&["predict"], &args[..], &[&texts]].concat()).out;
    for (line, want) in again.lines().zip(&lines) {
        let line: Value = serde_json::from_str(line).unwrap();
        let (got, want) = (line["scores"]["1"].as_f64().unwrap(), want["scores"]["1"].as_f64().unwrap());
        assert!((got - want).abs() < 1e-5, "{got} for {want}");
    }

    // A run that goes on after its end has nothing left to do and keeps its head.
    let out = case.path("adapter");
    let again = ["train", "--task", "classification", "--model", &case.model, "--data", &data, "--out", &out];
    let usual =
        ["--learning-rate", "5e-3", "--epochs", "30", "--batch-size", "6", "--resume", "--threads", "1"];
    lowrank_ok(&[&again[..], &usual[..]].concat());
    assert_eq!(case.eval(&adapter, &data)["accuracy"], 1.0);

    let inspected = lowrank_ok(&["inspect", &adapter]).out;
    assert!(inspected.contains("classifier"), "{inspected}");
    let plan = lowrank_ok(&[&["plan"], &again[1..]].concat());
    assert!(plan.out.contains("trainable"), "{}", plan.out);
}

#[test]
fn pairs_and_numbers_are_learned() {
    let case = Case::new();
    let mut pairs = String::new();
    let mut scored = "text,text_pair,score\n".to_owned();
    for i in 0..36 {
        let (a, b) = (WORDS[i % 2], WORDS[i / 2 % 2]);
        let label = if a == b { "same" } else { "other" };
        pairs.push_str(&format!("{}\n", json!({"text": a, "text_pair": b, "label": label})));
        scored.push_str(&format!("{a} film,{b} plot,{}\n", if a == b { 4.5 } else { 0.5 }));
    }
    let data = case.write("pairs.jsonl", &pairs);
    let adapter =
        case.train("pair-classification", &data, &["--target-modules", "all-linear", "--epochs", "60"]);
    assert_eq!(case.eval(&adapter, &data)["accuracy"], 1.0);
    let data = case.write("scored.csv", &scored);
    let adapter = case.train("regression", &data, &["--target-modules", "all-linear", "--epochs", "60"]);
    case.merge(&adapter);
    let result = case.eval(&adapter, &data);
    assert!(result["pearson"].as_f64().unwrap() > 0.95, "{result}");
}

#[test]
fn words_are_tagged() {
    let case = Case::new();
    let mut text = "-DOCSTART- -X- O O\n\n".to_owned();
    for i in 0..30 {
        let (name, thing) = (WORDS[i % 6], WORDS[6 + i % 2]);
        text.push_str(&format!("the X O\n{name} X B-MOOD\n{thing} X O\nwas X O\nvery X O\n\n"));
    }
    let data = case.write("tags.conll", &text);
    let adapter = case.train("token-classification", &data, &[]);
    let result = case.eval(&adapter, &data);
    assert_eq!((&result["f1"], &result["accuracy"]), (&json!(1.0), &json!(1.0)), "{result}");
    let args = ["predict", "--model", &case.model, "--adapter", &adapter, "--data", &data];
    let out = lowrank_ok(&args).out;
    let first: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(first["tags"], json!(["O", "B-MOOD", "O", "O", "O"]));
    case.merge(&adapter);
}

#[test]
fn hidden_words_and_partners_are_found() {
    let case = Case::new();
    let mut texts = String::new();
    let mut pairs = String::new();
    for i in 0..24 {
        let word = WORDS[i % 6];
        texts.push_str(&format!("{}\n", json!({"text": format!("the {word} film was {word} and {word}")})));
        pairs.push_str(&format!("{}\n", json!({"anchor": word, "positive": WORDS[6 + i % 6]})));
    }
    let data = case.write("texts.jsonl", &texts);
    let before = case.train("mlm", &data, &["--max-steps", "1", "--learning-rate", "0"]);
    let loss = |result: &Value| result["loss"].as_f64().unwrap();
    let base = loss(&case.eval(&before, &data));
    let adapter = case.train("mlm", &data, &["--target-modules", "all-linear"]);
    let trained = loss(&case.eval(&adapter, &data));
    assert!(trained < 0.7 * base, "{base} -> {trained}");
    case.merge(&adapter);
    let data = case.write("pairs.jsonl", &pairs);
    let args = ["--batch-size", "6", "--no-shuffle", "--epochs", "60", "--target-modules", "all-linear"];
    let adapter = case.train("embedding", &data, &args);
    let args = [
        "eval",
        "--model",
        &case.model,
        "--adapter",
        &adapter,
        "--data",
        &data,
        "--batch-size",
        "6",
        "--json",
    ];
    let result: Value = serde_json::from_str(&lowrank_ok(&args).out).unwrap();
    assert!(result["accuracy"].as_f64().unwrap() > 0.9, "{result}");
    case.merge(&adapter);
}

/// Vectors of texts, with and without an adapter; pairs are compared with what the data say of them.
#[test]
fn texts_are_embedded() {
    let case = Case::new();
    let embed = |data: &str, more: &[&str]| -> Vec<Value> {
        let args = ["predict", "--task", "embedding", "--model", &case.model, "--data", data];
        let out = lowrank_ok(&[&args[..], more].concat()).out;
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let words = ["the film was good", "the plot", "a story and a story and a story"];
    let texts: String = words.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
    let texts = case.write("texts.jsonl", &texts);
    let alone = embed(&texts, &["--batch-size", "1"]);
    let together = embed(&texts, &["--batch-size", "8"]);
    for (a, b) in alone.iter().zip(&together) {
        let (a, b) = (numbers(&a["embedding"]), numbers(&b["embedding"]));
        assert_eq!(a.len(), 32);
        assert!((dot(&a, &a) - 1.0).abs() < 1e-5 && (dot(&a, &b) - 1.0).abs() < 1e-5);
    }
    let pairs = [(words[0], words[1], 1.0), (words[0], words[2], 3.0), (words[1], words[2], 2.0)];
    let mut table = "sentence1\tsentence2\tscore\n".to_owned();
    pairs.iter().for_each(|(a, b, score)| table.push_str(&format!("{a}\t{b}\t{score}\n")));
    let table = case.write("pairs.tsv", &table);
    let lines = embed(&table, &[]);
    let mut cosines = Vec::new();
    for (line, (i, j)) in lines.iter().zip([(0, 1), (0, 2), (1, 2)]) {
        let want = dot(&numbers(&alone[i]["embedding"]), &numbers(&alone[j]["embedding"]));
        cosines.push(line["cosine"].as_f64().unwrap());
        assert!((cosines[cosines.len() - 1] - want).abs() < 1e-5, "{line}");
        assert_eq!(numbers(&line["embedding_pair"]).len(), 32);
    }
    let args = ["eval", "--task", "embedding", "--model", &case.model, "--data", &table, "--json"];
    let result: Value = serde_json::from_str(&lowrank_ok(&args).out).unwrap();
    // Of three, Spearman's correlation is 1 - the squared differences of ranks over 4.
    let rank = |i: usize| cosines.iter().filter(|c| **c < cosines[i]).count() as f64;
    let squares: f64 = (0..3).map(|i| (rank(i) - (pairs[i].2 - 1.0)).powi(2)).sum();
    let spearman = result["spearman"].as_f64().unwrap();
    assert!((spearman - (1.0 - squares / 4.0)).abs() < 1e-9, "{result} for {cosines:?}");
    let args = ["predict", "--task", "mlm", "--model", &case.model, "--data", &texts];
    case.refused(&args, &["predict is for", "--task mlm"]);
}

#[test]
fn bad_labels_and_tasks_are_refused() {
    let case = Case::new();
    let data = case.write("train.tsv", &sentences(12));
    let adapter = case.train("classification", &data, &["--max-steps", "1"]);
    let other = case.write("other.tsv", "sentence\tlabel\nthe film was good\tyes\n");
    let eval = |adapter: &str, data: &str, more: &[&str], parts: &[&str]| {
        let args = ["eval", "--model", &case.model, "--adapter", adapter, "--data", data];
        case.refused(&[&args, more].concat(), parts);
    };
    eval(&adapter, &other, &[], &["other.tsv:2", "\"yes\"", "\"0\", \"1\""]);
    eval(&adapter, &data, &["--task", "regression"], &["trained for the task classification"]);
    eval(&adapter, &data, &["--labels", "no,yes"], &["trained for the labels"]);
    let empty = case.write("empty.tsv", "sentence\tlabel\nthe film was good\t\n");
    eval(&adapter, &empty, &[], &["empty.tsv:2", "label is missing"]);
    let none = case.write("none.csv", "text,number\nthe film,3\n");
    eval(&adapter, &none, &[], &["--label-column"]);
    let base = ["eval", "--model", &case.model, "--data", &data];
    case.refused(&[&base[..], &["--task", "classification"]].concat(), &["no labels", "--adapter"]);
    case.refused(
        &[&base[..], &["--task", "classification", "--labels", "0,1"]].concat(),
        &["has no classifier"],
    );
    case.refused(&[&base[..], &["--task", "sorting"]].concat(), &["sorting", "pair-classification"]);
    case.refused(&base, &["no language-model head"]);

    let out = case.path("new");
    let train = |task: &str, data: &str, more: &[&str], parts: &[&str]| {
        let args = ["train", "--task", task, "--model", &case.model, "--data", data, "--out", &out];
        case.refused(&[&args, more].concat(), parts);
    };
    let words = case.write("words.tsv", "text\tscore\na film\t3.5\na plot\tmany\n");
    train("regression", &words, &[], &["words.tsv:3", "\"many\" is not a number"]);
    let one = case.write("one.csv", "text,label\na film,good\na plot,good\n");
    train("classification", &one, &[], &["one label only"]);
    train("pair-classification", &one, &[], &["--pair-column"]);
    train("classification", &data, &["--modules-to-save", "pooller"], &["modules_to_save", "pooller"]);
    train("lm", &data, &["--text-column", "sentence"], &["no language-model head"]);
    train("classification", &data, &["--prompt-column", "sentence"], &["--text-column"]);
    let args = ["generate", "--model", &case.model, "--prompt", "the"];
    case.refused(&args, &["cannot generate"]);
    let gguf = case.path("merged.gguf");
    let merge = ["merge", "--model", &case.model, "--adapter", &adapter, "--out", &gguf];
    case.refused(&merge, &["GGUF has no place", "task classification"]);
    let folder = case.path("merged");
    let merge = ["merge", "--model", &case.model, "--adapter", &adapter, "--out", &folder, "--unmerge"];
    case.refused(&merge, &["trained whole"]);
}

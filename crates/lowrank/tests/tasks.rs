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

/// Texts of any number of classes: `good` by their words, `film` by what they speak of.
fn several_labels() -> Vec<(String, Vec<&'static str>)> {
    let row = |i: usize| {
        let (word, thing) = (WORDS[i % 6], WORDS[6 + i / 6 % 2]);
        let mut labels = Vec::new();
        labels.extend((thing == "film").then_some("film"));
        labels.extend((i % 6 < 3).then_some("good"));
        (format!("the {thing} was {word}"), labels)
    };
    (0..24).map(row).collect()
}

#[test]
fn texts_have_several_labels() {
    let case = Case::new();
    let rows = several_labels();
    let lines = |of: &dyn Fn(&[&str]) -> Value| -> String {
        rows.iter().map(|(text, set)| format!("{}\n", json!({"text": text, "labels": of(set)}))).collect()
    };
    let names = case.write("names.jsonl", &lines(&|set| json!(set)));
    let more = ["--target-modules", "all-linear", "--epochs", "40"];
    let adapter = case.train("multi-label-classification", &names, &more);
    let file = |folder: &str, name: &str| -> Value {
        serde_json::from_slice(&fs::read(PathBuf::from(folder).join(name)).unwrap()).unwrap()
    };
    let spec = json!({"task": "multi-label-classification", "labels": ["film", "good"]});
    assert_eq!(file(&adapter, "task.json"), spec);
    assert_eq!(file(&adapter, "adapter_config.json")["task_type"], "SEQ_CLS");
    let card = fs::read_to_string(PathBuf::from(&adapter).join("README.md")).unwrap();
    assert!(card.contains("| task | multi-label-classification |"), "{card}");

    let same = |a: &Value, b: &Value| {
        for name in ["loss", "accuracy", "f1_micro", "f1_macro"] {
            assert_eq!(a[name], b[name], "{name}: {a} and {b}");
        }
    };
    let result = case.eval(&adapter, &names);
    assert_eq!((&result["accuracy"], &result["f1_micro"]), (&json!(1.0), &json!(1.0)), "{result}");
    assert_eq!(result["f1_macro"], 1.0);
    let has = |set: &[&str], name: &str| set.contains(&name);
    let vector = |set: &[&str]| [has(set, "film"), has(set, "good")];
    let class = |name: &&str| usize::from(*name == "good");
    for (i, data) in [
        lines(&|set| json!(vector(set))),
        lines(&|set| json!(vector(set).map(u8::from))),
        lines(&|set| json!(vector(set).map(|there| f32::from(u8::from(there))))),
        // A list of both numbers is the vector [0, 1], so one of both is written as names.
        lines(&|set| match set {
            [_, _] => json!(set),
            set => json!(set.iter().map(class).collect::<Vec<_>>()),
        }),
    ]
    .iter()
    .enumerate()
    {
        same(&case.eval(&adapter, &case.write(&format!("{i}.jsonl"), data)), &result);
    }
    let table = |of: &dyn Fn(&[&str]) -> String| -> String {
        let rows = rows.iter().map(|(text, set)| format!("{text}\t{}\n", of(set)));
        "text\tlabel\n".to_owned() + &rows.collect::<String>()
    };
    let joined = case.write("joined.tsv", &table(&|set| set.join(", ")));
    same(&case.eval(&adapter, &joined), &result);
    let listed = case.write("listed.tsv", &table(&|set| json!(set).to_string()));
    same(&case.eval(&adapter, &listed), &result);

    let texts = case.write(
        "texts.jsonl",
        "{\"text\": \"the film was great\"}\n{\"text\": \"the plot was good\"}\n{\"text\": \"the plot was bad\"}\n",
    );
    let predict = |args: &[&str]| -> Vec<Value> {
        let out = lowrank_ok(&[&["predict", "--data", &texts], args].concat()).out;
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let lines = predict(&["--model", &case.model, "--adapter", &adapter]);
    assert_eq!(lines[0]["labels"], json!(["film", "good"]));
    assert_eq!(lines[1]["labels"], json!(["good"]));
    assert_eq!(lines[2]["labels"], json!([]));
    for line in &lines {
        for name in ["film", "good"] {
            let score = line["scores"][name].as_f64().unwrap();
            assert_eq!(line["labels"].as_array().unwrap().contains(&json!(name)), score > 0.5, "{line}");
        }
    }

    // Merged, the folder says what its head is for, and classification means that.
    let merged = case.merge(&adapter);
    let config = file(&merged, "config.json");
    assert_eq!(config["problem_type"], "multi_label_classification");
    assert_eq!(config["id2label"], json!({"0": "film", "1": "good"}));
    let again = predict(&["--model", &merged, "--task", "classification"]);
    for (a, b) in again.iter().zip(&lines) {
        assert_eq!(a["labels"], b["labels"]);
    }
    let args = ["eval", "--model", &merged, "--task", "classification", "--data", &names, "--json"];
    let ran = lowrank_ok(&args);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["f1_micro"], 1.0);
    assert!(ran.err.contains("the task is multi-label-classification: problem_type of"), "{}", ran.err);
    let vectors = case.path("1.jsonl");
    let out = case.path("next");
    let args = ["train", "--model", &merged, "--task", "classification", "--data", &vectors, "--out", &out];
    let ran = lowrank_ok(&[&args[..], &["--max-steps", "1"]].concat());
    assert!(ran.err.contains("the task is multi-label-classification"), "{}", ran.err);
    assert_eq!(file(&out, "task.json"), spec);
    let args =
        ["eval", "--model", &merged, "--task", "classification", "--adapter", &out, "--data", &vectors];
    lowrank_ok(&args);
    // Without names, they are transformers'.
    let adapter = case.train("multi-label-classification", &vectors, &["--max-steps", "1"]);
    assert_eq!(file(&adapter, "task.json")["labels"], json!(["LABEL_0", "LABEL_1"]));

    let bad = |label: Value, parts: &[&str]| {
        let data = case.write("bad.jsonl", &format!("{}\n", json!({"text": "a film", "labels": label})));
        let args = ["eval", "--model", &case.model, "--adapter", &adapter, "--data", &data];
        case.refused(&args, &[&["bad.jsonl:1"], parts].concat());
    };
    bad(json!([0, 1, 1]), &["a vector of 3 entries for 2 classes"]);
    bad(json!([2]), &["label 2 is out of range", "2 classes"]);
    bad(json!(["film"]), &["\"film\" is none of those"]);
    bad(json!("LABEL_0"), &["expected a list of labels"]);
    bad(json!([null]), &["holds null"]);
    let args = ["train", "--task", "classification", "--model", &case.model, "--data", &names, "--out", &out];
    case.refused(&args, &["names.jsonl:1", "\"labels\" is a list", "--task multi-label-classification"]);
    case.refused(
        &["train", "--task", "classification", "--model", &case.model, "--data", &listed, "--out", &out],
        &["listed.tsv:2", "\"label\" is a list", "--task multi-label-classification"],
    );
}

#[test]
fn texts_have_several_numbers() {
    let case = Case::new();
    let numbers =
        |i: usize| (if i % 6 < 3 { 1.5 } else { -1.5 }, if (i / 6).is_multiple_of(2) { 0.5 } else { 2.5 });
    let text = |i: usize| format!("the {} was {}", WORDS[6 + i / 6 % 2], WORDS[i % 6]);
    let (mut lines, mut table) = (String::new(), "text\tscore\n".to_owned());
    for i in 0..24 {
        let (mood, thing) = numbers(i);
        lines.push_str(&format!("{}\n", json!({"text": text(i), "labels": [mood, thing]})));
        table.push_str(&format!("{}\t[{mood}, {thing}]\n", text(i)));
    }
    let data = case.write("train.jsonl", &lines);
    let more = ["--target-modules", "all-linear", "--epochs", "60"];
    let adapter = case.train("regression", &data, &more);
    let file = |folder: &str, name: &str| -> Value {
        serde_json::from_slice(&fs::read(PathBuf::from(folder).join(name)).unwrap()).unwrap()
    };
    assert_eq!(file(&adapter, "task.json"), json!({"task": "regression", "outputs": 2}));
    let result = case.eval(&adapter, &data);
    assert!(result["pearson"].as_f64().unwrap() > 0.9, "{result}");
    let table = case.write("scored.tsv", &table);
    let same = case.eval(&adapter, &table);
    assert_eq!((&same["loss"], &same["spearman"]), (&result["loss"], &result["spearman"]));

    let texts = case.write("texts.jsonl", "{\"text\": \"the film was great\"}\n");
    let predict = |args: &[&str]| -> Value {
        serde_json::from_str(&lowrank_ok(&[&["predict", "--data", &texts], args].concat()).out).unwrap()
    };
    let line = predict(&["--model", &case.model, "--adapter", &adapter]);
    let values = line["values"].as_array().unwrap();
    assert!(values.len() == 2 && values[0].as_f64().unwrap() > 0.0, "{line}");
    let merged = case.merge(&adapter);
    let config = file(&merged, "config.json");
    assert_eq!(
        (&config["problem_type"], config["id2label"].as_object().unwrap().len()),
        (&json!("regression"), 2)
    );
    for task in ["regression", "classification"] {
        let again = predict(&["--model", &merged, "--task", task]);
        assert!((again["values"][1].as_f64().unwrap() - values[1].as_f64().unwrap()).abs() < 1e-4, "{again}");
    }
    // Names say that classes are meant.
    let (named, out) = (case.write("named.csv", "text,label\na film,low\na plot,high\n"), case.path("named"));
    let args =
        ["train", "--model", &merged, "--task", "classification", "--labels", "low,high", "--max-steps", "1"];
    lowrank_ok(&[&args[..], &["--data", &named, "--out", &out]].concat());
    assert_eq!(file(&out, "task.json"), json!({"task": "classification", "labels": ["low", "high"]}));
    let short = case.write("short.jsonl", "{\"text\": \"a film\", \"label\": 3.5}\n");
    let args = ["eval", "--model", &case.model, "--adapter", &adapter, "--data", &short];
    case.refused(&args, &["short.jsonl:1", "holds 1 numbers, and 2 are predicted"]);
    fs::write(PathBuf::from(&adapter).join("task.json"), r#"{"task": "regression", "outputs": 0}"#).unwrap();
    case.refused(&args, &["task.json", "outputs is 0"]);

    // One number is a value, and a text without one can be predicted.
    let adapter = case.train("regression", &short, &["--max-steps", "1"]);
    assert_eq!(file(&adapter, "task.json"), json!({"task": "regression"}));
    assert!(predict(&["--model", &case.model, "--adapter", &adapter])["value"].is_number());
}

/// 0 and 1 in place of the names that the head has.
#[test]
fn numbers_of_classes_are_labels() {
    let case = Case::new();
    let file = |folder: &str, name: &str| -> Value {
        serde_json::from_slice(&fs::read(PathBuf::from(folder).join(name)).unwrap()).unwrap()
    };
    let numbers = sentences(48);
    let named = numbers.replace("\t0\n", "\tbad\n").replace("\t1\n", "\tgood\n");
    let (numbers, named) = (case.write("numbers.tsv", &numbers), case.write("named.tsv", &named));
    let adapter = case.train("classification", &named, &[]);
    let result = case.eval(&adapter, &named);
    assert_eq!(result["accuracy"], 1.0, "{result}");
    assert_eq!(case.eval(&adapter, &numbers)["loss"], result["loss"]);
    let lines = case.write("numbers.jsonl", "{\"text\": \"the film was good\", \"labels\": 1}\n");
    assert_eq!(case.eval(&adapter, &lines)["accuracy"], 1.0);
    let beyond = case.write("beyond.csv", "text,label\nthe film was good,1\nthe film was good,2\n");
    let args = ["eval", "--model", &case.model, "--adapter", &adapter, "--data", &beyond];
    case.refused(&args, &["beyond.csv:3", "label 2 is out of range", "2 classes"]);

    // A base that has names keeps them, and its head.
    let merged = case.merge(&adapter);
    let out = case.path("next");
    let args = ["train", "--model", &merged, "--task", "classification", "--data", &numbers, "--out", &out];
    lowrank_ok(&[&args[..], &["--max-steps", "1"]].concat());
    assert_eq!(file(&out, "task.json")["labels"], json!(["bad", "good"]));
    let args = ["train", "--model", &merged, "--task", "classification", "--data", &beyond, "--out", &out];
    lowrank_ok(&[&args[..], &["--max-steps", "1", "--force"]].concat());
    assert_eq!(file(&out, "task.json")["labels"], json!(["1", "2"]));
    let args = ["--labels", "cold,warm", "--max-steps", "1"];
    assert_eq!(case.eval(&case.train("classification", &numbers, &args), &numbers)["examples"], 48);

    let words =
        case.write("words.jsonl", "{\"tokens\": [\"the\", \"film\"], \"tags\": [\"O\", \"B-THING\"]}\n");
    let adapter = case.train("token-classification", &words, &["--labels", "O,B-THING", "--max-steps", "1"]);
    let tagged = case.write("tagged.jsonl", "{\"tokens\": [\"the\", \"film\"], \"ner_tags\": [0, 1]}\n");
    assert_eq!(case.eval(&adapter, &tagged)["loss"], case.eval(&adapter, &words)["loss"]);
    let bad = case.write("bad.jsonl", "{\"tokens\": [\"the\", \"film\"], \"ner_tags\": [0, 2]}\n");
    let args = ["eval", "--model", &case.model, "--adapter", &adapter, "--data", &bad];
    case.refused(&args, &["bad.jsonl:1", "label 2 is out of range"]);
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

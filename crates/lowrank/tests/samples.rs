//! Texts that a run generates on its way (`--sample-prompts`).

mod common;

use std::fs;
use std::path::Path;

use common::{Ran, lowrank, lowrank_ok, overriding, tiny_bert, tiny_data, tiny_model};
use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("train.jsonl"), 16);
        tiny_data(&dir.path().join("eval.jsonl"), 3);
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn train(&self, out: &str, more: &[&str]) -> Ran {
        let (data, out) = (self.path("train.jsonl"), self.path(out));
        let base = ["train", "--model", &self.model, "--data", &data, "--out", &out, "--max-steps", "6"];
        let rest = ["--batch-size", "4", "--learning-rate", "0.05", "--threads", "1"];
        lowrank(&overriding(&[&base[..], &rest].concat(), more))
    }

    fn samples(&self, out: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.path(&format!("{out}/log.jsonl"))).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| record.get("sample_text").is_some()).collect()
    }

    fn tensors(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(&format!("{out}/adapter_model.safetensors"))).unwrap()
    }
}

fn steps(samples: &[Value]) -> Vec<u64> {
    samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect()
}

#[test]
fn samples_come_at_evaluations_and_change_no_bit() {
    let place = Place::new();
    let eval = place.path("eval.jsonl");
    let held_out = ["--eval-data", &eval, "--eval-steps", "2", "--lora-dropout", "0.1"];
    let plain = place.train("plain", &held_out);
    assert_eq!(plain.code, 0, "{}", plain.err);
    let sampled = ["--sample-prompts", "Hello, world", "--sample-max-new-tokens", "5"];
    let ran = place.train("sampled", &[&held_out[..], &sampled].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(place.tensors("plain") == place.tensors("sampled"), "samples changed the training");
    let samples = place.samples("sampled");
    assert_eq!(steps(&samples), [0, 2, 4, 6]);
    for sample in &samples {
        assert_eq!(sample["sample_prompt"], "Hello, world");
        assert!((1..=5).contains(&sample["sample_tokens"].as_u64().unwrap()), "{sample}");
        assert!(sample["sample_s"].as_f64().unwrap() > 0.0 && sample["epoch"].is_number());
    }
    assert_ne!(samples[0]["sample_text"], samples[3]["sample_text"], "nothing was learned");
    assert!(ran.err.contains("sample at step 4: Hello, world -> "), "{}", ran.err);
    // The last text is what the adapter says.
    let adapter = place.path("sampled");
    let said = lowrank_ok(&[
        "generate",
        "--model",
        &place.model,
        "--adapter",
        &adapter,
        "--prompt",
        "Hello, world",
        "--max-new-tokens",
        "5",
        "--threads",
        "1",
    ]);
    assert_eq!(
        said.out.trim_end_matches('\n'),
        samples[3]["sample_text"].as_str().unwrap().trim_end_matches('\n')
    );
    // And the first one what the base says.
    let said = lowrank_ok(&[
        "generate",
        "--model",
        &place.model,
        "--prompt",
        "Hello, world",
        "--max-new-tokens",
        "5",
        "--threads",
        "1",
    ]);
    assert_eq!(
        said.out.trim_end_matches('\n'),
        samples[0]["sample_text"].as_str().unwrap().trim_end_matches('\n')
    );
}

#[test]
fn prompts_come_from_a_text_from_lines_and_from_data() {
    let place = Place::new();
    let prompts = |out: &str, given: &str, more: &[&str]| -> Vec<String> {
        let args = ["--sample-prompts", given, "--sample-max-new-tokens", "2", "--max-steps", "1"];
        let ran = place.train(out, &[&args[2..], &args[..2], more].concat());
        assert_eq!(ran.code, 0, "{given}: {}", ran.err);
        let last = place.samples(out).into_iter().filter(|sample| sample["step"] == 1);
        last.map(|sample| sample["sample_prompt"].as_str().unwrap().to_owned()).collect()
    };
    let lines = place.write("prompts.txt", "one\n\ntwo \n");
    assert_eq!(prompts("lines", &lines, &[]), ["one", "two"]);
    // The prompts of rows, each once, as they are trained.
    let rows = "{\"prompt\": \"2+2\", \"completion\": \"4\"}\n{\"prompt\": \"2+2\", \"completion\": \"four\"}\n\
                {\"prompt\": \"3+3\", \"completion\": \"6\"}\n";
    let rows = place.write("rows.jsonl", rows);
    assert_eq!(prompts("rows", &rows, &["--prompt-template", "Q: {prompt} A:"]), ["Q: 2+2 A:", "Q: 3+3 A:"]);
    // A conversation up to its first answer.
    let talk = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"ho\"}]}\n";
    let talk = place.write("talk.jsonl", talk);
    assert_eq!(prompts("talk", &talk, &[]), ["[user]hi[assistant]"]);
    // A text is what a user says where the data are conversations: the template's words are read, the text is shown.
    assert_eq!(prompts("said", "hi", &["--data", &talk]), ["hi"]);
    let adapter = place.path("said");
    let chat = ["generate", "--model", &place.model, "--adapter", &adapter, "--chat", "--prompt", "hi"];
    let said = lowrank_ok(&[&chat[..], &["--max-new-tokens", "2", "--threads", "1"]].concat());
    let samples = place.samples("said");
    assert_eq!(said.out.trim_end(), samples[1]["sample_text"].as_str().unwrap().trim_end());
}

#[test]
fn samples_have_steps_of_their_own_and_go_on_with_a_run() {
    let place = Place::new();
    let sampled = ["--sample-prompts", "a", "--sample-steps", "2", "--sample-max-new-tokens", "2"];
    assert_eq!(place.train("run", &[&sampled[..], &["--max-steps", "3"]].concat()[..]).code, 0);
    assert_eq!(steps(&place.samples("run")), [0, 2, 3]);
    // A run that is resumed may have others, and keeps those that it had.
    let more = ["--sample-prompts", "b", "--max-steps", "4", "--resume", "--sample-max-new-tokens", "2"];
    let ran = place.train("run", &more);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let samples = place.samples("run");
    assert_eq!(steps(&samples), [0, 2, 3, 4]);
    assert_eq!(
        (samples[2]["sample_prompt"].as_str(), samples[3]["sample_prompt"].as_str()),
        (Some("a"), Some("b"))
    );
}

#[test]
fn wrong_samples_are_refused_before_training() {
    let place = Place::new();
    let refused = |more: &[&str], words: &[&str]| {
        let ran = place.train("x", more);
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.err);
        assert!(words.iter().all(|word| ran.err.contains(word)), "{more:?}: {}", ran.err);
        assert!(!Path::new(&place.path("x")).exists());
    };
    refused(&["--sample-steps", "2"], &["--sample-steps", "--sample-prompts"]);
    refused(&["--sample-prompts", "a", "--sample-max-new-tokens", "0"], &["--sample-max-new-tokens", "1"]);
    let empty = place.write("empty.txt", "\n\n");
    refused(&["--sample-prompts", &empty], &["empty.txt has 0 prompts", "1 to 64"]);
    let many = place.write("many.txt", &"a\n".repeat(65));
    refused(&["--sample-prompts", &many], &["65 prompts"]);
    let texts = place.write("texts.jsonl", "{\"text\": \"abc\"}\n");
    refused(&["--sample-prompts", &texts], &["texts.jsonl", "without a prompt", ".txt"]);
    refused(
        &["--sample-prompts", "a", "--prompt-template", "{prompt} {completion}"],
        &["completion, prompt", "data file"],
    );
    // A file that is not there is no text.
    let ran = place.train("x", &["--sample-prompts", "no-such-prompts.txt"]);
    assert!(ran.code == 1 && ran.err.contains("no-such-prompts.txt"), "{}", ran.err);
    let bert = tiny_bert(place.dir.path());
    let rows = place.write(
        "classes.jsonl",
        "{\"text\": \"a film\", \"label\": \"x\"}\n{\"text\": \"a plot\", \"label\": \"y\"}\n",
    );
    let args = [
        "train",
        "--task",
        "classification",
        "--model",
        &bert,
        "--data",
        &rows,
        "--sample-prompts",
        "a",
        "--out",
    ];
    let ran = lowrank(&[&args[..], &[&place.path("x")]].concat());
    assert!(ran.code == 2 && ran.err.contains("--sample-prompts is for language models"), "{}", ran.err);
    // Prompts are never written over.
    let prompts = place.write("log.txt", "one\n");
    let ran = place.train("x", &["--sample-prompts", &prompts, "--log-json", &prompts, "--force"]);
    assert!(ran.code == 2 && ran.err.contains("is an input"), "{}", ran.err);
    assert_eq!(fs::read(&prompts).unwrap(), b"one\n");
}

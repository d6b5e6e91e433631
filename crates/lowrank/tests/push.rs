//! Uploads by the command, to a hub on this machine.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{Ran, tiny_data, tiny_model};
use lowrank_testing::http::{Asked, serve};
use serde_json::{Value, json};

type Log = Arc<Mutex<Vec<Asked>>>;

/// A hub that takes all files into commits, and answers commits with `status`.
fn hub(status: u16) -> (String, Log) {
    serve(move |asked| {
        let good = |value: Value| (200, String::new(), value.to_string());
        match asked.path.as_str() {
            "/api/whoami-v2" => good(json!({"name": "me"})),
            path if path.ends_with("/preupload/main") => {
                let files: Value = serde_json::from_slice(&asked.body).unwrap();
                let files = files["files"].as_array().unwrap().iter();
                let files = files.map(|f| json!({"path": f["path"], "uploadMode": "regular"}));
                good(json!({"files": files.collect::<Vec<_>>()}))
            }
            path if path.ends_with("/commit/main") => {
                (status, String::new(), json!({"error": "no room"}).to_string())
            }
            _ => good(json!({"private": true})),
        }
    })
}

/// The command with this hub and this token.
fn lowrank(args: &[&str], endpoint: &str, token: Option<&str>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
    for name in ["HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_TOKEN"] {
        command.env_remove(name);
    }
    command.args(args).env("HF_ENDPOINT", endpoint).env("HF_HOME", "/nowhere/at/all");
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    common::ran(command.output().unwrap())
}

/// The files of the last commit, and its message.
fn committed(log: &Log) -> (String, BTreeMap<String, Value>) {
    let log = log.lock().unwrap();
    let commit = log.iter().rfind(|asked| asked.path.ends_with("/commit/main")).expect("a commit");
    let lines: Vec<Value> = std::str::from_utf8(&commit.body)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let files =
        lines[1..].iter().map(|line| (line["value"]["path"].as_str().unwrap().to_owned(), line.clone()));
    (lines[0]["value"]["summary"].as_str().unwrap().to_owned(), files.collect())
}

fn train<'a>(model: &'a str, data: &'a str, out: &'a str) -> Vec<&'a str> {
    let run =
        ["--r", "2", "--max-steps", "2", "--threads", "1", "--model", model, "--data", data, "--out", out];
    ["train"].into_iter().chain(run).collect()
}

fn place(dir: &Path) -> (String, String, String) {
    let data = dir.join("train.jsonl");
    tiny_data(&data, 12);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    (tiny_model(dir), text(&data), text(&dir.join("my desk")))
}

const FILES: [&str; 3] = ["README.md", "adapter_config.json", "adapter_model.safetensors"];

#[test]
fn a_run_is_uploaded_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data, out) = place(dir.path());
    let (endpoint, log) = hub(200);
    let args =
        [&train(&model, &data, &out)[..], &["--push-to-hub", "org/desk", "--hub-private-repo"]].concat();
    let ran = lowrank(&args, &endpoint, Some("hf_secret"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains(&format!("uploaded to {endpoint}/org/desk")), "{}", ran.err);
    let (message, files) = committed(&log);
    assert_eq!(
        (message.as_str(), files.into_keys().collect::<Vec<_>>().join(" ")),
        ("End of training", FILES.join(" "))
    );
    let created: Value = serde_json::from_slice(&log.lock().unwrap()[0].body).unwrap();
    assert_eq!(created, json!({"name": "desk", "organization": "org", "type": "model", "private": true}));

    // The name alone is the token owner's; a run that is over is uploaded by --resume.
    let args =
        [&train(&model, &data, &out)[..], &["--resume", "--push-to-hub", "--hub-model-id", "desk2"]].concat();
    let ran = lowrank(&args, &endpoint, Some("hf_secret"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("/me/desk2"), "{}", ran.err);
}

#[test]
fn an_upload_that_fails_loses_nothing_and_says_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data, out) = place(dir.path());
    let (endpoint, _) = hub(507);
    let args = [&train(&model, &data, &out)[..], &["--push-to-hub", "org/desk"]].concat();
    let ran = lowrank(&args, &endpoint, Some("hf_secret"));
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("2 steps, loss") && ran.err.contains("adapter written to"), "{}", ran.err);
    assert!(ran.err.contains("status 507 (no room)") && !ran.err.contains("hf_secret"), "{}", ran.err);
    let again = ran.err.split("lowrank push ").nth(1).expect("the command").split('`').next().unwrap();
    assert_eq!(again, format!("'{out}' org/desk"));
    assert!(FILES.iter().all(|file| Path::new(&out).join(file).is_file()));

    let (endpoint, log) = hub(200);
    let ran = lowrank(&["push", &out, "org/desk"], &endpoint, Some("hf_secret"));
    assert_eq!((ran.code, ran.out.trim()), (0, format!("{endpoint}/org/desk").as_str()), "{}", ran.err);
    assert!(ran.err.contains("not uploaded: ") && ran.err.contains("log.jsonl"), "{}", ran.err);
    let (message, files) = committed(&log);
    assert_eq!((message.as_str(), files.len()), ("Upload with lowrank", 3));
}

#[test]
fn what_the_hub_refuses_is_refused_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data, out) = place(dir.path());
    let (endpoint, _) = serve(|_| (401, String::new(), json!({"error": "Invalid credentials"}).to_string()));
    let run = train(&model, &data, &out);
    for (token, more, code, part) in [
        (None, &["--push-to-hub", "org/desk"][..], 1, "set HF_TOKEN"),
        (Some("hf_x"), &["--push-to-hub", "org/desk"], 1, "(Invalid credentials)"),
        (Some("hf_x"), &["--push-to-hub"], 2, "is not a name of a repository"),
        (Some("hf_x"), &["--push-to-hub", "a/b/c"], 2, "is not a name of a repository"),
        (Some("hf_x"), &["--hub-model-id", "org/desk"], 2, "give --push-to-hub as well"),
        (Some("hf_x"), &["--hub-private-repo"], 2, "give --push-to-hub as well"),
        (Some("hf_x"), &["--push-to-hub", "a/b", "--hub-model-id", "a/b"], 2, "give one"),
    ] {
        let ran = lowrank(&[&run[..], more].concat(), &endpoint, token);
        assert_eq!(ran.code, code, "{more:?}: {}", ran.err);
        assert!(ran.err.contains(part), "{more:?}: {}", ran.err);
        assert!(!ran.err.contains("step 1/"), "{more:?}: {}", ran.err);
    }
    // Keys of a file.
    let config = dir.path().join("run.toml");
    std::fs::write(&config, "push_to_hub = \"a/b\"\nhub_model_id = \"a/b\"\n").unwrap();
    let ran = lowrank(&[&run[..], &["--config", config.to_str().unwrap()]].concat(), &endpoint, Some("hf_x"));
    assert!(ran.code == 2 && ran.err.contains("give one"), "{}", ran.err);
}

#[test]
fn folders_without_a_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let ran = lowrank(&["push", dir.path().to_str().unwrap(), "org/x"], "http://127.0.0.1:1", Some("hf_x"));
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("holds no adapter and no model"), "{}", ran.err);
    let ran = lowrank(&["push", "/no/such", "org/x"], "http://127.0.0.1:1", Some("hf_x"));
    assert_eq!(ran.code, 1, "{}", ran.err);
}

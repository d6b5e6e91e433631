//! `lowrank study` and `lowrank report` as a user runs them, on a tiny model.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{lowrank, lowrank_ok, tiny_data, tiny_model};
use serde_json::Value;

struct Place {
    dir: tempfile::TempDir,
    spec: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        tiny_data(Path::new(&path("train.jsonl")), 24);
        tiny_data(Path::new(&path("eval.jsonl")), 6);
        let (train, eval, out) = (path("train.jsonl"), path("eval.jsonl"), path("study"));
        let spec = path("study.toml");
        let text = format!(
            r#"
            name = "A tiny study"
            out = {out:?}
            seeds = [1, 2]
            [train]
            model = {model:?}
            data = {train:?}
            eval-data = {eval:?}
            target-modules = ["q_proj", "v_proj"]
            max-steps = 4
            batch-size = 4
            learning-rate = 0.02
            threads = 1
            [[method]]
            name = "LoRA r=2"
            r = 2
            lora-alpha = 4.0
            [[method]]
            name = "no such module"
            target-modules = ["nowhere"]
            [matrices]
            parameters = 256
            choices = [["q_proj"], ["q_proj", "v_proj"]]
            [ranks]
            r = [1, 2]
            [subspace]
            ranks = [2, 4]
            seeds = [1, 2]
            modules = ["layers.0.self_attn.q_proj"]
            [amplification]
            ranks = [2]
            modules = ["layers.0.self_attn.q_proj"]
            [latency]
            batch-sizes = [1]
            lengths = [8]
            repeats = 1
            [sweep]
            learning-rates = [0.001, 0.02]
            methods = ["LoRA r=2"]
            "#
        );
        fs::write(&spec, text).unwrap();
        Self { dir, spec }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn results(study: &Path) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for run in fs::read_dir(study.join("runs")).unwrap() {
        let path = run.unwrap().path().join("result.json");
        if path.exists() {
            found.push((path.clone(), serde_json::from_slice(&fs::read(&path).unwrap()).unwrap()));
        }
    }
    found
}

#[test]
fn a_study_runs_goes_on_and_reports_what_failed() {
    let place = Place::new();
    let ran = lowrank(&["study", &place.spec]);
    assert_eq!(ran.code, 1, "runs failed: {}", ran.err);
    let study = place.path("study");
    let done = results(&study);
    let failed: Vec<_> = done.iter().filter(|(_, r)| r["error"].is_string()).collect();
    assert_eq!(failed.len(), 2, "the method without a module, for both seeds: {}", ran.err);
    assert!(failed[0].1["error"].as_str().unwrap().contains("nowhere"), "{}", failed[0].1["error"]);
    // Not the base model, which trains nothing.
    let trained = |r: &Value| r["error"].is_null() && r["parameters"].as_u64().unwrap() > 0;
    let well = done.iter().find(|(_, r)| trained(r)).unwrap();
    assert!(well.1["eval"]["loss"].as_f64().unwrap() > 0.0);

    let html = fs::read_to_string(study.join("report.html")).unwrap();
    for text in
        ["A tiny study", "Which matrices", "Which rank", "Subspaces", "Amplification", "Latency", "failed: "]
    {
        assert!(html.contains(text), "{text}");
    }
    assert!(fs::metadata(study.join("figures/loss.png")).unwrap().len() > 1000);
    // Head, base model, and the two methods: the one that failed has a row without numbers.
    let methods = fs::read_to_string(study.join("data/methods.csv")).unwrap();
    let lines: Vec<&str> = methods.lines().collect();
    assert_eq!(lines.len(), 4, "{methods}");
    assert!(lines[1].starts_with("base model") && lines[3].starts_with("no such module,failed"), "{methods}");

    // One run is lost: that one is done again, with the same numbers, and so are those that failed.
    fs::remove_file(&well.0).unwrap();
    let again = lowrank(&["study", &place.spec]);
    assert_eq!(again.code, 1, "{}", again.err);
    assert!(again.err.contains("run 1 of 3") && again.err.contains("2 runs failed"), "{}", again.err);
    let repeated: Value = serde_json::from_slice(&fs::read(&well.0).unwrap()).unwrap();
    assert_eq!(repeated["eval"]["loss"], well.1["eval"]["loss"]);
}

#[test]
fn a_killed_study_goes_on_where_it_stopped() {
    let place = Place::new();
    let study = place.path("study");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(["study", &place.spec])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let wait = || std::thread::sleep(std::time::Duration::from_millis(5));
    while !study.join("runs").exists() || results(&study).len() < 2 {
        wait();
        assert!(child.try_wait().unwrap().is_none(), "the study ended before it could be killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let written = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let well = results(&study).into_iter().filter(|(_, result)| result["error"].is_null());
    let before: Vec<_> = well.map(|(path, _)| (written(&path), path)).collect();
    // The run at hand is a process of its own, which goes on: it is waited for.
    let ran = lowrank(&["study", &place.spec]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(before.iter().all(|(time, path)| written(path) == *time), "a finished run was done again");
    let all = fs::read_dir(study.join("runs")).unwrap().count();
    let done = results(&study);
    assert!(done.len() == all && all > before.len(), "{all} runs, {} done before", before.len());
    assert_eq!(done.iter().filter(|(_, r)| r["error"].is_string()).count(), 2, "the method without a module");
    let report = fs::read_to_string(study.join("report.md")).unwrap();
    assert!(report.contains(&format!("{all} of {all} runs done")), "{report}");
}

/// Two studies of one folder share the work: no run is done twice, and none is disturbed.
#[test]
fn a_study_waits_for_a_run_of_another() {
    let place = Place::new();
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lowrank"));
        command.args(["study", &place.spec]).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let both = [start(), start()];
    let said = both.map(|child| {
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        said
    });
    assert!(said.iter().any(|said| said.contains("waiting for")), "{said:?}");
    let done = results(&place.path("study"));
    let ran = said.iter().map(|said| said.matches(" tokens/s, ").count()).sum::<usize>();
    let well = done.iter().filter(|(_, result)| result["error"].is_null()).count();
    assert_eq!(ran, well, "{said:?}");
    for (path, result) in done {
        let error = result["error"].as_str().unwrap_or("nowhere");
        assert!(error.contains("nowhere"), "{}: {error}", path.display());
    }
}

#[test]
fn a_wrong_study_is_refused_with_the_key() {
    let place = Place::new();
    let text = fs::read_to_string(&place.spec).unwrap();
    fs::write(&place.spec, text.replace("choices = [[\"q_proj\"],", "choice = [[\"q_proj\"],")).unwrap();
    let ran = lowrank(&["study", &place.spec]);
    assert_eq!(ran.code, 2);
    let parts = ["study.toml", "line 23", "`choice`", "did you mean choices?"];
    assert!(parts.iter().all(|part| ran.err.contains(part)), "{}", ran.err);
    for (from, to, part) in [
        (
            "max-steps = 4",
            "max-stepps = 4",
            "study.toml:10: [train] unknown option `max_stepps`; did you mean max_steps?",
        ),
        ("lora-alpha = 4.0", "lora-alpha = -4.0", "study.toml:17: [[method]] `lora_alpha` is -4"),
    ] {
        fs::write(&place.spec, text.replace(from, to)).unwrap();
        let ran = lowrank(&["study", &place.spec]);
        assert!(ran.code == 2 && ran.err.contains(part), "{}", ran.err);
    }
    // Without the method that fails, all is well.
    let well = text.split("[[method]]\n            name = \"no such").next().unwrap();
    fs::write(&place.spec, well).unwrap();
    lowrank_ok(&["study", &place.spec]);
}

#[test]
fn runs_are_reported_with_curves_spectra_and_samples() {
    let place = Place::new();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let model = tiny_model(place.dir.path());
    let (data, out, report) =
        (text(place.path("train.jsonl")), text(place.path("run")), text(place.path("report")));
    let train =
        ["train", "--model", &model, "--data", &data, "--out", &out, "--max-steps", "4", "--threads", "1"];
    lowrank_ok(&train);
    let more = ["--model", &model, "--prompt", "Hello", "--max-new-tokens", "3"];
    lowrank_ok(&[&["report", &out, "--out", &report][..], &more[..]].concat());
    let html = fs::read_to_string(place.path("report/report.html")).unwrap();
    assert!(
        html.contains("Training loss.") && html.contains("effective rank") && html.contains("Samples of run")
    );
    // Written again over itself, and over other files only where that was asked for.
    lowrank_ok(&["report", &out, "--out", &report]);
    fs::write(place.path("report/report.html"), "mine").unwrap();
    let ran = lowrank(&["report", &out, "--out", &report]);
    assert!(ran.code == 2 && ran.err.contains("is there already"), "{}", ran.err);
    assert_eq!(fs::read(place.path("report/report.html")).unwrap(), b"mine");
    lowrank_ok(&["report", &out, "--out", &report, "--force"]);

    fs::create_dir(place.path("empty")).unwrap();
    let ran = lowrank(&["report", &text(place.path("empty"))]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("log.jsonl"), "{}", ran.err);
}

/// A page of the run's log, for this machine alone.
#[test]
fn a_run_is_shown_as_it_goes() {
    use std::io::{BufRead, BufReader, Read, Write};
    let place = Place::new();
    let text = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let model = tiny_model(place.dir.path());
    let train = [
        "train",
        "--model",
        &model,
        "--data",
        &text("train.jsonl"),
        "--out",
        &text("run"),
        "--max-steps",
        "4",
    ];
    let ran = lowrank_ok(&[&train[..], &["--dashboard=0", "--threads", "1"]].concat());
    assert!(ran.err.contains("http://127.0.0.1:"), "{}", ran.err);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(["report", &text("run"), "--watch", "--port", "0"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let get = |path: &str, host: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = get("/", &address);
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("<!doctype html>"), "{page}");
    let log = get("/log", "localhost:6006");
    assert!(log.contains("\"step\":4") && log.contains("X-Next: "), "{log}");
    let next = log.split("X-Next: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned();
    assert!(!get(&format!("/log?from={next}"), &address).contains("\"step\""));
    assert!(get(&format!("/log?from={next}0"), &address).contains("\"step\":1"), "a log that began anew");
    assert!(get("/log", "example.org").starts_with("HTTP/1.1 403"));
    assert!(get("/../train.jsonl", &address).starts_with("HTTP/1.1 404"));
    child.kill().unwrap();
    child.wait().unwrap();
    let ran = lowrank(&["report", &text("none"), "--watch"]);
    assert_eq!(ran.code, 1, "{}", ran.err);
}

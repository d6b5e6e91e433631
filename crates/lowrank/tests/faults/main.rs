//! Files under faults: a process killed at every file operation, torn writes, power cuts, full disks.
//!
//! `shim.rs`, put before libc, breaks one operation of a run; the test goes over every fifth of them (over all where
//! `LOWRANK_FAULTS=all`: `make faults`) and prints how many there were. It needs Linux and the `rustc` that built it.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use common::{tiny_data, tiny_model};

/// The compiled shim.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults_shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let done = Command::new(rustc)
            .args(["-O", "--edition", "2024", "--crate-type", "cdylib", source, "-o"])
            .arg(&out)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        out
    })
}

/// One fault in one command.
#[derive(Clone, Copy)]
struct Fault {
    mode: &'static str,
    at: u64,
}

/// Runs `lowrank` with a fault in its operations under `dir`; gives also how many there were.
fn run(dir: &Path, args: &[&str], fault: Fault) -> (Output, u64) {
    let count = tempfile::NamedTempFile::new().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(args)
        .env("LD_PRELOAD", shim())
        .env("FAULT_DIR", dir)
        .env("FAULT_COUNT", count.path())
        .env("FAULT_AT", fault.at.to_string())
        .env("FAULT_MODE", fault.mode)
        .output()
        .unwrap();
    (out, fs::read_to_string(count.path()).unwrap().parse().unwrap_or(0))
}

fn ok(args: &[&str]) {
    common::lowrank_ok(args);
}

fn killed(out: &Output) -> bool {
    use std::os::unix::process::ExitStatusExt;
    out.status.signal() == Some(9)
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Every operation where all are asked for, else every fifth.
fn points(total: u64) -> impl Iterator<Item = u64> {
    let step = if std::env::var("LOWRANK_FAULTS").is_ok_and(|v| v == "all") { 1 } else { 5 };
    assert!(total > 5, "{total} operations: the shim does not see them");
    (1..=total).step_by(step)
}

/// The names and bytes of every file under `dir`.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                out.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    out
}

fn put(files: &BTreeMap<PathBuf, Vec<u8>>, dir: &Path) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    put(&files(from), to);
}

/// A small training run of four steps with a checkpoint after each.
struct Training {
    dir: tempfile::TempDir,
    model: String,
    data: String,
    expected: Vec<u8>,
}

impl Training {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        let data = dir.path().join("data.jsonl");
        tiny_data(&data, 24);
        let data = data.to_str().unwrap().to_owned();
        let mut this = Self { dir, model, data, expected: Vec::new() };
        let out = this.out("reference");
        ok(&this.args(&out, &[]));
        this.expected = fs::read(Path::new(&out).join("adapter_model.safetensors")).unwrap();
        this
    }

    fn out(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn args<'a>(&'a self, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec!["train", "--model", &self.model, "--data", &self.data, "--out", out, "--r", "2"];
        args.extend([
            "--target-modules",
            "q_proj",
            "--learning-rate",
            "1e-2",
            "--batch-size",
            "6",
            "--epochs",
            "1",
        ]);
        args.extend(["--save-steps", "1", "--threads", "1", "--eval-data", &self.data, "--eval-steps", "2"]);
        args.extend(more);
        args
    }

    /// What a person does after a crash: goes on, or starts again where there is nothing to go on from. Says which.
    fn recover(&self, out: &str, what: &str) -> bool {
        let again = common::lowrank(&self.args(out, &["--resume"]));
        let resumed = again.code == 0;
        if !resumed {
            assert!(again.err.contains("no checkpoint"), "{what}: {}", again.err);
            let fresh = common::lowrank(&self.args(out, &["--force"]));
            assert_eq!(fresh.code, 0, "{what}: {}", fresh.err);
        }
        let adapter = fs::read(Path::new(out).join("adapter_model.safetensors")).unwrap();
        assert!(adapter == self.expected, "{what}: another adapter");
        let lines = fs::read_to_string(Path::new(out).join("log.jsonl")).unwrap();
        for line in lines.lines() {
            serde_json::from_str::<serde_json::Value>(line)
                .unwrap_or_else(|e| panic!("{what}: log {line:?}: {e}"));
        }
        resumed
    }
}

/// Wherever a run is killed, torn or loses its power, it ends with the adapter of the run that was not.
#[test]
fn a_run_survives_a_fault_at_every_operation() {
    let training = Training::new();
    let out = training.out("run");
    let dir = Path::new(&out);
    let (_, total) = run(dir, &training.args(&out, &[]), Fault { mode: "none", at: 0 });
    for mode in ["kill", "torn", "power"] {
        let (mut tried, mut resumed) = (0, 0);
        for at in points(total) {
            let _ = fs::remove_dir_all(dir);
            let (broken, _) = run(dir, &training.args(&out, &[]), Fault { mode, at });
            assert!(killed(&broken), "{mode} at {at}: {}", said(&broken));
            tried += 1;
            resumed += u64::from(training.recover(&out, &format!("{mode} at operation {at}")));
        }
        println!(
            "{mode}: {tried} of {total} operations, {resumed} went on from a checkpoint, all ended equal"
        );
        assert!(resumed > tried / 2, "{mode}: only {resumed} of {tried} had a checkpoint");
    }
}

/// A second fault while going on loses no checkpoint that was there.
#[test]
fn a_second_fault_loses_nothing() {
    let training = Training::new();
    let (out, start) = (training.out("run"), training.out("start"));
    let (dir, start) = (Path::new(&out), Path::new(&start));
    let (_, total) = run(dir, &training.args(&out, &[]), Fault { mode: "none", at: 0 });
    let mut pairs = 0;
    // The second half: there is a checkpoint, and the next is being written.
    for first in points(total).filter(|at| *at > total / 2).step_by(2) {
        let _ = fs::remove_dir_all(dir);
        run(dir, &training.args(&out, &[]), Fault { mode: "kill", at: first });
        copy(dir, start);
        // The same files each time: a copy has no empty folders, whose removal is an operation.
        copy(start, dir);
        let (_, second_total) = run(dir, &training.args(&out, &["--resume"]), Fault { mode: "none", at: 0 });
        for at in (1..=second_total).step_by(5) {
            copy(start, dir);
            let fault = Fault { mode: if at % 2 == 0 { "kill" } else { "power" }, at };
            let (broken, _) = run(dir, &training.args(&out, &["--resume"]), fault);
            assert!(killed(&broken), "{first} then {at}: {}", said(&broken));
            assert!(
                training.recover(&out, &format!("killed at {first}, then {} at {at}", fault.mode)),
                "{first} then {at}: nothing to go on from"
            );
            pairs += 1;
        }
    }
    println!("{pairs} pairs of faults, all ended equal from a checkpoint");
}

/// A disk that fills up at any operation: exit code 1, the file named; what was there goes on once there is space.
#[test]
fn a_full_disk_is_an_error_at_every_operation() {
    let training = Training::new();
    let out = training.out("run");
    let dir = Path::new(&out);
    let (_, total) = run(dir, &training.args(&out, &[]), Fault { mode: "none", at: 0 });
    let (mut tried, mut cases) = (0, 0);
    for at in points(total) {
        tried += 1;
        let _ = fs::remove_dir_all(dir);
        let (broken, _) = run(dir, &training.args(&out, &[]), Fault { mode: "full", at });
        let what = format!("full at operation {at}");
        // What only frees space needs none: such a run may end well.
        if broken.status.code() != Some(0) {
            let err = said(&broken);
            assert_eq!(broken.status.code(), Some(1), "{what}: {err}");
            assert!(err.contains("No space left") && err.contains(&out), "{what}: {err}");
            cases += 1;
        }
        training.recover(&out, &what);
    }
    println!(
        "full disk: {cases} of {tried} operations need space, of {total} there are: each an error with code 1"
    );
    assert!(cases > tried / 2);
}

/// Whether the files are those expected; a page also names its time and its command, which are others in each run.
fn same(seen: &BTreeMap<PathBuf, Vec<u8>>, whole: &BTreeMap<PathBuf, Vec<u8>>) -> bool {
    let ends =
        |bytes: &[u8]| bytes.starts_with(b"<!doctype html>") && bytes.trim_ascii_end().ends_with(b"</html>");
    let is_page = |name: &Path| name.extension().is_some_and(|e| e == "html");
    let alike = |name: &Path, a: &[u8], b: &[u8]| {
        a == b || is_page(name) && ends(a) && ends(b) && a.len().abs_diff(b.len()) < 64
    };
    seen.len() == whole.len()
        && seen.iter().all(|(name, a)| whole.get(name).is_some_and(|b| alike(name, a, b)))
}

/// Commands that write a result: whole or not there. Where one stood before, with `--force`, it is the former or the new one.
#[test]
fn results_are_whole_or_not_there() {
    let training = Training::new();
    let adapter = training.out("reference");
    let (model, data) = (training.model.as_str(), training.data.as_str());
    let folder = training.out("results");
    let dir = Path::new(&folder);
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (merged, bf16, mlx, page) = (path("merged"), path("bf16"), path("mlx"), path("page.html"));
    let texts = path("texts.jsonl");
    let commands: [Vec<&str>; 5] = [
        vec!["merge", "--model", model, "--adapter", &adapter, "--out", &merged],
        vec!["dtype", &adapter, "--to", "bf16", "--out", &bf16],
        vec!["convert", &adapter, "--to", "mlx", "--out", &mlx],
        vec!["inspect", &adapter, "--html", &page],
        vec![
            "eval",
            "--model",
            model,
            "--adapter",
            &adapter,
            "--data",
            data,
            "--metrics",
            "bleu",
            "--max-new-tokens",
            "4",
            "--predictions",
            &texts,
        ],
    ];
    for command in commands {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).unwrap();
        let (good, total) = run(dir, &command, Fault { mode: "none", at: 0 });
        assert!(good.status.success(), "{command:?}: {}", said(&good));
        let whole = files(dir);
        // What stands there before: nothing, or a former result.
        let former: BTreeMap<PathBuf, Vec<u8>> =
            whole.keys().map(|name| (name.clone(), b"the former result".to_vec())).collect();
        let force = [command.as_slice(), &["--force"]].concat();
        let mut cases = 0;
        for (before, command) in [(&BTreeMap::new(), &command), (&former, &force)] {
            let put = || {
                let _ = fs::remove_dir_all(dir);
                fs::create_dir_all(dir).unwrap();
                put(before, dir);
            };
            put();
            let (_, total) = run(dir, command, Fault { mode: "none", at: 0 });
            for (mode, at) in
                ["kill", "torn", "power", "full"].iter().flat_map(|m| (1..=total).map(move |at| (*m, at)))
            {
                put();
                let (broken, _) = run(dir, command, Fault { mode, at });
                let what = format!("{mode} at operation {at} of {}, over {} files", command[0], before.len());
                let hidden = |name: &Path| {
                    name.components().any(|part| part.as_os_str().to_string_lossy().starts_with('.'))
                };
                let (left, seen): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    files(dir).into_iter().partition(|(name, _)| hidden(name));
                assert!(seen == *before || same(&seen, &whole), "{what}: there are {:?}", seen.keys());
                if mode == "full" && broken.status.code() != Some(0) {
                    let err = said(&broken);
                    assert_eq!(broken.status.code(), Some(1), "{what}: {err}");
                    assert!(err.contains("No space left") && err.contains(&folder), "{what}: {err}");
                    assert!(left.is_empty(), "{what}: left {:?}", left.keys());
                }
                // The command goes through afterwards.
                ok(&force);
                cases += 1;
            }
        }
        println!(
            "{}: {cases} faults in {total} operations",
            command.join(" ").replace(training.dir.path().to_str().unwrap(), "")
        );
    }
}

//! What the command promises to those who run it from scripts: its exit codes, its manners on pipes and full disks, and
//! what it does when it is asked to stop.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{fixture, lowrank, tiny_data, tiny_model};

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

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, out: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        command.args(["train", "--model", &self.model, "--data", &self.data, "--out", &self.path(out)]);
        command.args(["--r", "2", "--batch-size", "4", "--threads", "1"]);
        command
    }
}

/// Commands that print: with each, what it prints fits no full disk and may be cut off by whoever reads it.
fn printing(place: &Place) -> Vec<Vec<String>> {
    let adapter = fixture("merged_linear").to_str().unwrap().to_owned();
    let (model, data) = (&place.model[..], &place.data[..]);
    [
        &["--help"][..],
        &["train", "--help"],
        &["inspect", model],
        &["inspect", &adapter, "--json"],
        &["inspect", &adapter, "--spectrum"],
        &["diff", &adapter, &adapter],
        &["eval", "--model", model, "--data", data],
        &["eval", "--model", model, "--data", data, "--json"],
        &["eval", "--model", model, "--data", data, "--metrics", "bleu", "--max-new-tokens", "2"],
        &["plan", "--model", model],
        &["plan", "--model", model, "--data", data, "--out", "x"],
        &["generate", "--model", model, "--prompt", "red", "--max-new-tokens", "9"],
        &["generate", "--model", model, "--prompt", "red", "--max-new-tokens", "9", "--num-beams", "2"],
        &["generate", "--model", model, "--chat", "--prompt", "red", "--max-new-tokens", "9"],
    ]
    .into_iter()
    .map(|args| args.iter().map(ToString::to_string).collect())
    .collect()
}

#[test]
fn a_missing_file_is_a_failure_and_ends_with_1() {
    let place = Place::new();
    let (model, data, none) = (&place.model[..], &place.data[..], &place.path("none")[..]);
    let train = ["train", "--out", &place.path("out"), "--model"];
    for args in [
        &[&train[..], &[none, "--data", data]].concat()[..],
        &[&train[..], &[model, "--data", none]].concat(),
        &[&train[..], &[model, "--data", data, "--eval-data", none]].concat(),
        &[&train[..], &[model, "--data", data, "--init-adapter", none]].concat(),
        &["train", "--config", none],
        &["eval", "--model", none, "--data", data],
        &["eval", "--model", model, "--data", none],
        &["eval", "--model", model, "--data", data, "--adapter", none],
        &["eval", "--model", model, "--data", data, "--metrics", "bleu", "--score", none],
        &["predict", "--model", none, "--data", data],
        &["generate", "--model", none, "--prompt", "a"],
        &["generate", "--model", model, "--prompt-file", none],
        &["generate", "--model", model, "--prompt", "a", "--adapter", none],
        &["merge", "--model", model, "--adapter", none, "--out", &place.path("merged")],
        &["plan", "--model", none],
        &["inspect", none],
        &["study", none],
        &["report", none],
        &["convert", none, "--to", "mlx", "--out", &place.path("x")],
        &["compose", "--adapter", none, "--out", &place.path("x")],
        &["extract", "--model", none, "--tuned", none, "--rank", "2", "--out", &place.path("x")],
        &["resize", none, "--rank", "2", "--out", &place.path("x")],
        &["prune", none, "--density", "0.5", "--out", &place.path("x")],
        &["dtype", none, "--to", "f16", "--out", &place.path("x")],
        &["rename", none, "--replace", "a", "--with", "b", "--out", &place.path("x")],
        &["diff", none, none],
    ] {
        let ran = lowrank(args);
        assert_eq!(ran.code, 1, "{args:?}: {}", ran.err);
        assert!(ran.err.contains("error: ") && ran.err.contains("none"), "{args:?}: {}", ran.err);
    }
}

#[test]
fn wrong_usage_ends_with_2_and_names_the_flag() {
    let place = Place::new();
    let (model, data) = (&place.model[..], &place.data[..]);
    let train = ["train", "--model", model, "--data", data, "--out", &place.path("out")];
    let config = place.path("run.toml");
    fs::write(&config, "learning-rat = 1\n").unwrap();
    for (args, part) in [
        (&["train"][..], "--model"),
        (&[&train[..], &["--learning-rate", "-1"]].concat(), "--learning-rate must be"),
        (&[&train[..], &["--learnin-rate", "1"]].concat(), "--learning-rate"),
        (&[&train[..], &["--r", "-1"]].concat(), "--r"),
        (&[&train[..], &["--batch-size", "0"]].concat(), "--batch-size must be at least 1"),
        (&[&train[..], &["--warmup-steps", "3", "--warmup-ratio", "0.1"]].concat(), "--warmup-ratio"),
        (&["train", "--config", &config], "learning_rate"),
        (&["eval", "--model", model], "--data"),
        (&["nonsense"], "nonsense"),
        (&["prune", model, "--out", &place.path("x")], "--density"),
    ] {
        let ran = lowrank(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(part), "{args:?}: {}", ran.err);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_failure_and_ends_with_1() {
    let place = Place::new();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in printing(&place) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        let out = command.args(&args).stdin(Stdio::null()).stdout(full()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("standard output: No space left") || args.contains(&"--help".into()), "{said}");
    }
    // Where messages cannot be written the work is done nevertheless.
    let status = place.train("out").args(["--max-steps", "2"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_ends_every_command_quietly() {
    let place = Place::new();
    for args in printing(&place) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
        let out = command.args(&args).stdin(Stdio::null()).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{args:?}: {said}");
        assert!(!said.contains("error") && !said.contains("panicked"), "{args:?}: {said}");
    }
}

/// SIGTERM (Slurm, systemd, Docker) and SIGHUP (a closed terminal) save as Ctrl-C does.
#[cfg(unix)]
#[test]
fn signals_save_the_run() {
    let place = Place::new();
    let more = ["--max-steps", "400", "--save-steps", "0"];
    let whole = place.train("whole").args(more).stderr(Stdio::null()).status().unwrap();
    assert!(whole.success());
    let adapter =
        |name: &str| fs::read(Path::new(&place.path(name)).join("adapter_model.safetensors")).unwrap();
    for signal in ["TERM", "HUP"] {
        let mut child = place.train(signal).args(more).stderr(Stdio::null()).spawn().unwrap();
        let log = Path::new(&place.path(signal)).join("log.jsonl");
        while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 5 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        }
        let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        let resumed = place.train(signal).args(more).arg("--resume").stderr(Stdio::null()).status().unwrap();
        assert!(resumed.success());
        assert_eq!(adapter("whole"), adapter(signal), "{signal}");
    }
}

/// A model that is cut while it is read, as by a copy over it, is named; any other SIGBUS ends the process as before.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_is_cut_while_it_is_in_use_is_named() {
    use std::os::unix::process::ExitStatusExt;
    let place = Place::new();
    for (name, cut) in [("cut", true), ("signal", false)] {
        let mut child = place
            .train(name)
            .args(["--max-steps", "1000000", "--save-steps", "0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Path::new(&place.path(name)).join("log.jsonl");
        while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 5 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        }
        let model = Path::new(&place.model).join("model.safetensors");
        let whole = fs::read(&model).unwrap();
        if cut {
            fs::File::options().write(true).open(&model).unwrap().set_len(0).unwrap();
        } else {
            // The standard library's handler takes the first for no stack that overflowed, and gives way to the default.
            for _ in 0..2 {
                let kill = Command::new("kill").args(["-BUS", &child.id().to_string()]).status();
                assert!(kill.unwrap().success());
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        }
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        match cut {
            true => {
                assert_eq!(ended.status.code(), Some(1), "{said}");
                assert!(said.contains(&format!("error: {}: was cut short", model.display())), "{said}");
            }
            false => assert_eq!(ended.status.signal(), Some(7), "{said}"),
        }
        fs::write(&model, whole).unwrap();
    }
}

//! The folder of a run: nothing in it or beside it is lost.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Ran, lowrank, lowrank_ok, overriding, tiny_data, tiny_model};
use lowrank::train::log::{Progress, Report};
use lowrank::{Session, TrainOptions, finetune_with};

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        tiny_data(&dir.path().join("train.jsonl"), 30);
        Self { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn train(&self, out: &str, more: &[&str]) -> Ran {
        let (data, out) = (self.path("train.jsonl"), self.path(out));
        let args = ["train", "--model", &self.model, "--data", &data, "--out", &out, "--max-steps", "4"];
        let args = [&args[..], &["--batch-size", "4", "--threads", "1", "--learning-rate", "0.01"]].concat();
        lowrank(&overriding(&args, more))
    }

    /// A run that is stopped after step `until`, in the library.
    fn steps(&self, out: &str, until: u64, resume: bool) {
        let options = TrainOptions {
            model: self.model.clone(),
            data: self.path("train.jsonl").into(),
            out: self.path(out).into(),
            batch_size: 4,
            max_steps: Some(8),
            save_steps: 0,
            resume,
            ..TrainOptions::default()
        };
        let session = Session::for_run(&options).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let show = move |_, _| {
            Progress::call(move |report| {
                if matches!(report, Report::Step(record) if record.step == until) {
                    flag.store(true, Ordering::Relaxed);
                }
            })
        };
        let summary = finetune_with(&session, &options, &stop, show).unwrap();
        assert_eq!((summary.steps, summary.interrupted), (until, until < 8));
    }
}

/// Every file below `dir`, with its content.
fn files(dir: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(dir)];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push((path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// With `--force` everything is checked while the old run is still there.
#[test]
fn a_run_is_replaced_once_nothing_can_be_refused() {
    let place = Place::new();
    assert_eq!(place.train("a", &[]).code, 0);
    let before = files(&place.path("a"));
    let (bad, broken) = (place.path("bad.jsonl"), place.path("none/log"));
    fs::write(&bad, "{}\n").unwrap();
    let best = place.path("a/checkpoints/last");
    let refused: [&[&str]; 9] = [
        &["--data", &place.path("none.jsonl")],
        &["--data", &bad],
        &["--eval-data", &bad],
        &["--target-modules", "c_attn"],
        &["--r", "0"],
        &["--model", &place.path("none")],
        &["--init-adapter", &place.path("none")],
        &["--log-json", &broken],
        &["--tensorboard", &bad],
    ];
    for more in refused {
        let ran = place.train("a", &[more, &["--force"]].concat());
        assert!(ran.code == 2 || ran.code == 1, "{more:?}: {}", ran.err);
        assert!(files(&place.path("a")) == before, "{more:?} changed the run");
    }
    // An adapter to start from, in the run that is replaced.
    for from in [&best, &place.path("a")] {
        let ran = place.train("a", &["--init-adapter", from, "--force"]);
        assert!(ran.code == 2 && ran.err.contains("choose another"), "{}", ran.err);
        assert!(files(&place.path("a")) == before);
    }
    let other = place.train("a", &["--force", "--seed", "9"]);
    assert_eq!(other.code, 0, "{}", other.err);
    let after = files(&place.path("a"));
    assert_eq!(before.len(), after.len(), "{after:#?}");
    assert_ne!(before, after);
}

/// Killed between setting the old run aside and beginning the new one, the old one is there again.
#[test]
fn a_run_that_was_set_aside_comes_back() {
    let place = Place::new();
    assert_eq!(place.train("a", &[]).code, 0);
    let before = files(&place.path("a"));
    let dir = PathBuf::from(place.path("a"));
    fs::create_dir(dir.join(".replaced")).unwrap();
    for name in ["adapter_config.json", "checkpoints", "log.jsonl"] {
        fs::rename(dir.join(name), dir.join(".replaced").join(name)).unwrap();
    }
    fs::write(dir.join("log.jsonl"), "").unwrap();
    fs::create_dir(dir.join(".removed")).unwrap();
    let ran = place.train("a", &["--seed", "9"]);
    assert!(ran.code == 2 && ran.err.contains("--resume to continue it or --force"), "{}", ran.err);
    assert!(files(&place.path("a")) == before);
}

/// What is there is named, with what helps: no advice leads to another that says the contrary.
#[test]
fn advice_fits_what_is_there() {
    let place = Place::new();
    let refused = |name: &str, more: &[&str], word: &str| {
        let before = files(&place.path(name));
        let ran = place.train(name, more);
        assert!(ran.code == 2 && ran.err.contains(word), "{name} {more:?}: {}", ran.err);
        assert!(files(&place.path(name)) == before, "{name}");
    };
    // A run before its first checkpoint: resuming and starting say the same.
    fs::create_dir(place.path("early")).unwrap();
    let line = r#"{"step":1,"epoch":0.1,"loss":2.5}"#;
    fs::write(place.path("early/log.jsonl"), format!("{line}\n")).unwrap();
    fs::create_dir_all(place.path("early/checkpoints/last.new")).unwrap();
    refused("early", &[], "without a checkpoint: use --force");
    refused("early", &["--resume"], "no checkpoint to resume from; use --force in its place");
    assert_eq!(place.train("early", &["--force"]).code, 0);
    // Nothing at all.
    let ran = place.train("none", &["--resume"]);
    assert!(ran.code == 2 && ran.err.contains("drop --resume"), "{}", ran.err);
    assert!(!Path::new(&place.path("none")).exists());
    assert_eq!(place.train("none", &[]).code, 0);
    refused("none", &[], "--resume to continue it or --force to replace it");
    // An adapter that no run can go on from.
    fs::remove_dir_all(place.path("none/checkpoints")).unwrap();
    refused("none", &[], "holds an adapter: use --force");
    refused("none", &["--resume"], "no checkpoint to resume from; use --force");
    // Files of someone else.
    for name in ["README.md", "log.jsonl", "task.json"] {
        let folder = place.path(&format!("foreign-{name}"));
        fs::create_dir(&folder).unwrap();
        fs::write(Path::new(&folder).join(name), "mine").unwrap();
        fs::write(Path::new(&folder).join("notes"), "mine").unwrap();
        refused(&format!("foreign-{name}"), &[], &format!("{name} is there already"));
        assert_eq!(place.train(&format!("foreign-{name}"), &["--force"]).code, 0);
        assert_eq!(fs::read(Path::new(&folder).join("notes")).unwrap(), b"mine");
    }
    // A model card that was written anew stays when the run goes on.
    assert_eq!(place.train("b", &[]).code, 0);
    fs::write(place.path("b/README.md"), "mine").unwrap();
    let ran = place.train("b", &["--resume"]);
    assert!(ran.code == 0 && ran.err.contains("is not this run's and stays"), "{}", ran.err);
    assert_eq!(fs::read(place.path("b/README.md")).unwrap(), b"mine");
}

/// What is read is never written to, under whatever name.
#[test]
fn inputs_are_never_overwritten() {
    let place = Place::new();
    let (data, model) = (place.path("train.jsonl"), place.model.clone());
    assert_eq!(place.train("a", &[]).code, 0);
    let adapter = place.path("a");
    let (hard, soft) = (place.path("hard"), place.path("soft"));
    fs::hard_link(&data, &hard).unwrap();
    std::os::unix::fs::symlink(&data, &soft).unwrap();
    let weights = format!("{model}/model.safetensors");
    let before = (files(&model), fs::read(&data).unwrap(), files(&adapter));
    let same = |args: &[&str], word: &str| {
        let ran = lowrank(args);
        assert!(ran.code == 2 && ran.err.contains(word), "{args:?}: {}", ran.err);
        let now = (files(&model), fs::read(&data).unwrap(), files(&adapter));
        assert!(now == before, "{args:?} changed an input");
    };
    let refused = |args: &[&str]| same(&[args, &["--force"]].concat(), "is an input of this command");
    let train = ["train", "--model", &model, "--data", &data, "--max-steps", "1"];
    for log in [&data, &hard, &soft, &weights, &format!("{adapter}/adapter_model.safetensors")] {
        let more = ["--out", &place.path("x"), "--init-adapter", &adapter, "--log-json", log];
        refused(&[&train[..], &more].concat());
    }
    same(&[&train[..], &["--out", &model, "--force"]].concat(), "choose another --out");
    let log = format!("{}/README.md", place.path("x"));
    same(
        &[&train[..], &["--out", &place.path("x"), "--log-json", &log, "--force"]].concat(),
        "another file of the run",
    );
    let template = place.path("own.jinja");
    fs::write(&template, "{{ messages[0].content }}").unwrap();
    let more = ["--out", &place.path("x"), "--chat-template", &template, "--log-json", &template];
    refused(&[&train[..], &more].concat());

    let metrics = ["eval", "--model", &model, "--data", &data, "--metrics", "bleu", "--max-new-tokens", "1"];
    for texts in [&data, &hard, &soft, &weights] {
        refused(&[&metrics[..], &["--predictions", texts]].concat());
    }
    let config = format!("{adapter}/adapter_config.json");
    refused(&["inspect", &adapter, "--html", &config]);
    refused(&["merge", "--model", &model, "--adapter", &adapter, "--out", &adapter]);
    refused(&["merge", "--model", &model, "--adapter", &adapter, "--out", &model]);
    refused(&["merge", "--model", &model, "--adapter", &adapter, "--out", &weights]);
    for out in [&adapter, &config, &place.path("")] {
        refused(&["convert", &adapter, "--to", "mlx", "--out", out]);
        refused(&["dtype", &adapter, "--to", "f16", "--out", out]);
        refused(&["rename", &adapter, "--replace", "q_proj", "--with", "q", "--out", out]);
        refused(&["resize", &adapter, "--rank", "1", "--out", out]);
        refused(&["prune", &adapter, "--density", "0.5", "--out", out]);
        refused(&["compose", "--adapter", &adapter, "--out", out]);
        refused(&["extract", "--model", &model, "--tuned", &adapter, "--rank", "1", "--out", out]);
    }
}

/// Other files are replaced only where that was asked for.
#[test]
fn files_that_are_there_stay() {
    let place = Place::new();
    let (data, model, mine) = (place.path("train.jsonl"), place.model.clone(), place.path("mine"));
    assert_eq!(place.train("a", &[]).code, 0);
    let adapter = place.path("a");
    fs::write(&mine, "mine").unwrap();
    let metrics = ["eval", "--model", &model, "--data", &data, "--metrics", "bleu", "--max-new-tokens", "1"];
    let train = ["train", "--model", &model, "--data", &data, "--max-steps", "1", "--out"];
    let (fresh, folder) = (place.path("fresh"), place.path("folder"));
    fs::create_dir(&folder).unwrap();
    fs::write(format!("{folder}/notes"), "mine").unwrap();
    fs::write(format!("{folder}/task.json"), "{}").unwrap();
    let commands: [Vec<&str>; 5] = [
        [&train[..], &[&fresh, "--log-json", &mine]].concat(),
        [&metrics[..], &["--predictions", &mine]].concat(),
        vec!["inspect", &adapter, "--html", &mine],
        vec!["dtype", &adapter, "--to", "f16", "--out", &folder],
        vec!["merge", "--model", &model, "--adapter", &adapter, "--out", &folder],
    ];
    for command in commands {
        let ran = lowrank(&command);
        assert!(
            ran.code == 2 && ran.err.contains("exists; use --force to replace it"),
            "{command:?}: {}",
            ran.err
        );
        assert_eq!(fs::read(&mine).unwrap(), b"mine", "{command:?}");
        assert!(!Path::new(&fresh).exists(), "{command:?}");
        lowrank_ok(&[&command[..], &["--force"]].concat());
        if command.contains(&mine.as_str()) {
            assert_ne!(fs::read(&mine).unwrap(), b"mine");
            fs::write(&mine, "mine").unwrap();
        } else {
            // What belongs to no adapter or model stays.
            assert_eq!(fs::read(format!("{folder}/notes")).unwrap(), b"mine");
            assert!(!Path::new(&format!("{folder}/task.json")).exists(), "{command:?}");
        }
        let _ = fs::remove_dir_all(&fresh);
    }
    let bad = place.path("bad");
    fs::write(&bad, "x").unwrap();
    let into_file =
        ["merge", "--model", &model, "--adapter", &adapter, "--out", &folder, "--force", "--dtype", "q8_0"];
    assert_eq!(lowrank(&into_file).code, 2);
    assert!(Path::new(&format!("{folder}/config.json")).exists());
}

/// A second run says who holds the folder, and takes it over from a process that is gone.
#[test]
fn two_runs_do_not_share_a_folder() {
    let place = Place::new();
    let (data, out) = (place.path("train.jsonl"), place.path("a"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(["train", "--model", &place.model, "--data", &data, "--out", &out, "--max-steps", "100000"])
        .args(["--batch-size", "4", "--threads", "1", "--save-steps", "5"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while fs::read_to_string(format!("{out}/log.jsonl")).map_or(0, |text| text.lines().count()) < 20 {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    for more in [&["--force"][..], &["--resume"], &[]] {
        let ran = place.train("a", more);
        let who = format!("process {}", child.id());
        assert!(ran.code == 2 && ran.err.contains(&who) && ran.err.contains("since"), "{}", ran.err);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(Path::new(&format!("{out}/.lowrank.lock")).exists(), "it was killed with the lock");
    let ran = place.train("a", &["--force"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!Path::new(&format!("{out}/.lowrank.lock")).exists());
}

/// In every state between two operations there is a checkpoint to go on from, and all end with the same adapter.
#[test]
fn every_state_of_the_checkpoints_goes_on() {
    let place = Place::new();
    place.steps("whole", 8, false);
    let adapter = |name: &str| fs::read(place.path(&format!("{name}/adapter_model.safetensors"))).unwrap();
    place.steps("three", 3, false);
    copy(Path::new(&place.path("three")), Path::new(&place.path("five")));
    place.steps("five", 5, true);
    let three = PathBuf::from(place.path("three/checkpoints/last"));
    let five = PathBuf::from(place.path("five/checkpoints/last"));
    // Under which name what is: the checkpoints of two steps, or half of one.
    let half = |at: &Path| {
        fs::create_dir_all(at).unwrap();
        fs::copy(five.join("adapter_config.json"), at.join("adapter_config.json")).unwrap();
    };
    let states: [(&str, &[(&str, &str)]); 12] = [
        ("before the first", &[("last", "3")]),
        ("while the next is written", &[("last", "3"), ("last.new", "half")]),
        ("the next is whole", &[("last", "3"), ("last.new", "5")]),
        ("the former is moved", &[("last.old", "3"), ("last.new", "5")]),
        ("the next is moved", &[("last.old", "3"), ("last", "5")]),
        ("the former is being removed", &[("last.old.gone", "half"), ("last", "5")]),
        ("done", &[("last", "5")]),
        ("only the next", &[("last.new", "5")]),
        ("only the former", &[("last.old", "3")]),
        ("only the former, the next half", &[("last.old", "3"), ("last.new", "half")]),
        ("an older one under its name", &[("last", "3"), ("last.old", "5")]),
        ("a half one under its name", &[("last", "half"), ("last.old", "3"), ("last.new", "5")]),
    ];
    for (what, state) in states {
        let run = place.path("run");
        let _ = fs::remove_dir_all(&run);
        copy(Path::new(&place.path("three")), Path::new(&run));
        let folder = Path::new(&run).join("checkpoints");
        fs::remove_dir_all(&folder).unwrap();
        for (name, from) in state {
            match *from {
                "3" => copy(&three, &folder.join(name)),
                "5" => copy(&five, &folder.join(name)),
                _ => half(&folder.join(name)),
            }
        }
        // Stopped again at once, what is there is whole under its name.
        let newest = if state.iter().any(|(_, from)| *from == "5") { 5 } else { 3 };
        lowrank::train::checkpoint::settle(Path::new(&run)).unwrap();
        let state: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("last/trainer_state.json")).unwrap()).unwrap();
        assert_eq!(state["step"], newest, "{what}");
        assert!(!folder.join("last.new").exists(), "{what}");
        place.steps("run", 8, true);
        assert!(adapter("run") == adapter("whole"), "{what}: another adapter");
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{what}: {left:?}");
    }
}

/// A checkpoint that gives no finite loss is not kept, and the one before it is.
#[test]
fn a_run_that_diverges_keeps_a_good_checkpoint() {
    let place = Place::new();
    let state = |name: &str| -> serde_json::Value {
        let path = place.path(&format!("{name}/checkpoints/last/trainer_state.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    // The first step has the rate 0, the second one that destroys everything.
    let rate =
        ["--preset=peft", "--learning-rate", "1e38", "--lr-scheduler", "constant", "--save-steps", "1"];
    let ran = place.train("a", &[&rate[..], &["--warmup-steps", "2"]].concat());
    assert_eq!(ran.code, 1, "{}", ran.err);
    for word in [
        "step 3: the loss is",
        "that of step 1 is the last one now",
        "Lower --learning-rate",
        "--init-adapter",
    ] {
        assert!(ran.err.contains(word), "{word}: {}", ran.err);
    }
    assert_eq!(state("a")["step"], 1);
    assert!(!Path::new(&place.path("a/adapter_model.safetensors")).exists());
    let again = place.train("b", &["--init-adapter", &place.path("a/checkpoints/last")]);
    assert_eq!(again.code, 0, "{}", again.err);
    // Nothing before it.
    let rate =
        ["--preset=peft", "--learning-rate", "1e37", "--lr-scheduler", "constant", "--save-steps", "2"];
    let ran = place.train("c", &rate);
    assert!(ran.code == 1 && ran.err.contains("the only checkpoint leads here: use --force"), "{}", ran.err);
    // Without a checkpoint there is none to speak of.
    let ran = place.train("d", &[&rate[..5], &["--save-steps", "0"]].concat());
    assert!(ran.code == 1 && !ran.err.contains("checkpoint"), "{}", ran.err);
    // Values that overflow are not saved.
    let ran = place.train(
        "e",
        &["--preset=peft", "--learning-rate", "1e38", "--lr-scheduler", "constant", "--save-steps", "1"],
    );
    assert!(ran.code == 1 && ran.err.contains("lora_A.weight is not finite any more"), "{}", ran.err);
    assert!(!Path::new(&place.path("e/checkpoints/last")).exists());
}

#[test]
fn a_broken_base_is_told_from_a_rate_that_is_too_high() {
    let place = Place::new();
    let file = Path::new(&place.model).join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let (at, size) = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        (at, view.data().len() / view.shape().iter().product::<usize>())
    };
    let last = at + size - 2;
    bytes[last..last + 2].copy_from_slice(&[0xff, 0x7f]);
    fs::write(&file, bytes).unwrap();
    let ran = place.train("a", &[]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(
        ran.err.contains(&format!("The base is broken: {name}")) && ran.err.contains("row 0, column 0"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("--learning-rate"), "{}", ran.err);
}

#[test]
fn a_loss_that_rises_is_said_at_the_end() {
    let place = Place::new();
    let ran = place.train("a", &["--max-steps", "60"]);
    assert!(ran.code == 0 && !ran.err.contains("rose"), "{}", ran.err);
    let more = ["--learning-rate", "1000", "--lr-scheduler", "constant", "--max-grad-norm", "0"];
    let from = ["--max-steps", "30", "--init-adapter", &place.path("a")];
    let ran = place.train("b", &[&from[..], &more].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("the loss rose from") && ran.err.contains("--learning-rate, such as 1e2"),
        "{}",
        ran.err
    );
}

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
        &["push", none, "org/name"],
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
fn numbers_out_of_range_end_with_2_wherever_they_come_from() {
    let place = Place::new();
    let config = place.path("run.toml");
    let check = |args: &[&str], parts: &[&str]| {
        let ran = lowrank(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(parts.iter().all(|part| ran.err.contains(part)), "{args:?}: {}", ran.err);
    };
    for (line, parts) in [
        ("r = 100000", &["--r is 100000", "a whole number from 1 to 65536"][..]),
        ("r = -1", &["--r is -1", "a whole number from 1 to 65536"]),
        ("lora-alpha = nan", &["--lora-alpha is nan", "above 0"]),
        ("lora_dropout = 1.5", &["--lora-dropout is 1.5", "below 1"]),
        ("learning_rate = inf", &["--learning-rate is inf", "to 1000"]),
        ("learning_rate = 1e400", &["learning_rate", "overflowed"]),
        ("threads = 5000", &["--threads is 5000", "from 1 to 1024"]),
        ("batch_size = 9223372036854775807", &["--batch-size is 9223372036854775807", "to 65536"]),
        ("layers_to_transform = [1, 70000]", &["--layers-to-transform is 70000", "to 65535"]),
        ("rank_pattern = { q = 1000000000 }", &["--rank-pattern is 1000000000", "to 65536"]),
        ("alpha_pattern = { q = nan }", &["--alpha-pattern is nan"]),
        ("peft_options = { r = 0 }", &["--r is 0", "to 65536"]),
        (
            "method = \"prompt\"\npeft_options = { num_virtual_tokens = 1000000000 }",
            &["num_virtual_tokens is 1000000000"],
        ),
    ] {
        fs::write(&config, line).unwrap();
        let train = ["train", "--config", &config, "--model", &place.model, "--data", &place.data, "--out"];
        check(&[&train[..], &[&place.path("out")]].concat(), parts);
    }
    // Where several keys are, the one that is wrong is named with its line.
    for (text, parts) in [
        ("r = 4\n\nlerning-rate = 1.0\n", &["run.toml:3: unknown option", "did you mean learning_rate?"][..]),
        ("r = 4\nepochs = \"many\"\n", &["run.toml:2: --epochs"]),
    ] {
        fs::write(&config, text).unwrap();
        check(
            &["train", "--config", &config, "--model", &place.model, "--data", &place.data, "--out", "x"],
            parts,
        );
    }
    let plan = ["plan", "--model", &place.model, "--batch-size", "65536", "--max-seq-len", "1048576"];
    check(&plan, &["--batch-size x --max-seq-len is 65536 x"]);

    // An adapter of another program.
    let adapter = place.path("adapter");
    fs::create_dir(&adapter).unwrap();
    for (fields, parts) in [
        (r#""r": 1000000000"#, "r is 1000000000; it must be a whole number from 1 to 65536"),
        (r#""r": -1"#, "r"),
        (r#""r": 1e400"#, "adapter_config.json"),
        (r#""lora_alpha": NaN"#, "adapter_config.json"),
        (r#""lora_alpha": 1e300"#, "lora_alpha is 1"),
        (r#""lora_dropout": 1.5"#, "lora_dropout is 1.5"),
        (r#""rank_pattern": {"q": 1000000000}"#, "rank_pattern is 1000000000"),
        (
            r#""peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1000000000"#,
            "num_virtual_tokens is 1000000000",
        ),
        (
            r#""peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "token_dim": 4294967295"#,
            "token_dim is 4294967295",
        ),
        (r#""peft_type": "ADALORA", "init_r": 1000000000, "target_r": 8"#, "init_r is 1000000000"),
    ] {
        let lora = if fields.contains("peft_type") { "" } else { r#""peft_type": "LORA", "# };
        let text = format!(r#"{{{lora}{fields}, "target_modules": ["q_proj"]}}"#);
        fs::write(place.dir.path().join("adapter/adapter_config.json"), text).unwrap();
        for args in [
            &["eval", "--model", &place.model, "--data", &place.data, "--adapter", &adapter][..],
            &["inspect", &adapter],
        ] {
            check(args, &[parts]);
        }
    }
}

/// A megabyte in whatever a message quotes, and nesting that no stack holds: an error of a few lines each.
#[test]
fn long_and_deep_values_end_with_a_short_error() {
    let place = Place::new();
    let (long, deep) = ("x".repeat(1 << 20), 100_000);
    let (model, data, out) = (&place.model[..], &place.data[..], &place.path("out")[..]);
    let check = |args: &[&str], what: &str| {
        let ran = lowrank(args);
        assert!((1..=2).contains(&ran.code), "{what}: {} {}", ran.code, &ran.err[..ran.err.len().min(2000)]);
        assert!(ran.err.len() < 4096, "{what}: {} bytes", ran.err.len());
        assert!(ran.err.contains("error") && !ran.err.contains("panicked"), "{what}: {}", ran.err);
    };
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(deep), close.repeat(deep));
    let dotted = vec!["a"; deep].join(".");
    let config = place.path("run.toml");
    let train = ["train", "--config", &config, "--model", model, "--data", data, "--out", out];
    for (what, text) in [
        ("key", format!("{long} = 1")),
        ("text for a number", format!("r = \"{long}\"")),
        ("target module", format!("target_modules = [\"{long}\"]")),
        ("regular expression", format!("target_modules = \"({long}\"")),
        ("deep regular expression", format!("target_modules = \"{}\"", nested("(", ")"))),
        ("pattern", format!("rank_pattern = {{ \"({long}\" = 2 }}")),
        ("saved module", format!("modules_to_save = [\"{long}\"]")),
        ("method", format!("method = \"{long}\"")),
        ("field", format!("peft_options = {{ {long} = 2 }}")),
        ("start", format!("init_lora_weights = \"{long}\"")),
        ("template", format!("prompt_template = \"{{{long}}}\"")),
        ("chat template", format!("chat_template = \"{long}\"")),
        ("column", format!("prompt_column = \"{long}\"")),
        ("format", format!("data_format = \"{long}\"")),
        ("task", format!("task = \"{long}\"")),
        ("bias", format!("bias = \"{long}\"")),
        ("deep array", format!("a = {}", nested("[", "]"))),
        ("open array", format!("a = {}", "[".repeat(deep))),
        ("deep table", format!("a = {}1{}", "{a=".repeat(deep), "}".repeat(deep))),
        ("dotted key", format!("{dotted} = 1")),
        ("dotted table", format!("[{dotted}]\nb = 1")),
        ("one line", long.clone()),
    ] {
        fs::write(&config, &text).unwrap();
        check(&train, what);
        fs::write(&config, format!("name = \"a\"\nout = \"a\"\n{text}\n[train]\n{text}")).unwrap();
        check(&["study", &config], what);
    }

    let rows = place.path("rows.jsonl");
    let eval = ["eval", "--model", model, "--data", &rows];
    for (what, row) in [
        ("column", format!("{{\"{long}\": 1}}")),
        ("value", format!("{{\"prompt\": \"{long}\", \"completion\": 3}}")),
        ("role", format!("{{\"messages\": [{{\"role\": \"{long}\", \"content\": \"a\"}}]}}")),
        ("no JSON", long.clone()),
        ("deep array", nested("[", "]")),
        ("deep value", format!("{{\"prompt\": {}}}", nested("[", "]"))),
        ("open objects", "{\"a\":".repeat(deep)),
    ] {
        fs::write(&rows, row).unwrap();
        check(&eval, what);
        for task in ["classification", "token-classification", "pair-classification", "regression"] {
            check(&[&eval[..], &["--task", task, "--labels", "a,b"]].concat(), what);
        }
    }
    fs::write(&rows, format!("{{\"text\": \"a\", \"label\": \"{long}\"}}")).unwrap();
    check(&[&eval[..], &["--task", "classification", "--labels", "a,b"]].concat(), "label");

    let adapter = place.path("adapter");
    fs::create_dir(&adapter).unwrap();
    for (what, fields) in [
        ("method", format!(r#""peft_type": "{long}""#)),
        ("modules", format!(r#""peft_type": "LORA", "target_modules": ["{long}"]"#)),
        ("pattern", format!(r#""peft_type": "LORA", "target_modules": "({long}""#)),
        ("bias", format!(r#""peft_type": "LORA", "target_modules": ["q_proj"], "bias": "{long}""#)),
        ("rank", format!(r#""peft_type": "LORA", "target_modules": ["q_proj"], "r": "{long}""#)),
        ("deep", format!(r#""peft_type": "LORA", "a": {}"#, nested("[", "]"))),
    ] {
        fs::write(place.dir.path().join("adapter/adapter_config.json"), format!("{{{fields}}}")).unwrap();
        check(&["eval", "--model", model, "--data", data, "--adapter", &adapter], what);
        check(&["resize", &adapter, "--rank", "2", "--out", out], what);
    }

    // Files of the model.
    for (file, text) in [
        ("config.json", format!(r#"{{"model_type": "{long}"}}"#)),
        ("config.json", format!(r#"{{"a": {}}}"#, nested("[", "]"))),
        ("config.json", nested("{\"a\":", "}")),
        ("model.safetensors.index.json", format!(r#"{{"weight_map": {{"a": "../{long}"}}}}"#)),
        ("model.safetensors.index.json", format!(r#"{{"weight_map": {{"a": {}}}}}"#, nested("[", "]"))),
        ("tokenizer.json", format!(r#"{{"{long}": 1}}"#)),
        ("tokenizer.json", nested("[", "]")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny_model(folder.path());
        if file.contains("index") {
            fs::remove_file(Path::new(&model).join("model.safetensors")).unwrap();
        }
        fs::write(Path::new(&model).join(file), text).unwrap();
        check(&["eval", "--model", &model, "--data", data], file);
    }

    // The longest argument that the system takes.
    let argument = &long[..100_000];
    for args in [
        &["train", "--r", argument][..],
        &["train", argument],
        &[argument],
        &["generate", "--model", model, "--prompt", "a", "--num-beams", "2", "--early-stopping", argument],
        &["generate", "--model", model, "--prompt", "a", "--chat-template", argument],
        &["prune", &adapter, "--out", out, "--drop", &format!("({argument}")],
        &["convert", &adapter, "--out", out, "--to", argument],
        &["compose", "--adapter", &adapter, "--out", out, "--how", argument],
        &["eval", "--model", argument, "--data", data],
        &["eval", "--model", model, "--data", argument],
    ] {
        check(args, args[0]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_started_are_an_error() {
    let place = Place::new();
    let command = env!("CARGO_BIN_EXE_lowrank");
    let generate = format!("{command} generate --model {} --prompt red --threads 1024", place.model);
    // A thread's stack takes 2 MB of addresses. What is left behind the last one may be too little for what the standard
    // library does at a thread's start, which ends the process: not at all of these limits, which are no whole stacks apart.
    let ran = [1_000_000, 1_000_500, 1_001_000, 1_001_500].map(|limit| {
        let limited = format!("export MALLOC_ARENA_MAX=1; ulimit -v {limit}; exec {generate}");
        Command::new("sh").args(["-c", &limited]).output().unwrap()
    });
    let said = ran.map(|ran| (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned()));
    let clean = |(code, err): &(Option<i32>, String)| {
        *code == Some(1) && err.contains("error: cannot start 1024 threads") && !err.contains("panicked")
    };
    assert!(said.iter().any(clean), "{said:?}");
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
        (&[&train[..], &["--learning-rate", "-1"]].concat(), "must be a number from 0 to"),
        (&[&train[..], &["--learnin-rate", "1"]].concat(), "--learning-rate"),
        (&[&train[..], &["--r", "-1"]].concat(), "--r"),
        (&[&train[..], &["--batch-size", "0"]].concat(), "must be a whole number from 1"),
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

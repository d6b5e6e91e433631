//! Runs of several processes: the same bits as one, under Open MPI, under MPICH and started by `--processes`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, overriding, ran, tiny_model};
use serde_json::Value;

/// What starts the ranks.
#[derive(Clone)]
enum Start {
    /// `mpirun`, with what it needs here.
    Launcher(PathBuf, &'static [&'static str]),
    /// `--processes`.
    Processes,
}

impl Start {
    fn open_mpi() -> Option<Self> {
        let more = &["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"];
        lowrank_testing::open_mpi().map(|program| Self::Launcher(program, more))
    }

    fn mpich() -> Option<Self> {
        lowrank_testing::mpich().map(|program| Self::Launcher(program, &[]))
    }

    fn command(&self, ranks: usize, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_lowrank");
        let ranks = ranks.to_string();
        let mut command = match self {
            Self::Launcher(launcher, more) => {
                let mut command = Command::new(launcher);
                command.args(*more).args(["-n", &ranks, program]).args(args);
                command
            }
            Self::Processes => {
                let mut command = Command::new(program);
                command.args(args).args(["--processes", &ranks]);
                command
            }
        };
        command.stdin(Stdio::null());
        command
    }
}

struct Place {
    dir: tempfile::TempDir,
    model: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_model(dir.path());
        let place = Self { dir, model };
        texts(&place.path("train.jsonl"), 40);
        texts(&place.path("eval.jsonl"), 9);
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The arguments of a run with evaluations, samples and dropout.
    fn args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let (data, eval, out) = (self.path("train.jsonl"), self.path("eval.jsonl"), self.path(out));
        let args = ["train", "--model", &self.model, "--data", &data, "--eval-data", &eval, "--out", &out];
        let run = ["--batch-size", "12", "--max-steps", "4", "--eval-steps", "2", "--save-steps", "2"];
        let rest = ["--threads", "1", "--lora-dropout", "0.1", "--learning-rate", "0.02", "--r", "2"];
        let samples = ["--sample-prompts", "red and", "--sample-max-new-tokens", "4"];
        let args = [&args[..], &run, &rest, &samples].concat();
        overriding(&args, more).into_iter().map(str::to_owned).collect()
    }

    fn run(&self, start: &Start, ranks: usize, args: &[String]) -> Ran {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        ran(start.command(ranks, &args).output().unwrap())
    }

    fn alone(&self, args: &[String]) -> Ran {
        ran(Command::new(env!("CARGO_BIN_EXE_lowrank")).args(args).output().unwrap())
    }

    /// The adapter, the optimiser's moments and what the log says besides times.
    fn result(&self, out: &str) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
        let dir = self.dir.path().join(out);
        let read = |name: &str| fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{out}/{name}: {e}"));
        let optimizer = read("checkpoints/last/optimizer.safetensors");
        (read("adapter_model.safetensors"), optimizer, log(&dir.join("log.jsonl")))
    }
}

/// Texts of different lengths, so that a batch of twelve has more than four shards.
fn texts(path: &str, lines: usize) {
    let words = ["red", "blue", "green", "gold", "grey"];
    let mut text = String::new();
    for i in 0..lines {
        let many: Vec<&str> = (0..12 + i * 7 % 17).map(|j| words[(i + j * j) % 5]).collect();
        let line =
            serde_json::json!({"prompt": format!("{} {i} and", words[i % 5]), "completion": many.join(" ")});
        text.push_str(&format!("{line}\n"));
    }
    fs::write(path, text).unwrap();
}

fn log(path: &Path) -> Vec<Value> {
    let changes = ["tokens_per_s", "step_s", "peak_rss_bytes", "eval_s", "sample_s"];
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().retain(|key, _| !changes.contains(&key.as_str()));
        value
    };
    text.lines().map(line).collect()
}

/// Ends a process that a failed test would leave.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn same_bits(start: &Start, ranks: &[usize]) {
    let place = Place::new();
    let alone = place.alone(&place.args("alone", &[]));
    assert_eq!(alone.code, 0, "{}", alone.err);
    let expected = place.result("alone");
    assert!(expected.2.len() >= 9, "steps, evaluations and samples: {:?}", expected.2);
    for &ranks in ranks {
        let out = format!("with-{ranks}");
        let several = place.run(start, ranks, &place.args(&out, &[]));
        assert_eq!(several.code, 0, "{ranks} ranks: {}", several.err);
        let shared = several.err.contains(&format!("{ranks} processes share each step"));
        assert_eq!(shared, ranks > 1, "{}", several.err);
        assert!(!several.err.contains("nothing to do"), "{}", several.err);
        // One rank prints.
        assert_eq!(several.err.matches("adapter written to").count(), 1, "{}", several.err);
        let result = place.result(&out);
        assert_eq!(result.2, expected.2, "{ranks} ranks");
        assert!(result == expected, "{ranks} ranks: other bits");
    }
}

/// A rank that is killed ends the others; the last checkpoint is whole, and the ranks that are left continue.
fn survives(start: &Start) {
    let place = Place::new();
    let long = ["--max-steps", "400", "--save-steps", "200", "--eval-steps", "0"];
    assert_eq!(place.alone(&place.args("alone", &long)).code, 0);
    let more = ["--max-steps", "400", "--save-steps", "1", "--eval-steps", "0"];
    let args = place.args("killed", &more);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = start.command(3, &words);
    let mut child = Kill(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let checkpoint = place.dir.path().join("killed/checkpoints/last/trainer_state.json");
    wait_until("a checkpoint", || checkpoint.exists());
    assert!(child.0.try_wait().unwrap().is_none(), "the run is over before it was killed");
    let victim = rank_of(&place, "killed", child.0.id());
    assert!(Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
    wait_until("the others' end", || child.0.try_wait().unwrap().is_some());
    assert!(!child.0.wait().unwrap().success());
    let resumed = place.run(start, 2, &place.args("killed", &[&long[..], &["--resume"]].concat()));
    assert_eq!(resumed.code, 0, "{}", resumed.err);
    let (adapter, ..) = place.result("killed");
    assert!(adapter == place.result("alone").0, "other bits after a kill");
}

/// A process of the run that is not the one that was started here: its last rank, whose number is highest.
fn rank_of(place: &Place, out: &str, started: u32) -> u32 {
    let folder = place.path(out);
    let is_rank = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|word| word.ends_with(b"lowrank")) && words.contains(&folder.as_bytes())
    };
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let mut ranks: Vec<u32> = pids.filter(|&pid| pid != started && is_rank(pid)).collect();
    ranks.sort_unstable();
    *ranks.last().expect("a rank")
}

/// A rank that hangs ends the others after the time that they wait.
fn times_out(start: &Start) {
    let place = Place::new();
    let args = place.args("hung", &["--max-steps", "100000", "--save-steps", "1", "--eval-steps", "0"]);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let errors = place.dir.path().join("errors.txt");
    let mut command = start.command(2, &words);
    command.env("LOWRANK_TIMEOUT", "2").stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
    let mut child = Kill(command.spawn().unwrap());
    let checkpoint = place.dir.path().join("hung/checkpoints/last/trainer_state.json");
    wait_until("a checkpoint", || checkpoint.exists());
    let victim = rank_of(&place, "hung", child.0.id());
    assert!(Command::new("kill").args(["-STOP", &victim.to_string()]).status().unwrap().success());
    wait_until("the others' end", || child.0.try_wait().unwrap().is_some());
    assert!(!child.0.wait().unwrap().success());
    let errors = fs::read_to_string(&errors).unwrap();
    assert!(errors.contains("no message from rank"), "{errors}");
}

/// A rank that is slow for a while holds the others up and changes nothing.
fn waits(start: &Start) {
    let place = Place::new();
    let more = ["--max-steps", "60", "--save-steps", "1", "--eval-steps", "0"];
    assert_eq!(place.alone(&place.args("alone", &more)).code, 0);
    let args = place.args("slow", &more);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut child =
        Kill(start.command(2, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let checkpoint = place.dir.path().join("slow/checkpoints/last/trainer_state.json");
    wait_until("a checkpoint", || checkpoint.exists());
    let slow = rank_of(&place, "slow", child.0.id()).to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &slow]).status().unwrap().success());
    signal("-STOP");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(child.0.try_wait().unwrap().is_none(), "the run ended while a rank was stopped");
    signal("-CONT");
    assert!(child.0.wait().unwrap().success());
    assert!(place.result("slow").0 == place.result("alone").0, "other bits after a pause");
}

/// A disk that is full on the rank that writes ends all ranks with one message.
fn full_disk(start: &Start) {
    let place = Place::new();
    let full = place.run(start, 2, &place.args("full", &["--log-json", "/dev/full"]));
    assert_ne!(full.code, 0);
    assert_eq!(full.err.matches("/dev/full").count(), 1, "{}", full.err);
}

/// `eval` shares examples and prompts, prints once and gives what one process gives.
fn evaluates(start: &Start) {
    let place = Place::new();
    assert_eq!(place.alone(&place.args("adapter", &[])).code, 0);
    let (adapter, data) = (place.path("adapter"), place.path("eval.jsonl"));
    let args = |more: &[&str]| -> Vec<String> {
        let args = ["eval", "--model", &place.model, "--adapter", &adapter, "--data", &data, "--json"];
        [&args[..], &["--batch-size", "2"], more].concat().into_iter().map(str::to_owned).collect()
    };
    let losses = |ran: Ran| {
        assert_eq!(ran.code, 0, "{}", ran.err);
        let mut all: Value = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.out));
        all.as_object_mut().unwrap().retain(|key, _| !key.contains("seconds"));
        all
    };
    let one = losses(place.alone(&args(&["--threads", "1"])));
    assert_eq!(losses(place.run(start, 3, &args(&["--threads", "1"]))), one);
    let texts = |name: &str| {
        let path = place.path(name);
        args(&["--threads", "1", "--metrics", "bleu", "--max-new-tokens", "4", "--predictions", &path])
    };
    let one = losses(place.alone(&texts("one.jsonl")));
    assert_eq!(losses(place.run(start, 2, &texts("two.jsonl"))), one);
    let read = |name: &str| fs::read_to_string(place.path(name)).unwrap();
    assert_eq!(read("one.jsonl").lines().count(), 9);
    assert_eq!(read("two.jsonl"), read("one.jsonl"));
}

/// The runs of a study are spread over the ranks; one rank writes the report.
fn shares_a_study(start: &Start) {
    let Start::Launcher(launcher, more) = start else { unreachable!("a launcher") };
    let place = Place::new();
    let (model, data) = (&place.model, place.path("train.jsonl"));
    let study = |out: &str| {
        let spec = place.path(&format!("{out}.toml"));
        let (eval, out) = (place.path("eval.jsonl"), place.path(out));
        let text = format!(
            "name = \"Ranks\"\nout = {out:?}\nseeds = [1, 2]\n[train]\nmodel = {model:?}\ndata = {data:?}\neval-data = {eval:?}\n\
             target-modules = [\"q_proj\"]\nmax-steps = 3\nbatch-size = 4\nlearning-rate = 0.02\nthreads = 1\n\
             [[method]]\nname = \"LoRA r=2\"\nr = 2\n[[method]]\nname = \"LoRA r=4\"\nr = 4\n"
        );
        fs::write(&spec, text).unwrap();
        spec
    };
    let adapters = |out: &str| {
        let mut all: Vec<Vec<u8>> = fs::read_dir(place.dir.path().join(out).join("runs"))
            .unwrap()
            .filter_map(|run| fs::read(run.unwrap().path().join("adapter/adapter_model.safetensors")).ok())
            .collect();
        all.sort();
        all
    };
    let alone = place.alone(&["study".to_owned(), study("alone")]);
    assert_eq!(alone.code, 0, "{}", alone.err);
    let mut command = Command::new(launcher);
    command.args(*more).args(["-n", "2", env!("CARGO_BIN_EXE_lowrank"), "study", &study("shared")]);
    let shared = ran(command.output().unwrap());
    assert_eq!(shared.code, 0, "{}", shared.err);
    assert_eq!(adapters("alone").len(), 4);
    assert!(adapters("shared") == adapters("alone"), "other bits");
    assert!(place.dir.path().join("shared/report.html").exists());
}

/// Ranks with other options are refused, and the option is named.
fn refuses_others(start: &Start) {
    let Start::Launcher(launcher, more) = start else { unreachable!("a launcher") };
    let place = Place::new();
    let program = env!("CARGO_BIN_EXE_lowrank");
    let mut command = Command::new(launcher);
    command.args(*more).args(["-n", "1", program]).args(place.args("others", &[]));
    command.args([":", "-n", "1", program]).args(place.args("others", &["--r", "3"]));
    let refused = ran(command.output().unwrap());
    assert_ne!(refused.code, 0);
    let said = "the ranks of a run need the same --r: rank 0 has 2, rank 1 has 3";
    assert_eq!(refused.err.matches(said).count(), 1, "{}", refused.err);
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(120), "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What is wrong on all ranks is said once; what differs is named.
fn refuses(start: &Start) {
    let place = Place::new();
    let args = place.args("refused", &["--data", &place.path("absent.jsonl")]);
    let wrong = place.run(start, 2, &args);
    assert_ne!(wrong.code, 0);
    assert_eq!(wrong.err.matches("absent.jsonl").count(), 1, "{}", wrong.err);
    assert!(!Path::new(&place.path("refused")).join("adapter_config.json").exists());
}

macro_rules! under {
    ($($test:ident: $start:expr, $work:expr;)*) => {
        $(#[test]
        fn $test() {
            if let Some(start) = $start {
                $work(&start);
            }
        })*
    };
}

under! {
    open_mpi_gives_the_same_bits: Start::open_mpi(), |start| same_bits(start, &[1, 2, 3, 4]);
    mpich_gives_the_same_bits: Start::mpich(), |start| same_bits(start, &[2, 3, 4]);
    processes_give_the_same_bits: Some(Start::Processes), |start| same_bits(start, &[2, 3, 4]);
    open_mpi_survives: Start::open_mpi(), survives;
    mpich_survives: Start::mpich(), survives;
    processes_survive: Some(Start::Processes), survives;
    open_mpi_times_out: Start::open_mpi(), times_out;
    mpich_times_out: Start::mpich(), times_out;
    processes_time_out: Some(Start::Processes), times_out;
    open_mpi_waits: Start::open_mpi(), waits;
    mpich_waits: Start::mpich(), waits;
    processes_wait: Some(Start::Processes), waits;
    open_mpi_full_disk: Start::open_mpi(), full_disk;
    mpich_full_disk: Start::mpich(), full_disk;
    processes_full_disk: Some(Start::Processes), full_disk;
    open_mpi_evaluates: Start::open_mpi(), evaluates;
    mpich_evaluates: Start::mpich(), evaluates;
    open_mpi_shares_a_study: Start::open_mpi(), shares_a_study;
    mpich_shares_a_study: Start::mpich(), shares_a_study;
    open_mpi_refuses_others: Start::open_mpi(), refuses_others;
    mpich_refuses_others: Start::mpich(), refuses_others;
    open_mpi_refuses: Start::open_mpi(), refuses;
    mpich_refuses: Start::mpich(), refuses;
    processes_refuse: Some(Start::Processes), refuses;
}

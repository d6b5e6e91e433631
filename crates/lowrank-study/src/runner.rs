//! Does the runs that are not done yet.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lowrank_comm::Communicator;
use lowrank_files::{FolderLock, Tensors, read_limited};
use serde_json::{Map, Value};
use toml::Table;

use crate::error::{Error, Result};
use crate::run::{RESULT, Run, RunLog, RunResult};
use crate::spec::Spec;

/// How far a call of [`run_all`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every run has a result.
    Complete {
        /// Of how many it is that they failed.
        failed: usize,
    },
    /// The time limit was reached.
    OutOfTime {
        /// So many runs were not begun.
        left: usize,
        /// So many failed before.
        failed: usize,
    },
    /// A run was interrupted; its state is saved.
    Interrupted,
}

impl Outcome {
    /// What the ranks came to together: `own` is what this one did.
    ///
    /// # Errors
    /// Where another rank does not answer.
    pub fn of_ranks(comm: &dyn Communicator, own: Self) -> Result<Self> {
        let number = |count: usize| (count as u64).to_le_bytes();
        let message = match own {
            Self::Complete { failed } => [[0; 8], number(0), number(failed)],
            Self::OutOfTime { left, failed } => [number(1), number(left), number(failed)],
            Self::Interrupted => [number(2), [0; 8], [0; 8]],
        };
        let (mut kind, mut left, mut failed) = (0, 0, 0);
        for message in comm.all_gather(&message.concat())? {
            let number = |at: usize| {
                message
                    .get(at..at + 8)
                    .map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize)
            };
            (kind, left, failed) = (kind.max(number(0)), left + number(8), failed + number(16));
        }
        Ok(match kind {
            0 => Self::Complete { failed },
            1 => Self::OutOfTime { left, failed },
            _ => Self::Interrupted,
        })
    }
}

/// Keys that training and evaluation share.
const SHARED: [&str; 15] = [
    "batch_size",
    "max_seq_len",
    "data_format",
    "prompt_column",
    "completion_column",
    "text_column",
    "pair_column",
    "label_column",
    "prompt_template",
    "skip_bad_lines",
    "threads",
    "quantize",
    "precision",
    "stream_base",
    "device",
];

/// Trains and evaluates each run without a result or with a failure for one, with `command` (the words that start the
/// `lowrank` program) in a process of its own. Several ranks share the runs. A run that was stopped on its way continues where it was, and one that another process is at is
/// waited for. `signals` counts the requests to stop: each is passed on to
/// the process at work, which saves its state on the first and ends at once on the second.
///
/// # Errors
/// Where a folder cannot be written or the command cannot be started. A run that fails is no error: its result says
/// why.
pub fn run_all(
    spec: &Spec,
    runs: &[Run],
    command: &[OsString],
    signals: &AtomicUsize,
    comm: &dyn Communicator,
    say: &mut dyn FnMut(&str),
) -> Result<Outcome> {
    let started = Instant::now();
    let limit = spec.time_limit_minutes.map(|m| Duration::from_secs_f64(60.0 * m));
    let mut open = Vec::new();
    for run in runs {
        if !is_done(run, spec)? {
            open.push(run);
        }
    }
    // As the first rank sees it: others may be done with a run already.
    let names: Vec<String> = open.iter().map(|run| format!("{}\n", run.dir(&spec.out).display())).collect();
    let names = comm.broadcast(0, names.concat().as_bytes())?;
    let names = String::from_utf8_lossy(&names).into_owned();
    let own: Vec<&str> = names.lines().skip(comm.rank()).step_by(comm.size()).collect();
    let open: Vec<&Run> =
        runs.iter().filter(|run| own.contains(&&*run.dir(&spec.out).to_string_lossy())).collect();
    let mut failed = 0;
    for (i, run) in open.iter().enumerate() {
        if signals.load(Ordering::Relaxed) > 0 {
            return Ok(Outcome::Interrupted);
        }
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            return Ok(Outcome::OutOfTime { left: open.len() - i, failed });
        }
        say(&format!("run {} of {}: {} (seed {})", i + 1, open.len(), run.name, run.options["seed"]));
        let job = Job { spec, run, dir: run.dir(&spec.out), command, signals };
        let Some(_lock) = wait_for_others(&job.dir, "adapter", signals, say)? else {
            return Ok(Outcome::Interrupted);
        };
        if is_done(run, spec)? {
            continue;
        }
        let Some(result) = job.work()? else { return Ok(Outcome::Interrupted) };
        failed += usize::from(result.error.is_some());
        match &result.error {
            Some(error) => say(&format!("  failed: {error}")),
            None => {
                let metric = result.metric(&spec.metric);
                let shown = metric.map_or_else(String::new, |m| format!("{} {m:.4}, ", spec.metric));
                say(&format!("  {shown}{:.0} tokens/s, {:.0} s", result.tokens_per_s, result.train_s));
            }
        }
        let path = job.dir.join(RESULT);
        let text = serde_json::to_vec_pretty(&result).expect("plain data");
        lowrank_files::write_atomic(&path, &text)?;
        if result.error.is_none() {
            job.forget_checkpoints()?;
        }
    }
    Ok(Outcome::Complete { failed })
}

/// Whether the run has a result other than a failure.
fn is_done(run: &Run, spec: &Spec) -> Result<bool> {
    Ok(run.result(&spec.out)?.is_some_and(|result| result.error.is_none()))
}

/// The right to write to `folder`, as soon as no other process writes to it or to `inside` it: another study, or the
/// child of one that was killed. Nothing where this one is asked to stop.
///
/// # Errors
/// Where the folder cannot be made.
pub fn wait_for_others(
    folder: &Path,
    inside: &str,
    signals: &AtomicUsize,
    say: &mut dyn FnMut(&str),
) -> Result<Option<FolderLock>> {
    let mut said = false;
    while signals.load(Ordering::Relaxed) == 0 {
        let folders = [folder, &folder.join(inside)];
        match folders.into_iter().find_map(FolderLock::holder) {
            Some(holder) if !said => {
                say(&format!("  waiting for {holder}, which is at it"));
                said = true;
            }
            Some(_) => {}
            None => match FolderLock::take(folder) {
                Ok(lock) => return Ok(Some(lock)),
                // Another was faster.
                Err(_) if FolderLock::holder(folder).is_some() => {}
                Err(e) => return Err(e.into()),
            },
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(None)
}

struct Job<'a> {
    spec: &'a Spec,
    run: &'a Run,
    dir: PathBuf,
    command: &'a [OsString],
    signals: &'a AtomicUsize,
}

/// How a child process ended.
enum Ended {
    Well(String),
    Badly(String),
    Interrupted,
}

impl Job<'_> {
    /// The result, or nothing where the run was interrupted.
    fn work(&self) -> Result<Option<RunResult>> {
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let failed = |error: String| Ok(Some(RunResult { error: Some(error), ..RunResult::default() }));
        if self.run.is_base() {
            return Ok(match self.evaluate()? {
                Ended::Well(out) => Some(match evaluation(&out) {
                    Some(eval) => RunResult { eval, ..RunResult::default() },
                    None => return failed("evaluation: it printed no JSON object".into()),
                }),
                Ended::Badly(error) => return failed(format!("evaluation: {error}")),
                Ended::Interrupted => None,
            });
        }
        match self.train()? {
            Ended::Well(_) => {}
            Ended::Badly(error) => return failed(format!("training: {error}")),
            Ended::Interrupted => return Ok(None),
        }
        let eval = match self.evaluate()? {
            Ended::Well(out) => out,
            Ended::Badly(error) => return failed(format!("evaluation: {error}")),
            Ended::Interrupted => return Ok(None),
        };
        let Some(eval) = evaluation(&eval) else {
            return failed("evaluation: it printed no JSON object".into());
        };
        let log = RunLog::read(&self.dir.join("log.jsonl"))?;
        let mut speeds: Vec<f64> = log.steps.iter().map(|s| s.tokens_per_s).collect();
        speeds.sort_by(f64::total_cmp);
        let (parameters, bytes) = size_of_saved(&self.dir.join("adapter"))?;
        Ok(Some(RunResult {
            error: None,
            parameters,
            bytes,
            peak_rss_bytes: log.steps.iter().filter_map(|s| s.peak_rss_bytes).max().unwrap_or_default(),
            tokens_per_s: speeds.get(speeds.len() / 2).copied().unwrap_or_default(),
            train_s: log.steps.iter().map(|s| s.step_s).sum(),
            eval,
        }))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        lowrank_comm::start_alone(&mut command);
        command
    }

    fn train(&self) -> Result<Ended> {
        let config = self.dir.join("run.toml");
        let mut options = self.run.options.clone();
        // The result is evaluated in any case: twice would be once too often.
        if !options.contains_key("eval_steps") {
            options.remove("eval_data");
        }
        let text = toml::to_string(&options).map_err(|e| Error::Spec(e.to_string()))?;
        lowrank_files::write_atomic(&config, text.as_bytes())?;
        let out = self.dir.join("adapter");
        let mut command = self.command();
        command.arg("train").arg("--config").arg(&config).arg("--out").arg(&out);
        command.arg("--log-json").arg(self.dir.join("log.jsonl"));
        command.arg(if out.join("checkpoints").exists() { "--resume" } else { "--force" });
        self.wait(command, "train.txt")
    }

    fn evaluate(&self) -> Result<Ended> {
        let mut command = self.command();
        command.args(["eval", "--json", "--model", self.spec.model()]);
        if !self.run.is_base() {
            command.arg("--adapter").arg(self.dir.join("adapter"));
        }
        if !self.spec.eval.contains_key("data") {
            for file in self.spec.files("eval-data") {
                command.args(["--data", file]);
            }
        }
        let shared = self.run.options.iter().filter(|(key, _)| SHARED.contains(&key.as_str()));
        let shared: Table = shared.map(|(k, v)| (k.clone(), v.clone())).collect();
        for (key, value) in shared.iter().chain(&self.spec.eval) {
            let flag = format!("--{}", key.replace('_', "-"));
            match value {
                toml::Value::Boolean(true) => {
                    command.arg(flag);
                }
                toml::Value::Boolean(false) => {}
                toml::Value::String(text) => {
                    command.arg(flag).arg(text);
                }
                other => {
                    command.arg(flag).arg(other.to_string());
                }
            }
        }
        self.wait(command, "eval.txt")
    }

    /// A run with a result does not go on: what it kept for that is of no more use.
    fn forget_checkpoints(&self) -> Result<()> {
        let checkpoints = self.dir.join("adapter/checkpoints");
        match fs::remove_dir_all(&checkpoints) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&checkpoints)(e)),
            _ => Ok(()),
        }
    }

    /// Waits for a child and passes requests to stop on to it.
    fn pass_signals_on(&self, child: Child) -> std::io::Result<Output> {
        let (id, done) = (child.id(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut passed = 0;
                while !done.load(Ordering::Relaxed) {
                    if self.signals.load(Ordering::Relaxed) > passed {
                        passed += 1;
                        terminate(id);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let out = child.wait_with_output();
            done.store(true, Ordering::Relaxed);
            out
        })
    }

    /// Runs a child; what it says goes to a file of the run.
    fn wait(&self, mut command: Command, log: &str) -> Result<Ended> {
        let path = self.dir.join(log);
        let file = File::create(&path).map_err(Error::io(&path))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        // In a group of its own the child hears of Ctrl-C from this process alone, and so once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(Error::io(self.command[0].as_ref()))?;
        let out = self.pass_signals_on(child).map_err(Error::io(self.command[0].as_ref()))?;
        match out.status.code() {
            Some(0) => Ok(Ended::Well(String::from_utf8_lossy(&out.stdout).into_owned())),
            Some(130) => Ok(Ended::Interrupted),
            code => {
                let said = read_limited(&path, MAX_SAID)?;
                let said = String::from_utf8_lossy(&said);
                let last = said.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it said nothing").trim();
                let code = code.map_or("killed".to_owned(), |c| format!("exit code {c}"));
                Ok(Ended::Badly(format!("{last} ({code}; {})", path.display())))
            }
        }
    }
}

/// Bytes that a run may have said on standard error.
const MAX_SAID: u64 = 1 << 30;

/// Asks a process to end.
#[cfg(unix)]
fn terminate(id: u32) {
    use nix::sys::signal::{Signal, kill};
    let Ok(id) = id.try_into() else { return };
    // It may have ended already.
    let _ = kill(nix::unistd::Pid::from_raw(id), Signal::SIGTERM);
}

/// Where there are no signals, the console tells the child.
#[cfg(not(unix))]
fn terminate(_: u32) {}

/// The last line of `lowrank eval --json`.
fn evaluation(out: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(out.lines().rfind(|l| l.starts_with('{'))?).ok()
}

/// Trainable numbers and bytes of the saved tensors.
fn size_of_saved(dir: &Path) -> Result<(u64, u64)> {
    let path = dir.join(lowrank_adapters::TENSORS_FILE);
    let tensors = Tensors::open(&path)?;
    Ok((tensors.parameters() as u64, fs::metadata(&path).map_err(Error::io(&path))?.len()))
}

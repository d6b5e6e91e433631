//! Runs jobs, one after the other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lowrank_files::FolderLock;
use serde_json::Value;

use super::files::{Files, is_id, read_json, write_json};
use super::record::{Job, Status};
use crate::error::{Error, Result};
use crate::host::{Host, TrainRun};
use crate::random;
use crate::registry::Registry;

/// How often a child is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Steps of a log that are read at most.
const MAX_RECORDS: usize = 1_000_000;

struct Shared {
    folder: PathBuf,
    files: Files,
    host: Arc<dyn Host>,
    registry: Arc<Registry>,
    jobs: Mutex<BTreeMap<String, Job>>,
    changed: Condvar,
    ending: AtomicBool,
}

/// The jobs of a folder and the thread that runs them.
pub struct Jobs {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Jobs {
    /// The jobs in `folder`; those that were running go on.
    ///
    /// # Errors
    /// Where the folder cannot be used.
    pub fn open(folder: PathBuf, host: Arc<dyn Host>, registry: Arc<Registry>) -> Result<Self> {
        let files = Files::open(folder.join("files"))?;
        let jobs_folder = folder.join("jobs");
        let failed = |e: std::io::Error| Error::failed(format!("{}: {e}", jobs_folder.display()));
        fs::create_dir_all(&jobs_folder).map_err(failed)?;
        let mut jobs = BTreeMap::new();
        for entry in fs::read_dir(&jobs_folder).map_err(failed)?.flatten() {
            let job: Option<Job> = read_json(&entry.path().join("job.json"));
            if let Some(job) =
                job.filter(|job| entry.file_name() == job.id.as_str() && is_id(&job.id, "ftjob"))
            {
                jobs.insert(job.id.clone(), job);
            }
        }
        let shared = Arc::new(Shared {
            folder: jobs_folder,
            files,
            host,
            registry,
            jobs: Mutex::new(jobs),
            changed: Condvar::new(),
            ending: AtomicBool::new(false),
        });
        for job in shared.lock().values() {
            if let (Status::Succeeded, Some(name)) = (job.status, &job.fine_tuned_model) {
                shared.registry.offer(name, &shared.adapter(&job.id));
            }
        }
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("jobs".into())
            .spawn(move || worker.work())
            .map_err(|e| Error::failed(format!("cannot start a thread: {e}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The uploaded files.
    pub fn files(&self) -> &Files {
        &self.shared.files
    }

    /// Adds a job to the queue.
    ///
    /// # Errors
    /// Where a file is not there or the job cannot be written.
    pub fn create(&self, mut job: Job) -> Result<Job> {
        for file in std::iter::once(&job.training_file).chain(&job.validation_file) {
            self.shared.files.get(file)?;
        }
        job.id = random::id("ftjob");
        job.created_at = random::now();
        job.events = vec![(job.created_at, format!("Created fine-tuning job: {}", job.id))];
        self.shared.save(&job)?;
        self.shared.lock().insert(job.id.clone(), job.clone());
        self.shared.changed.notify_all();
        Ok(job)
    }

    /// All jobs, newest first.
    pub fn list(&self) -> Vec<Job> {
        let mut list: Vec<Job> = self.shared.lock().values().cloned().collect();
        list.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        list
    }

    /// A job.
    ///
    /// # Errors
    /// Where there is none of that id.
    pub fn get(&self, id: &str) -> Result<Job> {
        let job = self.shared.lock().get(id).cloned();
        job.ok_or_else(|| Error::not_found(format!("there is no fine-tuning job {id:?}")))
    }

    /// Cancels, pauses or resumes a job.
    ///
    /// # Errors
    /// Where the job is not where that makes sense.
    pub fn turn(&self, id: &str, to: Status) -> Result<Job> {
        let mut jobs = self.shared.lock();
        let job = jobs
            .get_mut(id)
            .ok_or_else(|| Error::not_found(format!("there is no fine-tuning job {id:?}")))?;
        let sense = match to {
            Status::Cancelled => !job.status.is_final(),
            Status::Paused => matches!(job.status, Status::Queued | Status::Running),
            Status::Queued => job.status == Status::Paused,
            _ => false,
        };
        if !sense {
            let at = serde_json::to_value(job.status).unwrap_or_default();
            return Err(Error::conflict(format!("the job is {}", at.as_str().unwrap_or("elsewhere"))));
        }
        job.status = to;
        let what = match to {
            Status::Cancelled => "The job was cancelled",
            Status::Paused => "The job was paused",
            _ => "The job was resumed",
        };
        job.events.push((random::now(), what.into()));
        if to.is_final() {
            job.finished_at = Some(random::now());
        }
        self.shared.save(job)?;
        let job = job.clone();
        drop(jobs);
        self.shared.changed.notify_all();
        Ok(job)
    }

    /// The log of a job's run, one record a line.
    pub fn log(&self, id: &str) -> Vec<Value> {
        let Ok(file) = File::open(self.shared.adapter(id).join("log.jsonl")) else { return Vec::new() };
        let lines = BufReader::new(file).lines().map_while(std::io::Result::ok).take(MAX_RECORDS);
        lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
    }

    /// The checkpoints of a job that are there: step and folder.
    pub fn checkpoints(&self, id: &str) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = fs::read_dir(self.shared.adapter(id).join("checkpoints")) else {
            return Vec::new();
        };
        let step = |path: &Path| read_json::<Value>(&path.join("trainer_state.json"))?["step"].as_u64();
        let mut list: Vec<(u64, PathBuf)> =
            entries.flatten().filter_map(|entry| Some((step(&entry.path())?, entry.path()))).collect();
        list.sort();
        list.dedup_by_key(|(step, _)| *step);
        list
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, job: &Job) -> Result<()> {
        write_json(&self.folder.join(&job.id).join("job.json"), job)
    }

    /// The folder of a job's run.
    fn adapter(&self, id: &str) -> PathBuf {
        self.folder.join(id).join("run")
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            let done = self.train(&job);
            let mut jobs = self.lock();
            let Some(kept) = jobs.get_mut(&job.id) else { continue };
            // Cancelled or paused, or the server ends: the run has saved its state.
            if kept.status != Status::Running || self.is_ending() {
                continue;
            }
            let now = random::now();
            kept.finished_at = Some(now);
            match done {
                Ok(()) => {
                    let name = self.name(kept);
                    self.registry.offer(&name, &self.adapter(&kept.id));
                    kept.status = Status::Succeeded;
                    kept.events.push((now, format!("New fine-tuned model created: {name}")));
                    kept.events.push((now, "The job has successfully completed".into()));
                    kept.fine_tuned_model = Some(name);
                }
                Err(error) => {
                    kept.status = Status::Failed;
                    kept.events.push((now, format!("The job failed: {error}")));
                    kept.error = Some(error.to_string());
                }
            }
            if let Err(error) = self.save(kept) {
                eprintln!("job {}: {error}", kept.id);
            }
        }
    }

    /// `ft:BASE:lowrank:SUFFIX:ID`.
    fn name(&self, job: &Job) -> String {
        let plain = |text: &str| -> String {
            text.chars()
                .map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' })
                .take(64)
                .collect()
        };
        let short = job.id.chars().skip("ftjob-".len()).take(8).collect::<String>();
        format!("ft:{}:lowrank:{}:{short}", plain(self.host.id()), plain(job.suffix.as_deref().unwrap_or("")))
    }

    /// Waits for the job whose turn it is: one that was running before a restart, else the oldest of the queue.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.lock();
        while !self.is_ending() {
            let turn = |job: &&mut Job| matches!(job.status, Status::Running | Status::Queued);
            let first = |job: &&mut Job| (job.status != Status::Running, job.created_at, job.id.clone());
            if let Some(job) = jobs.values_mut().filter(turn).min_by_key(first) {
                job.status = Status::Running;
                job.events.push((random::now(), "The job is running".into()));
                if let Err(error) = self.save(job) {
                    eprintln!("job {}: {error}", job.id);
                }
                return Some(job.clone());
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Whether a job is to go on.
    fn goes_on(&self, id: &str) -> bool {
        !self.is_ending() && self.lock().get(id).is_some_and(|job| job.status == Status::Running)
    }

    fn train(&self, job: &Job) -> Result<()> {
        let (folder, out) = (self.folder.join(&job.id), self.adapter(&job.id));
        // A process that a killed server left behind still trains here: it comes to its end first.
        while FolderLock::holder(&out).is_some() {
            if !self.goes_on(&job.id) {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        let given = &job.hyperparameters;
        let run = TrainRun {
            config: folder.join("run.toml"),
            data: self.files.path(&job.training_file),
            eval_data: job.validation_file.as_ref().map(|file| self.files.path(file)),
            resume: out.join("checkpoints").exists(),
            out,
            epochs: given.n_epochs.as_f64(),
            batch_size: given.batch_size.as_u64(),
            learning_rate_multiplier: given.learning_rate_multiplier.as_f64(),
            seed: job.seed,
            options: given.options.clone().into_iter().chain(job.method.options()).collect(),
        };
        let mut command = self.host.train(&run).map_err(|e| Error::request(e.to_string()))?;
        let said = folder.join("train.txt");
        let file = File::create(&said).map_err(|e| Error::failed(format!("{}: {e}", said.display())))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        // In a group of its own the child hears of Ctrl-C from this process alone.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child =
            command.spawn().map_err(|e| Error::failed(format!("cannot start the training: {e}")))?;
        yield_to_others(&child);
        let mut asked = false;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(e) => return Err(Error::failed(format!("cannot wait for the training: {e}"))),
            }
            if !asked && !self.goes_on(&job.id) {
                asked = true;
                terminate(&mut child);
            }
            std::thread::sleep(POLL);
        };
        if status.success() || asked {
            return Ok(());
        }
        let said = fs::read(&said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
        Err(Error::request(last.strip_prefix("error: ").unwrap_or(last)))
    }
}

/// Gives a child the lowest priority.
#[cfg(unix)]
fn yield_to_others(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let _ = rustix::process::setpriority_process(pid, 19);
}

#[cfg(not(unix))]
fn yield_to_others(_: &Child) {}

/// Asks a child to save its state and end.
#[cfg(unix)]
fn terminate(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process};
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Where there are no signals, the child loses what it did since its last checkpoint.
#[cfg(not(unix))]
fn terminate(child: &mut Child) {
    let _ = child.kill();
}

//! `lowrank report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lowrank::files::{IoError, read_object};
use lowrank::models::Sampling;
use lowrank::{Error, LOG_FILE, Limits, Result, Session, TextGenerator, TrainOptions, TrainingArgs};
use lowrank_study::report::Written;
use lowrank_study::{RunLog, Sample, Setting, SingleRun, single_report};
use lowrank_tools::{Options, compare, formats};
use serde_json::Value;

use super::Stdout;

/// Write a report of training runs: settings, curves, memory, samples, spectra.
#[derive(clap::Args)]
pub struct Args {
    /// Folders written by `lowrank train`
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Base model, to show answers of the adapters to --prompt
    #[arg(long, requires = "prompt")]
    model: Option<String>,
    /// Prompt to answer greedily; may be repeated
    #[arg(long, requires = "model")]
    prompt: Vec<String>,
    /// Maximum number of new tokens in an answer
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("max_new_tokens"), default_value_t = 64)]
    max_new_tokens: usize,
    /// Folder for the report
    #[arg(long, value_name = "DIR", default_value = "report")]
    out: PathBuf,
    /// Show the run as it goes, on a page of this machine, in place of a report
    #[arg(long, conflicts_with_all = ["model", "prompt", "force"])]
    watch: bool,
    /// Port of the page; 0 takes a free one
    #[arg(long, requires = "watch", default_value_t = super::dashboard::PORT, value_parser = super::flags::ranges::whole::<u16>("port"))]
    port: u16,
    /// Replace files in --out that are of no report
    #[arg(long)]
    force: bool,
}

/// Writes one report of all runs.
pub fn run(args: &Args, _: &mut Stdout) -> Result<ExitCode> {
    if args.watch {
        let [run] = &args.runs[..] else {
            return Err(Error::Usage("--watch shows one run: name one folder".into()));
        };
        std::fs::metadata(run).map_err(IoError::at(run))?;
        let (url, thread) = super::dashboard::serve(&run.join(LOG_FILE), args.port)?;
        note!("{url} shows the run; Ctrl-C ends this");
        let _ = thread.join();
        return Ok(ExitCode::SUCCESS);
    }
    let mut runs = args.runs.iter().map(|dir| read(dir)).collect::<Result<Vec<_>>>()?;
    if let Some(model) = &args.model {
        let session = Session::open(model)?;
        for (run, dir) in runs.iter_mut().zip(&args.runs) {
            run.samples = super::on_threads(None, || samples(&session, dir, args))?;
        }
    }
    let written = single_report(&runs).write(&args.out, args.force)?;
    say_written(&written);
    Ok(ExitCode::SUCCESS)
}

/// What the model with the adapter in `dir` answers.
fn samples(session: &Session, dir: &Path, args: &Args) -> Result<Vec<Sample>> {
    let (device, adapters) = (session.device(), session.adapter(Some(dir))?);
    let limits = Limits { max_new_tokens: args.max_new_tokens, stop: Vec::new() };
    let answer = |prompt: &String| {
        let tokens = session.prompt(prompt)?;
        let mut text = TextGenerator::new(session, &device, &adapters)?;
        let answer = text.generate(&tokens, &Sampling::default(), &limits, |_| {})?;
        Ok(Sample { prompt: prompt.clone(), completion: answer.text })
    };
    args.prompt.iter().map(answer).collect()
}

fn read(dir: &Path) -> Result<SingleRun> {
    let log = dir.join(LOG_FILE);
    std::fs::metadata(dir).map_err(IoError::at(dir))?;
    if !log.exists() {
        return Err(Error::Usage(format!(
            "{} is not the folder of a run: it has no {LOG_FILE}",
            dir.display()
        )));
    }
    let args = TrainingArgs::read(dir)?;
    let mut settings = Vec::new();
    if let Some(TrainingArgs { options, .. }) = &args {
        let defaults = serde_json::to_value(TrainOptions::default()).expect("options are plain data");
        for (key, value) in options.iter().filter(|(_, value)| is_set(value)) {
            settings.push(setting(key, value, defaults[key] != *value));
        }
    }
    // What was chosen for the model, and all of an adapter that says nothing of its run.
    let path = dir.join(lowrank::adapters::CONFIG_FILE);
    if path.exists() {
        for (key, value) in read_object(&path)?.iter().filter(|(_, value)| is_set(value)) {
            let known = settings.iter().any(|s| s.key == *key);
            let chosen = args.is_none() || key == "target_modules" || key == "peft_type";
            if !known {
                settings.push(setting(key, value, chosen));
            }
        }
    }
    // Only LoRA has pairs to look at; other methods are reported without a spectrum.
    let spectra = match formats::read(dir, formats::peft::FORMAT, &Options::default()) {
        Ok(lora) => compare::spectra(&lora)?,
        Err(_) => Vec::new(),
    };
    let name =
        dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
    let made = args.map(|args| args.made);
    Ok(SingleRun { name, log: RunLog::read(&log)?, made, settings, spectra, samples: Vec::new() })
}

/// Whether an option says anything.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn setting(key: &str, value: &Value, given: bool) -> Setting {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let words = list.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
            words.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    Setting { key: key.to_owned(), value: text, given }
}

/// Says where the report is.
pub fn say_written(written: &Written) {
    if written.no_fonts {
        note!("no font was found on this machine: the PNG figures have no letters (the HTML and SVG have)");
    }
    note!("report written to {}", written.html.display());
}

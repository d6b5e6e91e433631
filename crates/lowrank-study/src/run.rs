//! One run: its options, its folder, what it left there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use lowrank_files::{MAX_CONFIG, read_limited, regular};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use toml::Table;

use crate::error::{Error, Result};

/// The part of a study that a run belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// The base model without training.
    Base,
    /// Index of the method.
    Method(usize),
    /// Index of the choice.
    Matrices(usize),
    /// Index of the choice and the rank.
    Rank(usize, usize),
    /// Rank and seed of an adapter whose subspace is looked at.
    Adapter(usize, u64),
    /// Index of the method and of the rate.
    Sweep(usize, usize),
}

/// A run of the trainer.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of its folder: a checksum of the options.
    pub id: String,
    /// What it is called in tables.
    pub name: String,
    /// Keys of `lowrank train`, with underscores.
    pub options: Table,
    pub(crate) roles: Vec<Role>,
}

impl Run {
    pub(crate) fn new(name: &str, options: Table) -> Self {
        // Keys are sorted and numbers written one way, so that 8 and 8.0 where both mean alpha are one run.
        let mut keys: Vec<String> =
            options.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
        keys.sort_unstable();
        let hash = crc32c::crc32c(keys.join("\n").as_bytes());
        // The name is no part of it: whatever a section calls them, the same options are one run.
        let id = format!("{hash:08x}");
        Self { id, name: name.trim().to_owned(), options, roles: Vec::new() }
    }

    /// Whether it is the base model as it is, which is evaluated and not trained.
    pub(crate) fn is_base(&self) -> bool {
        self.roles.contains(&Role::Base)
    }

    /// Its folder in the study's.
    pub fn dir(&self, study: &Path) -> PathBuf {
        study.join("runs").join(&self.id)
    }

    /// What it came to, or `None` where it is not done.
    ///
    /// # Errors
    /// Where its result file is broken.
    pub fn result(&self, study: &Path) -> Result<Option<RunResult>> {
        let path = self.dir(study).join(RESULT);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_limited(&path, MAX_CONFIG)?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::file(&path, format!("{e}; remove the file to have the run done again")))
    }
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::Integer(i) => (*i as f64).to_string(),
        toml::Value::Float(x) => x.to_string(),
        other => other.to_string(),
    }
}

/// File of a finished run's result.
pub(crate) const RESULT: &str = "result.json";

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunResult {
    /// Why it failed, where it did: then nothing else is known.
    pub error: Option<String>,
    /// Trainable parameters.
    pub parameters: u64,
    /// Size of what is saved.
    pub bytes: u64,
    /// Largest resident memory while training.
    pub peak_rss_bytes: u64,
    /// Median of the steps.
    pub tokens_per_s: f64,
    /// Seconds in training steps.
    pub train_s: f64,
    /// What `lowrank eval --json` printed.
    pub eval: Map<String, Value>,
}

impl RunResult {
    /// A number of the evaluation.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.eval.get(name).and_then(Value::as_f64)
    }
}

/// One step as the trainer logs it.
#[derive(Clone, Debug, Deserialize)]
pub struct StepLog {
    /// From 1.
    pub step: u64,
    /// Mean loss of its labelled tokens.
    pub loss: f64,
    /// Of the step.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// Speed.
    pub tokens_per_s: f64,
    /// Seconds.
    pub step_s: f64,
    /// Resident memory at its highest so far.
    pub peak_rss_bytes: Option<u64>,
}

/// A text that the model generated on its way.
#[derive(Clone, Debug, Deserialize)]
pub struct SampleLog {
    /// Steps done.
    pub step: u64,
    /// What it continues.
    #[serde(rename = "sample_prompt")]
    pub prompt: String,
    /// The text.
    #[serde(rename = "sample_text")]
    pub text: String,
}

/// A run's log: its steps, its evaluations and its samples.
#[derive(Clone, Debug, Default)]
pub struct RunLog {
    /// The steps.
    pub steps: Vec<StepLog>,
    /// Step and held-out loss.
    pub evaluations: Vec<(u64, f64)>,
    /// Generated texts.
    pub samples: Vec<SampleLog>,
}

/// Bytes of one line of a log.
const MAX_LINE: u64 = 1 << 20;

impl RunLog {
    /// Reads the JSON lines that `lowrank train --log-json` wrote.
    ///
    /// # Errors
    /// Names the line that is no record of a run.
    pub fn read(path: &Path) -> Result<Self> {
        regular(path)?;
        let mut input = BufReader::new(File::open(path).map_err(Error::io(path))?);
        let mut log = Self::default();
        for number in 1.. {
            let wrong = |what: String| Error::file(path, format!("line {number}: {what}"));
            let mut line = Vec::new();
            input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(Error::io(path))?;
            if line.is_empty() {
                break;
            }
            if line.len() as u64 == MAX_LINE {
                return Err(wrong(format!("is longer than the {MAX_LINE} bytes that a record may have")));
            }
            let record: Value = serde_json::from_slice(&line).map_err(|e| wrong(e.to_string()))?;
            let number = |key: &str| record.get(key).and_then(Value::as_f64);
            if let (Some(step), Some(loss)) = (number("step"), number("eval_loss")) {
                log.evaluations.push((step as u64, loss));
            } else if record.get("sample_text").is_some() {
                log.samples.push(serde_json::from_value(record).map_err(|e| wrong(e.to_string()))?);
            } else {
                log.steps.push(serde_json::from_value(record).map_err(|e| wrong(e.to_string()))?);
            }
        }
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(text: &str) -> Run {
        Run::new("LoRA r=8, q & v", text.parse().unwrap())
    }

    #[test]
    fn the_same_options_are_the_same_run() {
        let one = run("seed = 1\nr = 8\nlora_alpha = 16");
        assert_eq!(one.id, run("lora_alpha = 16.0\nr = 8\nseed = 1").id);
        assert_ne!(one.id, run("lora_alpha = 17.0\nr = 8\nseed = 1").id);
    }

    #[test]
    fn a_log_holds_steps_evaluations_and_samples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let step = r#"{"step":1,"epoch":0.1,"loss":2.5,"learning_rate":1e-4,"grad_norm":0.5,"tokens":10,"examples":2,"tokens_per_s":100.0,"step_s":0.1,"peak_rss_bytes":5}"#;
        let sample = r#"{"step":1,"epoch":0.1,"sample_prompt":"Once","sample_text":"upon"}"#;
        fs::write(&path, format!("{step}\n{{\"step\":1,\"epoch\":0.1,\"eval_loss\":2.25}}\n{sample}\n"))
            .unwrap();
        let log = RunLog::read(&path).unwrap();
        assert_eq!((log.samples[0].prompt.as_str(), log.samples[0].text.as_str()), ("Once", "upon"));
        assert_eq!((log.steps[0].loss, log.evaluations[0]), (2.5, (1, 2.25)));
        fs::write(&path, format!("{step}\n{{}}\n")).unwrap();
        assert!(RunLog::read(&path).unwrap_err().to_string().contains("line 2"));
    }
}

//! JSON lines: one record a line, on disk as soon as it is written.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Error;

/// A file of JSON lines.
pub struct JsonLog {
    path: PathBuf,
    file: File,
}

impl JsonLog {
    /// A new file, in place of one that was there.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Goes on after a run that resumes with `steps_done` steps: the records of later steps, which
    /// the new run will write again, are cut off, and with them a line that was never finished.
    /// Starts a new file where there is none.
    ///
    /// # Errors
    /// Where the file cannot be read or written, or is no such log.
    pub fn resume(path: &Path, steps_done: u64) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(Error::io(path))?;
        let keep = kept_len(path, &file, steps_done)?;
        file.set_len(keep).map_err(Error::io(path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Whether the file at `path` is a log with a record in it.
    pub fn is_log(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        kept_len(path, &file, u64::MAX).is_ok_and(|kept| kept > 0)
    }

    /// Writes one record.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&mut self, record: &impl Serialize) -> Result<(), Error> {
        // One write of a whole line: a reader or a crash never meets half of one.
        let mut line = serde_json::to_vec(record).map_err(|e| Error::io(&self.path)(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path))
    }
}

/// The length of the records up to `steps_done`.
fn kept_len(path: &Path, file: &File, steps_done: u64) -> Result<u64, Error> {
    let mut input = BufReader::new(file);
    let mut keep = 0;
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        let read = input.read_until(b'\n', &mut line).map_err(Error::io(path))?;
        number += 1;
        if !line.ends_with(b"\n") {
            return Ok(keep);
        }
        let step = serde_json::from_slice::<serde_json::Value>(&line).ok().and_then(|v| v["step"].as_u64());
        match step {
            Some(step) if step <= steps_done => keep += read as u64,
            Some(_) => return Ok(keep),
            None => {
                let reason = "not a training log: choose another file with `log_json`".into();
                return Err(Error::Line { path: path.into(), line: number, reason });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::log::{EvalRecord, StepRecord};

    fn step(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: step as f64 / 4.0,
            loss: 2.5,
            learning_rate: 1e-4,
            grad_norm: 0.5,
            tokens: 100,
            examples: 8,
            tokens_per_s: 50.0,
            step_s: 2.0,
            peak_rss_bytes: Some(1 << 20),
            metrics: BTreeMap::new(),
        }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<StepRecord>(line).unwrap().step).collect()
    }

    #[test]
    fn writes_the_agreed_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = JsonLog::create(&path).unwrap();
        let lost = StepRecord { loss: f64::NAN, peak_rss_bytes: None, ..step(1) };
        log.write(&lost).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"epoch\":0.25,\"loss\":null,\"learning_rate\":0.0001,\"grad_norm\":0.5,\"tokens\":100,\
             \"examples\":8,\"tokens_per_s\":50.0,\"step_s\":2.0,\"peak_rss_bytes\":null}\n"
        );
        assert!(serde_json::from_str::<StepRecord>(&text).unwrap().loss.is_nan());
        let eval = EvalRecord {
            step: 1,
            epoch: 0.25,
            eval_loss: 1.0,
            metrics: [("eval_perplexity".into(), Some(1f64.exp())), ("eval_f1".into(), None)].into(),
            eval_labels: 10,
            eval_examples: 2,
            eval_s: 0.5,
        };
        log.write(&eval).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<EvalRecord>(text.lines().nth(1).unwrap()).unwrap(), eval);
    }

    #[test]
    fn resumes_after_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        JsonLog::resume(&path, 0).unwrap().write(&step(1)).unwrap();
        let mut log = JsonLog::resume(&path, 1).unwrap();
        for n in 2..6 {
            log.write(&step(n)).unwrap();
        }
        assert_eq!(steps(&path), [1, 2, 3, 4, 5]);
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"{\"step\":6,\"lo");
        std::fs::write(&path, torn).unwrap();
        JsonLog::resume(&path, 9).unwrap().write(&step(6)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        JsonLog::resume(&path, 3).unwrap().write(&step(4)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4]);
        JsonLog::create(&path).unwrap().write(&step(1)).unwrap();
        assert_eq!(steps(&path), [1]);
    }

    #[test]
    fn leaves_a_foreign_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "a\nb\n").unwrap();
        let error = JsonLog::resume(&path, 3).err().unwrap().to_string();
        assert!(error.contains("notes.txt:1") && error.contains("`log_json`"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\nb\n");
    }
}

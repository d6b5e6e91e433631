//! What a run tells: JSON lines for programs, TensorBoard for curves, a progress bar for people.

mod json;
mod progress;
mod record;
mod tensorboard;

pub use json::JsonLog;
pub use progress::{Progress, Report};
pub use record::{EvalRecord, SampleRecord, StepRecord};
pub use tensorboard::TensorBoard;

use crate::Error;

/// All the logs of a run.
pub struct RunLog {
    /// JSON lines, where asked for.
    pub json: Option<JsonLog>,
    /// TensorBoard events, where asked for.
    pub tensorboard: Option<TensorBoard>,
    /// The progress bar, or lines, or nothing.
    pub progress: Progress,
    /// A record in the logs is of so many steps.
    pub every: u64,
    /// The steps since the last record.
    pub waiting: Vec<StepRecord>,
}

impl RunLog {
    /// Records a step everywhere.
    ///
    /// # Errors
    /// Where a log file cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), Error> {
        self.progress.step(record);
        self.waiting.push(record.clone());
        if !record.step.is_multiple_of(self.every.max(1)) {
            return Ok(());
        }
        self.flush()
    }

    /// Records the steps that wait for their record.
    ///
    /// # Errors
    /// Where a log file cannot be written.
    pub fn flush(&mut self) -> Result<(), Error> {
        let Some(record) = StepRecord::mean(&std::mem::take(&mut self.waiting)) else { return Ok(()) };
        let record = &record;
        if let Some(json) = &mut self.json {
            json.write(record)?;
        }
        if let Some(board) = &mut self.tensorboard {
            let mut scalars = vec![
                ("train/loss", record.loss),
                ("train/learning_rate", record.learning_rate),
                ("train/grad_norm", record.grad_norm),
                ("train/epoch", record.epoch),
                ("train/tokens_per_s", record.tokens_per_s),
            ];
            scalars.extend(record.peak_rss_bytes.map(|bytes| ("train/peak_rss_bytes", bytes as f64)));
            let names: Vec<String> = record.metrics.keys().map(|name| format!("train/{name}")).collect();
            let values = record.metrics.values().map(|value| value.unwrap_or(f64::NAN));
            scalars.extend(names.iter().map(String::as_str).zip(values));
            board.scalars(record.step, &scalars)?;
        }
        Ok(())
    }

    /// Records a generated text: in the JSON lines, and shown with the progress.
    ///
    /// # Errors
    /// Where a log file cannot be written.
    pub fn sample(&mut self, record: &SampleRecord) -> Result<(), Error> {
        let (prompt, text) = (one_line(&record.sample_prompt), one_line(&record.sample_text));
        self.progress.message(&format!(
            "sample at step {}: {} -> {text}",
            record.step,
            last_letters(&prompt)
        ));
        self.flush()?;
        match &mut self.json {
            Some(json) => json.write(record),
            None => Ok(()),
        }
    }

    /// Records a sampled completion in the JSON lines.
    ///
    /// # Errors
    /// Where the log file cannot be written.
    pub fn completion(&mut self, record: &SampleRecord) -> Result<(), Error> {
        match &mut self.json {
            Some(json) => json.write(record),
            None => Ok(()),
        }
    }

    /// Records an evaluation everywhere.
    ///
    /// # Errors
    /// Where a log file cannot be written.
    pub fn eval(&mut self, record: &EvalRecord) -> Result<(), Error> {
        self.progress.eval(record);
        self.flush()?;
        if let Some(json) = &mut self.json {
            json.write(record)?;
        }
        if let Some(board) = &mut self.tensorboard {
            let names: Vec<(String, f64)> = record.named().map(|(n, v)| (format!("eval/{n}"), v)).collect();
            let mut scalars = vec![("eval/loss", record.eval_loss)];
            scalars.extend(names.iter().map(|(name, value)| (name.as_str(), *value)));
            board.scalars(record.step, &scalars)?;
        }
        Ok(())
    }
}

/// A text in one line, with nothing in it that a terminal obeys.
fn one_line(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim_end().chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push(' '),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The end of a long prompt.
fn last_letters(text: &str) -> String {
    const MOST: usize = 48;
    let count = text.chars().count();
    match count > MOST {
        true => format!("…{}", text.chars().skip(count - MOST).collect::<String>()),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_one_line_that_a_terminal_does_not_obey() {
        assert_eq!(one_line("a\nb\tc\u{1b}[2Jd\n"), "a\\nb c\u{fffd}[2Jd");
        assert_eq!(last_letters("short"), "short");
        assert_eq!(last_letters(&"é".repeat(100)).chars().count(), 49);
    }
}

//! The progress bar, or plain lines where there is no terminal.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::record::{EvalRecord, StepRecord};

/// Shows how far a run is: steps, epochs, loss, learning rate, tokens a second, time left, peak memory.
pub struct Progress {
    output: Output,
    total: u64,
    first: u64,
    started: Instant,
    /// Epochs in all, where that is known.
    epochs: Option<f64>,
    /// Losses of the last steps.
    losses: VecDeque<f64>,
    wide: bool,
}

/// The loss that is shown first is the mean of so many steps.
const MEAN_OF: usize = 10;

/// Columns from which on a bar has all that a line has.
const WIDE: u16 = 120;

/// What [`Progress::call`] hands on.
#[derive(Clone, Copy, Debug)]
pub enum Report<'a> {
    /// A step is done.
    Step(&'a StepRecord),
    /// An evaluation is done.
    Eval(&'a EvalRecord),
    /// Something to read.
    Message(&'a str),
}

enum Output {
    Bar(ProgressBar),
    Call(Box<dyn FnMut(Report<'_>) + Send>),
    Lines { to: Box<dyn Write + Send>, every: Duration, last: Option<Instant> },
    Hidden,
}

impl Progress {
    /// Shows a run of `total` steps, `done` of which an earlier run did, on standard error: a bar
    /// on a terminal, elsewhere a line for the first step, the last, and one `every` so often.
    pub fn new(total: u64, done: u64, every: Duration) -> Self {
        if !stderr().is_terminal() {
            return Self::lines(total, done, every, Box::new(stderr()));
        }
        let bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_position(done);
        let style = ProgressStyle::with_template("{bar:10} {wide_msg}").expect("a valid template");
        bar.set_style(style.progress_chars("━╸ "));
        let size = console::Term::stderr().size_checked();
        let wide = size.is_none_or(|(_, columns)| columns >= WIDE);
        Self { wide, ..Self::to(Output::Bar(bar), total, done) }
    }

    fn to(output: Output, total: u64, first: u64) -> Self {
        let started = Instant::now();
        Self { output, total, first, started, epochs: None, losses: VecDeque::new(), wide: true }
    }

    /// Says how many epochs the run has in all.
    pub fn set_epochs(&mut self, epochs: f64) {
        self.epochs = Some(epochs);
    }

    /// Plain lines, to `to`.
    pub fn lines(total: u64, done: u64, every: Duration, to: Box<dyn Write + Send>) -> Self {
        Self::to(Output::Lines { to, every, last: None }, total, done)
    }

    /// Hands everything to `listener`, for programs that show it in their own way.
    pub fn call(listener: impl FnMut(Report<'_>) + Send + 'static) -> Self {
        Self::to(Output::Call(Box::new(listener)), 0, 0)
    }

    /// Shows nothing.
    pub fn hidden() -> Self {
        Self::to(Output::Hidden, 0, 0)
    }

    /// A step is done.
    pub fn step(&mut self, record: &StepRecord) {
        self.losses.push_back(record.loss);
        self.losses.drain(..self.losses.len().saturating_sub(MEAN_OF));
        let text = match &self.output {
            Output::Bar(_) => self.describe(record, self.time_left(record.step), " "),
            Output::Lines { .. } => self.describe(record, self.time_left(record.step), "  "),
            _ => String::new(),
        };
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_position(record.step);
                bar.set_message(text);
            }
            Output::Lines { to, every, last } => {
                let due = last.is_none_or(|last| last.elapsed() >= *every);
                if due || record.step >= self.total {
                    *last = Some(Instant::now());
                    // A log that nobody can read any more is no reason to stop training.
                    let _ = writeln!(to, "step {text}");
                }
            }
            Output::Call(listener) => listener(Report::Step(record)),
            Output::Hidden => {}
        }
    }

    /// An evaluation is done.
    pub fn eval(&mut self, record: &EvalRecord) {
        if let Output::Call(listener) = &mut self.output {
            return listener(Report::Eval(record));
        }
        let mut line = format!("eval at step {}: loss {:.4}", record.step, record.eval_loss);
        for (name, value) in record.named() {
            line.push_str(&format!("  {} {value:.4}", name.replace('_', " ")));
        }
        self.message(&line);
    }

    /// Says something that stays on the screen.
    pub fn message(&mut self, text: &str) {
        match &mut self.output {
            Output::Bar(bar) => bar.println(text),
            Output::Lines { to, .. } => {
                let _ = writeln!(to, "{text}");
            }
            Output::Call(listener) => listener(Report::Message(text)),
            Output::Hidden => {}
        }
    }

    /// Leaves the bar as it stands and the cursor on a new line.
    pub fn finish(&mut self) {
        if let Output::Bar(bar) = &self.output {
            bar.abandon();
        }
    }

    /// From the mean time of the steps of this run.
    fn time_left(&self, step: u64) -> Option<Duration> {
        let done = step.checked_sub(self.first).filter(|&done| done > 0)?;
        let left = self.total.saturating_sub(step);
        let seconds = self.started.elapsed().as_secs_f64() / done as f64 * left as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// With a bar of ten in front and one space between, it fits 80 columns where it is not to be wide.
    fn describe(&self, record: &StepRecord, left: Option<Duration>, between: &str) -> String {
        let mean = self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64;
        let word = if self.wide { "last " } else { "" };
        let mut parts = vec![format!("{}/{}", record.step, self.total)];
        let of = self.epochs.map(|epochs| format!("/{}", hundredths(epochs))).unwrap_or_default();
        parts.push(format!("epoch {}{of}", hundredths(record.epoch)));
        parts.push(format!("loss {mean:.4} ({word}{:.4})", record.loss));
        if self.wide {
            parts.push(format!("lr {:.2e}", record.learning_rate));
        }
        parts.push(format!("{:.0} tok/s", record.tokens_per_s));
        parts.extend(left.map(|left| format!("left {}", duration(left))));
        if self.wide {
            parts.extend(record.peak_rss_bytes.map(|bytes| format!("peak {} MB", bytes / 1_000_000)));
        }
        parts.join(between)
    }
}

/// A number with two digits behind the point, or fewer: 3, 2.5, 1.25.
fn hundredths(x: f64) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn step(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: 0.5,
            loss: 1.23456,
            learning_rate: 1.96e-4,
            grad_norm: 1.0,
            tokens: 100,
            examples: 4,
            tokens_per_s: 511.6,
            step_s: 0.2,
            peak_rss_bytes: Some(630_123_456),
            ..StepRecord::default()
        }
    }

    #[test]
    fn lines_for_the_first_the_last_and_when_due() {
        let buffer = Buffer::default();
        let mut progress = Progress::lines(14, 10, Duration::from_secs(3600), Box::new(buffer.clone()));
        progress.set_epochs(3.0);
        for n in 11..=14 {
            progress.step(&StepRecord { loss: n as f64, ..step(n) });
        }
        progress.message("done");
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "step 11/14  epoch 0.5/3  loss 11.0000 (last 11.0000)  lr 1.96e-4  512 tok/s  left 0s  peak 630 MB",
                "step 14/14  epoch 0.5/3  loss 12.5000 (last 14.0000)  lr 1.96e-4  512 tok/s  left 0s  peak 630 MB",
                "done"
            ]
        );
        let buffer = Buffer::default();
        let mut progress = Progress::lines(14, 0, Duration::ZERO, Box::new(buffer.clone()));
        for n in 1..=14 {
            progress.step(&step(n));
        }
        assert_eq!(buffer.0.lock().unwrap().iter().filter(|&&b| b == b'\n').count(), 14);
    }

    #[test]
    fn fits_beside_the_bar() {
        let long = StepRecord { step: 12345, tokens_per_s: 1234.0, ..step(0) };
        let mut progress = Progress { wide: false, ..Progress::hidden() };
        (progress.total, progress.epochs) = (20000, Some(3.0));
        progress.step(&long);
        let text =
            progress.describe(&StepRecord { epoch: 1.25, ..long }, Some(Duration::from_secs(3599)), " ");
        assert_eq!(text, "12345/20000 epoch 1.25/3 loss 1.2346 (1.2346) 1234 tok/s left 59m59s");
        assert!(text.len() <= 80 - 11, "{text}");
    }

    #[test]
    fn the_mean_is_of_the_last_ten_steps() {
        let mut progress = Progress::hidden();
        for n in 1..=12 {
            progress.step(&StepRecord { loss: n as f64, ..step(n) });
        }
        let text = progress.describe(&StepRecord { loss: 12.0, ..step(12) }, None, "  ");
        assert!(text.contains("loss 7.5000 (last 12.0000)"), "{text}");
        assert_eq!(
            [hundredths(3.0), hundredths(2.5), hundredths(1.256), hundredths(10.0)],
            ["3", "2.5", "1.26", "10"]
        );
    }

    #[test]
    fn tells_time() {
        let seconds = |s| duration(Duration::from_secs_f64(s));
        assert_eq!(
            [seconds(0.4), seconds(59.6), seconds(3599.0), seconds(7384.0)],
            ["0s", "1m00s", "59m59s", "2h03m"]
        );
    }
}

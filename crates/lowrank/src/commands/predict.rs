//! `lowrank predict`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::train::{Task, evaluate};
use lowrank::{Error, Result, Session};
use serde_json::{Value, json};

/// What to predict for.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: super::scored::Flags,
    /// Where to: one JSON line an example [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Predicts the labels of a file, which need not have any.
pub fn run(args: &Args) -> Result<ExitCode> {
    super::on_threads(args.input.threads, || work(args))
}

fn work(args: &Args) -> Result<ExitCode> {
    let session = args.input.session()?;
    let task = session.task.task;
    if !task.has_labels() && task != Task::Regression {
        return Err(Error::Usage(format!(
            "predict is for classification and regression, not --task {}",
            task.name()
        )));
    }
    let data = args.input.read(&session, true)?;
    let stepper = args.input.stepper(&session)?;
    let result = evaluate(&stepper, &data.examples, args.input.batch_size, true);
    let lines = data.examples.iter().zip(&result.predictions).map(|(example, prediction)| {
        let mut line = json!({ "line": example.id.line });
        match task {
            Task::Regression => line["value"] = json!(prediction.outputs[0]),
            Task::TokenClassification => {
                let tags: Vec<&str> = prediction.classes.iter().map(|&tag| label(&session, tag)).collect();
                line["tags"] = json!(tags);
            }
            _ => {
                line["label"] = json!(label(&session, prediction.classes[0]));
                line["scores"] = scores(&session, &prediction.outputs);
            }
        }
        line
    });
    write(args.out.as_ref(), lines)?;
    Ok(ExitCode::SUCCESS)
}

fn label(session: &Session, class: u32) -> &str {
    &session.task.labels[class as usize]
}

/// The probability of every class.
fn scores(session: &Session, logits: &[f32]) -> Value {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|x| (x - largest).exp()).sum();
    let named = session.task.labels.iter().zip(logits);
    named.map(|(name, x)| (name.clone(), json!((x - largest).exp() / total))).collect()
}

fn write(out: Option<&PathBuf>, lines: impl Iterator<Item = Value>) -> Result<()> {
    let path = out.cloned().unwrap_or_else(|| "standard output".into());
    let failed = |source: io::Error| Error::Io { path: path.clone(), source };
    let mut to: Box<dyn Write> = match out {
        Some(path) => Box::new(BufWriter::new(File::create(path).map_err(failed)?)),
        None => Box::new(BufWriter::new(io::stdout().lock())),
    };
    for line in lines {
        writeln!(to, "{line}").map_err(failed)?;
    }
    to.flush().map_err(failed)
}

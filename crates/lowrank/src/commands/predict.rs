//! `lowrank predict`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lowrank::files::{AtomicFile, IoError};
use lowrank::train::{Example, Target, Task, evaluate};
use lowrank::{Error, Result, Session, softmax};
use serde_json::{Value, json};

use super::Stdout;
use super::flags::adapter_files::Replace;
use super::flags::scoring::ScoringFlags;

/// Predict labels or values, or compute embeddings, one JSON line each.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: ScoringFlags,
    /// File to write, one JSON object a line [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    replace: Replace,
}

/// Predicts the labels of a file, which need not have any, or gives the vectors of its texts.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.input.options()?.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let options = args.input.options()?;
    let inputs = args.input.inputs()?;
    args.replace.check(args.out.as_deref(), &inputs.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let session = args.input.session()?;
    let task = session.task.task;
    if task == Task::Embedding {
        return embed(args, &session, options.batch_size, out);
    }
    if !task.has_labels() && !task.is_number() {
        return Err(Error::Usage(format!(
            "predict is for classification, regression and embedding, not for `task` {}",
            task.name()
        )));
    }
    let data = args.input.read(&session, true)?;
    let (adapters, device) = (args.input.adapter(&session)?, session.device());
    let scorer = session.scorer(&adapters, &device)?;
    let result = evaluate(&scorer, &data.examples, options.batch_size, true)?.checked()?;
    let lines = data.examples.iter().zip(&result.predictions).map(|(example, prediction)| {
        let mut line = json!({ "line": example.id.line });
        match task {
            Task::Regression | Task::Reward => match prediction.outputs[..] {
                [value] => line["value"] = json!(value),
                ref values => line["values"] = json!(values),
            },
            Task::MultiLabelClassification => {
                let names: Vec<&str> =
                    prediction.classes.iter().map(|&class| label(&session, class)).collect();
                line["labels"] = json!(names);
                line["scores"] = named(&session, prediction.outputs.iter().map(|x| 1.0 / (1.0 + (-x).exp())));
            }
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
    write(args.out.as_deref(), lines.map(Ok), out)?;
    Ok(ExitCode::SUCCESS)
}

/// The vectors of texts, and of pairs their cosine too.
fn embed(args: &Args, session: &Session, batch_size: usize, out: &mut Stdout) -> Result<ExitCode> {
    let data = args.input.read(session, true)?;
    let (adapters, device) = (args.input.adapter(session)?, session.device());
    let scorer = session.scorer(&adapters, &device)?;
    let lines = data.examples.batches(batch_size).flat_map(|chunk| {
        let batch = scorer.pack(&chunk.iter().collect::<Vec<_>>(), false, 0);
        let vectors = scorer.embed(&batch);
        if vectors.iter().flatten().any(|x| !x.is_finite()) {
            let examples = chunk.iter().map(|example| example.id.to_string()).collect();
            return vec![Err(lowrank::train::Error::NoNumbers { examples }.into())];
        }
        let mut vectors = vectors.into_iter();
        let line = |example: &Example| {
            let first = vectors.next().expect("every text has a vector");
            let mut line = json!({ "line": example.id.line });
            if example.target != Target::Pair(example.tokens.len()) {
                let second = vectors.next().expect("every text has a vector");
                line["cosine"] = json!(first.iter().zip(&second).map(|(a, b)| a * b).sum::<f32>());
                line["embedding_pair"] = json!(second);
            }
            line["embedding"] = json!(first);
            line
        };
        chunk.iter().map(line).map(Ok).collect::<Vec<_>>()
    });
    write(args.out.as_deref(), lines, out)?;
    Ok(ExitCode::SUCCESS)
}

fn label(session: &Session, class: u32) -> &str {
    &session.task.labels[class as usize]
}

/// The probability of every class.
fn scores(session: &Session, logits: &[f32]) -> Value {
    named(session, softmax(logits).into_iter())
}

/// A number for every class, by its name.
fn named(session: &Session, numbers: impl Iterator<Item = f32>) -> Value {
    session.task.labels.iter().zip(numbers).map(|(name, x)| (name.clone(), json!(x))).collect()
}

/// Writes the lines to the file at `path`, or to standard output.
fn write(path: Option<&Path>, lines: impl Iterator<Item = Result<Value>>, out: &mut Stdout) -> Result<()> {
    let Some(path) = path else {
        for line in lines {
            writeln!(out, "{}", line?)?;
        }
        return Ok(());
    };
    let mut file = AtomicFile::create(path)?;
    for line in lines {
        writeln!(file, "{}", line?).map_err(IoError::at(path))?;
    }
    Ok(file.commit()?)
}

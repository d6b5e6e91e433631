//! `lowrank study`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::{Error, Result, Session, TrainOptions};
use lowrank_study::{Outcome, Spec};

use super::Stdout;
use super::config_file::Section;

/// Compare methods, matrices, ranks and seeds as in the LoRA paper, and write a report.
///
/// Exits with 1 where a run failed; the others are done all the same.
#[derive(clap::Args)]
pub struct Args {
    /// TOML file that describes the study
    #[arg(value_name = "FILE")]
    spec: PathBuf,
    /// Report on finished runs without training
    #[arg(long)]
    report_only: bool,
    /// Number of threads for the report's measurements [default: all processors]
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("threads"))]
    threads: Option<usize>,
}

/// Does what is not done yet, then writes the report.
pub fn run(args: &Args, _: &mut Stdout) -> Result<ExitCode> {
    let text = super::read_text(&args.spec)?;
    let spec = Spec::parse(&text).map_err(|e| Error::Usage(format!("{}: {e}", args.spec.display())))?;
    let checked =
        |name, index, table| super::config_file::check(&args.spec, &text, Section { name, index }, table);
    checked("train", None, &spec.train)?;
    for (i, method) in spec.method.iter().enumerate() {
        checked("method", Some(i), &method.options)?;
    }
    // With the head and the labels that its runs have.
    let session = Session::for_run(&TrainOptions::from_table(spec.train.clone())?)?;
    let runs = lowrank_study::plan(&spec, session.sites())?;
    let mut outcome = Outcome::Complete { failed: 0 };
    let mut lock = None;
    if !args.report_only {
        // The run at work saves its state and ends with 130; this process continues to the report.
        let signals = super::signals::count("stopping; run the same command again to continue")?;
        let command = super::program::words()?;
        outcome = lowrank_study::run_all(&spec, &runs, &command, &signals, &mut |line| note!("{line}"))?;
        // One report at a time; on the way out none waits.
        if outcome != Outcome::Interrupted {
            lock = lowrank_study::wait_for_others(&spec.out, "data", &signals, &mut |line| note!("{line}"))?;
        }
    }
    let written = super::on_threads(args.threads, || {
        let report =
            lowrank_study::study_report(&spec, &runs, &session.base, &*session.model, &session.device())?;
        Ok(report.write(&spec.out, false)?)
    })?;
    drop(lock);
    super::report::say_written(&written);
    Ok(match outcome {
        Outcome::Complete { failed: 0 } => ExitCode::SUCCESS,
        Outcome::Complete { failed } => {
            say_failed(failed);
            ExitCode::FAILURE
        }
        Outcome::OutOfTime { left, failed } => {
            note!("the time limit is reached with {left} runs to do; run the same command again to continue");
            if failed > 0 {
                say_failed(failed);
                return Ok(ExitCode::FAILURE);
            }
            ExitCode::SUCCESS
        }
        Outcome::Interrupted => ExitCode::from(130),
    })
}

fn say_failed(failed: usize) {
    note!("{failed} runs failed; the report says why, and the same command tries them again");
}

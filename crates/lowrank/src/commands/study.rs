//! `lowrank study`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::comm::Communicator;
use lowrank::{Error, Result, Session, TrainOptions, all_well};
use lowrank_study::{Outcome, Spec};

use super::config_file::Section;
use super::{Stdout, ranks};

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
    let comm = ranks::connect(None)?;
    let code = all_well(&*comm, work(args, &*comm));
    if code.is_ok() {
        comm.finish()?;
    }
    code
}

fn work(args: &Args, comm: &dyn Communicator) -> Result<ExitCode> {
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
        outcome = lowrank_study::run_all(&spec, &runs, &command, &signals, comm, &mut |line| {
            ranks::note(comm, line);
        })?;
        outcome = Outcome::of_ranks(comm, outcome)?;
        // One report at a time; on the way out none waits.
        if outcome != Outcome::Interrupted && comm.is_first() {
            lock = lowrank_study::wait_for_others(&spec.out, "data", &signals, &mut |line| note!("{line}"))?;
        }
    }
    if !comm.is_first() {
        return Ok(ExitCode::from(code_of(&outcome)));
    }
    let written = super::on_threads(args.threads, || {
        let report =
            lowrank_study::study_report(&spec, &runs, &session.base, &*session.model, &session.device())?;
        Ok(report.write(&spec.out, false)?)
    })?;
    drop(lock);
    super::report::say_written(&written);
    match outcome {
        Outcome::OutOfTime { left, .. } => {
            note!("the time limit is reached with {left} runs to do; run the same command again to continue");
        }
        Outcome::Complete { .. } | Outcome::Interrupted => {}
    }
    if let Outcome::Complete { failed: failed @ 1.. } | Outcome::OutOfTime { failed: failed @ 1.., .. } =
        outcome
    {
        say_failed(failed);
    }
    Ok(ExitCode::from(code_of(&outcome)))
}

fn code_of(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Complete { failed } | Outcome::OutOfTime { failed, .. } => u8::from(*failed > 0),
        Outcome::Interrupted => 130,
    }
}

fn say_failed(failed: usize) {
    note!("{failed} runs failed; the report says why, and the same command tries them again");
}

//! `lowrank eval`.

use std::process::ExitCode;

use lowrank::train::{Task, evaluate};
use lowrank::{Error, Result};

use super::Stdout;
use super::flags::scoring::ScoringFlags;
use super::flags::texts::TextFlags;

/// Compute the loss and metrics on data, or generate texts and score them.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: ScoringFlags,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    texts: TextFlags,
}

/// Evaluates.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.input.options()?.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let options = args.input.options()?;
    if args.texts.wanted() {
        return args
            .texts
            .generate_and_score(&options, args.json, out, &args.input.inputs()?, || args.input.open());
    }
    if options.task == Task::Grpo {
        let what = "`task` grpo has a reward in place of a loss, which `train` evaluates with `eval_data`; give \
                    `task` lm for the loss, or `generate` for texts";
        return Err(Error::Usage(what.into()));
    }
    let session = args.input.session()?;
    let data = args.input.read(&session, false)?;
    let (adapters, device) = (args.input.adapter(&session)?, session.device());
    let scorer = session.scorer(&adapters, &device)?;
    let result = evaluate(&scorer, &data.examples, options.batch_size, true)?.checked()?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&result).expect("plain numbers"))?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{:<21} {:.4}", "loss", result.loss)?;
    for (name, value) in &result.metrics {
        writeln!(out, "{:<21} {value:.4}", name.replace('_', " "))?;
    }
    writeln!(out, "({} labels of {} examples in {:.1} s)", result.labels, result.examples, result.seconds)?;
    Ok(ExitCode::SUCCESS)
}

//! `lowrank eval`.

use std::process::ExitCode;

use lowrank::Result;
use lowrank::train::{Task, evaluate};

/// What to score.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: super::scored::Flags,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    texts: super::eval_texts::Flags,
}

/// Evaluates.
pub fn run(args: &Args) -> Result<ExitCode> {
    super::on_threads(args.input.threads, || work(args))
}

fn work(args: &Args) -> Result<ExitCode> {
    if args.texts.wanted() {
        let options = args.input.options(Task::Lm).read_options()?;
        let batch = args.input.batch_size;
        return args.texts.run(&args.input.data, &options, batch, args.json, || args.input.open());
    }
    let session = args.input.session()?;
    let data = args.input.read(&session, false)?;
    let stepper = args.input.stepper(&session)?;
    let result = evaluate(&stepper, &data.examples, args.input.batch_size, true);
    if args.json {
        println!("{}", serde_json::to_string(&result).expect("plain numbers"));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<21} {:.4}", "loss", result.loss);
    for (name, value) in &result.metrics {
        println!("{:<21} {value:.4}", name.replace('_', " "));
    }
    println!("({} labels of {} examples in {:.1} s)", result.labels, result.examples, result.seconds);
    Ok(ExitCode::SUCCESS)
}

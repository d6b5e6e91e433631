//! `lowrank eval`.

use std::process::ExitCode;
use std::sync::Arc;

use lowrank::comm::Communicator;
use lowrank::train::{Task, evaluate};
use lowrank::{Error, Result, all_well};

use super::flags::scoring::ScoringFlags;
use super::flags::texts::TextFlags;
use super::{Stdout, ranks};

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
    let comm = ranks::connect(None)?;
    let options = all_well(&*comm, args.input.options())?;
    let threads = ranks::threads(&*comm, options.threads)?;
    let code = super::on_threads(threads, || work(args, &comm, out))?;
    comm.finish()?;
    Ok(code)
}

fn work(args: &Args, comm: &Arc<dyn Communicator>, out: &mut Stdout) -> Result<ExitCode> {
    let options = args.input.options()?;
    if args.texts.wanted() {
        let open = || {
            let (session, adapters) = args.input.open()?;
            Ok((session.with_communicator(comm.clone()), adapters))
        };
        let inputs = all_well(&**comm, args.input.inputs())?;
        return args.texts.generate_and_score(&options, args.json, out, &inputs, &**comm, open);
    }
    let opened = || {
        if options.task == Task::Grpo {
            let what = "`task` grpo has a reward in place of a loss, which `train` evaluates with `eval_data`; give \
                         `task` lm for the loss, or `generate` for texts";
            return Err(Error::Usage(what.into()));
        }
        let session = args.input.session()?.with_communicator(comm.clone());
        let data = args.input.read(&session, false)?;
        let adapters = args.input.adapter(&session)?;
        Ok((session, data, adapters))
    };
    let (session, data, adapters) = all_well(&**comm, opened())?;
    let device = session.device();
    let scorer = session.scorer(&adapters, &device)?;
    let result = evaluate(&scorer, &data.examples, options.batch_size, true)?.checked()?;
    if !comm.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
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

//! The `lowrank` command.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// LoRA fine-tuning on the machine you have.
///
/// Exit codes: 0 done, 1 failed on the way, 2 bad usage or input, 130 interrupted (state saved).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train an adapter.
    #[command(args_override_self = true)]
    Train(Box<commands::train::Args>),
    /// Continue a text, or chat.
    Generate(commands::generate::Args),
    /// Loss and the metrics of the task on data; or scores of generated texts.
    Eval(commands::eval::Args),
    /// Labels or values for data, one JSON line each.
    Predict(commands::predict::Args),
    /// Write base and adapter as one model.
    Merge(commands::merge::Args),
    /// Memory and work of a training run, before it starts.
    #[command(args_override_self = true)]
    Plan(Box<commands::plan::Args>),
    /// What is in a model or an adapter.
    Inspect(commands::inspect::Args),
    /// Compare methods, matrices, ranks and seeds as the paper does, and report.
    Study(commands::study::Args),
    /// One report of training runs: curves, memory, spectra.
    Report(commands::report::Args),
    /// Adapters between formats: PEFT, loralib, GGUF, MLX, kohya, diffusers.
    Convert(commands::convert::Args),
    /// Several adapters with weights as one.
    Compose(commands::compose::Args),
    /// An adapter out of a full fine-tune and its base.
    Extract(commands::extract::Args),
    /// Other ranks for an adapter.
    Resize(commands::resize::Args),
    /// Small entries and layers of an adapter away.
    Prune(commands::prune::Args),
    /// Another number type for an adapter.
    Dtype(commands::dtype::Args),
    /// Other module names for an adapter.
    Rename(commands::rename::Args),
    /// What differs between two adapters.
    Diff(commands::diff::Args),
}

fn main() -> ExitCode {
    lowrank_engine::kernels::unmap_large_blocks_when_freed();
    let result = match Cli::parse().command {
        Command::Train(args) => commands::train::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Study(args) => commands::study::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Compose(args) => commands::compose::run(&args),
        Command::Extract(args) => commands::extract::run(&args),
        Command::Resize(args) => commands::resize::run(&args),
        Command::Prune(args) => commands::prune::run(&args),
        Command::Dtype(args) => commands::dtype::run(&args),
        Command::Rename(args) => commands::rename::run(&args),
        Command::Diff(args) => commands::diff::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

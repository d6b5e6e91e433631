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
    /// Loss and the metrics of the task on data.
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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train(args) => commands::train::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

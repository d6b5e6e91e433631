//! The `lowrank` command.

mod commands;

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use commands::Stdout;
use lowrank::Result;

/// LoRA fine-tuning on the machine you have.
///
/// Exit codes: 0 done, 1 failed while running (a file cannot be read or written, a check does not hold), 2 wrong usage,
/// configuration or input, 130 interrupted (state saved).
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    lowrank_engine::kernels::unmap_large_blocks_when_freed();
    #[cfg(unix)]
    lowrank_engine::name_files_that_are_cut();
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        // Help and version, or wrong usage.
        Err(error) => return usage(&error),
    };
    let name = matches.subcommand_name().unwrap_or_default().to_owned();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = catch_unwind(AssertUnwindSafe(|| run(&cli))).unwrap_or_else(|payload| {
        match payload.downcast::<lowrank_engine::Error>() {
            Ok(error) => Err(lowrank::Error::Failed(error.to_string())),
            Err(payload) => resume_unwind(payload),
        }
    });
    match result {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(error) if Stdout::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            commands::say_error(Cli::command().find_subcommand(&name), &error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let mut out = Stdout::new();
    let code = cli.command.run(&mut out)?;
    out.flush()?;
    Ok(code)
}

/// Prints what clap has to say.
fn usage(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => ExitCode::from(error.exit_code() as u8),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => ExitCode::from(error.exit_code() as u8),
        Err(_) => ExitCode::FAILURE,
    }
}

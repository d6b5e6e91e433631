//! The `lowrank` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    lowrank::cli::main(std::env::args_os())
}

//! `lowrank completions`.

use std::process::ExitCode;

use clap_complete::Shell;
use lowrank::Result;

use super::Stdout;

/// Print a script that completes commands and options in a shell.
///
/// For bash: lowrank completions bash > ~/.local/share/bash-completion/completions/lowrank
#[derive(clap::Args)]
pub struct Args {
    /// Shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::cli::command(), "lowrank", &mut script);
    write!(out, "{}", String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

//! `lowrank rename`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::formats::peft;
use lowrank::tools::resize::rename;

use super::Stdout;
use super::flags::adapter_files::{Output, regex};

/// Rename the modules of an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter folder in PEFT's format, of any method
    adapter: PathBuf,
    /// Regular expression for the part of the tensor names to replace
    #[arg(long, value_name = "REGEX")]
    replace: String,
    /// Replacement; $1 is the first group
    #[arg(long, value_name = "TEXT")]
    with: String,
    #[command(flatten)]
    output: Output,
}

/// Renames.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check(&[&args.adapter])?;
    let from = regex(&args.replace)?;
    let (mut config, mut tensors) = peft::read_raw(&args.adapter)?;
    let changed = rename(&mut config, &mut tensors, &from, &args.with)?;
    args.output.write(|out| Ok(peft::write_raw(out, &config, &tensors)?))?;
    writeln!(out, "renamed {changed} of {} tensors", tensors.len())?;
    Ok(ExitCode::SUCCESS)
}

//! `lowrank rename`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::raw::Raw;
use lowrank::tools::resize::rename;

use super::Stdout;
use super::flags::adapter_files::{Output, regex};

/// Rename the modules of an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter folder or file, of any method
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
    let mut raw = Raw::read(&args.adapter)?;
    let changed = rename(&mut raw.config, &mut raw.tensors, &from, &args.with)?;
    args.output.write(|out| Ok(raw.write(out)?))?;
    writeln!(out, "renamed {changed} of {} tensors", raw.tensors.len())?;
    Ok(ExitCode::SUCCESS)
}

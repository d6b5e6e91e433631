//! `lowrank dtype`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::raw::Raw;
use lowrank::tools::resize::to_dtype;

use super::Stdout;
use super::flags::adapter_files::{Output, dtype};

/// Change the number type of an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter folder or file, of any method
    adapter: PathBuf,
    /// Number type: f32, f16 or bf16
    #[arg(long)]
    to: String,
    #[command(flatten)]
    output: Output,
}

/// Writes it in another number type.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check(&[&args.adapter])?;
    let to = dtype(&args.to)?;
    let mut raw = Raw::read(&args.adapter)?;
    let change = to_dtype(&mut raw.tensors, to)?;
    args.output.write(|out| Ok(raw.write(out)?))?;
    writeln!(out, "{} tensors in {}; values changed by at most {change:.1e}", raw.tensors.len(), to.name())?;
    Ok(ExitCode::SUCCESS)
}

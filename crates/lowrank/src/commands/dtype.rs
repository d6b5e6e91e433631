//! `lowrank dtype`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::formats::peft;
use lowrank::tools::resize::to_dtype;

use super::Stdout;
use super::flags::adapter_files::{Output, dtype};

/// Which adapter, and its number type.
#[derive(clap::Args)]
pub struct Args {
    /// The adapter: a folder of PEFT's, of any method
    adapter: PathBuf,
    /// f32, f16 or bf16
    #[arg(long)]
    to: String,
    #[command(flatten)]
    output: Output,
}

/// Writes it in another number type.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check()?;
    let to = dtype(&args.to)?;
    let (config, mut tensors) = peft::read_raw(&args.adapter)?;
    let change = to_dtype(&mut tensors, to)?;
    peft::write_raw(&args.output.out, &config, &tensors)?;
    writeln!(out, "{} tensors in {}; no number changed by more than {change:.1e}", tensors.len(), to.name())?;
    Ok(ExitCode::SUCCESS)
}

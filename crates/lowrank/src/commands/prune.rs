//! `lowrank prune`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::tools::resize::{Prune, prune};
use lowrank::{Error, Result};

use super::Stdout;
use super::flags::adapter_files::{Hints, Output, read, regex, write_back};

/// Remove small entries or whole layers from an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter folder or file
    adapter: PathBuf,
    /// Share of the entries of each matrix to keep; the smallest others become zero
    #[arg(long, value_parser = super::flags::ranges::real("density"))]
    density: Option<f64>,
    /// Drop layers whose update has a norm below this share of the largest
    #[arg(long, value_parser = super::flags::ranges::real("min_norm"), value_name = "SHARE")]
    min_norm: Option<f64>,
    /// Drop layers whose path matches
    #[arg(long, value_name = "REGEX")]
    drop: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    hints: Hints,
}

/// Prunes.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check(&[&args.adapter])?;
    let drop = args.drop.as_deref().map(regex).transpose()?;
    if args.density.is_none() && args.min_norm.is_none() && drop.is_none() {
        return Err(Error::Usage("nothing to prune: give `density`, `min_norm` or `drop`".into()));
    }
    let (lora, format) = read(&args.adapter, None, &args.hints)?;
    let how = Prune { density: args.density, min_norm: args.min_norm, drop };
    let (left, gone) = prune(&lora, &how)?;
    write_back(&left, format, &args.output, &args.hints)?;
    for path in &gone {
        writeln!(out, "dropped {path}")?;
    }
    writeln!(
        out,
        "{} of {} layers left, {} parameters",
        left.pairs.len(),
        lora.pairs.len(),
        left.parameters()
    )?;
    Ok(ExitCode::SUCCESS)
}

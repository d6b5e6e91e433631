//! `lowrank compose`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::tools::Lora;
use lowrank::tools::compose::{Combination, Compose, compose};
use lowrank::{Error, Result};

use super::Stdout;
use super::flags::adapter_files::{Hints, Output, read, write_back};

/// Combine several weighted adapters into one.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter and its weight (1 by default, may be negative); repeat for each adapter
    #[arg(long, value_name = "DIR[:WEIGHT]", value_parser = super::flags::weighted::weighted, required = true)]
    adapter: Vec<(PathBuf, f64)>,
    /// Method: linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune; the last four also with _svd
    #[arg(long, default_value = "svd", value_name = "COMBINATION")]
    how: String,
    /// Rank of the result, for the svd methods [default: the largest of the adapters']
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("rank"))]
    rank: Option<usize>,
    /// Share of the entries to keep, for ties, dare and magnitude_prune
    #[arg(long, value_parser = super::flags::ranges::real("density"))]
    density: Option<f64>,
    /// How ties elects a sign: total or frequency
    #[arg(long, default_value = "total", value_name = "METHOD")]
    majority_sign_method: String,
    /// Random seed of dare
    #[arg(long, value_parser = super::flags::ranges::whole::<u64>("seed"), default_value_t = 0)]
    seed: u64,
    /// Number of threads [default: all processors]
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("threads"))]
    threads: Option<usize>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    hints: Hints,
}

/// Combines.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let by_frequency = match args.majority_sign_method.as_str() {
        "total" => false,
        "frequency" => true,
        other => {
            return Err(Error::Usage(format!(
                "unknown `majority_sign_method` {other:?}: use total or frequency"
            )));
        }
    };
    let how = Compose {
        combination: Combination::parse(&args.how)?,
        rank: args.rank,
        density: args.density,
        by_frequency,
        seed: args.seed,
    };
    args.output.check(&args.adapter.iter().map(|(path, _)| path.as_path()).collect::<Vec<_>>())?;
    let mut adapters: Vec<(Lora, f64)> = Vec::new();
    let mut formats = Vec::new();
    for (path, weight) in &args.adapter {
        let (lora, format) = read(path, None, &args.hints)?;
        adapters.push((lora, *weight));
        formats.push(format);
    }
    let list: Vec<(&Lora, f64)> = adapters.iter().map(|(lora, weight)| (lora, *weight)).collect();
    let result = compose(&list, &how)?;
    write_back(&result, formats[0], &args.output, &args.hints)?;
    let rank = result.pairs.values().map(|pair| pair.rank()).max().unwrap_or(0);
    writeln!(
        out,
        "composed {} adapters by {}: {} layers of rank up to {rank} in {}",
        adapters.len(),
        args.how,
        result.pairs.len(),
        args.output.out.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

//! `lowrank resize`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::resize::resize;
use serde_json::json;

use super::Stdout;
use super::flags::adapter_files::{Hints, Output, RankRule, read, table, write_back};

/// Change the ranks of an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter folder or file
    adapter: PathBuf,
    #[command(flatten)]
    rule: RankRule,
    /// Maximum rank
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("max_rank"), default_value_t = 65_536, value_name = "R", hide_default_value = true)]
    max_rank: usize,
    /// Number of threads [default: all processors]
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("threads"))]
    threads: Option<usize>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    hints: Hints,
}

/// Resizes.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check(&[&args.adapter])?;
    let rule = args.rule.rule()?;
    let (lora, format) = read(&args.adapter, None, &args.hints)?;
    let (smaller, report) = resize(&lora, rule, args.max_rank)?;
    write_back(&smaller, format, &args.output, &args.hints)?;
    let row = |r: &lowrank::tools::resize::Resized| json!({ "layer": r.path, "rank before": r.ranks.0, "rank": r.ranks.1, "energy kept": format!("{:.4}", r.energy) });
    table(out, &report.iter().map(row).collect::<Vec<_>>())?;
    writeln!(out, "\n{} parameters, {} before", smaller.parameters(), lora.parameters())?;
    Ok(ExitCode::SUCCESS)
}

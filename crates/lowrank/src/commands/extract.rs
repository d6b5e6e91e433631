//! `lowrank extract`.

use std::path::Path;
use std::process::ExitCode;

use lowrank::adapters::Targets;
use lowrank::tools::extract::Extract;
use lowrank::{Result, extract_adapter};
use serde_json::json;

use super::Stdout;
use super::flags::adapter_files::{Output, RankRule, table, write_peft};

/// Extract an adapter from a full fine-tune and its base model.
#[derive(clap::Args)]
pub struct Args {
    /// Base model: Hugging Face folder, GGUF file or hub id
    #[arg(long)]
    model: String,
    /// Fully fine-tuned model
    #[arg(long, value_name = "MODEL")]
    tuned: String,
    #[command(flatten)]
    rule: RankRule,
    /// Maximum rank
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("max_rank"), default_value_t = 256, value_name = "R")]
    max_rank: usize,
    /// Modules to extract: names, a regular expression, or all-linear
    #[arg(long, default_value = "all-linear")]
    target_modules: String,
    /// Compute all singular values of large layers, in place of the leading ones by random projection (slow)
    #[arg(long)]
    exact: bool,
    /// Random seed of the projection
    #[arg(long, value_parser = super::flags::ranges::whole::<u64>("seed"), default_value_t = 0)]
    seed: u64,
    /// Number of threads [default: all processors]
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("threads"))]
    threads: Option<usize>,
    #[command(flatten)]
    output: Output,
}

/// Extracts.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check(&[Path::new(&args.model), Path::new(&args.tuned)])?;
    let how =
        Extract { rule: args.rule.rule()?, max_rank: args.max_rank, exact: args.exact, seed: args.seed };
    let target_modules = Targets::parse(&args.target_modules);
    let found = extract_adapter(&args.model, &args.tuned, target_modules, &how)?;
    write_peft(&found.lora, &args.output, &lowrank::tools::Options::default())?;
    let rows: Vec<_> = found
        .taken
        .iter()
        .map(|t| json!({ "layer": t.path, "rank": t.rank, "norm": format!("{:.4}", t.norm), "energy kept": format!("{:.4}", t.energy) }))
        .collect();
    table(out, &rows)?;
    writeln!(out, "\nextracted {} layers into {}", found.taken.len(), args.output.out.display())?;
    if !found.left.is_empty() {
        writeln!(
            out,
            "{} other tensors differ too and are not in the adapter: {}",
            found.left.len(),
            found.left.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

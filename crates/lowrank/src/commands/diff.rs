//! `lowrank diff`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::compare::diff;
use serde_json::json;

use super::Stdout;
use super::flags::adapter_files::{Hints, read, table};

/// Compare two adapters.
#[derive(clap::Args)]
pub struct Args {
    /// First adapter
    left: PathBuf,
    /// Second adapter
    right: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hints: Hints,
}

/// Compares.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let (left, _) = read(&args.left, None, &args.hints)?;
    let (right, _) = read(&args.right, None, &args.hints)?;
    let rows: Vec<_> = diff(&left, &right)?
        .into_iter()
        .map(|d| {
            let number = |x: f64| if args.json { json!(x) } else { json!(format!("{x:.4}")) };
            json!({
                "layer": d.path,
                "rank left": d.ranks.0,
                "rank right": d.ranks.1,
                "norm left": number(d.norms.0),
                "norm right": number(d.norms.1),
                "distance": number(d.distance),
                "cosine": number(d.cosine),
                "overlap": number(d.overlap),
            })
        })
        .collect();
    let same = left.pairs == right.pairs && left.saved == right.saved;
    if args.json {
        writeln!(out, "{}", json!({ "same": same, "rows": rows }))?;
        return Ok(ExitCode::SUCCESS);
    }
    table(out, &rows)?;
    writeln!(out, "\n{}", if same { "identical" } else { "different" })?;
    Ok(ExitCode::SUCCESS)
}

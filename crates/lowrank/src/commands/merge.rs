//! `lowrank merge`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lowrank::files::{Staged, check_output};
use lowrank::{Loss, MergeCheck, MergeTarget, Merged, Result, Session, merge_checked, unmerge};

use super::Stdout;

/// Merge base and adapters into one model.
#[derive(clap::Args)]
pub struct Args {
    /// Base model: Hugging Face folder, GGUF file or hub id
    #[arg(long)]
    model: String,
    /// Adapter (folder, or file in any format) and its weight (1 by default); may be repeated
    #[arg(long, value_name = "DIR[:WEIGHT]", value_parser = super::flags::weighted::weighted_f32, required = true)]
    adapter: Vec<(PathBuf, f32)>,
    /// Subtract the adapter from --model, into which it was merged
    #[arg(long)]
    unmerge: bool,
    /// Folder (safetensors) or .gguf file to write
    #[arg(long)]
    out: PathBuf,
    /// Number type: f32, f16, bf16, or for GGUF q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s, q4_1, q4_0
    /// [default: GGUF from GGUF: that of each tensor, or q8_0 if that undoes the adapter; else the base's, or f16]
    #[arg(long)]
    dtype: Option<String>,
    /// Chat template to write with the model: a Jinja file or a name as in `train` [default: the adapter's, else the base's]
    #[arg(long, value_name = "CHAT_TEMPLATE")]
    chat_template: Option<String>,
    /// Text on which the merged model is compared with the unmerged one
    #[arg(long, default_value = "The quick brown fox jumps over the lazy dog. Once upon a time")]
    probe: String,
    /// Skip the comparison with the unmerged model
    #[arg(long, conflicts_with = "tolerance")]
    no_verify: bool,
    /// Fail if any logit or class score differs by more than this [default: what rounding to --dtype explains]
    #[arg(long, value_parser = super::flags::ranges::real_f32("tolerance"))]
    tolerance: Option<f32>,
    /// Replace --out if it exists
    #[arg(long)]
    force: bool,
    /// Number of threads [default: all processors]
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("threads"))]
    threads: Option<usize>,
}

/// Layers that are shown, those that rounding costs most.
const SHOWN: usize = 5;

/// Merges.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let mut inputs = vec![Path::new(&args.model)];
    inputs.extend(args.adapter.iter().map(|(dir, _)| dir.as_path()));
    check_output(&args.out, &inputs, args.force)?;
    let session = Session::for_adapters(&args.model, &args.adapter, args.chat_template.as_deref())?;
    let adapters = session.adapters(&args.adapter)?;
    let target = MergeTarget::choose(&session, &adapters, &args.out, args.dtype.as_deref())?;
    if let Some(note) = target.note(&session, args.dtype.as_deref()) {
        note!("{note}");
    }
    if args.unmerge {
        let staged = Staged::beside(&args.out)?;
        unmerge(&session, &adapters, staged.path(), target)?;
        staged.keep()?;
        writeln!(
            out,
            "took the adapter out of {} layers into {}",
            adapters.layers.len(),
            args.out.display()
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let check = MergeCheck { probe: args.probe.clone(), tolerance: args.tolerance };
    let check = (!args.no_verify).then_some(&check);
    let Merged { mut losses, verified, warning } =
        merge_checked(&session, &adapters, &args.out, target, check)?;
    losses.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
    for Loss { path, relative_error, kept, .. } in losses.iter().take(SHOWN) {
        let kept = 100.0 * kept;
        writeln!(out, "{path:<48} relative error {relative_error:.2e}, keeps {kept:.0} % of the adapter")?;
    }
    if losses.len() > SHOWN {
        writeln!(out, "and less in {} other layers", losses.len() - SHOWN)?;
    }
    if let Some(worst) = losses.first() {
        writeln!(
            out,
            "rounding the merged weights costs at most {:.2e} of their norm ({})",
            worst.relative_error, worst.path
        )?;
    }
    let done = format!("merged {} layers into {}", adapters.layers.len(), args.out.display());
    match verified {
        None => writeln!(out, "{done}")?,
        Some(v) => writeln!(
            out,
            "{done}: outputs differ by at most {:.2e} (largest {:.1}), the same is best at {} of {} positions",
            v.max_difference, v.max_logit, v.same_best, v.positions
        )?,
    }
    if let Some(warning) = warning {
        note!("warning: {warning}");
    }
    Ok(ExitCode::SUCCESS)
}

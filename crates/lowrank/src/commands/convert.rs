//! `lowrank convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use lowrank::Result;
use lowrank::tools::{FileFormat, formats, resize};

use super::Stdout;
use super::flags::adapter_files::{Hints, Output, dtype, read};

/// Convert an adapter between formats: PEFT, loralib, GGUF, MLX, kohya, diffusers.
#[derive(clap::Args)]
pub struct Args {
    /// Adapter folder or file
    adapter: PathBuf,
    #[arg(long, help = format!("Format to read: {} [default: detected]", FileFormat::names(", ")), value_name = "FORMAT")]
    from: Option<String>,
    /// Format to write
    #[arg(long, value_name = "FORMAT")]
    to: String,
    #[command(flatten)]
    output: Output,
    /// Number type: f32, f16 or bf16 [default: unchanged]
    #[arg(long)]
    dtype: Option<String>,
    #[command(flatten)]
    hints: Hints,
}

/// Converts.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    args.output.check(&[&args.adapter])?;
    let to = FileFormat::parse(&args.to)?;
    let (mut lora, from) = read(&args.adapter, args.from.as_deref(), &args.hints)?;
    if let Some(name) = &args.dtype {
        resize::lora_to_dtype(&mut lora, dtype(name)?)?;
    }
    args.output.write(|out| {
        formats::write(&lora, out, to, &args.hints.options())?;
        Ok(())
    })?;
    writeln!(
        out,
        "converted {} layers ({} parameters) from {} to {}: {}",
        lora.pairs.len(),
        lora.parameters(),
        from.name,
        to.name,
        args.output.out.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

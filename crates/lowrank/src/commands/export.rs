//! `lowrank export`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use lowrank::files::{Staged, check_output, is_gguf, shell_quoted, write_atomic};
use lowrank::tools::{FileFormat, Options, formats};
use lowrank::{Error, MergeCheck, MergeTarget, Result, Session, merge_checked};
use serde_json::{Value, json};

use super::Stdout;

/// Write what a program needs to run an adapter, and print the command that runs it.
///
/// ollama: the merged model as GGUF and a Modelfile. llama.cpp: the adapter as GGUF for a GGUF base, else the merged model.
/// vllm and mlx: the adapter for a Hugging Face base, else the merged folder.
#[derive(clap::Args)]
pub struct Args {
    /// Base model: Hugging Face folder, GGUF file or hub id
    #[arg(long)]
    model: String,
    /// Adapter (folder, or file in any format)
    #[arg(long)]
    adapter: PathBuf,
    /// Program that is to run it
    #[arg(long, value_enum)]
    to: Runtime,
    /// Folder to write
    #[arg(long)]
    out: PathBuf,
    /// Name of the adapter there [default: the name of its folder]
    #[arg(long)]
    name: Option<String>,
    /// Number type of a merged model, as in `merge` [default: q8_0 for GGUF, else the base's or f16]
    #[arg(long)]
    dtype: Option<String>,
    /// Replace --out if it exists
    #[arg(long)]
    force: bool,
    /// Number of threads [default: all processors]
    #[arg(long, value_parser = super::flags::ranges::whole::<usize>("threads"))]
    threads: Option<usize>,
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    Ollama,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Vllm,
    Mlx,
}

/// Writes the files and prints the command.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    super::on_threads(args.threads, || work(args, out))
}

fn work(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    check_output(&args.out, &[Path::new(&args.model), &args.adapter], args.force)?;
    let name = args.name.clone().unwrap_or_else(|| {
        let name = args.adapter.file_stem().map(|name| name.to_string_lossy().into_owned());
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| "adapter".into())
    });
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        let what = format!(
            "--name {name:?} has characters that are no letters, digits, `-`, `_` or `.`: give another"
        );
        return Err(Error::Usage(what));
    }
    let gguf = is_gguf(Path::new(&args.model));
    let staged = Staged::beside(&args.out)?;
    let (to, shown) = (staged.path().to_owned(), shell_quoted(&args.out.display().to_string()));
    std::fs::create_dir_all(&to).map_err(lowrank::files::IoError::at(&to))?;
    let model = shell_quoted(&args.model);
    let command = match (args.to, gguf) {
        (Runtime::Ollama, _) => {
            merged(args, &to.join("model.gguf"))?;
            write_atomic(&to.join("Modelfile"), b"FROM ./model.gguf\n")?;
            format!("ollama create {name} -f {shown}/Modelfile && ollama run {name}")
        }
        (Runtime::LlamaCpp, true) => {
            convert(args, &to.join(format!("{name}.gguf")), formats::gguf::FORMAT)?;
            format!("llama-cli -m {model} --lora {shown}/{name}.gguf -cnv")
        }
        (Runtime::LlamaCpp, false) => {
            merged(args, &to.join("model.gguf"))?;
            format!("llama-cli -m {shown}/model.gguf -cnv")
        }
        (Runtime::Vllm, false) => {
            let r = convert(args, &to.join(&name), formats::peft::FORMAT)?;
            // vLLM takes a rank of this list.
            let most = [8, 16, 32, 64, 128, 256, 320, 512].into_iter().find(|most| *most >= r).unwrap_or(r);
            format!(
                "vllm serve {model} --enable-lora --max-lora-rank {most} --lora-modules {name}={shown}/{name}"
            )
        }
        (Runtime::Mlx, false) => {
            convert(args, &to.join(&name), formats::mlx::FORMAT)?;
            format!("mlx_lm.generate --model {model} --adapter-path {shown}/{name} --prompt \"Hello\"")
        }
        (runtime, true) => {
            merged(args, &to.join("model"))?;
            match runtime {
                Runtime::Vllm => format!("vllm serve {shown}/model"),
                _ => format!("mlx_lm.generate --model {shown}/model --prompt \"Hello\""),
            }
        }
    };
    staged.keep()?;
    writeln!(out, "{command}")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes base and adapter as one model, checked against the two.
fn merged(args: &Args, to: &Path) -> Result<()> {
    let adapters = [(args.adapter.clone(), 1.0)];
    let session = Session::for_adapters(&args.model, &adapters, None)?;
    let set = session.adapters(&adapters)?;
    // Fewer bits may round away what was learned.
    let small = to.extension().is_some_and(|e| e == "gguf").then_some("q8_0");
    let target = MergeTarget::choose(&session, &set, to, args.dtype.as_deref().or(small))?;
    let check = MergeCheck { probe: "The quick brown fox jumps over the lazy dog.".into(), tolerance: None };
    let merged = merge_checked(&session, &set, to, target, Some(&check))?;
    if let Some(warning) = merged.warning {
        note!("warning: {warning}");
    }
    Ok(())
}

/// Writes the adapter in another format; its largest rank.
fn convert(args: &Args, to: &Path, format: FileFormat) -> Result<usize> {
    let options = Options { base: Some(args.model.clone()), ..Options::default() };
    let mut lora = formats::read(&args.adapter, FileFormat::detect(&args.adapter)?, &options)?;
    lora.config.insert("base_model_name_or_path".into(), json!(lowrank::models::base_name(&args.model)));
    formats::write(&lora, to, format, &options)?;
    Ok(lora
        .pairs
        .values()
        .map(|pair| pair.rank())
        .max()
        .unwrap_or_else(|| lora.config.get("r").and_then(Value::as_u64).unwrap_or(8) as usize))
}

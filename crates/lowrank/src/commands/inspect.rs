//! `lowrank inspect`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lowrank::adapters::{self, AdapterSet, LoraConfig};
use lowrank::files::folder::has_weights;
use lowrank::files::{Gguf, is_gguf, write_atomic};
use lowrank::models::template_style;
use lowrank::tools::{FileFormat, compare, formats, report};
use lowrank::{Result, Session, describe};
use serde_json::{Value, json};

use super::Stdout;
use super::flags::adapter_files::{Hints, Replace, read, table};

/// Show what a file or folder is, and the contents of a model or an adapter.
#[derive(clap::Args)]
pub struct Args {
    /// Base model (folder, GGUF file, hub id), adapter in any format, or any other file or folder
    path: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Chart the singular values of each layer of an adapter
    #[arg(long)]
    spectrum: bool,
    /// Write the same chart as an HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    replace: Replace,
    #[command(flatten)]
    hints: Hints,
}

/// Inspects.
pub fn run(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let path = Path::new(&args.path);
    args.replace.check(args.html.as_deref(), &[path])?;
    let charted = args.spectrum || args.html.is_some();
    let (rows, summary) = match path.exists().then(|| FileFormat::detect(path)) {
        _ if charted => return spectrum(args, out),
        Some(Ok(format)) if format == formats::peft::FORMAT => adapter(path)?,
        Some(Ok(_)) => return spectrum(args, out),
        Some(Err(_)) if !is_model(path) => (Vec::new(), Value::Object(describe(path)?)),
        Some(Err(_)) | None => model(&args.path)?,
    };
    if args.json {
        writeln!(out, "{}", json!({ "summary": summary, "rows": rows }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !rows.is_empty() {
        table(out, &rows)?;
        writeln!(out)?;
    }
    for (name, value) in summary.as_object().into_iter().flatten() {
        writeln!(out, "{name:<24} {}", text(value))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether it is a GGUF model, or a folder with weights and their configuration.
fn is_model(path: &Path) -> bool {
    match path.is_dir() {
        true => path.join("config.json").is_file() && has_weights(path).unwrap_or(true),
        false => {
            let kind = |file: Gguf| {
                file.string("general.type").is_ok_and(|kind| kind.is_none_or(|kind| kind == "model"))
            };
            is_gguf(path) && Gguf::open(path).map_or(true, kind)
        }
    }
}

/// Norms, effective ranks and singular values of an adapter in any format.
fn spectrum(args: &Args, out: &mut Stdout) -> Result<ExitCode> {
    let (lora, format) = read(Path::new(&args.path), None, &args.hints)?;
    let spectra = compare::spectra(&lora)?;
    if let Some(file) = &args.html {
        let facts = [
            ("format", format.name.to_owned()),
            ("layers", spectra.len().to_string()),
            ("parameters", lora.parameters().to_string()),
        ];
        let facts = facts.map(|(name, value)| (name.to_owned(), value));
        let page = lowrank_study::adapter_report(&args.path, &facts, &spectra).page()?;
        write_atomic(file, page.as_bytes())?;
        writeln!(out, "wrote {}", file.display())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.json {
        let rows: Vec<Value> = spectra
            .iter()
            .map(|s| {
                json!({
                    "layer": s.path,
                    "shape": [s.shape.0, s.shape.1],
                    "r": s.rank,
                    "scaling": s.scaling,
                    "norm of delta": s.norm,
                    "effective_rank": s.effective_rank,
                    "rank_99": s.rank_99,
                    "singular_values": s.singular_values,
                })
            })
            .collect();
        let summary = json!({ "what": "adapter", "format": format.name, "sites": rows.len(), "parameters": lora.parameters() });
        writeln!(out, "{}", json!({ "summary": summary, "rows": rows }))?;
        return Ok(ExitCode::SUCCESS);
    }
    write!(out, "{}", report::text(&spectra))?;
    writeln!(out, "\nadapter: {} layers, {} parameters, {}", spectra.len(), lora.parameters(), format.name)?;
    Ok(ExitCode::SUCCESS)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().any(char::is_control) => format!("{text:?}"),
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        Value::Bool(yes) => (if *yes { "yes" } else { "no" }).to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

fn adapter(dir: &Path) -> Result<(Vec<Value>, Value)> {
    let set = AdapterSet::load_alone(dir)?;
    let config: &LoraConfig = &set.config;
    let rows = set
        .layers
        .iter()
        .map(|l| {
            let mut row = json!({
                "site": l.site.path,
                "shape": format!("{} x {}", l.site.out_features, l.site.in_features),
                "r": l.variant.rank(),
                "scaling": l.variant.scaling(),
            });
            for id in l.variant.params() {
                let param = set.params.get(id);
                let name = param.name.strip_prefix(&format!("{}.", l.site.path)).unwrap_or(&param.name);
                row[format!("norm of {}", name.trim_end_matches(".weight"))] =
                    format!("{:.4}", norm(param.values())).into();
            }
            if let Some(norm) = set.delta_norm(l) {
                row["norm of delta"] = format!("{norm:.4}").into();
            }
            row
        })
        .collect();
    let wrong = |(_, param): (_, &lowrank::engine::Param)| {
        param.values().iter().any(|x| !x.is_finite()).then(|| param.name.clone())
    };
    let state = adapters::adapter_folder(dir).join("trainer_state.json").is_file();
    let mut summary = json!({
        "what": if state { "adapter, in a checkpoint with the state of its run" } else { "adapter" },
        "format": formats::peft::FORMAT.name,
        "kind": config.peft_type,
        "base_model": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": config.target_modules,
        "sites": set.layers.len(),
        "parameters": set.params.count(),
    });
    not_finite(&mut summary, set.params.iter().filter_map(wrong).collect());
    Ok((rows, summary))
}

/// Names the tensors that hold NaN or infinity, where there are any.
fn not_finite(summary: &mut Value, names: Vec<String>) {
    if !names.is_empty() {
        summary["NaN or infinity in"] = json!(names);
    }
}

fn model(path: &str) -> Result<(Vec<Value>, Value)> {
    let session = Session::open(path)?;
    let tensors = &session.base.tensors;
    let mut wrong = Vec::new();
    let rows = tensors
        .names()
        .map(|name| {
            let shape: Vec<String> =
                tensors.shape(name).unwrap_or(&[]).iter().map(ToString::to_string).collect();
            let mut square = 0.0;
            let (n, cols) = tensors.matrix_shape(name).unwrap_or((0, 0));
            let mut row = vec![0.0; cols];
            for i in 0..n {
                tensors.read_rows(name, i..i + 1, &mut row)?;
                square += norm(&row).powi(2);
            }
            if !square.is_finite() {
                wrong.push(name.to_owned());
            }
            Ok(json!({
                "tensor": name,
                "shape": shape.join(" x "),
                "dtype": tensors.format(name).map_or("?", |f| f.name()),
                "norm": format!("{:.4}", square.sqrt()),
            }))
        })
        .collect::<Result<Vec<_>>>()?;
    let config = &session.base.config;
    let numbers = |name| tensors.shape(name).map_or(0, |s| s.iter().product::<usize>());
    let file: PathBuf = session.base.source.clone();
    let mut summary = json!({
        "what": "base model",
        "kind": config["model_type"],
        "source": file,
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "vocabulary": session.model.info().vocab,
        "context length": session.model.info().max_positions,
        "tensors": tensors.len(),
        "formats": formats_of(&session),
        "parameters": tensors.names().map(numbers).sum::<usize>(),
        "bytes": tensors.byte_len(),
        "sites": session.sites().len(),
    });
    texts(&session, &mut summary);
    not_finite(&mut summary, wrong);
    Ok((rows, summary))
}

/// How many tensors each format has.
fn formats_of(session: &Session) -> String {
    let tensors = &session.base.tensors;
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for name in tensors.names().filter_map(|name| Some(tensors.format(name)?.name())) {
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    counts.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>().join(", ")
}

/// What makes tokens of texts and conversations.
fn texts(session: &Session, summary: &mut Value) {
    match session.tokenizer() {
        Ok(tokenizer) => {
            let token = |id: Option<u32>| match id {
                Some(id) => json!(tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string())),
                None => Value::Null,
            };
            let [before, behind] = tokenizer.added();
            summary["tokenizer"] = tokenizer.kind().into();
            summary["tokens of the tokenizer"] = tokenizer.vocab_size().into();
            summary["begin token"] = token(tokenizer.bos());
            summary["begin token is added"] = (before > 0).into();
            summary["end token"] = token(tokenizer.eos());
            summary["end token is added"] = (behind > 0).into();
            if let Ok(ends) = session.ends() {
                summary["ends of an answer"] = ends.into_iter().map(|id| token(Some(id))).collect();
            }
        }
        Err(error) => summary["tokenizer"] = format!("none ({error})").into(),
    }
    summary["chat template"] = match &session.base.chat_template {
        Some(Ok(template)) => template_style(template).into(),
        Some(Err(why)) => format!("does not parse ({why})").into(),
        None => Value::Null,
    };
}

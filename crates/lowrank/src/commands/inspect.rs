//! `lowrank inspect`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lowrank::adapters::{self, AdapterSet, LoraConfig};
use lowrank::{Result, Session};
use serde_json::{Value, json};

/// What to look into.
#[derive(clap::Args)]
pub struct Args {
    /// A base model (folder, GGUF file, hub id) or an adapter folder
    path: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Inspects.
pub fn run(args: &Args) -> Result<ExitCode> {
    let path = Path::new(&args.path);
    let (rows, summary) = match path.join(adapters::CONFIG_FILE).exists() {
        true => adapter(path)?,
        false => model(&args.path)?,
    };
    if args.json {
        println!("{}", json!({ "summary": summary, "rows": rows }));
        return Ok(ExitCode::SUCCESS);
    }
    table(&rows);
    println!();
    for (name, value) in summary.as_object().into_iter().flatten() {
        println!("{name:<24} {}", text(value));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Prints objects that share their keys as aligned columns.
fn table(rows: &[Value]) {
    let Some(Value::Object(first)) = rows.first() else { return };
    let lines: Vec<Vec<String>> = std::iter::once(first.keys().cloned().collect())
        .chain(
            rows.iter().map(|row| row.as_object().into_iter().flat_map(|r| r.values().map(text)).collect()),
        )
        .collect();
    let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..first.len()).map(width).collect();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        println!("{}", cells.join("  ").trim_end());
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
                    format!("{:.4}", norm(&param.value)).into();
            }
            if let Some(norm) = set.delta_norm(l) {
                row["norm of delta"] = format!("{norm:.4}").into();
            }
            row
        })
        .collect();
    let summary = json!({
        "kind": config.peft_type,
        "base_model": config.base_model_name_or_path,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": config.target_modules,
        "sites": set.layers.len(),
        "parameters": set.params.count(),
    });
    Ok((rows, summary))
}

fn model(path: &str) -> Result<(Vec<Value>, Value)> {
    let session = Session::open(path)?;
    let tensors = &session.base.tensors;
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
    let summary = json!({
        "kind": config["model_type"],
        "source": file,
        "layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "vocabulary": session.model.vocab(),
        "longest sequence": session.model.max_positions(),
        "tensors": tensors.len(),
        "parameters": tensors.names().map(numbers).sum::<usize>(),
        "bytes": tensors.byte_len(),
        "sites": session.sites().len(),
    });
    Ok((rows, summary))
}

//! What a file or folder is, where it is neither a base model nor an adapter that can be read.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use lowrank_files::{Gguf, IoError, Tensors, is_gguf, read_object};
use serde_json::{Map, Value, json};

use crate::Result;

/// Bytes that tell what a file is.
const HEAD: usize = 4096;
/// Lines of a data file that are looked at for its columns.
const LINES: usize = 1000;

/// Files that a training run or a model has, by name.
const NAMED: [(&str, &str); 25] = [
    ("adapter_config.json", "configuration of an adapter"),
    ("added_tokens.json", "part of a tokenizer"),
    ("chat_template.jinja", "chat template"),
    ("config.json", "configuration of a base model"),
    ("generation_config.json", "configuration of generation"),
    ("log.jsonl", "log of a training run"),
    ("merges.txt", "part of a tokenizer"),
    ("model_index.json", "index of a diffusion pipeline"),
    ("optimizer.bin", "optimiser state"),
    ("optimizer.pt", "optimiser state"),
    ("optimizer.safetensors", "optimiser state"),
    ("rng_state.pth", "state of random generators"),
    ("scaler.pt", "state of a gradient scaler"),
    ("scheduler.pt", "state of a learning rate schedule"),
    ("special_tokens_map.json", "part of a tokenizer"),
    ("spiece.model", "tokenizer"),
    ("task.json", "task and labels of an adapter"),
    ("tokenizer.json", "tokenizer"),
    ("tokenizer.model", "tokenizer"),
    ("tokenizer_config.json", "part of a tokenizer"),
    ("trainer_state.json", "state of a training run"),
    ("training_args.bin", "arguments of a training run"),
    ("training_args.json", "arguments of a training run"),
    ("vocab.json", "part of a tokenizer"),
    ("vocab.txt", "tokenizer"),
];

/// First bytes of files that are none of ours.
const MAGIC: [(&[u8], &str); 8] = [
    (b"PAR1", "Parquet file"),
    (b"ARROW1", "Arrow file"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x89PNG", "PNG image"),
    (b"%PDF", "PDF document"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x80", "pickle"),
];

/// What lies at `path`, as facts by name; `what` says it in words.
///
/// # Errors
/// If it cannot be read.
pub fn describe(path: &Path) -> Result<Map<String, Value>> {
    let found = fs::metadata(path).map_err(IoError::at(path))?;
    let facts = match found.is_dir() {
        true => folder(path)?,
        false => file(path, found.len())?,
    };
    let Value::Object(facts) = facts else { return Ok(Map::new()) };
    Ok(facts)
}

fn named(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    NAMED.iter().find(|(known, _)| *known == name).map(|(_, what)| *what)
}

/// A checkpoint, a run, a tokenizer, a configuration without weights, or files of which each is something.
fn folder(path: &Path) -> Result<Value> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(IoError::at(path))? {
        names.push(entry.map_err(IoError::at(path))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let has = |name: &str| names.iter().any(|found| found == name);
    let what = match () {
        () if has("trainer_state.json") => "checkpoint of a training run",
        () if names.iter().any(|name| name.starts_with("checkpoint-")) || has("checkpoints") => {
            "folder of a training run"
        }
        () if has("model_index.json") => "diffusion pipeline",
        () if has("config.json") => "configuration of a base model, without weights that are known here",
        () if has("tokenizer.json") || has("tokenizer.model") || has("vocab.txt") || has("vocab.json") => {
            "tokenizer"
        }
        () if names.is_empty() => "empty folder",
        () => "unknown folder",
    };
    let mut facts = json!({ "what": what });
    if has("trainer_state.json") {
        let state = read_object(&path.join("trainer_state.json"))?;
        let step = state.get("global_step").or(state.get("step"));
        facts["step"] = step.cloned().unwrap_or_default();
        facts["epoch"] = state.get("epoch").cloned().unwrap_or_default();
    }
    facts["files"] = json!(names.len());
    for name in names.iter().take(20) {
        let at = path.join(name);
        let what = match at.is_dir() {
            true => "folder".into(),
            false => named(&at).map_or_else(|| kind(&at), |what| Ok(what.to_owned()))?,
        };
        facts[name.as_str()] = what.into();
    }
    Ok(facts)
}

/// What a file is, in words.
fn kind(path: &Path) -> Result<String> {
    let size = fs::metadata(path).map_err(IoError::at(path))?.len();
    // A file that cannot be read is something all the same.
    let facts = file(path, size).unwrap_or_else(|e| json!({ "what": format!("damaged: {e}") }));
    Ok(facts["what"].as_str().unwrap_or("unknown").to_owned())
}

fn file(path: &Path, size: u64) -> Result<Value> {
    let mut head = Vec::new();
    let open = || File::open(path).map_err(IoError::at(path));
    open()?.take(HEAD as u64).read_to_end(&mut head).map_err(IoError::at(path))?;
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default().to_lowercase();
    if is_gguf(path) {
        return gguf(path);
    }
    if let ("json" | "txt" | "jinja" | "model", Some(what)) = (end.as_str(), named(path)) {
        return Ok(json!({ "what": what, "bytes": size }));
    }
    if end == "safetensors" || looks_like_safetensors(&head, size) {
        return Ok(tensors(path, &Tensors::open(path)?));
    }
    if ["bin", "pt", "pth", "ckpt"].contains(&end.as_str()) {
        if let Some(what) = named(path) {
            return Ok(json!({ "what": what, "bytes": size }));
        }
        return match Tensors::open(path) {
            Ok(found) => Ok(tensors(path, &found)),
            Err(_) if contains(path, b"param_groups")? => {
                Ok(json!({ "what": "optimiser state", "format": "PyTorch", "bytes": size }))
            }
            Err(error) => Err(error.into()),
        };
    }
    match end.as_str() {
        "jsonl" | "ndjson" => return rows(path, open()?, "JSON lines"),
        "csv" => return columns(path, open()?, ','),
        "tsv" => return columns(path, open()?, '\t'),
        "toml" => return Ok(json!({ "what": "options of a run or a study (TOML)", "bytes": size })),
        "json" => return json_file(path, size),
        _ => {}
    }
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Ok(json!({ "what": format!("unknown: {what}"), "bytes": size }));
    }
    let what = match std::str::from_utf8(&head) {
        _ if head.is_empty() => "empty file",
        Ok(_) => "text",
        // A cut character at the end is none of the file's.
        Err(e) if e.error_len().is_none() => "text",
        Err(_) => "unknown: binary file",
    };
    Ok(json!({ "what": what, "bytes": size }))
}

fn gguf(path: &Path) -> Result<Value> {
    let file = Gguf::open(path)?;
    let text = |key: &str| file.string(key).ok().flatten().map(str::to_owned);
    let kind = text("general.type").unwrap_or_else(|| "model".to_owned());
    let what = match kind.as_str() {
        "adapter" => "GGUF adapter".to_owned(),
        "model" => "GGUF model".to_owned(),
        other => format!("GGUF file of type {other}"),
    };
    Ok(json!({
        "what": what,
        "architecture": text("general.architecture"),
        "name": text("general.name"),
        "tensors": file.tensors()?.len(),
    }))
}

/// What tensors are, by their names.
fn tensors(path: &Path, tensors: &Tensors) -> Value {
    let any = |parts: &[&str]| tensors.names().any(|name| parts.iter().any(|part| name.contains(part)));
    let what = match () {
        () if any(&["exp_avg", "momentum_buffer"]) => "optimiser state",
        () if any(&["hada_w1", "lokr_w"]) => "adapter of LyCORIS",
        () if any(&["lora_", "lora.down", "vera_lambda", "ia3_l"]) => {
            "tensors of an adapter, without its configuration"
        }
        () if any(&["prompt_embeddings"]) => "virtual tokens of an adapter, without its configuration",
        () if any(&["embed_tokens", "wte.", "word_embeddings", "self_attn", "attention", "lm_head"]) => {
            "weights of a base model, without its configuration"
        }
        () if any(&["input_blocks.", "down_blocks."]) => "weights of a diffusion model",
        () => "unknown tensors",
    };
    let format = if path.extension().is_some_and(|e| e == "safetensors") { "safetensors" } else { "PyTorch" };
    json!({
        "what": what,
        "format": format,
        "tensors": tensors.len(),
        "parameters": tensors.parameters(),
        "bytes": tensors.byte_len(),
        "first": tensors.names().next(),
    })
}

fn looks_like_safetensors(head: &[u8], size: u64) -> bool {
    let Some((length, rest)) = head.split_first_chunk::<8>() else { return false };
    rest.starts_with(b"{\"") && u64::from_le_bytes(*length) < size
}

/// Whether a file has these bytes.
fn contains(path: &Path, part: &[u8]) -> Result<bool> {
    let mut file = BufReader::new(File::open(path).map_err(IoError::at(path))?);
    let mut window = Vec::new();
    loop {
        let new = file.fill_buf().map_err(IoError::at(path))?;
        let length = new.len();
        window.extend_from_slice(new);
        if window.windows(part.len()).any(|w| w == part) || length == 0 {
            return Ok(length > 0);
        }
        file.consume(length);
        window.drain(..window.len().saturating_sub(part.len()));
    }
}

/// A data file of JSON lines: how many there are, and the columns of the first ones.
fn rows(path: &Path, file: File, format: &str) -> Result<Value> {
    let (mut count, mut columns) = (0usize, Vec::new());
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(IoError::at(path))?;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if count < LINES
            && let Ok(Value::Object(row)) = serde_json::from_slice(&line)
        {
            let new: Vec<String> =
                row.into_iter().map(|(key, _)| key).filter(|key| !columns.contains(key)).collect();
            columns.extend(new);
        }
        count += 1;
    }
    Ok(json!({ "what": "data", "format": format, "rows": count, "columns": columns }))
}

/// A data file with a line of names.
fn columns(path: &Path, file: File, between: char) -> Result<Value> {
    let mut lines = BufReader::new(file).split(b'\n');
    let first = lines.next().transpose().map_err(IoError::at(path))?.unwrap_or_default();
    let first = String::from_utf8_lossy(&first).trim().to_owned();
    let names: Vec<&str> = first.split(between).map(|name| name.trim_matches('"')).collect();
    let mut count = 0usize;
    for line in lines {
        count += usize::from(!line.map_err(IoError::at(path))?.iter().all(u8::is_ascii_whitespace));
    }
    let format = if between == ',' { "CSV" } else { "TSV" };
    Ok(json!({ "what": "data", "format": format, "lines after the first": count, "columns": names }))
}

/// JSON of no known name.
fn json_file(path: &Path, size: u64) -> Result<Value> {
    let text = fs::read(path).map_err(IoError::at(path))?;
    let value = serde_json::from_slice(&text);
    let has = |name: &str| matches!(&value, Ok(Value::Object(map)) if map.contains_key(name));
    let what = match &value {
        Ok(Value::Object(_)) if has("weight_map") => "index of the shards of a base model",
        Ok(Value::Object(_)) if has("peft_type") => "configuration of an adapter",
        Ok(Value::Object(_)) if has("model_type") => "configuration of a base model",
        Ok(Value::Object(_)) if has("added_tokens") && has("model") => "tokenizer",
        Ok(Value::Array(rows)) => {
            let first = rows.first().and_then(Value::as_object);
            let columns: Vec<&String> = first.into_iter().flat_map(|row| row.keys()).collect();
            return Ok(json!({ "what": "data", "format": "JSON", "rows": rows.len(), "columns": columns }));
        }
        Ok(_) => "JSON",
        Err(_) => return rows(path, File::open(path).map_err(IoError::at(path))?, "JSON lines"),
    };
    Ok(json!({ "what": what, "bytes": size }))
}

//! A Hugging Face folder: `config.json`, weights in one or many files (safetensors, else PyTorch's), tokenizer
//! files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result, shown};
use crate::json::read_json;
use crate::tensors::Tensors;

/// The index of a large model names every tensor: a few MB at most.
const MAX_INDEX: u64 = 64 << 20;

/// File name of an index of shards.
pub const INDEX: &str = "model.safetensors.index.json";
/// File name of a model in one file.
pub const SINGLE: &str = "model.safetensors";
/// The same names for PyTorch's own files.
const PYTORCH: (&str, &str) = ("pytorch_model.bin.index.json", "pytorch_model.bin");

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that the index at `path` names, each once.
pub fn shards(path: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = read_index(path)?.into_values().collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let index: Index = read_json(path, MAX_INDEX)?;
    for (tensor, file) in &index.weight_map {
        // A shard lies next to its index: anything else could read files the user never named.
        let plain = Path::new(file).components().eq([std::path::Component::Normal(file.as_ref())]);
        if !plain || file.contains(['/', '\\']) {
            let what = format!("weight_map: names the file {}, which is not a plain file name", shown(file));
            return Err(Error::tensor(path, tensor, what));
        }
    }
    Ok(index.weight_map)
}

/// The tensors of the folder.
pub fn read_tensors(folder: &Path) -> Result<Tensors> {
    let mut tensors = Tensors::default();
    let safe = [INDEX, SINGLE].into_iter().any(|name| folder.join(name).is_file());
    let index = folder.join(if safe { INDEX } else { PYTORCH.0 });
    if index.is_file() {
        let map = read_index(&index)?;
        for shard in shards(&index)? {
            let path = folder.join(&shard);
            if !path.is_file() {
                let what = format!("weight_map: the file {} is missing", shown(&shard));
                return Err(Error::file(&index, what));
            }
            tensors.add_all_of(&path)?;
        }
        for (tensor, shard) in &map {
            if tensors.file_of(tensor) != Some(&folder.join(shard)) {
                let what = format!("weight_map: is not in {}", shown(shard));
                return Err(Error::tensor(&index, tensor, what));
            }
        }
        return Ok(tensors);
    }
    tensors.add_all_of(&weights_of(folder)?)?;
    Ok(tensors)
}

/// Whether a folder holds weights in any form we know of.
pub fn has_weights(folder: &Path) -> Result<bool> {
    for item in folder.read_dir().map_err(Error::io(folder))? {
        let path = item.map_err(Error::io(folder))?.path();
        let ending = path.extension().and_then(|e| e.to_str());
        if path.ends_with(INDEX) || matches!(ending, Some("safetensors" | "bin" | "pt" | "pth")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The one file of weights of a folder without an index.
fn weights_of(folder: &Path) -> Result<PathBuf> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(single);
    }
    let (mut safe, mut pickled) = (Vec::new(), Vec::new());
    for item in folder.read_dir().map_err(Error::io(folder))? {
        let path = item.map_err(Error::io(folder))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => safe.push(path),
            // Other .bin files hold the optimiser or the arguments of a training run.
            Some("bin") if path.file_name().is_some_and(|name| name == PYTORCH.1) => return Ok(path),
            Some("pt" | "pth") => pickled.push(path),
            _ => {}
        }
    }
    match (safe.as_slice(), pickled.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one.clone()),
        ([], []) => Err(Error::file(folder, format!("has neither {SINGLE} nor {INDEX} nor {}", PYTORCH.1))),
        ([], many) => Err(Error::file(
            folder,
            format!("has {} files .pt or .pth; which one is the model? Name it {}", many.len(), PYTORCH.1),
        )),
        (many, _) => Err(Error::file(
            folder,
            format!("has {} .safetensors files but no {INDEX} that says which belong together", many.len()),
        )),
    }
}

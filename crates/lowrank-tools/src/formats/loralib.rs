//! Checkpoints of loralib: `PATH.lora_A` and `PATH.lora_B` in a PyTorch file, with what else was trained.
//!
//! A `MergedLinear` (GPT-2's `c_attn`) adapts some of the parts of a fused layer, each with its own A and B:
//! `lora_A: [g r, K]`, `lora_B: [O/parts * g, r]` for `g` adapted parts. That is the plain LoRA of rank `g r` whose
//! B is zero but for one block a part, and that is what it becomes here, with `alpha g`, so that the scaling stays.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_files::{PytorchTensor, write_pytorch};
use serde_json::json;

use crate::error::{Error, Result};
use crate::formats::format::{FileFormat, Halves, Options};
use crate::lora::{Kind, Lora, Pair, most_common};
use crate::tensor::{self, Named, Tensor};

/// A checkpoint of loralib: PyTorch's `.bin` or `.pt` with `PATH.lora_A` and `PATH.lora_B`.
pub const FORMAT: FileFormat =
    FileFormat { name: "loralib", matches: |at| at.has_tensor(".lora_A"), pipeline: false, read, write };

/// Parts of `c_attn` that the paper adapts: q and v.
const QV: [bool; 3] = [true, false, true];
/// What DistributedDataParallel puts before every name.
const WRAPPED: &str = "module.";
/// Names of embeddings, whose A and B are those of a table.
const EMBEDDINGS: [&str; 8] = [
    "wte",
    "wpe",
    "embed_tokens",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "tok_embeddings",
    "embed_positions",
];

/// Reads a checkpoint. Tensors that are no pairs were trained whole (a classifier, biases).
///
/// # Errors
/// Where alpha is not given, or matrices fit no form that is known (named).
pub fn read(path: &Path, options: &Options) -> Result<Lora> {
    let alpha = options.alpha.ok_or_else(|| {
        Error::Usage("a loralib checkpoint does not hold its alpha: give it with `alpha`".into())
    })?;
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let mut lora = Lora::default();
    for (name, tensor) in tensor::read(path)? {
        let name = name.strip_prefix(WRAPPED).unwrap_or(&name).to_owned();
        if let Some(module) = name.strip_suffix(".lora_A") {
            halves.entry(module.to_owned()).or_default().a = Some(tensor);
        } else if let Some(module) = name.strip_suffix(".lora_B") {
            halves.entry(module.to_owned()).or_default().b = Some(tensor);
        } else {
            lora.saved.insert(name, tensor);
        }
    }
    let mut wrong = Vec::new();
    for (module, h) in halves {
        let pair = match (h.a, h.b) {
            (Some(a), Some(b)) => pair(&module, a, b, alpha, &options.enable_lora),
            _ => None,
        };
        match pair {
            Some(pair) => drop(lora.pairs.insert(module, pair)),
            None => wrong.push(module),
        }
    }
    if !wrong.is_empty() {
        let why = format!(
            "{}: A and B are neither those of a linear layer or embedding nor of a fused one with `enable_lora` \
             (convolutions of loralib have no counterpart)",
            path.display()
        );
        return Err(Error::names(why, wrong));
    }
    if lora.pairs.keys().any(|module| module.ends_with(".c_attn")) {
        lora.config.insert("fan_in_fan_out".into(), json!(true));
    }
    Ok(lora)
}

fn pair(module: &str, a: Tensor, b: Tensor, alpha: f64, enable: &[bool]) -> Option<Pair> {
    let (&[rank, _], &[rows, r]) = (&a.shape[..], &b.shape[..]) else { return None };
    if r == 0 {
        return None;
    }
    let fused = !enable.is_empty() && module.rsplit('.').next().is_some_and(is_fused);
    if rank == r && !fused {
        let last = module.rsplit('.').next().unwrap_or(module);
        let kind = if EMBEDDINGS.contains(&last) { Kind::Embedding } else { Kind::Linear };
        return Pair::new(module, a, b, alpha, kind).ok();
    }
    let enable = if enable.is_empty() { &QV } else { enable };
    let groups = enable.iter().filter(|on| **on).count();
    if groups == 0 || rank != groups * r || !rows.is_multiple_of(groups) {
        return None;
    }
    let part = rows / groups;
    let mut wide = vec![0.0; part * enable.len() * rank];
    let places = enable.iter().enumerate().filter(|(_, on)| **on).map(|(place, _)| place);
    for (group, place) in places.enumerate() {
        for row in 0..part {
            let from = &b.data[(group * part + row) * r..][..r];
            wide[(place * part + row) * rank + group * r..][..r].copy_from_slice(from);
        }
    }
    let b = Tensor { dtype: b.dtype, ..Tensor::new(vec![part * enable.len(), rank], wide) };
    Pair::new(module, a, b, alpha * groups as f64, Kind::Linear).ok()
}

fn is_fused(name: &str) -> bool {
    ["c_attn", "qkv_proj", "query_key_value", "Wqkv", "in_proj"].contains(&name)
}

/// Writes a checkpoint: plain pairs as they are, pairs of fused layers in grouped form.
///
/// # Errors
/// Names the fused layers whose B is not zero outside one block a part.
pub fn write(lora: &Lora, path: &Path, options: &Options) -> Result<()> {
    let enable = if options.enable_lora.is_empty() { &QV[..] } else { &options.enable_lora };
    let mut tensors = lora.saved.clone();
    let (mut convolutions, mut dense, mut scalings) = (Vec::new(), Vec::new(), Vec::new());
    for (module, pair) in &lora.pairs {
        if pair.a.shape.len() != 2 {
            convolutions.push(module.clone());
            continue;
        }
        let b = match module.rsplit('.').next().is_some_and(is_fused) {
            true => match grouped(pair, enable) {
                Some(b) => b,
                None => {
                    dense.push(module.clone());
                    continue;
                }
            },
            false => pair.b.clone(),
        };
        let alpha = pair.alpha * (b.shape[1] as f64 / pair.rank() as f64);
        scalings.push((module.clone(), alpha, Pair { b, ..pair.clone() }));
    }
    let name = FORMAT.name;
    if !convolutions.is_empty() {
        return Err(Error::names(format!("the format {name} has no place for"), convolutions));
    }
    if !dense.is_empty() {
        let why =
            format!("B is not zero outside the blocks of `enable_lora` {enable:?}, so {name} cannot express");
        return Err(Error::names(why, dense));
    }
    let same = |one: f64, other: f64| (one - other).abs() <= 1e-9 * other.abs();
    let alphas = scalings.iter().map(|(_, alpha, _)| *alpha).filter(|alpha| *alpha != 0.0);
    let alpha = most_common(alphas).unwrap_or_default();
    for (module, own, mut pair) in scalings {
        if !same(own, alpha) {
            // What its alpha differs by goes into B.
            pair.alpha = own;
            pair = pair.with_alpha(&module, alpha)?;
        }
        tensors.insert(format!("{module}.lora_A"), pair.a);
        tensors.insert(format!("{module}.lora_B"), pair.b);
    }
    save(path, &tensors)
}

/// B of a plain pair as that of a MergedLinear: `None` where it is not made of the blocks.
fn grouped(pair: &Pair, enable: &[bool]) -> Option<Tensor> {
    let groups = enable.iter().filter(|on| **on).count();
    let (rows, rank) = (pair.outputs(), pair.rank());
    if groups == 0 || !rank.is_multiple_of(groups) || !rows.is_multiple_of(enable.len()) {
        return None;
    }
    let (part, r) = (rows / enable.len(), rank / groups);
    let mut out = Vec::with_capacity(part * groups * r);
    let mut group = 0;
    for (place, on) in enable.iter().enumerate() {
        for row in pair.b.data[place * part * rank..].chunks_exact(rank).take(part) {
            let block = if *on { group * r..(group + 1) * r } else { 0..0 };
            if row.iter().enumerate().any(|(i, x)| *x != 0.0 && !block.contains(&i)) {
                return None;
            }
            out.extend(&row[block]);
        }
        group += usize::from(*on);
    }
    Some(Tensor { dtype: pair.b.dtype, ..Tensor::new(vec![part * groups, r], out) })
}

/// Writes a PyTorch file.
pub(crate) fn save(path: &Path, tensors: &Named) -> Result<()> {
    let bytes: Vec<Vec<u8>> = tensors.values().map(Tensor::bytes).collect();
    let list: Vec<PytorchTensor<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), bytes)| PytorchTensor { name, shape: &t.shape, format: t.dtype, bytes })
        .collect();
    Ok(write_pytorch(path, &list)?)
}

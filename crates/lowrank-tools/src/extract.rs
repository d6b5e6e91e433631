//! A LoRA adapter out of a full fine-tune: the best low-rank matrix to what it changed.
//!
//! `W_tuned - W_base` is formed for one layer at a time and decomposed, so the memory is that of the largest layer,
//! whatever the size of the models, which stay on disk.

use lowrank_adapters::linalg::{self, Randomized, Svd};
use lowrank_files::Tensors;
use rayon::prelude::*;
use serde_json::json;

use crate::error::{Error, Result};
use crate::lora::{Kind, Lora, Pair};
use crate::rank::{self, Rule};
use crate::tensor::Tensor;

/// Settings of [`extract`].
#[derive(Clone, Debug)]
pub struct Extract {
    /// Rank of each layer.
    pub rule: Rule,
    /// No rank above this.
    pub max_rank: usize,
    /// All singular values of large layers too, where random directions would find the leading ones.
    pub exact: bool,
    /// Seed of the random directions.
    pub seed: u64,
}

/// A layer that was taken over.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Module path.
    pub path: String,
    /// Its rank.
    pub rank: usize,
    /// Frobenius norm of what was changed.
    pub norm: f64,
    /// Share of its square that the adapter has.
    pub energy: f64,
}

/// What became of the changes.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// The adapter.
    pub lora: Lora,
    /// Its layers, in the order of the file.
    pub taken: Vec<Taken>,
    /// Tensors that changed but are no part of the adapter.
    pub left: Vec<String>,
}

/// Numbers of the base in memory at a time.
const PIECE: usize = 1 << 20;

/// Sides up to which all singular values are cheap.
const SMALL: usize = 320;

/// Extracts an adapter from the matrices `PATH.weight` for which `wanted(PATH)` holds. `transposed(PATH)` says that
/// a layer is stored `[K, O]` (GPT-2's).
///
/// # Errors
/// Where a wanted tensor is missing on one side or has another shape, or nothing changed.
pub fn extract(
    base: &Tensors,
    tuned: &Tensors,
    how: &Extract,
    wanted: &dyn Fn(&str) -> bool,
    transposed: &dyn Fn(&str) -> bool,
) -> Result<Extracted> {
    how.rule.check()?;
    let mut result = Extracted::default();
    for name in base.names().filter(|name| base.format(name).is_some()) {
        if base.shape(name) != tuned.shape(name) {
            // A tied head that one side stores and the other does not says nothing new.
            if tuned.shape(name).is_none() && name == "lm_head.weight" {
                continue;
            }
            let why = match tuned.shape(name) {
                None => "missing in the fine-tuned model",
                Some(_) => "of another shape in the fine-tuned model",
            };
            return Err(Error::names(why, vec![name.to_owned()]));
        }
        let delta = difference(base, tuned, name)?;
        if delta.data.iter().all(|x| *x == 0.0) {
            continue;
        }
        let path = name.strip_suffix(".weight").filter(|path| delta.shape.len() == 2 && wanted(path));
        let Some(path) = path else {
            result.left.push(name.to_owned());
            continue;
        };
        let delta = if transposed(path) { delta.transposed() } else { delta };
        let (pair, taken) = layer(path, &delta, how)?;
        if transposed(path) {
            result.lora.config.insert("fan_in_fan_out".into(), json!(true));
        }
        result.lora.pairs.insert(path.to_owned(), pair);
        result.taken.push(taken);
    }
    // An output layer that only the fine-tuned model has apart, for instance.
    result.left.extend(tuned.names().filter(|name| base.shape(name).is_none()).map(str::to_owned));
    if result.taken.is_empty() {
        let why = "no layer that could be adapted differs between the two models";
        return Err(match result.left.is_empty() {
            true => Error::Usage(why.into()),
            false => Error::names(format!("{why}; these do"), result.left),
        });
    }
    Ok(result)
}

fn difference(base: &Tensors, tuned: &Tensors, name: &str) -> Result<Tensor> {
    let (rows, cols) = base.matrix_shape(name).unwrap_or_default();
    let mut delta = vec![0.0; rows * cols];
    tuned.read_rows(name, 0..rows, &mut delta)?;
    let step = (PIECE / cols.max(1)).max(1);
    let mut piece = Vec::new();
    for (start, out) in (0..rows).step_by(step).zip(delta.chunks_mut(step * cols.max(1))) {
        piece.resize(out.len(), 0.0);
        base.read_rows(name, start..rows.min(start + step), &mut piece)?;
        out.par_iter_mut().with_min_len(1 << 14).zip(&piece).for_each(|(d, w)| *d -= w);
    }
    // Models stay on disk: what was read is not kept in memory.
    base.release(name);
    tuned.release(name);
    Ok(Tensor::new(base.shape(name).unwrap_or_default().to_vec(), delta))
}

fn layer(path: &str, delta: &Tensor, how: &Extract) -> Result<(Pair, Taken)> {
    let (o, k) = (delta.rows(), delta.cols());
    let norm = delta.norm();
    let total = norm * norm;
    let svd = decompose(o, k, &delta.data, total, how)
        .map_err(|e| Error::names(e.to_string(), vec![format!("{path}.weight")]))?;
    let rank = svd.s.len();
    let b = svd.u.iter().zip(svd.s.iter().cycle()).map(|(u, s)| u * s).collect();
    let (a, b) = (Tensor::new(vec![rank, k], svd.vt.clone()), Tensor::new(vec![o, rank], b));
    let pair = Pair::new(path, a, b, rank as f64, Kind::Linear)?;
    Ok((pair, Taken { path: path.to_owned(), rank, norm, energy: rank::energy(&svd, total) }))
}

/// The singular values the rule asks for. Random directions are doubled until there are enough of them.
fn decompose(o: usize, k: usize, delta: &[f32], total: f64, how: &Extract) -> Result<Svd> {
    let side = o.min(k);
    let max = how.max_rank.min(side);
    let mut guess = match how.rule {
        Rule::Fixed(rank) => rank.min(max),
        Rule::Cumulative(_) => side,
        _ => 16.min(max),
    };
    while !how.exact && side > SMALL && guess <= side / 4 {
        let svd =
            linalg::svd_randomized(o, k, delta, Randomized { seed: how.seed, ..Randomized::rank(guess) })?;
        match how.rule.rank(&svd.s, total, max) {
            Some(rank) => return Ok(svd.truncate(rank)),
            None => guess *= 2,
        }
    }
    let svd = linalg::svd(o, k, delta)?;
    let rank = match how.rule {
        // Its share is of all values, also where fewer may be kept.
        Rule::Cumulative(_) => how.rule.rank(&svd.s, total, side).unwrap_or(side).min(max),
        _ => how.rule.rank(&svd.s, total, max).unwrap_or(max),
    };
    Ok(svd.truncate(rank))
}

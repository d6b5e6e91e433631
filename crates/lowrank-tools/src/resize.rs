//! Changing what an adapter weighs: its ranks, its small entries, its small layers, its number type.

use lowrank_kernels::Format;
use rayon::prelude::*;
use regex::Regex;
use serde_json::{Value, json};

use crate::compose::keep_largest;
use crate::error::{Error, Result};
use crate::lora::{Lora, Pair};
use crate::rank::{self, Rule};
use crate::tensor::Named;

/// A layer of a resized adapter.
#[derive(Clone, Debug)]
pub struct Resized {
    /// Module path.
    pub path: String,
    /// Rank before and after.
    pub ranks: (usize, usize),
    /// Share of the squares of the singular values that was kept.
    pub energy: f64,
}

/// Gives every pair the rank that `rule` says, at most `max_rank` and at most its own: the best matrices of that
/// rank to `alpha / r * B A`, found without forming it. The scaling of the result is 1.
///
/// # Errors
/// Where the rule makes no sense or a number is not finite.
pub fn resize(lora: &Lora, rule: Rule, max_rank: usize) -> Result<(Lora, Vec<Resized>)> {
    rule.check()?;
    let mut result = lora.clone();
    result.config.insert("use_rslora".into(), json!(false));
    let mut pairs: Vec<_> = result.pairs.iter_mut().collect();
    let one = |(path, pair): &mut (&String, &mut Pair)| {
        let svd = pair.svd().map_err(|e| Error::names(e.to_string(), vec![(*path).clone()]))?;
        let total: f64 = svd.s.iter().map(|s| f64::from(*s).powi(2)).sum();
        let all = svd.s.len();
        let rank = rule.rank(&svd.s, total, all).unwrap_or(all).min(max_rank).max(1);
        let svd = svd.truncate(rank);
        let (ranks, energy) = ((pair.rank(), svd.s.len()), rank::energy(&svd, total));
        **pair = pair.from_svd(&svd);
        Ok(Resized { path: (*path).clone(), ranks, energy })
    };
    let report = pairs.par_iter_mut().map(one).collect::<Result<Vec<_>>>()?;
    Ok((result, report))
}

/// What [`prune`] takes away.
#[derive(Clone, Debug, Default)]
pub struct Prune {
    /// Share of the entries of each matrix that stay; the smallest others become zero.
    pub density: Option<f64>,
    /// Layers whose `alpha / r * B A` has a norm below this share of the largest go.
    pub min_norm: Option<f64>,
    /// Layers whose path matches go.
    pub drop: Option<Regex>,
}

/// Takes small entries and layers away; returns the adapter and the layers that went.
///
/// # Errors
/// Where a share is none, a number is not finite, or nothing would be left.
pub fn prune(lora: &Lora, how: &Prune) -> Result<(Lora, Vec<String>)> {
    for share in [how.density, how.min_norm].into_iter().flatten() {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::Usage(format!("{share} is not a share from 0 to 1")));
        }
    }
    let mut result = lora.clone();
    let mut gone = Vec::new();
    let norm =
        |svd: lowrank_adapters::linalg::Svd| svd.s.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>().sqrt();
    let norms = match how.min_norm {
        Some(_) => lora.pairs.values().map(|pair| Ok(norm(pair.svd()?))).collect::<Result<Vec<f64>>>()?,
        None => vec![0.0; lora.pairs.len()],
    };
    let least = norms.iter().copied().fold(0.0, f64::max) * how.min_norm.unwrap_or(0.0);
    for ((path, _), norm) in lora.pairs.iter().zip(&norms) {
        if *norm < least || how.drop.as_ref().is_some_and(|drop| drop.is_match(path)) {
            result.pairs.remove(path);
            gone.push(path.clone());
        }
    }
    if result.pairs.is_empty() {
        return Err(Error::Usage("no layer would be left".into()));
    }
    if !gone.is_empty() {
        // The old names would also match what went.
        result.config.insert("target_modules".into(), Value::Null);
    }
    if let Some(density) = how.density {
        for pair in result.pairs.values_mut() {
            keep_largest(&mut pair.a.data, density);
            keep_largest(&mut pair.b.data, density);
        }
    }
    Ok((result, gone))
}

/// Gives every tensor another number type; returns the largest change of a number.
///
/// # Errors
/// Names the tensors with numbers too large for it.
pub fn to_dtype(tensors: &mut Named, dtype: Format) -> Result<f32> {
    let mut largest = 0.0f32;
    let mut over = Vec::new();
    // An alpha is a setting and no weight.
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| !name.ends_with(".alpha")) {
        let round = |x: f32| match dtype {
            Format::F16 => half::f16::from_f32(x).to_f32(),
            Format::BF16 => half::bf16::from_f32(x).to_f32(),
            _ => x,
        };
        if let Some(x) = tensor.data.iter().find(|x| !x.is_finite()) {
            return Err(Error::names(format!("a tensor holds {x}"), vec![name.clone()]));
        }
        for x in &mut tensor.data {
            let rounded = round(*x);
            if rounded.is_infinite() {
                over.push(name.clone());
                break;
            }
            largest = largest.max((rounded - *x).abs());
            *x = rounded;
        }
        tensor.dtype = dtype;
    }
    match over.is_empty() {
        true => Ok(largest),
        false => Err(Error::names(format!("numbers too large for {}", dtype.name()), over)),
    }
}

/// [`to_dtype`] for the tensors of an adapter.
///
/// # Errors
/// As [`to_dtype`].
pub fn lora_to_dtype(lora: &mut Lora, dtype: Format) -> Result<f32> {
    let mut largest = 0.0f32;
    for (path, pair) in &mut lora.pairs {
        for tensor in [&mut pair.a, &mut pair.b] {
            let mut one =
                Named::from([(path.clone(), std::mem::replace(tensor, crate::Tensor::scalar(0.0)))]);
            let change = to_dtype(&mut one, dtype)?;
            largest = largest.max(change);
            *tensor = one.remove(path).expect("just put there");
        }
    }
    Ok(largest.max(to_dtype(&mut lora.saved, dtype)?))
}

/// Renames tensors, and the modules that the configuration names, by a regular expression.
///
/// # Errors
/// Where two tensors would have one name, or none changes.
pub fn rename(
    config: &mut serde_json::Map<String, Value>,
    tensors: &mut Named,
    from: &Regex,
    to: &str,
) -> Result<usize> {
    let mut renamed = Named::new();
    let (mut changed, mut twice) = (0, Vec::new());
    for (name, tensor) in std::mem::take(tensors) {
        let new = from.replace(&name, to).into_owned();
        changed += usize::from(new != name);
        if renamed.insert(new.clone(), tensor).is_some() {
            twice.push(new);
        }
    }
    *tensors = renamed;
    if !twice.is_empty() {
        return Err(Error::names("two tensors would have the name", twice));
    }
    if changed == 0 {
        return Err(Error::Usage(format!("no tensor's name matches {:?}", from.as_str())));
    }
    for field in ["target_modules", "modules_to_save"] {
        if let Some(Value::Array(list)) = config.get_mut(field) {
            for entry in list {
                if let Some(name) = entry.as_str() {
                    *entry = json!(from.replace(name, to));
                }
            }
        }
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        if let Some(Value::Object(map)) = config.get_mut(field) {
            *map = std::mem::take(map)
                .into_iter()
                .map(|(key, value)| {
                    // The keys of whole paths are escaped.
                    let plain = key.replace("\\.", ".");
                    let new = from.replace(&plain, to);
                    (if new == plain.as_str() { key } else { regex::escape(&new) }, value)
                })
                .collect();
        }
    }
    Ok(changed)
}

//! Merging: base and adapter written as one model, and checked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use lowrank_adapters::{AdaptedSite, AdapterSet};
use lowrank_engine::{ActiveAdapters, Device, Format, Params, RowOrder, SiteKind, WeightRef, kernels};
use lowrank_models::Generator;
use lowrank_models::files;

use crate::{Error, Result, Session};

/// What a merged model is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeTarget {
    /// A Hugging Face folder with safetensors: F32, F16 or BF16.
    Folder(Format),
    /// A GGUF file: F32, F16, BF16 or Q8_0.
    Gguf(Format),
}

impl MergeTarget {
    /// What to write to `out`: a GGUF file where its name ends in `.gguf`, else a folder. The format is that
    /// of the name `dtype`; without one the base's, if it is plain, or F16.
    ///
    /// # Errors
    /// Where `dtype` is not possible there.
    pub fn choose(session: &Session, out: &Path, dtype: Option<&str>) -> Result<Self> {
        let gguf = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let allowed: &[Format] = match gguf {
            true => &[Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1],
            false => &[Format::F32, Format::F16, Format::BF16],
        };
        let format = match dtype {
            None => session.base.tensors.plain_format().unwrap_or(Format::F16),
            Some(name) => *allowed.iter().find(|f| f.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
                let names: Vec<String> = allowed.iter().map(|f| f.name().to_lowercase()).collect();
                let kind = if gguf { "a GGUF file" } else { "safetensors" };
                Error::Usage(format!("--dtype {name:?} is not possible in {kind}: {}", names.join(", ")))
            })?,
        };
        Ok(if gguf { Self::Gguf(format) } else { Self::Folder(format) })
    }
}

/// What rounding to the format of the merged model costs one adapted layer.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Module path.
    pub path: String,
    /// Norm of the difference between the merged weight and what is stored, over the norm of the merged weight.
    pub relative_error: f64,
}

/// Writes the merged weight of every adapted layer, computed in f32, and everything else as it is. Where the format
/// is not f32, says what it costs each of these layers.
///
/// # Errors
/// Where the adapter cannot be merged (it is on a head that shares its weight with the embedding), or
/// the model cannot be written in that form.
pub fn merge(session: &Session, adapters: &AdapterSet, out: &Path, target: MergeTarget) -> Result<Vec<Loss>> {
    let format = match target {
        MergeTarget::Folder(format) | MergeTarget::Gguf(format) => format,
    };
    // Squared norms of the error and of the weight, by layer.
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    write(session, adapters, out, target, &mut |name, rows, numbers| {
        adapters.merge_rows(session, name, rows.clone(), numbers)?;
        let path = name.strip_suffix(".weight").filter(|path| adapters.layer(path).is_some());
        let (Some(path), true) = (path, format != Format::F32) else { return Ok(()) };
        if let Some((error, square)) = rounding(format, numbers, rows.len()) {
            let sum = sums.entry(path.to_owned()).or_default();
            *sum = (sum.0 + error, sum.1 + square);
        }
        Ok(())
    })?;
    let loss = |(path, (error, square)): (String, (f64, f64))| {
        let relative_error = if square > 0.0 { (error / square).sqrt() } else { 0.0 };
        Loss { path, relative_error }
    };
    Ok(sums.into_iter().map(loss).collect())
}

/// The reverse of [`merge`]: `session` is a merged model, from which the adapter is taken out again.
///
/// # Errors
/// As [`merge`], and where the merged weight alone does not say what the base was (DoRA, layers trained whole).
pub fn unmerge(session: &Session, adapters: &AdapterSet, out: &Path, target: MergeTarget) -> Result<()> {
    write(session, adapters, out, target, &mut |name, rows, numbers| {
        adapters.unmerge_rows(session, name, rows, numbers)
    })
}

/// Squared norms of what `format` loses of rows of a weight, and of the rows.
fn rounding(format: Format, numbers: &[f32], rows: usize) -> Option<(f64, f64)> {
    let cols = numbers.len().checked_div(rows)?;
    let mut bytes = Vec::new();
    numbers.chunks_exact(cols).try_for_each(|row| kernels::quantize(format, row, &mut bytes)).ok()?;
    let view = WeightRef { format, rows, cols, order: RowOrder::Plain, bytes: &bytes };
    let (mut row, mut error) = (vec![0.0; cols], 0.0);
    for (i, want) in numbers.chunks_exact(cols).enumerate() {
        view.expand(i, 0..cols, &mut row);
        row.iter_mut().zip(want).for_each(|(x, want)| *x -= want);
        error += kernels::sum_squares(&row);
    }
    Some((error, kernels::sum_squares(numbers)))
}

/// Whether a layer is a tied head that was trained through its embedding.
fn shares_table(adapters: &AdapterSet, head: &AdaptedSite) -> bool {
    let SiteKind::TiedHead(table) = head.site.kind else { return false };
    let trained = |layer: &AdaptedSite| layer.id == table && !layer.variant.params().is_empty();
    (adapters.config.peft_type == "FULL" || head.variant.params().is_empty())
        && adapters.layers.iter().any(trained)
}

/// Whether every adapted layer has a tensor to merge into.
fn check(session: &Session, adapters: &AdapterSet) -> Result<()> {
    if adapters.active.virtual_tokens > 0 {
        let what = "a prompt or a prefix is no part of the weights, so it cannot be merged into them";
        return Err(Error::Usage(what.to_owned()));
    }
    for layer in &adapters.layers {
        layer.variant.check_merge(&layer.site)?;
        if shares_table(adapters, layer) {
            continue;
        }
        let name = session.tensor_name(&format!("{}.weight", layer.site.path));
        if !session.base.tensors.contains(&name) {
            return Err(Error::Usage(format!(
                "{name} is no tensor of its own (it is tied to the embedding), so an adapter on it cannot be merged"
            )));
        }
    }
    Ok(())
}

impl Session {
    /// Merges an adapter into the weights in memory, in f32: what loralib's layers do in `eval()` with `merge_weights`.
    /// The model is then used without the adapter and costs what the base alone costs. Weights that no adapter
    /// changes stay where they lie; what was merged before is taken out first.
    ///
    /// # Errors
    /// Where the adapter cannot be merged (it is on a head that shares its weight with the embedding, or on one that
    /// the base does not have), or a weight cannot be read.
    pub fn merge_weights(&mut self, adapters: &AdapterSet) -> Result<()> {
        self.unmerge_weights()?;
        check(self, adapters)?;
        let mut merged = Vec::new();
        for path in adapters.layers.iter().map(|layer| &layer.site.path) {
            for name in [format!("{path}.weight"), format!("{path}.bias")] {
                let stored = self.tensor_name(&name);
                let Some((rows, cols)) = self.base.tensors.matrix_shape(&stored) else { continue };
                let mut numbers = vec![0.0; rows * cols];
                self.base.tensors.read_rows(&stored, 0..rows, &mut numbers)?;
                adapters.merge_rows(self, &name, 0..rows, &mut numbers)?;
                merged.push((stored, numbers));
            }
        }
        for (name, numbers) in &merged {
            self.base.tensors.replace(name, numbers)?;
        }
        self.rebuild()
    }

    /// Takes what [`Session::merge_weights`] merged out again (loralib's `train()`): the weights are those of the files,
    /// to the bit.
    ///
    /// # Errors
    /// Where the model cannot be built again.
    pub fn unmerge_weights(&mut self) -> Result<()> {
        self.base.tensors.restore();
        self.rebuild()
    }
}

type Change<'a> = dyn FnMut(&str, Range<usize>, &mut [f32]) -> Result<(), lowrank_adapters::Error> + 'a;

/// Writes the model with `change` made to the rows of every tensor.
fn write(
    session: &Session,
    adapters: &AdapterSet,
    out: &Path,
    target: MergeTarget,
    change: &mut Change<'_>,
) -> Result<()> {
    let tensors = &session.base.tensors;
    check(session, adapters)?;
    let mut fill = |name: &str, rows: Range<usize>, out: &mut [f32]| {
        tensors.read_rows(name, rows.clone(), out)?;
        change(name, rows, out).map_err(|e| lowrank_models::Error::Source(e.into()))
    };
    match target {
        MergeTarget::Folder(format) => files::save_folder(&session.base, out, format, &mut fill)?,
        MergeTarget::Gguf(format) => files::save_gguf(&session.base, out, format, &mut fill)?,
    }
    Ok(())
}

/// How far the merged model is from base + adapter on one text.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// Largest difference of a logit.
    pub max_difference: f32,
    /// Largest logit, to compare it with.
    pub max_logit: f32,
    /// Positions at which both find the same token most likely.
    pub same_best: usize,
    /// Positions compared.
    pub positions: usize,
}

/// Compares the logits of `merged` with those of base + adapter after every token of `tokens`
/// (as far as the model's positions reach).
///
/// # Errors
/// Where the model has no language-model head.
pub fn verify_merge(
    session: &Session,
    adapters: &AdapterSet,
    merged: &Session,
    tokens: &[u32],
) -> Result<Verified> {
    let tokens = &tokens[..tokens.len().min(session.model.position_limit().unwrap_or(usize::MAX))];
    let device = Device::cpu();
    let (no_params, no_adapters) = (Params::default(), ActiveAdapters::default());
    let mut ours = Generator::new(&*session.model, &device, &adapters.params, &adapters.active)?;
    let mut theirs = Generator::new(&*merged.model, &device, &no_params, &no_adapters)?;
    let mut result = Verified { max_difference: 0.0, max_logit: 0.0, same_best: 0, positions: tokens.len() };
    for token in tokens {
        let (a, b) = (ours.feed(&[*token]), theirs.feed(&[*token]));
        for (x, y) in a.iter().zip(&b) {
            result.max_difference = result.max_difference.max((x - y).abs());
            result.max_logit = result.max_logit.max(x.abs());
        }
        let best = |logits: &[f32]| logits.iter().enumerate().max_by(|x, y| x.1.total_cmp(y.1)).map(|x| x.0);
        result.same_best += usize::from(best(&a) == best(&b));
    }
    Ok(result)
}

//! Merging: base and adapter written as one model, and checked.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use lowrank_adapters::{AdaptedSite, AdapterSet, BaseWeights};
use lowrank_engine::{ActiveAdapters, Format, Params, Record, Scope, Segment, Site, SiteId, SiteKind, Tape};
use lowrank_files::Staged;
use lowrank_models::{Changes, Head, Sequence, TokenBatch, save_folder_with, save_gguf};
use lowrank_train::Task;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::merge_target::{KEPT, MergeTarget, largest_value};
use crate::rounding::{Loss, Rounding};
use crate::{Error, Result, Session, ranks};

/// Writes the merged weight of every adapted layer, computed in f32, and everything else as it is. Where the format
/// is not f32, says what it costs each of these layers.
///
/// # Errors
/// Where the adapter cannot be merged (it is on a head that shares its weight with the embedding), or
/// the model cannot be written in that form.
pub fn merge(session: &Session, adapters: &AdapterSet, out: &Path, target: MergeTarget) -> Result<Vec<Loss>> {
    let formats = target.formats(session)?;
    let mut sums: BTreeMap<String, Rounding> = BTreeMap::new();
    write(session, adapters, out, target, &mut |name, rows, numbers| {
        let path = name.strip_suffix(".weight").filter(|path| adapters.layer(path).is_some());
        let format = formats.of(&session.tensor_name(name));
        let before = path.filter(|_| format != Format::F32).map(|path| (path, numbers.to_vec()));
        adapters.merge_rows(session, name, rows.clone(), numbers)?;
        if let Some((path, before)) = before
            && let Some(rounding) = Rounding::of(format, &before, numbers, rows.len())
        {
            let sum = sums.entry(path.to_owned()).or_default();
            *sum = sum.plus(&rounding);
        }
        Ok(())
    })?;
    Ok(sums.into_iter().map(|(path, sum)| sum.loss(path)).collect())
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

/// Whether a layer is a tied head that was trained through its embedding.
fn shares_table(adapters: &AdapterSet, head: &AdaptedSite) -> bool {
    let SiteKind::TiedHead(table) = head.site.kind else { return false };
    let trained = |layer: &AdaptedSite| layer.id == table && !layer.variant.params().is_empty();
    head.variant.shares_weight() && adapters.layers.iter().any(trained)
}

/// A language-model head that shares its table with the embedding in the base and no longer does with the adapter,
/// which changes one of the two.
fn head_to_untie<'a>(session: &'a Session, adapters: &AdapterSet) -> Option<&'a Site> {
    if !session.task.task.is_language() {
        return None;
    }
    let tied = |site: &&(usize, &'a Site)| matches!(site.1.kind, SiteKind::TiedHead(_));
    let (id, site) = session.model.sites().iter().enumerate().find(|site| tied(&site))?;
    let SiteKind::TiedHead(table) = site.kind else { return None };
    let changed = |id| adapters.layers.iter().find(|layer| layer.id == id);
    match (changed(SiteId(id)), changed(table)) {
        (Some(head), _) => !shares_table(adapters, head),
        (None, table) => table.is_some(),
    }
    .then_some(site)
}

/// The first value that is NaN or larger than `largest`, and where it is.
fn first_beyond(values: &[f32], largest: f32) -> Option<(usize, f32)> {
    let found = values.par_chunks(1 << 16).enumerate().find_map_first(|(chunk, values)| {
        let at = values.iter().position(|x| x.is_nan() || x.abs() > largest)?;
        Some((chunk << 16 | at, values[at]))
    })?;
    Some(found)
}

fn not_finite(name: &str, rows: &Range<usize>, len: usize, at: usize, what: &str) -> lowrank_models::Error {
    let cols = len / rows.len().max(1);
    let place = format!("{name}, row {}, column {}", rows.start + at / cols, at % cols);
    lowrank_models::Error::Source(format!("{place}: {what}").into())
}

/// Whether a tensor is of a head that the base does not have.
fn is_new(head: &Changes, name: &str) -> bool {
    head.tensors.iter().any(|(new, _)| new == name)
}

/// The name in the merged files of a tensor that the model's sites call `name`.
fn file_name(session: &Session, head: &Changes, name: &str) -> String {
    if is_new(head, name) { name.to_owned() } else { session.tensor_name(name) }
}

/// Whether every adapted layer has a tensor to merge into, in the base or in its new `head`.
fn check(session: &Session, adapters: &AdapterSet, head: &Changes) -> Result<()> {
    if adapters.active.virtual_tokens > 0 {
        let what = "a prompt or a prefix is not part of the weights, so it cannot be merged into them";
        return Err(Error::Usage(what.to_owned()));
    }
    for layer in &adapters.layers {
        layer.variant.check_merge(&layer.site)?;
        if shares_table(adapters, layer) {
            continue;
        }
        let name = file_name(session, head, &format!("{}.weight", layer.site.path));
        if !is_new(head, &name) && !session.base.tensors.contains(&name) {
            return Err(Error::Usage(format!(
                "{name} is not a tensor of its own (it is tied to the embedding), so an adapter on it cannot be merged"
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
        if let Some(site) = head_to_untie(self, adapters) {
            return Err(Error::Usage(format!(
                "{} is tied to the embedding, and the adapter changes only one of the two: merge into a folder",
                site.path
            )));
        }
        check(self, adapters, &Changes::default())?;
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

/// What changes the rows of a tensor that the sites call by this name.
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
    let formats = target.formats(session)?;
    let mut head = changes_of_head(session);
    if let Some(site) = head_to_untie(session, adapters) {
        if let MergeTarget::Gguf(_) = target {
            return Err(Error::Usage(format!(
                "{} is tied to the embedding, and the adapter changes only one of the two: merge into a folder, which can \
                 hold both",
                site.path
            )));
        }
        head.tensors.push((format!("{}.weight", site.path), vec![site.out_features, site.in_features]));
        head.config.insert("tie_word_embeddings".into(), json!(false));
    }
    check(session, adapters, &head)?;
    // Where files and sites differ in a prefix.
    let mut site_names = HashMap::new();
    for layer in &adapters.layers {
        for end in ["weight", "bias"] {
            let name = format!("{}.{end}", layer.site.path);
            site_names.insert(file_name(session, &head, &name), name);
        }
    }
    let mut fill = |name: &str, rows: Range<usize>, out: &mut [f32]| {
        let source = |e: lowrank_adapters::Error| lowrank_models::Error::Source(e.into());
        match is_new(&head, name) {
            true => read_head(session, name, rows.clone(), out).map_err(source)?,
            false => tensors.read_rows(name, rows.clone(), out)?,
        }
        if let Some((at, x)) = first_beyond(out, f32::MAX) {
            return Err(not_finite(name, &rows, out.len(), at, &format!("the base holds {x} there")));
        }
        change(site_names.get(name).map_or(name, String::as_str), rows.clone(), out).map_err(source)?;
        if let Some((at, x)) = first_beyond(out, f32::MAX) {
            return Err(not_finite(name, &rows, out.len(), at, &format!("the adapter makes it {x}")));
        }
        let format = formats.of(name);
        if let Some((at, x)) = first_beyond(out, largest_value(format)) {
            let what =
                format!("{x} is beyond the range of {}: choose f32 or bf16", format.name().to_lowercase());
            return Err(not_finite(name, &rows, out.len(), at, &what));
        }
        Ok(())
    };
    match target {
        MergeTarget::Folder(format) => {
            save_folder_with(&session.base, &head, out, format, &mut fill)?;
        }
        MergeTarget::Gguf(file_type) => {
            if session.base.is_wrapped() {
                ranks::say(
                    "the GGUF file holds the text model alone: llama.cpp takes the others from a file of their own",
                );
            }
            save_gguf(&session.base, out, file_type, &mut fill)?;
        }
    }
    Ok(())
}

/// What makes the base's folder one of transformers' `...ForSequenceClassification` and the like: the layers of the
/// head, nothing of other heads, and the labels.
fn changes_of_head(session: &Session) -> Changes {
    let task = &session.task;
    let (mut changes, model) = (Changes::default(), &session.model);
    let ending = match task.task {
        Task::Lm | Task::Preference | Task::Kto | Task::Grpo => return changes,
        Task::Classification
        | Task::MultiLabelClassification
        | Task::PairClassification
        | Task::Regression
        | Task::Reward => "ForSequenceClassification",
        Task::TokenClassification => "ForTokenClassification",
        Task::Mlm => "ForMaskedLM",
        Task::Embedding => "Model",
    };
    let config = &session.base.config;
    let mut say = |field: &str, value: Value| changes.config.insert(field.into(), value);
    if let Some(class) = config["architectures"][0].as_str() {
        let ends = ["For", "LMHead", "Model"].into_iter().filter_map(|end| class.find(end));
        say("architectures", json!([format!("{}{ending}", &class[..ends.min().unwrap_or(class.len())])]));
    }
    if task.task.has_labels() || task.task.is_number() {
        let labels = match task.task {
            Task::Regression | Task::Reward => (0..task.outputs).map(|i| format!("LABEL_{i}")).collect(),
            _ => task.labels.clone(),
        };
        let numbered = labels.iter().enumerate();
        say(
            "label2id",
            numbered.clone().map(|(i, label)| (label.clone(), json!(i))).collect::<Map<_, _>>().into(),
        );
        say(
            "id2label",
            numbered.map(|(i, label)| (i.to_string(), json!(label))).collect::<Map<_, _>>().into(),
        );
        // transformers counts `id2label`; a file that says it otherwise too must say the same.
        for field in ["num_labels", "_num_labels"] {
            if config.get(field).is_some() {
                say(field, json!(labels.len()));
            }
        }
        if config.get("problem_type").is_some() || task.task.problem_type().is_some() {
            say("problem_type", json!(task.task.problem_type()));
        }
    }
    for path in &model.info().new_layers {
        let Some(layer) = model.head_layer(path) else { continue };
        changes.tensors.push((format!("{path}.weight"), vec![layer.out_features(), layer.in_features()]));
        changes.tensors.extend(layer.bias.as_ref().map(|bias| (format!("{path}.bias"), vec![bias.len()])));
    }
    if task.task != Task::Mlm {
        let prefix = config["model_type"].as_str().and_then(lowrank_models::base_prefix);
        let prefix = prefix.map(|prefix| format!("{prefix}.")).unwrap_or_default();
        let of_head = |name: &str| {
            let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
            let other = session.base.is_wrapped() && !name.starts_with("lm_head.");
            name.starts_with(&prefix) || other || model.head_layer(path).is_some()
        };
        let others = session.base.tensors.names().filter(|name| !of_head(name));
        changes.without = others.map(str::to_owned).collect();
    }
    changes
}

/// Rows of a tensor of a new head, as training started.
fn read_head(
    session: &Session,
    name: &str,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<(), lowrank_adapters::Error> {
    match name.rsplit_once('.') {
        Some((path, "weight")) => session.read_rows(path, rows, out),
        Some((path, _)) => {
            let len = session.model.head_layer(path).map_or(0, lowrank_engine::Linear::out_features);
            let mut bias = vec![0.0; len];
            session.read_bias(path, &mut bias)?;
            out.copy_from_slice(&bias[rows]);
            Ok(())
        }
        None => unreachable!("a tensor of a layer"),
    }
}

/// How far the merged model is from base + adapter on one text.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// Largest difference of a logit; NaN where one of the two gives NaN.
    pub max_difference: f32,
    /// Largest logit, to compare it with.
    pub max_logit: f32,
    /// Positions at which both find the same token most likely.
    pub same_best: usize,
    /// Positions compared.
    pub positions: usize,
}

impl Verified {
    /// What is wrong with a model merged into `format`, where its outputs differ by more than `tolerance`, or, where none
    /// is given, by more than rounding the weights to that format explains. Of quantised formats nothing is known
    /// beforehand: see [`Verified::warning`].
    fn fault(&self, format: Format, tolerance: Option<f32>) -> Option<String> {
        let difference = self.max_difference;
        if !difference.is_finite() || !self.max_logit.is_finite() {
            return Some("outputs of the merged or the unmerged model are not finite".into());
        }
        let (bound, whose) = match (tolerance, format) {
            (Some(tolerance), _) => (tolerance, "the tolerance"),
            (None, Format::F32) => (1e-4 + 1e-3 * self.max_logit, "rounding to f32 explains"),
            (None, Format::F16) => (1e-3 + 0.03 * self.max_logit, "rounding to f16 explains"),
            (None, Format::BF16) => (1e-3 + 0.2 * self.max_logit, "rounding to bf16 explains"),
            _ => return None,
        };
        (difference > bound).then(|| {
            format!("merged and unmerged outputs differ by {difference:.2e}, more than {whose} ({bound:.2e})")
        })
    }

    /// What a user should know of a model merged into a quantised format.
    fn warning(&self, format: Format) -> Option<String> {
        let plain = matches!(format, Format::F32 | Format::F16 | Format::BF16);
        (!plain && 10 * self.same_best < 9 * self.positions).then(|| {
            format!(
                "only {} of {} positions keep their most likely token: {} is too coarse for this adapter; choose a finer \
                 dtype (q8_0 keeps most), or set a tolerance to make this an error",
                self.same_best,
                self.positions,
                format.name().to_lowercase()
            )
        })
    }
}

/// How a merge is checked before its output is kept.
#[derive(Clone, Debug)]
pub struct MergeCheck {
    /// Text on which merged and unmerged are compared.
    pub probe: String,
    /// Largest difference of a logit (or of a class's score) that is accepted; `None`: what rounding to the format
    /// explains.
    pub tolerance: Option<f32>,
}

/// What [`merge_checked`] wrote.
#[derive(Clone, Debug)]
pub struct Merged {
    /// What rounding costs each adapted layer.
    pub losses: Vec<Loss>,
    /// The comparison, where one was asked for.
    pub verified: Option<Verified>,
    /// What a user should know before using it.
    pub warning: Option<String>,
}

/// Merges beside `out`, compares what was written with base + adapter, and only then puts it in its place (of what was
/// there before, too).
///
/// # Errors
/// As [`merge`] and [`verify_merge`], and where both differ by more than `check` accepts. Then nothing is left behind, and
/// what was at `out` is still there.
pub fn merge_checked(
    session: &Session,
    adapters: &AdapterSet,
    out: &Path,
    target: MergeTarget,
    check: Option<&MergeCheck>,
) -> Result<Merged> {
    let format = target.formats(session)?.all;
    let staged = Staged::beside(out)?;
    let losses = merge(session, adapters, staged.path(), target)?;
    let verified = check
        .map(|check| {
            let merged = session.merged(staged.path())?;
            let verified = verify_merge(session, adapters, &merged, &session.prompt(&check.probe)?)?;
            match verified.fault(format, check.tolerance) {
                Some(fault) => Err(Error::Failed(format!("{fault}; nothing was written"))),
                None => Ok(verified),
            }
        })
        .transpose()?;
    staged.keep()?;
    let undone = kept(&losses) < KEPT;
    let undone = undone.then(|| {
        format!(
            "rounding to {} keeps {:.0} % of what the adapter adds; choose another dtype (q8_0 keeps most)",
            format.name().to_lowercase(),
            100.0 * kept(&losses)
        )
    });
    let warning = undone.or_else(|| verified.as_ref().and_then(|verified| verified.warning(format)));
    Ok(Merged { losses, verified, warning })
}

/// The share of what the adapter adds to all layers that is left after rounding.
fn kept(losses: &[Loss]) -> f64 {
    let sum = |of: fn(&Loss) -> f64| losses.iter().map(of).sum::<f64>();
    let added = sum(|loss| loss.added * loss.added);
    if added > 0.0 { sum(|loss| loss.kept * loss.added * loss.added) / added } else { 1.0 }
}

/// The larger of two, or NaN where one is.
fn largest(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

/// Compares what `merged` gives after every token of `tokens` (as far as the model's positions reach) with what
/// base + adapter give: logits, the scores of a head's classes, or hidden states where there is no head.
///
/// # Errors
/// Where a language model cannot generate.
pub fn verify_merge(
    session: &Session,
    adapters: &AdapterSet,
    merged: &Session,
    tokens: &[u32],
) -> Result<Verified> {
    let tokens = &tokens[..tokens.len().min(session.model.info().position_limit.unwrap_or(usize::MAX))];
    let mut result = Verified { max_difference: 0.0, max_logit: 0.0, same_best: 0, positions: tokens.len() };
    let mut compare = |a: &[f32], b: &[f32]| {
        for (x, y) in a.iter().zip(b) {
            result.max_difference = largest(result.max_difference, (x - y).abs());
            result.max_logit = largest(result.max_logit, x.abs());
        }
        let best = |logits: &[f32]| logits.iter().enumerate().max_by(|x, y| x.1.total_cmp(y.1)).map(|x| x.0);
        result.same_best += usize::from(best(a) == best(b));
    };
    if !session.task.task.is_language() {
        let (ours, theirs) =
            (outputs(session, adapters, tokens), outputs(merged, &AdapterSet::none(), tokens));
        for row in 0..tokens.len() {
            let of = |(values, width): &(Vec<f32>, usize)| values[row * width..(row + 1) * width].to_vec();
            compare(&of(&ours), &of(&theirs));
        }
        return Ok(result);
    }
    let device = session.device();
    let (no_params, no_adapters) = (Params::default(), ActiveAdapters::default());
    let mut ours = Sequence::new(&*session.model, &device, &adapters.params, &adapters.active)?;
    let mut theirs = Sequence::new(&*merged.model, &device, &no_params, &no_adapters)?;
    for token in tokens {
        compare(&ours.feed(&[*token]), &theirs.feed(&[*token]));
    }
    Ok(result)
}

/// What the head makes of every token of one text, and how many numbers that are each.
fn outputs(session: &Session, adapters: &AdapterSet, tokens: &[u32]) -> (Vec<f32>, usize) {
    let n = tokens.len();
    let positions: Vec<u32> = (0..n as u32).collect();
    let (lengths, segments) = (vec![n as u32; n], [Segment { q: 0..n, prefix: 0..0, own: 0..n }]);
    let batch = TokenBatch {
        tokens,
        positions: &positions,
        lengths: &lengths,
        token_types: &[],
        segments: &segments,
        output_rows: None,
        adapters: None,
    };
    let device = session.device();
    let scope = Scope::inference(&device, &adapters.params);
    let mut tape = Tape::new(scope, &adapters.active, Record::Nothing);
    let mut h = session.model.hidden(&mut tape, &batch);
    if let Head::Classes(head) = session.model.head() {
        h = head.scores(&mut tape, &h, &(0..n).collect::<Vec<_>>());
    }
    (device.to_vec(&h.tensor), h.tensor.cols())
}

//! Files that hold LoRAs for several models of a diffusion pipeline (kohya's, diffusers'). Pairs are known by their names: a
//! pipeline that is not known here is read, resized and written like any other. A file is written with the names it had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::error::{Error, Result};
use crate::formats::format::{Halves, Options};
use crate::lora::{Lora, Origin, Pair, PairNames, from_f32};
use crate::tensor::{self, Named, Tensor};

/// The models of a pipeline as diffusers calls them, and as ComfyUI calls the denoiser.
const COMPONENTS: [&str; 10] = [
    "unet",
    "transformer",
    "transformer_2",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "image_encoder",
    "controlnet",
    "prior",
    "diffusion_model",
];
/// Those that no language model's module path begins with.
const UNMISTAKABLE: [&str; 4] = ["unet", "text_encoder", "text_encoder_2", "text_encoder_3"];
/// kohya's prefixes, for names that are not known as paths.
const PREFIXES: [(&str, &str); 5] = [
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
];
/// What describes a file's content as it was, and not what is written.
const STALE: [&str; 4] = ["sshs_model_hash", "sshs_legacy_hash", "ss_network_dim", "ss_network_alpha"];

/// Which model of a pipeline a path of `lora` belongs to.
pub(crate) fn component_of(lora: &Lora, module: &str) -> Option<&'static str> {
    if is_name(module) {
        return PREFIXES.iter().find(|(prefix, _)| module.starts_with(prefix)).map(|(_, model)| *model);
    }
    let (model, _) = module.split_once('.')?;
    let known: &[&str] = if lora.origin.is_some() { &COMPONENTS } else { &UNMISTAKABLE };
    known.iter().find(|name| **name == model).copied()
}

/// Whether a module is kohya's name of one whose path is not known.
fn is_name(module: &str) -> bool {
    module.starts_with("lora_") && !module.contains('.')
}

/// Refuses modules whose paths are not known, for formats that need them.
///
/// # Errors
/// Names them.
pub(crate) fn only_paths(lora: &Lora, format: &str) -> Result<()> {
    let names: Vec<String> = lora.pairs.keys().filter(|module| is_name(module)).cloned().collect();
    match names.is_empty() {
        true => Ok(()),
        false => Err(Error::names(
            format!("no modules of Stable Diffusion known here, so no paths for {format}"),
            names,
        )),
    }
}

/// A tensor's part in a pair.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    A,
    B,
    Alpha,
}

/// What a file holds.
#[derive(Default)]
pub(crate) struct Contents {
    pub halves: BTreeMap<String, Halves>,
    pub origin: Origin,
}

/// Reads a file whose tensors `part_of` tells apart.
///
/// # Errors
/// Names the tensors that are no part of a pair.
pub(crate) fn read(
    path: &Path,
    format: &'static str,
    part_of: impl Fn(&str) -> Option<(String, Part)>,
) -> Result<Contents> {
    let mut found = Contents::default();
    let mut others = Vec::new();
    for (name, tensor) in tensor::read(path)? {
        let Some((module, part)) = part_of(&name) else {
            others.push(name);
            continue;
        };
        let half = found.halves.entry(module.clone()).or_default();
        let names = found.origin.names.entry(module).or_default();
        match part {
            Part::A if half.a.is_none() => (half.a, names.a) = (Some(tensor), name),
            Part::B if half.b.is_none() => (half.b, names.b) = (Some(tensor), name),
            Part::Alpha if half.alpha.is_none() && tensor.data.len() == 1 => {
                (half.alpha, names.alpha) = (Some(from_f32(tensor.data[0])), Some(name));
            }
            _ => others.push(name),
        }
    }
    if !others.is_empty() {
        return Err(Error::names(format!("{}: no part of a plain LoRA of {format}", path.display()), others));
    }
    found.origin.format = format;
    found.origin.metadata = tensor::metadata(path)?.unwrap_or_default().into_iter().collect();
    Ok(found)
}

/// The tensors of a file: under the names they had in one of this format, else those of `fresh`.
///
/// # Errors
/// Names the pairs that would have one name.
pub(crate) fn tensors(
    lora: &Lora,
    format: &str,
    fresh: impl Fn(&str) -> Option<PairNames>,
    needs_alpha: impl Fn(&Pair) -> bool,
) -> Result<Named> {
    let origin = lora.origin.as_ref().filter(|origin| origin.format == format);
    let (mut tensors, mut unknown, mut twice) = (Named::new(), Vec::new(), Vec::new());
    for (module, pair) in &lora.pairs {
        let names = origin.and_then(|origin| origin.names.get(module).cloned());
        let Some(names) = names.or_else(|| fresh(module)) else {
            unknown.push(module.clone());
            continue;
        };
        let alpha = match names.alpha {
            None if needs_alpha(pair) => Some(alpha_name(&names.a)),
            name => name,
        };
        let alpha = alpha.map(|name| (name, Tensor::scalar(pair.alpha as f32)));
        for (name, tensor) in [(names.a, pair.a.clone()), (names.b, pair.b.clone())].into_iter().chain(alpha)
        {
            if tensors.insert(name.clone(), tensor).is_some() {
                twice.push(name);
            }
        }
    }
    match (unknown.is_empty(), twice.is_empty()) {
        (false, _) => Err(Error::names(format!("the format {format} has no place for"), unknown)),
        (_, false) => Err(Error::names(format!("two pairs would be in {format}"), twice)),
        _ => Ok(tensors),
    }
}

/// The name of an alpha beside that of A.
fn alpha_name(a: &str) -> String {
    let ends = [".lora_down.weight", ".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight"];
    let module = ends.iter().find_map(|end| a.strip_suffix(end)).unwrap_or(a);
    format!("{module}.alpha")
}

/// The metadata of the file that `lora` came from, as far as it goes for what is written, with `own` in its place.
pub(crate) fn metadata<'a>(
    lora: &'a Lora,
    format: &str,
    own: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let origin = lora.origin.as_ref().filter(|origin| origin.format == format);
    let of_file = origin.into_iter().flat_map(|origin| &origin.metadata);
    let kept = of_file.map(|(key, value)| (key.as_str(), value.as_str()));
    let kept = kept.filter(|(key, _)| !STALE.contains(key) && !own.iter().any(|(other, _)| other == key));
    kept.chain(own.iter().copied()).collect()
}

/// The pairs of one model, where `options` name it and the file has several.
///
/// # Errors
/// Lists the models of the file, if it is none of them.
pub(crate) fn selected(lora: Lora, path: &Path, options: &Options) -> Result<Lora> {
    let Some(model) = &options.component else { return Ok(lora) };
    let model = checked(model)?;
    let models: BTreeSet<&str> = lora.pairs.keys().filter_map(|module| component_of(&lora, module)).collect();
    if models.is_empty() {
        return Ok(lora);
    }
    if !models.contains(model) {
        let why = format!("{} holds nothing for the component {model:?}; it has", path.display());
        return Err(Error::names(why, models.into_iter().map(str::to_owned).collect()));
    }
    let mut one = lora.clone();
    one.pairs.retain(|module, _| component_of(&lora, module) == Some(model));
    Ok(one)
}

/// Paths with the model's name in front, by `component` where they have none. A file of a pipeline without names of models is
/// written as it was.
///
/// # Errors
/// Names the modules that belong to no model of a pipeline.
pub(crate) fn with_component(lora: &Lora, options: &Options) -> Result<Lora> {
    let without = |module: &String| component_of(lora, module).is_none();
    let none: Vec<String> = lora.pairs.keys().filter(|module| without(module)).cloned().collect();
    let model = match (&options.component, none.is_empty()) {
        (_, true) => return Ok(lora.clone()),
        (Some(model), _) => checked(model)?,
        (None, _) if lora.origin.is_some() => return Ok(lora.clone()),
        (None, _) => {
            let why =
                "these belong to no model of a diffusion pipeline; if it is one, name it with `component`";
            return Err(Error::names(why, none));
        }
    };
    let pairs = lora.pairs.iter().map(|(module, pair)| {
        let name = if without(module) { format!("{model}.{module}") } else { module.clone() };
        (name, pair.clone())
    });
    Ok(Lora { pairs: pairs.collect(), ..lora.clone() })
}

/// Paths without the model's name, for formats of one model: the adapter of the only one, or of `component`.
///
/// # Errors
/// Where it holds adapters for several and none is named.
pub(crate) fn one_component(lora: &Lora, options: &Options) -> Result<Lora> {
    let models: BTreeSet<&str> = lora.pairs.keys().filter_map(|module| component_of(lora, module)).collect();
    let model = match (&options.component, models.len()) {
        (Some(model), _) => checked(model)?,
        (None, 0) => return Ok(lora.clone()),
        (None, 1) => models.first().copied().unwrap_or_default(),
        (None, _) => {
            let many = models.into_iter().map(str::to_owned).collect();
            return Err(Error::names("holds adapters for several models; choose one with `component`", many));
        }
    };
    if models.is_empty() {
        return Ok(lora.clone());
    }
    let strip = |module: &String| module.strip_prefix(model)?.strip_prefix('.').map(str::to_owned);
    let pairs = lora.pairs.iter().filter_map(|(module, pair)| Some((strip(module)?, pair.clone())));
    Ok(Lora { pairs: pairs.collect(), ..lora.clone() })
}

fn checked(model: &str) -> Result<&'static str> {
    let known = COMPONENTS.iter().find(|name| **name == model).copied();
    known.ok_or_else(|| Error::Usage(lowrank_files::unknown("component", model, COMPONENTS)))
}

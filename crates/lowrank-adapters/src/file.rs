//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors` (or `adapter_model.bin`, which is read).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use lowrank_engine::{Param, Site, SiteKind};
use lowrank_files::{AtomicFile, MAX_CONFIG, read_limited, write_atomic};
use lowrank_kernels::WeightRef;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View};
use serde_json::Value;

use crate::base::{BaseWeights, NoBase};
use crate::beside::tokens;
use crate::config::{LoraConfig, Targets};
use crate::contract::{AdaptedSite, Method, Repeated};
use crate::error::Error;
use crate::names::{PREFIX, aligned, file_name, peft_names, text_model};
use crate::registry::{method, targets};
use crate::set::AdapterSet;

/// Where PEFT kept the tensors before it wrote safetensors. It is read, not written.
const OLDER_TENSORS_FILE: &str = "adapter_model.bin";
/// A stored copy of a weight that differs from the base's by more than this share of its norm is another model's.
const SAME_BASE: f64 = 0.01;
/// The configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// What the adapter is for: the task and its labels. Only Lowrank reads it.
pub const TASK_FILE: &str = "task.json";

/// The chat template of its conversations, where that is not the base's, as transformers writes it.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// See [`AdapterSet::training_state`].
#[derive(Default)]
pub struct TrainingState {
    /// The configuration it was trained with, where the folder has another.
    pub config: Option<Value>,
    /// Then also all parameters by name.
    pub values: Vec<(String, Vec<f32>)>,
    /// The state of its training hook.
    pub hook: Vec<(String, Vec<f32>)>,
}

impl LoraConfig {
    /// Reads `adapter_config.json` of an adapter folder.
    ///
    /// # Errors
    /// If it is absent, no JSON, or describes an adapter that is not supported.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let folder = adapter_folder(dir);
        let path = folder.join(CONFIG_FILE);
        if folder.is_file() {
            let what = format!(
                "has no {CONFIG_FILE} beside it, which says its rank and alpha: give the folder with both"
            );
            return Err(Error::file(dir, what));
        }
        let text = read_limited(&path, MAX_CONFIG)?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        config.check().map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(config)
    }
}

impl AdapterSet {
    /// Reads an adapter folder made by PEFT or by [`AdapterSet::save`] for a model with these `sites`.
    ///
    /// # Errors
    /// Names the file, and the tensor or site that is wrong, missing or left over.
    pub fn load(dir: &Path, sites: &[Site]) -> Result<Self, Error> {
        Self::load_on(dir, sites, &NoBase)
    }

    /// The same, where a part of the adapter may follow from its base: PEFT's files of a PiSSA or an OLoRA that was
    /// not converted.
    ///
    /// # Errors
    /// As [`AdapterSet::load`].
    pub fn load_on(dir: &Path, sites: &[Site], base: &dyn BaseWeights) -> Result<Self, Error> {
        let mut config = LoraConfig::load(dir)?;
        let path = tensors_file(dir);
        let method = method(&config)?;
        let (mut tensors, mut notes) = read_tensors(&path, method)?;
        let unknown = config.unknown_fields();
        if !unknown.is_empty() {
            let (file, unknown) = (adapter_folder(dir).join(CONFIG_FILE), unknown.join(", "));
            notes.push(format!("{}: fields of a newer PEFT are ignored: {unknown}", file.display()));
        }
        let aligned = align(&mut tensors, &mut config, sites);
        let has = has_tensors(&tensors, method);
        let chosen = method.takes_target_modules() && method.own_targets(sites).is_none();
        if chosen && aligned && matches!(config.target_modules, Some(Targets::Pattern(_))) {
            config.target_modules = None;
        }
        if chosen && config.target_modules.is_none() && !has.is_empty() {
            config.target_modules = Some(Targets::Names(has.iter().cloned().collect()));
        }
        let holds = |site: &Site| has.contains(site.path.as_str());
        // A head that is tied to a table may have its parameters.
        let shares = |site: &Site| matches!(site.kind, SiteKind::TiedHead(table) if holds(&sites[table.0]));
        let lacks = |site: &Site| !has.is_empty() && !holds(site) && !shares(site);
        let planned = Self::planned_at(config, sites, |site| !lacks(site)).map_err(|e| match e {
            Error::NoTarget { .. } => Error::mismatch(&path, e.to_string()),
            other => other,
        });
        let mut set = planned?;
        if chosen && !has.is_empty() {
            let targets = targets(&set.config, sites)?;
            let found = |site: &Site| holds(site) || set.layer(&site.path).is_some();
            let without: Vec<&Site> =
                targets.iter().map(|t| &sites[t.site]).filter(|site| !found(site)).collect();
            if let Some(first) = without.first() {
                notes.push(format!(
                    "{}: {} modules that target_modules names have no tensors and stay as the base has them ({})",
                    path.display(),
                    without.len(),
                    first.path
                ));
            }
            if let (false, Some(first)) = (sites.iter().any(holds), has.first()) {
                return Err(Error::mismatch(
                    &path,
                    format!("it has no module of the adapter's, such as {first}"),
                ));
            }
        }
        let beside = stored_beside(&tensors, &set, sites, base);
        for index in &beside {
            notes.push(format!(
                "{}: {} was stored with the adapter and is used in place of the base's",
                path.display(),
                sites[*index].path
            ));
            set.add_saved(*index, sites);
        }
        set.notes.extend(notes);
        set.each_param(|param| {
            if !param.saved {
                return Ok(());
            }
            let name = file_name(&param.name);
            // Before there was a `base_layer`, the bias of an adapted layer was the module's own.
            let older = name.strip_suffix(".base_layer.bias").map(|path| format!("{path}.bias"));
            let Some((shape, value)) = tensors.remove(&name).or_else(|| tensors.remove(&older?)) else {
                // What lies beside an adapter may be a part of a layer.
                let site = beside.iter().map(|index| &sites[*index]);
                return match site.into_iter().find(|site| param.name.starts_with(&format!("{}.", site.path)))
                {
                    Some(site) => fill_from_base(param, site, base),
                    None => Err(Error::mismatch(&path, format!("it has no tensor {name}"))),
                };
            };
            if shape != param.shape {
                let what =
                    format!("{name} is {shape:?}, the base model takes {:?}{}", param.shape, resized(&name));
                return Err(Error::mismatch(&path, what));
            }
            param.set(value);
            Ok(())
        })?;
        set.task = read_task(dir)?;
        let left = set.left_over(&path, tensors, sites, base)?;
        set.notes.extend(left);
        for (layer, start) in set.layers.iter().zip(set.init_contexts(0, base)) {
            layer.variant.finish_load(&mut set.params, &start)?;
        }
        Ok(set)
    }

    /// What is said of the tensors that no parameter took.
    fn left_over(
        &self,
        path: &Path,
        mut tensors: Tensors,
        sites: &[Site],
        base: &dyn BaseWeights,
    ) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        for layer in &self.layers {
            let site = &layer.site;
            let whole = format!("{PREFIX}{}.", site.path);
            // A head that follows its table is stored under both names.
            if layer.variant.shares_weight() {
                tensors.retain(|name, _| !name.starts_with(&whole) || name.contains(".base_layer."));
            }
            // PEFT adds the base's own table where an embedding is adapted.
            for end in ["weight", "bias"] {
                let name = format!("{whole}base_layer.{end}");
                let Some(stored) = tensors.remove(&name) else { continue };
                if end == "weight" && stored.0 != weight_shape(site) && site.kind != SiteKind::Convolution {
                    let (shape, fix) = (weight_shape(site), resized(&name));
                    let what = format!("{name} is {:?}, the base model takes {shape:?}{fix}", stored.0);
                    return Err(Error::mismatch(path, what));
                }
                if let Some(by) =
                    distance(&stored, site, end, base).filter(|by| *by > SAME_BASE || by.is_nan())
                {
                    notes.push(format!(
                        "{}: {name} differs from the base's by {:.0} % of its norm; the base's is used",
                        path.display(),
                        by * 100.0
                    ));
                }
            }
        }
        // So it does with the rest of the base, if it is given the whole state.
        let of_base = |name: &str| {
            let name = name.strip_prefix(PREFIX)?;
            let (path, end) = name.rsplit_once('.').filter(|(_, end)| ["weight", "bias"].contains(end))?;
            sites.iter().find(|site| site.path == path).map(|site| (site, end.to_owned()))
        };
        tensors.retain(|name, stored| match of_base(name) {
            Some((site, end)) => distance(stored, site, &end, base) != Some(0.0),
            None => true,
        });
        if self.config.bias == "all" {
            // And with every bias of the module: those of modules that nothing is computed with, those under two names, and
            // those that `modules_to_save` holds already.
            tensors.retain(|name, _| !name.ends_with(".bias"));
        }
        if let Some(name) = tensors.keys().next() {
            notes.push(format!(
                "{}: {} tensors belong to no adapted layer of the base and are passed over ({name})",
                path.display(),
                tensors.len()
            ));
        }
        Ok(notes)
    }

    /// Reads an adapter folder without its base model, for looking at it.
    ///
    /// # Errors
    /// As [`AdapterSet::load`].
    pub fn load_alone(dir: &Path) -> Result<Self, Error> {
        let config = LoraConfig::load(dir)?;
        let method = method(&config)?;
        let path = tensors_file(dir);
        let (tensors, _) = read_tensors(&path, method)?;
        let module = |name: &'_ str| {
            let name = name.strip_prefix(PREFIX)?;
            method
                .suffixes()
                .iter()
                .find_map(|end| name.strip_suffix(end)?.strip_suffix('.'))
                .map(str::to_owned)
        };
        let modules: BTreeSet<String> = tensors.keys().filter_map(|name| module(name)).collect();
        let site = |module: String| {
            let name = |end: &str| match end.starts_with("base_model.") {
                true => end.to_owned(),
                false => format!("{PREFIX}{module}.{end}"),
            };
            let shape = |end: &str| tensors.get(&name(end)).map(|(shape, _)| shape.clone());
            let (in_features, out_features) = method.features(&shape).ok_or_else(|| {
                let wanted = method.suffixes().join(", ");
                Error::file(
                    &path,
                    format!("the tensors of {module} do not fit together; there may be {wanted}"),
                )
            })?;
            let (kind, bias) = method.kind(&shape);
            Ok(Site { path: module, kind, in_features, out_features, bias })
        };
        let mut sites = modules.into_iter().map(site).collect::<Result<Vec<_>, Error>>()?;
        let saved = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| {
            let path = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
            let (&[out_features, in_features], true) = (&shape[..], config.saves(path)) else { return None };
            let bias = tensors.contains_key(&format!("{PREFIX}{path}.bias"));
            let kind = SiteKind::Linear;
            Some(Site { path: path.to_owned(), kind, in_features, out_features, bias })
        };
        sites.extend(tensors.iter().filter_map(saved));
        sites.extend(method.sites_alone(&config));
        add_beside(&tensors, &config, &mut sites);
        Self::load(dir, &sites)
    }

    /// What a run must keep to go on that [`AdapterSet::save`] does not: the configuration and the parameters
    /// where the folder holds another form of the adapter, and the state of its training hook.
    ///
    /// # Errors
    /// As [`AdapterSet::save`].
    pub fn training_state(&self) -> Result<TrainingState, Error> {
        let mut state = TrainingState::default();
        if self.exported()?.is_some() {
            state.config = Some(self.config.to_json());
            state.values = self.params.iter().map(|(_, p)| (p.name.clone(), p.values().to_vec())).collect();
        }
        state.hook = self.training_hook.as_ref().map(|r| r.state()).unwrap_or_default();
        Ok(state)
    }

    /// The adapter in `dir` as it was trained.
    ///
    /// # Errors
    /// As [`AdapterSet::load`], or where `state` is another adapter's.
    pub fn resume(dir: &Path, sites: &[Site], state: TrainingState) -> Result<Self, Error> {
        let mut set = match state.config {
            None => Self::load(dir, sites)?,
            Some(config) => {
                let wrong = |what: String| Error::file(dir, format!("its training state: {what}"));
                let config = serde_json::from_value(config).map_err(|e| wrong(e.to_string()))?;
                let mut set = Self::planned(config, sites)?;
                let mut values: BTreeMap<String, Vec<f32>> = state.values.into_iter().collect();
                set.each_param(|param| match values.remove(&param.name) {
                    Some(value) if value.len() == param.rows * param.cols => {
                        param.set(value);
                        Ok(())
                    }
                    _ => Err(wrong(format!("{} is missing or has another size", param.name))),
                })?;
                set
            }
        };
        for (name, value) in state.hook {
            if let Some(hook) = &mut set.training_hook {
                hook.restore(&name, value);
            }
        }
        Ok(set)
    }

    /// The configuration as PEFT takes it: a pattern and a choice of layers exclude each other there.
    fn config_of_file(&self) -> Result<LoraConfig, Error> {
        let mut config = self.config.clone();
        let chosen = config.layers_to_transform.as_ref().is_some_and(|layers| !layers.as_slice().is_empty());
        let in_peft = method(&config)?.in_peft();
        let part = text_model(self.layers.iter().map(|layer| layer.site.path.as_str())).is_some();
        let pattern = matches!(config.target_modules, Some(Targets::Pattern(_)));
        // Of a part of a model: a bare name, or a pattern, would match modules of the other parts too.
        if in_peft && (pattern && chosen || part && config.target_modules.is_some()) {
            let sites: Vec<Site> = self.layers.iter().map(|layer| layer.site.clone()).collect();
            let paths = targets(&config, &sites)?.into_iter().map(|target| sites[target.site].path.clone());
            config.target_modules = Some(Targets::Names(paths.collect()));
            (config.layers_to_transform, config.layers_pattern) = (None, None);
        }
        Ok(config)
    }

    /// What PEFT expects twice of layers that it ties.
    fn repeated(&self) -> Vec<(String, Repeated)> {
        if !self.config.is_set("ensure_weight_tying") {
            return Vec::new();
        }
        let of = |layer: &AdaptedSite| {
            let path = layer.site.path.clone();
            let name = move |r: Repeated| (format!("{PREFIX}{path}.{}", r.name), r);
            layer.variant.repeated(&self.params).into_iter().map(name)
        };
        self.layers.iter().flat_map(of).collect()
    }

    /// Writes the adapter folder, each file whole or not at all.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        if let Some(exported) = self.exported()? {
            return exported.save(dir);
        }
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let repeated = self.repeated();
        let tensors = self.params.iter().filter(|(_, p)| p.saved).map(|(_, p)| {
            let view = TensorView { shape: p.shape.clone(), value: p.values() };
            (file_name(&p.name), view)
        });
        let again = repeated.iter().map(|(name, repeated)| {
            (name.clone(), TensorView { shape: repeated.shape.clone(), value: &repeated.value })
        });
        let tensors = tensors.chain(again);
        // transformers refuses a file that does not say which framework's layout it has.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(&dir.join(TENSORS_FILE), tensors, metadata)?;
        if let Some(task) = &self.task {
            let mut task = serde_json::to_vec_pretty(task).expect("plain data");
            task.push(b'\n');
            write_atomic(&dir.join(TASK_FILE), &task)?;
        }
        if let Some(template) = &self.chat_template {
            write_atomic(&dir.join(CHAT_TEMPLATE_FILE), template.as_bytes())?;
        }
        let config = self.config_of_file()?.to_json();
        let mut config = serde_json::to_vec_pretty(&config).expect("plain data");
        config.push(b'\n');
        Ok(write_atomic(&dir.join(CONFIG_FILE), &config)?)
    }
}

/// Gives the tensors of an adapter for a text model the names that it has where it is a part of a larger one, or alone, as
/// `sites` has it. Says whether any had another name.
fn align(tensors: &mut Tensors, config: &mut LoraConfig, sites: &[Site]) -> bool {
    let inside = text_model(sites.iter().map(|site| site.path.as_str()));
    let paths = tensors.keys().filter_map(|name| name.strip_prefix(PREFIX));
    if inside.is_none() && text_model(paths).is_none() {
        return false;
    }
    let named = |name: &String| match name.strip_prefix(PREFIX) {
        Some(path) => format!("{PREFIX}{}", aligned(path, inside)),
        None => name.clone(),
    };
    let changed = tensors.keys().any(|name| named(name) != *name);
    if changed {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (named(&name), tensor)).collect();
        if let Some(Targets::Names(names)) = &mut config.target_modules {
            names.iter_mut().for_each(|name| *name = aligned(name, inside));
        }
    }
    changed
}

/// Paths of the modules that a file holds tensors for; empty for a method whose tensors are those of no module.
fn has_tensors(tensors: &Tensors, method: &dyn Method) -> BTreeSet<String> {
    let module = |name: &String| {
        let name = name.strip_prefix(PREFIX)?;
        method.suffixes().iter().find_map(|end| name.strip_suffix(end)?.strip_suffix('.')).map(str::to_owned)
    };
    tensors.keys().filter_map(module).collect()
}

/// Layers without an adapter whose weight or bias lies beside it and is not the base's, without `modules_to_save` naming
/// them: a vocabulary that was resized (PEFT's `save_embedding_layers`), norms trained by hand.
fn stored_beside(tensors: &Tensors, set: &AdapterSet, sites: &[Site], base: &dyn BaseWeights) -> Vec<usize> {
    let changed = |(_, site): &(usize, &Site)| {
        let free = site.kind != SiteKind::Convolution && set.layer(&site.path).is_none();
        let differs = |end: &str| {
            let stored = tensors.get(&format!("{PREFIX}{}.{end}", site.path));
            stored.is_some_and(|stored| distance(stored, site, end, base) != Some(0.0))
        };
        free && (differs("weight") || site.bias && differs("bias"))
    };
    let found: Vec<usize> = sites.iter().enumerate().filter(changed).map(|(index, _)| index).collect();
    // A head that follows its table needs no weight of its own.
    let follows = |index: &usize| match sites[*index].kind {
        SiteKind::TiedHead(table) => {
            let name = |site: &Site| format!("{PREFIX}{}.weight", site.path);
            found.contains(&table.0)
                && tensors.get(&name(&sites[*index])) == tensors.get(&name(&sites[table.0]))
        }
        _ => false,
    };
    found.iter().copied().filter(|index| !follows(index)).collect()
}

/// The shape of the weight of a site as it is stored.
fn weight_shape(site: &Site) -> Vec<usize> {
    match site.kind {
        SiteKind::Norm => vec![site.out_features],
        SiteKind::TransposedLinear | SiteKind::Embedding => vec![site.in_features, site.out_features],
        _ => vec![site.out_features, site.in_features],
    }
}

/// Reads the weight or bias of a site.
fn read_base(site: &Site, end: &str, base: &dyn BaseWeights) -> Result<Vec<f32>, Error> {
    if end == "bias" {
        let mut value = vec![0.0; site.out_features];
        base.read_bias(&site.path, &mut value)?;
        return Ok(value);
    }
    let shape = weight_shape(site);
    let mut value = vec![0.0; shape.iter().product()];
    base.read_rows(&site.path, 0..shape[0], &mut value)?;
    Ok(value)
}

/// The norm of the difference between a stored weight or bias and the base's, over the base's norm. `None` where they
/// cannot be compared.
fn distance(stored: &(Vec<usize>, Vec<f32>), site: &Site, end: &str, base: &dyn BaseWeights) -> Option<f64> {
    let shape = if end == "bias" { vec![site.out_features] } else { weight_shape(site) };
    let own = (stored.0 == shape).then(|| read_base(site, end, base).ok()).flatten()?;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut stored.1.iter().zip(&own).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let whole = square(&mut own.iter().map(|x| f64::from(*x)));
    Some(if difference == 0.0 { 0.0 } else { (difference / whole).sqrt() })
}

/// The part of a layer that does not lie beside the adapter is the base's.
fn fill_from_base(param: &mut Param, site: &Site, base: &dyn BaseWeights) -> Result<(), Error> {
    let end = if param.name.ends_with(".bias") { "bias" } else { "weight" };
    param.set(read_base(site, end, base)?);
    Ok(())
}

/// The fix for a table of another size.
fn resized(name: &str) -> &'static str {
    let table = ["embed_tokens.", "lm_head."].iter().any(|table| name.contains(table));
    if table { ": its vocabulary was resized, so resize the base's in the same way first" } else { "" }
}

/// The folder of an adapter, of which `path` may name a file: it is the one with the configuration.
pub fn adapter_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if path.is_file() && parent.join(CONFIG_FILE).is_file() => {
            if parent.as_os_str().is_empty() { Path::new(".") } else { parent }
        }
        _ => path,
    }
}

/// The tensors' file of an adapter: the one that `path` names, else the folder's safetensors file, or PyTorch's of older
/// PEFT.
pub fn tensors_file(path: &Path) -> PathBuf {
    if path.is_file() && path.file_name().is_some_and(|name| name != CONFIG_FILE) {
        return path.to_owned();
    }
    let dir = adapter_folder(path);
    let (file, older) = (dir.join(TENSORS_FILE), dir.join(OLDER_TENSORS_FILE));
    if older.is_file() && !file.exists() { older } else { file }
}

/// `task.json` of an adapter folder, where there is one.
///
/// # Errors
/// If it cannot be read or is not JSON.
pub fn read_task(dir: &Path) -> Result<Option<Value>, Error> {
    let folder = adapter_folder(dir);
    let path = folder.join(TASK_FILE);
    if folder.is_file() || !path.exists() {
        return Ok(None);
    }
    let text = read_limited(&path, MAX_CONFIG)?;
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::file(&path, e.to_string()))
}

/// What is trained beside the adapter at `sites`, as far as the tensors of the file go: biases and rows of tables.
fn add_beside(tensors: &Tensors, config: &LoraConfig, sites: &mut Vec<Site>) {
    let has = |site: &Site, end: &str| tensors.contains_key(&format!("{PREFIX}{}.{end}", site.path));
    if config.bias != "none" {
        for site in sites.iter_mut().filter(|site| !config.saves(&site.path)) {
            site.bias |= has(site, "base_layer.bias") || has(site, "bias");
        }
    }
    for (name, (shape, _)) in tensors {
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        let mut add = |path: &str, kind, in_features, out_features, bias| {
            if !sites.iter().any(|site| site.path == path) {
                sites.push(Site { path: path.to_owned(), kind, in_features, out_features, bias });
            }
        };
        if let (Some(path), &[_, d]) = (name.strip_suffix(&format!(".{}", tokens::SUFFIX)), &shape[..]) {
            add(path, SiteKind::Embedding, u32::MAX as usize, d, false);
        } else if let (Some(path), "all", &[d]) =
            (name.strip_suffix(".bias"), config.bias.as_str(), &shape[..])
        {
            // A norm is a bias and no more, here.
            if !path.ends_with(".base_layer") && !config.saves(path) {
                add(path, SiteKind::Norm, d, d, true);
            }
        }
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a file as f32 under PEFT's names, and what was passed over.
fn read_tensors(path: &Path, method: &dyn Method) -> Result<(Tensors, Vec<String>), Error> {
    let file = lowrank_files::Tensors::open(path)?;
    let names = peft_names(file.names(), method.suffixes()).map_err(|what| Error::file(path, what))?;
    let read = |(name, stored): (&String, &String)| {
        let shape = file.shape(stored).unwrap_or_default().to_vec();
        Ok((name.to_owned(), (shape, file.values(stored)?)))
    };
    let tensors = names.of.iter().map(read).collect::<Result<_, Error>>()?;
    Ok((tensors, names.notes.into_iter().map(|note| format!("{}: {note}", path.display())).collect()))
}

/// A tensor to be written. Its bytes are the values themselves (or a copy of them, made when its turn comes, on a big-endian
/// machine), so writing takes no memory.
pub struct TensorView<'a> {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub value: &'a [f32],
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return WeightRef::from_f32(1, self.value.len(), self.value).bytes.into();
        }
        let mut bytes = vec![0; self.data_len()];
        let (to, _) = bytes.as_chunks_mut::<4>();
        to.iter_mut().zip(self.value).for_each(|(to, x)| *to = x.to_le_bytes());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.value)
    }
}

/// Writes a safetensors file, whole or not at all.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, TensorView<'a>)>,
    metadata: HashMap<String, String>,
) -> Result<(), Error> {
    let file = AtomicFile::create(path)?;
    let written = safetensors::serialize_to_file(tensors, Some(metadata), file.temporary());
    written.map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io(path)(e),
        e => Error::file(path, e.to_string()),
    })?;
    Ok(file.commit()?)
}

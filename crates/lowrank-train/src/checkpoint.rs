//! Checkpoints: all that a run needs to go on bit by bit where it stopped.
//!
//! `DIR/checkpoints/last` and `DIR/checkpoints/best` are adapter folders that PEFT can load, with the
//! optimiser's moments (`optimizer.safetensors`) and the run's place (`trainer_state.json`) beside.
//! A checkpoint is written as `last.new` and takes the place of `last`, which becomes `last.old`; what is removed is
//! renamed first. So one of the three is whole at every moment, and the newest of them counts.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use lowrank_adapters::{AdapterSet, TensorView, TrainingState, write_tensors};
use lowrank_engine::{AdamW, Site, Tensor};
use lowrank_files::{Tensors, read_limited, write_atomic};
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Examples, SavedRollout};

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Where a run is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct RunState {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The lowest held-out loss so far and its step.
    pub best: Option<(u64, f64)>,
    /// Evaluations since the held-out loss was lowest.
    #[serde(default)]
    pub not_better: u64,
    /// The steps that the run was to have.
    #[serde(default)]
    pub total_steps: u64,
    /// What must be the same for the run to go on: options that change the numbers, and the data.
    pub fingerprint: Map<String, Value>,
    /// The sampled completions that the next steps learn from again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<SavedRollout>,
    /// What the held-out data were that `best` is about.
    #[serde(default)]
    pub eval_data: Option<Value>,
}

/// What a checkpoint keeps of data, to know them again.
pub fn data_fingerprint(examples: &Examples) -> Value {
    format!("{} examples with checksum {:08x}", examples.len(), examples.checksum()).into()
}

/// The parameters of an adapter in a few letters.
pub fn params_fingerprint(adapters: &AdapterSet) -> String {
    let mut sum = 0;
    for (_, param) in adapters.params.iter() {
        let bytes: Vec<u8> = param.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, param.name.as_bytes()), &bytes);
    }
    format!("{} parameters with checksum {sum:08x}", adapters.params.count())
}

/// What a checkpoint keeps of the base model: the names, shapes and formats of its tensors, and the values of its vectors.
pub fn base_fingerprint(tensors: &Tensors) -> Value {
    let mut names: Vec<&str> = tensors.names().collect();
    names.sort_unstable();
    let mut sum = 0;
    for name in names {
        let (shape, format) = (tensors.shape(name).unwrap_or_default(), tensors.format(name));
        sum = crc32c::crc32c_append(sum, format!("{name} {shape:?} {format:?}").as_bytes());
        if let (1, Ok(values)) = (shape.len(), tensors.vector(name)) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            sum = crc32c::crc32c_append(sum, &bytes);
        }
    }
    format!("{} tensors with checksum {sum:08x}", tensors.len()).into()
}

impl RunState {
    /// Checks that the run in `run` can go on with options of this fingerprint.
    ///
    /// # Errors
    /// Names an option that changed.
    pub fn check(&self, fingerprint: &Map<String, Value>, run: &Path) -> Result<(), Error> {
        // An option that the run did not know yet was not given.
        let was = |key: &str| self.fingerprint.get(key).unwrap_or(&Value::Null);
        let Some((key, now)) = fingerprint.iter().find(|(key, value)| was(key) != *value) else {
            return Ok(());
        };
        let was = was(key);
        let what =
            format!("`{key}` was {was} and is {now} now: resume with the options and files of the run");
        Err(Error::Checkpoint { path: run.to_owned(), what })
    }
}

/// The folder of a run's checkpoints.
pub const FOLDER: &str = "checkpoints";

/// The folder of checkpoint `name` (`last` or `best`) of a run.
pub fn checkpoint_dir(run: &Path, name: &str) -> PathBuf {
    run.join(FOLDER).join(name)
}

/// The state of the checkpoint in `dir`, which is there if the checkpoint is whole: it is written last.
fn state_of(dir: &Path) -> Option<RunState> {
    serde_json::from_slice(&fs::read(dir.join(STATE_FILE)).ok()?).ok()
}

/// The newest whole checkpoint `name` of a run, under whichever name it is: a process may have been killed while it
/// exchanged them.
fn newest(run: &Path, name: &str) -> Option<(PathBuf, RunState)> {
    let target = checkpoint_dir(run, name);
    let places = [target.with_extension("old"), target.with_extension("new"), target];
    let whole = places.into_iter().filter_map(|dir| state_of(&dir).map(|state| (dir, state)));
    whole.max_by_key(|(_, state)| state.step)
}

/// Whether there is a checkpoint to resume from.
pub fn exists(run: &Path) -> bool {
    newest(run, "last").is_some()
}

/// Gives the newest checkpoints of a run their names, and removes what was never finished. Only for the process that has the
/// run's lock.
///
/// # Errors
/// Where a folder cannot be moved.
pub fn settle(run: &Path) -> Result<(), Error> {
    for name in ["last", "best"] {
        let target = checkpoint_dir(run, name);
        let (fresh, former) = (target.with_extension("new"), target.with_extension("old"));
        let Some((best, _)) = newest(run, name) else { continue };
        if best != target {
            // What stands there is older, or was never whole.
            match state_of(&target) {
                Some(_) if best == fresh => {
                    remove(&former)?;
                    rename(&target, &former)?;
                }
                _ => remove(&target)?,
            }
            rename(&best, &target)?;
        }
        remove(&fresh)?;
    }
    Ok(())
}

/// Writes checkpoint `name` of the run in `run`. At every moment one is whole: the former one keeps its name until the new one
/// is, and then stays beside it until [`confirm`].
///
/// # Errors
/// Where the folder cannot be written; the former checkpoint is still there then.
pub fn save(
    run: &Path,
    name: &str,
    adapters: &AdapterSet,
    optimizer: &AdamW,
    state: &RunState,
) -> Result<(), Error> {
    let target = checkpoint_dir(run, name);
    let (fresh, former) = (target.with_extension("new"), target.with_extension("old"));
    remove(&fresh)?;
    adapters.save(&fresh)?;
    write_optimizer(&fresh.join(OPTIMIZER_FILE), adapters, optimizer)?;
    let state = serde_json::to_vec_pretty(state).expect("plain data");
    write_atomic(&fresh.join(STATE_FILE), &state).map_err(lowrank_adapters::Error::from)?;
    if target.exists() {
        remove(&former)?;
        rename(&target, &former)?;
    }
    rename(&fresh, &target)
}

/// Keeps the adapter of `step` as `checkpoints/step-N`, and of the earlier ones so many that there are `limit`.
///
/// # Errors
/// Where a folder cannot be written or removed.
pub fn keep(run: &Path, step: u64, adapters: &AdapterSet, limit: u64) -> Result<(), Error> {
    let folder = run.join(FOLDER);
    adapters.save(&folder.join(format!("step-{step}")))?;
    let entries = fs::read_dir(&folder).map_err(Error::io(&folder))?.filter_map(std::result::Result::ok);
    let step_of = |name: &str| name.strip_prefix("step-")?.parse::<u64>().ok();
    let mut kept: Vec<u64> = entries.filter_map(|entry| step_of(entry.file_name().to_str()?)).collect();
    kept.sort_unstable();
    let excess = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    kept[..excess].iter().try_for_each(|step| remove(&folder.join(format!("step-{step}"))))
}

/// Makes checkpoint `name` the run's adapter.
///
/// # Errors
/// Where it is not there or cannot be copied.
pub fn export(run: &Path, name: &str) -> Result<(), Error> {
    let (dir, _) = newest(run, name).ok_or_else(|| Error::NoCheckpoint { run: run.to_owned() })?;
    for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
        let path = entry.map_err(Error::io(&dir))?.path();
        let Some(name) = path.file_name().filter(|name| *name != STATE_FILE && *name != OPTIMIZER_FILE)
        else {
            continue;
        };
        let bytes = read_limited(&path, u64::MAX).map_err(lowrank_adapters::Error::from)?;
        write_atomic(&run.join(name), &bytes).map_err(lowrank_adapters::Error::from)?;
    }
    Ok(())
}

/// Removes the checkpoint before the last one: the last one is good.
///
/// # Errors
/// Where it cannot be removed.
pub fn confirm(run: &Path, name: &str) -> Result<(), Error> {
    remove(&checkpoint_dir(run, name).with_extension("old"))
}

/// Goes back to the checkpoint before the last one, if there is one: the last one is not good. Gives its step.
///
/// # Errors
/// Where a folder cannot be moved.
pub fn roll_back(run: &Path, name: &str) -> Result<Option<u64>, Error> {
    let target = checkpoint_dir(run, name);
    let former = target.with_extension("old");
    let Some(state) = state_of(&former) else { return Ok(None) };
    remove(&target)?;
    rename(&former, &target)?;
    Ok(Some(state.step))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io(from))
}

/// Removes a folder, under another name first: half of one is never taken for a checkpoint.
fn remove(dir: &Path) -> Result<(), Error> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let gone = dir.with_file_name(format!("{name}.gone"));
    let absent = |result: std::io::Result<()>| match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir)(e)),
        _ => Ok(()),
    };
    absent(fs::remove_dir_all(&gone))?;
    absent(fs::rename(dir, &gone))?;
    absent(fs::remove_dir_all(&gone))
}

/// What the names of an adapter's own values begin with in the optimiser's file, and those of its training hook.
const VALUE: &str = "value.";
const HOOK: &str = "regime.";
/// The key of the file's metadata with the configuration the adapter was trained with.
const CONFIG: &str = "adapter_config";

fn write_optimizer(path: &Path, adapters: &AdapterSet, optimizer: &AdamW) -> Result<(), Error> {
    let mut tensors: Vec<(String, TensorView<'_>)> = Vec::new();
    for (moments, what) in [(&optimizer.m, "exp_avg"), (&optimizer.v, "exp_avg_sq")] {
        for ((_, p), values) in adapters.params.iter().zip(moments).filter(|((_, p), _)| p.trained) {
            let numbers = TensorView { shape: vec![p.rows, p.cols], value: values.values() };
            tensors.push((format!("{}.{what}", p.name), numbers));
        }
    }
    let state = adapters.training_state()?;
    for (prefix, list) in [(VALUE, &state.values), (HOOK, &state.hook)] {
        for (name, values) in list {
            tensors
                .push((format!("{prefix}{name}"), TensorView { shape: vec![values.len()], value: values }));
        }
    }
    let mut metadata = HashMap::from([("step".to_owned(), optimizer.step.to_string())]);
    metadata.extend(state.config.map(|config| (CONFIG.to_owned(), config.to_string())));
    Ok(write_tensors(path, tensors, metadata)?)
}

/// What the optimiser's file keeps of the adapter.
fn training_state(path: &Path, bytes: &[u8], file: &SafeTensors<'_>) -> Result<TrainingState, Error> {
    let wrong = |what: String| Error::Checkpoint { path: path.to_owned(), what };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(e.to_string()))?;
    let config = header.metadata().as_ref().and_then(|m| m.get(CONFIG));
    let config = config.map(|c| serde_json::from_str(c)).transpose().map_err(|e| wrong(e.to_string()))?;
    let with = |prefix: &str| {
        let named =
            file.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?.to_owned(), view)));
        named.map(|(name, view)| (name, floats(view.data()))).collect()
    };
    Ok(TrainingState { config, values: with(VALUE), hook: with(HOOK) })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

/// Reads the last whole checkpoint of a run; `prepare` says what of the adapter is trained.
///
/// # Errors
/// Where there is none, or a file of it is wrong.
pub fn load(
    run: &Path,
    sites: &[Site],
    weight_decay: f64,
    prepare: impl FnOnce(&mut AdapterSet) -> Result<(), lowrank_adapters::Error>,
) -> Result<(AdapterSet, AdamW, RunState), Error> {
    let (dir, state) = newest(run, "last").ok_or_else(|| Error::NoCheckpoint { run: run.to_owned() })?;
    let optimizer_path = dir.join(OPTIMIZER_FILE);
    let bytes = read_limited(&optimizer_path, u64::MAX).map_err(lowrank_adapters::Error::from)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::Checkpoint { path: optimizer_path.clone(), what: e.to_string() })?;
    let mut adapters = AdapterSet::resume(&dir, sites, training_state(&optimizer_path, &bytes, &file)?)?;
    prepare(&mut adapters)?;
    let mut optimizer = AdamW::new(&adapters.params, weight_decay);
    optimizer.step = state.step;
    read_moments(&optimizer_path, &file, &adapters, &mut optimizer)?;
    Ok((adapters, optimizer, state))
}

fn read_moments(
    path: &Path,
    file: &SafeTensors<'_>,
    adapters: &AdapterSet,
    optimizer: &mut AdamW,
) -> Result<(), Error> {
    let wrong = |what: String| Error::Checkpoint { path: path.to_owned(), what };
    let AdamW { m, v, .. } = optimizer;
    for (moments, what) in [(m, "exp_avg"), (v, "exp_avg_sq")] {
        for ((_, p), values) in adapters.params.iter().zip(moments).filter(|((_, p), _)| p.trained) {
            let name = format!("{}.{what}", p.name);
            let view = file.tensor(&name).map_err(|e| wrong(format!("{name}: {e}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != [p.rows, p.cols] {
                return Err(wrong(format!("{name} is {:?} {:?}", view.dtype(), view.shape())));
            }
            *values = Tensor::from_vec(p.rows, p.cols, floats(view.data()));
        }
    }
    Ok(())
}

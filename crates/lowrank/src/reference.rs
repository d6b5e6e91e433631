//! What preferences are measured against: the log-probabilities of the completions under the base model, or under another adapter.

use std::path::{Path, PathBuf};

use lowrank_adapters::AdapterSet;
use lowrank_engine::Device;
use lowrank_train::{Dataset, TaskSpec, checkpoint, reference};

use crate::options::TrainOptions;
use crate::session::Session;
use crate::{Error, Result};

/// The base model alone, as a reference.
const NONE: &str = "none";

/// Log-probabilities of the data of a run, to be kept in its folder.
pub(crate) struct Reference {
    key: String,
    /// By the name of their data.
    parts: Vec<(&'static str, Vec<[f32; 2]>)>,
}

impl Reference {
    /// Writes them to the folder of the run, where a resumed one finds them.
    pub fn save(&self, out: &Path) -> Result<()> {
        let parts: Vec<_> = self.parts.iter().map(|(name, logps)| (*name, logps.as_slice())).collect();
        Ok(reference::save(out, &self.key, &parts)?)
    }
}

/// Gives the examples of a run their log-probabilities under the reference, where its loss has one. What an earlier part of the run
/// computed is read from its folder.
pub(crate) fn attach(
    session: &Session,
    options: &TrainOptions,
    device: &Device,
    train: &mut Dataset,
    eval: Option<&mut Dataset>,
) -> Result<Option<Reference>> {
    if !needs_reference(&session.task) || device.is_plan() {
        return Ok(None);
    }
    let under = Under::of(session, options, options.init_adapter.as_deref())?;
    let mut reference = Reference { key: under.key(), parts: Vec::new() };
    for (name, data) in [("train", Some(train)), ("eval", eval)] {
        let Some(data) = data else { continue };
        reference.key = format!("{}; {}", reference.key, checkpoint::data_fingerprint(&data.examples));
        let kept = || reference::load(&options.out, &reference.key, name, data.examples.len());
        let logps = match options.resume.then(kept).flatten() {
            Some(logps) => logps,
            None => under.log_probabilities(device, data, !options.no_share_prefix)?,
        };
        data.examples = reference::with_reference(&data.examples, &logps);
        reference.parts.push((name, logps));
    }
    device.reset_peak();
    device.trim();
    Ok(Some(reference))
}

/// Gives the examples of an evaluation their log-probabilities under the base model, or under the adapter that `options` name.
///
/// # Errors
/// Where that adapter does not fit the model.
pub fn attach_reference(session: &Session, options: &TrainOptions, data: &mut Dataset) -> Result<()> {
    if !needs_reference(&session.task) {
        return Ok(());
    }
    let under = Under::of(session, options, None)?;
    let logps = under.log_probabilities(&session.device(), data, true)?;
    data.examples = reference::with_reference(&data.examples, &logps);
    Ok(())
}

/// The adapter of the reference model of a run that samples completions, where its loss has one.
pub(crate) fn adapter(session: &Session, options: &TrainOptions) -> Result<Option<AdapterSet>> {
    if !session.task.loss.needs_reference(session.task.task) {
        return Ok(None);
    }
    Ok(Some(Under::of(session, options, options.init_adapter.as_deref())?.adapters))
}

fn needs_reference(task: &TaskSpec) -> bool {
    task.task.compares() && task.task.is_language() && task.loss.needs_reference(task.task)
}

/// A reference model.
struct Under<'s> {
    session: &'s Session,
    adapters: AdapterSet,
    batch_size: usize,
}

impl<'s> Under<'s> {
    /// The adapter that the options name, else `usual`.
    fn of(session: &'s Session, options: &TrainOptions, usual: Option<&Path>) -> Result<Self> {
        let dir = match options.ref_adapter.as_deref() {
            Some(NONE) => None,
            Some(dir) if Path::new(dir).exists() => Some(PathBuf::from(dir)),
            Some(dir) => {
                let what =
                    format!("`ref_adapter` {dir}: there is no such adapter; none is the base model alone");
                return Err(Error::Usage(what));
            }
            None => usual.map(Path::to_owned),
        };
        let adapters = session.adapter(dir.as_deref())?;
        Ok(Self { session, adapters, batch_size: options.batch_size })
    }

    /// Says which model this is.
    fn key(&self) -> String {
        let base = checkpoint::base_fingerprint(&self.session.base.tensors);
        format!("base {base}; {}", checkpoint::params_fingerprint(&self.adapters))
    }

    fn log_probabilities(&self, device: &Device, data: &Dataset, share: bool) -> Result<Vec<[f32; 2]>> {
        let scorer = self.session.scorer(&self.adapters, device)?;
        let logps = reference::log_probabilities(&scorer, &data.examples, self.batch_size, share);
        let broken = |pair: &[f32; 2]| pair.iter().any(|logp| !logp.is_finite());
        if let Some(at) = logps.iter().position(broken) {
            let examples = vec![data.examples.get(at).id.to_string()];
            return Err(lowrank_train::Error::NoNumbers { examples }.into());
        }
        Ok(logps)
    }
}

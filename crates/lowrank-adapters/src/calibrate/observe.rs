//! Batches of training data, and observers that see the inputs of the layers.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_engine::{ActiveAdapters, Adapter, Linear, Scope, Site, SiteId, SiteKind, Tensor};

use crate::config::LoraConfig;
use crate::contract::Target;
use crate::error::Error;
use crate::registry::targets;

/// The rows of a batch.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Of each example.
    pub examples: Vec<Range<usize>>,
    /// Whether a row's token has a label (it is not of a prompt).
    pub learned: Vec<bool>,
}

/// Batches of training data and the base model to run over them.
pub trait Inputs {
    /// Goes to the next batch; `None` at the end of the data, after which the first follows.
    fn next(&mut self) -> Option<Rows>;

    /// Runs the base model over the batch at hand with `adapters` attached.
    fn run(&mut self, adapters: &ActiveAdapters);
}

/// One matrix a layer, by module path.
pub type Matrices = BTreeMap<String, Arc<Vec<f32>>>;

/// Sees the inputs of a layer.
pub(crate) trait Look: Send {
    fn look(&mut self, x: &Tensor);
}

/// Attached in place of an adapter: shows the layer's input and computes the base.
pub(crate) struct Observer<T>(Mutex<T>);

impl<T: Look> Observer<T> {
    pub(crate) fn new(look: T) -> Arc<Self> {
        Arc::new(Self(Mutex::new(look)))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: Look> Adapter for Observer<T> {
    fn forward(
        &self,
        scope: &Scope<'_>,
        base: &Linear,
        x: &Tensor,
        y: &mut Tensor,
        beta: f32,
    ) -> Vec<Tensor> {
        self.with(|look| look.look(x));
        base.forward(scope, x, y, beta);
        Vec::new()
    }
}

/// A hash that is the same for bit-identical inputs.
pub(crate) struct Fingerprint(Option<u64>);

impl Look for Fingerprint {
    fn look(&mut self, x: &Tensor) {
        let mut hash = std::hash::DefaultHasher::new();
        x.values().iter().for_each(|x| hash.write_u32(x.to_bits()));
        self.0 = Some(hash.finish());
    }
}

/// The targets whose inputs are the same (queries, keys and values), each with the site that is looked at for all.
pub(crate) struct Groups {
    pub(crate) targets: Vec<Target>,
    /// For each target, the one that is looked at in its place; `None` where the base does not reach the layer before
    /// the loss.
    pub(crate) first: Vec<Option<usize>>,
}

impl Groups {
    /// Finds them in the first batch, which stays the one at hand; and its rows.
    pub(crate) fn find(
        config: &LoraConfig,
        sites: &[Site],
        inputs: &mut dyn Inputs,
    ) -> Result<(Self, Rows), Error> {
        let mut targets = targets(config, sites)?;
        targets.retain(|target| sites[target.site].kind != SiteKind::Embedding);
        let rows = inputs.next().ok_or_else(|| Error::Config("there are no data to look at".into()))?;
        let observers: Vec<_> = targets.iter().map(|_| Observer::new(Fingerprint(None))).collect();
        let mut active = ActiveAdapters::default();
        for (target, observer) in targets.iter().zip(&observers) {
            active.attach(SiteId(target.site), observer.clone());
        }
        inputs.run(&active);
        let mut seen: Vec<(u64, usize, usize)> = Vec::new();
        let first = observers.iter().zip(&targets).enumerate().map(|(index, (observer, target))| {
            let (hash, width) = (observer.with(|f| f.0)?, sites[target.site].in_features);
            let known = seen.iter().find(|(h, w, _)| (*h, *w) == (hash, width)).map(|(_, _, first)| *first);
            Some(known.unwrap_or_else(|| {
                seen.push((hash, width, index));
                index
            }))
        });
        let first = first.collect();
        Ok((Self { targets, first }, rows))
    }

    /// The targets that are looked at.
    pub(crate) fn looked_at(&self) -> Vec<usize> {
        (0..self.targets.len()).filter(|&i| self.first[i] == Some(i)).collect()
    }
}

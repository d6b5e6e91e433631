//! Starts that depend on the data: EVA ([`eva`]) and CorDA ([`corda`]) look at what the layers get to see before training.
//!
//! An [`Inputs`] runs the base over batches of the training data; observers attached in place of adapters see the inputs
//! of the layers. What they found is one matrix a layer, which [`Observed`] hands to the start of the adapter.

pub mod corda;
pub mod eva;

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lowrank_engine::{ActiveAdapters, Adapter, Format, Linear, Scope, Site, SiteId, SiteKind, Tensor};

use crate::init::InitLoraWeights;
use crate::target::targets;
use crate::variants::BaseWeights;
use crate::{AdapterSet, Error, LoraConfig, Target};

/// The rows of a batch.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Of each example.
    pub examples: Vec<Range<usize>>,
    /// Whether a row's token is one to learn, not of a prompt.
    pub learned: Vec<bool>,
}

/// Batches of training data and the base model to run over them.
pub trait Inputs {
    /// Goes to the next batch; `None` at the end of the data, and then it begins again.
    fn next(&mut self) -> Option<Rows>;

    /// Runs the base model over the batch at hand with `adapters` attached.
    fn run(&mut self, adapters: &ActiveAdapters);
}

/// One matrix a layer, by module path.
pub type Matrices = BTreeMap<String, Arc<Vec<f32>>>;

/// The weights of the base, with what was found about the inputs of its layers.
pub struct Observed<'a> {
    /// The weights.
    pub base: &'a dyn BaseWeights,
    /// What was found.
    pub found: Matrices,
}

impl BaseWeights for Observed<'_> {
    fn read_rows(&self, path: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.base.read_rows(path, rows, out)
    }

    fn read_bias(&self, path: &str, out: &mut [f32]) -> Result<(), Error> {
        self.base.read_bias(path, out)
    }

    fn quantised(&self, site: &Site) -> Option<Format> {
        self.base.quantised(site)
    }

    fn observed(&self, site: &Site) -> Option<&[f32]> {
        self.found.get(&site.path).map(|found| &found[..])
    }

    fn observes(&self) -> bool {
        true
    }
}

impl AdapterSet {
    /// [`AdapterSet::new_on`] for a configuration that may also start from the data.
    ///
    /// # Errors
    /// As [`AdapterSet::new_on`], and where the data say nothing of a layer or too little.
    pub fn new_on_data(
        config: LoraConfig,
        sites: &[Site],
        seed: u64,
        base: &dyn BaseWeights,
        inputs: &mut dyn Inputs,
    ) -> Result<Self, Error> {
        config.check()?;
        let (config, found) = match InitLoraWeights::parse(&config)? {
            InitLoraWeights::Eva => eva::look(config, sites, inputs)?,
            InitLoraWeights::Corda(_) => {
                let found = corda::look(&config, sites, inputs)?;
                (config, found)
            }
            _ => return Self::new_on(config, sites, seed, base),
        };
        Self::new_on(config, sites, seed, &Observed { base, found })
    }
}

/// Looks at the inputs of a layer.
trait Look: Send {
    fn look(&mut self, x: &Tensor);
}

/// Stands where an adapter would, computes the base and looks.
struct Observer<T>(Mutex<T>);

impl<T: Look> Observer<T> {
    fn new(look: T) -> Arc<Self> {
        Arc::new(Self(Mutex::new(look)))
    }

    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
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

/// A number that equal inputs share.
struct Fingerprint(Option<u64>);

impl Look for Fingerprint {
    fn look(&mut self, x: &Tensor) {
        let mut hash = std::hash::DefaultHasher::new();
        x.data().iter().for_each(|x| hash.write_u32(x.to_bits()));
        self.0 = Some(hash.finish());
    }
}

/// The targets whose inputs are the same (queries, keys and values), each with the site that is looked at for all.
struct Groups {
    targets: Vec<Target>,
    /// For each target, the one that is looked at in its place; `None` where the base does not reach the layer before
    /// the loss.
    first: Vec<Option<usize>>,
}

impl Groups {
    /// Finds them in the first batch, which stays the one at hand; and its rows.
    fn find(config: &LoraConfig, sites: &[Site], inputs: &mut dyn Inputs) -> Result<(Self, Rows), Error> {
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
    fn looked_at(&self) -> Vec<usize> {
        (0..self.targets.len()).filter(|&i| self.first[i] == Some(i)).collect()
    }
}
